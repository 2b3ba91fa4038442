//! Properties of generated policies: the compiled form against the reference, and what no change of a policy may do.
//!
//! `TOLLGATE_PROPERTY_CASES` is how many cases each property gets; without it some thousands, which take seconds. For a
//! night: `TOLLGATE_PROPERTY_CASES=1000000 cargo test --release -p tollgate-policy --test policy properties`.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use tollgate_policy::model::{
    HeaderMatcher, MatchAction, MismatchAction, NetworkPolicy, PortPolicy, PortRule, RuleVerdict, ValueMatch,
};
use tollgate_policy::reference::{Judgement, Reference};
use tollgate_policy::{DenyReason, Snapshot, Verdict};

use crate::generate::heavy;
use crate::generate::{Choices, Question, Response, difference, entries, history, rule, secrets, worlds};
use crate::support::{ENDPOINT, policy};

/// Asked of each world.
const QUESTIONS: usize = 8;

/// Cases of a property that has this share of an ordinary run.
pub(crate) fn cases(share: u32) -> u32 {
    std::env::var("TOLLGATE_PROPERTY_CASES").map_or(share, |cases| cases.parse().unwrap())
}

pub(crate) fn config(share: u32) -> ProptestConfig {
    ProptestConfig { cases: cases(share), failure_persistence: None, ..ProptestConfig::default() }
}

pub(crate) fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), most / 3..most)
}

pub(crate) fn only(entries: &[PortPolicy]) -> NetworkPolicy {
    policy(7, &[ENDPOINT], entries.to_vec())
}

pub(crate) fn questions(bytes: &[u8]) -> Vec<Question> {
    let mut choices = Choices::new(bytes);
    (0..QUESTIONS).map(|_| Question::choose(&mut choices)).collect()
}

/// Without the header matches that change a request: what these leave of it, the next rules see, so that order matters and
/// a rule that is taken away may take a change along that another rule refused.
fn unchanging(mut entries: Vec<PortPolicy>) -> Vec<PortPolicy> {
    let rules = entries.iter_mut().flat_map(|entry| &mut entry.rules);
    for http_rule in rules.filter_map(|rule| rule.http.as_mut()).flatten() {
        http_rule.header_matches.retain(|header_match| {
            header_match.on_match != MatchAction::Delete
                && matches!(header_match.on_mismatch, MismatchAction::Continue | MismatchAction::Fail)
        });
    }
    entries
}

/// Whether the connection, and whether the request is allowed, and why not.
type Outcome = (bool, Result<(), DenyReason>);

fn outcomes(entries: &[PortPolicy], questions: &[Question]) -> Vec<Outcome> {
    let (snapshot, _) = worlds(&[Response::All(vec![only(entries)])]);
    let outcome = |question: &Question| {
        let connection = snapshot.evaluate_connection(&question.flow);
        let request = match snapshot.evaluate_request(&question.flow, &question.request(), &secrets()) {
            Verdict::Allow { .. } => Ok(()),
            Verdict::Deny { reason, .. } => Err(reason),
        };
        (!matches!(connection, tollgate_policy::ConnectionVerdict::Deny { .. }), request)
    };
    questions.iter().map(outcome).collect()
}

/// Whether `after` allows something that `before` does not.
fn allows_more(before: &[PortPolicy], after: &[PortPolicy], questions: &[Question]) -> bool {
    let pairs = outcomes(before, questions).into_iter().zip(outcomes(after, questions));
    let more = |(before, after): (Outcome, Outcome)| (after.0 && !before.0) || (after.1.is_ok() && before.1.is_err());
    pairs.into_iter().any(more)
}

proptest! {
    #![proptest_config(config(12_000))]

    #[test]
    fn compiled_equals_reference(world in bytes(240), asked in bytes(120)) {
        let history = history(&mut Choices::new(&world));
        let (snapshot, reference) = worlds(&history);
        for question in questions(&asked) {
            let differs = difference(&snapshot, &reference, &question.flow, &question.request());
            prop_assert_eq!(differs, None, "{:?}", question.flow);
        }
    }
}

