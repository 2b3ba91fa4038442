//! Policies as tests write them: proto3 JSON, as people and agents do.

use serde_json::{Value, json};
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::json::network_policy_from_value;

use crate::site::{HTTP_PORT, Site, TCP_PORT};

/// The policy of the site's endpoint with these entries of `ingressPerPortPolicies`.
///
/// # Panics
/// When they are no such entries.
pub fn ingress(site: &Site, ports: Value) -> NetworkPolicy {
    let policy = json!({
        "endpointIps": [site.ip().to_string()],
        "endpointId": "7",
        "ingressPerPortPolicies": ports,
    });
    network_policy_from_value(policy).unwrap()
}

/// One HTTP rule: method and path as regular expressions.
pub fn http_rule(method: &str, path: &str) -> Value {
    json!({"headers": [
        {"name": ":method", "stringMatch": {"safeRegex": {"regex": method}}},
        {"name": ":path", "stringMatch": {"safeRegex": {"regex": path}}},
    ]})
}

/// An entry that admits to `port` what one of `rules` admits, from anybody.
pub fn http_port(port: u16, rules: &[Value]) -> Value {
    json!({"port": port, "rules": [{"httpRules": {"httpRules": rules}}]})
}

/// An entry that admits any bytes to `port`, from anybody.
pub fn tcp_port(port: u16) -> Value {
    json!({"port": port})
}

/// What most tests run under: any method on `/`, `*` and below `/allowed`, and nothing else, on the HTTP listener; any
/// bytes on the TCP listener.
pub fn usual(site: &Site) -> NetworkPolicy {
    let rule = http_rule(".*", r"/|\*|/allowed.*");
    ingress(site, json!([http_port(HTTP_PORT, &[rule]), tcp_port(TCP_PORT)]))
}

/// A policy for somebody else.
///
/// # Panics
/// Never: it is a constant.
pub fn of_another_endpoint() -> NetworkPolicy {
    network_policy_from_value(json!({"endpointIps": ["192.0.2.1"], "endpointId": "8"})).unwrap()
}
