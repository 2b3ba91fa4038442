//! The rule that came closest to admitting, found without looking at each: a denial must not cost more the more rules
//! there are.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use super::{Failed, index_for, over_budget};
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
    let admitting = match rules.walk_connection(connection) {
        Walk::Allow(unit) if subject.request.is_some() => Some(unit.rule),
        Walk::OverBudget(unit) => {
            return (DenyReason::MatchBudget, Some(over_budget(policy, rules, unit, connection)));
        }
        _ => None,
    };
    let Some(admitting) = admitting else {
        return rules.connections().inspect(connection, |decided| {
            let mut search = Search::new(rules, decided, &[]);
            search.run(|_| true);
            search.conclude(policy, DenyReason::NoPeerRule)
        });
    };
    rules.connections().inspect(connection, |peers| {
        index_for(rules, subject).inspect(subject, |decided| {
            let mut search = Search::new(rules, decided, failures);
            // In the index of connections a rule is one unit, so that its number is the rule's.
            search.run(|unit| peers.is_applicable(unit.rule));
            search.look_at_rule(admitting);
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

/// Rules that pass rules skip: those between the two numbers of each pair. In order, and disjoint, since a pass that is
/// skipped skips nothing.
#[derive(Default)]
struct Skips(Vec<(u32, u32)>);

impl Skips {
    /// Adds what `pass` skips when it goes on at `next`; passes come in order.
    fn add(&mut self, pass: u32, next: u32) {
        step();
        if self.0.last().is_none_or(|(_, last)| *last <= pass) {
            self.0.push((pass, next));
        }
    }

    fn contains(&self, rule: u32) -> bool {
        let after = self.0.partition_point(|(pass, _)| {
            step();
            *pass < rule
        });
        after.checked_sub(1).is_some_and(|before| rule < self.0[before].1)
    }
}

/// Counted in tests: a denial must not take steps for each pair of rules.
#[inline]
fn step() {
    #[cfg(test)]
    tests::STEPS.with(|steps| steps.set(steps.get() + 1));
}

/// Looks at rules that may be the nearest.
struct Search<'a> {
    rules: &'a RuleSet,
    decided: &'a Decided<'a>,
    failures: &'a [Failure],
    skips: Skips,
    best: Option<(Nearness, u32)>,
}

impl<'a> Search<'a> {
    fn new(rules: &'a RuleSet, decided: &'a Decided<'a>, failures: &'a [Failure]) -> Self {
        let mut skips = Skips::default();
        for unit in decided.applicable() {
            let unit = decided.unit(unit);
            if matches!(rules.rule(unit).verdict, RuleVerdict::Pass(_)) {
                skips.add(unit.rule, rules.continuation(unit));
            }
        }
        Self { rules, decided, failures, skips, best: None }
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

    /// Looks at the rule that admits the connection, which is reached, if nothing was found that is.
    fn look_at_rule(&mut self, admitting: u32) {
        if self.best.as_ref().is_none_or(|(nearness, _)| !nearness.reached) {
            self.decided.units_of_rule(admitting).take(FEW).for_each(|unit| self.look_at(unit));
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
        step();
        let reached = !self.skips.contains(unit.rule);
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

    fn conclude(self, policy: &EndpointPolicy, none_admits: DenyReason) -> (DenyReason, Option<NearestMiss>) {
        let quarantined = self.found_quarantined();
        let reason = if quarantined { DenyReason::Quarantined } else { none_admits };
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::model::{NetworkPolicy, PortPolicy, PortRule, Unsupported};
    use crate::{ConnectionVerdict, Direction, EndpointKey, Flow, SecurityId, ServerName, Snapshot};

    thread_local! {
        pub(super) static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    /// Steps that the denial of a connection takes.
    fn steps(rules: Vec<PortRule>) -> u64 {
        let endpoint = EndpointKey::parse("10.0.0.1");
        let mut builder = Snapshot::empty().update();
        builder.replace_all([NetworkPolicy {
            endpoint_id: 1,
            endpoints: vec![endpoint.clone()],
            ingress: vec![PortPolicy { port: 80, rules, ..PortPolicy::default() }],
            egress: Vec::new(),
        }]);
        let flow = Flow {
            direction: Direction::Ingress,
            endpoint: &endpoint,
            remote: SecurityId(1),
            port: 80,
            proxy_id: 0,
            server_name: ServerName::Absent,
        };
        STEPS.with(|steps| steps.set(0));
        let verdict = builder.build().evaluate_connection(&flow);
        assert!(matches!(verdict, ConnectionVerdict::Deny { nearest: Some(_), .. }), "{verdict:?}");
        STEPS.with(Cell::get)
    }

    fn quarantined(precedence: u32) -> PortRule {
        let part = Unsupported { element: "l7_proto".into(), reason: "no parser".into() };
        PortRule { precedence, unsupported: vec![part], ..PortRule::default() }
    }

    fn pass(precedence: u32, below: u32) -> PortRule {
        PortRule { precedence, verdict: RuleVerdict::Pass(below), ..PortRule::default() }
    }

    /// Each tier passes over an allow.
    #[test]
    fn a_denial_looks_at_each_tier_once() {
        let tiers = |count| (1..=count).rev().flat_map(|tier| [pass(2 * tier + 1, 2 * tier), quarantined(2 * tier)]);
        let count = 5000;
        let steps = steps(tiers(count).collect());
        assert!((5000..30_000).contains(&steps), "{steps} steps for {count} tiers");
    }

    /// One pass goes over all of them.
    #[test]
    fn a_denial_looks_at_few_of_what_is_skipped() {
        let skipped = (0..5000).map(|_| quarantined(1));
        let steps = steps(skipped.chain([pass(2, 1)]).collect());
        assert!(steps < 5000, "{steps} steps");
    }

    #[test]
    fn skips() {
        let mut skips = Skips::default();
        for (pass, next) in [(1, 4), (2, 9), (4, 5), (7, 10)] {
            skips.add(pass, next);
        }
        let skipped: Vec<u32> = (0..12).filter(|rule| skips.contains(*rule)).collect();
        assert_eq!(skipped, [2, 3, 8, 9]);
    }
}
