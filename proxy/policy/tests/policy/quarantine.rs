//! What cannot be honoured: its most restrictive reading, by name, and the rest enforced.

use tollgate_policy::model::{HttpRule, PortPolicy, PortRule, Protocol, Unsupported, ValueMatch};
use tollgate_policy::{Effort, Limits, Snapshot};

use crate::support::{ENDPOINT, World, allow, at, deny, flow, from, header, pass, paths, policy, port, range};

fn only(world: &World) -> String {
    let [only] = &world.quarantined()[..] else {
        panic!("{:?}", world.quarantined());
    };
    only.strip_prefix("7 ingress_per_port_policies").unwrap().to_owned()
}

fn unsupported(rule: PortRule) -> PortRule {
    let part = Unsupported { element: "l7_proto".into(), reason: "no parser".into() };
    PortRule { unsupported: vec![part], ..rule }
}

#[test]
fn a_range_that_makes_no_sense_grants_nothing() {
    let cases = [
        (80, 60, "80-60: the range ends before it begins"),
        (0, 80, "0-80: a range cannot begin at the wildcard port 0; begin it at 1"),
        (70000, 0, "70000-0: a port is at most 65535"),
        (1, 70000, "1-70000: a port is at most 65535"),
    ];
    for (first, end, reason) in cases {
        let world = World::ingress(vec![range(first, end, vec![]), port(81, vec![])]);
        assert_eq!(only(&world), format!("[0].port: {reason}"));
        assert!(!world.allows(1, 70, "/") && world.allows(1, 81, "/"), "{reason}");
        // With a deny or a pass nobody knows what it was to keep out.
        for rule in [deny(), pass(2, 1)] {
            let world = World::ingress(vec![range(first, end, vec![rule, allow()]), port(81, vec![])]);
            assert_eq!(world.both(&flow(1, 81), "/"), "Quarantined", "{reason}");
            assert_eq!(only(&world), format!("[0].port: {reason}"));
        }
    }
}

#[test]
fn unknown_protocols_deny_but_do_not_allow() {
    let odd = |rules| PortPolicy { protocol: Protocol::Unknown(7), ..port(80, rules) };
    let reason = "protocol: 7 is not a protocol that this version knows";
    for (entry, place) in [(odd(vec![]), "[0]."), (odd(vec![allow()]), "[0].rules[0].")] {
        let world = World::ingress(vec![entry]);
        assert!(!world.allows(1, 80, "/"));
        assert_eq!(only(&world), format!("{place}{reason}"));
    }
    assert_eq!(World::ingress(vec![odd(vec![])]).both(&flow(1, 80), "/"), "Quarantined");
    let world = World::ingress(vec![odd(vec![deny()]), port(80, vec![])]);
    assert_eq!(world.both(&flow(1, 80), "/"), "DenyRule");
}

#[test]
fn unsupported_parts_disable_an_allow_and_leave_a_deny() {
    let world = World::ingress(vec![port(80, vec![unsupported(allow()), from(&[2], allow())])]);
    assert_eq!(only(&world), "[0].rules[0].l7_proto: no parser");
    assert_eq!(world.both(&flow(1, 80), "/"), "Quarantined");
    assert_eq!(world.both(&flow(2, 80), "/"), "tcp");
    let world = World::ingress(vec![port(80, vec![unsupported(from(&[1], deny())), allow()])]);
    assert_eq!(world.both(&flow(1, 80), "/"), "DenyRule");
    assert_eq!(world.both(&flow(2, 80), "/"), "tcp");
}

/// Honoured without the part that is not understood, a pass would skip denies that its author left in force.
#[test]
fn a_pass_that_is_not_understood_denies_its_ports() {
    let guarded = || port(80, vec![at(7, deny()), at(4, allow())]);
    let odd = PortPolicy { protocol: Protocol::Unknown(7), ..port(80, vec![pass(10, 5)]) };
    let cases = [
        (vec![odd, guarded()], "[0].rules[0].protocol: 7 is not a protocol that this version knows"),
        (vec![port(80, vec![unsupported(pass(10, 5))]), guarded()], "[0].rules[0].l7_proto: no parser"),
    ];
    for (mut entries, place) in cases {
        entries.push(port(81, vec![]));
        let world = World::ingress(entries);
        assert_eq!(world.both(&flow(1, 80), "/"), "Quarantined", "{place}");
        assert_eq!(world.both(&flow(1, 81), "/"), "tcp", "{place}");
        assert_eq!(only(&world), place);
    }
}

