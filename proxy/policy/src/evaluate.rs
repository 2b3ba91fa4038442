//! The decision: one pure call per connection and one per request.
//!
//! Differs from Cilium's filter on purpose:
//! - A request is admitted only by a rule that also admits its connection (identity, proxy id and server name), and a
//!   port without HTTP rules that denies the connection denies its requests too.
//! - `headers` hold or fail for the request as it was received; what `header_matches` of another rule made of it neither
//!   admits nor hides it. The matches themselves see the edits of those before them.
//! - A secret that is delivered and empty, or that no header can carry, fails what names it. In Cilium's filter an empty one
//!   turns the comparison into a test for presence.

use std::sync::Arc;

use crate::compile::index::{Subject, Unit};
use crate::compile::{PortLookup, RuleSet, Walk, Work};
use crate::explain;
use crate::header_match::{Failure, Trial};
use crate::quarantine::rule_ref;
use crate::{
    ConnectionVerdict, DenyReason, Direction, EndpointPolicy, Flow, NearestMiss, Permit, Request, RuleRef, Secrets,
    Snapshot, Verdict,
};

/// What one policy says.
enum Outcome {
    Allow(RuleRef, Option<Arc<str>>),
    Deny(DenyReason, Option<Box<NearestMiss>>),
}

impl Snapshot {
    /// Judges a connection before any of its bytes are interpreted. Allocates only to explain a denial.
    pub fn evaluate_connection(&self, flow: &Flow<'_>) -> ConnectionVerdict {
        let mut admitted = None;
        let mut inspect = false;
        let work = Work::default();
        for policy in self.endpoint(flow.endpoint) {
            match policy.connection(Subject { flow, request: None, work: &work }) {
                (Outcome::Allow(rule, name), has_http) => {
                    admitted.get_or_insert((rule, name));
                    inspect |= has_http;
                }
                (Outcome::Deny(reason, nearest), _) => {
                    return ConnectionVerdict::Deny { reason, nearest };
                }
            }
        }
        match admitted {
            Some(_) if inspect => ConnectionVerdict::InspectHttp,
            Some((rule, name)) => ConnectionVerdict::AllowTcp { rule, name, permit: Permit(()) },
            None => ConnectionVerdict::Deny { reason: DenyReason::NoPolicy, nearest: None },
        }
    }

    /// Judges a request, and with it the connection that it came on. Allocates only to explain a denial, for a header that
    /// rules ask about and that the request has more than once, for an overlong server name, and where rules have header
    /// matches.
    pub fn evaluate_request(&self, flow: &Flow<'_>, request: &Request<'_>, secrets: &Secrets) -> Verdict {
        let mut admitted = None;
        let mut trial = None;
        let work = Work::default();
        let mut denied = None;
        for policy in self.endpoint(flow.endpoint) {
            match policy.request(Subject { flow, request: Some(request), work: &work }, request, secrets, &mut trial) {
                Outcome::Allow(rule, name) => {
                    admitted.get_or_insert((rule, name));
                }
                Outcome::Deny(reason, nearest) => {
                    denied = Some((reason, nearest));
                    break;
                }
            }
        }
        let (edits, log) = trial.map(|trial| (trial.edits, trial.log)).unwrap_or_default();
        let log = (!log.is_empty()).then(|| Box::new(log));
        match (denied, admitted) {
            (Some((reason, nearest)), _) => Verdict::Deny { reason, nearest, log },
            (None, Some((rule, name))) => Verdict::Allow { rule, name, permit: Permit(()), edits, log },
            (None, None) => Verdict::Deny { reason: DenyReason::NoPolicy, nearest: None, log },
        }
    }

    /// Whether a rule that a request of this flow is judged by looks at or edits header fields of that name (lower case). A
    /// trailer of that name could dodge it.
    pub fn reads_field(&self, flow: &Flow<'_>, name: &str) -> bool {
        self.endpoint(flow.endpoint).any(|policy| match policy.side(flow.direction).compiled.lookup(flow.port) {
            PortLookup::Rules(rules) => rules.reads(name),
            PortLookup::Denied(_) | PortLookup::Nothing => false,
        })
    }

