//! Policies and questions out of bytes, shared by the property tests and the fuzz targets: few ports, identities, names
//! and values, so that rules meet; every kind of part that cannot be honoured among them.
//!
//! Bytes that have run out choose the first, simplest alternative of everything, so that a shorter input is a simpler
//! case.

pub(crate) mod heavy;

use std::net::{IpAddr, Ipv4Addr};

use tollgate_policy::model::{
    HeaderMatch, HeaderMatcher, HttpRule, MatchAction, MismatchAction, NetworkPolicy, PortPolicy, PortRule, Protocol,
    RuleVerdict, TextPart, Unsupported, ValueMatch,
};
use tollgate_policy::reference::{Change, Reference};
use tollgate_policy::{
    ConnectionVerdict, DenyReason, Direction, EndpointKey, Flow, Headers, Request, Secrets, SecurityId, ServerName,
    Snapshot, Verdict,
};

const PORTS: [u32; 12] = [80, 80, 80, 80, 80, 0, 81, 79, 82, 83, 65534, 65535];
const WORDS: [&str; 12] = ["a", "", "b", "ab", "A", "aB", "/a", "/b", "a,b", "1", "12", "é"];
const EXPRESSIONS: [&str; 20] = [
    "a",
    "",
    "a|b",
    "[ab]+",
    ".*",
    "/a.*",
    "(?i)ab",
    "(",
    "a{2,}",
    r"\C",
    "/[ab]?(/.*)?",
    "^a$",
    "(?s).*b",
    "[^/]*",
    "a||b",
    "(?i)[^a]",
    r"\d+",
    "a*,b",
    r"\bab?\b",
    "(?:[^a][^b][^c]){1000}",
];
const SERVER_NAMES: [&str; 12] =
    ["a.b", "*", "**", "*.b", "**.b", "a.*", "a*.b", "*a*.*b", "A.B", "a..b", "", "a.**.b"];
const ASKED_NAMES: [&str; 8] = ["a.b", "A.b", "x.b", "x.a.b", "a.b.", "", "ab.b", "a.x.b"];
const FIELDS: [&str; 9] = [":path", "x", ":method", "y", ":authority", "host", ":scheme", ":uri", "x y"];
const VALUES: [&[u8]; 16] = [
    b"a",
    b"",
    b"b",
    b"a",
    b"ab",
    b"A",
    b"/a",
    b"/b",
    b"/a",
    b"a,b",
    b"1",
    b"-1",
    b" 12\t",
    b"\xff",
    b"\xc3\xa9",
    b"aa",
];
static ENDPOINTS: [EndpointKey; 2] = [
    EndpointKey::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
    EndpointKey::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2))),
];
const IDENTITIES: [u32; 4] = [1, 2, 3, 0];

/// A source of decisions.
pub(crate) struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// Decides by these bytes, in order.
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte; 0 when there are none left.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    /// Once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    /// One of these.
    pub(crate) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// One to `most` of what `make` makes; seldom none.
    pub(crate) fn list<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = if self.once_in(12) { 0 } else { 1 + self.below(most) };
        (0..count).map(|_| make(self)).collect()
    }
}

/// What a control plane sends, response by response.
pub(crate) enum Response {
    /// The state of the world.
    All(Vec<NetworkPolicy>),
    /// The same on a new stream.
    Anew(Vec<NetworkPolicy>),
    /// What changed.
    Changed(Vec<Change>),
}

/// One to three responses; most often one with one policy.
pub(crate) fn history(choices: &mut Choices<'_>) -> Vec<Response> {
    let first = Response::All(policies(choices));
    let mut responses = vec![first];
    if choices.once_in(4) {
        let further = choices.list(2, |choices| {
            match choices.below(4) {
                0 => return Response::All(policies(choices)),
                1 => return Response::Anew(policies(choices)),
                _ => {}
            }
            Response::Changed(choices.list(3, |choices| {
                let name = choices.one(&["1", "2", "other"]).to_owned();
                match choices.below(5) {
                    0 => Change::Remove(name),
                    1 => Change::SetAside(name),
                    _ => Change::Upsert(name, policy(choices)),
                }
            }))
        });
        responses.extend(further);
    }
    responses
}

fn policies(choices: &mut Choices<'_>) -> Vec<NetworkPolicy> {
    let mut policies = vec![policy(choices)];
    if choices.once_in(6) {
        policies.extend(choices.list(2, policy));
    }
    policies
}

/// One policy of one or two endpoints.
pub(crate) fn policy(choices: &mut Choices<'_>) -> NetworkPolicy {
    let keys = if choices.once_in(8) { choices.list(3, endpoint) } else { vec![&ENDPOINTS[0]] };
    NetworkPolicy {
        endpoint_id: choices.one(&[1, 1, 2]),
        endpoints: keys.into_iter().cloned().collect(),
        ingress: entries(choices),
        egress: if choices.once_in(8) { entries(choices) } else { Vec::new() },
    }
}

