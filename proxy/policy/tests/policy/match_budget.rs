//! Expressions whose automaton has another state for every byte of a hostile value.

use tollgate_policy::model::{HeaderMatch, HttpRule, MatchAction, MismatchAction, PortRule, ValueMatch};
use tollgate_policy::{
    ConnectionVerdict, DenyReason, Flow, Headers, NoHeaders, RuleOutcome, Secrets, ServerName, Verdict,
};

use crate::support::{World, allow, at, deny, exact, flow, from, get, header, port};

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

/// What is in doubt admits nothing, and takes nothing from what is known to admit.
#[test]
fn what_is_known_admits_behind_an_allow_in_doubt() {
    let path = hostile(60_000);
    let mut rules = regexes("/v1/.*-.{36}/t", 10);
    rules.push(exact(&path));
    assert_eq!(judge(rules, false, &path), Ok(()));
}

/// What one header may take, many may not each: a request has one budget.
#[test]
fn headers_share_what_may_be_done() {
    let value = hostile(800);
    let judge = |count: usize| {
        let names: Vec<String> = (0..count).map(|i| format!("x-{i}")).collect();
        let regex = |name| header(name, ValueMatch::Regex("/v1/.*-.{36}/t".into()));
        let http = names.iter().map(|name| HttpRule { headers: vec![regex(name)], ..HttpRule::default() });
        let rule = PortRule { http: Some(http.collect()), ..PortRule::default() };
        let world = World::ingress(vec![port(80, vec![rule])]);
        let fields: Vec<(&str, &str)> = names.iter().map(|name| (&**name, &*value)).collect();
        match world.0.evaluate_request(&flow(1, 80), &get("/", &Fields(&fields)), &Secrets::default()) {
            Verdict::Allow { .. } => None,
            Verdict::Deny { reason, .. } => Some(reason),
        }
    };
    assert_eq!(judge(1), Some(DenyReason::NoHttpRule));
    assert_eq!(judge(60), Some(DenyReason::MatchBudget));
}

/// A rule with one expression on the path.
fn on_path(expression: &str) -> PortRule {
    let headers = vec![header(":path", ValueMatch::Regex(expression.into()))];
    PortRule { http: Some(vec![HttpRule { headers, ..HttpRule::default() }]), ..PortRule::default() }
}

#[test]
fn expressions_for_others_refuse_nobody() {
    let path = hostile(60_000);
    let others = (0..50).map(|i| from(&[2], on_path(&format!("/v1/.*-.{{36}}/t{i}"))));
    let mine = [from(&[1], on_path("/v1/[-a]+")), from(&[3], on_path("/v2/.*"))];
    let world = World::ingress(vec![port(80, others.chain(mine).collect())]);
    assert_eq!(world.both(&flow(1, 80), &path), "http");
    assert_eq!(world.both(&flow(2, 80), &path), "http MatchBudget");
    assert_eq!(world.both(&flow(3, 80), &path), "http NoHttpRule");
}

/// Nor do those that other conditions of their rule leave aside.
#[test]
fn expressions_for_other_requests_refuse_nobody() {
    let path = hostile(60_000);
    let mut heavy = on_path("/v1/.*-.{36}/t");
    heavy.http.as_mut().unwrap()[0].headers.push(header(":method", exact("PUT")));
    let mut inverted = on_path("/v2/.*");
    inverted.http.as_mut().unwrap()[0].headers[0].invert = true;
    let world = World::ingress(vec![port(80, vec![heavy, inverted])]);
    assert_eq!(world.both(&flow(1, 80), &path), "http");
}

#[test]
fn names_for_others_refuse_nobody() {
    let word = |i: usize| format!("{}{}z", char::from(b'a' + (i / 20 % 20) as u8), char::from(b'a' + (i % 20) as u8));
    let named = |names: Vec<String>, rule| PortRule { server_names: names, ..rule };
    let others = named((0..400).map(|i| format!("**.{}.**.com", word(i))).collect(), from(&[2], at(10, deny())));
    let mine = named(vec!["**.org".to_owned()], from(&[1], allow()));
    let world = World::ingress(vec![port(443, vec![others, mine, from(&[2], allow())])]);
    let name = format!("{}.org", (0..1000).map(|i| word(i * 7)).collect::<Vec<_>>().join("."));
    let ask = |remote| Flow { server_name: ServerName::Name(&name), ..flow(remote, 443) };
    assert_eq!(world.connection(&ask(1)), "tcp");
    assert_eq!(world.connection(&ask(2)), "MatchBudget");
}

#[test]
fn a_deny_behind_an_allow_in_doubt_refuses_and_the_doubt_is_named() {
    let path = hostile(60_000);
    let world = World::ingress(vec![port(80, vec![at(2, on_path("/v1/.*-.{36}/t")), deny()])]);
    let verdict = world.0.evaluate_request(&flow(1, 80), &get(&path, &NoHeaders), &Secrets::default());
    let Verdict::Deny { reason, nearest: Some(nearest), .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(reason, DenyReason::MatchBudget);
    let expected = ":path is not comparable, within the work that one value may cause, with regex \"/v1/.*-.{36}/t\" \
                    (7 ingress_per_port_policies[0].rules[0].http_rules[0])";
    assert_eq!(nearest.to_string(), expected);
    let explained = world.0.explain(&flow(1, 80), Some(&get(&path, &NoHeaders)), &Secrets::default());
    assert_eq!(explained.policies[0].rules[0].outcome, RuleOutcome::Undecided);
    // Without the doubt it is an ordinary denial.
    assert_eq!(world.both(&flow(1, 80), "/v1/x"), "http DenyRule");
}

/// What the one in doubt would admit, a rule of lower precedence does not edit.
#[test]
fn no_edit_is_made_in_doubt() {
    let path = hostile(60_000);
    let add = HeaderMatch { on_mismatch: MismatchAction::Add, ..HeaderMatch::new("x", "v") };
    let look = HeaderMatch { on_mismatch: MismatchAction::Continue, ..HeaderMatch::new("x", "v") };
    let with = |header_match: &HeaderMatch, mut rule: PortRule| {
        rule.http.as_mut().unwrap()[0].header_matches.push(header_match.clone());
        rule
    };
    let any = || PortRule { http: Some(vec![HttpRule::default()]), ..PortRule::default() };
    let heavy = || on_path("/v1/.*-.{36}/t");
    // (rules, the number of edits when it is allowed)
    let cases = [
        (vec![at(2, heavy()), at(1, with(&add, any()))], None),
        (vec![at(2, heavy()), at(1, with(&look, any()))], Some(0)),
        (vec![at(2, heavy()), at(2, with(&add, any()))], Some(1)),
        (vec![at(2, with(&add, any())), at(1, with(&add, heavy()))], Some(1)),
        (vec![at(2, with(&add, any())), at(2, with(&add, heavy()))], None),
        (vec![at(2, with(&look, heavy())), at(2, any())], Some(0)),
    ];
    for (rules, expected) in cases {
        let world = World::ingress(vec![port(80, rules.clone())]);
        let found = match world.0.evaluate_request(&flow(1, 80), &get(&path, &NoHeaders), &Secrets::default()) {
            Verdict::Allow { edits, .. } => Some(edits.iter().count()),
            Verdict::Deny { reason, .. } => {
                assert_eq!(reason, DenyReason::MatchBudget, "{rules:?}");
                None
            }
        };
        assert_eq!(found, expected, "{rules:?}");
    }
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
