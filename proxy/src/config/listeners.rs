//! `listeners`: one section per listener, and what must hold between them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tollgate_policy::Direction;

use super::document::{Place, Value};
use super::read::{Field, Mistakes, Section};
use super::scalar;
use super::{
    EscapedSlashes, ForwardedProto, HttpSettings, Listener, Normalize, OriginalSource, RouteLimits, Underscores,
    Upstream,
};

const EXAMPLE: &str = "[{name: ingress, address: \"127.0.0.1:15001\", direction: ingress}]";
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15001);
/// A held connection costs a slot; Cilium's own restore phase is shorter for pods that matter.
const POLICY_WAIT: Duration = Duration::from_secs(5);
/// As Cilium configures Envoy (`envoy.connectTimeoutSeconds`).
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Long enough for a request head over a bad link, short enough that slow senders do not collect.
const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Body of Envoy's local 403 as Cilium sets it.
const DENIED_BODY: &str = "Access denied";

/// Addresses that this process binds, with the key that names each.
#[derive(Debug, Default)]
pub(super) struct Bound {
    addresses: Vec<(SocketAddr, String)>,
}

impl Bound {
    /// Notes a mistake when `address` is taken. Port 0 is chosen by the kernel and never taken.
    pub(super) fn claim(&mut self, address: SocketAddr, path: &str, place: Place, mistakes: &Mistakes) {
        let taken = self.addresses.iter().find(|(other, _)| overlap(*other, address));
        if let Some((other, owner)) = taken {
            mistakes.note(place, path, format!("{address} is taken by {owner} ({other}); choose another port"));
            return;
        }
        self.addresses.push((address, path.to_owned()));
    }
}

/// Whether two sockets of ours would compete: same port and same address, or one of them on all addresses.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// All listeners; without the key one with every default.
pub(super) fn listeners(top: &mut Section<'_>, bound: &mut Bound, mistakes: &Mistakes) -> Vec<Listener> {
    let Some(field) = top.field("listeners") else {
        bound.claim(DEFAULT_ADDRESS, "listeners", top.place, mistakes);
        return vec![Listener::new(Direction::Ingress, true)];
    };
    if matches!(&field.node.value, Value::Text(text) if text == "xds") {
        return Vec::new();
    }
    let items = field.list(EXAMPLE).unwrap_or_default();
    if matches!(&field.node.value, Value::List(list) if list.is_empty()) {
        field.refuse(format!("no listener, so nothing would be accepted; write {EXAMPLE}"));
    }
    let mut names = HashMap::new();
    items.into_iter().filter_map(|item| listener(&item, &mut names, bound)).collect()
}

/// Whether the control plane says where to listen: `listeners: xds`.
pub(super) fn come_from_xds(top: &mut Section<'_>) -> bool {
    let with_xds = top.has("xds");
    let Some(field) = top.field("listeners") else { return false };
    let asked = matches!(&field.node.value, Value::Text(text) if text == "xds");
    if asked && !with_xds {
        field.refuse(format!("they come over xds, which is not configured; add xds or write {EXAMPLE}"));
    }
    asked
}

impl Listener {
    /// A listener of that direction with the defaults of everything else.
    pub fn new(direction: Direction, transparent: bool) -> Self {
        Self {
            name: direction.as_str().to_owned(),
            address: DEFAULT_ADDRESS,
            additional_addresses: Vec::new(),
            direction,
            transparent,
            reuse_port: true,
            proxy_id: 0,
            upstream: Upstream::OriginalDst,
            endpoint: None,
            original_source: match (direction, transparent) {
                // Cilium's agent never asks for it on ingress (`spec/cilium-agent.md`, BpfMetadata).
                (Direction::Egress, true) => OriginalSource::RemoteDestinations,
                _ => OriginalSource::Never,
            },
            normalize: Normalize::default(),
            policy_wait: POLICY_WAIT,
            connect_timeout: CONNECT_TIMEOUT,
            request_head_timeout: REQUEST_HEAD_TIMEOUT,
            tcp_idle_timeout: None,
            denied_body: DENIED_BODY.to_owned(),
            reason_header: false,
            http: HttpSettings::default(),
            access_log: None,
            agent: None,
        }
    }
}

