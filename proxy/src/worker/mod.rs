//! A worker: one thread, one current-thread runtime, its own connections, buffers and counters. Nothing in here is shared
//! with another worker but the world (read by one atomic load) and the process-wide connection count.

mod signals;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use signals::{Signals, State, Subscription};

use crate::control::WorldStore;
use crate::flow::FlowSender;
use crate::http::BufferPool;

/// What every connection of a worker shares.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) world: Arc<WorldStore>,
    pub(crate) flows: Rc<FlowSender>,
    pub(crate) buffers: Rc<BufferPool>,
    pub(crate) signals: Rc<Signals>,
    /// Addresses of our own listeners: a flow that would reach one of them is a loop.
    pub(crate) own_addresses: Arc<[SocketAddr]>,
    pub(crate) slots: ConnectionSlots,
    /// Connections held for a policy now.
    pub(crate) held: std::cell::Cell<usize>,
}

/// Bounds the open downstream connections of the process.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSlots {
    open: Arc<AtomicUsize>,
    limit: usize,
}

/// One open connection; gives its place back when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot(Arc<AtomicUsize>);

impl ConnectionSlots {
    /// Room for `limit` connections.
    pub(crate) fn new(limit: usize) -> Self {
        Self { open: Arc::default(), limit }
    }

    /// A place, unless all are taken.
    pub(crate) fn take(&self) -> Option<ConnectionSlot> {
        let taken = self.open.fetch_add(1, Ordering::Relaxed);
        let slot = ConnectionSlot(Arc::clone(&self.open));
        (taken < self.limit).then_some(slot)
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_returned() {
        let slots = ConnectionSlots::new(2);
        let (a, b) = (slots.take(), slots.take());
        assert!(a.is_some() && b.is_some() && slots.take().is_none());
        assert_eq!(slots.open(), 2);
        drop(a);
        assert!(slots.take().is_some());
    }
}
