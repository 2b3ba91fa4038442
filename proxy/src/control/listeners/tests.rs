mod names;
mod refused;
mod routes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::{Message, Name};
use tollgate_policy::Direction;
use tollgate_proto::cilium;
use tollgate_proto::envoy::config::core::v3::{self as core, Address, SocketAddress, address, socket_address};
use tollgate_proto::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter,
    ListenerFilterChainMatchPredicate, filter, listener_filter,
};
use tollgate_proto::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use tollgate_proto::envoy::extensions::filters::http::router::v3::Router;
use tollgate_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};
use tollgate_proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use tollgate_proto::google::protobuf::{Any, BoolValue, Duration as WireDuration, UInt32Value};
use tollgate_xds::{Handler, Resource, Update};

use super::*;
use crate::config::{
    Agent, EscapedSlashes, ForwardedProto, HttpSettings, Identities, IdentitySettings, OriginalSource, RouteLimits,
    Underscores, Upstream, UpstreamDefaults,
};
use crate::control::identities::{self, AgentIdentities};
use crate::control::{Control, WorldStore};
use crate::identity::Unavailable;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

const DEFAULTS: UpstreamDefaults = UpstreamDefaults { connect_timeout: Duration::from_secs(7), idle_timeout: None };

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

fn seconds(seconds: i64) -> Option<WireDuration> {
    Some(WireDuration { seconds, nanos: 0 })
}

fn address(ip: &str, port: u32) -> Address {
    let port_specifier = Some(socket_address::PortSpecifier::PortValue(port));
    let socket = SocketAddress { address: ip.into(), port_specifier, ..SocketAddress::default() };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

fn listener_filter<M: Message + Name>(name: &str, config: &M) -> ListenerFilter {
    let config_type = Some(listener_filter::ConfigType::TypedConfig(any(config)));
    ListenerFilter { name: name.into(), config_type, ..ListenerFilter::default() }
}

fn network_filter<M: Message + Name>(name: &str, config: &M) -> Filter {
    Filter { name: name.into(), config_type: Some(filter::ConfigType::TypedConfig(any(config))) }
}

fn http_filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    let config_type = Some(http_filter::ConfigType::TypedConfig(any(config)));
    HttpFilter { name: name.into(), config_type, ..HttpFilter::default() }
}

fn metadata(ingress: bool) -> cilium::BpfMetadata {
    cilium::BpfMetadata {
        bpf_root: "/sys/fs/bpf".into(),
        is_ingress: ingress,
        use_original_source_address: !ingress,
        proxy_id: 12345,
        original_source_so_linger_time: Some(0),
        ipcache_name: "cilium_ipcache_v2".into(),
        cache_entry_ttl: Some(WireDuration { seconds: 0, nanos: 3_000_000 }),
        ..cilium::BpfMetadata::default()
    }
}

fn agents_route(grpc: bool) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster("egress-cluster".into())),
        timeout: seconds(3600),
        max_stream_duration: Some(route_action::MaxStreamDuration {
            grpc_timeout_header_max: seconds(0),
            ..route_action::MaxStreamDuration::default()
        }),
        retry_policy: Some(RetryPolicy {
            retry_on: "5xx".into(),
            num_retries: Some(UInt32Value { value: 3 }),
            per_try_timeout: seconds(0),
            ..RetryPolicy::default()
        }),
        ..RouteAction::default()
    };
    let matched = RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
        grpc: grpc.then(route_match::GrpcRouteMatchOptions::default),
        ..RouteMatch::default()
    };
    Route { r#match: Some(matched), action: Some(route::Action::Route(action)), ..Route::default() }
}

fn manager() -> HttpConnectionManager {
    let l7 = cilium::L7Policy { access_log_path: "/run/access_log.sock".into(), denied_403_body: "No.\r\n".into() };
    let host = VirtualHost {
        name: "default_route".into(),
        domains: vec!["*".into()],
        routes: vec![agents_route(true), agents_route(false)],
        ..VirtualHost::default()
    };
    let routes = RouteConfiguration { virtual_hosts: vec![host], ..RouteConfiguration::default() };
    HttpConnectionManager {
        stat_prefix: "proxy".into(),
        http_filters: vec![
            http_filter("cilium.l7policy", &l7),
            http_filter("envoy.filters.http.router", &Router::default()),
        ],
        use_remote_address: Some(BoolValue { value: true }),
        skip_xff_append: true,
        stream_idle_timeout: seconds(300),
        normalize_path: Some(BoolValue { value: true }),
        merge_slashes: true,
        path_with_escaped_slashes_action: 3,
        upgrade_configs: vec![http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".into(),
            ..http_connection_manager::UpgradeConfig::default()
        }],
        route_specifier: Some(http_connection_manager::RouteSpecifier::RouteConfig(routes)),
        ..HttpConnectionManager::default()
    }
}

