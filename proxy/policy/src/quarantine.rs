//! What is not enforced as written, and why.

use std::fmt;
use std::sync::Arc;

use crate::compile::rule::{Finding, Origin};
use crate::{Direction, EndpointPolicy, RuleRef};

/// An element of a policy that cannot be honoured. It takes its most restrictive reading; the rest is enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The smallest rule that holds it.
    pub rule: RuleRef,
    /// `name` of the rule that it belongs to, when it has one.
    pub name: Option<Arc<str>>,
    /// Path of the element inside that rule: `headers[1]`, `server_names[0]`, `port`.
    pub element: Arc<str>,
    /// What is wrong with it.
    pub reason: Arc<str>,
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}: {}", self.rule, self.element, self.reason)
    }
}

impl Quarantine {
    pub(crate) fn new(policy: &EndpointPolicy, direction: Direction, finding: &Finding) -> Self {
        let Origin { port_entry, rule } = finding.origin;
        let entry = policy.rules(direction).get(port_entry as usize);
        let named = entry.zip(rule).and_then(|(entry, rule)| entry.rules.get(rule as usize));
        Self {
            rule: rule_ref(policy.endpoint_id(), direction, finding.origin, finding.http_rule),
            name: named.map(|rule| rule.name.as_str()).filter(|name| !name.is_empty()).map(Arc::from),
            element: finding.element.clone(),
            reason: finding.reason.clone(),
        }
    }
}

pub(crate) const fn rule_ref(
    endpoint_id: u64,
    direction: Direction,
    origin: Origin,
    http_rule: Option<u32>,
) -> RuleRef {
    RuleRef { endpoint_id, direction, port_entry: origin.port_entry, rule: origin.rule, http_rule }
}