fn endpoint(choices: &mut Choices<'_>) -> &'static EndpointKey {
    &ENDPOINTS[choices.below(ENDPOINTS.len())]
}

/// The port entries of one direction.
pub(crate) fn entries(choices: &mut Choices<'_>) -> Vec<PortPolicy> {
    choices.list(4, |choices| {
        let port = choices.one(&PORTS);
        let end_port = match choices.below(12) {
            0..=6 => 0,
            7..=10 if port != 0 => (port + choices.below(4) as u32).min(65535),
            // Mostly makes no sense.
            _ => choices.one(&[1, 79, 70_000, 83]),
        };
        let protocol = match choices.below(24) {
            22 => Protocol::Udp,
            23 => Protocol::Unknown(7),
            _ => Protocol::Tcp,
        };
        PortPolicy { port, end_port, protocol, rules: choices.list(4, rule) }
    })
}

/// One rule.
pub(crate) fn rule(choices: &mut Choices<'_>) -> PortRule {
    let precedence = choices.below(5) as u32;
    PortRule {
        precedence,
        verdict: match choices.below(8) {
            0..=4 => RuleVerdict::Allow,
            5 | 6 => RuleVerdict::Deny,
            // Mostly one that does not contradict itself.
            _ => RuleVerdict::Pass(choices.one(&[precedence.max(1), 1, 2, 3])),
        },
        proxy_id: if choices.once_in(6) { choices.one(&[9, 8, 70_000]) } else { 0 },
        name: String::new(),
        remotes: if choices.once_in(2) { choices.list(3, |choices| choices.one(&IDENTITIES)) } else { Vec::new() },
        server_names: match choices.once_in(6) {
            true => choices.list(3, |choices| choices.one(&SERVER_NAMES).to_owned()),
            false => Vec::new(),
        },
        http: if choices.once_in(2) { Some(choices.list(3, http_rule)) } else { None },
        unsupported: unsupported(choices),
    }
}

fn unsupported(choices: &mut Choices<'_>) -> Vec<Unsupported> {
    let part = || Unsupported { element: "l7_proto".into(), reason: "no parser".into() };
    if choices.once_in(32) { vec![part()] } else { Vec::new() }
}

fn http_rule(choices: &mut Choices<'_>) -> HttpRule {
    HttpRule {
        headers: choices.list(2, matcher),
        unsupported: unsupported(choices),
        header_matches: if choices.once_in(4) { choices.list(3, header_match) } else { Vec::new() },
    }
}

/// One header match.
fn header_match(choices: &mut Choices<'_>) -> HeaderMatch {
    let name = choices.one(&["x", "x", "x", "X", "y", "y", ":path", "host", ":uri", "te"]);
    let values = if choices.once_in(16) { &["a\r\nb: c", " a"][..] } else { &["a", "", "b", "a,b", "ab"] };
    HeaderMatch {
        secret: choices.once_in(4).then(|| choices.one(&["s", "empty", "broken", "nobody's"]).into()),
        on_match: match choices.below(12) {
            0..=5 => MatchAction::Continue,
            6..=8 => MatchAction::Fail,
            9 | 10 => MatchAction::Delete,
            _ => MatchAction::Unknown(if choices.once_in(4) { 7 } else { return header_match(choices) }),
        },
        on_mismatch: match choices.below(16) {
            0..=3 => MismatchAction::Continue,
            4..=6 => MismatchAction::Fail,
            7..=9 => MismatchAction::Add,
            10 | 11 => MismatchAction::Delete,
            12..=14 => MismatchAction::Replace,
            _ => MismatchAction::Unknown(-1),
        },
        ..HeaderMatch::new(name, choices.one(values))
    }
}

/// What is delivered of the secrets that generated policies name.
pub(crate) fn secrets() -> Secrets {
    let mut secrets = Secrets::default();
    for (name, value) in [("s", &b"a"[..]), ("empty", b""), ("broken", b"a\nb: c")] {
        secrets.insert(name, value);
    }
    secrets
}

/// One header matcher.
pub(crate) fn matcher(choices: &mut Choices<'_>) -> HeaderMatcher {
    let parts = [TextPart::Whole, TextPart::Prefix, TextPart::Suffix, TextPart::Anywhere];
    // The last two are no names of fields that can be matched.
    let known = if choices.once_in(16) { FIELDS.len() } else { FIELDS.len() - 2 };
    let name = FIELDS[choices.below(known)];
    let value = match choices.below(16) {
        0..=5 => ValueMatch::Text {
            part: choices.one(&parts),
            text: choices.one(&WORDS).into(),
            ignore_case: choices.once_in(3),
        },
        6..=10 => ValueMatch::Regex(expression(choices).into()),
        11 => ValueMatch::Range { start: choices.one(&[0, -5, 12]), end: choices.one(&[10, 0, 13]) },
        12 => ValueMatch::Any,
        13 | 14 => ValueMatch::Present(!choices.once_in(2)),
        _ if choices.once_in(4) => ValueMatch::Unsupported("custom".into()),
        _ => ValueMatch::Present(true),
    };
    HeaderMatcher {
        invert: choices.once_in(4),
        treat_missing_as_empty: choices.once_in(4),
        ..HeaderMatcher::new(name, value)
    }
}

fn expression(choices: &mut Choices<'_>) -> String {
    if !choices.once_in(4) {
        // The last one is over the budget, and slow to refuse.
        let count = if choices.once_in(64) { EXPRESSIONS.len() } else { EXPRESSIONS.len() - 1 };
        return EXPRESSIONS[choices.below(count)].to_owned();
    }
    let pieces =
        ["a", "b", "[ab]", ".", "|", "*", "(", ")", "?", "+", ",", "/", "^", "$", r"\b", "(?i)", "[^a]", "{2}"];
    choices.list(6, |choices| choices.one(&pieces)).concat()
}

/// Header fields in the order received.
#[derive(Clone)]
pub(crate) struct Fields(pub(crate) Vec<(&'static str, &'static [u8])>);

impl Headers for Fields {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.0.as_slice().each(name, visit);
    }
}

