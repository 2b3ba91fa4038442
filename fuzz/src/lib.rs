//! What the fuzz targets do with their input. Each is a plain function, so that an input can be replayed without a fuzzer.
//!
//! All of them end in the same question: does the compiled engine say what the reference says? Where a budget refuses, it may
//! deny more, and never allow more.

#![forbid(unsafe_code)]

#[path = "../../proxy/policy/tests/generate/mod.rs"]
mod generate;

use prost::Message as _;
use tollgate_policy::model::{HeaderMatcher, HttpRule, PortPolicy, PortRule, RuleVerdict, ValueMatch};
use tollgate_policy::reference::Reference;
use tollgate_policy::{
    Direction, EndpointKey, Flow, Headers, NetworkPolicy, Request, Secrets, SecurityId, ServerName, Snapshot, Verdict,
};
use tollgate_proto::cilium;

use self::generate::heavy;
use self::generate::{Choices, Question, Response};

/// Longest value or name that is matched: a longer one finds nothing that this does not, and takes longer.
const LONGEST: usize = 256;
/// Most expressions that are put into one automaton.
const MOST_EXPRESSIONS: usize = 6;

/// The bytes of a `cilium.NetworkPolicy`: decoded, compiled, judged and explained.
pub fn policy(input: &[u8]) {
    let Ok(message) = cilium::NetworkPolicy::decode(input) else { return };
    let Ok(policy) = NetworkPolicy::try_from(&message) else { return };
    let (first, ports) = (policy.endpoints[0].clone(), asked_ports(&policy));
    let (snapshot, reference) = generate::worlds(&[Response::All(vec![policy])]);
    snapshot.quarantined().for_each(|quarantine| drop(quarantine.to_string()));
    let headers = Fields(&[("x", b"a"), ("y", b""), ("x", b"b")]);
    for port in ports {
        for (remote, server_name) in [(1, ServerName::Absent), (2, ServerName::Name("a.b")), (2, ServerName::Unknown)] {
            for direction in [Direction::Ingress, Direction::Egress] {
                let flow =
                    Flow { direction, endpoint: &first, remote: SecurityId(remote), port, proxy_id: 9, server_name };
                let request =
                    Request { method: b"GET", scheme: b"http", authority: b"a.b", path: b"/a", headers: &headers };
                let _ = snapshot.explain(&flow, Some(&request), &generate::secrets());
                agree(&snapshot, &reference, &flow, &request);
            }
        }
    }
}

