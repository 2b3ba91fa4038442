//! The rule that came closest to admitting, found without looking at each: a denial must not cost more the more rules
//! there are.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use super::{Failed, index_for};
use crate::compile::decided::Decided;
use crate::compile::index::{Subject, Unit};
use crate::compile::{RuleSet, Walk};
use crate::header_match::Failure;
use crate::model::RuleVerdict;
use crate::{DenyReason, EndpointPolicy, NearestMiss};

/// Rules with failed header matches that are looked at, and alternatives of one rule when nothing else is near.
const FEW: usize = 8;

/// The reason of a denial that no rule decided, and the rule that came closest to admitting. When the connection itself
/// is not admitted that is the reason, whatever was requested on it. `failures` are the header matches because of which
/// rules that apply did not admit.
#[cold]
pub(crate) fn undecided(
    policy: &EndpointPolicy,
    rules: &RuleSet,
    subject: Subject<'_>,
    failures: &[Failure],
) -> (DenyReason, Option<NearestMiss>) {
    let connection = Subject { request: None, ..subject };
    let admitted = subject.request.is_some() && matches!(rules.walk_connection(connection), Walk::Allow(_));
    if !admitted {
        return rules.connections().inspect(connection, |decided| {
            let mut search = Search::new(rules, decided, &[]);
            search.run(|_| true);
            search.conclude(policy, DenyReason::NoPeerRule)
        });
    }
    rules.connections().inspect(connection, |peers| {
        index_for(rules, subject).inspect(subject, |decided| {
            let mut search = Search::new(rules, decided, failures);
            // In the index of connections a rule is one unit, so that its number is the rule's.
            search.run(|unit| peers.is_applicable(unit.rule));
            search.look_at_rules(peers);
            search.conclude(policy, DenyReason::NoHttpRule)
        })
    })
}

/// How close a rule came, the most telling part first; greater is closer.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Nearness {
    /// Nothing but quarantine was in the way.
    quarantined: bool,
    reached: bool,
    /// Its conditions on the connection hold.
    admits_peer: bool,
    held: usize,
    failed: Reverse<usize>,
    /// How many rules share the rarest condition on the request that holds: a path tells more than a method.
    sharing: Reverse<usize>,
    /// Of equals the first.
    number: Reverse<u32>,
}

/// Looks at rules that may be the nearest.
struct Search<'a> {
    rules: &'a RuleSet,
    decided: &'a Decided<'a>,
    failures: &'a [Failure],
    /// Rules that pass rules skip: from behind the first to before the second.
    skips: Vec<(u32, u32)>,
    best: Option<(Nearness, u32)>,
}

impl<'a> Search<'a> {
    fn new(rules: &'a RuleSet, decided: &'a Decided<'a>, failures: &'a [Failure]) -> Self {
        let mut search = Self { rules, decided, failures, skips: Vec::new(), best: None };
        for unit in decided.applicable() {
            let unit = decided.unit(unit);
            if matches!(rules.rule(unit).verdict, RuleVerdict::Pass(_)) && !search.is_skipped(unit) {
                search.skips.push((unit.rule, rules.continuation(unit)));
            }
        }
        search
    }

