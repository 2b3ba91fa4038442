//! Precedence, deny, and pass rules with their tiers.

use crate::support::{World, allow, at, deny, flow, from, pass, paths, port, range};
use tollgate_policy::model::{PortPolicy, PortRule};

fn outcome(rules: Vec<PortRule>, remote: u32, path: &str) -> String {
    World::ingress(vec![port(80, rules)]).both(&flow(remote, 80), path)
}

#[test]
fn deny_and_allow() {
    // (rules, outcome for remote 1 on /a)
    let cases: Vec<(Vec<PortRule>, &str)> = vec![
        (vec![allow(), deny()], "DenyRule"),
        (vec![at(1, allow()), deny()], "tcp"),
        (vec![allow(), at(1, deny())], "DenyRule"),
        (vec![allow(), at(1, from(&[2], deny()))], "tcp"),
        (vec![from(&[1], deny()), paths(&["/a"])], "DenyRule"),
        (vec![at(2, paths(&["/a"])), at(1, deny())], "http"),
        (vec![at(2, paths(&["/b"])), at(1, allow())], "http"),
        (vec![at(2, paths(&["/b"]))], "http NoHttpRule"),
    ];
    for (rules, expected) in cases {
        let mut reversed = rules.clone();
        reversed.reverse();
        assert_eq!(outcome(rules.clone(), 1, "/a"), expected, "{rules:?}");
        assert_eq!(outcome(reversed, 1, "/a"), expected, "reversed {rules:?}");
    }
}

/// A request can fall through to a deny that its connection, admitted by a rule above, never reaches.
#[test]
fn a_deny_below_an_http_rule_refuses_requests_only() {
    let world = World::ingress(vec![port(80, vec![at(2, paths(&["/b"])), at(1, deny())])]);
    assert_eq!(world.connection(&flow(1, 80)), "http");
    assert!(world.request(&flow(1, 80), "/b").is_ok());
    assert_eq!(world.request(&flow(1, 80), "/a"), Err(tollgate_policy::DenyReason::DenyRule));
}

#[test]
fn pass_skips_to_below_its_target() {
    let tiers = |pass_remotes: &[u32]| {
        vec![from(pass_remotes, pass(10, 5)), at(7, deny()), at(5, deny()), at(4, from(&[1], allow())), at(3, deny())]
    };
    assert_eq!(outcome(tiers(&[1, 2]), 1, "/"), "tcp");
    assert_eq!(outcome(tiers(&[1, 2]), 2, "/"), "DenyRule");
    assert_eq!(outcome(tiers(&[9]), 1, "/"), "DenyRule");
    // Deny and allow of the same precedence come before the pass.
    assert_eq!(outcome(vec![pass(10, 5), at(10, deny()), at(1, allow())], 1, "/"), "DenyRule");
    assert_eq!(outcome(vec![pass(10, 5), at(10, allow()), at(1, deny())], 1, "/"), "tcp");
    // Equal to its own precedence is accepted, and skips the rest of that precedence.
    assert_eq!(outcome(vec![pass(10, 10), at(1, allow())], 1, "/"), "tcp");
}

#[test]
fn nothing_but_pass_rules_denies() {
    assert_eq!(outcome(vec![pass(2, 1)], 1, "/"), "NoPeerRule");
    let world = World::ingress(vec![port(80, vec![pass(2, 1)]), port(0, vec![from(&[1], allow())])]);
    assert!(world.allows(1, 80, "/"));
    assert!(!world.allows(2, 80, "/"));
    assert!(world.allows(1, 81, "/"));
}

#[test]
fn contradictory_tiers_deny_their_ports() {
    let above = |rule| vec![port(80, vec![rule, allow()]), port(81, vec![allow()])];
    let disagree = vec![range(80, 80, vec![pass(10, 5), from(&[3], pass(8, 4)), allow()]), port(81, vec![allow()])];
    // The second pass comes with the wildcard, and so reaches every listed port.
    let inherited: Vec<PortPolicy> = vec![port(80, vec![pass(10, 5)]), port(0, vec![pass(8, 4), at(1, allow())])];
    let cases = [
        (above(pass(1, 2)), "rules[0].pass_precedence: 2 is above the rule's own precedence 1", true),
        (disagree, "rules[1].pass_precedence: 4 disagrees with 5 of another pass rule in the same tier", true),
        (inherited, "rules[0].pass_precedence: 4 disagrees with 5 of another pass rule in the same tier", true),
    ];
    for (entries, reason, other_port) in cases {
        let world = World::ingress(entries);
        assert_eq!(world.both(&flow(1, 80), "/"), "Quarantined", "{reason}");
        assert_eq!(world.allows(1, 81, "/"), other_port, "{reason}");
        let quarantined = world.quarantined();
        assert!(quarantined.len() == 1 && quarantined[0].ends_with(reason), "{quarantined:?}");
    }
    // A lower tier may pass elsewhere.
    assert_eq!(outcome(vec![pass(10, 5), pass(4, 2), at(3, deny()), at(1, allow())], 1, "/"), "tcp");
}
