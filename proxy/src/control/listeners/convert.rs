//! From a listener as an agent writes it for Envoy to one of ours (`spec/cilium-agent.md` section 2.3). Pure.
//!
//! What is served is the agent's policy listener: `cilium.bpf_metadata`, then `cilium.network`, then HTTP or TCP to the
//! original destination. A listener that asks for anything else that could matter is not served at all, and the reason
//! names it; what cannot matter is ignored by name.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use prost::{Message, Name};
use tollgate_policy::Direction;
use tollgate_proto::cilium;
use tollgate_proto::envoy::config::core::v3::{self as core, address, socket_address};
use tollgate_proto::envoy::config::listener::v3::{self as wire, filter, listener_filter};
use tollgate_proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use tollgate_proto::google::protobuf::Any;

use super::durations::{duration, limit};
use super::{fields, http_manager};
use crate::config::{Agent, Listener, OriginalSource, UpstreamDefaults};

/// The filter that tells chains for TLS from those for cleartext.
const TLS_INSPECTOR: &str = "envoy.filters.listener.tls_inspector";

/// Longest name: it is a metric label and a log field.
const MAX_NAME: usize = 256;

/// Longest time for which a looked up identity counts. An address can carry another one by then.
const MAX_CACHE_ENTRY_TTL: Duration = Duration::from_secs(3600);
/// Envoy's own, where a proxy of bytes says nothing.
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Why a listener is not served. Displays as `filter_chains[0].filters[1]: …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Inactive {
    /// The part that stands in the way.
    pub field: String,
    /// What about it.
    pub reason: String,
}

impl Inactive {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// A listener that is served.
#[derive(Clone, Debug, PartialEq)]
pub struct Active {
    /// As ours.
    pub listener: Listener,
    /// Settings without effect here, by name.
    pub ignored: Vec<String>,
}

/// Reads a listener; `defaults` are what it does not say itself.
///
/// Whatever a listener has beside what is read here is accounted for ([`fields`]). What decoding it has dropped is the caller's
/// matter.
///
/// # Errors
/// It asks for something that this version does not do.
pub fn convert(message: &wire::Listener, defaults: &UpstreamDefaults) -> Result<Active, Inactive> {
    if message.name.is_empty() || message.name.len() > MAX_NAME {
        return Err(Inactive::new("name", format!("has {} bytes; 1 to {MAX_NAME} are possible", message.name.len())));
    }
    let mut ignored = Vec::new();
    let metadata = listener_filters(&message.listener_filters, &mut ignored)?;
    let inspects_tls = message.listener_filters.iter().any(|filter| filter.name == TLS_INSPECTOR);
    let direction = if metadata.is_ingress { Direction::Ingress } else { Direction::Egress };
    let mut listener = Listener {
        name: message.name.clone(),
        address: socket_address("address", message.address.as_ref())?,
        reuse_port: message.enable_reuse_port.is_none_or(|enabled| enabled.value),
        connect_timeout: defaults.connect_timeout,
        ..Listener::new(direction, true)
    };
    additional_addresses(&message.additional_addresses, &mut listener, &mut ignored)?;
    bpf_metadata(&metadata, &mut listener, &mut ignored)?;
    listener.http.upstream_idle_timeout = defaults.idle_timeout;
    chains(&message.filter_chains, inspects_tls, &mut listener, &mut ignored)?;
    if message.bind_to_port.is_some_and(|bind| !bind.value) {
        return Err(Inactive::new("bind_to_port", "is not implemented"));
    }
    fields::LISTENER.of("", message, &mut ignored)?;
    Ok(Active { listener, ignored })
}

/// Whether the datapath redirects pods' connections to this listener, so that policy is enforced on them; whatever else it asks for.
pub(super) fn enforces_policy(message: &wire::Listener) -> bool {
    let filters = message.listener_filters.iter().filter(|filter| filter.name == "cilium.bpf_metadata");
    let mut metadata = filters.filter_map(|filter| match &filter.config_type {
        Some(listener_filter::ConfigType::TypedConfig(any)) => cilium::BpfMetadata::decode(&*any.value).ok(),
        _ => None,
    });
    metadata.any(|metadata| !metadata.is_l7lb)
}

/// The one `cilium.bpf_metadata`; beside it only filters that look and change nothing.
fn listener_filters(
    filters: &[wire::ListenerFilter],
    ignored: &mut Vec<String>,
) -> Result<cilium::BpfMetadata, Inactive> {
    let mut metadata = None;
    for (index, filter) in filters.iter().enumerate() {
        let field = format!("listener_filters[{index}]");
        match filter.name.as_str() {
            // What it finds, the protocol, is found here by the first bytes.
            TLS_INSPECTOR => fields::LISTENER_FILTER.of(&field, filter, ignored)?,
            "cilium.bpf_metadata" if metadata.is_none() => {
                let config = match &filter.config_type {
                    Some(listener_filter::ConfigType::TypedConfig(any)) => Some(any),
                    _ => None,
                };
                fields::LISTENER_FILTER.of(&field, filter, ignored)?;
                metadata = Some(decode(&field, config)?);
            }
            name => return Err(Inactive::new(field, format!("listener filter {name} is not implemented"))),
        }
    }
    metadata.ok_or_else(|| Inactive::new("listener_filters", "no cilium.bpf_metadata, so this is no policy listener"))
}

/// `spec/cilium-filter.md` section 2.4.
fn bpf_metadata(
    metadata: &cilium::BpfMetadata,
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    let field = |name| format!("cilium.bpf_metadata.{name}");
    if metadata.is_l7lb {
        return Err(Inactive::new(field("is_l7lb"), "load balancing at layer 7 is not implemented"));
    }
    fields::BPF_METADATA.of("cilium.bpf_metadata", metadata, ignored)?;
    listener.proxy_id = u16::try_from(metadata.proxy_id)
        .map_err(|_| Inactive::new(field("proxy_id"), format!("{} is over 65535", metadata.proxy_id)))?;
    // Towards a pod on this node the address is never kept, whatever is asked (`spec/cilium-agent.md` section 5.4).
    let keep = metadata.use_original_source_address && listener.direction == Direction::Egress;
    listener.original_source = if keep { OriginalSource::RemoteDestinations } else { OriginalSource::Never };
    let ttl = metadata.cache_entry_ttl.as_ref().map(|ttl| duration(&field("cache_entry_ttl"), ttl)).transpose()?;
    if ttl.is_some_and(|ttl| ttl > MAX_CACHE_ENTRY_TTL) {
        ignored
            .push(format!("{} (longer than {MAX_CACHE_ENTRY_TTL:?}, which counts instead)", field("cache_entry_ttl")));
    }
    listener.agent = Some(Agent {
        bpf_root: (!metadata.bpf_root.is_empty()).then(|| PathBuf::from(&metadata.bpf_root)),
        ipcache_name: (!metadata.ipcache_name.is_empty()).then(|| metadata.ipcache_name.clone()),
        use_nphds: metadata.use_nphds,
        cache_entry_ttl: ttl.map(|ttl| ttl.min(MAX_CACHE_ENTRY_TTL)),
        original_source_linger: metadata.original_source_so_linger_time.map(|s| Duration::from_secs(s.into())),
    });
    Ok(())
}

/// The chain for cleartext. One for TLS is not served: where policy has rules about HTTP, such connections are refused by
/// their first byte. Where there is no chain for TLS, though it is looked for, Envoy closes such connections; here they would
/// pass where policy admits bytes.
fn chains(
    chains: &[wire::FilterChain],
    inspects_tls: bool,
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    let mut cleartext = None;
    let mut takes_tls = !inspects_tls;
    for (index, chain) in chains.iter().enumerate() {
        let field = format!("filter_chains[{index}]");
        let matched = chain.filter_chain_match.clone().unwrap_or_default();
        let transport = matched.transport_protocol.clone();
        let other = wire::FilterChainMatch { transport_protocol: String::new(), ..matched };
        if other != wire::FilterChainMatch::default() {
            return Err(Inactive::new(
                format!("{field}.filter_chain_match"),
                "chooses by more than transport_protocol, which is not implemented",
            ));
        }
        takes_tls |= transport != "raw_buffer";
        match transport.as_str() {
            "tls" => ignored.push(format!(
                "{field} (TLS is not intercepted: it passes where policy admits bytes, and nowhere else)"
            )),
            "" | "raw_buffer" if cleartext.is_none() && chain.transport_socket.is_none() => {
                cleartext = Some((field, chain));
            }
            "" | "raw_buffer" if chain.transport_socket.is_some() => {
                return Err(Inactive::new(format!("{field}.transport_socket"), "is not implemented"));
            }
            "" | "raw_buffer" => return Err(Inactive::new(field, "is a second chain for cleartext")),
            other => return Err(Inactive::new(field, format!("transport_protocol {other} is not implemented"))),
        }
    }
    let (field, chain) =
        cleartext.ok_or_else(|| Inactive::new("filter_chains", "none is for cleartext; TLS is not intercepted"))?;
    if !takes_tls {
        let reason = "is raw_buffer and there is no chain for tls, which would refuse TLS; that is not implemented";
        return Err(Inactive::new(format!("{field}.filter_chain_match.transport_protocol"), reason));
    }
    fields::FILTER_CHAIN.of(&field, chain, ignored)?;
    network_filters(&field, &chain.filters, listener, ignored)
}

/// `cilium.network`, then what moves the bytes.
fn network_filters(
    chain: &str,
    filters: &[wire::Filter],
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    let mut enforced = false;
    let mut forwarded = false;
    for (index, filter) in filters.iter().enumerate() {
        let field = format!("{chain}.filters[{index}]");
        fields::FILTER.of(&field, filter, ignored)?;
        let config = match &filter.config_type {
            Some(filter::ConfigType::TypedConfig(any)) => Some(any),
            _ => None,
        };
        match filter.name.as_str() {
            "cilium.network" if !enforced && !forwarded => {
                network_filter(&field, &decode(&field, config)?, listener, ignored)?;
                enforced = true;
            }
            "envoy.filters.network.http_connection_manager" if enforced && !forwarded => {
                http_manager::read(&field, decode(&field, config)?, listener, ignored)?;
                forwarded = true;
            }
            "envoy.filters.network.tcp_proxy" if enforced && !forwarded => {
                tcp_proxy(&field, &decode(&field, config)?, listener, ignored)?;
                forwarded = true;
            }
            name => return Err(Inactive::new(field, format!("network filter {name} is not implemented here"))),
        }
    }
    match (enforced, forwarded) {
        (true, true) => Ok(()),
        (false, _) => Err(Inactive::new(chain, "no cilium.network, so this is no policy listener")),
        (true, false) => Err(Inactive::new(chain, "neither http_connection_manager nor tcp_proxy")),
    }
}

fn network_filter(
    field: &str,
    config: &cilium::NetworkFilter,
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    if !config.proxylib.is_empty() {
        return Err(Inactive::new(format!("{field}.proxylib"), "parsers written in Go are not implemented"));
    }
    fields::NETWORK_FILTER.of(field, config, ignored)?;
    access_log(&config.access_log_path, listener);
    Ok(())
}

/// Where the listener's flows are logged; an empty path is none.
pub(super) fn access_log(path: &str, listener: &mut Listener) {
    if !path.is_empty() {
        listener.access_log = Some(PathBuf::from(path));
    }
}

fn tcp_proxy(
    field: &str,
    config: &TcpProxy,
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    fields::TCP_PROXY.of(field, config, ignored)?;
    listener.tcp_idle_timeout = match &config.idle_timeout {
        Some(wire) => limit(&format!("{field}.idle_timeout"), Some(wire))?,
        None => Some(TCP_IDLE_TIMEOUT),
    };
    match &config.cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(cluster)) => original_destination(field, cluster),
        _ => Err(Inactive::new(field, "does not name one cluster")),
    }
}

/// The clusters that the bootstrap defines as "where the connection was going" (`spec/cilium-agent.md` section 2.1).
pub(super) fn original_destination(field: &str, cluster: &str) -> Result<(), Inactive> {
    match cluster {
        "ingress-cluster" | "egress-cluster" | "ingress-cluster-tls" | "egress-cluster-tls" => Ok(()),
        other => {
            let reason =
                format!("cluster {other} is not the original destination; other upstreams are not implemented");
            Err(Inactive::new(field, reason))
        }
    }
}

/// Each address once: a second socket for one would get a share of its connections for nothing.
fn additional_addresses(
    addresses: &[wire::AdditionalAddress],
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    for (index, additional) in addresses.iter().enumerate() {
        let field = format!("additional_addresses[{index}]");
        fields::ADDITIONAL_ADDRESS.of(&field, additional, ignored)?;
        let address = socket_address(&field, additional.address.as_ref())?;
        let is_known = listener.addresses().any(|other| other == address);
        match is_known {
            true => ignored.push(format!("{field} ({address} is there already)")),
            false => listener.additional_addresses.push(address),
        }
    }
    Ok(())
}

fn socket_address(field: &str, address: Option<&core::Address>) -> Result<SocketAddr, Inactive> {
    let Some(address::Address::SocketAddress(socket)) = address.and_then(|address| address.address.as_ref()) else {
        return Err(Inactive::new(field, "is no IP address with a port"));
    };
    if socket.protocol != i32::from(socket_address::Protocol::Tcp) {
        return Err(Inactive::new(field, "is not TCP"));
    }
    fields::SOCKET_ADDRESS.of(field, socket, &mut Vec::new())?;
    let ip: IpAddr = socket
        .address
        .parse()
        .map_err(|_| Inactive::new(field, format!("\"{}\" is not an IP address", socket.address)))?;
    let port = match socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port).ok().filter(|port| *port > 0),
        _ => None,
    };
    port.map(|port| SocketAddr::new(ip, port)).ok_or_else(|| Inactive::new(field, "has no port from 1 to 65535"))
}

/// The message of a filter's configuration; one that is absent is empty.
///
/// # Errors
/// It is another message, or there is more in it than this version knows.
pub(super) fn decode<M: Message + Name + Default>(field: &str, any: Option<&Any>) -> Result<M, Inactive> {
    let Some(any) = any else { return Ok(M::default()) };
    if any.type_url.rsplit('/').next() != Some(M::full_name().as_str()) {
        let reason = format!("its configuration is {} and not {}", any.type_url, M::full_name());
        return Err(Inactive::new(field, reason));
    }
    let message = M::decode(any.value.as_slice())
        .map_err(|error| Inactive::new(field, format!("its configuration does not decode: {error}")))?;
    fields::understood(field, &any.value, &message)?;
    Ok(message)
}
