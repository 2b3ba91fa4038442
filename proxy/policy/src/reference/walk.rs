//! Section 1.4: the walk through the rules of a port.

use super::header_match::Copy;
use super::order::Order;
use super::ports::Placed;
use super::{Denial, Truth, http, peer};
use crate::model::RuleVerdict;
use crate::{DenyReason, Flow, NetworkPolicy, RuleRef};

/// What is walked for.
pub(super) enum Layer<'a, 'r> {
    /// The connection alone (L4 and server name).
    Connection,
    /// A request, and with it the connection.
    Request(&'a mut Copy<'r>),
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

/// An allow or a deny decides; a pass goes on at its continuation. With header matches the other allows of the precedence
/// that allowed still run theirs.
pub(super) fn walk<'p>(order: &Order<'p>, flow: &Flow<'_>, layer: &mut Layer<'_, '_>) -> Decision<'p> {
    let short_circuit = matches!(layer, Layer::Connection) || !order.has_header_matches();
    let mut allowed: Option<Place<'p>> = None;
    let mut quarantined = false;
    let mut i = 0;
    while let Some(rule) = order.rules().get(i) {
        if allowed.is_some_and(|first| rule.precedence() < first.rule.precedence()) {
            break;
        }
        let place = |http_rule| Place { rule: *rule, http_rule };
        match (refine(rule, flow, layer), allowed) {
            (Refined::Allow(http_rule), None) if short_circuit => return Decision::Allow(place(http_rule)),
            (Refined::Allow(http_rule), None) => allowed = Some(place(http_rule)),
            (Refined::Deny, None) => return Decision::Deny(place(None)),
            (Refined::Pass(below), None) => {
                i = order.continuation(i, below);
                continue;
            }
            (Refined::NothingForQuarantine, None) => quarantined = true,
            _ => {}
        }
        if matches!(layer, Layer::Request(copy) if copy.too_many_changes) {
            break;
        }
        i += 1;
    }
    allowed.map_or(Decision::None { quarantined }, Decision::Allow)
}

/// The rule's verdict if it concerns what is walked for. What cannot be honoured keeps an allow from applying and a deny
/// from not applying.
fn refine(rule: &Placed<'_>, flow: &Flow<'_>, layer: &mut Layer<'_, '_>) -> Refined {
    let concerned = peer::concerns(rule, flow);
    match (rule.verdict(), concerned) {
        (_, Truth::Fails) => Refined::Nothing,
        (RuleVerdict::Deny, _) => Refined::Deny,
        (RuleVerdict::Pass(_), _) if peer::passes_blindly(rule, flow) => Refined::Deny,
        (RuleVerdict::Pass(below), _) => Refined::Pass(below),
        (RuleVerdict::Allow, _) => allows(rule, concerned, layer),
    }
}

/// Section 1.5: the first HTTP rule that matches wins, and if the rule has header matches, all that match run theirs; a
/// rule without an HTTP part allows any request.
fn allows(rule: &Placed<'_>, concerned: Truth, layer: &mut Layer<'_, '_>) -> Refined {
    let http_rules = rule.rule().and_then(|rule| rule.http.as_ref()).filter(|rules| !rules.is_empty());
    let mut quarantined = false;
    let mut weigh = |truth: Truth| {
        quarantined |= truth == Truth::Unenforceable;
        truth == Truth::Holds
    };
    let mut allowed = None;
    match (layer, http_rules) {
        (Layer::Request(copy), Some(http_rules)) => {
            let has_matches = http_rules.iter().any(|rule| !rule.header_matches.is_empty());
            for (at, http_rule) in http_rules.iter().enumerate() {
                let holds = weigh(concerned.and(http::matches(http_rule, copy.request)));
                if copy.too_many_changes {
                    break;
                }
                if holds && copy.run(&http_rule.header_matches) {
                    allowed = allowed.or(Some(Some(at as u32)));
                    if !has_matches {
                        break;
                    }
                }
            }
        }
        _ => allowed = weigh(concerned).then_some(None),
    }
    match allowed {
        Some(http_rule) => Refined::Allow(http_rule),
        None if quarantined => Refined::NothingForQuarantine,
        None => Refined::Nothing,
    }
}
