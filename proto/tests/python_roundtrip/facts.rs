//! Names, numbers and types of package `cilium` as the specification of the wire states them. Kept
//! apart from the `.proto` files, so that a slip there does not change both.

use std::collections::BTreeMap;

use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind};

/// Name, number and type of a field.
pub(crate) type Field = (&'static str, u32, &'static str);

/// Message, and its fields in the order of their numbers.
pub(crate) const MESSAGES: &[(&str, &[Field])] = &[
    ("KeyValue", &[("key", 1, "string"), ("value", 2, "string")]),
    (
        "HttpLogEntry",
        &[
            ("http_protocol", 1, "HttpProtocol"),
            ("scheme", 2, "string"),
            ("host", 3, "string"),
            ("path", 4, "string"),
            ("method", 5, "string"),
            ("headers", 6, "repeated KeyValue"),
            ("status", 7, "uint32"),
            ("missing_headers", 8, "repeated KeyValue"),
            ("rejected_headers", 9, "repeated KeyValue"),
        ],
    ),
    (
        "KafkaLogEntry",
        &[
            ("correlation_id", 1, "int32"),
            ("error_code", 2, "int32"),
            ("api_version", 3, "int32"),
            ("api_key", 4, "int32"),
            ("topics", 5, "repeated string"),
        ],
    ),
    ("L7LogEntry", &[("proto", 1, "string"), ("fields", 2, "map<string, string>")]),
    (
        "LogEntry",
        &[
            ("timestamp", 1, "uint64"),
            ("entry_type", 3, "EntryType"),
            ("policy_name", 4, "string"),
            ("cilium_rule_ref", 5, "string"),
            ("source_security_id", 6, "uint32"),
            ("source_address", 7, "string"),
            ("destination_address", 8, "string"),
            ("is_ingress", 15, "bool"),
            ("destination_security_id", 16, "uint32"),
            ("proxy_id", 17, "uint32"),
            ("http", 100, "oneof l7: HttpLogEntry"),
            ("kafka", 101, "oneof l7: KafkaLogEntry"),
            ("generic_l7", 102, "oneof l7: L7LogEntry"),
        ],
    ),
    (
        "BpfMetadata",
        &[
            ("bpf_root", 1, "string"),
            ("is_ingress", 2, "bool"),
            ("use_original_source_address", 3, "bool"),
            ("is_l7lb", 4, "bool"),
            ("ipv4_source_address", 5, "string"),
            ("ipv6_source_address", 6, "string"),
            ("enforce_policy_on_l7lb", 7, "bool"),
            ("proxy_id", 8, "uint32"),
            ("policy_update_warning_limit", 9, "google.protobuf.Duration"),
            ("l7lb_policy_name", 10, "string"),
            ("original_source_so_linger_time", 11, "optional uint32"),
            ("ipcache_name", 12, "string"),
            ("use_nphds", 13, "bool"),
            ("cache_entry_ttl", 14, "google.protobuf.Duration"),
            ("cache_gc_interval", 15, "google.protobuf.Duration"),
            ("cilium_config_source", 16, "envoy.config.core.v3.ConfigSource"),
        ],
    ),
    ("HealthCheckEventPipeSink", &[("path", 1, "string")]),
    ("L7Policy", &[("access_log_path", 1, "string"), ("denied_403_body", 3, "string")]),
    (
        "NetworkFilter",
        &[("proxylib", 1, "string"), ("proxylib_params", 2, "map<string, string>"), ("access_log_path", 5, "string")],
    ),
    (
        "NetworkPolicy",
        &[
            ("endpoint_ips", 1, "repeated string"),
            ("endpoint_id", 2, "uint64"),
            ("ingress_per_port_policies", 3, "repeated PortNetworkPolicy"),
            ("egress_per_port_policies", 4, "repeated PortNetworkPolicy"),
            // Reserved today; older agents send it.
            ("conntrack_map_name", 5, "string"),
        ],
    ),
    (
        "PortNetworkPolicy",
        &[
            ("port", 1, "uint32"),
            ("protocol", 2, "envoy.config.core.v3.SocketAddress.Protocol"),
            ("rules", 3, "repeated PortNetworkPolicyRule"),
            ("end_port", 4, "uint32"),
        ],
    ),
    (
        "TLSContext",
        &[
            ("trusted_ca", 1, "string"),
            ("certificate_chain", 2, "string"),
            ("private_key", 3, "string"),
            ("server_names", 4, "repeated string"),
            ("validation_context_sds_secret", 5, "string"),
            ("tls_sds_secret", 6, "string"),
            ("alpn_protocols", 7, "repeated string"),
        ],
    ),
    (
        "PortNetworkPolicyRule",
        &[
            ("pass_precedence", 1, "oneof verdict: uint32"),
            ("l7_proto", 2, "string"),
            ("downstream_tls_context", 3, "TLSContext"),
            ("upstream_tls_context", 4, "TLSContext"),
            ("name", 5, "string"),
            ("server_names", 6, "repeated string"),
            ("remote_policies", 7, "repeated uint32"),
            ("deny", 8, "oneof verdict: bool"),
            ("proxy_id", 9, "uint32"),
            ("precedence", 10, "uint32"),
            ("http_rules", 100, "oneof l7: HttpNetworkPolicyRules"),
            ("kafka_rules", 101, "oneof l7: KafkaNetworkPolicyRules"),
            ("l7_rules", 102, "oneof l7: L7NetworkPolicyRules"),
        ],
    ),
    ("HttpNetworkPolicyRules", &[("http_rules", 1, "repeated HttpNetworkPolicyRule")]),
    (
        "HeaderMatch",
        &[
            ("name", 1, "string"),
            ("value", 2, "string"),
            ("match_action", 3, "HeaderMatch.MatchAction"),
            ("mismatch_action", 4, "HeaderMatch.MismatchAction"),
            ("value_sds_secret", 5, "string"),
        ],
    ),
    (
        "HttpNetworkPolicyRule",
        &[
            ("headers", 1, "repeated envoy.config.route.v3.HeaderMatcher"),
            ("header_matches", 2, "repeated HeaderMatch"),
        ],
    ),
    ("KafkaNetworkPolicyRules", &[("kafka_rules", 1, "repeated KafkaNetworkPolicyRule")]),
    (
        "KafkaNetworkPolicyRule",
        &[
            ("api_version", 1, "int32"),
            ("api_keys", 2, "repeated int32"),
            ("client_id", 3, "string"),
            ("topic", 4, "string"),
        ],
    ),
    (
        "L7NetworkPolicyRules",
        &[("l7_allow_rules", 1, "repeated L7NetworkPolicyRule"), ("l7_deny_rules", 2, "repeated L7NetworkPolicyRule")],
    ),
    (
        "L7NetworkPolicyRule",
        &[
            ("rule", 1, "map<string, string>"),
            ("metadata_rule", 2, "repeated envoy.type.matcher.v3.MetadataMatcher"),
            ("name", 3, "string"),
        ],
    ),
    ("NetworkPoliciesConfigDump", &[("networkpolicies", 1, "repeated NetworkPolicy")]),
    ("NetworkPolicyHosts", &[("policy", 1, "uint64"), ("host_addresses", 2, "repeated string")]),
    ("UpstreamTlsWrapperContext", &[]),
    ("DownstreamTlsWrapperContext", &[]),
    ("WebSocketClient", WEB_SOCKET),
    ("WebSocketServer", WEB_SOCKET),
];