fn listener(field: &Field<'_>, names: &mut HashMap<String, u64>, bound: &mut Bound) -> Option<Listener> {
    let mut section = field.section("{name: ingress, address: \"127.0.0.1:15001\"}")?;
    let directions = [("ingress", Direction::Ingress), ("egress", Direction::Egress)];
    let direction = section.read("direction", Direction::Ingress, |value| scalar::word(value, &directions));
    let transparent = section.read("transparent", true, scalar::boolean);
    let defaults = Listener::new(direction, transparent);

    let listener = Listener {
        name: name(&mut section, defaults.name, names),
        address: section.read("address", defaults.address, scalar::socket_address),
        additional_addresses: additional_addresses(&mut section),
        direction,
        transparent,
        reuse_port: section.read("reuse_port", defaults.reuse_port, scalar::boolean),
        proxy_id: section.read("proxy_id", defaults.proxy_id, proxy_id),
        upstream: section.read("upstream", defaults.upstream, scalar::upstream),
        endpoint: section.read("endpoint", None, |value| scalar::ip_address(value).map(Some)),
        original_source: section.read("original_source", defaults.original_source, original_source),
        normalize: normalize(&mut section, defaults.normalize),
        policy_wait: section.read("policy_wait", defaults.policy_wait, scalar::duration),
        connect_timeout: section.read("connect_timeout", defaults.connect_timeout, scalar::positive_duration),
        request_head_timeout: section.read(
            "request_head_timeout",
            defaults.request_head_timeout,
            scalar::positive_duration,
        ),
        tcp_idle_timeout: section.read("tcp_idle_timeout", defaults.tcp_idle_timeout, optional_duration),
        denied_body: section.read("denied_body", defaults.denied_body, denied_body),
        reason_header: section.read("reason_header", defaults.reason_header, scalar::boolean),
        http: http(&mut section, defaults.http),
        access_log: access_log(&mut section),
        agent: None,
    };
    claim_addresses(&mut section, &listener, bound, field.mistakes);
    refuse_loop(&mut section, &listener);
    section.refuse("tls", "TLS is not implemented in this version; remove it");
    section.finish(&["tls"]);
    Some(listener)
}

fn name(section: &mut Section<'_>, default: String, names: &mut HashMap<String, u64>) -> String {
    let field = section.field("name");
    let name = match &field {
        None => default,
        Some(field) => match field.read(listener_name) {
            Some(name) => name,
            None => return default, // Noted already; whether it is unique cannot be said.
        },
    };
    let place = field.as_ref().map_or(section.place, |field| field.node.place);
    if let Some(line) = names.insert(name.clone(), place.line) {
        let message = format!("\"{name}\" is the name of another listener (line {line}); names must differ");
        match field {
            Some(field) => field.refuse(message),
            None => section.refuse_whole(message),
        }
    }
    name
}

/// Names are metric labels and log fields, so they stay short and plain.
fn listener_name(value: &Value) -> Result<String, String> {
    let text = scalar::text(value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
        return Err(format!("\"{text}\" is not a name; write 1 to 64 letters, digits, dots, dashes or underscores"));
    }
    Ok(text.to_owned())
}

fn additional_addresses(section: &mut Section<'_>) -> Vec<SocketAddr> {
    let items = section.field("additional_addresses").and_then(|field| field.list("[\"[::1]:15001\"]"));
    items.unwrap_or_default().iter().filter_map(|item| item.read(scalar::socket_address)).collect()
}

fn proxy_id(value: &Value) -> Result<u16, String> {
    scalar::integer(value, 0, u16::MAX.into()).map(|number| u16::try_from(number).unwrap_or_default())
}

fn original_source(value: &Value) -> Result<OriginalSource, String> {
    let words = [
        ("never", OriginalSource::Never),
        ("always", OriginalSource::Always),
        ("remote_destinations", OriginalSource::RemoteDestinations),
    ];
    scalar::word(value, &words)
}

fn normalize(section: &mut Section<'_>, default: Normalize) -> Normalize {
    let field = section.field("normalize");
    let Some(mut section) = field.and_then(|field| field.section("{path: true, merge_slashes: true}")) else {
        return default;
    };
    let words = [
        ("keep", EscapedSlashes::Keep),
        ("reject", EscapedSlashes::Reject),
        ("unescape_and_redirect", EscapedSlashes::UnescapeAndRedirect),
        ("unescape_and_forward", EscapedSlashes::UnescapeAndForward),
    ];
    let normalize = Normalize {
        path: section.read("path", default.path, scalar::boolean),
        merge_slashes: section.read("merge_slashes", default.merge_slashes, scalar::boolean),
        escaped_slashes: section.read("escaped_slashes", default.escaped_slashes, |value| scalar::word(value, &words)),
        field_underscores: section.read("field_underscores", default.field_underscores, |value| {
            let words = [("keep", Underscores::Keep), ("reject", Underscores::Reject), ("drop", Underscores::Drop)];
            scalar::word(value, &words)
        }),
    };
    section.finish(&[]);
    normalize
}

