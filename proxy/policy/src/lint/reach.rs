//! Rules that never decide, because others decide everything that they match before.
//!
//! Follows what compilation does to ports: every entry is split where another one begins or ends, and the wildcard's
//! rules are added to each part. A rule is said to be shadowed when in each of its parts one other rule, which no pass
//! rule skips, holds whenever it does; or when it can be taken apart (see [`cells`]) so that this is so of each piece.

mod coverers;
mod left;
mod terms;
#[cfg(test)]
mod tests;
mod unit;
mod wording;

use std::collections::HashSet;

use super::cells;
use super::finding::{Element, Finding, Lint};
use super::probe::Probes;
use super::quarantined::BadRules;
use crate::model::{PortPolicy, PortRule, RuleVerdict};

use self::coverers::Coverers;
use self::left::Left;
use self::terms::{Steps, TooMany};
use self::unit::{Span, Unit, overlap, units};
use self::wording::describe;

/// Steps of comparing rules, per direction of a policy; when they do not suffice, nothing is claimed, which is said.
const STEPS: usize = 10_000_000;

/// The same for pieces of rules. What is not shown within them is not claimed.
const CELL_STEPS: usize = 2_000_000;

/// Steps that making one piece takes.
const OF_CELL: usize = 16;

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
    let mut steps = Steps::new(STEPS);
    let Ok(covered) = Reach::new(&units, probes).covered(&mut steps) else {
        let what =
            format!("the {} rules and alternatives are too much alike to find out which never decide", units.len());
        let instead = "fewer rules, or fewer that overlap".to_owned();
        findings.push(Finding::new(Lint::NotCompared, direction.clone(), what, instead));
        return;
    };
    let pointless = pointless(&units, &covered);
    let left = Left::of(entries, bad, &pointless);
    findings.extend(pointless.iter().map(|pointless| describe(direction, pointless, &left)));
}

/// A rule, or an HTTP alternative of one, that never decides, and those that do.
struct Pointless<'u> {
    unit: Unit<'u>,
    by: Vec<Unit<'u>>,
}

fn pointless<'u>(units: &[Unit<'u>], covered: &[Vec<usize>]) -> Vec<Pointless<'u>> {
    let mut pointless = Vec::new();
    let mut number = 0;
    while number < units.len() {
        let rule = units[number];
        let alternatives = units[number..].iter().take_while(|unit| unit.same_rule(&rule)).count();
        let range = number..number + alternatives;
        let by_others: Option<Vec<Vec<usize>>> =
            range.clone().map(|unit| by_other_rules(units, covered, unit)).collect();
        if let Some(by) = by_others {
            pointless.push(Pointless { unit: Unit { alternative: None, ..rule }, by: together(units, by.concat()) });
        } else {
            // At least one of them stays.
            let alternatives = range.clone().filter(|unit| !covered[*unit].is_empty());
            pointless.extend(
                alternatives.map(|unit| Pointless { unit: units[unit], by: together(units, covered[unit].clone()) }),
            );
        }
        number = range.end;
    }
    pointless
}

/// Units of other rules that make this one pointless: where its own rule's alternatives do, those that make these so. `None`
/// when something of the rule decides.
fn by_other_rules(units: &[Unit<'_>], covered: &[Vec<usize>], number: usize) -> Option<Vec<usize>> {
    let mut others = Vec::new();
    let mut seen = HashSet::from([number]);
    let mut open = vec![number];
    while let Some(unit) = open.pop() {
        if covered[unit].is_empty() {
            return None;
        }
        let (own, other): (Vec<usize>, Vec<usize>) =
            covered[unit].iter().partition(|by| units[**by].same_rule(&units[number]));
        others.extend(other);
        open.extend(own.into_iter().filter(|unit| seen.insert(*unit)));
    }
    (!others.is_empty()).then_some(others)
}

/// Units without repetition, in their order.
fn together<'u>(units: &[Unit<'u>], mut numbers: Vec<usize>) -> Vec<Unit<'u>> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().map(|number| units[number]).collect()
}

/// The units of one direction while it is found out which never decide.
struct Reach<'u, 'a, 'p> {
    units: &'u [Unit<'a>],
    coverers: Coverers<'u, 'a>,
    passes: Vec<&'u Unit<'a>>,
    probes: &'p mut Probes,
}

