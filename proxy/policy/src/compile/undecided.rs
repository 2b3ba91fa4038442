//! What a header's expressions decide when all of them together take too much work for its value: each is asked on its own,
//! and only where a rule that may decide rests on it. So expressions of rules for other peers, or that other conditions
//! rule out, cost a request nothing but time, and that is bounded.

use std::collections::HashMap;

use super::bits;
use super::index::{Index, Predicate, Subject};

/// The units that apply to something, and those that may.
pub(crate) struct Candidates<'a> {
    pub(super) units: &'a [u64],
    /// Nearly always none, so it is kept small.
    pub(super) undecided: Option<Box<Undecided<'a>>>,
}

impl Candidates<'_> {
    /// The first unit that is not below `from` and applies or may apply, and whether it is known to.
    #[inline]
    pub(crate) fn first_from(&mut self, from: u32) -> Option<(u32, bool)> {
        match &mut self.undecided {
            None => bits::first_from(self.units, from).map(|unit| (unit, true)),
            Some(undecided) => undecided.first_from(self.units, from),
        }
    }
}

/// Predicates about which their column knows nothing, until they are asked for.
pub(super) struct Undecided<'a> {
    index: &'a Index,
    subject: Subject<'a>,
    /// Predicates that are known to hold.
    matched: &'a mut [u64],
    /// Predicates that may hold.
    open: Vec<u64>,
    /// Units that may apply.
    units: Vec<u64>,
    /// Columns that gave up, and the value that each looks at.
    columns: Vec<(u32, Vec<u8>)>,
    /// What came of expressions, by column and number.
    asked: HashMap<(u32, u32), Option<bool>>,
}

impl<'a> Undecided<'a> {
    /// Adds the units that may apply to `units`, which are those that do.
    #[cold]
    pub(super) fn new(
        index: &'a Index,
        subject: Subject<'a>,
        matched: &'a mut [u64],
        units: &mut [u64],
        given_up: Vec<u32>,
    ) -> Self {
        let mut open = vec![0; matched.len()];
        for number in &given_up {
            let asking = index.column(*number).1.asking().iter().map(|(predicate, _)| *predicate);
            asking.filter(|p| !bits::contains(matched, *p)).for_each(|p| bits::insert(&mut open, p));
        }
        let mut undecided = vec![0; units.len()];
        if !given_up.is_empty() {
            let may_hold = |p: &u32| bits::contains(&open, *p) || index.holds(*p, subject, matched);
            for (unit, number) in index.units().iter().zip(0..) {
                if !bits::contains(units, number) && unit.predicates.iter().all(may_hold) {
                    bits::insert(units, number);
                    bits::insert(&mut undecided, number);
                }
            }
        }
        let columns = given_up.into_iter().map(|number| (number, index.column(number).0.copy(subject))).collect();
        Self { index, subject, matched, open, units: undecided, columns, asked: HashMap::new() }
    }

    /// As [`Candidates::first_from`], out of `units`.
    #[cold]
    fn first_from(&mut self, units: &[u64], mut from: u32) -> Option<(u32, bool)> {
        loop {
            let unit = bits::first_from(units, from)?;
            match self.applies(unit) {
                Some(false) => from = unit + 1,
                applies => return Some((unit, applies.is_some())),
            }
        }
    }

    /// Decides what can be, also of units that would apply if nothing of them was quarantined, and leaves in `units` only
    /// those that are known to apply.
    pub(super) fn settle(&mut self, units: &mut [u64]) {
        let index = self.index;
        let undecided: Vec<u32> = bits::members(&self.units).collect();
        for unit in undecided {
            if self.applies(unit) != Some(true) {
                bits::remove(units, unit);
            }
        }
        let never = |p: &&u32| matches!(index.predicate(**p), Predicate::Never { .. });
        for unit in index.units().iter().filter(|unit| unit.predicates.iter().any(|p| never(&p))) {
            let may_hold = |p: &u32| bits::contains(&self.open, *p) || index.holds(*p, self.subject, self.matched);
            if unit.predicates.iter().filter(|p| !never(p)).all(may_hold) {
                let mut rest = unit.predicates.iter().filter(|p| !never(p));
                let _fails = rest.any(|p| self.holds(*p) == Some(false));
            }
        }
    }

    /// Whether a unit that may apply does.
    fn applies(&mut self, unit: u32) -> Option<bool> {
        if !bits::contains(&self.units, unit) {
            return Some(true);
        }
        let mut known = true;
        for predicate in &self.index.units()[unit as usize].predicates {
            match self.holds(*predicate) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => known = false,
            }
        }
        known.then_some(true)
    }

    /// Whether a predicate holds.
    pub(super) fn holds(&mut self, predicate: u32) -> Option<bool> {
        if !bits::contains(&self.open, predicate) {
            return Some(self.index.holds(predicate, self.subject, self.matched));
        }
        let inverted = matches!(self.index.predicate(predicate), Predicate::Header(matcher) if matcher.invert);
        let holds = self.matches(predicate)? != inverted;
        bits::remove(&mut self.open, predicate);
        if holds {
            bits::insert(self.matched, predicate);
        }
        Some(holds)
    }

    /// Whether an expression that the predicate rests on matches. There is more than one only for a server name.
    fn matches(&mut self, predicate: u32) -> Option<bool> {
        let mut known = true;
        for (number, value) in &self.columns {
            let column = self.index.column(*number).1;
            for expression in column.expressions_of(predicate) {
                let ask = || column.matches(expression, value, self.subject.work);
                match *self.asked.entry((*number, expression)).or_insert_with(ask) {
                    Some(true) => return Some(true),
                    Some(false) => {}
                    None => known = false,
                }
            }
        }
        known.then_some(false)
    }
}