fn access_log(section: &mut Section<'_>) -> Option<PathBuf> {
    let field = section.field("access_log");
    let mut section = field?.section("{unix: /run/cilium/envoy/sockets/access_log.sock}")?;
    let path = section.field("unix").and_then(|field| field.read(scalar::socket_path));
    section.finish(&[]);
    path
}

/// Zero is none.
fn optional_duration(value: &Value) -> Result<Option<Duration>, String> {
    scalar::duration(value).map(|duration| (!duration.is_zero()).then_some(duration))
}

fn http(section: &mut Section<'_>, default: HttpSettings) -> HttpSettings {
    let Some(mut section) = section.field("http").and_then(|field| field.section("{request_id: true}")) else {
        return default;
    };
    let limits = default.limits;
    let http = HttpSettings {
        request_id: section.read("request_id", default.request_id, scalar::boolean),
        forwarded_proto: section.read("forwarded_proto", default.forwarded_proto, |value| {
            let words = [
                ("keep", ForwardedProto::Keep),
                ("add", ForwardedProto::Add),
                ("overwrite", ForwardedProto::Overwrite),
            ];
            scalar::word(value, &words)
        }),
        limits: RouteLimits {
            stream_idle_timeout: section.read("stream_idle_timeout", limits.stream_idle_timeout, optional_duration),
            timeout: section.read("timeout", limits.timeout, optional_duration),
            grpc_timeout: section.read("grpc_timeout", limits.grpc_timeout, scalar::boolean),
            grpc_timeout_max: section.read("grpc_timeout_max", limits.grpc_timeout_max, optional_duration),
            retries: section.read("retries", limits.retries, |value| {
                scalar::integer(value, 0, 10).map(|number| u32::try_from(number).unwrap_or_default())
            }),
            per_try_timeout: section.read("per_try_timeout", limits.per_try_timeout, optional_duration),
        },
        grpc_limits: default.grpc_limits,
        websocket: section.read("websocket", default.websocket, scalar::boolean),
        upstream_idle_timeout: section.read("upstream_idle_timeout", default.upstream_idle_timeout, optional_duration),
        max_requests_per_connection: section.read(
            "max_requests_per_connection",
            default.max_requests_per_connection,
            |value| scalar::integer(value, 0, u32::MAX.into()).map(|number| u32::try_from(number).unwrap_or_default()),
        ),
    };
    section.finish(&[]);
    http
}

/// The data path ends the body with CRLF, so a line end that a YAML block leaves behind is taken off.
fn denied_body(value: &Value) -> Result<String, String> {
    const MOST: usize = 4096;
    let text = scalar::text(value)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.len() > MOST {
        return Err(format!("{} bytes long; at most {MOST} are sent", text.len()));
    }
    Ok(text.to_owned())
}

/// Claims what was read well; the rest has been noted.
fn claim_addresses(section: &mut Section<'_>, listener: &Listener, bound: &mut Bound, mistakes: &Mistakes) {
    let path = section.path_of("address");
    match section.field("address") {
        None => bound.claim(listener.address, &path, section.place, mistakes),
        Some(field) => {
            if let Ok(address) = scalar::socket_address(&field.node.value) {
                bound.claim(address, &path, field.node.place, mistakes);
            }
        }
    }
    let Some(field) = section.field("additional_addresses") else {
        return;
    };
    let Value::List(items) = &field.node.value else {
        return;
    };
    for (index, item) in items.iter().enumerate() {
        if let Ok(address) = scalar::socket_address(&item.value) {
            bound.claim(address, &format!("{}[{index}]", field.path), item.place, mistakes);
        }
    }
}

/// A listener must not lead to itself. Without TPROXY the address a connection was made to is always the listener's
/// own, so `original_dst` can only loop.
fn refuse_loop(section: &mut Section<'_>, listener: &Listener) {
    let own = |address: &SocketAddr| {
        overlap(*address, listener.address)
            || listener.additional_addresses.iter().any(|other| overlap(*address, *other))
    };
    match listener.upstream {
        Upstream::OriginalDst if !listener.transparent => {
            let upstream = section.field("upstream");
            if upstream.as_ref().is_some_and(|field| scalar::upstream(&field.node.value).is_err()) {
                return; // Noted already; what was meant is not known.
            }
            let message = "upstream original_dst on a listener that is not transparent is the listener itself; write \
                           upstream: IP:PORT, or transparent: true";
            match upstream.or_else(|| section.field("transparent")) {
                Some(field) => field.refuse(message),
                None => section.refuse_whole(message),
            }
        }
        Upstream::Fixed(address) if own(&address) => {
            if let Some(field) = section.field("upstream") {
                field.refuse(format!("{address} is this listener itself; write the address of the upstream"));
            }
        }
        _ => {}
    }
}
