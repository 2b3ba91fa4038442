//! Section 1.4: the walk through the rules of a port.

use super::order::Order;
use super::ports::Placed;
use super::{Denial, Truth, http, peer};
use crate::model::RuleVerdict;
use crate::{DenyReason, Flow, NetworkPolicy, Request, RuleRef};

/// What is walked for.
#[derive(Clone, Copy)]
pub(super) enum Layer<'a> {
    /// The connection alone (L4 and server name).
    Connection,
    /// A request, and with it the connection.
    Request(&'a Request<'a>),
}

/// A rule that decided.
#[derive(Clone, Copy)]
pub(super) struct Place<'p> {
    rule: Placed<'p>,
    http_rule: Option<u32>,
}

impl Place<'_> {
    pub(super) fn in_policy(&self, policy: &NetworkPolicy, flow: &Flow<'_>) -> RuleRef {
        self.rule.in_policy(policy, flow, self.http_rule)
    }
}

/// Outcome of a walk.
pub(super) enum Decision<'p> {
    Allow(Place<'p>),
    Deny(Place<'p>),
    /// No rule decided, which refuses.
    None {
        /// A rule that was reached would have admitted, had it not been for what cannot be honoured.
        quarantined: bool,
    },
}

impl Decision<'_> {
    /// Why this refuses. `undecided` is the reason when nothing decided.
    pub(super) fn denial(&self, policy: &NetworkPolicy, flow: &Flow<'_>, undecided: DenyReason) -> Denial {
        match self {
            Self::None { quarantined: true } => Denial { reason: DenyReason::Quarantined, rule: None },
            Self::None { quarantined: false } => Denial { reason: undecided, rule: None },
            Self::Allow(place) | Self::Deny(place) => {
                Denial { reason: DenyReason::DenyRule, rule: Some(place.in_policy(policy, flow)) }
            }
        }
    }
}

/// What one rule says about what is walked for.
enum Refined {
    Nothing,
    /// It would allow if it could be honoured.
    NothingForQuarantine,
    Allow(Option<u32>),
    Deny,
    Pass(u32),
}

/// An allow or a deny decides; a pass goes on at its continuation.
pub(super) fn walk<'p>(order: &Order<'p>, flow: &Flow<'_>, layer: Layer<'_>) -> Decision<'p> {
    let mut quarantined = false;
    let mut i = 0;
    while let Some(rule) = order.rules().get(i) {
        let place = |http_rule| Place { rule: *rule, http_rule };
        match refine(rule, flow, layer) {
            Refined::Allow(http_rule) => return Decision::Allow(place(http_rule)),
            Refined::Deny => return Decision::Deny(place(None)),
            Refined::Pass(below) => {
                i = order.continuation(i, below);
                continue;
            }
            Refined::NothingForQuarantine => quarantined = true,
            Refined::Nothing => {}
        }
        i += 1;
    }
    Decision::None { quarantined }
}

/// The rule's verdict if it concerns what is walked for. What cannot be honoured keeps an allow from applying and a deny
/// from not applying.
fn refine(rule: &Placed<'_>, flow: &Flow<'_>, layer: Layer<'_>) -> Refined {
    let concerned = peer::concerns(rule, flow);
    match (rule.verdict(), concerned) {
        (_, Truth::Fails) => Refined::Nothing,
        (RuleVerdict::Deny, _) => Refined::Deny,
        (RuleVerdict::Pass(_), _) if peer::passes_blindly(rule, flow) => Refined::Deny,
        (RuleVerdict::Pass(below), _) => Refined::Pass(below),
        (RuleVerdict::Allow, _) => allows(rule, concerned, layer),
    }
}

/// Section 1.5: the first HTTP rule that matches wins; a rule without an HTTP part allows any request.
fn allows(rule: &Placed<'_>, concerned: Truth, layer: Layer<'_>) -> Refined {
    let http_rules = rule.rule().and_then(|rule| rule.http.as_ref()).filter(|rules| !rules.is_empty());
    let mut quarantined = false;
    let mut weigh = |truth: Truth| {
        quarantined |= truth == Truth::Unenforceable;
        truth == Truth::Holds
    };
    let allowed = match (layer, http_rules) {
        (Layer::Request(request), Some(http_rules)) => {
            let holds = |http_rule| weigh(concerned.and(http::matches(http_rule, request)));
            http_rules.iter().position(holds).map(|at| Some(at as u32))
        }
        _ => weigh(concerned).then_some(None),
    };
    match allowed {
        Some(http_rule) => Refined::Allow(http_rule),
        None if quarantined => Refined::NothingForQuarantine,
        None => Refined::Nothing,
    }
}