impl<'u, 'a, 'p> Reach<'u, 'a, 'p> {
    fn new(units: &'u [Unit<'a>], probes: &'p mut Probes) -> Self {
        // What a header match makes of a request is known when it comes.
        let plain = |unit: &Unit<'_>| {
            unit.http().is_none_or(|http| http.unsupported.is_empty() && http.header_matches.is_empty())
        };
        let passes = units.iter().filter(|unit| unit.passes()).collect();
        Self { units, coverers: Coverers::new(units, plain, probes), passes, probes }
    }

    /// For each unit those that make it pointless, one alone where there is one; none when it is not.
    fn covered(&mut self, steps: &mut Steps) -> Result<Vec<Vec<usize>>, TooMany> {
        let mut alone: Vec<Vec<usize>> = Vec::with_capacity(self.units.len());
        for number in 0..self.units.len() {
            let by = match self.coverers.same_as(number) {
                // Of two that say the same the later one is superfluous, or both are.
                Some(same) if alone[same].is_empty() => vec![same],
                Some(same) => Vec::clone(&alone[same]),
                None => self.covering(number, steps)?,
            };
            alone.push(by);
        }
        let mut covered = alone.clone();
        let mut steps = Steps::new(CELL_STEPS);
        for number in (0..self.units.len()).filter(|number| alone[*number].is_empty()) {
            // Only what decides something itself: two rules would otherwise be said to go because of each other.
            let decides = |other: usize| alone[other].is_empty();
            match self.covering_together(number, &decides, &mut steps) {
                Ok(by) => covered[number] = by,
                Err(TooMany) => break,
            }
        }
        Ok(covered)
    }

    /// Units that make this one pointless, on each of its ports another one if need be.
    fn covering(&mut self, number: usize, steps: &mut Steps) -> Result<Vec<usize>, TooMany> {
        let unit = &self.units[number];
        let mut able = Vec::new();
        for other in self.coverers.of_unit(number, self.probes, steps)?.iter().copied() {
            steps.take(1)?;
            let keeps_this = match precedes(&self.units[other], unit) {
                None => true,
                Some(equal_rank) => {
                    equal_rank
                        && other > number
                        && precedes(unit, &self.units[other]).is_some()
                        && self.coverers.of_unit(other, self.probes, steps)?.binary_search(&number).is_ok()
                }
            };
            if !keeps_this {
                able.push(other);
            }
        }
        Ok(self.on_all_ports(&able, unit, steps)?.unwrap_or_default())
    }

    /// Units that make this one pointless, each a piece of it.
    fn covering_together(
        &mut self,
        number: usize,
        decides: &dyn Fn(usize) -> bool,
        steps: &mut Steps,
    ) -> Result<Vec<usize>, TooMany> {
        let unit = &self.units[number];
        let cells = cells::of(unit.rule, unit.http(), self.probes);
        steps.take(OF_CELL * cells.len())?;
        let mut by = Vec::new();
        for cell in cells.iter().filter(|_| cells.len() > 1) {
            let mut able = self.coverers.of_cell(cell, unit.ports, self.probes, steps)?;
            // Of equal rank only one that stands before it counts, so that no two go because of each other.
            able.retain(|other| {
                let before =
                    precedes(&self.units[*other], unit).is_some_and(|equal_rank| !equal_rank || *other < number);
                before && decides(*other)
            });
            match self.on_all_ports(&able, unit, steps)? {
                Some(these) => by.extend(these),
                None => return Ok(Vec::new()),
            }
        }
        Ok(by)
    }

    /// One of `able` that no pass rule skips, for all ports of `unit` or for each part of them; `None` where there is none.
    fn on_all_ports(&self, able: &[usize], unit: &Unit<'_>, steps: &mut Steps) -> Result<Option<Vec<usize>>, TooMany> {
        let passes =
            self.passes.iter().copied().filter(|pass| overlap(pass.ports, unit.ports) && may_skip_to(pass, unit));
        let passes: Vec<&Unit<'_>> = passes.collect();
        let find = |ports: Span| {
            able.iter().copied().find(|other| {
                let other = &self.units[*other];
                let holds = |outer: Span| outer.0 <= ports.0 && ports.1 <= outer.1;
                holds(other.ports) && !passes.iter().any(|pass| overlap(pass.ports, ports) && skips(pass, other))
            })
        };
        let work = (1 + able.len()) * (1 + passes.len());
        steps.take(work)?;
        if let Some(all) = find(unit.ports) {
            return Ok(Some(vec![all]));
        }
        // Parts of the ports on which the same rules stand.
        let spans = able.iter().map(|other| self.units[*other].ports).chain(passes.iter().map(|pass| pass.ports));
        let mut starts: Vec<u32> = spans.flat_map(|(first, last)| [first, last + 1]).collect();
        starts.retain(|start| unit.ports.0 < *start && *start <= unit.ports.1);
        starts.push(unit.ports.0);
        starts.sort_unstable();
        starts.dedup();
        steps.take(work.saturating_mul(starts.len()))?;
        let ends = starts[1..].iter().map(|next| next - 1).chain([unit.ports.1]);
        Ok(starts.iter().copied().zip(ends).map(find).collect())
    }
}

/// Whether `unit` comes to decide no later than `other` wherever both match and no pass rule skips it, and if so whether they
/// are of equal rank.
fn precedes(unit: &Unit<'_>, other: &Unit<'_>) -> Option<bool> {
    if unit.position() == other.position() || other.all_protocols && !unit.all_protocols {
        return None;
    }
    let equal_rank = unit.order() == other.order() && unit.rule.verdict == other.rule.verdict;
    let decides_first = match unit.rule.verdict {
        RuleVerdict::Pass(below) => {
            unit.rule.precedence > other.rule.precedence && other.rule.precedence >= below && below != 0
        }
        _ => unit.order() < other.order(),
    };
    if !(decides_first || equal_rank) {
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

/// Whether a pass rule goes on at `unit`, or behind it.
const fn may_skip_to(pass: &Unit<'_>, unit: &Unit<'_>) -> bool {
    matches!(pass.rule.verdict, RuleVerdict::Pass(below) if unit.rule.precedence < below)
}

/// Whether a pass rule skips `unit`.
fn skips(pass: &Unit<'_>, unit: &Unit<'_>) -> bool {
    matches!(pass.rule.verdict, RuleVerdict::Pass(below) if pass.order() <= unit.order() && below <= unit.rule.precedence)
}
