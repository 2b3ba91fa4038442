//! Finds the units that hold wherever another one does, without comparing each with each: they are looked up by their peers
//! and by their rarest condition.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::super::cells::Cell;
use super::super::probe::Probes;
use super::terms::{Conditions, Steps, Terms, TooMany};
use super::unit::{Span, Unit, overlap};

/// Units of one direction, ready to be looked up.
pub(super) struct Coverers<'u, 'a> {
    units: &'u [Unit<'a>],
    conditions: Conditions,
    terms: Vec<Terms>,
    /// For each unit that says what an earlier one does the first of these.
    same_as: Vec<Option<usize>>,
    /// What was found for units.
    known: Vec<Option<Rc<[usize]>>>,
    /// The others that may cover, by their peers and their rarest matcher.
    places: HashMap<(u32, Option<u32>), Place>,
}

/// Units with the same key.
#[derive(Debug, Default)]
struct Place {
    by_port: BTreeMap<u32, Vec<usize>>,
    /// Those for more than one port.
    ranges: Vec<usize>,
}

impl<'u, 'a> Coverers<'u, 'a> {
    /// `may_cover` tells the units that cover others.
    pub(super) fn new(units: &'u [Unit<'a>], may_cover: impl Fn(&Unit<'_>) -> bool, probes: &mut Probes) -> Self {
        let mut conditions = Conditions::new();
        let mut terms = Vec::with_capacity(units.len());
        for unit in units {
            terms.push(conditions.terms(unit.rule, &unit.rule.remotes, unit.http(), true, probes));
        }
        let mut having: HashMap<u32, usize> = HashMap::new();
        for matcher in terms.iter().flat_map(|terms| &terms.matchers) {
            *having.entry(*matcher).or_default() += 1;
        }
        let mut places: HashMap<(u32, Option<u32>), Place> = HashMap::new();
        let mut first: HashMap<_, usize> = HashMap::new();
        let mut same_as = vec![None; units.len()];
        for (number, (unit, terms)) in units.iter().zip(&terms).enumerate().filter(|(_, (unit, _))| may_cover(unit)) {
            let rank = (unit.rule.precedence, unit.rule.verdict);
            let earlier = *first.entry((terms, unit.ports, rank, unit.all_protocols)).or_insert(number);
            if earlier != number {
                same_as[number] = Some(earlier);
                continue;
            }
            let rarest = terms.matchers.iter().copied().min_by_key(|matcher| having[matcher]);
            let place = places.entry((terms.remotes, rarest)).or_default();
            match unit.ports {
                (first, last) if first == last => place.by_port.entry(first).or_default().push(number),
                _ => place.ranges.push(number),
            }
        }
        let known = vec![None; units.len()];
        Self { units, conditions, terms, same_as, known, places }
    }

    /// The first unit that says the same, if it is another one.
    pub(super) fn same_as(&self, number: usize) -> Option<usize> {
        self.same_as[number]
    }

    /// Numbers, in their order, of other units that match on some of its ports whatever the unit does. Of those that say
    /// the same the first stands for all.
    pub(super) fn of_unit(
        &mut self,
        number: usize,
        probes: &mut Probes,
        steps: &mut Steps,
    ) -> Result<Rc<[usize]>, TooMany> {
        if let Some(known) = &self.known[number] {
            return Ok(Rc::clone(known));
        }
        let terms = self.terms[number].clone();
        let mut found = self.of(&terms, self.units[number].ports, probes, steps)?;
        found.retain(|other| *other != number);
        let found: Rc<[usize]> = found.into();
        self.known[number] = Some(Rc::clone(&found));
        Ok(found)
    }

    /// The same for a piece of a unit.
    pub(super) fn of_cell(
        &mut self,
        cell: &Cell,
        ports: Span,
        probes: &mut Probes,
        steps: &mut Steps,
    ) -> Result<Vec<usize>, TooMany> {
        let terms = self.conditions.terms(&cell.rule, &cell.rule.remotes, cell.http.as_ref(), false, probes);
        self.of(&terms, ports, probes, steps)
    }

    fn of(
        &mut self,
        terms: &Terms,
        ports: Span,
        probes: &mut Probes,
        steps: &mut Steps,
    ) -> Result<Vec<usize>, TooMany> {
        let remotes = self.conditions.wider_remotes(terms, steps)?;
        let implied = self.conditions.implied(terms, probes, steps)?;
        let mut found = Vec::new();
        for remotes in remotes {
            for rarest in implied.iter().copied().map(Some).chain([None]) {
                steps.take(1)?;
                let Some(place) = self.places.get(&(remotes, rarest)) else { continue };
                let on_port = place.by_port.range(ports.0..=ports.1).flat_map(|(_, units)| units);
                for number in on_port.chain(&place.ranges) {
                    let mine = &self.terms[*number];
                    if self.conditions.covers_rest(mine, terms, probes, steps)?
                        && overlap(self.units[*number].ports, ports)
                        && mine.matchers.iter().all(|matcher| implied.contains(matcher))
                    {
                        found.push(*number);
                    }
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}