fn chain(transport: Option<&str>, last: Filter) -> FilterChain {
    FilterChain {
        filter_chain_match: transport
            .map(|transport| FilterChainMatch { transport_protocol: transport.into(), ..FilterChainMatch::default() }),
        filters: vec![network_filter("cilium.network", &cilium::NetworkFilter::default()), last],
        transport_socket: (transport == Some("tls")).then(core::TransportSocket::default),
        ..FilterChain::default()
    }
}

fn with_manager(manager: &HttpConnectionManager) -> Listener {
    let http = || network_filter("envoy.filters.network.http_connection_manager", manager);
    Listener {
        name: "cilium-http-egress".into(),
        address: Some(address("127.0.0.1", 12345)),
        additional_addresses: vec![AdditionalAddress {
            address: Some(address("::1", 12345)),
            ..AdditionalAddress::default()
        }],
        enable_reuse_port: Some(BoolValue { value: false }),
        listener_filters: vec![
            listener_filter("envoy.filters.listener.tls_inspector", &cilium::L7Policy::default()),
            listener_filter("cilium.bpf_metadata", &metadata(false)),
        ],
        filter_chains: vec![chain(None, http()), chain(Some("tls"), http())],
        ..Listener::default()
    }
}

/// The listener that an agent sends for HTTP rules on egress.
fn http_listener() -> Listener {
    with_manager(&manager())
}

/// The listener that an agent sends for TLS rules on ingress.
fn tls_listener() -> Listener {
    tls_listener_with(None)
}

fn tls_listener_with(idle_timeout: Option<WireDuration>) -> Listener {
    let relay = TcpProxy {
        stat_prefix: "tcp_proxy".into(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster("ingress-cluster".into())),
        idle_timeout,
        ..TcpProxy::default()
    };
    let keeping = cilium::BpfMetadata { use_original_source_address: true, ..metadata(true) };
    let relay = || network_filter("envoy.filters.network.tcp_proxy", &relay);
    Listener {
        name: "cilium-tls-ingress".into(),
        address: Some(address("127.0.0.1", 23456)),
        listener_filters: vec![listener_filter("cilium.bpf_metadata", &keeping)],
        filter_chains: vec![chain(Some("raw_buffer"), relay()), chain(Some("tls"), relay())],
        ..Listener::default()
    }
}

#[test]
fn the_agents_http_listener() {
    let Active { listener, ignored } = convert(&http_listener(), &DEFAULTS).unwrap();
    assert_eq!(listener.name, "cilium-http-egress");
    let addresses: Vec<SocketAddr> = listener.addresses().collect();
    assert_eq!(addresses, ["127.0.0.1:12345".parse().unwrap(), "[::1]:12345".parse().unwrap()]);
    assert_eq!((listener.direction, listener.proxy_id), (Direction::Egress, 12345));
    assert!(listener.transparent && !listener.reuse_port);
    assert_eq!((listener.upstream, listener.connect_timeout), (Upstream::OriginalDst, DEFAULTS.connect_timeout));
    assert_eq!(listener.original_source, OriginalSource::RemoteDestinations);
    assert_eq!(listener.denied_body, "No.");
    assert!(listener.normalize.path && listener.normalize.merge_slashes);
    assert_eq!(listener.normalize.escaped_slashes, EscapedSlashes::UnescapeAndRedirect);
    assert_eq!(
        listener.agent,
        Some(Agent {
            bpf_root: Some(PathBuf::from("/sys/fs/bpf")),
            ipcache_name: Some("cilium_ipcache_v2".into()),
            use_nphds: false,
            cache_entry_ttl: Some(Duration::from_millis(3)),
            original_source_linger: Some(Duration::ZERO),
        })
    );
    assert_eq!(listener.access_log, Some(PathBuf::from("/run/access_log.sock")));
    assert!(ignored[0].starts_with("filter_chains[1] (TLS is not intercepted"), "{ignored:?}");
    assert!(!ignored.iter().any(|name| name.contains("retry_policy")), "{ignored:?}");
    let limits = RouteLimits {
        stream_idle_timeout: Some(Duration::from_secs(300)),
        timeout: Some(Duration::from_secs(3600)),
        grpc_timeout: true,
        grpc_timeout_max: None,
        retries: 3,
        per_try_timeout: None,
    };
    let expected = HttpSettings {
        request_id: true,
        forwarded_proto: ForwardedProto::Overwrite,
        limits,
        grpc_limits: None,
        websocket: true,
        upstream_idle_timeout: None,
        max_requests_per_connection: 0,
    };
    assert_eq!(listener.http, expected);
    let mut other = manager();
    other.stream_idle_timeout = seconds(0);
    other.upgrade_configs.clear();
    other.generate_request_id = Some(BoolValue { value: false });
    other.xff_num_trusted_hops = 1;
    let Active { listener, .. } = convert(&with_manager(&other), &DEFAULTS).unwrap();
    let forwarded_proto = ForwardedProto::Add;
    let limits = RouteLimits { stream_idle_timeout: None, ..limits };
    let expected = HttpSettings { request_id: false, forwarded_proto, limits, websocket: false, ..expected };
    assert_eq!(listener.http, expected);
}

