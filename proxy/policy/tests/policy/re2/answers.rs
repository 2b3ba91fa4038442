//! Holds the engine against answers of RE2, in the form that `tests/python/re2_oracle.py` prints.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;

use tollgate_policy::model::{HeaderMatcher, HttpRule, PortPolicy, PortRule, ValueMatch};
use tollgate_policy::{
    DenyReason, Direction, EndpointKey, Flow, Headers, NetworkPolicy, Request, SecurityId, ServerName, Snapshot,
    Verdict,
};

/// What may be refused although RE2 accepts it, by a part of the reason that is given: the list in `re2.rs`.
pub(crate) const KNOWN_REFUSALS: [&str; 8] = [
    "Unicode classes (",
    "(?i) on letters beyond ASCII",
    "groups are nested deeper than",
    "after a flag group is not supported",
    "only ASCII letters, digits and `_` are supported",
    "needs an automaton of more than",
    "surrogates are not supported",
    "the regex is empty",
];

/// Expressions that are matched by one automaton. Each is asked about under an identity of its own.
const AT_ONCE: usize = 16;

struct Asked {
    expression: String,
    /// Bit `i` tells of value `i`; `None` when RE2 refuses the expression.
    matches: Option<Vec<bool>>,
}

/// What a comparison came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Expressions that mean the same.
    pub(crate) equal: usize,
    /// Expressions that both refuse.
    pub(crate) refused: usize,
    /// Values that would have taken too much work to match, and were refused for that reason.
    pub(crate) undecided: usize,
    /// How often each of [`KNOWN_REFUSALS`] was the reason.
    pub(crate) known: [usize; KNOWN_REFUSALS.len()],
    /// Everything else, a line each.
    pub(crate) differences: String,
}

/// Compares with all answers in `text`.
///
/// # Panics
/// The text is not of that form.
pub(crate) fn compare(text: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let mut values: Vec<Vec<u8>> = Vec::new();
    let mut asked = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        match words.next() {
            Some("inputs") => {
                outcome.add(&values, std::mem::take(&mut asked));
                values = words.map(unescape).collect();
            }
            Some("match") => {
                let bits = words.next().expect("match BITS EXPRESSION");
                let bits = (0..values.len()).map(|i| bit(bits, i)).collect();
                asked.push(Asked { expression: expression(words.next()), matches: Some(bits) });
            }
            Some("refuse") => asked.push(Asked { expression: expression(words.next()), matches: None }),
            _ => panic!("not an answer: {line:?}"),
        }
    }
    outcome.add(&values, asked);
    outcome
}

fn expression(word: Option<&str>) -> String {
    String::from_utf8(unescape(word.expect("ends with an expression"))).expect("expressions are UTF-8")
}

/// Bit `number` of a hexadecimal number of any length.
fn bit(hexadecimal: &str, number: usize) -> bool {
    let digit = hexadecimal.len().checked_sub(1 + number / 4).map(|at| &hexadecimal[at..=at]);
    digit.is_some_and(|digit| u8::from_str_radix(digit, 16).expect("hexadecimal") >> (number % 4) & 1 == 1)
}

fn unescape(word: &str) -> Vec<u8> {
    if word == "%" {
        return Vec::new();
    }
    let mut parts = word.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).expect("two hexadecimal digits"));
        bytes.extend(part[2..].bytes());
    }
    bytes
}

impl Outcome {
    fn add(&mut self, values: &[Vec<u8>], asked: Vec<Asked>) {
        for some in asked.chunks(AT_ONCE) {
            let (snapshot, endpoint) = snapshot(some);
            for (number, asked) in some.iter().enumerate() {
                self.judge(&snapshot, &endpoint, values, number, asked);
            }
        }
    }

    fn judge(&mut self, snapshot: &Snapshot, endpoint: &EndpointKey, values: &[Vec<u8>], number: usize, asked: &Asked) {
        let Asked { expression, matches } = asked;
        let quarantined = snapshot.quarantined().find(|q| q.rule.rule == Some(number as u32));
        let found = values.iter().map(|value| matched(snapshot, endpoint, number, value)).collect::<Vec<_>>();
        match (quarantined, matches) {
            (Some(_), _) if found.contains(&Some(true)) => self.differs(expression, "is quarantined, and yet matches"),
            (Some(_), None) => self.refused += 1,
            (None, None) => self.differs(expression, "RE2 refuses it"),
            (Some(quarantine), Some(_)) => {
                match KNOWN_REFUSALS.iter().position(|known| quarantine.reason.contains(known)) {
                    Some(known) => self.known[known] += 1,
                    None => self.differs(expression, &format!("RE2 accepts it, but: {}", quarantine.reason)),
                }
            }
            (None, Some(expected)) => {
                let wrong = (0..values.len()).filter(|i| found[*i].is_some_and(|found| found != expected[*i]));
                self.undecided += found.iter().filter(|found| found.is_none()).count();
                let values: Vec<_> = wrong.map(|i| String::from_utf8_lossy(&values[i])).collect();
                match values.is_empty() {
                    true => self.equal += 1,
                    false => self.differs(expression, &format!("RE2 says otherwise about {values:?}")),
                }
            }
        }
    }

    fn differs(&mut self, expression: &str, how: &str) {
        let _ = writeln!(self.differences, "{expression:?}: {how}");
    }
}

/// A rule for each expression, all on the field `x`.
fn snapshot(asked: &[Asked]) -> (Snapshot, EndpointKey) {
    let rule = |(asked, remote): (&Asked, u32)| {
        let matcher = HeaderMatcher::new("x", ValueMatch::Regex(asked.expression.as_str().into()));
        let http_rule = HttpRule { headers: vec![matcher], ..HttpRule::default() };
        PortRule { remotes: vec![remote], http: Some(vec![http_rule]), ..PortRule::default() }
    };
    let rules = asked.iter().zip(0..).map(rule).collect();
    let endpoint = EndpointKey::parse("endpoint");
    let policy = NetworkPolicy {
        endpoint_id: 1,
        endpoints: vec![endpoint.clone()],
        ingress: vec![PortPolicy { port: 80, rules, ..PortPolicy::default() }],
        egress: Vec::new(),
    };
    let mut builder = Snapshot::empty().update();
    builder.replace_all([policy]);
    (builder.build(), endpoint)
}

/// `None` when finding out would take too much work.
fn matched(snapshot: &Snapshot, endpoint: &EndpointKey, number: usize, value: &[u8]) -> Option<bool> {
    struct OneField<'a>(&'a [u8]);
    impl Headers for OneField<'_> {
        fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
            if name == "x" {
                visit(self.0);
            }
        }
    }
    let flow = Flow {
        direction: Direction::Ingress,
        endpoint,
        remote: SecurityId(number as u32),
        port: 80,
        proxy_id: 0,
        server_name: ServerName::Absent,
    };
    let request = Request { method: b"GET", scheme: b"http", authority: b"a", path: b"/", headers: &OneField(value) };
    match snapshot.evaluate_request(&flow, &request, &tollgate_policy::Secrets::default()) {
        Verdict::Allow { .. } => Some(true),
        Verdict::Deny { reason: DenyReason::MatchBudget, .. } => None,
        Verdict::Deny { .. } => Some(false),
    }
}
