//! Why a verdict is what it is: the nearest miss of a denial, and the account of every rule for people.

mod nearest;

use std::fmt;
use std::sync::Arc;

use crate::compile::index::{ENFORCED_AS_WRITTEN, Index, Predicate, Subject, Unit};
use crate::compile::rule::Finding;
use crate::compile::{PortLookup, RuleSet, Work};
use crate::header_match::{self, Failure, Program, Trial, Why};
use crate::model::{HeaderMatch, RuleVerdict};
use crate::quarantine::rule_ref;
use crate::{
    ConnectionVerdict, Direction, EndpointPolicy, Flow, NearestMiss, Quarantine, Request, RuleRef, Secrets, ServerName,
    Snapshot, Verdict,
};

pub(crate) use self::nearest::undecided;

/// Everything that a verdict rests on.
#[derive(Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// Of the snapshot that was asked.
    pub generation: u64,
    /// The verdict on the connection.
    pub connection: ConnectionVerdict,
    /// The verdict on the request, when one was given.
    pub request: Option<Verdict>,
    /// What each policy of the endpoint contributed; empty when it has none.
    pub policies: Vec<PolicyExplanation>,
}

/// What one policy contributed.
#[derive(Debug)]
#[non_exhaustive]
pub struct PolicyExplanation {
    /// Its resource name.
    pub resource: Arc<str>,
    /// Why it denies everything on the port, when it does so because of what is quarantined.
    pub refused: Option<Quarantine>,
    /// The rules that cover the port, in deciding order; empty when none does.
    pub rules: Vec<RuleExplanation>,
}

/// What one rule, or one of its HTTP alternatives, contributed.
#[derive(Debug)]
#[non_exhaustive]
pub struct RuleExplanation {
    /// The rule.
    pub rule: RuleRef,
    /// Its name, when it has one.
    pub name: Option<Arc<str>>,
    /// Higher wins.
    pub precedence: u32,
    /// What it does with what it matches.
    pub verdict: RuleVerdict,
    /// Its conditions, in the order of the policy.
    pub predicates: Vec<PredicateExplanation>,
    /// What became of it.
    pub outcome: RuleOutcome,
    /// Secrets that its header matches name and that nothing can be compared with, and what completes "secret … ": until
    /// that changes it admits nothing.
    pub unusable_secrets: Vec<(Box<str>, &'static str)>,
}

/// What one condition came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PredicateExplanation {
    /// What is tested.
    pub field: Arc<str>,
    /// What is asked for.
    pub expected: Arc<str>,
    /// Whether it holds.
    pub matched: bool,
    /// Whether it never holds, because it cannot be honoured; `expected` says why.
    pub quarantined: bool,
}

/// What became of a rule in an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleOutcome {
    /// It decided.
    Decided,
    /// It applied and passed on to rules of lower precedence.
    Passed,
    /// A condition failed.
    NotApplicable,
    /// It would have applied, but it is quarantined.
    Quarantined,
    /// Finding out whether it applies takes too much work.
    Undecided,
    /// A pass rule skipped it.
    Skipped,
    /// An earlier rule had decided already.
    NotReached,
    /// Another rule of the same precedence decided; its header matches were run as well.
    AlsoAdmitted,
}

impl fmt::Display for RuleOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decided => "decided",
            Self::Passed => "passed on",
            Self::NotApplicable => "does not apply",
            Self::Quarantined => "quarantined",
            Self::Undecided => "takes too much work to decide",
            Self::Skipped => "skipped by a pass rule",
            Self::NotReached => "not reached",
            Self::AlsoAdmitted => "admits, too",
        })
    }
}

impl Snapshot {
    /// Accounts for the verdict on a connection, and on a request on it when one is given.
    pub fn explain(&self, flow: &Flow<'_>, request: Option<&Request<'_>>, secrets: &Secrets) -> Explanation {
        let work = Work::default();
        let subject = Subject { flow, request, work: &work };
        let policies = self.endpoint(flow.endpoint);
        let mut trial = request.map(|request| Trial::new(request, secrets));
        Explanation {
            generation: self.generation(),
            connection: self.evaluate_connection(flow),
            request: request.map(|request| self.evaluate_request(flow, request, secrets)),
            policies: policies.map(|policy| explain_policy(policy, subject, secrets, trial.as_mut())).collect(),
        }
    }
}