proptest! {
    #![proptest_config(config(4_000))]

    #[test]
    fn a_further_deny_never_allows_more(
        world in bytes(160),
        added in bytes(30),
        asked in bytes(120),
        place in any::<Index>(),
    ) {
        let before = unchanging(entries(&mut Choices::new(&world)));
        let mut choices = Choices::new(&added);
        let deny = PortRule { verdict: RuleVerdict::Deny, ..rule(&mut choices) };
        let mut after = before.clone();
        if after.is_empty() || choices.once_in(4) {
            after.push(PortPolicy { port: choices.one(&[80, 0, 81]), rules: vec![deny], ..PortPolicy::default() });
        } else {
            let at = place.index(after.len());
            after[at].rules.push(deny);
        }
        prop_assert!(!allows_more(&before, &after, &questions(&asked)), "{:?}", after);
    }

    #[test]
    fn one_allow_less_never_allows_more(world in bytes(160), asked in bytes(120), place in any::<Index>()) {
        let before = unchanging(entries(&mut Choices::new(&world)));
        let mut after = before.clone();
        if !after.is_empty() {
            let at = place.index(after.len());
            match after[at].rules.iter().position(|rule| rule.verdict == RuleVerdict::Allow) {
                // An entry without rules would allow everything.
                Some(only) if after[at].rules.len() > 1 => drop(after[at].rules.remove(only)),
                Some(_) => drop(after.remove(at)),
                None => {}
            }
        }
        prop_assert!(!allows_more(&before, &after, &questions(&asked)), "{:?}", after);
    }

    #[test]
    fn the_order_of_rules_never_changes_a_verdict(world in bytes(160), asked in bytes(120), order in bytes(20)) {
        let entries = unchanging(entries(&mut Choices::new(&world)));
        let mut shuffled = entries.clone();
        let mut choices = Choices::new(&order);
        shuffle(&mut shuffled, &mut choices);
        for entry in &mut shuffled {
            shuffle(&mut entry.rules, &mut choices);
        }
        let questions = questions(&asked);
        prop_assert_eq!(outcomes(&entries, &questions), outcomes(&shuffled, &questions));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 50, ..config(250) })]

    /// In particular no deny in force is dodged by a value that takes too much work.
    #[test]
    fn a_budget_only_ever_refuses(world in bytes(120), asked in bytes(60)) {
        let (snapshot, reference) = heavy::world(&mut Choices::new(&world));
        let mut choices = Choices::new(&asked);
        for _ in 0..3 {
            let question = heavy::question(&mut choices);
            prop_assert_eq!(heavy::mistake(&snapshot, &reference, &question), None, "{:?}", question.flow);
        }
    }

    #[test]
    fn heavy_expressions_for_others_change_nothing(world in bytes(200), added in bytes(30), asked in bytes(60)) {
        let mut entries = entries(&mut Choices::new(&world));
        let mut choices = Choices::new(&added);
        // Ports whose rules were all for other peers are ports with rules, and an entry without rules allows everything.
        for entry in entries.iter_mut().filter(|entry| !entry.rules.is_empty()) {
            // No pass: of another tier, it may contradict what is there.
            let added = PortRule { verdict: RuleVerdict::Allow, ..for_nobody(&mut choices) };
            let at = choices.below(entry.rules.len() + 1);
            entry.rules.insert(at, added);
        }
        let (snapshot, reference) = heavy::world_of(entries);
        let mut choices = Choices::new(&asked);
        for _ in 0..3 {
            let question = heavy::question(&mut choices);
            let (flow, request) = (&question.flow, &question.request());
            let differs = difference(&snapshot, &reference, flow, request);
            prop_assert_eq!(differs, None, "{:?}", flow);
            let verdict = snapshot.evaluate_request(flow, request, &secrets());
            let refused = matches!(verdict, Verdict::Deny { reason: DenyReason::MatchBudget, .. });
            prop_assert!(!refused, "{:?}: {:?}", flow, verdict);
        }
    }
}

