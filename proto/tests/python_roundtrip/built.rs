//! Messages built from the Rust types, with what another implementation has to read out of them.
//!
//! Every struct is written out in full, so that a new field does not compile until it is given a
//! value here; the test that uses these fails while any field is never set.

use std::collections::BTreeMap;

use prost::{Message, Name};
use serde_json::{Value, json};
use tollgate_proto::cilium::header_match::{MatchAction, MismatchAction};
use tollgate_proto::cilium::port_network_policy_rule::{L7, Verdict};
use tollgate_proto::cilium::{self, log_entry};
use tollgate_proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use tollgate_proto::envoy::config::core::v3::{AggregatedConfigSource, ConfigSource, socket_address};
use tollgate_proto::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use tollgate_proto::envoy::r#type::matcher::v3 as matcher;
use tollgate_proto::google::protobuf::Duration;

/// One message and what it means.
pub(crate) struct Built {
    /// Full name.
    pub(crate) message: String,
    /// The wire form.
    pub(crate) bytes: Vec<u8>,
    /// What another implementation prints, with the names of the `.proto` files.
    pub(crate) expected: Value,
}

fn built<M: Message + Name>(message: &M, expected: Value) -> Built {
    Built { message: M::full_name(), bytes: message.encode_to_vec(), expected }
}

/// Every message of the package, each field set in at least one.
pub(crate) fn messages() -> Vec<Built> {
    let mut all = rules();
    all.extend(conditions());
    all.extend(policies());
    all.extend(log_entries());
    all.extend(filters());
    all.extend(web_sockets());
    all
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn map(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn tls() -> (cilium::TlsContext, Value) {
    let context = cilium::TlsContext {
        trusted_ca: "ca".into(),
        certificate_chain: "chain".into(),
        private_key: "key".into(),
        server_names: strings(&["a.example", "b.example"]),
        validation_context_sds_secret: "ca-secret".into(),
        tls_sds_secret: "tls-secret".into(),
        alpn_protocols: strings(&["h2", "http/1.1"]),
    };
    let expected = json!({
        "trusted_ca": "ca", "certificate_chain": "chain", "private_key": "key",
        "server_names": ["a.example", "b.example"], "validation_context_sds_secret": "ca-secret",
        "tls_sds_secret": "tls-secret", "alpn_protocols": ["h2", "http/1.1"],
    });
    (context, expected)
}

fn rule(verdict: Verdict, l7: L7) -> cilium::PortNetworkPolicyRule {
    cilium::PortNetworkPolicyRule {
        precedence: u32::MAX,
        verdict: Some(verdict),
        proxy_id: 15001,
        name: "rule".into(),
        remote_policies: vec![1, 32226, u32::MAX],
        downstream_tls_context: Some(tls().0),
        upstream_tls_context: Some(cilium::TlsContext::default()),
        server_names: strings(&["*.example"]),
        l7_proto: "proto".into(),
        l7: Some(l7),
    }
}

fn rule_expected(verdict: &str, value: Value, l7: &str, rules: Value) -> Value {
    let mut expected = json!({
        "precedence": u32::MAX, "proxy_id": 15001, "name": "rule", "remote_policies": [1, 32226, u32::MAX],
        "downstream_tls_context": tls().1, "upstream_tls_context": {}, "server_names": ["*.example"],
        "l7_proto": "proto",
    });
    expected[verdict] = value;
    expected[l7] = rules;
    expected
}

fn rules() -> Vec<Built> {
    let (context, expected) = tls();
    let (http, kafka, l7) = (http().0, kafka().0, l7().0);
    vec![
        built(&context, expected),
        built(
            &rule(Verdict::Deny(true), L7::HttpRules(cilium::HttpNetworkPolicyRules { http_rules: vec![http] })),
            rule_expected("deny", json!(true), "http_rules", json!({"http_rules": [self::http().1]})),
        ),
        // A choice with a zero value is still made.
        built(
            &rule(
                Verdict::PassPrecedence(0),
                L7::KafkaRules(cilium::KafkaNetworkPolicyRules { kafka_rules: vec![kafka] }),
            ),
            rule_expected("pass_precedence", json!(0), "kafka_rules", json!({"kafka_rules": [self::kafka().1]})),
        ),
        built(
            &rule(Verdict::PassPrecedence(7), L7::L7Rules(l7)),
            rule_expected("pass_precedence", json!(7), "l7_rules", self::l7().1),
        ),
    ]
}

fn header_match() -> (cilium::HeaderMatch, Value) {
    let edit = cilium::HeaderMatch {
        name: "x-token".into(),
        value: "v".into(),
        match_action: MatchAction::DeleteOnMatch.into(),
        mismatch_action: MismatchAction::ReplaceOnMismatch.into(),
        value_sds_secret: "secret".into(),
    };
    let expected = json!({
        "name": "x-token", "value": "v", "match_action": "DELETE_ON_MATCH",
        "mismatch_action": "REPLACE_ON_MISMATCH", "value_sds_secret": "secret",
    });
    (edit, expected)
}

fn http() -> (cilium::HttpNetworkPolicyRule, Value) {
    let regex = matcher::RegexMatcher { regex: "/hello".into(), engine_type: None };
    let string = matcher::StringMatcher {
        ignore_case: true,
        match_pattern: Some(matcher::string_matcher::MatchPattern::SafeRegex(regex)),
    };
    let rule = cilium::HttpNetworkPolicyRule {
        headers: vec![HeaderMatcher {
            name: ":path".into(),
            invert_match: true,
            treat_missing_header_as_empty: true,
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string)),
        }],
        header_matches: vec![header_match().0],
    };
    let expected = json!({
        "headers": [{
            "name": ":path", "invert_match": true, "treat_missing_header_as_empty": true,
            "string_match": {"safe_regex": {"regex": "/hello"}, "ignore_case": true},
        }],
        "header_matches": [header_match().1],
    });
    (rule, expected)
}

