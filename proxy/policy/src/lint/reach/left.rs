//! What would be left if everything went that never decides: a port without HTTP rules carries any bytes, and an entry without
//! rules allows everything, so that a rule may matter although it never decides.

use std::collections::HashSet;

use super::super::quarantined::BadRules;
use super::Pointless;
use super::unit::{Span, Unit, span};
use crate::model::{PortPolicy, Protocol, RuleVerdict};

/// What the rules that stay make of ports and entries.
pub(super) struct Left {
    /// Ports that are read as HTTP because of them, in order and apart from each other.
    http: Vec<Span>,
    /// Entries of which every rule would go.
    emptied: HashSet<usize>,
}

impl Left {
    pub(super) fn of(entries: &[PortPolicy], bad: &BadRules, pointless: &[Pointless<'_>]) -> Self {
        let gone: HashSet<(usize, Option<usize>)> = pointless
            .iter()
            .filter(|pointless| pointless.unit.alternative.is_none())
            .map(|pointless| (pointless.unit.entry, pointless.unit.index))
            .collect();
        let stays = |entry: usize, rule: usize| !gone.contains(&(entry, Some(rule)));
        let mut http = Vec::new();
        let mut emptied = HashSet::new();
        for (number, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.protocol == Protocol::Tcp) {
            let mut rules = entry.rules.iter().enumerate().filter(|(rule, _)| stays(number, *rule)).peekable();
            if rules.peek().is_none() {
                emptied.insert(number);
            }
            // HTTP rules of any other are to go as well (`deny-ignores-http`).
            if !bad.partial.contains(&number)
                && rules.any(|(_, rule)| rule.verdict == RuleVerdict::Allow && rule.http.is_some())
            {
                http.push(span(entry));
            }
        }
        Self { http: joined(http), emptied }
    }

    /// Whether some port of the unit would no longer be read as HTTP.
    pub(super) fn loses_http(&self, unit: &Unit<'_>) -> bool {
        let (first, last) = unit.ports;
        let before = self.http.partition_point(|(start, _)| *start <= first);
        let stays = before.checked_sub(1).is_some_and(|index| last <= self.http[index].1);
        unit.rule.http.is_some() && unit.alternative.is_none() && !stays
    }

    /// Whether the unit's entry would have no rule.
    pub(super) fn empties_entry(&self, unit: &Unit<'_>) -> bool {
        unit.index.is_some() && unit.alternative.is_none() && self.emptied.contains(&unit.entry)
    }
}

/// The same ports, without overlap and without neighbours.
fn joined(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut joined: Vec<Span> = Vec::new();
    for (first, last) in spans {
        match joined.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}
