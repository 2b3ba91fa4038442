//! A worker: one thread, one current-thread runtime, its own connections, buffers and counters. Nothing in here is shared
//! with another worker but the world (read by one atomic load) and the process-wide connection count.

mod signals;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

pub(crate) use signals::{Signals, State, Subscription};

use crate::config::Limits;
use crate::control::WorldStore;
use crate::flow::FlowSender;
use crate::http::BufferPool;
use crate::identity::Peers;
use crate::metrics::Worker as Metrics;

/// What every connection of a worker shares.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) world: Arc<WorldStore>,
    pub(crate) flows: Rc<FlowSender>,
    pub(crate) buffers: Rc<BufferPool>,
    /// Addresses of our own listeners: a flow that would reach one of them is a loop.
    pub(crate) own_addresses: RefCell<Vec<SocketAddr>>,
    pub(crate) slots: ConnectionSlots,
    pub(crate) limits: Limits,
    /// What the ipcache says about the addresses of its connections.
    pub(crate) peers: Rc<Peers>,
    /// Connections held for a policy now.
    pub(crate) held: Cell<usize>,
    /// Connections of this worker open now.
    pub(crate) open: Cell<usize>,
    /// Told when the last of them closes.
    pub(crate) all_closed: Notify,
}

impl Worker {
    /// Counts a connection of this worker until the guard is dropped.
    pub(crate) fn enter(self: &Rc<Self>) -> Open {
        self.open.set(self.open.get() + 1);
        Open(Rc::clone(self))
    }
}

/// An open connection of a worker.
#[derive(Debug)]
pub(crate) struct Open(Rc<Worker>);

impl Drop for Open {
    fn drop(&mut self) {
        let left = self.0.open.get().saturating_sub(1);
        self.0.open.set(left);
        if left == 0 {
            self.0.all_closed.notify_one();
        }
    }
}

/// Counts the panic, if one is what ends the task that owns it. Every task of a connection has one.
#[derive(Debug)]
pub(crate) struct PanicCount(Metrics);

impl PanicCount {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self(metrics.clone())
    }
}

impl Drop for PanicCount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.connection_panicked();
        }
    }
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
    #[cfg(test)]
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