fn kafka() -> (cilium::KafkaNetworkPolicyRule, Value) {
    let rule = cilium::KafkaNetworkPolicyRule {
        api_version: -1,
        api_keys: vec![0, 3],
        client_id: "client".into(),
        topic: "topic".into(),
    };
    (rule, json!({"api_version": -1, "api_keys": [0, 3], "client_id": "client", "topic": "topic"}))
}

fn l7() -> (cilium::L7NetworkPolicyRules, Value) {
    let metadata = matcher::MetadataMatcher {
        filter: "envoy.filters.network.mysql_proxy".into(),
        path: vec![matcher::metadata_matcher::PathSegment {
            segment: Some(matcher::metadata_matcher::path_segment::Segment::Key("table".into())),
        }],
        value: Some(matcher::ValueMatcher {
            match_pattern: Some(matcher::value_matcher::MatchPattern::BoolMatch(true)),
        }),
        invert: true,
    };
    let allow =
        cilium::L7NetworkPolicyRule { name: "allow".into(), rule: map("cmd", "READ"), metadata_rule: vec![metadata] };
    let deny = cilium::L7NetworkPolicyRule { name: "deny".into(), rule: BTreeMap::new(), metadata_rule: Vec::new() };
    let rules = cilium::L7NetworkPolicyRules { l7_allow_rules: vec![allow], l7_deny_rules: vec![deny] };
    let expected = json!({
        "l7_allow_rules": [{"name": "allow", "rule": {"cmd": "READ"}, "metadata_rule": [{
            "filter": "envoy.filters.network.mysql_proxy", "path": [{"key": "table"}],
            "value": {"bool_match": true}, "invert": true,
        }]}],
        "l7_deny_rules": [{"name": "deny"}],
    });
    (rules, expected)
}

fn conditions() -> Vec<Built> {
    let (edit, edit_expected) = header_match();
    let ((http, http_expected), (kafka, kafka_expected), (l7, l7_expected)) = (http(), kafka(), l7());
    vec![
        built(&edit, edit_expected),
        built(&http, http_expected.clone()),
        built(&cilium::HttpNetworkPolicyRules { http_rules: vec![http] }, json!({"http_rules": [http_expected]})),
        built(&kafka, kafka_expected.clone()),
        built(&cilium::KafkaNetworkPolicyRules { kafka_rules: vec![kafka] }, json!({"kafka_rules": [kafka_expected]})),
        built(&l7.l7_allow_rules[0], l7_expected["l7_allow_rules"][0].clone()),
        built(&l7, l7_expected),
    ]
}

