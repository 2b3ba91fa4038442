//! Nearest misses and full explanations.

use tollgate_policy::model::{HttpRule, PortRule, ValueMatch};
use tollgate_policy::{NoHeaders, RuleOutcome, Secrets, Verdict};

use crate::support::{World, allow, at, deny, exact, flow, from, get, header, pass, paths, port};

fn miss(rules: Vec<PortRule>, remote: u32, path: &str) -> String {
    let world = World::ingress(vec![port(80, rules)]);
    match world.0.evaluate_request(&flow(remote, 80), &get(path, &NoHeaders), &Secrets::default()) {
        Verdict::Deny { reason, nearest, .. } => {
            let place = |text: String| text.replace("7 ingress_per_port_policies[0].", "");
            format!("{reason:?}: {}", nearest.map_or_else(|| "-".to_owned(), |n| place(n.to_string())))
        }
        allowed => format!("{allowed:?}"),
    }
}

#[test]
fn nearest_miss() {
    let http = |rules: &[&[(&str, &str)]]| PortRule {
        http: Some(
            rules
                .iter()
                .map(|rule| HttpRule {
                    headers: rule.iter().map(|(name, value)| header(name, exact(value))).collect(),
                    ..HttpRule::default()
                })
                .collect(),
        ),
        ..PortRule::default()
    };
    let three =
        || http(&[&[(":path", "/x"), (":method", "PUT")], &[(":path", "/a"), (":method", "PUT")], &[(":path", "/y")]]);
    let cases = [
        (vec![three()], 1, "NoHttpRule: :path matched, :method is not exact \"PUT\" (rules[0].http_rules[1])"),
        // A rule for this peer is nearer than one for another, however much of that one holds.
        (
            vec![from(&[2], paths(&["/a"])), paths(&["/b"])],
            1,
            "NoHttpRule: :path is not exact \"/b\" (rules[1].http_rules[0])",
        ),
        (vec![from(&[3, 2], allow())], 1, "NoPeerRule: remote_policies is not one of [2, 3] (rules[0])"),
        (vec![from(&[1], deny()), allow()], 1, "DenyRule: remote_policies matched, verdict is not allow (rules[0])"),
        (vec![deny()], 1, "DenyRule: verdict is not allow (rules[0])"),
        (vec![pass(3, 1), at(2, allow())], 1, "NoPeerRule: verdict is not reached: a pass rule skips it (rules[1])"),
        (vec![pass(3, 1)], 1, "NoPeerRule: -"),
    ];
    for (rules, remote, expected) in cases {
        assert_eq!(miss(rules.clone(), remote, "/a"), expected, "{rules:?}");
    }
    let mut inverted = header("x", ValueMatch::Regex("a.*".into()));
    inverted.invert = true;
    let rule = PortRule {
        http: Some(vec![HttpRule { headers: vec![inverted], ..HttpRule::default() }]),
        name: "no-a".to_owned(),
        ..PortRule::default()
    };
    assert_eq!(miss(vec![rule], 1, "/a"), "NoHttpRule: x is not anything but regex \"a.*\" (rules[0].http_rules[0])");
}

#[test]
fn every_rule_is_accounted_for() {
    let rules = vec![
        from(&[2], at(9, deny())),
        from(&[1], pass(8, 5)),
        at(7, paths(&["/a"])),
        at(4, paths(&["/b", "/a"])),
        at(3, deny()),
    ];
    let world = World::ingress(vec![port(80, rules)]);
    let explained = world.0.explain(&flow(1, 80), Some(&get("/a", &NoHeaders)), &Secrets::default());
    let outcomes: Vec<_> =
        explained.policies[0].rules.iter().map(|r| (r.rule.rule, r.rule.http_rule, r.outcome)).collect();
    assert_eq!(
        outcomes,
        [
            (Some(0), None, RuleOutcome::NotApplicable),
            (Some(1), None, RuleOutcome::Passed),
            (Some(2), Some(0), RuleOutcome::Skipped),
            (Some(3), Some(0), RuleOutcome::NotApplicable),
            (Some(3), Some(1), RuleOutcome::Decided),
            (Some(4), None, RuleOutcome::NotReached),
        ]
    );
    let failed = &explained.policies[0].rules[0].predicates[0];
    assert_eq!((&*failed.field, &*failed.expected, failed.matched), ("remote_policies", "one of [2]", false));
    assert!(matches!(explained.request, Some(Verdict::Allow { .. })));
    assert_eq!(world.0.explain(&flow(1, 81), None, &Secrets::default()).policies[0].rules.len(), 0);
}

/// Far more rules than are looked at: the nearest is found by what it shares with the request.
#[test]
fn nearest_miss_among_a_thousand() {
    let rule = |i: u32| HttpRule {
        headers: vec![
            header(":method", exact(if i.is_multiple_of(2) { "PUT" } else { "GET" })),
            header(":path", exact(&format!("/{i}"))),
        ],
        ..HttpRule::default()
    };
    let one = || PortRule { http: Some((0..1000).map(rule).collect()), ..PortRule::default() };
    let many = || (0..1000).map(|i| PortRule { http: Some(vec![rule(i)]), remotes: vec![i, 5], ..PortRule::default() });
    let wanted = ":method is not exact \"PUT\"";
    assert_eq!(miss(vec![one()], 1, "/776"), format!("NoHttpRule: :path matched, {wanted} (rules[0].http_rules[776])"));
    assert_eq!(
        miss(vec![one()], 1, "/x"),
        "NoHttpRule: :method matched, :path is not exact \"/1\" (rules[0].http_rules[1])"
    );
    // Of rules for many peers those for this one.
    let matched = "remote_policies matched, :path matched";
    assert_eq!(
        miss(many().collect(), 5, "/776"),
        format!("NoHttpRule: {matched}, {wanted} (rules[776].http_rules[0])")
    );
    assert_eq!(
        miss(many().collect(), 776, "/775"),
        format!("NoHttpRule: remote_policies matched, {wanted} (rules[776].http_rules[0])")
    );
}
