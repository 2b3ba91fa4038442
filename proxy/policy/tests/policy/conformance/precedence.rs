//! `cilium_network_policy_test.cc`, `Precedence`: denies, passes and tiers, within a port and through the wildcard.
//!
//! The filter refuses what contradicts itself and keeps its last policy. Here the ports that it concerns deny.

use serde_json::{Value, json};

use super::{Update, ingress, paths, run};

#[test]
fn refused_by_the_filter() {
    // `deny` with `pass_precedence`: not even a message.
    let both = json!({"deny": true, "precedence": 1000, "pass_precedence": 100, "remote_policies": [43]});
    let resource = super::policy(&json!([{"port": 80, "rules": [both]}]), &json!([]));
    let error = tollgate_proto::json::network_policy_from_value(resource).unwrap_err().to_string();
    assert!(error.contains("pass_precedence: excludes `deny` next to it"), "{error}");

    let wide_open = json!({"port": 81});
    let denied = &["in 43,44,50,51 80 /", "in 50,51 80 /inconsistent-inherited-pass"];
    let upwards = json!({"precedence": 1000, "pass_precedence": 2000, "remote_policies": [43]});
    run(vec![(
        "CiliumNetworkPolicyTest.Precedence",
        vec![
            ingress(json!([{"port": 80, "rules": [upwards]}, wide_open]))
                .quarantines(&[
                    "42 ingress_per_port_policies[0].rules[0].pass_precedence: 2000 is above the rule's own \
                                precedence 1000",
                ])
                .denies(denied)
                .admits(&["in 43 81"]),
            ingress(json!([
                {"port": 80, "rules": [
                    {"precedence": 1000, "pass_precedence": 100, "remote_policies": [43]},
                    {"precedence": 900, "pass_precedence": 200, "remote_policies": [44]},
                    {"precedence": 1},
                ]},
                wide_open,
            ]))
            .quarantines(&[
                "42 ingress_per_port_policies[0].rules[1].pass_precedence: 200 disagrees with 100 of another \
                            pass rule in the same tier",
            ])
            .denies(denied)
            .admits(&["in 43 81"]),
            // Also where one of the two comes with the wildcard.
            ingress(json!([
                {"port": 0, "rules": [{"precedence": 900, "pass_precedence": 700, "remote_policies": [50]}]},
                {"port": 80, "rules": [
                    {"precedence": 850, "pass_precedence": 600, "remote_policies": [51]},
                    {"precedence": 500, "remote_policies": [50, 51],
                     "http_rules": paths(&["/inconsistent-inherited-pass"])},
                ]},
                wide_open,
            ]))
            .quarantines(&[
                "42 ingress_per_port_policies[1].rules[0].pass_precedence: 600 disagrees with 700 of another \
                            pass rule in the same tier",
            ])
            .denies(denied)
            .admits(&["in 43 81"]),
        ],
    )]);
}

#[test]
fn accepted_by_the_filter() {
    let updates = [defaults(), denies(), passes(), inherited(), tiers()].into_iter().flatten().collect();
    run(vec![("CiliumNetworkPolicyTest.Precedence", updates)]);
}

fn on_80(rules: Value) -> Update {
    ingress(json!([{"port": 80, "rules": rules}]))
}

/// An entry without rules next to one with.
fn defaults() -> Vec<Update> {
    let open = || json!({"port": 80});
    let pass = || json!([{"precedence": 10, "pass_precedence": 1}]);
    [
        json!([{"port": 80, "rules": [{"http_rules": paths(&["/allowed"])}]}, open()]),
        json!([{"port": 80, "end_port": 81, "rules": pass()}, open()]),
        json!([{"port": 0, "rules": pass()}, open()]),
    ]
    .map(|entries| {
        ingress(entries)
            .admits(&["in 40,43 80 /allowed", "in 43 80 /also-allowed"])
            .denies(&["in 43 81,8080 /allowed", "out 43 80 /public"])
    })
    .into()
}

const NOBODY: &[&str] = &["in 40,43 80 /allowed", "in 43 8080 /allowed", "in 43 80 /notallowed", "out 43 80 /public"];

fn denies() -> Vec<Update> {
    let deny = || json!({"precedence": 1000, "deny": true});
    let allow = || json!({"precedence": 100, "remote_policies": [43], "http_rules": paths(&["/allowed"])});
    vec![
        on_80(json!([deny(), allow()])).denies(NOBODY),
        ingress(json!([{"port": 0, "rules": [deny()]}, {"port": 80, "rules": [allow()]}])).denies(NOBODY),
    ]
}

