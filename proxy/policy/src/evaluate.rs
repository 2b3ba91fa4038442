//! The decision: one pure call per connection and one per request.
//!
//! Differs from Cilium's filter on purpose in two points: a request is admitted only by a rule that also admits its
//! connection (identity, proxy id and server name), and a port without HTTP rules that denies the connection denies
//! its requests too.

use crate::compile::index::{Subject, Unit};
use crate::compile::{PortLookup, RuleSet, Walk};
use crate::explain;
use crate::quarantine::rule_ref;
use crate::{
    ConnectionVerdict, DenyReason, Direction, EndpointPolicy, Flow, NearestMiss, Permit, Request, RuleRef, Snapshot,
    Verdict,
};

/// What one policy says.
enum Outcome {
    Allow(RuleRef),
    Deny(DenyReason, Option<Box<NearestMiss>>),
}

impl Snapshot {
    /// Judges a connection before any of its bytes are interpreted. Allocates only to explain a denial.
    pub fn evaluate_connection(&self, flow: &Flow<'_>) -> ConnectionVerdict {
        let mut admitted = None;
        let mut inspect = false;
        for policy in self.endpoint(flow.endpoint) {
            match policy.connection(flow) {
                (Outcome::Allow(rule), has_http) => {
                    admitted.get_or_insert(rule);
                    inspect |= has_http;
                }
                (Outcome::Deny(reason, nearest), _) => {
                    return ConnectionVerdict::Deny { reason, nearest };
                }
            }
        }
        match admitted {
            Some(_) if inspect => ConnectionVerdict::InspectHttp,
            Some(rule) => ConnectionVerdict::AllowTcp { rule, permit: Permit(()) },
            None => ConnectionVerdict::Deny { reason: DenyReason::NoPolicy, nearest: None },
        }
    }

    /// Judges a request, and with it the connection that it came on. Allocates only to explain a denial, and for a
    /// header that rules ask about and that the request has more than once, or an overlong server name.
    pub fn evaluate_request(&self, flow: &Flow<'_>, request: &Request<'_>) -> Verdict {
        let mut admitted = None;
        for policy in self.endpoint(flow.endpoint) {
            match policy.request(flow, request) {
                Outcome::Allow(rule) => {
                    admitted.get_or_insert(rule);
                }
                Outcome::Deny(reason, nearest) => return Verdict::Deny { reason, nearest },
            }
        }
        match admitted {
            Some(rule) => Verdict::Allow { rule, permit: Permit(()) },
            None => Verdict::Deny { reason: DenyReason::NoPolicy, nearest: None },
        }
    }
}

impl EndpointPolicy {
    /// The outcome, and whether the port has HTTP rules.
    fn connection(&self, flow: &Flow<'_>) -> (Outcome, bool) {
        let subject = Subject { flow, request: None };
        match self.side(flow.direction).compiled.lookup(flow.port) {
            PortLookup::Rules(rules) => {
                let outcome = self.conclude(rules, rules.walk_connection(subject), subject);
                (outcome, rules.has_http())
            }
            other => (self.without_rules(flow.direction, &other), false),
        }
    }

    fn request(&self, flow: &Flow<'_>, request: &Request<'_>) -> Outcome {
        let subject = Subject { flow, request: Some(request) };
        match self.side(flow.direction).compiled.lookup(flow.port) {
            PortLookup::Rules(rules) => self.conclude(rules, rules.walk_request(subject), subject),
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

    fn conclude(&self, rules: &RuleSet, walk: Walk<'_>, subject: Subject<'_>) -> Outcome {
        match walk {
            Walk::Allow(unit) => Outcome::Allow(self.rule_ref(rules, unit, subject.flow.direction)),
            Walk::Deny(unit) => {
                let nearest = explain::denied_by(self, rules, unit, subject);
                Outcome::Deny(DenyReason::DenyRule, Some(Box::new(nearest)))
            }
            Walk::Contradiction(finding) => {
                let nearest = explain::quarantined(self.endpoint_id(), subject.flow.direction, finding);
                Outcome::Deny(DenyReason::Quarantined, Some(Box::new(nearest)))
            }
            Walk::Undecided => {
                let (reason, nearest) = explain::undecided(self, rules, subject);
                Outcome::Deny(reason, nearest.map(Box::new))
            }
        }
    }

    pub(crate) fn rule_ref(&self, rules: &RuleSet, unit: &Unit, direction: Direction) -> RuleRef {
        rule_ref(self.endpoint_id(), direction, rules.rule(unit).origin, unit.http_rule)
    }
}
