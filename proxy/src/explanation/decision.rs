//! What decided, whatever layer it was: one reading for text and JSON.

use tollgate_policy::{ConnectionVerdict, DenyReason, NearestMiss, RuleRef, RuleVerdict, Verdict};

use super::Explained;
use crate::http::h1::Refusal;

/// What decided.
#[derive(Debug)]
pub(super) enum Decision<'a> {
    Rule(RuleRef),
    /// The connection is admitted and its requests are judged one by one.
    Inspect,
    Denied(DenyReason, Option<&'a NearestMiss>),
    /// It never came to policy.
    Refused(&'a Refusal),
}

pub(super) fn decision(explained: &Explained) -> Decision<'_> {
    if let Some(refusal) = explained.refused() {
        return Decision::Refused(refusal);
    }
    match (&explained.explanation.connection, &explained.explanation.request) {
        (ConnectionVerdict::Deny { reason, nearest }, _) => Decision::Denied(*reason, nearest.as_deref()),
        (ConnectionVerdict::AllowTcp { rule, .. }, _) => Decision::Rule(*rule),
        (ConnectionVerdict::InspectHttp, Some(Verdict::Allow { rule, .. })) => Decision::Rule(*rule),
        (ConnectionVerdict::InspectHttp, Some(Verdict::Deny { reason, nearest, .. })) => {
            Decision::Denied(*reason, nearest.as_deref())
        }
        (ConnectionVerdict::InspectHttp, None) => Decision::Inspect,
    }
}

/// What a rule does with what it matches.
pub(super) fn verdict(verdict: RuleVerdict) -> String {
    match verdict {
        RuleVerdict::Allow => "allow".to_owned(),
        RuleVerdict::Deny => "deny".to_owned(),
        RuleVerdict::Pass(precedence) => format!("pass below {precedence}"),
    }
}
