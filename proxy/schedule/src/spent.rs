//! What the tasks of one group have used: those of one connection, say, for whoever wants to know what a request has cost.

use std::cell::Cell;

use crate::executor::Local;

/// Used by the tasks of a group since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time that their polls took, in nanoseconds, as the cheap clock measures it.
    pub cpu: u64,
    /// Time for which they could have run and did not, in nanoseconds.
    pub waited: u64,
}

impl Spent {
    /// What was used after `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(before.cpu), waited: self.waited.saturating_sub(before.waited) }
    }

    const fn with(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, waited: self.waited + other.waited }
    }
}

/// The sum of one group.
#[derive(Debug, Default)]
pub(crate) struct Sum(Cell<Spent>);

impl Sum {
    /// Adds a poll.
    pub(crate) fn add(&self, cpu: u64, waited: u64) {
        self.0.set(self.0.get().with(Spent { cpu, waited }));
    }

    /// As of now, in a poll of the group.
    pub(crate) fn now(&self, local: &Local) -> Spent {
        self.0.get().with(Spent { cpu: local.present_poll(), waited: local.waited.get() })
    }

    /// The same without the time that the present poll was waited for.
    pub(crate) fn before(&self, local: &Local) -> Spent {
        self.0.get().with(Spent { cpu: local.present_poll(), waited: 0 })
    }
}
