//! Properties of the nearest miss: it is the rule that the whole account shows to be nearest, and doing as it says gets
//! a request further.

use std::cmp::Reverse;

use proptest::prelude::*;
use tollgate_policy::model::{PortPolicy, RuleVerdict};
use tollgate_policy::{
    DenyReason, Explanation, Headers, NearestMiss, PredicateExplanation, Request, RuleExplanation, RuleOutcome,
    Secrets, Verdict,
};

use crate::generate::{Choices, Response, entries, secrets, worlds};
use crate::properties::{bytes, config, only, questions};

/// Entries whose rules look at the request and do not change it, and none of which passes or has parts that belong to
/// neither the peer nor the request.
fn plain(mut entries: Vec<PortPolicy>) -> Vec<PortPolicy> {
    for rule in entries.iter_mut().flat_map(|entry| &mut entry.rules) {
        if matches!(rule.verdict, RuleVerdict::Pass(_)) {
            rule.verdict = RuleVerdict::Allow;
        }
        rule.unsupported.clear();
        rule.http.iter_mut().flatten().for_each(|http_rule| http_rule.header_matches.clear());
    }
    entries
}

/// How near a rule came, by the whole account of it: whether it is for this peer, how many conditions hold, how many fail.
/// Among equals the rarer condition tells more, but how rare one is depends on what rules are looked for by.
fn nearness(rule: &RuleExplanation) -> (bool, usize, Reverse<usize>) {
    // With what is quarantined there, or in the entry around it; that names its place too: `server_names[0]`.
    let of_peer = |p: &PredicateExplanation| {
        let element = p.field.split('[').next().unwrap_or_default();
        matches!(element, "remote_policies" | "proxy_id" | "server_names" | "protocol" | "http_rules")
    };
    let admits_peer = rule.predicates.iter().all(|p| p.matched || !of_peer(p));
    let held = rule.predicates.iter().filter(|p| p.matched).count();
    (admits_peer, held, Reverse(rule.predicates.len() - held))
}

fn rules(explanation: &Explanation) -> impl Iterator<Item = &RuleExplanation> {
    explanation.policies.iter().flat_map(|policy| &policy.rules)
}

fn nearest(explanation: &Explanation) -> Option<&RuleExplanation> {
    let candidates = |r: &&RuleExplanation| r.verdict == RuleVerdict::Allow && r.outcome != RuleOutcome::Quarantined;
    rules(explanation).filter(candidates).max_by_key(|rule| nearness(rule))
}

/// Whether nothing of a rule holds but what asks for anything else than a value: that holds of nearly every request, and no
/// rule is looked for by it.
fn only_inverted(rule: &RuleExplanation) -> bool {
    let mut held = rule.predicates.iter().filter(|p| p.matched).peekable();
    held.peek().is_some() && held.all(|p| p.expected.starts_with("anything but"))
}

/// The request with another value of one field.
struct Changed<'a> {
    request: Request<'a>,
    field: &'a str,
    value: &'a str,
}

impl Headers for Changed<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        if name == self.field {
            return visit(self.value.as_bytes());
        }
        self.request.headers.each(name, visit);
    }
}

impl Changed<'_> {
    fn request(&self) -> Request<'_> {
        let or = |name: &str, was| if self.field == name { self.value.as_bytes() } else { was };
        Request {
            method: or(":method", self.request.method),
            scheme: or(":scheme", self.request.scheme),
            authority: if self.field == "host" {
                self.value.as_bytes()
            } else {
                or(":authority", self.request.authority)
            },
            path: or(":path", self.request.path),
            headers: self,
        }
    }
}

/// The value that the miss asks for, where it asks for one.
fn asked_for(miss: &NearestMiss) -> Option<&str> {
    let value = miss.expected.strip_prefix("exact \"")?.strip_suffix('"')?;
    (!value.is_empty() && !value.contains('\\')).then_some(value)
}

/// `host` is another name of `:authority`.
fn one_name(field: &str) -> &str {
    if field == "host" { ":authority" } else { field }
}

fn denied(verdict: Verdict) -> Option<(DenyReason, Option<Box<NearestMiss>>)> {
    match verdict {
        Verdict::Deny { reason, nearest, .. } => Some((reason, nearest)),
        Verdict::Allow { .. } => None,
    }
}

proptest! {
    #![proptest_config(config(4_000))]

    #[test]
    fn the_nearest_miss_is_the_nearest(world in bytes(160), asked in bytes(120)) {
        let entries = plain(entries(&mut Choices::new(&world)));
        let (snapshot, _) = worlds(&[Response::All(vec![only(&entries)])]);
        for question in &questions(&asked) {
            let request = question.request();
            let Some((reason, Some(miss))) = denied(snapshot.evaluate_request(&question.flow, &request, &secrets()))
            else {
                continue;
            };
            let request = match reason {
                DenyReason::NoHttpRule => Some(&request),
                DenyReason::NoPeerRule => None,
                _ => continue,
            };
            let explanation = snapshot.explain(&question.flow, request, &Secrets::default());
            let Some(expected) = nearest(&explanation) else {
                return Err(TestCaseError::fail(format!("{miss} although no rule could admit")));
            };
            if only_inverted(expected) {
                continue;
            }
            let Some(found) = rules(&explanation).find(|rule| rule.rule == miss.rule) else {
                return Err(TestCaseError::fail(format!("{miss} is of no rule")));
            };
            prop_assert_eq!(nearness(found), nearness(expected), "{}, but {:?}", miss, expected);
            let failed = found.predicates.iter().find(|p| !p.matched);
            prop_assert!(
                failed.is_some_and(|p| p.field == miss.field && miss.expected.ends_with(&*p.expected)),
                "{}: {:?}",
                miss,
                failed
            );
        }
    }

    #[test]
    fn doing_as_the_nearest_miss_says_gets_further(world in bytes(160), asked in bytes(120)) {
        let entries = plain(entries(&mut Choices::new(&world)));
        let (snapshot, _) = worlds(&[Response::All(vec![only(&entries)])]);
        for question in &questions(&asked) {
            let judge = |request: &Request<'_>| denied(snapshot.evaluate_request(&question.flow, request, &secrets()));
            let Some((DenyReason::NoHttpRule, Some(before))) = judge(&question.request()) else { continue };
            let Some(value) = asked_for(&before) else { continue };
            // A rule that asks one field for two things may contradict itself.
            if before.matched.iter().any(|field| one_name(field) == one_name(&before.field)) {
                continue;
            }
            let changed = Changed { request: question.request(), field: &before.field, value };
            if let Some((reason, after)) = judge(&changed.request()) {
                let further = after.as_ref().is_some_and(|after| after.matched.len() > before.matched.len());
                prop_assert!(further || reason == DenyReason::Quarantined, "{} then {:?}", before, after);
            }
        }
    }
}
