//! Expressions whose automaton has another state for every byte of a hostile value.

use tollgate_policy::model::{HeaderMatch, HttpRule, MatchAction, MismatchAction, PortRule, ValueMatch};
use tollgate_policy::{ConnectionVerdict, DenyReason, Flow, Headers, NoHeaders, Secrets, ServerName, Verdict};

use crate::support::{World, allow, at, deny, exact, flow, get, header, port};

struct Fields<'a>(&'a [(&'a str, &'a str)]);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.0.each(name, visit);
    }
}

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

/// A rule that is known to admit could stand behind one that denies, or takes a field out.
#[test]
fn what_is_known_does_not_decide_alone() {
    let path = hostile(60_000);
    let mut rules = regexes("/v1/.*-.{36}/t", 10);
    rules.push(exact(&path));
    assert_eq!(judge(rules, false, &path), Err(DenyReason::MatchBudget));
}

#[test]
fn no_edit_is_skipped() {
    let mut strip = HeaderMatch::new("x-admin", "");
    (strip.on_match, strip.on_mismatch) = (MatchAction::Delete, MismatchAction::Continue);
    let regex = header(":path", ValueMatch::Regex("/v1/.*-.{36}/t.*".into()));
    let edits = HttpRule { headers: vec![regex], header_matches: vec![strip], ..HttpRule::default() };
    let rule = PortRule { http: Some(vec![edits, HttpRule::default()]), ..PortRule::default() };
    let world = World::ingress(vec![port(80, vec![rule])]);
    let headers: &[(&str, &str)] = &[("x-admin", "1")];
    let headers = Fields(headers);
    let verdict = |path: &str| world.0.evaluate_request(&flow(1, 80), &get(path, &headers), &Secrets::default());
    for length in [10, 500, 2000, 8000, 60_000] {
        match verdict(&format!("{}-{}/t", hostile(length), "x".repeat(36))) {
            Verdict::Allow { edits, .. } => assert_eq!(edits.iter().count(), 1, "{length}"),
            Verdict::Deny { reason, .. } => {
                assert_eq!((reason, length > 500), (DenyReason::MatchBudget, true), "{length}")
            }
        }
    }
}

/// A name that takes too much work to compare must not dodge what is denied.
#[test]
fn no_server_name_dodges_a_deny() {
    let word = |i: usize| format!("{}{}z", char::from(b'a' + (i / 20 % 20) as u8), char::from(b'a' + (i % 20) as u8));
    let patterns = (0..400).map(|i| format!("**.{}.**.com", word(i)));
    let named = patterns.chain(["evil.**".to_owned()]).collect();
    let denies = PortRule { server_names: named, ..at(10, deny()) };
    let world = World::ingress(vec![port(443, vec![denies, allow()])]);
    for labels in [1, 60, 1000] {
        let name = format!("evil.{}", (0..labels).map(|i| word(i * 7)).collect::<Vec<_>>().join("."));
        let flow = Flow { server_name: ServerName::Name(&name), ..flow(1, 443) };
        let verdict = world.0.evaluate_connection(&flow);
        assert!(matches!(verdict, ConnectionVerdict::Deny { .. }), "{labels} labels: {verdict:?}");
    }
}

#[test]
fn ordinary_values_need_no_more() {
    let rules = || regexes("/v1/.*-.{36}/t", 100);
    let path = format!("/v1/a-b-{}/t42", "x".repeat(36));
    assert_eq!(judge(rules(), false, &path), Ok(()), "{path}");
    // The first value that a large set sees.
    assert_eq!(judge(regexes("/api/v1/svc.*/items/[0-9]+/", 5000), false, "/api/v1/svc7/items/42/4999"), Ok(()));
}