/// A connection and a request on it.
pub(crate) struct Question {
    /// The connection.
    pub(crate) flow: Flow<'static>,
    method: &'static [u8],
    scheme: &'static [u8],
    authority: &'static [u8],
    pub(crate) path: &'static [u8],
    pub(crate) headers: Fields,
}

impl Question {
    /// Chooses one.
    pub(crate) fn choose(choices: &mut Choices<'_>) -> Self {
        Self {
            flow: Flow {
                direction: if choices.once_in(16) { Direction::Egress } else { Direction::Ingress },
                endpoint: &ENDPOINTS[usize::from(choices.once_in(16))],
                remote: SecurityId(choices.one(&IDENTITIES)),
                port: choices.one(&[80, 80, 80, 80, 80, 81, 82, 83, 85, 1, 65534, 65535]),
                proxy_id: choices.one(&[0, 9]),
                server_name: match choices.below(4) {
                    0 => ServerName::Absent,
                    1 => ServerName::Unknown,
                    _ => ServerName::Name(choices.one(&ASKED_NAMES)),
                },
            },
            method: choices.one(&VALUES),
            scheme: b"a",
            authority: choices.one(&VALUES),
            path: choices.one(&VALUES),
            headers: Fields(choices.list(3, |choices| (choices.one(&["x", "y", "X"]), choices.one(&VALUES)))),
        }
    }

    /// The request.
    pub(crate) fn request(&self) -> Request<'_> {
        Request {
            method: self.method,
            scheme: self.scheme,
            authority: self.authority,
            path: self.path,
            headers: &self.headers,
        }
    }
}

/// The same history, received by both.
pub(crate) fn worlds(history: &[Response]) -> (Snapshot, Reference) {
    let mut snapshot = Snapshot::empty();
    let mut reference = Reference::default();
    for response in history {
        let mut next = snapshot.update();
        match response {
            Response::All(policies) => {
                next.replace_all(policies.clone());
                reference.replace_all(policies.clone());
            }
            Response::Anew(policies) => {
                next.replace_all(policies.clone());
                next.forget_order();
                reference.replace_all(policies.clone());
                reference.forget_order();
            }
            Response::Changed(changes) => {
                for change in changes {
                    match change {
                        Change::Upsert(name, policy) => next.upsert(name, policy.clone()),
                        Change::Remove(name) => drop(next.remove(name)),
                        Change::SetAside(name) => next.set_aside(name),
                    }
                }
                reference.change(changes.clone());
            }
        }
        snapshot = next.build();
        // What is counted on the way is what is there.
        assert_eq!(snapshot.endpoint_count(), snapshot.endpoints().len());
        assert_eq!(snapshot.quarantined_count(), snapshot.quarantined().count());
    }
    (snapshot, reference)
}

/// How the two differ on a connection or request, if they do.
pub(crate) fn difference(
    snapshot: &Snapshot,
    reference: &Reference,
    flow: &Flow<'_>,
    request: &Request<'_>,
) -> Option<String> {
    let (expected, found) = (reference.connection(flow), snapshot.evaluate_connection(flow));
    if let ConnectionVerdict::Deny { reason, .. } = &found
        && over_budget(snapshot, *reason)
    {
        return None;
    }
    if !expected.agrees_with(&found) {
        return Some(format!("connection: expected {expected:?}, compiled {found:?}"));
    }
    let secrets = secrets();
    let (expected, effects) = reference.request(flow, request, &secrets);
    let found = snapshot.evaluate_request(flow, request, &secrets);
    if let Verdict::Deny { reason, .. } = &found
        && over_budget(snapshot, *reason)
    {
        return None;
    }
    let agree = expected.agrees_with(&effects, request, &found);
    (!agree).then(|| format!("request: expected {expected:?} with {effects:?}, compiled {found:?}"))
}

/// Whether a budget refused, which the reference does not have: the compiled form may deny more, never allow more.
fn over_budget(snapshot: &Snapshot, reason: DenyReason) -> bool {
    let too_large = |q: tollgate_policy::Quarantine| q.reason.contains("needs an automaton of more than");
    match reason {
        DenyReason::MatchBudget => true,
        // A deny whose pattern is too large holds whatever the name is.
        DenyReason::Quarantined | DenyReason::DenyRule => snapshot.quarantined().any(too_large),
        _ => false,
    }
}