fn explain_policy(
    policy: &EndpointPolicy,
    subject: Subject<'_>,
    secrets: &Secrets,
    mut trial: Option<&mut Trial<'_>>,
) -> PolicyExplanation {
    if let Some(trial) = &mut trial {
        trial.next_policy();
    }
    let direction = subject.flow.direction;
    let as_quarantine = |finding: &Finding| Quarantine::new(policy, direction, finding);
    let (refused, rules) = match policy.side(direction).compiled.lookup(subject.flow.port) {
        PortLookup::Denied(finding) => (Some(as_quarantine(finding)), Vec::new()),
        PortLookup::Nothing => (None, Vec::new()),
        PortLookup::Rules(rules) => {
            let ran = trial.filter(|_| rules.has_header_matches()).map(|trial| {
                rules.walk_trial(subject, trial);
                &*trial
            });
            (rules.denied().map(as_quarantine), explain_rules(policy, rules, subject, secrets, ran))
        }
    };
    PolicyExplanation { resource: policy.resource().into(), refused, rules }
}

/// `ran` is what became of header matches, where rules have any.
fn explain_rules(
    policy: &EndpointPolicy,
    rules: &RuleSet,
    subject: Subject<'_>,
    secrets: &Secrets,
    ran: Option<&Trial<'_>>,
) -> Vec<RuleExplanation> {
    let index = index_for(rules, subject);
    let decisions = index.decisions(subject);
    let mut decided = rules.denied().is_some();
    let refused_by = ran.and_then(Trial::too_many_edits).map(|failure| failure.unit);
    let mut resume = 0;
    let mut explained = Vec::with_capacity(index.units().len());
    for (unit, number) in index.units().iter().zip(0..) {
        let rule = rules.rule(unit);
        let matches = matches_of(rule.matches(unit.http_rule), number, ran);
        let open = unit.predicates.iter().any(|p| decisions[*p as usize].is_none());
        let outcome = match Failed::of(index, unit, |p| decisions[p as usize] != Some(false)) {
            Failed::None if open && !decided && unit.rule >= resume => {
                // What may deny or pass refuses.
                decided = rule.verdict != RuleVerdict::Allow;
                RuleOutcome::Undecided
            }
            Failed::Quarantined => RuleOutcome::Quarantined,
            Failed::Some => RuleOutcome::NotApplicable,
            Failed::None if refused_by == Some(number) => {
                decided = true;
                RuleOutcome::Undecided
            }
            Failed::None if matches.iter().any(|ran| !ran.matched) => RuleOutcome::NotApplicable,
            // What it would have admitted, another one refused.
            Failed::None if !decided && refused_by.is_some() && ran.is_some_and(|ran| ran.ran.contains(&number)) => {
                RuleOutcome::AlsoAdmitted
            }
            Failed::None if decided && ran.is_some_and(|ran| ran.ran.contains(&number)) => RuleOutcome::AlsoAdmitted,
            Failed::None if decided => RuleOutcome::NotReached,
            Failed::None if unit.rule < resume => RuleOutcome::Skipped,
            Failed::None if matches!(rules.effect(unit, subject.flow), RuleVerdict::Pass(_)) => {
                resume = rules.continuation(unit);
                RuleOutcome::Passed
            }
            Failed::None => {
                decided = true;
                RuleOutcome::Decided
            }
        };
        let conditions = unit.predicates.iter().map(|number| {
            let predicate = index.predicate(*number);
            let (expected, quarantined) = match predicate {
                Predicate::Never { reason, .. } => (reason.clone(), true),
                other => (other.to_string().into(), false),
            };
            let matched = decisions[*number as usize] == Some(true);
            PredicateExplanation { field: predicate.field(), expected, matched, quarantined }
        });
        explained.push(RuleExplanation {
            rule: policy.rule_ref(rules, unit, subject.flow.direction),
            name: rule.name.clone(),
            precedence: rule.precedence,
            verdict: rule.verdict,
            predicates: conditions.chain(matches).collect(),
            outcome,
            unusable_secrets: header_match::unusable(rule.matches(unit.http_rule), secrets),
        });
    }
    explained
}

/// What came of a unit's header matches, if they were run.
fn matches_of(matches: &[HeaderMatch], unit: u32, ran: Option<&Trial<'_>>) -> Vec<PredicateExplanation> {
    let Some(ran) = ran.filter(|ran| ran.ran.contains(&unit)) else {
        return Vec::new();
    };
    let explain = |(index, header_match): (usize, &HeaderMatch)| {
        let failure = ran.failures.iter().find(|failure| failure.unit == unit && failure.index == index);
        PredicateExplanation {
            field: (&*header_match.name).into(),
            expected: failure
                .map_or_else(|| Program(header_match).to_string(), |failure| failure.why.wanted(header_match))
                .into(),
            matched: failure.is_none(),
            quarantined: false,
        }
    };
    matches.iter().enumerate().map(explain).collect()
}

