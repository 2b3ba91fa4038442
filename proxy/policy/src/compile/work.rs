//! What deciding about one connection or request may cost, in all: over all headers, all policies of the endpoint, all
//! second attempts and the explanation of a denial.

use std::cell::Cell;

/// Units of work: bytes of lazily built states, and [`Work::per_step`] for each step of an automaton that had to be computed.
/// Steps that are known cost nothing.
#[derive(Debug)]
pub(crate) struct Work {
    /// Done by automata of all expressions on a header.
    together: Cell<usize>,
    /// That may still be done to ask expressions one by one. It is kept apart, so that expressions which have used up the
    /// other part do not refuse what rests on simpler ones.
    alone: Cell<usize>,
}

/// Units for automata of all expressions on a header.
const TOGETHER: usize = 512 << 10;
/// A large automaton may do this part of its size on top, up to a limit: the first values that it sees need large states.
const PART: usize = 8;
const MOST_ON_TOP: usize = 1 << 20;
/// Units for expressions one by one.
pub(super) const ALONE: usize = 2 << 20;
/// Places of an automaton that are looked at for one unit.
const PLACES: usize = 16;

impl Default for Work {
    fn default() -> Self {
        Self { together: Cell::new(0), alone: Cell::new(ALONE) }
    }
}

impl Work {
    /// Units for one computed step of an automaton of that many places: the step may look at each of them.
    pub(super) const fn per_step(places: usize) -> usize {
        1 + places / PLACES
    }

    /// Adds what an automaton of `size` bytes has done. `false` when that was too much.
    #[must_use]
    pub(super) fn together(&self, units: usize, size: usize) -> bool {
        let done = self.together.get().saturating_add(units);
        self.together.set(done);
        done <= TOGETHER + MOST_ON_TOP.min(size / PART)
    }

    /// What automata of all expressions on a header have done.
    #[cfg(test)]
    pub(super) const fn done_together(&self) -> usize {
        self.together.get()
    }

    /// Units that are left to ask expressions one by one.
    pub(super) const fn left_alone(&self) -> usize {
        self.alone.get()
    }

    /// Takes units from those that are left to ask expressions one by one.
    pub(super) fn alone(&self, units: usize) {
        self.alone.set(self.alone.get().saturating_sub(units));
    }
}