/// Otherwise bytes of any protocol would pass where the policy speaks of requests.
#[test]
fn http_rules_without_a_rule_keep_inspection_on() {
    let world = World::ingress(vec![port(80, vec![from(&[1], paths(&[])), from(&[2], allow())])]);
    assert_eq!(world.both(&flow(1, 80), "/"), "Quarantined");
    assert_eq!(world.both(&flow(2, 80), "/"), "http");
}

#[test]
fn broken_peer_conditions() {
    let proxy = |rule| PortRule { proxy_id: 70000, ..rule };
    let name =
        |patterns: &[&str], rule| PortRule { server_names: patterns.iter().map(|p| (*p).to_owned()).collect(), ..rule };
    // (rules, outcome for anybody without a server name)
    let cases = [
        (vec![proxy(allow())], "Quarantined"),
        (vec![proxy(deny()), allow()], "DenyRule"),
        (vec![proxy(pass(2, 1)), allow()], "Quarantined"),
        (vec![name(&["a..b"], allow())], "Quarantined"),
        (vec![name(&["a..b", "c"], deny()), allow()], "DenyRule"),
        (vec![name(&["a..b"], pass(2, 1)), allow()], "Quarantined"),
    ];
    for (rules, expected) in cases {
        let world = World::ingress(vec![port(80, rules.clone())]);
        assert_eq!(world.both(&flow(1, 80), "/"), expected, "{rules:?}");
        only(&world);
    }
    let world = World::ingress(vec![port(80, vec![name(&["a..b", "c"], allow())])]);
    let known = tollgate_policy::Flow { server_name: tollgate_policy::ServerName::Name("c"), ..flow(1, 80) };
    assert_eq!(world.both(&known, "/"), "tcp");
    let reason = "has an empty label (a leading, trailing or doubled dot)";
    assert_eq!(only(&world), format!("[0].rules[0].server_names[0]: \"a..b\": {reason}"));
}