/// Some ports that the policy names, their neighbours, and one that it hardly does.
fn asked_ports(policy: &NetworkPolicy) -> Vec<u16> {
    let named = policy.ingress.iter().chain(&policy.egress).take(3).flat_map(|entry| [entry.port, entry.end_port]);
    let near = named.flat_map(|port| [port, port.saturating_add(1)]);
    let mut ports: Vec<u16> = near.filter_map(|port| u16::try_from(port).ok()).filter(|port| *port > 0).collect();
    ports.push(4711);
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Decisions that generate policies, how they arrive, and what is asked.
pub fn differential(input: &[u8]) {
    let mut choices = Choices::new(input);
    let (snapshot, reference) = generate::worlds(&generate::history(&mut choices));
    for _ in 0..4 {
        let question = Question::choose(&mut choices);
        agree(&snapshot, &reference, &question.flow, &question.request());
    }
}

/// Decisions that generate policies and questions which take more work than a value may cause.
pub fn budget(input: &[u8]) {
    let mut choices = Choices::new(input);
    let (snapshot, reference) = heavy::world(&mut choices);
    let question = heavy::question(&mut choices);
    if let Some(mistake) = heavy::mistake(&snapshot, &reference, &question) {
        panic!("{mistake}\nfor {:?}", question.flow);
    }
}

/// A line with a pattern, and a server name.
pub fn server_name(input: &[u8]) {
    let Some((pattern, name)) = std::str::from_utf8(input).ok().and_then(|text| text.split_once('\n')) else { return };
    if name.len() > 2 * LONGEST {
        return;
    }
    for verdict in [RuleVerdict::Allow, RuleVerdict::Deny, RuleVerdict::Pass(1)] {
        let named = PortRule {
            precedence: 1,
            verdict,
            server_names: vec![pattern.to_owned(), "other.example".to_owned()],
            ..PortRule::default()
        };
        let otherwise = PortRule {
            verdict: if verdict == RuleVerdict::Allow { RuleVerdict::Deny } else { RuleVerdict::Allow },
            ..PortRule::default()
        };
        let (snapshot, reference, endpoint) = world(vec![named, otherwise]);
        for server_name in [ServerName::Name(name), ServerName::Absent, ServerName::Unknown] {
            let flow = Flow { server_name, ..flow(&endpoint, 0) };
            agree(&snapshot, &reference, &flow, &request(&Fields(&[])));
        }
        // What a pattern without any star means can be said in one line.
        if !pattern.contains('*') && verdict == RuleVerdict::Allow && snapshot.quarantined().next().is_none() {
            let flow = Flow { server_name: ServerName::Name(name), ..flow(&endpoint, 0) };
            let equal = [pattern, "other.example"].iter().any(|text| name.eq_ignore_ascii_case(text));
            let allowed = matches!(
                snapshot.evaluate_request(&flow, &request(&Fields(&[])), &Secrets::default()),
                Verdict::Allow { .. }
            );
            assert_eq!(allowed, equal, "{pattern:?} on {name:?}");
        }
    }
}

/// Expressions, a line each, and behind the last line break a value. All of them go into one automaton; each is asked
/// about alone, as it is and inverted.
pub fn regex(input: &[u8]) {
    let Some(at) = input.iter().rposition(|byte| *byte == b'\n') else { return };
    let (expressions, value) = (&input[..at], &input[at + 1..]);
    let Ok(expressions) = std::str::from_utf8(expressions) else { return };
    if value.len() > LONGEST {
        return;
    }
    let expressions: Vec<&str> = expressions.split('\n').take(MOST_EXPRESSIONS).collect();
    let mut rules = Vec::new();
    for (expression, remote) in expressions.iter().zip(0..) {
        for invert in [false, true] {
            let matcher = HeaderMatcher { invert, ..HeaderMatcher::new("x", ValueMatch::Regex((*expression).into())) };
            let http_rule = HttpRule { headers: vec![matcher], ..HttpRule::default() };
            let remotes = vec![2 * remote + u32::from(invert)];
            rules.push(PortRule { remotes, http: Some(vec![http_rule]), ..PortRule::default() });
        }
    }
    let (snapshot, reference, endpoint) = world(rules);
    let fields = [("x", value)];
    let fields = Fields(&fields);
    for (expression, remote) in expressions.iter().zip(0..) {
        for invert in [0, 1] {
            agree(&snapshot, &reference, &flow(&endpoint, 2 * remote + invert), &request(&fields));
        }
        // What an expression without any operator means can be said in one line.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_ ,;:@!#%&'\"<>=~`".contains(&byte);
        if !expression.is_empty() && expression.bytes().all(plain) {
            let verdict =
                snapshot.evaluate_request(&flow(&endpoint, 2 * remote), &request(&fields), &Secrets::default());
            assert_eq!(matches!(verdict, Verdict::Allow { .. }), expression.as_bytes() == value, "{expression:?}");
        }
    }
}

/// One endpoint with these rules for port 80.
fn world(rules: Vec<PortRule>) -> (Snapshot, Reference, EndpointKey) {
    let endpoint = EndpointKey::parse("endpoint");
    let policy = NetworkPolicy {
        endpoint_id: 1,
        endpoints: vec![endpoint.clone()],
        ingress: vec![PortPolicy { port: 80, rules, ..PortPolicy::default() }],
        egress: Vec::new(),
    };
    let (snapshot, reference) = generate::worlds(&[Response::All(vec![policy])]);
    (snapshot, reference, endpoint)
}

fn flow(endpoint: &EndpointKey, remote: u32) -> Flow<'_> {
    Flow {
        direction: Direction::Ingress,
        endpoint,
        remote: SecurityId(remote),
        port: 80,
        proxy_id: 0,
        server_name: ServerName::Absent,
    }
}

fn request<'a>(headers: &'a Fields<'a>) -> Request<'a> {
    Request { method: b"GET", scheme: b"http", authority: b"a", path: b"/", headers }
}

struct Fields<'a>(&'a [(&'static str, &'a [u8])]);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.0.each(name, visit);
    }
}

fn agree(snapshot: &Snapshot, reference: &Reference, flow: &Flow<'_>, request: &Request<'_>) {
    if let Some(difference) = generate::difference(snapshot, reference, flow, request) {
        panic!("{difference}\nfor {flow:?}");
    }
}
