//! That the work of comparing grows with the number of rules, not with its square. What is found is tested with the rest of
//! the findings.

use super::*;
use crate::Snapshot;
use crate::lint::quarantined;
use crate::model::{HeaderMatcher, HttpRule, NetworkPolicy, TextPart, ValueMatch};
use crate::{Direction, EndpointKey};

/// Steps that it takes to find out which of the rules never decide, and how many do not.
fn steps(entries: Vec<PortPolicy>) -> (usize, usize) {
    let policy = NetworkPolicy {
        endpoint_id: 1,
        endpoints: vec![EndpointKey::parse("a")],
        ingress: entries,
        egress: Vec::new(),
    };
    let mut builder = Snapshot::empty().update();
    builder.replace_all([policy.clone()]);
    let quarantined: Vec<_> = builder.build().quarantined().collect();
    let bad = quarantined::check(0, &policy, &quarantined, &mut Vec::new()).of(
        Direction::Ingress,
        HashSet::new(),
        HashSet::new(),
    );
    let everything = PortRule::default();
    let units = units(&policy.ingress, &bad, &everything);
    let mut probes = Probes::default();
    let mut steps = Steps::new(usize::MAX);
    let covered = Reach::new(&units, &mut probes).covered(&mut steps).unwrap();
    (usize::MAX - steps.left(), covered.iter().filter(|by| !by.is_empty()).count())
}

fn path(value: ValueMatch) -> PortRule {
    let headers = vec![HeaderMatcher::new(":path", value)];
    PortRule { http: Some(vec![HttpRule { headers, ..HttpRule::default() }]), ..PortRule::default() }
}

fn regex(pattern: String) -> ValueMatch {
    ValueMatch::Regex(pattern.into())
}

fn prefix(text: String) -> ValueMatch {
    ValueMatch::Text { part: TextPart::Prefix, text: text.into(), ignore_case: false }
}

/// One port with these rules.
fn on_one_port(rules: impl Iterator<Item = PortRule>) -> Vec<PortPolicy> {
    vec![PortPolicy { port: 80, rules: rules.collect(), ..PortPolicy::default() }]
}

#[test]
fn the_work_grows_with_the_number_of_rules() {
    type Shape = (&'static str, fn(u32) -> Vec<PortPolicy>);
    let shapes: &[Shape] = &[
        ("prefixes", |n| on_one_port((0..n).map(|i| path(prefix(format!("/service/{i}/")))))),
        ("open expressions", |n| on_one_port((0..n).map(|i| path(regex(format!("/service/{i}/.*")))))),
        ("closed expressions", |n| on_one_port((0..n).map(|i| path(regex(format!("/service/{i}/[0-9]+")))))),
        ("lists", |n| on_one_port((0..n).map(|i| path(regex(format!("/a/{i}|/b/{i}")))))),
        ("the same", |n| on_one_port((0..n).map(|_| path(regex("/a/.*".to_owned()))))),
        ("peers", |n| on_one_port((0..n).map(|i| PortRule { remotes: vec![i + 1, 70_000], ..PortRule::default() }))),
        ("ports", |n| {
            let rule = path(prefix("/a".to_owned()));
            let entry = |port| PortPolicy { port, rules: vec![rule.clone()], ..PortPolicy::default() };
            (1..=n).map(entry).collect()
        }),
        ("ports and every port", |n| {
            let entry =
                |port| PortPolicy { port, rules: vec![path(prefix(format!("/{port}/")))], ..PortPolicy::default() };
            let every = PortPolicy {
                rules: on_one_port((0..n).map(|i| path(regex(format!("/all/{i}/x*"))))).remove(0).rules,
                ..PortPolicy::default()
            };
            (1..=n).map(entry).chain([every]).collect()
        }),
    ];
    for (name, shape) in shapes {
        let (small, large) = (steps(shape(500)).0, steps(shape(2_000)).0);
        assert!(large <= 5 * small && large < 2_000_000, "{name}: {small} steps, then {large}");
    }
    assert_eq!(steps(on_one_port((0..2_000).map(|_| path(regex("/a/.*".to_owned()))))).1, 1_999);
}