/// The agent's listener with another retry policy.
fn with_retries(retries: RetryPolicy) -> Active {
    let mut manager = manager();
    let Some(http_connection_manager::RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier else {
        panic!("{manager:?}");
    };
    let Some(route::Action::Route(action)) = &mut routes.virtual_hosts[0].routes[1].action else { panic!("a route") };
    action.retry_policy = Some(retries);
    convert(&with_manager(&manager), &DEFAULTS).unwrap()
}

#[test]
fn retries() {
    let most = |value| Some(UInt32Value { value });
    let policy = |retry_on: &str, num_retries| RetryPolicy {
        retry_on: retry_on.into(),
        num_retries,
        per_try_timeout: seconds(5),
        ..RetryPolicy::default()
    };
    let odd = RetryPolicy { retriable_status_codes: vec![404], ..policy("5xx", None) };
    for (policy, retries, in_full) in [
        (policy("5xx", None), 1, true),
        (policy("connect-failure, 5xx,reset", most(2)), 2, true),
        (policy("", most(2)), 0, true),
        (policy("connect-failure", most(2)), 0, false),
        (policy("5xx,retriable-4xx", most(2)), 2, false),
        (policy("5xx", most(11)), 10, false),
        (odd, 1, false),
    ] {
        let Active { listener, ignored } = with_retries(policy.clone());
        assert_eq!(listener.http.limits.retries, retries, "{policy:?}");
        assert_eq!(listener.http.limits.per_try_timeout, Some(Duration::from_secs(5)), "{policy:?}");
        assert_eq!(!ignored.iter().any(|name| name.contains("retry_policy")), in_full, "{policy:?}: {ignored:?}");
    }
}

#[test]
fn the_agents_tls_listener() {
    for (idle_timeout, expected) in [(None, seconds(3600)), (seconds(0), None), (seconds(9), seconds(9))] {
        let Active { listener, .. } = convert(&tls_listener_with(idle_timeout), &DEFAULTS).unwrap();
        let expected = expected.map(|expected| Duration::from_secs(expected.seconds.unsigned_abs()));
        assert_eq!(listener.tcp_idle_timeout, expected);
    }
    let Active { listener, .. } = convert(&tls_listener(), &DEFAULTS).unwrap();
    assert_eq!((listener.direction, listener.original_source), (Direction::Ingress, OriginalSource::Never));
    assert!(listener.reuse_port, "unless it is switched off");
    assert_eq!(listener.additional_addresses, []);
}

#[test]
fn without_settings_nothing_is_normalised_and_the_body_is_the_usual_one() {
    let mut bare = manager();
    bare.normalize_path = None;
    bare.merge_slashes = false;
    bare.path_with_escaped_slashes_action = 0;
    bare.http_filters[0] = http_filter("cilium.l7policy", &cilium::L7Policy::default());
    let Active { listener, .. } = convert(&with_manager(&bare), &DEFAULTS).unwrap();
    assert!(!listener.normalize.path && !listener.normalize.merge_slashes);
    assert_eq!(listener.normalize.escaped_slashes, EscapedSlashes::Keep);
    assert_eq!(listener.denied_body, "Access denied");
    assert_eq!(listener.access_log, None);
}

#[test]
fn an_address_counts_once() {
    let again = |ip| AdditionalAddress { address: Some(address(ip, 12345)), ..AdditionalAddress::default() };
    let mut message = http_listener();
    message.additional_addresses.extend([again("127.0.0.1"), again("::1"), again("127.0.0.2")]);
    let Active { listener, ignored } = convert(&message, &DEFAULTS).unwrap();
    let addresses: Vec<_> = listener.addresses().map(|address| address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:12345", "[::1]:12345", "127.0.0.2:12345"]);
    for part in ["additional_addresses[1] (127.0.0.1:12345 is", "additional_addresses[2] ([::1]:12345 is"] {
        assert!(ignored.iter().any(|setting| setting.starts_with(part)), "no {part}: {ignored:?}");
    }
}

#[test]
fn no_time_is_too_long_to_be_added_to_now() {
    let longest = Some(WireDuration { seconds: i64::MAX, nanos: i32::MAX });
    let mut endless = manager();
    endless.stream_idle_timeout = longest;
    let mut message = with_manager(&endless);
    let ever = cilium::BpfMetadata { cache_entry_ttl: longest, ..metadata(false) };
    message.listener_filters = vec![listener_filter("cilium.bpf_metadata", &ever)];
    let Active { listener, ignored } = convert(&message, &DEFAULTS).unwrap();
    assert_eq!(listener.agent.unwrap().cache_entry_ttl, Some(Duration::from_secs(3600)));
    assert!(ignored.iter().any(|name| name.starts_with("cilium.bpf_metadata.cache_entry_ttl (longer")), "{ignored:?}");
    assert!(std::time::Instant::now().checked_add(listener.http.limits.stream_idle_timeout.unwrap()).is_some());
    let Active { ignored, .. } = convert(&http_listener(), &DEFAULTS).unwrap();
    assert!(!ignored.iter().any(|name| name.contains("cache_entry_ttl")), "{ignored:?}");
}

#[test]
#[expect(deprecated, reason = "an agent may write it all the same")]
fn what_is_not_implemented_is_not_served_and_the_reason_says_what() {
    type Change = fn(&mut Listener);
    let changes: [(&str, Change); 21] = [
        ("name: has 0 bytes; 1 to 256 are possible", |l| l.name.clear()),
        ("address: is no IP address with a port", |l| l.address = None),
        ("address: \"example\" is not an IP address", |l| l.address = Some(address("example", 1))),
        ("address: has no port from 1 to 65535", |l| l.address = Some(address("127.0.0.1", 0))),
        ("additional_addresses[0]: is no IP address with a port", |l| l.additional_addresses[0].address = None),
        ("listener_filters: no cilium.bpf_metadata, so this is no policy listener", |l| drop(l.listener_filters.pop())),
        ("listener_filters[0]: listener filter x is not implemented", |l| l.listener_filters[0].name = "x".into()),
        (
            "listener_filters[1]: its configuration is type.googleapis.com/cilium.L7Policy and not cilium.BpfMetadata",
            |l| {
                l.listener_filters[1] = listener_filter("cilium.bpf_metadata", &cilium::L7Policy::default());
            },
        ),
        ("cilium.bpf_metadata.is_l7lb: load balancing at layer 7 is not implemented", |l| {
            let metadata = cilium::BpfMetadata { is_l7lb: true, ..metadata(false) };
            l.listener_filters[1] = listener_filter("cilium.bpf_metadata", &metadata);
        }),
        ("cilium.bpf_metadata.proxy_id: 65536 is over 65535", |l| {
            let metadata = cilium::BpfMetadata { proxy_id: 65536, ..metadata(false) };
            l.listener_filters[1] = listener_filter("cilium.bpf_metadata", &metadata);
        }),
        ("filter_chains: none is for cleartext; TLS is not intercepted", |l| drop(l.filter_chains.remove(0))),
        (
            "filter_chains[0].filter_chain_match: chooses by more than transport_protocol, which is not implemented",
            |l| {
                let matched = FilterChainMatch { server_names: vec!["a".into()], ..FilterChainMatch::default() };
                l.filter_chains[0].filter_chain_match = Some(matched);
            },
        ),
        ("filter_chains[0]: no cilium.network, so this is no policy listener", |l| l.filter_chains[0].filters.clear()),
        ("filter_chains[0].filters[0].proxylib: parsers written in Go are not implemented", |l| {
            let config = cilium::NetworkFilter { proxylib: "x.so".into(), ..cilium::NetworkFilter::default() };
            l.filter_chains[0].filters[0] = network_filter("cilium.network", &config);
        }),
        ("bind_to_port: is not implemented", |l| l.bind_to_port = Some(BoolValue { value: false })),
        ("use_original_dst: is not implemented", |l| l.use_original_dst = Some(BoolValue { value: true })),
        ("address.network_namespace_filepath: is not implemented", |l| {
            match &mut l.address.as_mut().unwrap().address {
                Some(address::Address::SocketAddress(socket)) => {
                    socket.network_namespace_filepath = "/run/netns/x".into()
                }
                other => panic!("{other:?}"),
            }
        }),
        ("listener_filters[1].filter_disabled: is not implemented", |l| {
            l.listener_filters[1].filter_disabled = Some(ListenerFilterChainMatchPredicate::default());
        }),
        ("listener_filters[1].config_discovery: is not implemented", |l| {
            l.listener_filters[1].config_type = Some(listener_filter::ConfigType::ConfigDiscovery(Default::default()));
        }),
        ("cilium.bpf_metadata.ipv4_source_address: is not implemented", |l| {
            let metadata = cilium::BpfMetadata { ipv4_source_address: "10.0.0.1".into(), ..metadata(false) };
            l.listener_filters[1] = listener_filter("cilium.bpf_metadata", &metadata);
        }),
        ("filter_chains[0].use_proxy_proto: is not implemented", |l| {
            l.filter_chains[0].use_proxy_proto = Some(BoolValue { value: true });
        }),
    ];
    for (reason, change) in changes {
        let mut listener = http_listener();
        change(&mut listener);
        assert_eq!(convert(&listener, &DEFAULTS).unwrap_err().to_string(), reason);
    }
}

/// Cases of Cilium's own suite (`tests/conformance/README.md`). Where that refuses the listener, it is not served here.
#[test]
fn configurations_of_the_metadata_filter() {
    let default = cilium::BpfMetadata::default;
    const L7LB: &str = "cilium.bpf_metadata.is_l7lb: load balancing at layer 7 is not implemented";
    let address = |family: &str| format!("cilium.bpf_metadata.{family}_source_address: is not implemented");
    let (v4, v6) = (address("ipv4"), address("ipv6"));
    let source = core::ConfigSource::default();
    for (name, config, reason) in [
        (
            "MetadataConfigTest.NpdsConfigSupported",
            cilium::BpfMetadata { cilium_config_source: Some(source), ..default() },
            None,
        ),
        ("MetadataConfigTest.EmptyConfig", default(), None),
        (
            "MetadataConfigTest.InvalidL7lbConfig",
            cilium::BpfMetadata { is_ingress: true, is_l7lb: true, ..default() },
            Some(L7LB),
        ),
        (
            "MetadataConfigTest.InvalidIngressIpv4Address",
            cilium::BpfMetadata { ipv4_source_address: "invalid".into(), ..default() },
            Some(v4.as_str()),
        ),
        (
            "MetadataConfigTest.InvalidIngressIpv6Address",
            cilium::BpfMetadata { ipv6_source_address: "invalid".into(), ..default() },
            Some(v6.as_str()),
        ),
        (
            "MetadataConfigTest.EastWestL7LbConfig",
            cilium::BpfMetadata { is_l7lb: true, use_original_source_address: true, ..default() },
            Some(L7LB),
        ),
        ("MetadataConfigTest.NorthSouthL7LbConfig", cilium::BpfMetadata { is_l7lb: true, ..default() }, Some(L7LB)),
    ] {
        let mut listener = http_listener();
        listener.listener_filters[1] = listener_filter("cilium.bpf_metadata", &config);
        let found = convert(&listener, &DEFAULTS).err().map(|inactive| inactive.to_string());
        assert_eq!(found.as_deref(), reason, "{name}");
    }
}

#[test]
fn what_would_change_requests_is_not_served() {
    type Change = fn(&mut HttpConnectionManager);
    fn routes(manager: &mut HttpConnectionManager) -> &mut VirtualHost {
        match &mut manager.route_specifier {
            Some(http_connection_manager::RouteSpecifier::RouteConfig(routes)) => &mut routes.virtual_hosts[0],
            other => panic!("{other:?}"),
        }
    }
    let changes: [(&str, Change); 13] = [
        ("via: is not implemented", |m| m.via = "1.1 x".into()),
        ("http_filters[0].config_discovery: is not implemented", |m| {
            m.http_filters[0].config_type = Some(http_filter::ConfigType::ConfigDiscovery(Default::default()));
        }),
        ("http_filters[1].upstream_http_filters: is not implemented", |m| {
            let filters = vec![http_filter("cilium.l7policy", &cilium::L7Policy::default())];
            let router = Router { upstream_http_filters: filters, ..Router::default() };
            m.http_filters[1] = http_filter("envoy.filters.http.router", &router);
        }),
        ("append_x_forwarded_port: is not implemented", |m| m.append_x_forwarded_port = true),
        ("http_filters[1]: HTTP filter envoy.filters.http.lua is not implemented here", |m| {
            m.http_filters.insert(1, http_filter("envoy.filters.http.lua", &cilium::L7Policy::default()));
        }),
        ("http_filters[0]: HTTP filter envoy.filters.http.router is not implemented here", |m| {
            drop(m.http_filters.remove(0));
        }),
        ("strip_matching_host_port: is not implemented", |m| m.strip_matching_host_port = true),
        ("rds: routes from elsewhere are not implemented", |m| {
            m.route_specifier = Some(http_connection_manager::RouteSpecifier::Rds(Default::default()));
        }),
        ("route_config.virtual_hosts[0]: has more than routes for the domain *, which is not implemented", |m| {
            routes(m).domains.push("x".into());
        }),
        ("route_config.virtual_hosts[0].routes: none is for every request", |m| drop(routes(m).routes.pop())),
        ("route_config.virtual_hosts[0].routes[0]: has more than match and route, which is not implemented", |m| {
            routes(m).routes[0].request_headers_to_remove.push("x".into());
        }),
        (
            "route_config.virtual_hosts[0].routes[1].route: has more than cluster, timeouts and retry_policy, which is not \
             implemented",
            |m| match &mut routes(m).routes[1].action {
                Some(route::Action::Route(action)) => action.prefix_rewrite = "/x".into(),
                other => panic!("{other:?}"),
            },
        ),
        (
            "route_config.virtual_hosts[0].routes[0].route: cluster ns/svc is not the original destination; other upstreams \
             are not implemented",
            |m| match &mut routes(m).routes[0].action {
                Some(route::Action::Route(action)) => {
                    action.cluster_specifier = Some(route_action::ClusterSpecifier::Cluster("ns/svc".into()));
                }
                other => panic!("{other:?}"),
            },
        ),
    ];
    for (reason, change) in changes {
        let mut manager = manager();
        change(&mut manager);
        let got = convert(&with_manager(&manager), &DEFAULTS).unwrap_err().to_string();
        assert_eq!(got, format!("filter_chains[0].filters[1].{reason}"));
    }
}

/// Field 99, a varint.
const UNKNOWN: [u8; 3] = [0x98, 0x06, 0x01];

/// A listener whose filter configuration of that type has more in it than this version knows.
fn with_unknown<M: Message + Name>(mut listener: Listener) -> Listener {
    let unknown = |any: &mut Any| {
        if any.type_url.ends_with(&M::full_name()) {
            any.value.extend(UNKNOWN);
        }
    };
    for filter in &mut listener.listener_filters {
        if let Some(listener_filter::ConfigType::TypedConfig(any)) = &mut filter.config_type {
            unknown(any);
        }
    }
    for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
        let Some(filter::ConfigType::TypedConfig(any)) = &mut filter.config_type else { continue };
        if any.type_url.ends_with(&HttpConnectionManager::full_name()) {
            let mut manager = HttpConnectionManager::decode(&any.value[..]).unwrap();
            for filter in &mut manager.http_filters {
                if let Some(http_filter::ConfigType::TypedConfig(any)) = &mut filter.config_type {
                    unknown(any);
                }
            }
            any.value = manager.encode_to_vec();
        }
        unknown(any);
    }
    listener
}

#[test]
fn what_this_version_does_not_know_is_not_served() {
    const WHY: &str = "this version does not know the field, and it could matter";
    for (listener, field) in [
        (with_unknown::<cilium::BpfMetadata>(http_listener()), "listener_filters[1]"),
        (with_unknown::<cilium::NetworkFilter>(http_listener()), "filter_chains[0].filters[0]"),
        (with_unknown::<HttpConnectionManager>(http_listener()), "filter_chains[0].filters[1]"),
        (with_unknown::<cilium::L7Policy>(http_listener()), "filter_chains[0].filters[1].http_filters[0]"),
        (with_unknown::<Router>(http_listener()), "filter_chains[0].filters[1].http_filters[1]"),
        (with_unknown::<TcpProxy>(tls_listener()), "filter_chains[0].filters[1]"),
    ] {
        assert_eq!(convert(&listener, &DEFAULTS).unwrap_err().to_string(), format!("{field}.field 99: {WHY}"));
    }
    // What cannot matter is named all the same.
    let odd = Listener { traffic_direction: 1, drain_type: 1, ..http_listener() };
    let Active { ignored, .. } = convert(&odd, &DEFAULTS).unwrap();
    for name in ["traffic_direction", "drain_type"] {
        assert!(ignored.iter().any(|setting| setting == name), "{ignored:?}");
    }
}

/// Also where it stands in the listener itself; until it comes without.
#[tokio::test]
async fn a_listener_that_was_read_in_part_is_inactive() {
    let (asked, report) = (Arc::new(Asked::default()), Report::default());
    let mut handler = ListenerHandler::new(Arc::clone(&asked), report.clone(), DEFAULTS);
    let with = |bytes: Vec<u8>| {
        let mut update = update(vec![named("l"), named("good")], &[]);
        update.changed[0].message = Listener::decode(&bytes[..]).unwrap();
        update.changed[0].partly_read = Some(bytes.into());
        update
    };
    let bytes = named("l").encode_to_vec();
    // A third filter chain, for TLS, with a match that has the field.
    let deep = [&bytes[..], &[0x1a, 10, 0x0a, 8, 0x4a, 3], b"tls", &UNKNOWN].concat();
    for (bytes, field) in [([&bytes[..], &UNKNOWN].concat(), "field 99"), (deep, "field 3[2].1[0].99")] {
        assert_eq!(handler.apply(with(bytes)).await, Ok(()));
        assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["good"]);
        let reason = &report.read().inactive["l"].reason;
        assert_eq!(reason, &format!("{field}: this version does not know the field, and it could matter"));
        assert_eq!(handler.apply(update(vec![], &[])).await, Ok(()), "another update");
        assert!(report.read().inactive.contains_key("l"), "it stays so");
    }
    // Another encoding of what is known is no reason.
    let update_again = with([&bytes[1 + 1 + 1..], &bytes[..3]].concat());
    assert_eq!(handler.apply(update_again).await, Ok(()));
    assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["good", "l"]);
    assert_eq!(report.read().inactive.len(), 0);
}