/// Its size is a property of the rule, so that neither its neighbours nor the whole port pay for it.
#[test]
fn an_oversized_server_name_pattern_is_its_rule_s_own_problem() {
    let large = format!("{}.com", vec!["**"; 4000].join("."));
    let name = |pattern: &str, rule| PortRule { server_names: vec![pattern.to_owned()], ..rule };
    let ask = |name| tollgate_policy::Flow { server_name: tollgate_policy::ServerName::Name(name), ..flow(1, 80) };
    let place = |world: &World| {
        let (place, reason) = only(world).split_once(": ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert!(reason.contains("has 12003 bytes, and 255 are the most of a name"), "{reason}");
        place
    };
    let allows = World::ingress(vec![port(80, vec![name("a.b", allow()), name(&large, allow())])]);
    assert_eq!(place(&allows), "[0].rules[1].server_names[0]");
    assert_eq!(allows.both(&ask("a.b"), "/"), "tcp");
    assert_eq!(allows.both(&ask("c.com"), "/"), "Quarantined");
    let denies = World::ingress(vec![port(80, vec![name("a.b", at(1, allow())), name(&large, deny()), allow()])]);
    assert_eq!(place(&denies), "[0].rules[1].server_names[0]");
    assert_eq!(denies.both(&ask("a.b"), "/"), "tcp");
    assert_eq!(denies.both(&ask("nowhere"), "/"), "DenyRule");
    let passes = World::ingress(vec![port(80, vec![name(&large, pass(3, 1)), allow()])]);
    assert_eq!(passes.both(&ask("a.b"), "/"), "Quarantined");
}

#[test]
fn a_broken_http_rule_allows_nothing_and_keeps_inspection_on() {
    let broken = |matcher| HttpRule { headers: vec![matcher], ..HttpRule::default() };
    let cases = [
        (header(":path", ValueMatch::Regex("(".into())), "regex \"(\": missing `)`"),
        (header(":path", ValueMatch::Regex("".into())), "the regex is empty"),
        (header(":uri", ValueMatch::Any), "name \":uri\": only :method, :path, :authority and :scheme can be matched"),
        (header("a b", ValueMatch::Any), "name \"a b\" is not a header name"),
        (header("", ValueMatch::Any), "name \"\" is not a header name"),
        (header("x", ValueMatch::Unsupported("custom".into())), "custom"),
    ];
    for (matcher, reason) in cases {
        for invert in [false, true] {
            let mut matcher = matcher.clone();
            matcher.invert = invert;
            let rule = PortRule { http: Some(vec![broken(matcher)]), ..allow() };
            let world = World::ingress(vec![port(80, vec![rule])]);
            assert_eq!(only(&world), format!("[0].rules[0].http_rules[0].headers[0]: {reason}"));
            assert_eq!(world.both(&flow(1, 80), "/"), "http Quarantined", "{reason}");
        }
    }
    let empty = World::ingress(vec![port(80, vec![paths(&[])])]);
    assert_eq!(empty.both(&flow(1, 80), "/"), "Quarantined");
    assert!(only(&empty).starts_with("[0].rules[0].http_rules: is empty"));
}

#[test]
fn one_bad_rule_among_many() {
    let mut rules: Vec<PortRule> = (0..200).map(|i| paths(&[&format!("/{i}")])).collect();
    let bad = header(":path", ValueMatch::Regex("/77(".into()));
    rules[77].http = Some(vec![HttpRule { headers: vec![bad], ..HttpRule::default() }]);
    let world = World::ingress(vec![port(80, rules)]);
    let allowed = (0..200).filter(|i| world.allows(1, 80, &format!("/{i}"))).count();
    assert_eq!(allowed, 199);
    assert!(!world.allows(1, 80, "/77") && !world.allows(1, 80, "/77("));
    assert!(only(&world).starts_with("[0].rules[77].http_rules[0].headers[0]: "));
}

/// The quarantined rule is what a denial names when nothing else was in the way.
#[test]
fn a_denial_names_the_quarantined_rule() {
    let world = World::ingress(vec![port(80, vec![paths(&["/a"]), at(0, unsupported(allow()))])]);
    let explained = world.0.explain(
        &flow(1, 80),
        Some(&crate::support::get("/b", &tollgate_policy::NoHeaders)),
        &tollgate_policy::Secrets::default(),
    );
    let Some(tollgate_policy::Verdict::Deny { nearest: Some(nearest), .. }) = explained.request else {
        panic!("{explained:?}");
    };
    let place = "7 ingress_per_port_policies[0].rules[1]";
    assert_eq!(nearest.to_string(), format!("l7_proto is not enforced as written (quarantined): no parser ({place})"));
}

/// Every other port has a rule of its own, and so another copy of what the range asks.
#[test]
fn a_long_rule_for_divided_ports_denies() {
    let matchers = |count| (0..count).map(|i| header(&format!("h{i}"), ValueMatch::Present(true))).collect();
    let http = |count| Some(vec![HttpRule { headers: matchers(count), ..HttpRule::default() }]);
    let names = |count| (0..count).map(|i| format!("n{i}.example")).collect();
    let long = |kind: usize, count: u32| match kind {
        0 => PortRule { http: http(count), ..PortRule::default() },
        1 => PortRule { server_names: names(count), ..PortRule::default() },
        _ => PortRule { remotes: (1000..1000 + 16 * count).collect(), ..PortRule::default() },
    };
    for (kind, entry) in (0..3).flat_map(|kind| [(kind, range(1, 65535, vec![])), (kind, port(0, vec![]))]) {
        let divided = |ports: u32, count| {
            let own = (0..ports).map(|i| port(1 + 2 * i, vec![from(&[1], allow())]));
            let wide = PortPolicy { rules: vec![long(kind, count)], ..entry.clone() };
            World::ingress(own.chain([wide]).collect())
        };
        let few = divided(20, 100);
        let passes = ["tcp", "http"].contains(&&*few.connection(&flow(1, 3)));
        assert!(passes && few.quarantined().is_empty(), "{kind}");
        let many = divided(400, 1000);
        assert_eq!(many.connection(&flow(1, 3)), "Quarantined", "{kind}");
        assert!(only(&many).starts_with("[0].port: splitting the overlapping port ranges takes"), "{kind}");
    }
    // What is not divided is not copied, however long it is.
    let rule = PortRule { http: Some(vec![HttpRule::default(); 300_000]), ..PortRule::default() };
    let limits = Limits { rules: 300_001, ..Limits::default() };
    let mut builder = Snapshot::empty().update();
    builder.upsert_within("7", policy(7, &[ENDPOINT], vec![port(80, vec![rule])]), &limits, &mut { Effort::UNBOUNDED });
    let whole = World(builder.build());
    assert_eq!((whole.connection(&flow(1, 80)), whole.quarantined()), ("http".to_owned(), vec![]));
}

/// Each range begins one port later, so that all overlap and every port has another set of rules.
#[test]
fn ranges_that_overlap_too_much_deny() {
    let overlapping = |count: u32| {
        let entry =
            |i| PortPolicy { port: 1000 + i, end_port: 50_000 - i, rules: vec![allow()], ..PortPolicy::default() };
        World::ingress((0..count).map(entry).collect())
    };
    let few = overlapping(200);
    assert_eq!((few.both(&flow(1, 1100), "/"), few.quarantined()), ("tcp".to_owned(), vec![]));
    let many = overlapping(2000);
    assert_eq!(many.both(&flow(1, 1100), "/"), "Quarantined");
    assert!(only(&many).starts_with("[0].port: splitting the overlapping port ranges takes"), "{}", only(&many));
}
