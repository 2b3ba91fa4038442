//! Properties of generated policies, and the compiled evaluation against a literal one.

use std::cmp::Reverse;

use proptest::prelude::*;
use tollgate_policy::model::{PortPolicy, PortRule, RuleVerdict, ValueMatch};

use crate::support::{World, exact, flow, header, range};

const PORTS: u16 = 6;
const REMOTES: u32 = 4;
const PATHS: [&str; 3] = ["/a", "/b", "/c"];

fn rules() -> impl Strategy<Value = PortRule> {
    let verdict = prop_oneof![
        6 => Just(None),
        2 => Just(Some(RuleVerdict::Deny)),
        2 => (1..4u32).prop_map(|below| Some(RuleVerdict::Pass(below))),
    ];
    let remotes = proptest::collection::vec(1..REMOTES, 0..3);
    let http = proptest::option::weighted(0.4, proptest::collection::vec(0..PATHS.len(), 1..3));
    (0..5u32, verdict, remotes, http, 0..8u32).prop_map(|(precedence, verdict, remotes, http, proxy)| PortRule {
        precedence,
        verdict: verdict.unwrap_or_default(),
        remotes,
        proxy_id: if proxy == 0 { 9 } else { 0 },
        http: http.map(|paths| paths.into_iter().map(http_rule).collect()),
        ..PortRule::default()
    })
}

fn http_rule(path: usize) -> tollgate_policy::model::HttpRule {
    tollgate_policy::model::HttpRule { headers: vec![header(":path", exact(PATHS[path]))], ..Default::default() }
}

fn entries() -> impl Strategy<Value = Vec<PortPolicy>> {
    let entry = (0..PORTS, 0..4u16, proptest::collection::vec(rules(), 0..5)).prop_map(|(first, more, rules)| {
        let end = if first == 0 || more == 0 { 0 } else { first + more };
        range(first.into(), end.into(), rules)
    });
    proptest::collection::vec(entry, 0..5)
}

/// Everything that can be asked: `(port, remote, path)`.
fn questions() -> impl Iterator<Item = (u16, u32, &'static str)> {
    let ports = 1..PORTS + 4;
    ports.flat_map(|port| (1..=REMOTES).flat_map(move |remote| PATHS.map(move |path| (port, remote, path))))
}

fn allowed(entries: &[PortPolicy]) -> Vec<bool> {
    let world = World::ingress(entries.to_vec());
    questions().map(|(port, remote, path)| world.request(&flow(remote, port), path).is_ok()).collect()
}

/// The specification, step by step: one list per port, the wildcard appended, sorted, walked.
fn literally(entries: &[PortPolicy], port: u16, remote: u32, path: &str) -> bool {
    let mut list: Vec<PortRule> = Vec::new();
    let mut covered = false;
    for wildcard in [false, true] {
        for entry in entries.iter().filter(|entry| (entry.port == 0) == wildcard) {
            let last = entry.end_port.max(entry.port);
            if wildcard || (entry.port..=last).contains(&u32::from(port)) {
                covered = true;
                list.extend(entry.rules.clone());
                if entry.rules.is_empty() {
                    list.push(PortRule::default());
                }
            }
        }
    }
    let order = |rule: &PortRule| match rule.verdict {
        RuleVerdict::Deny => 0,
        RuleVerdict::Allow => 1,
        RuleVerdict::Pass(_) => 2,
    };
    list.sort_by_key(|rule| (Reverse(rule.precedence), order(rule)));
    let mut tier = None;
    for rule in &list {
        if let RuleVerdict::Pass(below) = rule.verdict {
            let same_tier = tier.filter(|tier| rule.precedence >= *tier);
            if below > rule.precedence || same_tier.is_some_and(|tier| tier != below) {
                return false;
            }
            tier = Some(below);
        }
    }
    let mut ceiling = u32::MAX;
    for rule in list {
        let applies = rule.proxy_id == 0 && (rule.remotes.is_empty() || rule.remotes.contains(&remote));
        if !applies || rule.precedence > ceiling {
            continue;
        }
        match rule.verdict {
            RuleVerdict::Deny => return false,
            RuleVerdict::Pass(below) => ceiling = below - 1,
            RuleVerdict::Allow => {
                let wanted = |rule: &tollgate_policy::model::HttpRule| rule.headers[0].value == exact(path);
                if rule.http.is_none_or(|http| http.iter().any(wanted)) {
                    return true;
                }
            }
        }
    }
    assert!(covered || port > 0);
    false
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn compiled_equals_literal(entries in entries()) {
        let world = World::ingress(entries.clone());
        for (port, remote, path) in questions() {
            let compiled = world.allows(remote, port, path);
            prop_assert_eq!(compiled, literally(&entries, port, remote, path), "{} {} {}", port, remote, path);
        }
    }

    #[test]
    fn a_further_deny_never_allows_more(
        entries in entries(),
        rule in rules(),
        place in any::<prop::sample::Index>(),
        port in 0..PORTS,
    ) {
        let deny = PortRule { verdict: RuleVerdict::Deny, ..rule };
        let mut more = entries.clone();
        if more.is_empty() {
            more.push(range(port.into(), 0, vec![deny]));
        } else {
            let at = place.index(more.len());
            more[at].rules.push(deny);
        }
        for (before, after) in allowed(&entries).into_iter().zip(allowed(&more)) {
            prop_assert!(before || !after);
        }
    }

    #[test]
    fn one_allow_less_never_allows_more(entries in entries(), place in any::<prop::sample::Index>()) {
        let mut less = entries.clone();
        if !less.is_empty() {
            let at = place.index(less.len());
            match less[at].rules.iter().position(|rule| rule.verdict == RuleVerdict::Allow) {
                // An entry without rules would allow everything.
                Some(only) if less[at].rules.len() > 1 => drop(less[at].rules.remove(only)),
                Some(_) => drop(less.remove(at)),
                None => {}
            }
        }
        for (before, after) in allowed(&entries).into_iter().zip(allowed(&less)) {
            prop_assert!(before || !after);
        }
    }

    #[test]
    fn the_order_of_rules_never_changes_a_verdict(entries in entries()) {
        let mut reversed = entries.clone();
        reversed.reverse();
        reversed.iter_mut().for_each(|entry| entry.rules.reverse());
        prop_assert_eq!(allowed(&entries), allowed(&reversed));
    }

    #[test]
    fn nothing_panics(
        patterns in proptest::collection::vec("[a-c\\\\()\\[\\]{}*+?|^$.:\\-0-9QEdwsbPpix<>é]{0,12}", 1..6),
        names in proptest::collection::vec("[a*.]{0,6}", 0..3),
        port in 0..70000u32,
        end_port in 0..70000u32,
    ) {
        let matchers = patterns.iter().map(|p| header("x", ValueMatch::Regex(p.as_str().into()))).collect();
        let rule = PortRule {
            http: Some(vec![tollgate_policy::model::HttpRule { headers: matchers, ..Default::default() }]),
            server_names: names,
            ..PortRule::default()
        };
        let world = World::ingress(vec![range(port, end_port, vec![rule])]);
        for value in ["", "a", "aa", "b]", "\u{e9}"] {
            world.with_header("x", value.as_bytes());
        }
        prop_assert!(world.quarantined().iter().all(|text| text.starts_with("7 ingress_per_port_policies[0]")));
    }
}
