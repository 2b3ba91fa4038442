//! What is compared: each rule without HTTP conditions, and each HTTP alternative of the others.

use std::cmp::Reverse;

use super::super::quarantined::BadRules;
use crate::model::{HttpRule, PortPolicy, PortRule, Protocol, RuleVerdict};

/// First and last port. Every port is 0 to 65535.
pub(super) type Span = (u32, u32);

/// A rule, or one of its HTTP alternatives.
#[derive(Clone, Copy)]
pub(super) struct Unit<'a> {
    pub(super) entry: usize,
    /// `None`: the entry has no rules, which allows everything.
    pub(super) index: Option<usize>,
    pub(super) rule: &'a PortRule,
    pub(super) alternative: Option<(usize, &'a HttpRule)>,
    pub(super) ports: Span,
    /// It stands for other protocols as well, which are not looked at.
    pub(super) all_protocols: bool,
}

impl Unit<'_> {
    pub(super) const fn position(&self) -> (usize, Option<usize>, Option<usize>) {
        let alternative = match self.alternative {
            Some((index, _)) => Some(index),
            None => None,
        };
        (self.entry, self.index, alternative)
    }

    pub(super) fn http(&self) -> Option<&HttpRule> {
        self.alternative.map(|(_, http)| http)
    }

    pub(super) fn same_rule(&self, other: &Self) -> bool {
        (self.entry, self.index) == (other.entry, other.index)
    }

    pub(super) const fn passes(&self) -> bool {
        matches!(self.rule.verdict, RuleVerdict::Pass(_))
    }

    /// Which rules decide first: higher precedence, then deny before allow before pass.
    pub(super) fn order(&self) -> (Reverse<u32>, u8) {
        let verdict = match self.rule.verdict {
            RuleVerdict::Deny => 0,
            RuleVerdict::Allow => 1,
            RuleVerdict::Pass(_) => 2,
        };
        (Reverse(self.rule.precedence), verdict)
    }
}

/// The ports of an entry.
pub(super) const fn span(entry: &PortPolicy) -> Span {
    match (entry.port, entry.end_port) {
        (0, _) => (0, 65_535),
        (port, 0) => (port, port),
        (port, end_port) => (port, end_port),
    }
}

pub(super) const fn overlap(a: Span, b: Span) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

/// The units of a direction in their order, without what is not enforced as written.
pub(super) fn units<'a>(entries: &'a [PortPolicy], bad: &BadRules, everything: &'a PortRule) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    for (entry, policy) in entries.iter().enumerate().filter(|(_, policy)| policy.protocol == Protocol::Tcp) {
        let ports = span(policy);
        let all_protocols = bad.all_protocols.contains(&entry);
        if policy.rules.is_empty() && !bad.holds(entry, None, None) {
            units.push(Unit { entry, index: None, rule: everything, alternative: None, ports, all_protocols });
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            let unit = Unit { entry, index: Some(index), rule, alternative: None, ports, all_protocols };
            match &rule.http {
                Some(alternatives) if rule.verdict == RuleVerdict::Allow => {
                    let good = |alternative| !bad.holds(entry, Some(index), Some(alternative));
                    let alternatives = alternatives.iter().enumerate().filter(|(alternative, _)| good(*alternative));
                    units.extend(alternatives.map(|http| Unit { alternative: Some(http), ..unit }));
                }
                _ if bad.holds(entry, Some(index), None) => {}
                _ => units.push(unit),
            }
        }
    }
    units
}