const WEB_SOCKET: &[Field] = &[
    ("access_log_path", 1, "string"),
    ("host", 2, "string"),
    ("path", 3, "string"),
    ("key", 4, "string"),
    ("version", 5, "string"),
    ("origin", 6, "string"),
    ("handshake_timeout", 7, "google.protobuf.Duration"),
    ("ping_interval", 8, "google.protobuf.Duration"),
    ("ping_when_idle", 9, "bool"),
];

/// Service and method, what goes in and what comes out.
const METHODS: &[(&str, &str, &str)] = &[
    (
        "NetworkPolicyDiscoveryService/DeltaNetworkPolicies",
        "stream DeltaDiscoveryRequest",
        "stream DeltaDiscoveryResponse",
    ),
    ("NetworkPolicyDiscoveryService/FetchNetworkPolicies", "DiscoveryRequest", "DiscoveryResponse"),
    ("NetworkPolicyDiscoveryService/StreamNetworkPolicies", "stream DiscoveryRequest", "stream DiscoveryResponse"),
    (
        "NetworkPolicyHostsDiscoveryService/DeltaNetworkPolicyHosts",
        "stream DeltaDiscoveryRequest",
        "stream DeltaDiscoveryResponse",
    ),
    ("NetworkPolicyHostsDiscoveryService/FetchNetworkPolicyHosts", "DiscoveryRequest", "DiscoveryResponse"),
    (
        "NetworkPolicyHostsDiscoveryService/StreamNetworkPolicyHosts",
        "stream DiscoveryRequest",
        "stream DiscoveryResponse",
    ),
];

fn pool() -> DescriptorPool {
    DescriptorPool::decode(tollgate_proto::FILE_DESCRIPTOR_SET).expect("descriptors")
}

