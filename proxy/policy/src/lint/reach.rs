//! Rules that never decide, because others decide everything that they match before.
//!
//! Follows what compilation does to ports: every entry is split where another one begins or ends, and the wildcard's
//! rules are added to each part. A rule is said to be shadowed when in each of its parts one other rule, which no pass
//! rule skips, holds whenever it does; or when it can be taken apart (see [`cells`]) so that this is so of each piece.

use std::cmp::Reverse;
use std::collections::HashSet;

use super::cells::{self, Cell};
use super::cover::{covers_peer, covers_request};
use super::finding::{Element, Finding, Lint};
use super::probe::Probes;
use super::quarantined::BadRules;
use crate::model::{HttpRule, PortPolicy, PortRule, Protocol, RuleVerdict};

/// Comparisons of two rules, per direction of a policy.
const BUDGET: usize = 10_000_000;

/// Comparisons of a rule with a piece of another one, per direction of a policy. What is not shown within them is not
/// claimed.
const CELL_BUDGET: usize = 1_000_000;

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
    let covered = covered(&units, &parts, probes);
    let mut number = 0;
    while number < units.len() {
        let rule = units[number];
        let alternatives = units[number..].iter().take_while(|unit| unit.same_rule(&rule)).count();
        let range = number..number + alternatives;
        // A rule goes as a whole only if others, not its own alternatives, cover all of it.
        let by_others = covered[range.clone()].iter().map(|by| match by.iter().any(|by| units[*by].same_rule(&rule)) {
            true => &[][..],
            false => by,
        });
        let by_others: Vec<&[usize]> = by_others.collect();
        if by_others.iter().all(|by| !by.is_empty()) {
            describe(direction, &Unit { alternative: None, ..rule }, &together(&units, by_others.concat()), findings);
        } else {
            for unit in range.clone().filter(|unit| !covered[*unit].is_empty()) {
                describe(direction, &units[unit], &together(&units, covered[unit].clone()), findings);
            }
        }
        number = range.end;
    }
}

/// Units without repetition, in their order.
fn together<'a>(units: &'a [Unit<'a>], mut numbers: Vec<usize>) -> Vec<&'a Unit<'a>> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().map(|number| &units[number]).collect()
}

