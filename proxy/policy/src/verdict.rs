//! What an evaluation returns: an enum that must be used, the rule that decided, and why the nearest rule did not match.

use std::fmt;
use std::sync::Arc;

use crate::{Direction, HeaderEdits, HeaderLog};

/// Proof that an evaluation said "allow". Opening an upstream connection needs one, so that no code path can forward
/// without having asked. Only this crate can make one.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit(pub(crate) ());

/// Where in the endpoint's `NetworkPolicy` a rule stands. Written as the path of its field, so that a reader can go
/// there: `69 ingress_per_port_policies[0].rules[1].http_rules[0]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleRef {
    /// `endpoint_id` of the policy.
    pub endpoint_id: u64,
    /// Which of the two lists.
    pub direction: Direction,
    /// Index in `*_per_port_policies`.
    pub port_entry: u32,
    /// Index in `rules`; `None` when the entry has no rules and so allows everything.
    pub rule: Option<u32>,
    /// Index in `http_rules.http_rules`; `None` when the rule has none.
    pub http_rule: Option<u32>,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}_per_port_policies[{}]", self.endpoint_id, self.direction, self.port_entry)?;
        if let Some(rule) = self.rule {
            write!(f, ".rules[{rule}]")?;
        }
        if let Some(http_rule) = self.http_rule {
            write!(f, ".http_rules[{http_rule}]")?;
        }
        Ok(())
    }
}

/// Why an evaluation denied. A closed list: each is one reason code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// The snapshot has no policy for the endpoint.
    NoPolicy,
    /// No entry covers the port in this direction.
    NoPortRule,
    /// Entries cover the port, but no rule admits this peer (identity, proxy id or server name).
    NoPeerRule,
    /// Rules admit the peer, but none admits this request.
    NoHttpRule,
    /// A deny rule matched.
    DenyRule,
    /// Finding out whether a regular expression matches would take more work than one request may cause, or header matches
    /// would change more fields than those of one request may be changed.
    MatchBudget,
    /// What would have decided is quarantined, so the most restrictive reading applies.
    Quarantined,
}

/// The rule that came closest to admitting, and the first of its predicates that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearestMiss {
    /// The rule.
    pub rule: RuleRef,
    /// `name` of the rule, when it has one.
    pub name: Option<Arc<str>>,
    /// What was tested: `port`, `remote_policies`, `:method`, `:path`, a header name, …
    pub field: Arc<str>,
    /// What the rule asks for, as its author wrote it: `regex "GET"`, `one of [32226]`, …
    pub expected: Arc<str>,
    /// What the rule's other predicates did: `:method matched`, empty when it is the first.
    pub matched: Vec<Arc<str>>,
}

impl fmt::Display for NearestMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for field in &self.matched {
            write!(f, "{field} matched, ")?;
        }
        write!(f, "{} is not {} ({})", self.field, self.expected, self.rule)
    }
}

/// Outcome of judging one request against one policy generation.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a verdict that is ignored is an open door"]
pub enum Verdict {
    /// Forward it.
    Allow {
        /// The rule that admitted it.
        rule: RuleRef,
        /// `name` of the rule, when it has one.
        name: Option<Arc<str>>,
        /// Needed to open the upstream.
        permit: Permit,
        /// What to change before it is forwarded.
        edits: HeaderEdits,
        /// What header matches found, when they found anything.
        log: Option<Box<HeaderLog>>,
    },
    /// Refuse it.
    Deny {
        /// Why.
        reason: DenyReason,
        /// What came closest, when any rule exists for the port.
        nearest: Option<Box<NearestMiss>>,
        /// What header matches found, when they found anything.
        log: Option<Box<HeaderLog>>,
    },
}

/// Outcome of judging one connection before any of its bytes are interpreted.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a verdict that is ignored is an open door"]
pub enum ConnectionVerdict {
    /// The port has no HTTP rules: pass it as TCP.
    AllowTcp {
        /// The rule that admitted it.
        rule: RuleRef,
        /// `name` of the rule, when it has one.
        name: Option<Arc<str>>,
        /// Needed to open the upstream.
        permit: Permit,
    },
    /// The port has HTTP rules: parse HTTP and judge each request.
    InspectHttp,
    /// Reset it.
    Deny {
        /// Why.
        reason: DenyReason,
        /// What came closest, when any rule exists for the port.
        nearest: Option<Box<NearestMiss>>,
    },
}