/// Notes what it is asked to serve, and fails what is named `taken`.
#[derive(Debug, Default)]
struct Asked(Mutex<Vec<Vec<String>>>);

impl Serve for Asked {
    async fn serve(&self, listeners: &[config::Listener]) -> Vec<Unserved> {
        let names: Vec<_> = listeners.iter().map(|listener| listener.name.clone()).collect();
        self.0.lock().unwrap().push(names.clone());
        let taken = names.into_iter().filter(|name| name == "taken");
        taken.map(|name| Unserved { name, reason: "Address already in use".into(), as_before: false }).collect()
    }
}

fn named(name: &str) -> Listener {
    Listener { name: name.into(), ..http_listener() }
}

fn update(changed: Vec<Listener>, removed: &[&str]) -> Update<Listener> {
    let resource = |message: Listener| Resource { name: message.name.clone(), message, partly_read: None };
    Update {
        version: "1".into(),
        changed: changed.into_iter().map(resource).collect(),
        removed: removed.iter().map(|name| (*name).to_owned()).collect(),
        first_on_stream: false,
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_acknowledged_and_listed() {
    let (asked, report) = (Arc::new(Asked::default()), Report::default());
    let mut handler = ListenerHandler::new(Arc::clone(&asked), report.clone(), DEFAULTS);
    let odd = Listener { listener_filters: Vec::new(), ..named("odd") };
    assert_eq!(handler.apply(update(vec![named("good"), odd], &[])).await, Ok(()));
    assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["good"]);
    let reason = &report.read().inactive["odd"].reason;
    assert!(reason.contains("no cilium.bpf_metadata"), "{reason}");
    assert_eq!(handler.apply(update(vec![], &["good", "odd"])).await, Ok(()));
    assert!(asked.0.lock().unwrap().last().unwrap().is_empty());
    assert_eq!(report.read(), Reported::default());
}

#[tokio::test]
async fn a_socket_that_cannot_be_opened_is_rejected_and_the_next_update_begins_from_what_is_served() {
    let (asked, report) = (Arc::new(Asked::default()), Report::default());
    let mut handler = ListenerHandler::new(Arc::clone(&asked), report.clone(), DEFAULTS);
    assert_eq!(handler.apply(update(vec![named("good")], &[])).await, Ok(()));
    let rejection = handler.apply(update(vec![named("taken"), named("more")], &[])).await.unwrap_err();
    assert_eq!(rejection.to_string(), "Listener taken: Address already in use");
    assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["good", "more", "taken"]);
    assert_eq!(report.read().unserved["taken"].reason, "Address already in use");
    assert_eq!(handler.apply(update(vec![named("other")], &[])).await, Ok(()));
    assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["good", "more", "other"], "what is served stays");
    assert_eq!(handler.apply(update(vec![], &["more"])).await, Ok(()));
    assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["good", "other"]);
}

