//! Ports, ranges, the wildcard, and what empty lists mean.

use tollgate_policy::model::{PortPolicy, Protocol};

use crate::support::{World, allow, at, deny, flow, from, paths, port, range};

/// The table of interesting empty and missing cases.
#[test]
fn empty_lists() {
    let open = |n| port(n, vec![]);
    // (what, entries, [(port, remote, path, outcome)])
    type Case = (&'static str, Vec<PortPolicy>, Vec<(u16, u32, &'static str, &'static str)>);
    let cases: Vec<Case> = vec![
        ("empty direction", vec![], vec![(80, 1, "/", "NoPortRule")]),
        ("no rules", vec![open(80)], vec![(80, 1, "/", "tcp"), (81, 1, "/", "NoPortRule")]),
        ("wildcard without rules", vec![open(0)], vec![(80, 1, "/", "tcp"), (65535, 9, "/", "tcp")]),
        (
            "port not listed, wildcard with rules",
            vec![port(80, vec![from(&[1], allow())]), port(0, vec![from(&[2], allow())])],
            vec![(81, 2, "/", "tcp"), (81, 1, "/", "NoPeerRule")],
        ),
        (
            "listed and wildcard merge",
            vec![port(80, vec![from(&[1], allow())]), port(0, vec![from(&[2], allow())])],
            vec![(80, 1, "/", "tcp"), (80, 2, "/", "tcp"), (80, 3, "/", "NoPeerRule")],
        ),
        (
            "empty then rules on one port",
            vec![open(80), port(80, vec![from(&[1], paths(&["/a"]))])],
            vec![(80, 1, "/b", "http"), (80, 2, "/b", "http")],
        ),
        (
            "rules then empty on one port",
            vec![port(80, vec![from(&[1], paths(&["/a"]))]), open(80)],
            vec![(80, 1, "/b", "http"), (80, 2, "/b", "http")],
        ),
        (
            "empty wildcard below a deny",
            vec![open(0), port(80, vec![from(&[1], deny())])],
            vec![(80, 1, "/", "DenyRule"), (80, 2, "/", "tcp"), (81, 1, "/", "tcp")],
        ),
        ("empty and empty stay open", vec![open(80), open(80), open(0)], vec![(80, 1, "/", "tcp"), (1, 1, "/", "tcp")]),
        (
            "plain rule next to an HTTP rule",
            vec![port(80, vec![from(&[1], allow()), from(&[2], paths(&["/a"]))])],
            vec![
                (80, 1, "/x", "http"),
                (80, 2, "/a", "http"),
                (80, 2, "/x", "http NoHttpRule"),
                (80, 3, "/a", "NoPeerRule"),
            ],
        ),
        (
            "UDP only",
            vec![PortPolicy { protocol: Protocol::Udp, ..port(80, vec![]) }],
            vec![(80, 1, "/", "NoPortRule")],
        ),
    ];
    for (what, entries, asked) in cases {
        let world = World::ingress(entries);
        for (port, remote, path, expected) in asked {
            assert_eq!(world.both(&flow(remote, port), path), expected, "{what}: {port} {remote} {path}");
        }
    }
}

#[test]
fn overlapping_ranges_in_both_orders() {
    let entries = [
        range(1000, 2000, vec![from(&[1], allow())]),
        range(1500, 65535, vec![from(&[2], allow())]),
        port(1700, vec![from(&[3], deny()), from(&[4], allow())]),
        port(1000, vec![from(&[5], allow())]),
    ];
    let expected: &[(u16, &[u32])] = &[
        (999, &[]),
        (1000, &[1, 5]),
        (1001, &[1]),
        (1499, &[1]),
        (1500, &[1, 2]),
        (1699, &[1, 2]),
        (1700, &[1, 2, 4]),
        (1701, &[1, 2]),
        (2000, &[1, 2]),
        (2001, &[2]),
        (65535, &[2]),
    ];
    let mut order = entries.to_vec();
    for reversed in [false, true] {
        if reversed {
            order.reverse();
        }
        let world = World::ingress(order.clone());
        assert_eq!(world.quarantined(), Vec::<String>::new());
        for (port, admitted) in expected {
            let found: Vec<u32> = (1..=6).filter(|remote| world.allows(*remote, *port, "/")).collect();
            assert_eq!(found, *admitted, "port {port}, reversed {reversed}");
        }
    }
}

#[test]
fn precedence_across_an_overlap() {
    let single = port(80, vec![at(1, allow())]);
    let wide = range(70, 90, vec![deny()]);
    for entries in [vec![single.clone(), wide.clone()], vec![wide, single]] {
        let world = World::ingress(entries);
        assert!(world.allows(1, 80, "/"));
        assert!(!world.allows(1, 79, "/"));
        assert!(!world.allows(1, 81, "/"));
    }
}

#[test]
fn http_rules_of_overlapping_entries_are_alternatives() {
    let world = World::ingress(vec![range(80, 90, vec![paths(&["/a"])]), port(85, vec![paths(&["/b"])])]);
    for (port, path, expected) in [(85, "/a", true), (85, "/b", true), (84, "/a", true), (84, "/b", false)] {
        assert_eq!(world.allows(1, port, path), expected, "{port} {path}");
    }
}

#[test]
fn http_rules_of_the_wildcard_reach_listed_ports() {
    let world = World::ingress(vec![port(80, vec![from(&[1], allow())]), port(0, vec![paths(&["/a"])])]);
    assert_eq!(world.both(&flow(2, 80), "/a"), "http");
    assert_eq!(world.both(&flow(2, 80), "/b"), "http NoHttpRule");
    assert_eq!(world.both(&flow(1, 80), "/b"), "http");
}

#[test]
fn the_rule_that_is_named_is_the_one_that_decided() {
    let world = World::ingress(vec![
        range(80, 81, vec![from(&[1], paths(&["/a", "/b"]))]),
        port(80, vec![from(&[2], paths(&["/a"])), paths(&["/c"])]),
        port(90, vec![]),
    ]);
    let place = |entry: u32, rest: &str| Ok(format!("7 ingress_per_port_policies[{entry}]{rest}"));
    assert_eq!(world.request(&flow(1, 80), "/b"), place(0, ".rules[0].http_rules[1]"));
    assert_eq!(world.request(&flow(2, 80), "/a"), place(1, ".rules[0].http_rules[0]"));
    assert_eq!(world.request(&flow(3, 80), "/c"), place(1, ".rules[1].http_rules[0]"));
    assert_eq!(world.request(&flow(3, 90), "/c"), place(2, ""));
}
