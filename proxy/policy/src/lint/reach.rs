//! Rules that never decide, because others decide everything that they match before.
//!
//! Follows what compilation does to ports: every entry is split where another one begins or ends, and the wildcard's
//! rules are added to each part. A rule is said to be shadowed when in each of its parts one other rule, which no pass
//! rule skips, holds whenever it does.

use std::cmp::Reverse;
use std::collections::HashSet;

use super::cover::{covers_peer, covers_request};
use super::finding::{Element, Finding, Lint};
use super::probe::Probes;
use super::quarantined::BadRules;
use crate::model::{HttpRule, PortPolicy, PortRule, Protocol, RuleVerdict};

/// Comparisons of two rules, per direction of a policy.
const BUDGET: usize = 10_000_000;

/// A rule, or one of its HTTP alternatives.
#[derive(Clone, Copy)]
struct Unit<'a> {
    entry: usize,
    /// `None`: the entry has no rules, which allows everything.
    index: Option<usize>,
    rule: &'a PortRule,
    alternative: Option<(usize, &'a HttpRule)>,
}

impl Unit<'_> {
    const fn position(&self) -> (usize, Option<usize>, Option<usize>) {
        let alternative = match self.alternative {
            Some((index, _)) => Some(index),
            None => None,
        };
        (self.entry, self.index, alternative)
    }

    fn http(&self) -> Option<&HttpRule> {
        self.alternative.map(|(_, http)| http)
    }

    fn same_rule(&self, other: &Self) -> bool {
        (self.entry, self.index) == (other.entry, other.index)
    }

    /// Which rules decide first: higher precedence, then deny before allow before pass.
    fn order(&self) -> (Reverse<u32>, u8) {
        let verdict = match self.rule.verdict {
            RuleVerdict::Deny => 0,
            RuleVerdict::Allow => 1,
            RuleVerdict::Pass(_) => 2,
        };
        (Reverse(self.rule.precedence), verdict)
    }
}

pub(super) fn check(
    direction: &Element,
    entries: &[PortPolicy],
    bad: &BadRules,
    probes: &mut Probes,
    findings: &mut Vec<Finding>,
) {
    if bad.undecidable {
        return;
    }
    let everything = PortRule::default();
    let units = units(entries, bad, &everything);
    let parts = parts(entries, &units);
    let compared: usize = parts.iter().map(|part| part.len().saturating_mul(part.len())).sum();
    if compared > BUDGET {
        let what = format!("{} rules and alternatives are too many to compare each with each", units.len());
        let instead = "fewer rules, or fewer overlapping ports".to_owned();
        findings.push(Finding::new(Lint::NotCompared, direction.clone(), what, instead));
        return;
    }
    let mut covered: Vec<Option<usize>> = Vec::with_capacity(units.len());
    for number in 0..units.len() {
        covered.push(covering(&units, number, &parts, probes));
    }
    let mut number = 0;
    while number < units.len() {
        let rule = units[number];
        let alternatives = units[number..].iter().take_while(|unit| unit.same_rule(&rule)).count();
        let range = number..number + alternatives;
        // A rule goes as a whole only if others, not its own alternatives, cover all of it.
        let by_others = covered[range.clone()].iter().map(|by| by.filter(|by| !units[*by].same_rule(&rule)));
        match by_others.collect::<Option<Vec<usize>>>().as_deref() {
            Some([first, ..]) => {
                findings.push(describe(direction, &Unit { alternative: None, ..rule }, &units[*first]))
            }
            _ => {
                let each = range.clone().filter_map(|unit| Some((&units[unit], &units[covered[unit]?])));
                findings.extend(each.map(|(unit, by)| describe(direction, unit, by)));
            }
        }
        number = range.end;
    }
}