fn policies() -> Vec<Built> {
    let port = cilium::PortNetworkPolicy {
        port: 8000,
        end_port: 65535,
        protocol: socket_address::Protocol::Udp.into(),
        rules: vec![cilium::PortNetworkPolicyRule { verdict: Some(Verdict::Deny(false)), ..Default::default() }],
    };
    let port_expected = json!({"port": 8000, "end_port": 65535, "protocol": "UDP", "rules": [{"deny": false}]});
    let policy = cilium::NetworkPolicy {
        endpoint_ips: strings(&["f00d::1", "10.0.0.1"]),
        endpoint_id: u64::MAX,
        ingress_per_port_policies: vec![port.clone()],
        egress_per_port_policies: vec![cilium::PortNetworkPolicy::default()],
        conntrack_map_name: "global".into(),
    };
    let policy_expected = json!({
        "endpoint_ips": ["f00d::1", "10.0.0.1"], "endpoint_id": "18446744073709551615",
        "ingress_per_port_policies": [port_expected], "egress_per_port_policies": [{}],
        "conntrack_map_name": "global",
    });
    let hosts = cilium::NetworkPolicyHosts { policy: 32226, host_addresses: strings(&["10.244.1.17/32", "fd00::/64"]) };
    vec![
        built(&port, port_expected),
        built(&policy, policy_expected.clone()),
        built(
            &cilium::NetworkPoliciesConfigDump { networkpolicies: vec![policy] },
            json!({"networkpolicies": [policy_expected]}),
        ),
        built(&hosts, json!({"policy": "32226", "host_addresses": ["10.244.1.17/32", "fd00::/64"]})),
    ]
}

fn header(key: &str, value: &str) -> cilium::KeyValue {
    cilium::KeyValue { key: key.into(), value: value.into() }
}

fn log_entry(l7: log_entry::L7) -> cilium::LogEntry {
    cilium::LogEntry {
        timestamp: 1_700_000_000_000_000_001,
        is_ingress: true,
        entry_type: cilium::EntryType::Denied.into(),
        policy_name: "10.0.0.1".into(),
        proxy_id: 15001,
        cilium_rule_ref: "ref".into(),
        source_security_id: 2,
        destination_security_id: 3,
        source_address: "10.0.0.2:40000".into(),
        destination_address: "[f00d::1]:80".into(),
        l7: Some(l7),
    }
}

fn log_entry_expected(kind: &str, entry: Value) -> Value {
    let mut expected = json!({
        "timestamp": "1700000000000000001", "is_ingress": true, "entry_type": "Denied", "policy_name": "10.0.0.1",
        "proxy_id": 15001, "cilium_rule_ref": "ref", "source_security_id": 2, "destination_security_id": 3,
        "source_address": "10.0.0.2:40000", "destination_address": "[f00d::1]:80",
    });
    expected[kind] = entry;
    expected
}

