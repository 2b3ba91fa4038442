//! RE2's meaning, as RE2 itself gives it.
//!
//! `re2/syntax.txt` has every construct, `re2/answers.txt` what RE2 says about them and about some thousands of generated
//! expressions; how it is made stands at the head of `tests/python/re2_oracle.py`. The same comparison with fresh
//! expressions, live, is `tests/tests/re2_python.rs`.

use tollgate_policy::model::{HttpRule, PortRule, ValueMatch};

use crate::support::{World, allow, header, port};

pub(crate) mod answers;

fn world(pattern: &str) -> World {
    let rule = HttpRule { headers: vec![header("x", ValueMatch::Regex(pattern.into()))], ..HttpRule::default() };
    World::ingress(vec![port(80, vec![PortRule { http: Some(vec![rule]), ..allow() }])])
}

#[test]
fn means_what_re2_means() {
    let outcome = answers::compare(include_str!("re2/answers.txt"));
    assert_eq!(outcome.differences, "");
    // Otherwise hardly anything was compared.
    assert!(outcome.equal > 1500 && outcome.refused > 500, "{outcome:?}");
    assert!(outcome.undecided < 100, "{outcome:?}");
}

/// What is written down as a difference is one.
#[test]
fn known_refusals_happen() {
    let outcome = answers::compare(include_str!("re2/answers.txt"));
    for (reason, count) in answers::KNOWN_REFUSALS.iter().zip(outcome.known) {
        assert!(count > 0, "nothing is refused because of {reason:?}");
    }
}

#[test]
fn refuses_by_name() {
    for pattern in ["(", "a**", r"\1", r"\pN", "(?=a)"] {
        let quarantined = world(pattern).quarantined();
        assert_eq!(quarantined.len(), 1, "{pattern:?}");
        assert!(quarantined[0].contains(&format!("headers[0]: regex {pattern:?}: ")), "{quarantined:?}");
    }
}

#[test]
fn limits_hold() {
    let nested = format!("{}a{}", "(".repeat(300), ")".repeat(300));
    assert_eq!(world(&nested).quarantined().len(), 1);
    let deep_enough = format!("{}a.{}", "(".repeat(200), ")".repeat(200));
    assert_eq!(world(&deep_enough).quarantined(), Vec::<String>::new());
    let large = world("(?:[^a][^b][^c]){1000}").quarantined();
    assert!(large[0].contains("needs an automaton of more than"), "{large:?}");
}