fn with(name: &str, change: fn(&mut cilium::BpfMetadata)) -> Listener {
    let mut metadata = metadata(false);
    change(&mut metadata);
    let filters = vec![listener_filter("cilium.bpf_metadata", &metadata)];
    Listener { listener_filters: filters, ..named(name) }
}

/// A handler whose listeners say where identities are looked up, and the world that they are looked up in.
fn with_agents_identities(asked: &Arc<Asked>, report: &Report) -> (Arc<WorldStore>, ListenerHandler<Asked>) {
    let store = Arc::new(WorldStore::new(identities::sources(&IdentitySettings::new(Identities::Agent)).unwrap()));
    let pending = Readiness::default().pending("policy");
    let control = Arc::new(Control::new(Arc::clone(&store), Metrics::new(1).0.control(), pending));
    let handler = ListenerHandler::new(Arc::clone(asked), report.clone(), DEFAULTS)
        .with_identities(AgentIdentities::new(&control, &Identities::Agent));
    (store, handler)
}

/// Maps are the process's: the first listener by name counts, and one that names others is served all the same.
#[tokio::test]
async fn the_agent_names_the_maps_of_identities() {
    let (asked, report) = (Arc::new(Asked::default()), Report::default());
    let (store, mut handler) = with_agents_identities(&asked, &report);
    let address = "10.0.0.1".parse().unwrap();
    assert_eq!(store.load().identities.address(address), Err(Unavailable::Agent));
    assert_eq!(store.load().identities.waits_for(), None, "without a listener nobody asks");

    let first = with("a", |metadata| metadata.bpf_root = "/none".into());
    let other = with("b", |metadata| metadata.ipcache_name = "other".into());
    let hosts = with("c", |metadata| metadata.use_nphds = true);
    assert_eq!(handler.apply(update(vec![first, other, hosts], &[])).await, Ok(()));
    let expected = IdentitySettings::of_bpf_root(Path::new("/none"), "cilium_ipcache_v2");
    assert_eq!(store.load().identities.settings(), &expected);
    assert_eq!(store.load().identities.address(address), Err(Unavailable::Ipcache), "there is none");
    assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["a", "b"]);
    let reported = report.read();
    assert!(reported.ignored["b"].iter().any(|setting| setting.contains("other maps")), "{reported:?}");
    assert!(!reported.ignored.get("a").into_iter().flatten().any(|setting| setting.contains("other maps")));
    assert!(reported.inactive["c"].reason.contains("identities: nphds"), "{reported:?}");

    // An old agent names no map; what is in force outlives the last listener.
    let old = with("a", |metadata| {
        metadata.ipcache_name.clear();
        metadata.cache_entry_ttl = None;
    });
    assert_eq!(handler.apply(update(vec![old], &["b", "c"])).await, Ok(()));
    let expected = IdentitySettings::of_bpf_root(Path::new("/sys/fs/bpf"), "cilium_ipcache");
    assert_eq!(store.load().identities.settings(), &expected);
    assert_eq!(handler.apply(update(vec![], &["a"])).await, Ok(()));
    assert_eq!(store.load().identities.settings(), &expected);
}
