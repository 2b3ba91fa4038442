//! Policy listeners, written as an agent writes them.

use prost::{Message, Name};
use tollgate_proto::cilium;
use tollgate_proto::envoy::config::core::v3::{Address, SocketAddress, address, socket_address};
use tollgate_proto::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use tollgate_proto::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use tollgate_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};
use tollgate_proto::google::protobuf::{Any, BoolValue, Duration, UInt32Value};

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn address(ip: &str, port: u16) -> Option<Address> {
    let port_specifier = Some(socket_address::PortSpecifier::PortValue(port.into()));
    let socket = SocketAddress { address: ip.into(), port_specifier, ..SocketAddress::default() };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

fn routes(cluster: &str) -> RouteConfiguration {
    let route = |grpc: bool| {
        let action = RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.into())),
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
    };
    let host = VirtualHost {
        name: "default_route".into(),
        domains: vec!["*".into()],
        routes: vec![route(true), route(false)],
        ..VirtualHost::default()
    };
    RouteConfiguration { virtual_hosts: vec![host], ..RouteConfiguration::default() }
}

fn manager(cluster: &str, denied_body: &str) -> HttpConnectionManager {
    let filter = |name: &str, config| HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    };
    let l7 = cilium::L7Policy { denied_403_body: denied_body.into(), ..cilium::L7Policy::default() };
    let router =
        Any { type_url: "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router".into(), value: vec![] };
    HttpConnectionManager {
        stat_prefix: "proxy".into(),
        http_filters: vec![filter("cilium.l7policy", any(&l7)), filter("envoy.filters.http.router", router)],
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
        route_specifier: Some(http_connection_manager::RouteSpecifier::RouteConfig(routes(cluster))),
        ..HttpConnectionManager::default()
    }
}

/// The listener that an agent sends for HTTP rules on ingress, on both loopback addresses.
pub fn http_ingress(name: &str, port: u16, denied_body: &str) -> Listener {
    let metadata = cilium::BpfMetadata { is_ingress: true, ..cilium::BpfMetadata::default() };
    http(name, port, denied_body, metadata)
}

/// The same for egress, whose upstream connections keep the client's address. Those from its port linger for so many seconds.
pub fn http_egress(name: &str, port: u16, linger: Option<u32>) -> Listener {
    let metadata = cilium::BpfMetadata {
        use_original_source_address: true,
        original_source_so_linger_time: linger,
        ..cilium::BpfMetadata::default()
    };
    http(name, port, "", metadata)
}

fn http(name: &str, port: u16, denied_body: &str, metadata: cilium::BpfMetadata) -> Listener {
    let direction = if metadata.is_ingress { "ingress" } else { "egress" };
    let chain = |tls: bool| {
        let cluster = &format!("{direction}-cluster{}", if tls { "-tls" } else { "" });
        let filter = |name: &str, config| Filter {
            name: name.into(),
            config_type: Some(filter::ConfigType::TypedConfig(config)),
        };
        FilterChain {
            filter_chain_match: tls
                .then(|| FilterChainMatch { transport_protocol: "tls".into(), ..FilterChainMatch::default() }),
            filters: vec![
                filter("cilium.network", any(&cilium::NetworkFilter::default())),
                filter("envoy.filters.network.http_connection_manager", any(&manager(cluster, denied_body))),
            ],
            ..FilterChain::default()
        }
    };
    let metadata = cilium::BpfMetadata { proxy_id: port.into(), ..metadata };
    Listener {
        name: name.into(),
        address: address("127.0.0.1", port),
        additional_addresses: vec![AdditionalAddress { address: address("::1", port), ..AdditionalAddress::default() }],
        enable_reuse_port: Some(BoolValue { value: false }),
        listener_filters: vec![ListenerFilter {
            name: "cilium.bpf_metadata".into(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(any(&metadata))),
            ..ListenerFilter::default()
        }],
        filter_chains: vec![chain(false), chain(true)],
        ..Listener::default()
    }
}

/// The same listener, with its requests logged to the socket at `path`.
///
/// # Panics
/// When it is no listener of this module.
#[must_use]
pub fn logging_to(mut listener: Listener, path: &str) -> Listener {
    for filter in listener.filter_chains.iter_mut().filter_map(|chain| chain.filters.last_mut()) {
        let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else { panic!("{filter:?}") };
        let mut manager = HttpConnectionManager::decode(&config.value[..]).unwrap();
        let Some(http_filter::ConfigType::TypedConfig(l7)) = &mut manager.http_filters[0].config_type else {
            panic!("{manager:?}");
        };
        let policy = cilium::L7Policy::decode(&l7.value[..]).unwrap();
        *l7 = any(&cilium::L7Policy { access_log_path: path.into(), ..policy });
        *config = any(&manager);
    }
    listener
}

/// The same listener, with identities looked up in the maps below `root`.
///
/// # Panics
/// When it is no listener of this module.
#[must_use]
pub fn with_bpf_root(mut listener: Listener, root: &std::path::Path) -> Listener {
    let Some(listener_filter::ConfigType::TypedConfig(config)) = &mut listener.listener_filters[0].config_type else {
        panic!("{listener:?}");
    };
    let mut metadata = cilium::BpfMetadata::decode(&config.value[..]).unwrap();
    metadata.bpf_root = root.to_str().unwrap().into();
    metadata.ipcache_name = "cilium_ipcache_v2".into();
    *config = any(&metadata);
    listener
}