const fn index_for<'a>(rules: &'a RuleSet, subject: Subject<'_>) -> &'a Index {
    match subject.request {
        Some(_) => rules.requests(),
        None => rules.connections(),
    }
}

/// Which of a unit's predicates do not hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failed {
    None,
    Some,
    /// Only those that stand for what is quarantined.
    Quarantined,
}

impl Failed {
    fn of(index: &Index, unit: &Unit, holds: impl Fn(u32) -> bool) -> Self {
        let mut failed = unit.predicates.iter().filter(|p| !holds(**p)).peekable();
        if failed.peek().is_none() {
            return Self::None;
        }
        match failed.all(|p| matches!(index.predicate(*p), Predicate::Never { .. })) {
            true => Self::Quarantined,
            false => Self::Some,
        }
    }
}

/// What refused when an element that is not enforced as written decides.
#[cold]
pub(crate) fn quarantined(endpoint_id: u64, direction: Direction, finding: &Finding) -> NearestMiss {
    NearestMiss {
        rule: rule_ref(endpoint_id, direction, finding.origin, finding.http_rule),
        name: None,
        field: finding.element.clone(),
        expected: format!("{ENFORCED_AS_WRITTEN}{}", finding.reason).into(),
        matched: Vec::new(),
    }
}

/// The rule of which it takes too much work to find out if it applies.
#[cold]
pub(crate) fn over_budget(policy: &EndpointPolicy, rules: &RuleSet, unit: &Unit, subject: Subject<'_>) -> NearestMiss {
    let index = index_for(rules, subject);
    let decisions = index.decisions_on(&unit.predicates, subject);
    let predicates = || unit.predicates.iter().map(|p| index.predicate(*p)).zip(decisions.iter().copied());
    // Where a second attempt comes to an end, the states that it built were there.
    let open = predicates().find(|(_, holds)| holds.is_none()).or_else(|| predicates().next_back());
    let (field, expected) = open.map_or_else(
        || ("verdict".into(), "known".into()),
        |(p, _)| (p.field(), format!("comparable, within the work that one value may cause, with {p}").into()),
    );
    NearestMiss {
        rule: policy.rule_ref(rules, unit, subject.flow.direction),
        name: rules.rule(unit).name.clone(),
        field,
        expected,
        matched: predicates().filter(|(_, holds)| *holds == Some(true)).map(|(p, _)| p.field()).collect(),
    }
}

/// The rule that would change more of the request than may be changed.
#[cold]
pub(crate) fn too_many_edits(
    policy: &EndpointPolicy,
    rules: &RuleSet,
    unit: &Unit,
    subject: Subject<'_>,
    failures: &[Failure],
) -> NearestMiss {
    let index = index_for(rules, subject);
    let rule = rules.rule(unit);
    let matches = rule.matches(unit.http_rule);
    let failed = failures.iter().find(|failure| failure.why == Why::TooManyEdits);
    let failed = failed.and_then(|failure| matches.get(failure.index)).map(|header_match| {
        let expected = Why::TooManyEdits.wanted(header_match).into();
        ((&*header_match.name).into(), expected)
    });
    let (field, expected) = failed.unwrap_or_else(|| ("header_matches".into(), "fewer".into()));
    NearestMiss {
        rule: policy.rule_ref(rules, unit, subject.flow.direction),
        name: rule.name.clone(),
        field,
        expected,
        matched: unit.predicates.iter().map(|p| index.predicate(*p).field()).collect(),
    }
}

/// The deny rule that decided.
#[cold]
pub(crate) fn denied_by(policy: &EndpointPolicy, rules: &RuleSet, unit: &Unit, subject: Subject<'_>) -> NearestMiss {
    let index = index_for(rules, subject);
    let unseen = subject.flow.server_name == ServerName::Unknown && rules.rule(unit).asks_server_name();
    let (field, expected) = match unseen {
        true => ("server_names", "known: TLS is not inspected, so the rule may apply"),
        false => ("verdict", "allow"),
    };
    NearestMiss {
        rule: policy.rule_ref(rules, unit, subject.flow.direction),
        name: rules.rule(unit).name.clone(),
        field: field.into(),
        expected: expected.into(),
        matched: unit.predicates.iter().map(|p| index.predicate(*p).field()).filter(|f| **f != *field).collect(),
    }
}