/// A rule for a peer that nobody is, with heavy expressions on everything.
fn for_nobody(choices: &mut Choices<'_>) -> PortRule {
    let mut rule = rule(choices);
    rule.remotes = vec![4711];
    rule.unsupported.clear();
    rule.server_names = heavy::heavy_names();
    for http_rule in rule.http.iter_mut().flatten() {
        http_rule.unsupported.clear();
        http_rule.header_matches.clear();
        let heavy = |name| HeaderMatcher::new(name, ValueMatch::Regex(heavy::EXPRESSIONS[0].into()));
        http_rule.headers = vec![heavy(":path"), heavy("x")];
    }
    rule
}

/// What the budget had to do with the answer to a question.
fn doubt(snapshot: &Snapshot, reference: &Reference, question: &Question) -> &'static str {
    let expected = reference.request(&question.flow, &question.request(), &secrets()).0;
    match (snapshot.evaluate_request(&question.flow, &question.request(), &secrets()), expected) {
        (Verdict::Allow { rule, .. }, Judgement::Allow(expected)) if rule == expected => "allowed",
        (Verdict::Allow { .. }, _) => "allowed behind a doubt",
        (Verdict::Deny { reason: DenyReason::MatchBudget, .. }, Judgement::Allow(_)) => "refused by the budget alone",
        (Verdict::Deny { reason: DenyReason::MatchBudget, .. }, _) => "refused by the budget, too",
        (Verdict::Deny { .. }, _) => "denied",
    }
}

/// Heavy worlds that never exceed a budget would prove nothing.
#[test]
fn heavy_worlds_give_every_outcome() {
    let mut random = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..250 {
        let mut next = |most| bytes(most).new_tree(&mut random).unwrap().current();
        let (world, asked) = (next(120), next(60));
        let (snapshot, reference) = heavy::world(&mut Choices::new(&world));
        let mut choices = Choices::new(&asked);
        for _ in 0..3 {
            let question = heavy::question(&mut choices);
            *seen.entry(doubt(&snapshot, &reference, &question)).or_insert(0) += 1;
        }
    }
    let all =
        ["allowed", "allowed behind a doubt", "denied", "refused by the budget alone", "refused by the budget, too"];
    let often: Vec<&str> = seen.iter().filter(|(_, count)| **count >= 3).map(|(outcome, _)| *outcome).collect();
    assert_eq!(often, all, "{seen:?}");
    println!("{seen:?}");
}

fn shuffle<T>(list: &mut [T], choices: &mut Choices<'_>) {
    for last in (1..list.len()).rev() {
        list.swap(last, choices.below(last + 1));
    }
}

/// A generator that only ever denies would make every property hold.
#[test]
fn generated_policies_give_every_outcome() {
    let mut random = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..4000 {
        let mut next = |most| bytes(most).new_tree(&mut random).unwrap().current();
        let (world, asked) = (next(220), next(120));
        let (_, reference) = worlds(&history(&mut Choices::new(&world)));
        for question in questions(&asked) {
            let outcome = match reference.request(&question.flow, &question.request(), &secrets()).0 {
                Judgement::Allow(rule) => format!("allow http {}", rule.http_rule.is_some()),
                Judgement::Deny(denial) => format!("{:?}", denial.reason),
            };
            *seen.entry(outcome).or_insert(0) += 1;
        }
    }
    let outcomes: Vec<(&str, bool)> = seen.iter().map(|(outcome, count)| (outcome.as_str(), *count > 200)).collect();
    let expected =
        ["DenyRule", "NoHttpRule", "NoPeerRule", "NoPolicy", "NoPortRule", "Quarantined", "allow http false"];
    let expected: Vec<(&str, bool)> = expected.into_iter().chain(["allow http true"]).map(|o| (o, true)).collect();
    assert_eq!(outcomes, expected, "{seen:?}");
}