    /// Names of header fields (lower case, each list in order) that rules for requests of this flow compare with a secret
    /// or put one into: their values are not to be shown. Mostly there are none.
    pub fn secret_fields<'a>(&'a self, flow: &Flow<'a>) -> Vec<&'a [Box<str>]> {
        let direction = flow.direction;
        let port = flow.port;
        let lists =
            self.endpoint(flow.endpoint).filter_map(move |policy| match policy.side(direction).compiled.lookup(port) {
                PortLookup::Rules(rules) => Some(rules.secret_fields()),
                PortLookup::Denied(_) | PortLookup::Nothing => None,
            });
        lists.filter(|names| !names.is_empty()).collect()
    }
}

impl EndpointPolicy {
    /// The outcome, and whether the port has HTTP rules.
    fn connection(&self, subject: Subject<'_>) -> (Outcome, bool) {
        let flow = subject.flow;
        match self.side(flow.direction).compiled.lookup(flow.port) {
            PortLookup::Rules(rules) => {
                let outcome = self.conclude(rules, rules.walk_connection(subject), subject, &[]);
                (outcome, rules.has_http())
            }
            other => (self.without_rules(flow.direction, &other), false),
        }
    }

    /// `trial` is made by the first policy whose rules need one, and goes on with the next.
    fn request<'r>(
        &self,
        subject: Subject<'_>,
        request: &'r Request<'r>,
        secrets: &'r Secrets,
        trial: &mut Option<Trial<'r>>,
    ) -> Outcome {
        let flow = subject.flow;
        match self.side(flow.direction).compiled.lookup(flow.port) {
            PortLookup::Rules(rules) if rules.has_header_matches() => {
                let trial = trial.get_or_insert_with(|| Trial::new(request, secrets));
                trial.next_policy();
                let walk = rules.walk_trial(subject, trial);
                self.conclude(rules, walk, subject, &trial.failures)
            }
            PortLookup::Rules(rules) => self.conclude(rules, rules.walk_request(subject), subject, &[]),
            other => self.without_rules(flow.direction, &other),
        }
    }

    #[cold]
    fn without_rules(&self, direction: Direction, lookup: &PortLookup<'_>) -> Outcome {
        match lookup {
            PortLookup::Denied(finding) => {
                let nearest = explain::quarantined(self.endpoint_id(), direction, finding);
                Outcome::Deny(DenyReason::Quarantined, Some(Box::new(nearest)))
            }
            _ => Outcome::Deny(DenyReason::NoPortRule, None),
        }
    }

    /// `failures` are the header matches because of which rules that apply did not admit.
    fn conclude(&self, rules: &RuleSet, walk: Walk<'_>, subject: Subject<'_>, failures: &[Failure]) -> Outcome {
        match walk {
            Walk::Allow(unit) => {
                let rule = self.rule_ref(rules, unit, subject.flow.direction);
                Outcome::Allow(rule, rules.rule(unit).name.clone())
            }
            Walk::Deny(unit) => {
                let nearest = explain::denied_by(self, rules, unit, subject);
                Outcome::Deny(DenyReason::DenyRule, Some(Box::new(nearest)))
            }
            Walk::Contradiction(finding) => {
                let nearest = explain::quarantined(self.endpoint_id(), subject.flow.direction, finding);
                Outcome::Deny(DenyReason::Quarantined, Some(Box::new(nearest)))
            }
            Walk::OverBudget(unit) => {
                let nearest = explain::over_budget(self, rules, unit, subject);
                Outcome::Deny(DenyReason::MatchBudget, Some(Box::new(nearest)))
            }
            Walk::TooManyEdits(unit) => {
                let nearest = explain::too_many_edits(self, rules, unit, subject, failures);
                Outcome::Deny(DenyReason::MatchBudget, Some(Box::new(nearest)))
            }
            Walk::Undecided => {
                let (reason, nearest) = explain::undecided(self, rules, subject, failures);
                Outcome::Deny(reason, nearest.map(Box::new))
            }
        }
    }

    pub(crate) fn rule_ref(&self, rules: &RuleSet, unit: &Unit, direction: Direction) -> RuleRef {
        rule_ref(self.endpoint_id(), direction, rules.rule(unit).origin, unit.http_rule)
    }
}
