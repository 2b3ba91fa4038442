//! Section 1.3, steps 6 and 7: the order in which rules decide, and where a pass goes on.

use std::cmp::Reverse;

use super::peer;
use super::ports::Placed;
use crate::model::RuleVerdict;

/// The rules of one port in deciding order.
pub(super) struct Order<'p> {
    rules: Vec<Placed<'p>>,
}

impl<'p> Order<'p> {
    /// `None`: the pass rules contradict each other, or one of them cannot be honoured. Then nobody can say which rules
    /// were to be skipped, and the port refuses everything.
    pub(super) fn of(mut rules: Vec<Placed<'p>>) -> Option<Self> {
        // Step 6; the sort is stable. Beyond it: a pass that may refuse for want of a server name comes after those that may
        // not, so that order decides nothing.
        rules.sort_by_key(|rule| (Reverse(rule.precedence()), rank(rule)));
        let order = Self { rules };
        (order.tiers_agree() && !order.rules.iter().any(peer::is_unusable_pass)).then_some(order)
    }

    pub(super) fn rules(&self) -> &[Placed<'p>] {
        &self.rules
    }

    /// Whether any rule, whatever its verdict, has an HTTP part.
    pub(super) fn has_http_rules(&self) -> bool {
        self.rules.iter().filter_map(Placed::rule).any(|rule| rule.http.is_some())
    }

    /// Whether any rule has header matches, so that an allow is not the end of the walk.
    pub(super) fn has_header_matches(&self) -> bool {
        let http_rules = self.rules.iter().filter_map(Placed::rule).filter_map(|rule| rule.http.as_ref()).flatten();
        http_rules.into_iter().any(|rule| !rule.header_matches.is_empty())
    }

    /// Step 7: the first rule after `pass` whose precedence is strictly below `below`.
    pub(super) fn continuation(&self, pass: usize, below: u32) -> usize {
        let later = (pass + 1..self.rules.len()).find(|i| self.rules[*i].precedence() < below);
        later.unwrap_or(self.rules.len())
    }

    /// Step 7: going down, all pass rules of a tier name the same precedence. The tier ends where a pass rule's own
    /// precedence falls below it. No pass rule may name a precedence above its own.
    fn tiers_agree(&self) -> bool {
        let mut tier = None;
        for rule in &self.rules {
            let RuleVerdict::Pass(below) = rule.verdict() else { continue };
            if below > rule.precedence() {
                return false;
            }
            if tier.is_some_and(|current| rule.precedence() >= current && below != current) {
                return false;
            }
            tier = Some(below);
        }
        true
    }
}

fn rank(rule: &Placed<'_>) -> u8 {
    match rule.verdict() {
        RuleVerdict::Deny => 0,
        RuleVerdict::Allow => 1,
        RuleVerdict::Pass(_) if !peer::asks_server_name(rule) => 2,
        RuleVerdict::Pass(_) => 3,
    }
}
