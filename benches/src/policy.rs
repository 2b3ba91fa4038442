//! The policies that the benches of the engine judge by.

use std::net::{IpAddr, Ipv4Addr};

use tollgate_policy::model::{HeaderMatcher, HttpRule, ValueMatch};
use tollgate_policy::{
    Direction, EndpointKey, Flow, NetworkPolicy, NoHeaders, PortPolicy, PortRule, Request, SecurityId, ServerName,
    Snapshot,
};

/// The endpoint that requests go to.
pub const ENDPOINT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1));
static ENDPOINT_KEY: EndpointKey = EndpointKey::Address(ENDPOINT);
/// The port that rules are for.
pub const PORT: u16 = 5000;

/// `rules` rules of the form `GET`, `/api/v1/svc00042/items/[0-9]+`, as in the side-by-side runs.
pub fn policy(endpoint: IpAddr, endpoint_id: u64, rules: usize) -> NetworkPolicy {
    policy_from(endpoint, endpoint_id, 0, rules)
}

/// The same with the numbers from `first` on.
pub fn policy_from(endpoint: IpAddr, endpoint_id: u64, first: usize, rules: usize) -> NetworkPolicy {
    let regex = |name: &str, regex: String| HeaderMatcher::new(name, ValueMatch::Regex(regex.into()));
    let http = (first..first + rules).map(|rule| HttpRule {
        headers: vec![regex(":method", "GET".to_owned()), regex(":path", format!("/api/v1/svc{rule:05}/items/[0-9]+"))],
        ..HttpRule::default()
    });
    let rule = PortRule { http: Some(http.collect()), ..PortRule::default() };
    NetworkPolicy {
        endpoint_id,
        endpoints: vec![EndpointKey::from(endpoint)],
        ingress: vec![PortPolicy { port: PORT.into(), rules: vec![rule], ..PortPolicy::default() }],
        egress: Vec::new(),
    }
}

/// A first snapshot of these policies.
pub fn snapshot(policies: impl IntoIterator<Item = NetworkPolicy>) -> Snapshot {
    let mut builder = Snapshot::empty().update();
    builder.replace_all(policies);
    builder.build()
}

/// A connection to [`ENDPOINT`].
pub fn flow() -> Flow<'static> {
    Flow {
        direction: Direction::Ingress,
        endpoint: &ENDPOINT_KEY,
        remote: SecurityId(32226),
        port: PORT,
        proxy_id: 0,
        server_name: ServerName::Unknown,
    }
}

/// The path that the last of `rules` rules admits.
pub fn last_path(rules: usize) -> String {
    format!("/api/v1/svc{:05}/items/12345", rules - 1)
}

/// A path that none admits.
pub const MISS: &str = "/nothing/here";

/// A GET of `path`.
pub fn get(path: &str) -> Request<'_> {
    Request {
        method: b"GET",
        scheme: b"http",
        authority: b"helloworld:5000",
        path: path.as_bytes(),
        headers: &NoHeaders,
    }
}
