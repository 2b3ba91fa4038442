use std::path::Path;

use super::*;
use crate::config::{ListenAddress, UpstreamDefaults, parse};

const SPLIT: &str = include_str!("testdata/split.json");
const ADS: &str = include_str!("testdata/ads.yaml");
const SOCKETS: &str = "unix:/var/run/cilium/envoy/sockets";

fn config(text: &str) -> Config {
    parse(text, Path::new("bootstrap-config.json")).unwrap_or_else(|errors| panic!("{errors}"))
}

fn socket(name: &str) -> ListenAddress {
    format!("{SOCKETS}/{name}").parse().unwrap()
}

#[test]
fn one_stream_per_type() {
    let config = config(SPLIT);
    assert_eq!(config.node, Node::default());
    assert_eq!(config.policy_source, PolicySource::Xds { address: socket("xds.sock"), mode: XdsMode::Auto });
    assert!(config.dynamic_listeners && config.listeners.is_empty());
    assert_eq!(config.admin, [socket("admin.sock"), "127.0.0.1:9901".parse().unwrap()]);
    assert_eq!(config.metrics, ["0.0.0.0:9964".parse().unwrap()]);
    assert_eq!(config.health, ["127.0.0.1:9878".parse().unwrap(), "[::1]:9878".parse().unwrap()]);
    assert_eq!(config.max_connections, 40_000);
    let idle_timeout = Some(Duration::from_secs(60));
    assert_eq!(config.upstream, UpstreamDefaults { connect_timeout: Duration::from_secs(2), idle_timeout });
    let Bootstrap { mode, ignored } = config.bootstrap.unwrap();
    assert_eq!(mode, XdsMode::Split);
    assert_eq!(
        ignored,
        [
            "staticResources.clusters[ingress-cluster].circuitBreakers",
            "staticResources.clusters[egress-cluster].circuitBreakers",
            "staticResources.clusters[ingress-cluster-tls].circuitBreakers",
            "staticResources.clusters[ingress-cluster-tls].transportSocket",
            "staticResources.clusters[egress-cluster-tls].circuitBreakers",
            "staticResources.clusters[egress-cluster-tls].transportSocket",
            "applicationLogConfig",
            "bootstrapExtensions",
        ]
    );
}

#[test]
fn one_stream_for_all_types() {
    let config = config(ADS);
    assert_eq!(config.policy_source, PolicySource::Xds { address: socket("xds.sock"), mode: XdsMode::Auto });
    assert_eq!(config.upstream.connect_timeout, Duration::from_millis(1500));
    assert_eq!((config.admin, config.max_connections), (vec![socket("admin.sock")], config::MAX_CONNECTIONS));
    assert!(config.metrics.is_empty() && config.health.is_empty());
    let Bootstrap { mode, ignored } = config.bootstrap.unwrap();
    assert_eq!(mode, XdsMode::Ads);
    assert_eq!(ignored, ["staticResources.clusters[/cilium-locality-cluster]"]);
}

#[test]
fn both_spellings_and_delta() {
    let delta = SPLIT.replace("\"GRPC\"", "\"DELTA_GRPC\"").replace("dynamicResources", "dynamic_resources");
    assert_eq!(config(&delta).bootstrap.unwrap().mode, XdsMode::DeltaSplit);
}

#[test]
fn mistakes_are_named_with_place_and_remedy() {
    const REMEDY: &str = "name the agent's socket as Cilium's chart does, or write a tollgate.yaml";
    let (mut got, mut wanted) = (Vec::new(), Vec::new());
    for (original, from, to, expected) in [
        (
            ADS,
            "id: \"host~127.0.0.1~no-id~localdomain\"",
            "id: envoy",
            "2:13: node.id: \"envoy\" has 1 parts joined by ~ and needs 4, the second an IP address, such as \
             host~127.0.0.1~no-id~localdomain"
                .to_owned(),
        ),
        (
            ADS,
            "cluster_name: xds-grpc-cilium }\n",
            "cluster_name: xds }\n",
            format!(
                "8:37: dynamicResources.adsConfig.grpcServices[0].envoyGrpc.clusterName: no cluster xds in \
                 staticResources; {REMEDY}"
            ),
        ),
        (
            ADS,
            "  lds_config: { initial_fetch_timeout: 0.001s, resource_api_version: V3, ads: {} }\n",
            "",
            format!("4:3: dynamicResources: no ldsConfig with apiConfigSource or ads; {REMEDY}"),
        ),
        (
            ADS,
            "api_type: GRPC",
            "api_type: REST",
            "5:15: dynamicResources.adsConfig.apiType: REST is not implemented; write GRPC or DELTA_GRPC".to_owned(),
        ),
        (
            ADS,
            "connect_timeout: 1.5s",
            "connect_timeout: 1500",
            "14:68: staticResources.clusters[egress-cluster].connectTimeout: not a duration; write seconds such as \"2s\" \
             or \"2.500s\""
                .to_owned(),
        ),
        (
            ADS,
            "connect_timeout: 1.5s",
            "connect_timeout: 1500000000s",
            "14:68: staticResources.clusters[egress-cluster].connectTimeout: \"1500000000s\" is longer than a year; write \
             what was meant, in seconds"
                .to_owned(),
        ),
        (
            SPLIT,
            "\"idleTimeout\": \"60s\"",
            "\"idleTimeout\": \"31536000.001s\"",
            "93:30: staticResources.clusters[ingress-cluster].typedExtensionProtocolOptions.\
             envoy.extensions.upstreams.http.v3.HttpProtocolOptions.commonHttpProtocolOptions.idleTimeout: \
             \"31536000.001s\" is longer than a year; write what was meant, in seconds"
                .to_owned(),
        ),
        (
            ADS,
            "V3, ads: {} }\nstatic",
            "V2, ads: {} }\nstatic",
            "11:70: dynamicResources.cdsConfig.resourceApiVersion: only V3 is there".to_owned(),
        ),
        (
            ADS,
            "admin: { address: { pipe: { path: /var/run/cilium/envoy/sockets/admin.sock } } }",
            "admin: { address: { socketAddress: { address: localhost, portValue: 0 } } }",
            "24:47: admin.address.socketAddress.address: \"localhost\" is not an IP address; names are not resolved"
                .to_owned(),
        ),
        (
            SPLIT,
            "\"40000\"",
            "0",
            "66:45: overloadManager.resourceMonitors[envoy.resource_monitors.global_downstream_max_connections].\
             typedConfig.maxActiveDownstreamConnections: not a number of connections from 1"
                .to_owned(),
        ),
    ] {
        assert!(original.contains(from), "{from}");
        got.push(parse(&original.replacen(from, to, 1), Path::new("b")).unwrap_err().to_string());
        wanted.push(format!("b:{expected}"));
    }
    assert_eq!(got, wanted);
    let empty = parse("staticResources: {}", Path::new("b")).unwrap_err().to_string();
    assert_eq!(empty, format!("b:1:1: dynamicResources: is missing: {REMEDY}"));
}
