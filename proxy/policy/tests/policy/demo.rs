//! The policy of the demo: only `GET /hello` on port 5000.

use std::net::{IpAddr, Ipv4Addr};

use tollgate_policy::model::{HeaderMatcher, HttpRule, ValueMatch};
use tollgate_policy::{
    ConnectionVerdict, DenyReason, Direction, EndpointKey, Flow, NetworkPolicy, NoHeaders, PortPolicy, PortRule,
    Request, Secrets, SecurityId, ServerName, Snapshot, Verdict,
};

const ENDPOINT: &str = "10.244.2.232";
static ENDPOINT_KEY: EndpointKey = EndpointKey::Address(IpAddr::V4(Ipv4Addr::new(10, 244, 2, 232)));

fn regex(name: &str, pattern: &str) -> HeaderMatcher {
    HeaderMatcher::new(name, ValueMatch::Regex(pattern.into()))
}

fn rule(path: &str) -> PortRule {
    PortRule {
        http: Some(vec![HttpRule {
            headers: vec![regex(":method", "GET"), regex(":path", path)],
            ..HttpRule::default()
        }]),
        ..PortRule::default()
    }
}

fn snapshot(rules: Vec<PortRule>) -> Snapshot {
    let policy = NetworkPolicy {
        endpoint_id: 69,
        endpoints: vec![EndpointKey::parse(ENDPOINT)],
        ingress: vec![PortPolicy { port: 5000, rules, ..PortPolicy::default() }],
        egress: vec![PortPolicy::default()],
    };
    let mut builder = Snapshot::empty().update();
    builder.replace_all([policy]);
    builder.build()
}

fn flow(direction: Direction, port: u16) -> Flow<'static> {
    Flow {
        direction,
        endpoint: &ENDPOINT_KEY,
        remote: SecurityId(32226),
        port,
        proxy_id: 15001,
        server_name: ServerName::Absent,
    }
}

fn judge(snapshot: &Snapshot, method: &str, path: &str) -> Result<String, (DenyReason, String)> {
    let request = Request {
        method: method.as_bytes(),
        scheme: b"http",
        authority: b"helloworld:5000",
        path: path.as_bytes(),
        headers: &NoHeaders,
    };
    match snapshot.evaluate_request(&flow(Direction::Ingress, 5000), &request, &Secrets::default()) {
        Verdict::Allow { rule, .. } => Ok(rule.to_string()),
        Verdict::Deny { reason, nearest, .. } => Err((reason, nearest.map(|n| n.to_string()).unwrap_or_default())),
    }
}

#[test]
fn only_get_hello() {
    let snapshot = snapshot(vec![rule("/hello")]);
    let place = "69 ingress_per_port_policies[0].rules[0].http_rules[0]";
    assert_eq!(judge(&snapshot, "GET", "/hello"), Ok(place.to_owned()));
    let miss = |text: &str| Err((DenyReason::NoHttpRule, format!("{text} ({place})")));
    let path = ":method matched, :path is not regex \"/hello\"";
    for denied in ["/hello3", "/hello/", "/hello?x=1", "/hell", "/"] {
        assert_eq!(judge(&snapshot, "GET", denied), miss(path), "{denied}");
    }
    let method = ":path matched, :method is not regex \"GET\"";
    for denied in ["POST", "get", "GETS"] {
        assert_eq!(judge(&snapshot, denied, "/hello"), miss(method), "{denied}");
    }
}

#[test]
fn connections() {
    let snapshot = snapshot(vec![rule("/hello")]);
    let inspected = snapshot.evaluate_connection(&flow(Direction::Ingress, 5000));
    assert_eq!(inspected, ConnectionVerdict::InspectHttp);
    let egress = snapshot.evaluate_connection(&flow(Direction::Egress, 80));
    assert!(matches!(egress, ConnectionVerdict::AllowTcp { .. }), "{egress:?}");
    let refused = |reason| ConnectionVerdict::Deny { reason, nearest: None };
    let other_port = snapshot.evaluate_connection(&flow(Direction::Ingress, 5001));
    assert_eq!(other_port, refused(DenyReason::NoPortRule));
    let nobody = EndpointKey::parse("10.244.2.233");
    let nobody = Flow { endpoint: &nobody, ..flow(Direction::Ingress, 5000) };
    assert_eq!(snapshot.evaluate_connection(&nobody), refused(DenyReason::NoPolicy));
}

#[test]
fn mapped_addresses_find_the_policy() {
    let snapshot = snapshot(vec![rule("/hello")]);
    let mapped = EndpointKey::parse(&format!("::ffff:{ENDPOINT}"));
    let mapped = Flow { endpoint: &mapped, ..flow(Direction::Ingress, 5000) };
    assert_eq!(snapshot.evaluate_connection(&mapped), ConnectionVerdict::InspectHttp);
}

#[test]
fn a_broken_regex_spares_its_siblings() {
    // Invalid alone, valid once it is wrapped in a group.
    let snapshot = snapshot(vec![rule("/hello"), rule("a)|(?:b"), rule("/hello3")]);
    assert!(judge(&snapshot, "GET", "/hello").is_ok());
    assert!(judge(&snapshot, "GET", "/hello3").is_ok());
    assert!(judge(&snapshot, "GET", "azzz").is_err());
    let quarantined: Vec<String> = snapshot.quarantined().map(|q| q.to_string()).collect();
    let [only] = &quarantined[..] else {
        panic!("{quarantined:?}");
    };
    let place = "69 ingress_per_port_policies[0].rules[1].http_rules[0].headers[1]: regex \"a)|(?:b\": ";
    assert!(only.starts_with(place), "{only}");
}
