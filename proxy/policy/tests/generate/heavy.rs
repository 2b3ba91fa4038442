//! Worlds whose expressions take more work than one value may cause, and values that cause it.

use std::sync::LazyLock;

use tollgate_policy::model::{HeaderMatcher, HttpRule, PortPolicy, PortRule, RuleVerdict, ValueMatch};
use tollgate_policy::reference::{ConnectionJudgement, Judgement, Reference};
use tollgate_policy::{ConnectionVerdict, Direction, NetworkPolicy, ServerName, Snapshot, Verdict};

use super::{Choices, ENDPOINTS, Question, Response, header_match, over_budget, secrets, worlds};

/// Each but the last has another state for every byte of a value in which `a` comes at random. None is so large that it is
/// quarantined.
pub(crate) const EXPRESSIONS: [&str; 6] = [
    r"\C*a\C{700}b?",
    r"\C*a\C{800}[ab]",
    r"(\C*/)?\C*a\C{600}a",
    r"[^b]*b\C{650}a?",
    r"\C*a\C{900}(b|\C*)",
    "[-ab/.]*",
];

/// Values of which no two stretches are alike; the lengths are such that some take too much work and some do not.
static VALUES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut state = 1_u32;
    let mut value = |length: usize, alphabet: &[u8]| {
        let byte = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(alphabet[(state >> 24) as usize % alphabet.len()])
        };
        (0..length).map(byte).collect::<String>()
    };
    [10, 1500, 3000, 4000, 4001].into_iter().flat_map(|length| [value(length, b"ab"), value(length, b"aab/")]).collect()
});

/// Names in which labels come at random; the last takes too much work.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut state = 1_u32;
    let mut label = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if state >> 31 == 0 { "x." } else { "y." }
    };
    [3, 60, 2500].into_iter().map(|labels| (0..labels).map(&mut label).collect::<String>() + "b").collect()
});

/// A rule that most often rests on heavy expressions, and has no part that cannot be honoured.
fn rule(choices: &mut Choices<'_>) -> PortRule {
    let precedence = choices.below(3) as u32;
    let verdict = match choices.below(6) {
        0..=3 => RuleVerdict::Allow,
        4 => RuleVerdict::Deny,
        _ => RuleVerdict::Pass(precedence.max(1)),
    };
    let allows = verdict == RuleVerdict::Allow;
    // A deny or a pass rests on nothing else.
    let names = choices.below(4);
    PortRule {
        precedence,
        verdict,
        remotes: choices.one(&[&[][..], &[], &[1], &[2]]).to_vec(),
        server_names: if names > usize::from(allows) * 2 { heavy_names() } else { Vec::new() },
        http: (allows && choices.below(4) > 0).then(|| choices.list(2, http_rule)),
        ..PortRule::default()
    }
}

/// Each of the first has another state for every label; together they use up what one request may take, so that the last
/// stays in doubt, too.
pub(crate) fn heavy_names() -> Vec<String> {
    (0..5).map(|i| format!("**.x{}", ".*".repeat(30 + i))).chain(["**.b".to_owned()]).collect()
}

fn http_rule(choices: &mut Choices<'_>) -> HttpRule {
    let condition = choices.below(5);
    let value = ValueMatch::Regex(choices.one(&EXPRESSIONS).into());
    let heavy = HeaderMatcher { invert: condition == 1, ..HeaderMatcher::new(":path", value) };
    HttpRule {
        headers: if condition == 0 { Vec::new() } else { vec![heavy] },
        header_matches: if choices.below(3) == 0 { choices.list(2, header_match) } else { Vec::new() },
        unsupported: Vec::new(),
    }
}

/// A policy with such rules, in both forms.
pub(crate) fn world(choices: &mut Choices<'_>) -> (Snapshot, Reference) {
    world_of(vec![PortPolicy { port: 80, rules: choices.list(5, rule), ..PortPolicy::default() }])
}

/// Both forms of a policy.
pub(crate) fn world_of(ingress: Vec<PortPolicy>) -> (Snapshot, Reference) {
    let endpoints = vec![ENDPOINTS[0].clone()];
    worlds(&[Response::All(vec![NetworkPolicy { endpoint_id: 1, endpoints, ingress, egress: Vec::new() }])])
}

/// A question with a value that takes work, most often.
pub(crate) fn question(choices: &mut Choices<'_>) -> Question {
    let mut question = Question::choose(choices);
    (question.flow.port, question.flow.direction, question.flow.endpoint) = (80, Direction::Ingress, &ENDPOINTS[0]);
    let value = |choices: &mut Choices<'_>| VALUES[choices.below(VALUES.len())].as_bytes();
    if !choices.once_in(8) {
        question.path = value(choices);
    }
    if choices.once_in(4) {
        question.headers.0.push(("x", value(choices)));
    }
    if choices.once_in(2) {
        question.flow.server_name = ServerName::Name(&NAMES[choices.below(NAMES.len())]);
    }
    question
}

/// What the compiled form allows that the reference does not, or what it refuses for another reason than the budget's and the
/// reference does not; if there is any.
pub(crate) fn mistake(snapshot: &Snapshot, reference: &Reference, question: &Question) -> Option<String> {
    let (flow, request) = (&question.flow, &question.request());
    let (expected, found) = (reference.connection(flow), snapshot.evaluate_connection(flow));
    let right = match &found {
        ConnectionVerdict::Deny { reason, .. } => {
            over_budget(snapshot, *reason) || matches!(expected, ConnectionJudgement::Deny(_))
        }
        ConnectionVerdict::AllowTcp { .. } => matches!(expected, ConnectionJudgement::Tcp(_)),
        ConnectionVerdict::InspectHttp => expected == ConnectionJudgement::Http,
    };
    if !right {
        return Some(format!("connection: expected {expected:?}, compiled {found:?}"));
    }
    let secrets = secrets();
    let (expected, effects) = reference.request(flow, request, &secrets);
    let found = snapshot.evaluate_request(flow, request, &secrets);
    let right = match &found {
        Verdict::Deny { reason, .. } => over_budget(snapshot, *reason) || matches!(expected, Judgement::Deny(_)),
        Verdict::Allow { edits, .. } => {
            matches!(expected, Judgement::Allow(_)) && effects.agree_on_fields(request, edits)
        }
    };
    (!right).then(|| format!("request: expected {expected:?} with {effects:?}, compiled {found:?}"))
}
