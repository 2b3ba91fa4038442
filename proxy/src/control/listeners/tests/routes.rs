//! Routes, durations, upgrades, chains and options of protocols: each is obeyed as Envoy would, or named as the reason why not.

use super::*;

fn with_routes(routes: Vec<Route>) -> HttpConnectionManager {
    let mut manager = manager();
    match &mut manager.route_specifier {
        Some(http_connection_manager::RouteSpecifier::RouteConfig(config)) => config.virtual_hosts[0].routes = routes,
        other => panic!("{other:?}"),
    }
    manager
}

fn route_with(grpc: bool, change: impl FnOnce(&mut RouteAction)) -> Route {
    let mut route = agents_route(grpc);
    match &mut route.action {
        Some(route::Action::Route(action)) => change(action),
        other => panic!("{other:?}"),
    }
    route
}

fn read(routes: Vec<Route>) -> Result<(HttpSettings, Vec<String>), String> {
    let converted = convert(&with_manager(&with_routes(routes)), &DEFAULTS);
    converted.map(|active| (active.listener.http, active.ignored)).map_err(|inactive| inactive.to_string())
}

fn within(grpc: bool, timeout: i64) -> Route {
    route_with(grpc, |action| action.timeout = seconds(timeout))
}

#[test]
fn a_request_has_the_limits_of_the_first_route_that_it_matches() {
    let limits = |routes| {
        let (http, ignored) = read(routes).unwrap();
        let unreached = ignored.iter().filter_map(|setting| {
            let (field, reason) = setting.split_once(' ')?;
            (reason == "(no request reaches it)").then(|| field.rsplit('.').next().unwrap().to_owned())
        });
        let timeout = |grpc| http.limits_of(grpc).timeout.unwrap().as_secs();
        (timeout(false), timeout(true), unreached.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(limits(vec![within(false, 1), within(false, 2)]), (1, 1, "routes[1]".into()));
    assert_eq!(limits(vec![within(true, 1), within(false, 2)]), (2, 1, String::new()));
    assert_eq!(limits(vec![within(false, 2), within(true, 1)]), (2, 2, "routes[1]".into()));
    let four = vec![within(true, 1), within(true, 2), within(false, 3), within(false, 4)];
    assert_eq!(limits(four), (3, 1, "routes[1] routes[3]".into()));
    assert_eq!(read(vec![agents_route(true), agents_route(false)]).unwrap().0.grpc_limits, None, "they are the same");
    assert!(read(vec![within(true, 1)]).unwrap_err().ends_with("routes: none is for every request"));
}

#[test]
fn the_idle_time_of_a_route_goes_before_the_managers_also_where_it_is_none() {
    let idle = |wire| {
        let route = route_with(false, |action| action.idle_timeout = wire);
        read(vec![agents_route(true), route]).unwrap().0
    };
    let of = |http: HttpSettings, grpc| http.limits_of(grpc).stream_idle_timeout.map(|idle| idle.as_secs());
    for (wire, expected) in [(None, Some(300)), (seconds(0), None), (seconds(7), Some(7))] {
        assert_eq!((of(idle(wire), false), of(idle(wire), true)), (expected, Some(300)), "{wire:?}");
    }
}

#[test]
fn what_is_inside_max_stream_duration_is_not_dropped() {
    type Change = fn(&mut route_action::MaxStreamDuration, Option<WireDuration>);
    let changes: [(&str, Change); 2] = [
        ("max_stream_duration", |duration, wire| duration.max_stream_duration = wire),
        ("grpc_timeout_header_offset", |duration, wire| duration.grpc_timeout_header_offset = wire),
    ];
    for (name, change) in changes {
        let read = |wire| {
            let route = route_with(false, |action| change(action.max_stream_duration.as_mut().unwrap(), wire));
            read(vec![route])
        };
        let reason = read(seconds(5)).unwrap_err();
        let expected = format!("routes[0].route.max_stream_duration.{name}: is not implemented");
        assert!(reason.ends_with(&expected), "{reason}");
        assert!(read(seconds(0)).is_ok(), "{name}: none is asked for");
    }
}

#[test]
fn a_negative_duration_is_no_endless_one() {
    let negative = || seconds(-1);
    type Change = fn(&mut RouteAction, Option<WireDuration>);
    let changes: [(&str, Change); 4] = [
        ("timeout", |action, wire| action.timeout = wire),
        ("idle_timeout", |action, wire| action.idle_timeout = wire),
        ("max_stream_duration.grpc_timeout_header_max", |action, wire| {
            action.max_stream_duration.as_mut().unwrap().grpc_timeout_header_max = wire;
        }),
        ("retry_policy.per_try_timeout", |action, wire| action.retry_policy.as_mut().unwrap().per_try_timeout = wire),
    ];
    for (name, change) in changes {
        let reason = read(vec![route_with(false, |action| change(action, negative()))]).unwrap_err();
        assert!(reason.ends_with(&format!("routes[0].route.{name}: is negative")), "{reason}");
    }
    let manager = HttpConnectionManager { stream_idle_timeout: negative(), ..manager() };
    let reason = convert(&with_manager(&manager), &DEFAULTS).unwrap_err().to_string();
    assert!(reason.ends_with(".stream_idle_timeout: is negative"), "{reason}");
    let nanos = Some(WireDuration { seconds: 0, nanos: -1 });
    let reason = convert(&tls_listener_with(nanos), &DEFAULTS).unwrap_err().to_string();
    assert_eq!(reason, "filter_chains[0].filters[1].idle_timeout: is negative");
    let mut listener = http_listener();
    let metadata = cilium::BpfMetadata { cache_entry_ttl: negative(), ..metadata(false) };
    listener.listener_filters[1] = listener_filter("cilium.bpf_metadata", &metadata);
    let reason = convert(&listener, &DEFAULTS).unwrap_err().to_string();
    assert_eq!(reason, "cilium.bpf_metadata.cache_entry_ttl: is negative");
}

#[test]
fn only_websocket_can_be_upgraded_to() {
    let read = |upgrades: &[(&str, Option<bool>)]| {
        let upgrade = |(kind, enabled): &(&str, Option<bool>)| http_connection_manager::UpgradeConfig {
            upgrade_type: (*kind).into(),
            enabled: enabled.map(|value| BoolValue { value }),
            ..http_connection_manager::UpgradeConfig::default()
        };
        let manager = HttpConnectionManager { upgrade_configs: upgrades.iter().map(upgrade).collect(), ..manager() };
        let converted = convert(&with_manager(&manager), &DEFAULTS);
        converted.map(|active| active.listener.http.websocket).map_err(|inactive| inactive.to_string())
    };
    assert_eq!(read(&[]), Ok(false));
    assert_eq!(read(&[("WebSocket", None)]), Ok(true));
    assert_eq!(read(&[("websocket", Some(false)), ("CONNECT", Some(false))]), Ok(false));
    const MANAGER: &str = "filter_chains[0].filters[1]";
    for kind in ["CONNECT", "connect-udp", ""] {
        let reason = format!("{MANAGER}.upgrade_configs[1].upgrade_type: {kind} is not implemented; only websocket is");
        assert_eq!(read(&[("websocket", None), (kind, None)]), Err(reason));
    }
    let reason = format!("{MANAGER}.upgrade_configs[1]: is a second one for websocket");
    assert_eq!(read(&[("websocket", None), ("WEBSOCKET", Some(false))]), Err(reason));
}

/// Envoy closes a connection that no chain matches. The inspector is what tells TLS from cleartext.
#[test]
fn a_listener_that_would_refuse_tls_is_not_served() {
    let inspector = || listener_filter("envoy.filters.listener.tls_inspector", &cilium::L7Policy::default());
    let mut listener = tls_listener();
    listener.listener_filters.insert(0, inspector());
    assert!(convert(&listener, &DEFAULTS).is_ok(), "there is a chain for each");
    listener.filter_chains.truncate(1);
    let reason = convert(&listener, &DEFAULTS).unwrap_err().to_string();
    assert!(
        reason.starts_with("filter_chains[0].filter_chain_match.transport_protocol: is raw_buffer and"),
        "{reason}"
    );
    let mut every = listener.clone();
    every.filter_chains[0].filter_chain_match = None;
    assert!(convert(&every, &DEFAULTS).is_ok(), "it takes TLS, too");
    listener.listener_filters.remove(0);
    assert!(convert(&listener, &DEFAULTS).is_ok(), "all is cleartext where nobody looks");
    listener.listener_filters.insert(0, inspector());
    listener.listener_filters[0].filter_disabled = Some(ListenerFilterChainMatchPredicate::default());
    let reason = convert(&listener, &DEFAULTS).unwrap_err().to_string();
    assert_eq!(reason, "listener_filters[0].filter_disabled: is not implemented");
}

#[test]
fn options_of_protocols_count_or_are_in_the_way() {
    let read = |common: core::HttpProtocolOptions, http1: core::Http1ProtocolOptions| {
        let manager = HttpConnectionManager {
            common_http_protocol_options: Some(common),
            http_protocol_options: Some(http1),
            ..manager()
        };
        convert(&with_manager(&manager), &DEFAULTS).map_err(|inactive| inactive.to_string())
    };
    let (common, http1) = (core::HttpProtocolOptions::default, core::Http1ProtocolOptions::default);
    for (action, expected) in [(0, Underscores::Keep), (1, Underscores::Reject), (2, Underscores::Drop)] {
        let options = core::HttpProtocolOptions {
            headers_with_underscores_action: action,
            max_requests_per_connection: Some(UInt32Value { value: 7 }),
            max_stream_duration: seconds(0),
            idle_timeout: seconds(1),
            ..common()
        };
        let accepting = core::Http1ProtocolOptions { accept_http_10: true, enable_trailers: true, ..http1() };
        let Active { listener, ignored } = read(options, accepting).unwrap();
        assert_eq!(listener.normalize.field_underscores, expected);
        assert_eq!(listener.http.max_requests_per_connection, 7);
        const MANAGER: &str = "filter_chains[0].filters[1]";
        for (setting, named) in [
            ("common_http_protocol_options.idle_timeout", true),
            ("http_protocol_options.enable_trailers", true),
            ("http_protocol_options.accept_http_10", false),
            ("common_http_protocol_options.max_requests_per_connection", false),
        ] {
            assert_eq!(ignored.contains(&format!("{MANAGER}.{setting}")), named, "{setting}: {ignored:?}");
        }
    }
    assert_eq!(convert(&http_listener(), &DEFAULTS).unwrap().listener.normalize.field_underscores, Underscores::Keep);
    let host = core::Http1ProtocolOptions { default_host_for_http_10: "a".into(), ..http1() };
    for (options, http1, reason) in [
        (
            core::HttpProtocolOptions { headers_with_underscores_action: 3, ..common() },
            http1(),
            "common_http_protocol_options.headers_with_underscores_action: 3 is unknown",
        ),
        (
            core::HttpProtocolOptions { max_stream_duration: seconds(1), ..common() },
            http1(),
            "common_http_protocol_options.max_stream_duration: is not implemented",
        ),
        (common(), host, "http_protocol_options.default_host_for_http_10: is not implemented"),
    ] {
        let got = read(options, http1).unwrap_err();
        assert!(got.ends_with(reason), "{got}");
    }
}