    /// Looks at what shares conditions that hold, as far as it is `wanted`.
    fn run(&mut self, wanted: impl Fn(&Unit) -> bool) {
        let decided = self.decided;
        decided.suspended(|unit| {
            self.look_at(unit);
            match self.found_quarantined() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        self.failures.iter().take(FEW).for_each(|failure| self.look_at(failure.unit));
        let rules = self.rules;
        let wanted = |unit: &Unit| rules.rule(unit).verdict == RuleVerdict::Allow && wanted(unit);
        decided.near(wanted, |unit| self.look_at(unit));
        if self.best.as_ref().is_none_or(|(nearness, _)| !nearness.reached) {
            decided.shortest(wanted).for_each(|unit| self.look_at(unit));
        }
    }

    /// Looks at rules that admit the peer, if nothing was found that is reached.
    fn look_at_rules(&mut self, peers: &Decided<'_>) {
        if self.best.as_ref().is_some_and(|(nearness, _)| nearness.reached) {
            return;
        }
        for rule in peers.applicable() {
            self.decided.units_of_rule(rule).take(FEW).for_each(|unit| self.look_at(unit));
            if self.best.as_ref().is_some_and(|(nearness, _)| nearness.reached) {
                return;
            }
        }
    }

    fn found_quarantined(&self) -> bool {
        self.best.as_ref().is_some_and(|(nearness, _)| nearness.quarantined)
    }

    fn look_at(&mut self, number: u32) {
        let unit = self.decided.unit(number);
        let rule = self.rules.rule(unit);
        if rule.verdict != RuleVerdict::Allow {
            return;
        }
        let reached = !self.is_skipped(unit);
        let predicates = &unit.predicates;
        let holds = |p: &&u32| self.decided.holds(**p);
        let held = predicates.iter().filter(holds).count();
        let peer = rule.peer.len();
        let of_request = predicates[peer..].iter().filter(holds);
        let nearness = Nearness {
            quarantined: reached && self.failed(unit) == Failed::Quarantined,
            reached,
            admits_peer: predicates[..peer].iter().filter(holds).count() == peer,
            held,
            failed: Reverse(predicates.len() - held + usize::from(self.failure(number).is_some())),
            sharing: Reverse(of_request.map(|p| self.decided.sharing(*p)).min().unwrap_or_default()),
            number: Reverse(number),
        };
        if self.best.as_ref().is_none_or(|(best, _)| nearness > *best) {
            self.best = Some((nearness, number));
        }
    }

    fn failed(&self, unit: &Unit) -> Failed {
        Failed::of(self.decided.index(), unit, |p| self.decided.holds(p))
    }

    /// The first of the rule's header matches that failed.
    fn failure(&self, number: u32) -> Option<&Failure> {
        self.failures.iter().find(|failure| failure.unit == number)
    }

    fn is_skipped(&self, unit: &Unit) -> bool {
        self.skips.iter().any(|(pass, next)| *pass < unit.rule && unit.rule < *next)
    }

    fn conclude(self, policy: &EndpointPolicy, none_admits: DenyReason) -> (DenyReason, Option<NearestMiss>) {
        let quarantined = self.found_quarantined();
        let reason = match self.decided.is_complete() {
            false => DenyReason::MatchBudget,
            true if quarantined => DenyReason::Quarantined,
            true => none_admits,
        };
        let Some((nearness, number)) = &self.best else { return (reason, None) };
        (reason, Some(self.describe(policy, *number, nearness.reached)))
    }

    fn describe(&self, policy: &EndpointPolicy, number: u32, reached: bool) -> NearestMiss {
        let unit = self.decided.unit(number);
        let rule = self.rules.rule(unit);
        let index = self.decided.index();
        let holds = |p: &&u32| self.decided.holds(**p);
        let failed = unit.predicates.iter().find(|p| !holds(p)).map(|p| index.predicate(*p));
        let (field, expected) = match (failed, self.failure(number)) {
            (Some(predicate), _) if reached => (predicate.field(), predicate.to_string().into()),
            (None, Some(failure)) => {
                let header_match = &rule.matches(unit.http_rule)[failure.index];
                ((&*header_match.name).into(), failure.why.wanted(header_match).into())
            }
            _ => ("verdict".into(), "reached: a pass rule skips it".into()),
        };
        let held = unit.predicates.iter().filter(holds);
        NearestMiss {
            rule: policy.rule_ref(self.rules, unit, self.decided.subject().flow.direction),
            name: rule.name.clone(),
            field,
            expected,
            matched: held.map(|p| index.predicate(*p).field()).collect(),
        }
    }
}
