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
        if self.state.replace(state) != state {
            self.wake();
        }
    }

    /// Wakes every connection that waits for a change, so that it looks whether one of its peers is concerned.
    pub(crate) fn peers_changed(&self) {
        self.wake();
    }

    fn wake(&self) {
        let wakers: Vec<Waker> = self.waiting.borrow_mut().iter_mut().filter_map(|(_, slot)| slot.take()).collect();
        for waker in wakers {
            waker.wake();
        }
    }

    /// A place for one task to wait in.
    pub(crate) fn subscribe(self: &Rc<Self>) -> Subscription {
        self.subscribe_for(0)
    }

    /// The same for a task that also waits for changes of its peers; see [`Subscription::changed_for`].
    pub(crate) fn subscribe_for(self: &Rc<Self>, own_peers: u64) -> Subscription {
        let slot = self.waiting.borrow_mut().insert(None);
        let (seen, own_peers) = (Cell::new(self.state.get()), Cell::new(own_peers));
        Subscription { signals: Rc::clone(self), slot, seen, own_peers }
    }
}

/// One task's view of the signals.
#[derive(Debug)]
pub(crate) struct Subscription {
    signals: Rc<Signals>,
    slot: usize,
    seen: Cell<State>,
    /// The number that stands for the identities of this task's peers, as last seen.
    own_peers: Cell<u64>,
}

impl Subscription {
    /// Waits until the state differs from the one last seen, and returns it.
    pub(crate) async fn changed(&self) -> State {
        self.changed_for(|| 0).await
    }

    /// The same for a task that also depends on the identities of its peers: `own_peers` is a number that differs whenever
    /// one of these has changed. A change of other peers does not end the wait.
    pub(crate) async fn changed_for(&self, own_peers: impl Fn() -> u64) -> State {
        poll_fn(|context| {
            let (state, own_peers) = (self.signals.state(), own_peers());
            let seen = (self.seen.replace(state), self.own_peers.replace(own_peers));
            if seen != (state, own_peers) {
                return Poll::Ready(state);
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

    #[tokio::test]
    async fn a_change_of_peers_concerns_those_who_have_them() {
        let signals = Rc::new(Signals::default());
        let (own, other) = (Cell::new(5), Cell::new(7));
        let (a, b) = (signals.subscribe_for(5), signals.subscribe_for(7));
        let mut wait_a = polled(a.changed_for(|| own.get()));
        let mut wait_b = polled(b.changed_for(|| other.get()));
        assert!(!wait_a() && !wait_b());
        own.set(6);
        signals.peers_changed();
        assert!(wait_a() && !wait_b());
    }

    /// Polls a future by hand; true once it is done.
    fn polled<'f>(future: impl Future<Output = State> + 'f) -> impl FnMut() -> bool + 'f {
        let mut future = Box::pin(future);
        move || future.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())).is_ready()
    }
}