/// A pass over a deny, for some and for all.
fn passes() -> Vec<Update> {
    let deny = || json!({"precedence": 900, "deny": true});
    let allow =
        |remotes: &[u32]| json!({"precedence": 500, "remote_policies": remotes, "http_rules": paths(&["/allowed"])});
    let pass = |remotes: &[u32]| json!({"precedence": 1000, "pass_precedence": 501, "remote_policies": remotes});
    let rest = &["in 40,45 80 /allowed", "in 43 8080 /allowed", "in 43 80 /notallowed", "out 43 80 /public"];
    vec![
        on_80(json!([pass(&[43]), deny(), allow(&[43])])).admits(&["in 43 80 /allowed"]).denies(rest),
        on_80(json!([pass(&[43]), deny(), allow(&[43, 44])]))
            .admits(&["in 43 80 /allowed"])
            .denies(rest)
            .denies(&["in 44 80 /allowed"]),
        on_80(json!([pass(&[]), deny(), allow(&[43, 44])])).admits(&["in 43,44 80 /allowed"]).denies(rest),
        on_80(json!([pass(&[43]), deny(), allow(&[])]))
            .admits(&["in 43 80 /allowed"])
            .denies(&["in 44,45 80 /allowed"]),
    ]
}

/// A pass that comes with the wildcard.
fn inherited() -> Vec<Update> {
    let allow = |precedence: u32, remotes: &[u32], path: &str| json!({"precedence": precedence, "remote_policies": remotes, "http_rules": paths(&[path])});
    let pass = |precedence: u32, below: u32, remotes: &[u32]| json!({"precedence": precedence, "pass_precedence": below, "remote_policies": remotes});
    let deny = |precedence: u32| json!({"precedence": precedence, "deny": true});
    let with = |wildcard: Value, rules: Value| {
        ingress(json!([{"port": 0, "rules": [wildcard]}, {"port": 80, "rules": rules}]))
    };
    vec![
        with(pass(1000, 501, &[43]), json!([deny(900), allow(500, &[43, 44], "/allowed")]))
            .admits(&["in 43 80 /allowed"])
            .denies(&["in 44,45 80 /allowed", "out 43 80 /public"]),
        // Next to one of the same precedence.
        with(pass(1000, 501, &[44]), json!([pass(1000, 501, &[43]), deny(900), allow(500, &[43, 44], "/allowed")]))
            .admits(&["in 43,44 80 /allowed"])
            .denies(&["in 45 80 /allowed"]),
        // Below one for the same peer.
        with(pass(900, 701, &[43]), json!([pass(1000, 701, &[43]), deny(800), allow(700, &[43, 44], "/shadowed")]))
            .admits(&["in 43 80 /shadowed"])
            .denies(&["in 44,45 80 /shadowed"]),
        // Over everything else.
        with(
            pass(2000, 700, &[]),
            json!([
                {"precedence": 1200, "deny": true, "remote_policies": [43]},
                allow(1100, &[44], "/should-skip"),
                allow(600, &[43, 44], "/after-skip"),
            ]),
        )
        .admits(&["in 43,44 80 /after-skip"])
        .denies(&["in 44 80 /should-skip", "in 45 80 /after-skip"]),
        // Down to a deny.
        with(
            pass(1000, 901, &[]),
            json!([
                {"precedence": 900, "deny": true, "remote_policies": [43]},
                allow(800, &[43], "/should-skip"),
                allow(600, &[43, 44], "/partly"),
            ]),
        )
        .admits(&["in 44 80 /partly"])
        .denies(&["in 43,45 80 /partly", "in 43 80 /should-skip"]),
    ]
}

fn tiers() -> Vec<Update> {
    let allow = |precedence: u32, remotes: &[u32], path: &str| json!({"precedence": precedence, "remote_policies": remotes, "http_rules": paths(&[path])});
    vec![
        // What is not passed meets the tier's own rules, in their order.
        on_80(json!([
            {"precedence": 1000, "pass_precedence": 701, "remote_policies": [45]},
            {"precedence": 900, "deny": true, "remote_policies": [44]},
            allow(800, &[43, 44], "/allow-a"),
            allow(800, &[43], "/allow-b"),
            allow(700, &[], "/allow-c"),
        ]))
        .admits(&["in 43 80 /allow-a", "in 43 80 /allow-b", "in 43,45 80 /allow-c"])
        .denies(&["in 44 80 /allow-a", "in 44 80 /allow-b", "in 44 80 /allow-c", "in 45 80 /allow-a"]),
        // Two tiers, both through the wildcard.
        ingress(json!([
            {"port": 0, "rules": [
                {"precedence": 1300, "pass_precedence": 1000, "remote_policies": [41]},
                {"precedence": 900, "pass_precedence": 700, "remote_policies": [42]},
            ]},
            {"port": 80, "rules": [{"precedence": 750, "deny": true}, allow(600, &[41, 42, 43], "/multi-tier")]},
        ]))
        .admits(&["in 42 80 /multi-tier"])
        .denies(&["in 41,43 80 /multi-tier"]),
    ]
}
