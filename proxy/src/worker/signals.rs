//! How a worker tells its connections that something they depend on has changed: the world's generation, or draining.
//!
//! All of it stays on the worker's thread: no locks, and an idle connection costs one stored waker.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use slab::Slab;

/// What connections react to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Generation of the newest world that the worker was told of.
    pub(crate) generation: u64,
    /// The process, or only the listener, is ending: finish what is under way, begin nothing.
    pub(crate) draining: bool,
    /// The time for that is over: whoever moves bytes resets both ends now, so that no peer takes a part for the whole.
    pub(crate) stopping: bool,
}

/// The end that tells; each listener of a worker has one.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    state: Cell<State>,
    waiting: RefCell<Slab<Option<Waker>>>,
}

impl Signals {
    /// The present state.
    pub(crate) fn state(&self) -> State {
        self.state.get()
    }

    /// Changes the state and wakes every connection that waits for a change.
    pub(crate) fn set(&self, state: State) {
        if self.state.replace(state) == state {
            return;
        }
        let wakers: Vec<Waker> = self.waiting.borrow_mut().iter_mut().filter_map(|(_, slot)| slot.take()).collect();
        for waker in wakers {
            waker.wake();
        }
    }

    /// A place for one task to wait in.
    pub(crate) fn subscribe(self: &Rc<Self>) -> Subscription {
        let slot = self.waiting.borrow_mut().insert(None);
        Subscription { signals: Rc::clone(self), slot, seen: Cell::new(self.state.get()) }
    }
}

/// One task's view of the signals.
#[derive(Debug)]
pub(crate) struct Subscription {
    signals: Rc<Signals>,
    slot: usize,
    seen: Cell<State>,
}

impl Subscription {
    /// The present state, which then counts as seen.
    pub(crate) fn see(&self) -> State {
        let state = self.signals.state();
        self.seen.set(state);
        state
    }

    /// Waits until the state differs from the one last seen, and returns it.
    pub(crate) async fn changed(&self) -> State {
        poll_fn(|context| {
            if self.signals.state() != self.seen.get() {
                return Poll::Ready(self.see());
            }
            if let Some(slot) = self.signals.waiting.borrow_mut().get_mut(self.slot)
                && !slot.as_ref().is_some_and(|waker| waker.will_wake(context.waker()))
            {
                *slot = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.signals.waiting.borrow_mut().try_remove(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_wakes_every_waiter_once() {
        let signals = Rc::new(Signals::default());
        let (a, b) = (signals.subscribe(), signals.subscribe());
        let change = State { generation: 1, ..State::default() };
        let (seen_a, seen_b, ()) = tokio::join!(a.changed(), b.changed(), async {
            tokio::task::yield_now().await;
            signals.set(change);
        });
        assert_eq!((seen_a, seen_b), (change, change));
        let again =
            tokio::select! { biased; state = a.changed() => Some(state), () = tokio::task::yield_now() => None };
        assert_eq!(again, None, "a change that was seen is not reported again");
        drop(a);
        let last = State { generation: 2, draining: true, stopping: true };
        signals.set(last);
        assert_eq!(b.changed().await, last);
    }
}