fn log_entries() -> Vec<Built> {
    let http = cilium::HttpLogEntry {
        http_protocol: cilium::HttpProtocol::Http2.into(),
        scheme: "http".into(),
        host: "helloworld".into(),
        path: "/hello".into(),
        method: "GET".into(),
        headers: vec![header("a", "1"), header("a", "2")],
        status: 403,
        missing_headers: vec![header("b", "3")],
        rejected_headers: vec![header("c", "4")],
    };
    let http_expected = json!({
        "http_protocol": "HTTP2", "scheme": "http", "host": "helloworld", "path": "/hello", "method": "GET",
        "headers": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}], "status": 403,
        "missing_headers": [{"key": "b", "value": "3"}], "rejected_headers": [{"key": "c", "value": "4"}],
    });
    let kafka = cilium::KafkaLogEntry {
        correlation_id: 1,
        error_code: -2,
        api_version: 3,
        api_key: 4,
        topics: strings(&["t", "u"]),
    };
    let kafka_expected = json!({
        "correlation_id": 1, "error_code": -2, "api_version": 3, "api_key": 4, "topics": ["t", "u"],
    });
    let l7 = cilium::L7LogEntry { proto: "mysql".into(), fields: map("table", "[\"insert\"]") };
    let l7_expected = json!({"proto": "mysql", "fields": {"table": "[\"insert\"]"}});
    vec![
        built(&header("k", "v"), json!({"key": "k", "value": "v"})),
        built(&http, http_expected.clone()),
        built(&kafka, kafka_expected.clone()),
        built(&l7, l7_expected.clone()),
        built(&log_entry(log_entry::L7::Http(http)), log_entry_expected("http", http_expected)),
        built(&log_entry(log_entry::L7::Kafka(kafka)), log_entry_expected("kafka", kafka_expected)),
        built(&log_entry(log_entry::L7::GenericL7(l7)), log_entry_expected("generic_l7", l7_expected)),
    ]
}

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn filters() -> Vec<Built> {
    let source = ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    };
    let metadata = cilium::BpfMetadata {
        bpf_root: "/sys/fs/bpf".into(),
        is_ingress: true,
        use_original_source_address: true,
        is_l7lb: true,
        ipv4_source_address: "10.0.0.1".into(),
        ipv6_source_address: "f00d::1".into(),
        enforce_policy_on_l7lb: true,
        proxy_id: 15001,
        policy_update_warning_limit: seconds(1),
        l7lb_policy_name: "lb".into(),
        // Presence is what counts: zero is not the same as absent.
        original_source_so_linger_time: Some(0),
        ipcache_name: "cilium_ipcache_v2".into(),
        use_nphds: true,
        cache_entry_ttl: Some(Duration { seconds: 0, nanos: 3_000_000 }),
        cache_gc_interval: seconds(2),
        cilium_config_source: Some(source),
    };
    let metadata_expected = json!({
        "bpf_root": "/sys/fs/bpf", "is_ingress": true, "use_original_source_address": true, "is_l7lb": true,
        "ipv4_source_address": "10.0.0.1", "ipv6_source_address": "f00d::1", "enforce_policy_on_l7lb": true,
        "proxy_id": 15001, "policy_update_warning_limit": "1s", "l7lb_policy_name": "lb",
        "original_source_so_linger_time": 0, "ipcache_name": "cilium_ipcache_v2", "use_nphds": true,
        "cache_entry_ttl": "0.003s", "cache_gc_interval": "2s", "cilium_config_source": {"ads": {}},
    });
    let network = cilium::NetworkFilter {
        proxylib: "lib.so".into(),
        proxylib_params: map("k", "v"),
        access_log_path: "/run/log.sock".into(),
    };
    let network_expected = json!({
        "proxylib": "lib.so", "proxylib_params": {"k": "v"}, "access_log_path": "/run/log.sock",
    });
    let l7 = cilium::L7Policy { access_log_path: "/run/log.sock".into(), denied_403_body: "no".into() };
    vec![
        built(&metadata, metadata_expected),
        built(&network, network_expected),
        built(&l7, json!({"access_log_path": "/run/log.sock", "denied_403_body": "no"})),
        built(&cilium::HealthCheckEventPipeSink { path: "/run/h.sock".into() }, json!({"path": "/run/h.sock"})),
        built(&cilium::UpstreamTlsWrapperContext {}, json!({})),
        built(&cilium::DownstreamTlsWrapperContext {}, json!({})),
    ]
}

fn web_sockets() -> Vec<Built> {
    let expected = json!({
        "access_log_path": "/run/log.sock", "host": "host", "path": "/ws", "key": "key", "version": "13",
        "origin": "origin", "handshake_timeout": "5s", "ping_interval": "30s", "ping_when_idle": true,
    });
    let client = cilium::WebSocketClient {
        access_log_path: "/run/log.sock".into(),
        host: "host".into(),
        path: "/ws".into(),
        key: "key".into(),
        version: "13".into(),
        origin: "origin".into(),
        handshake_timeout: seconds(5),
        ping_interval: seconds(30),
        ping_when_idle: true,
    };
    let server = cilium::WebSocketServer {
        access_log_path: "/run/log.sock".into(),
        host: "host".into(),
        path: "/ws".into(),
        key: "key".into(),
        version: "13".into(),
        origin: "origin".into(),
        handshake_timeout: seconds(5),
        ping_interval: seconds(30),
        ping_when_idle: true,
    };
    vec![built(&client, expected.clone()), built(&server, expected)]
}
