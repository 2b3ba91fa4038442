//! Identities, proxy ids and server names.

use tollgate_policy::model::PortRule;
use tollgate_policy::{ConnectionVerdict, DenyReason, Flow, ServerName};

use crate::support::{World, allow, at, deny, flow, from, pass, paths, port};

#[test]
fn identities() {
    let world = World::ingress(vec![port(80, vec![from(&[5, 3, 5], allow())])]);
    let admitted: Vec<u32> = (0..8).filter(|remote| world.allows(*remote, 80, "/")).collect();
    assert_eq!(admitted, [3, 5]);
}

#[test]
fn proxy_ids_restrict_every_verdict() {
    let only = |proxy_id, rule| PortRule { proxy_id, ..rule };
    let world = World::ingress(vec![port(80, vec![only(9, at(1, deny())), only(8, allow())])]);
    let outcome = |proxy_id| world.both(&Flow { proxy_id, ..flow(1, 80) }, "/");
    assert_eq!(outcome(9), "DenyRule");
    assert_eq!(outcome(8), "tcp");
    assert_eq!(outcome(0), "NoPeerRule");
}

fn server_names(patterns: &[&str], rule: PortRule) -> PortRule {
    PortRule { server_names: patterns.iter().map(|p| (*p).to_owned()).collect(), ..rule }
}

#[test]
fn server_name_patterns() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("a.example", &["a.example", "A.EXAMPLE"], &["b.example", "xa.example", "a.example.", "", "a-example"]),
        ("*.example", &["a.example", "a_b-1.Example"], &["a.b.example", "example", "a.example.com"]),
        ("**.example", &["a.example", "a.b.example"], &["example", ".example", "a..example"]),
        ("*", &["a", "a.b.c"], &["a.", ".a", "a@b", "\u{e9}.com", "a..b"]),
        ("**", &["a", "a.b.c"], &["a.", ""]),
        ("a*z.*", &["az.x", "abz.x"], &["a.z.x", "abz.x.y", "bz.x"]),
        ("a.**.z", &["a.b.z", "a.b.c.z"], &["a.z", "a..z"]),
    ];
    for (pattern, matching, others) in cases {
        let world = World::ingress(vec![port(443, vec![server_names(&[pattern], allow())])]);
        let outcome = |name: Option<&str>| world.both(&Flow { server_name: name.into(), ..flow(1, 443) }, "/");
        for name in *matching {
            assert_eq!(outcome(Some(*name)), "tcp", "{pattern} {name}");
        }
        for name in *others {
            assert_eq!(outcome(Some(*name)), "NoPeerRule", "{pattern} {name}");
        }
        assert_eq!(outcome(None), "NoPeerRule", "{pattern}");
    }
}

/// A name that no DNS name can be as long as must not dodge a deny.
#[test]
fn an_overlong_server_name_is_judged_like_any() {
    let deny_any = server_names(&["**"], at(1, deny()));
    let world = World::ingress(vec![port(443, vec![deny_any, allow()])]);
    for length in [254, 255, 256, 300, 70_000] {
        let name = "A".repeat(length);
        let flow = Flow { server_name: ServerName::Name(&name), ..flow(1, 443) };
        assert_eq!(world.both(&flow, "/"), "DenyRule", "{length}");
    }
    assert_eq!(world.both(&flow(1, 443), "/"), "tcp");
}

/// Differs from Cilium's filter, whose HTTP layer does not look at server names.
#[test]
fn server_names_hold_for_requests() {
    let rules = vec![server_names(&["a.example"], allow()), server_names(&["b.example"], paths(&["/b"]))];
    let world = World::ingress(vec![port(443, rules)]);
    let outcome = |name, path| world.both(&Flow { server_name: ServerName::Name(name), ..flow(1, 443) }, path);
    assert_eq!(outcome("a.example", "/x"), "http");
    assert_eq!(outcome("b.example", "/x"), "http NoHttpRule");
    assert_eq!(outcome("b.example", "/b"), "http");
}

#[test]
fn a_server_name_selects_which_deny_applies() {
    let world = World::ingress(vec![port(443, vec![server_names(&["*.bad"], at(1, deny())), allow()])]);
    let outcome = |name: Option<&str>| world.request(&Flow { server_name: name.into(), ..flow(1, 443) }, "/");
    assert_eq!(outcome(Some("x.bad")), Err(DenyReason::DenyRule));
    assert!(outcome(Some("x.good")).is_ok());
    assert!(outcome(None).is_ok());
}

/// TLS is not inspected yet, so this is what holds on the data path.
#[test]
fn a_server_name_that_nobody_saw_refuses() {
    let unseen = Flow { server_name: ServerName::Unknown, ..flow(1, 443) };
    let other_peer = Flow { server_name: ServerName::Unknown, ..flow(2, 443) };
    let names = &["*.bad"];
    let cases = [
        (vec![server_names(names, allow())], "NoPeerRule", "NoPeerRule"),
        (vec![from(&[1], server_names(names, at(1, deny()))), allow()], "DenyRule", "tcp"),
        // Neither what it would skip nor what it would leave in place decides.
        (vec![from(&[1], server_names(names, pass(2, 1))), at(1, allow())], "DenyRule", "tcp"),
        (vec![from(&[1], server_names(names, pass(2, 1))), at(1, deny()), allow()], "DenyRule", "DenyRule"),
    ];
    for (rules, first, second) in cases {
        let world = World::ingress(vec![port(443, rules.clone())]);
        assert_eq!(
            (world.both(&unseen, "/").as_str(), world.both(&other_peer, "/").as_str()),
            (first, second),
            "{rules:?}"
        );
    }
    // Another pass of the same precedence does not ask for a name, so it makes no difference.
    let passes = [from(&[1], server_names(names, pass(3, 1))), from(&[1], pass(3, 1))];
    for passes in [passes.clone(), [passes[1].clone(), passes[0].clone()]] {
        let world = World::ingress(vec![port(443, [&passes[..], &[at(2, deny()), allow()]].concat())]);
        assert_eq!(world.both(&unseen, "/"), "tcp");
    }
    let world = World::ingress(vec![port(443, vec![server_names(names, deny()), allow()])]);
    let ConnectionVerdict::Deny { nearest: Some(nearest), .. } = world.0.evaluate_connection(&unseen) else {
        panic!("admitted");
    };
    let place = "7 ingress_per_port_policies[0].rules[0]";
    assert_eq!(
        nearest.to_string(),
        format!("server_names is not known: TLS is not inspected, so the rule may apply ({place})")
    );
}
