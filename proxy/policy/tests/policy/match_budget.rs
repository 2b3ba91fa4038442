//! Expressions whose automaton has another state for every byte of a hostile value.

use tollgate_policy::model::{HttpRule, PortRule, ValueMatch};
use tollgate_policy::{DenyReason, NoHeaders, Secrets, Verdict};

use crate::support::{World, exact, flow, get, header, port};

/// A value of which no two stretches are alike.
fn hostile(length: usize) -> String {
    let mut state = 1_u32;
    let byte = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if state >> 31 == 0 { 'a' } else { '-' }
    };
    format!("/v1/{}", (0..length).map(byte).collect::<String>())
}

fn judge(rules: Vec<ValueMatch>, invert: bool, path: &str) -> Result<(), DenyReason> {
    let http = rules.into_iter().map(|value| {
        let mut matcher = header(":path", value);
        matcher.invert = invert;
        HttpRule { headers: vec![matcher], ..HttpRule::default() }
    });
    let world = World::ingress(vec![port(80, vec![PortRule { http: Some(http.collect()), ..PortRule::default() }])]);
    match world.0.evaluate_request(&flow(1, 80), &get(path, &NoHeaders), &Secrets::default()) {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny { reason, .. } => Err(reason),
    }
}

fn regexes(pattern: &str, count: usize) -> Vec<ValueMatch> {
    (0..count).map(|i| ValueMatch::Regex(format!("{pattern}{i}").into())).collect()
}

#[test]
fn what_takes_too_much_work_is_refused() {
    let path = hostile(60_000);
    for (pattern, count) in [("/.*a.{200}x", 1), ("/.*a.{200}x", 20), ("/v1/.*-.{36}/t", 1), ("/v1/.*-.{36}/t", 100)] {
        assert_eq!(judge(regexes(pattern, count), false, &path), Err(DenyReason::MatchBudget), "{count} x {pattern}");
        assert_eq!(
            judge(regexes(pattern, count), true, &path),
            Err(DenyReason::MatchBudget),
            "not {count} x {pattern}"
        );
    }
}

#[test]
fn what_is_known_still_decides() {
    let path = hostile(60_000);
    let mut rules = regexes("/v1/.*-.{36}/t", 10);
    rules.push(exact(&path));
    assert_eq!(judge(rules, false, &path), Ok(()));
}

#[test]
fn ordinary_values_need_no_more() {
    let rules = || regexes("/v1/.*-.{36}/t", 100);
    let path = format!("/v1/a-b-{}/t42", "x".repeat(36));
    assert_eq!(judge(rules(), false, &path), Ok(()), "{path}");
    // The first value that a large set sees.
    assert_eq!(judge(regexes("/api/v1/svc.*/items/[0-9]+/", 5000), false, "/api/v1/svc7/items/42/4999"), Ok(()));
}
