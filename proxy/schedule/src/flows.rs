//! The flows of one tenant. Those that are known, one for each remote identity, share alike. Those of newcomers, of whom only an address
//! is known, have together what one that is known has, and share that alike: else a tenant's own clients would wait for whoever
//! comes from many addresses, each of which has used nothing yet.

use crate::level::{Level, Standing, State, Virtual};
use crate::{GroupKey, Share, Weight};

/// Where newcomers stand among those that are known; no flow has such a slot.
const NEWCOMERS: usize = usize::MAX;

#[derive(Debug)]
pub(crate) struct Flows {
    known: Level,
    newcomers: Level,
    /// All newcomers, among the known ones.
    together: Standing,
}

impl Default for Flows {
    fn default() -> Self {
        Self { known: Level::default(), newcomers: Level::default(), together: alike(0) }
    }
}

fn alike(finish: Virtual) -> Standing {
    Standing::new(Share::of(Weight::DEFAULT), finish)
}

impl Flows {
    fn level(&self, key: GroupKey) -> &Level {
        if key.is_newcomer() { &self.newcomers } else { &self.known }
    }

    /// Where a flow that is new begins.
    pub(crate) fn join(&self, key: GroupKey) -> Standing {
        alike(self.level(key).forgotten)
    }

    /// See [`Level::wake`].
    pub(crate) fn wake(&mut self, key: GroupKey, flow: &mut Standing, slot: usize) {
        if key.is_newcomer() {
            self.newcomers.wake(flow, slot);
            self.known.wake(&mut self.together, NEWCOMERS);
        } else {
            self.known.wake(flow, slot);
        }
    }

    /// The slot of the flow that runs next.
    pub(crate) fn pick(&mut self) -> Option<usize> {
        let slot = self.known.pick()?;
        if slot != NEWCOMERS {
            return Some(slot);
        }
        self.together.state = State::InService;
        self.newcomers.pick()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.known.is_idle()
    }

    /// See [`Level::none_before`].
    pub(crate) fn none_before(&self, key: GroupKey, flow: &Standing) -> bool {
        self.level(key).none_before(flow) && (!key.is_newcomer() || self.known.none_before(&self.together))
    }

    /// See [`Level::charge`].
    pub(crate) fn charge(&mut self, key: GroupKey, flow: &mut Standing, slot: usize, cost: u64, again: bool) {
        if key.is_newcomer() {
            self.newcomers.charge(flow, slot, cost, again);
            self.known.charge(&mut self.together, NEWCOMERS, cost, !self.newcomers.is_idle());
        } else {
            self.known.charge(flow, slot, cost, again);
        }
    }

    /// Whether a flow without members need not be kept. Newcomers never: who comes next begins where the last of those that were forgotten
    /// ended, so nothing is forgiven, and there may be as many as there are addresses.
    pub(crate) fn may_forget(&self, key: GroupKey, flow: &Standing) -> bool {
        match key.is_newcomer() {
            true => flow.state == State::Idle,
            false => self.known.is_even_with(flow),
        }
    }

    /// See [`Level::forget`].
    pub(crate) fn forget(&mut self, key: GroupKey, flow: &Standing) {
        let level = if key.is_newcomer() { &mut self.newcomers } else { &mut self.known };
        level.forget(flow);
    }
}
