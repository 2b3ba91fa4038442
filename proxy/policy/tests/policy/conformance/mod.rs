//! Cases of the test suite of Cilium's filter, as far as they are about what a policy means. Each has its name there;
//! `tests/conformance/README.md` lists the whole suite and where each case is.
//!
//! Policies are in the JSON form of their messages. Each question goes to both evaluators, which have to agree on the
//! outcome, the rule, the reason and what becomes of the header fields.

mod http;
mod precedence;
mod server_names;
mod updates;

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use tollgate_policy::reference::Reference;
use tollgate_policy::{
    ConnectionVerdict, Direction, EndpointKey, Flow, NetworkPolicy, NoHeaders, Request, Secrets, SecurityId,
    ServerName, Snapshot, Verdict,
};

use crate::support::get;

const ENDPOINT: &str = "10.1.2.3";
static ENDPOINT_KEY: EndpointKey = EndpointKey::Address(std::net::IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)));
/// Of the listener.
const PROXY_ID: u16 = 42;

/// Both evaluators, after the same responses.
struct Both {
    snapshot: Snapshot,
    reference: Reference,
    secrets: Secrets,
}

impl Both {
    fn new() -> Self {
        Self { snapshot: Snapshot::empty(), reference: Reference::default(), secrets: Secrets::default() }
    }

    /// A response with these resources, each a `cilium.NetworkPolicy`.
    fn update(&mut self, resources: &[Value]) {
        let policies = resources.iter().map(|resource| {
            let wire = tollgate_proto::json::network_policy_from_value(resource.clone()).unwrap();
            NetworkPolicy::try_from(&wire).unwrap()
        });
        let policies: Vec<NetworkPolicy> = policies.collect();
        let mut next = self.snapshot.update();
        next.replace_all(policies.clone());
        self.snapshot = next.build();
        self.reference.replace_all(policies);
    }

    fn connection(&self, flow: &Flow<'_>) -> ConnectionVerdict {
        let (expected, found) = (self.reference.connection(flow), self.snapshot.evaluate_connection(flow));
        assert!(expected.agrees_with(&found), "{flow:?}: expected {expected:?}, compiled {found:?}");
        found
    }

    /// Judges the connection, too: a request is admitted on an admitted one only.
    fn request(&self, flow: &Flow<'_>, request: &Request<'_>) -> Verdict {
        let (expected, effects) = self.reference.request(flow, request, &self.secrets);
        let found = self.snapshot.evaluate_request(flow, request, &self.secrets);
        let path = request.path.escape_ascii();
        let agree = expected.agrees_with(&effects, request, &found);
        assert!(agree, "{flow:?} {path}: expected {expected:?} with {effects:?}, compiled {found:?}");
        let refused = matches!(self.connection(flow), ConnectionVerdict::Deny { .. });
        assert!(!refused || matches!(found, Verdict::Deny { .. }), "{flow:?} {path}: {found:?} on no connection");
        found
    }

    fn admits(&self, question: &Question) -> bool {
        let method = question.method.as_bytes();
        let request = Request { method, ..get(question.path, &NoHeaders) };
        matches!(self.request(&question.flow, &request), Verdict::Allow { .. })
    }

    fn quarantined(&self) -> Vec<String> {
        self.snapshot.quarantined().map(|quarantine| quarantine.to_string()).collect()
    }
}

fn policy(ingress: &Value, egress: &Value) -> Value {
    json!({
        "endpoint_ips": [ENDPOINT], "endpoint_id": 42,
        "ingress_per_port_policies": ingress, "egress_per_port_policies": egress,
    })
}

/// One HTTP rule for each path.
fn paths(paths: &[&str]) -> Value {
    let rule = |path: &&str| json!({"headers": [{"name": ":path", "exact_match": path}]});
    json!({"http_rules": paths.iter().map(rule).collect::<Vec<_>>()})
}

fn flow(direction: Direction, remote: u32, port: u16) -> Flow<'static> {
    Flow {
        direction,
        endpoint: &ENDPOINT_KEY,
        remote: SecurityId(remote),
        port,
        proxy_id: PROXY_ID,
        server_name: ServerName::Absent,
    }
}

/// A connection and the first request on it.
struct Question {
    flow: Flow<'static>,
    method: &'static str,
    path: &'static str,
}

/// Reads `in 43 80`, `out 43,44 80,8080 /path`, `in 43 80 PUSH /path` or `in 43 443 sni=a.example`: direction, the
/// other side's identities, ports, and what is asked for. Each identity on each port is a question.
fn questions(text: &'static str) -> Vec<Question> {
    let mut words = text.split(' ');
    let direction = match words.next() {
        Some("in") => Direction::Ingress,
        Some("out") => Direction::Egress,
        _ => panic!("{text}: no direction"),
    };
    let mut numbers = || -> Vec<u32> { words.next().unwrap().split(',').map(|n| n.parse().unwrap()).collect() };
    let (remotes, ports) = (numbers(), numbers());
    let (mut method, mut path, mut server_name) = ("GET", "/", ServerName::Absent);
    for word in words {
        match word.strip_prefix("sni=") {
            Some(name) => server_name = ServerName::Name(name),
            None if word.starts_with('/') => path = word,
            None => method = word,
        }
    }
    let each = remotes.iter().flat_map(|remote| ports.iter().map(move |port| (*remote, *port)));
    let question = |(remote, port)| {
        let flow = Flow { server_name, ..flow(direction, remote, u16::try_from(port).unwrap()) };
        Question { flow, method, path }
    };
    each.map(question).collect()
}

/// A response with one policy, and what is admitted under it.
struct Update {
    ingress: Value,
    egress: Value,
    admitted: Vec<&'static str>,
    denied: Vec<&'static str>,
    quarantined: &'static [&'static str],
}

fn ingress(entries: Value) -> Update {
    Update { ingress: entries, egress: json!([]), admitted: Vec::new(), denied: Vec::new(), quarantined: &[] }
}

impl Update {
    fn egress(self, entries: Value) -> Self {
        Self { egress: entries, ..self }
    }

    fn admits(mut self, questions: &[&'static str]) -> Self {
        self.admitted.extend(questions);
        self
    }

    fn denies(mut self, questions: &[&'static str]) -> Self {
        self.denied.extend(questions);
        self
    }

    /// What the filter refuses with the whole update: here only this is not enforced as it is written.
    fn quarantines(self, quarantined: &'static [&'static str]) -> Self {
        Self { quarantined, ..self }
    }
}

/// One case of the suite: its name there, and its updates in order.
type Case = (&'static str, Vec<Update>);

fn run(cases: Vec<Case>) {
    for (name, updates) in cases {
        let mut both = Both::new();
        // Where nothing has come yet.
        assert!(questions("in 43 80 /allowed").iter().all(|question| !both.admits(question)), "{name}");
        for (number, update) in (1..).zip(updates) {
            both.update(&[policy(&update.ingress, &update.egress)]);
            assert_eq!(both.quarantined(), update.quarantined, "{name}, update {number}");
            for (asked, expected) in [(update.admitted, true), (update.denied, false)] {
                for text in asked {
                    for question in questions(text) {
                        let flow = &question.flow;
                        assert_eq!(both.admits(&question), expected, "{name}, update {number}: {text} ({flow:?})");
                    }
                }
            }
        }
    }
}