fn kind_name(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(values) => values.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

/// The type of a field in the words of the table.
fn type_name(field: &FieldDescriptor) -> String {
    let kind = field.kind();
    if let (true, Some(entry)) = (field.is_map(), kind.as_message()) {
        let (key, value) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
        return format!("map<{}, {}>", kind_name(&key), kind_name(&value));
    }
    let name = kind_name(&kind);
    let name = name.strip_prefix("cilium.").unwrap_or(&name);
    match (field.cardinality(), field.containing_oneof()) {
        (Cardinality::Repeated, _) => format!("repeated {name}"),
        (_, Some(oneof)) if oneof.is_synthetic() => format!("optional {name}"),
        (_, Some(oneof)) => format!("oneof {}: {name}", oneof.name()),
        (_, None) => name.to_owned(),
    }
}

/// Name and type of the fields of each message, by number.
type Table = BTreeMap<String, BTreeMap<u32, (String, String)>>;

#[test]
fn messages_are_those_of_the_specification() {
    let compiled: Table = pool()
        .all_messages()
        .filter(|message| message.package_name() == "cilium" && !message.is_map_entry())
        .map(|message| {
            let field = |field: FieldDescriptor| (field.number(), (field.name().to_owned(), type_name(&field)));
            (message.name().to_owned(), message.fields().map(field).collect())
        })
        .collect();
    let specified: Table = MESSAGES
        .iter()
        .map(|(message, fields)| {
            let field = |(name, number, kind): &Field| (*number, ((*name).to_owned(), (*kind).to_owned()));
            ((*message).to_owned(), fields.iter().map(field).collect())
        })
        .collect();
    assert_eq!(compiled, specified);
}

#[test]
fn services_are_those_of_the_specification() {
    let streamed = |streaming: bool, name: &str| format!("{}{name}", if streaming { "stream " } else { "" });
    let mut compiled: Vec<(String, String, String)> = pool()
        .services()
        .filter(|service| !service.package_name().starts_with("tollgate."))
        .flat_map(|service| {
            assert_eq!(service.package_name(), "cilium");
            service.methods().collect::<Vec<_>>()
        })
        .map(|method| {
            let name = format!("{}/{}", method.parent_service().name(), method.name());
            let input = streamed(method.is_client_streaming(), method.input().name());
            (name, input, streamed(method.is_server_streaming(), method.output().name()))
        })
        .collect();
    compiled.sort();
    let specified: Vec<(String, String, String)> =
        METHODS.iter().map(|(name, input, output)| ((*name).into(), (*input).into(), (*output).into())).collect();
    assert_eq!(compiled, specified);
}

#[test]
fn enum_numbers_are_those_of_the_specification() {
    use tollgate_proto::cilium::header_match::{MatchAction, MismatchAction};
    use tollgate_proto::cilium::{EntryType, HttpProtocol};

    let found = [
        (MatchAction::ContinueOnMatch.as_str_name(), MatchAction::ContinueOnMatch as i32),
        (MatchAction::FailOnMatch.as_str_name(), MatchAction::FailOnMatch as i32),
        (MatchAction::DeleteOnMatch.as_str_name(), MatchAction::DeleteOnMatch as i32),
        (MismatchAction::FailOnMismatch.as_str_name(), MismatchAction::FailOnMismatch as i32),
        (MismatchAction::ContinueOnMismatch.as_str_name(), MismatchAction::ContinueOnMismatch as i32),
        (MismatchAction::AddOnMismatch.as_str_name(), MismatchAction::AddOnMismatch as i32),
        (MismatchAction::DeleteOnMismatch.as_str_name(), MismatchAction::DeleteOnMismatch as i32),
        (MismatchAction::ReplaceOnMismatch.as_str_name(), MismatchAction::ReplaceOnMismatch as i32),
        (EntryType::Request.as_str_name(), EntryType::Request as i32),
        (EntryType::Response.as_str_name(), EntryType::Response as i32),
        (EntryType::Denied.as_str_name(), EntryType::Denied as i32),
        (HttpProtocol::Http10.as_str_name(), HttpProtocol::Http10 as i32),
        (HttpProtocol::Http11.as_str_name(), HttpProtocol::Http11 as i32),
        (HttpProtocol::Http2.as_str_name(), HttpProtocol::Http2 as i32),
    ];
    let specified = [
        ("CONTINUE_ON_MATCH", 0),
        ("FAIL_ON_MATCH", 1),
        ("DELETE_ON_MATCH", 2),
        ("FAIL_ON_MISMATCH", 0),
        ("CONTINUE_ON_MISMATCH", 1),
        ("ADD_ON_MISMATCH", 2),
        ("DELETE_ON_MISMATCH", 3),
        ("REPLACE_ON_MISMATCH", 4),
        ("Request", 0),
        ("Response", 1),
        ("Denied", 2),
        ("HTTP10", 0),
        ("HTTP11", 1),
        ("HTTP2", 2),
    ];
    assert_eq!(found, specified);
}
