//! Tasks that wait for memory of their tenants. They are woken whenever the control side has looked, and look themselves.

use std::cell::{Cell, RefCell};
use std::task::Waker;

/// Those of one worker.
#[derive(Debug, Default)]
pub(crate) struct HeldBack {
    round: Cell<u64>,
    wakers: RefCell<Vec<Waker>>,
}

impl HeldBack {
    /// Another number after each look: who is on the list in this one need not be put on it again.
    pub(crate) fn round(&self) -> u64 {
        self.round.get()
    }

    /// Wakes the task after the next look.
    pub(crate) fn add(&self, waker: &Waker) {
        self.wakers.borrow_mut().push(waker.clone());
    }

    /// Wakes all.
    pub(super) fn wake(&self) {
        self.round.set(self.round.get() + 1);
        // Whatever waking does, it finds the list free.
        let wakers = self.wakers.take();
        wakers.into_iter().for_each(Waker::wake);
    }
}