/// For each unit those that make it pointless, one alone where there is one; none when it is not.
fn covered(units: &[Unit<'_>], parts: &[Vec<usize>], probes: &mut Probes) -> Vec<Vec<usize>> {
    let alone: Vec<Vec<usize>> =
        (0..units.len()).map(|number| covering(units, number, parts, probes).unwrap_or_default()).collect();
    let mut covered = alone.clone();
    let mut left = CELL_BUDGET;
    for number in (0..units.len()).filter(|number| alone[*number].is_empty()) {
        // Only what decides something itself: two rules would otherwise be said to go because of each other.
        let decides = |other: usize| alone[other].is_empty();
        covered[number] = covering_together(units, number, parts, &decides, probes, &mut left).unwrap_or_default();
    }
    covered
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

/// In every part the first unit that makes this one pointless there; so that the answer is always the same, in their order.
fn covering(units: &[Unit<'_>], number: usize, parts: &[Vec<usize>], probes: &mut Probes) -> Option<Vec<usize>> {
    let mut by = Vec::new();
    for part in parts.iter().filter(|part| part.contains(&number)) {
        let passes = passes(units, part);
        by.push(part.iter().copied().find(|other| covers(&units[*other], &units[number], &passes, probes))?);
    }
    Some(by)
}

/// Units that make this one pointless in every part, each a piece of it.
fn covering_together(
    units: &[Unit<'_>],
    number: usize,
    parts: &[Vec<usize>],
    decides: &dyn Fn(usize) -> bool,
    probes: &mut Probes,
    left: &mut usize,
) -> Option<Vec<usize>> {
    let unit = &units[number];
    let cells = cells::of(unit.rule, unit.http(), probes);
    let mut by = Vec::new();
    for part in parts.iter().filter(|part| part.contains(&number)) {
        *left = left.checked_sub(cells.len().saturating_mul(part.len()))?;
        let passes = passes(units, part);
        for cell in &cells {
            let mut others = part.iter().copied().filter(|other| decides(*other));
            by.push(others.find(|other| covers_cell(&units[*other], unit, cell, &passes, probes))?);
        }
    }
    Some(by)
}

fn passes<'a>(units: &'a [Unit<'a>], part: &[usize]) -> Vec<&'a Unit<'a>> {
    let units = part.iter().map(|unit| &units[*unit]);
    units.filter(|unit| matches!(unit.rule.verdict, RuleVerdict::Pass(_))).collect()
}

/// Whether `unit` decides whatever `other` could, and does so first.
fn covers(unit: &Unit<'_>, other: &Unit<'_>, passes: &[&Unit<'_>], probes: &mut Probes) -> bool {
    let Some(equal_rank) = precedes(unit, other, passes) else {
        return false;
    };
    // Of two that say the same the later one is superfluous.
    covers_all(unit, other, probes)
        && (!equal_rank || unit.position() < other.position() || !covers_all(other, unit, probes))
}

/// Whether `unit` decides whatever this piece of `other` could, and does so first. Of equal rank only one that stands before
/// it counts, so that no two go because of each other.
fn covers_cell(unit: &Unit<'_>, other: &Unit<'_>, cell: &Cell, passes: &[&Unit<'_>], probes: &mut Probes) -> bool {
    precedes(unit, other, passes).is_some_and(|equal_rank| !equal_rank || unit.position() < other.position())
        && covers_peer(unit.rule, &cell.rule, &cell.rule.remotes, probes)
        && covers_request(unit.http(), cell.http.as_ref(), probes)
}

/// Whether `unit` comes to decide no later than `other` wherever both match, and if so whether they are of equal rank.
fn precedes(unit: &Unit<'_>, other: &Unit<'_>, passes: &[&Unit<'_>]) -> Option<bool> {
    if unit.position() == other.position() {
        return None;
    }
    let equal_rank = unit.order() == other.order() && unit.rule.verdict == other.rule.verdict;
    let decides_first = match unit.rule.verdict {
        RuleVerdict::Pass(below) => {
            unit.rule.precedence > other.rule.precedence && other.rule.precedence >= below && below != 0
        }
        _ => unit.order() < other.order(),
    };
    if !(decides_first || equal_rank) || skipped(unit, other, passes) {
        return None;
    }
    // Where nobody reads server names, an allow that asks for one admits nothing, and any other such rule refuses.
    let (mine, theirs) = (unit.rule.verdict, other.rule.verdict);
    if mine == RuleVerdict::Allow && theirs != RuleVerdict::Allow && !unit.rule.server_names.is_empty() {
        return None;
    }
    // Header matches of a rule are carried out although an equal one decides, too.
    let carried_out = equal_rank && other.http().is_some_and(|http| !http.header_matches.is_empty());
    (!carried_out).then_some(equal_rank)
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

/// Most rules that a finding names.
const NAMED: usize = 4;

fn describe(direction: &Element, unit: &Unit<'_>, by: &[&Unit<'_>], findings: &mut Vec<Finding>) {
    let Some(first) = by.first() else { return };
    let element = |unit: &Unit<'_>| {
        let entry = direction.entry(unit.entry);
        match (unit.index, unit.alternative) {
            (Some(rule), Some((alternative, _))) => entry.rule(rule).http_rule(alternative),
            (Some(rule), None) => entry.rule(rule),
            (None, _) => entry,
        }
    };
    let same_verdict = by.iter().all(|by| by.rule.verdict == unit.rule.verdict);
    let lint = match (same_verdict, unit.rule.http.is_some() && by.iter().all(|by| by.http().is_none())) {
        (true, true) => Lint::HttpRuleWithoutEffect,
        (true, false) => Lint::RedundantRule,
        (false, _) => Lint::ShadowedRule,
    };
    let does = match (by, by.iter().all(|by| by.rule.verdict == first.rule.verdict)) {
        (_, false) => "decide",
        ([_], true) => match first.rule.verdict {
            RuleVerdict::Allow => "allows",
            RuleVerdict::Deny => "denies",
            RuleVerdict::Pass(_) => "passes over",
        },
        (_, true) => match first.rule.verdict {
            RuleVerdict::Allow => "allow",
            RuleVerdict::Deny => "deny",
            RuleVerdict::Pass(_) => "pass over",
        },
    };
    let named = |by: &Unit<'_>| {
        let name = if by.rule.name.is_empty() { String::new() } else { format!(" ({:?})", by.rule.name) };
        format!("{}{name}", element(by).path)
    };
    let what = match by {
        [by] => format!("{} {does} everything that this one matches", named(by)),
        _ => {
            let names: Vec<String> = by.iter().take(NAMED).map(|by| named(by)).collect();
            let more = by.len().checked_sub(NAMED).filter(|more| *more > 0);
            let more = more.map(|more| format!(" and {more} more")).unwrap_or_default();
            format!("{}{more} together {does} everything that this one matches", names.join(", "))
        }
    };
    let instead = match (lint, by) {
        (Lint::HttpRuleWithoutEffect, _) => {
            "narrow the other rule to other peers or ports, or leave these HTTP rules out"
        }
        (Lint::RedundantRule, [_]) => "leave one of the two out",
        (Lint::RedundantRule, _) => "leave this one out, or the others",
        _ => "raise its precedence above the other's, narrow the other rule, or leave this one out",
    };
    let finding = Finding::new(lint, element(unit), what, instead.to_owned());
    findings.push(Finding { because_of: Some(element(first)), ..finding });
}
