//! What an explanation asks of an index: which rules are near, without looking at each of them.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::bits;
use super::index::{Index, Predicate, Subject, Unit};
use crate::weight::weight;

/// Units kept for each predicate, those with the fewest conditions first.
const LISTED: usize = 32;
/// Units looked at out of a list that is cut: what is nearer shares a rarer predicate, too.
const OF_LONG: usize = 8;
/// Units looked at in all.
const IN_ALL: usize = 48;
/// Units with quarantined conditions looked at in all.
const SUSPENDED: usize = 1024;

/// By what rules are found that do not apply.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// For each predicate units that have it.
    having: Vec<Box<[u32]>>,
    /// Units with the fewest conditions.
    shortest: Box<[u32]>,
    /// Units with quarantined conditions, by the rarest of the others.
    suspended: HashMap<u32, Vec<u32>>,
    /// Units with no other conditions.
    suspended_always: Vec<u32>,
    /// By identity sets that hold it and select nothing, so that an evaluation does not decide them all at once.
    other_remotes: HashMap<u32, Vec<u32>>,
}

impl Neighbours {
    /// `weight` is smaller the rarer a predicate is.
    pub(super) fn new<W: Ord>(predicates: &[Predicate], units: &[Unit], weight: impl Fn(u32) -> W) -> Self {
        let never = |p: u32| matches!(predicates[p as usize], Predicate::Never { .. });
        let mut by_length: Vec<u32> = (0..units.len() as u32).collect();
        by_length.sort_by_key(|unit| units[*unit as usize].predicates.len());
        let mut having = vec![Vec::new(); predicates.len()];
        for &unit in &by_length {
            for &p in &units[unit as usize].predicates {
                let list: &mut Vec<u32> = &mut having[p as usize];
                if list.len() < LISTED && list.last() != Some(&unit) && !never(p) {
                    list.push(unit);
                }
            }
        }
        let mut found = Self {
            having: having.into_iter().map(Vec::into_boxed_slice).collect(),
            shortest: by_length.into_iter().take(LISTED).collect(),
            ..Self::default()
        };
        for (unit, number) in units.iter().zip(0..) {
            if !unit.predicates.iter().any(|p| never(*p)) {
                continue;
            }
            match unit.predicates.iter().filter(|p| !never(**p)).min_by_key(|p| weight(**p)) {
                Some(rarest) => found.suspended.entry(*rarest).or_default().push(number),
                None => found.suspended_always.push(number),
            }
        }
        found
    }

    /// Notes a set of identities that selects nothing.
    pub(super) fn add_other_remotes(&mut self, predicate: u32, remotes: &[u32]) {
        for remote in remotes {
            let known = self.other_remotes.entry(*remote).or_default();
            if known.len() < LISTED {
                known.push(predicate);
            }
        }
    }

    /// Whether units are found by this predicate.
    pub(super) fn selects(&self, predicate: u32) -> bool {
        self.suspended.contains_key(&predicate)
    }
}

/// What is known to hold of one flow or request, and what therefore applies.
pub(crate) struct Decided<'a> {
    pub(super) index: &'a Index,
    pub(super) neighbours: &'a Neighbours,
    pub(super) subject: Subject<'a>,
    pub(super) matched: &'a [u64],
    pub(super) applicable: &'a [u64],
}

impl<'a> Decided<'a> {
    pub(crate) const fn index(&self) -> &'a Index {
        self.index
    }

    pub(crate) const fn subject(&self) -> Subject<'a> {
        self.subject
    }

    pub(crate) fn unit(&self, number: u32) -> &'a Unit {
        &self.index.units()[number as usize]
    }

    pub(crate) fn holds(&self, predicate: u32) -> bool {
        self.index.holds(predicate, self.subject, self.matched)
    }

    /// How many units have that predicate; no more than are listed.
    pub(crate) fn sharing(&self, predicate: u32) -> usize {
        self.neighbours.having[predicate as usize].len()
    }

    pub(crate) fn is_applicable(&self, unit: u32) -> bool {
        bits::contains(self.applicable, unit)
    }

    /// Units whose predicates all hold, in order.
    pub(crate) fn applicable(&self) -> impl Iterator<Item = u32> {
        bits::members(self.applicable)
    }

    /// Units of one rule, in order.
    pub(crate) fn units_of_rule(&self, rule: u32) -> impl Iterator<Item = u32> {
        let units = self.index.units();
        let first = units.partition_point(|unit| unit.rule < rule);
        let count = units[first..].iter().take_while(|unit| unit.rule == rule).count();
        first as u32..(first + count) as u32
    }

    /// Gives `visit` wanted units that have predicates that hold, a bounded number, those with the rarest first.
    pub(crate) fn near(&self, wanted: impl Fn(&Unit) -> bool, mut visit: impl FnMut(u32)) {
        let having = |p: u32| &self.neighbours.having[p as usize];
        let mut held = Vec::new();
        bits::for_each(self.matched, |p| {
            if !having(p).is_empty() {
                held.push(p);
            }
        });
        // Last among equals: that a rule is for this peer, many rules have in common.
        held.extend(self.neighbours.other_remotes.get(&self.subject.flow.remote.0).into_iter().flatten());
        held.sort_by_key(|p| having(*p).len());
        let mut left = IN_ALL;
        for p in held {
            let list = having(p);
            let most = if list.len() < LISTED { left } else { left.min(OF_LONG) };
            for unit in list.iter().filter(|unit| wanted(self.unit(**unit))).take(most) {
                visit(*unit);
                left -= 1;
            }
            if left == 0 {
                return;
            }
        }
    }

    /// Some wanted units with few conditions, whether any holds or not.
    pub(crate) fn shortest(&self, wanted: impl Fn(&Unit) -> bool) -> impl Iterator<Item = u32> {
        self.neighbours.shortest.iter().copied().filter(move |unit| wanted(self.unit(*unit)))
    }

    /// Gives `visit` units that would apply if nothing of them was quarantined, a bounded number, in no order, until it
    /// breaks.
    pub(crate) fn suspended(&self, mut visit: impl FnMut(u32) -> ControlFlow<()>) {
        let Neighbours { suspended, suspended_always, .. } = self.neighbours;
        if suspended.is_empty() && suspended_always.is_empty() {
            return;
        }
        let would_apply = |unit: &&u32| {
            let rest = self.unit(**unit).predicates.iter();
            rest.filter(|p| !matches!(self.index.predicate(**p), Predicate::Never { .. })).all(|p| self.holds(*p))
        };
        let sharing = bits::members(self.matched).filter_map(|p| suspended.get(&p)).flatten();
        for unit in suspended_always.iter().chain(sharing).take(SUSPENDED).filter(would_apply) {
            if visit(*unit).is_break() {
                return;
            }
        }
    }
}

weight!(Neighbours: having, shortest, suspended, suspended_always, other_remotes);