fn units<'a>(entries: &'a [PortPolicy], bad: &BadRules, everything: &'a PortRule) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    for (entry, policy) in entries.iter().enumerate().filter(|(_, policy)| policy.protocol == Protocol::Tcp) {
        if policy.rules.is_empty() && !bad.holds(entry, None, None) {
            units.push(Unit { entry, index: None, rule: everything, alternative: None });
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            let unit = Unit { entry, index: Some(index), rule, alternative: None };
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

/// For each part of the port space the numbers of its units; parts with the same units once.
fn parts(entries: &[PortPolicy], units: &[Unit<'_>]) -> Vec<Vec<usize>> {
    let span = |entry: usize| {
        let PortPolicy { port, end_port, .. } = entries[entry];
        (port, if end_port == 0 { port } else { end_port })
    };
    let mut starts: Vec<u32> = vec![0];
    for (first, last) in units.iter().map(|unit| span(unit.entry)).filter(|(first, _)| *first != 0) {
        starts.extend([first, last + 1]);
    }
    starts.sort_unstable();
    starts.dedup();
    let covers = |entry, port| {
        let (first, last) = span(entry);
        first == 0 || (first..=last).contains(&port)
    };
    let of_port = |port| (0..units.len()).filter(|unit| covers(units[*unit].entry, port)).collect::<Vec<usize>>();
    let parts: HashSet<Vec<usize>> = starts.into_iter().map(of_port).collect();
    parts.into_iter().filter(|part| !part.is_empty()).collect()
}

/// A unit that makes this one pointless in every part; the first in order, so that the answer is always the same.
fn covering(units: &[Unit<'_>], number: usize, parts: &[Vec<usize>], probes: &mut Probes) -> Option<usize> {
    let mut by = None;
    for part in parts.iter().filter(|part| part.contains(&number)) {
        let passes: Vec<&Unit<'_>> =
            part.iter().map(|unit| &units[*unit]).filter(|u| matches!(u.rule.verdict, RuleVerdict::Pass(_))).collect();
        let found = part.iter().copied().find(|other| covers(&units[*other], &units[number], &passes, probes))?;
        by = Some(by.map_or(found, |before: usize| before.min(found)));
    }
    by
}

/// Whether `unit` decides whatever `other` could, and does so first.
fn covers(unit: &Unit<'_>, other: &Unit<'_>, passes: &[&Unit<'_>], probes: &mut Probes) -> bool {
    if unit.position() == other.position() {
        return false;
    }
    let equal_rank = unit.order() == other.order() && unit.rule.verdict == other.rule.verdict;
    let decides_first = match unit.rule.verdict {
        RuleVerdict::Pass(below) => {
            unit.rule.precedence > other.rule.precedence && other.rule.precedence >= below && below != 0
        }
        _ => unit.order() < other.order(),
    };
    if !(decides_first || equal_rank) || skipped(unit, other, passes) || !covers_all(unit, other, probes) {
        return false;
    }
    // Where nobody reads server names, an allow that asks for one admits nothing, and any other such rule refuses.
    let (mine, theirs) = (unit.rule.verdict, other.rule.verdict);
    if mine == RuleVerdict::Allow && theirs != RuleVerdict::Allow && !unit.rule.server_names.is_empty() {
        return false;
    }
    // Header matches of a rule are carried out although an equal one decides, too.
    if equal_rank && other.http().is_some_and(|http| !http.header_matches.is_empty()) {
        return false;
    }
    // Of two that say the same the later one is superfluous.
    !equal_rank || unit.position() < other.position() || !covers_all(other, unit, probes)
}

fn covers_all(unit: &Unit<'_>, other: &Unit<'_>, probes: &mut Probes) -> bool {
    covers_peer(unit.rule, other.rule, &other.rule.remotes, probes) && covers_request(unit.http(), other.http(), probes)
}

/// Whether a pass rule may skip `unit` and go on at `other`.
fn skipped(unit: &Unit<'_>, other: &Unit<'_>, passes: &[&Unit<'_>]) -> bool {
    passes.iter().any(|pass| match pass.rule.verdict {
        RuleVerdict::Pass(below) => {
            pass.order() <= unit.order() && below <= unit.rule.precedence && other.rule.precedence < below
        }
        _ => false,
    })
}

fn describe(direction: &Element, unit: &Unit<'_>, by: &Unit<'_>) -> Finding {
    let element = |unit: &Unit<'_>| {
        let entry = direction.entry(unit.entry);
        match (unit.index, unit.alternative) {
            (Some(rule), Some((alternative, _))) => entry.rule(rule).http_rule(alternative),
            (Some(rule), None) => entry.rule(rule),
            (None, _) => entry,
        }
    };
    let same_verdict = unit.rule.verdict == by.rule.verdict;
    let lint = match (same_verdict, unit.rule.http.is_some() && by.http().is_none()) {
        (true, true) => Lint::HttpRuleWithoutEffect,
        (true, false) => Lint::RedundantRule,
        (false, _) => Lint::ShadowedRule,
    };
    let name = if by.rule.name.is_empty() { String::new() } else { format!(" ({:?})", by.rule.name) };
    let does = match by.rule.verdict {
        RuleVerdict::Allow => "allows",
        RuleVerdict::Deny => "denies",
        RuleVerdict::Pass(_) => "passes over",
    };
    let what = format!("{}{name} {does} everything that this one matches", element(by).path);
    let instead = match lint {
        Lint::HttpRuleWithoutEffect => "narrow the other rule to other peers or ports, or leave these HTTP rules out",
        Lint::RedundantRule => "leave one of the two out",
        _ => "raise its precedence above the other's, narrow the other rule, or leave this one out",
    };
    let finding = Finding::new(lint, element(unit), what, instead.to_owned());
    Finding { because_of: Some(element(by)), ..finding }
}
