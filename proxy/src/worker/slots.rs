//! Places for connections, which all workers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bounds the open downstream connections of the process.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSlots {
    open: Arc<AtomicUsize>,
    limit: usize,
}

/// How short places are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Crowding {
    /// Connections above what is thought enough.
    pub(crate) excess: usize,
    /// Of the places above that, the share that is taken: 1 is all.
    pub(crate) share: f64,
}

/// One open connection; gives its place back when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot(Arc<AtomicUsize>);

impl Crowding {
    /// That of so many places out of `limit`; `None` while no more than so many percent are taken.
    pub(super) fn of(taken: usize, limit: usize, above_percent: u32) -> Option<Self> {
        let many = limit / 100 * above_percent as usize + limit % 100 * above_percent as usize / 100;
        let excess = taken.checked_sub(many).filter(|excess| *excess > 0)?;
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = (excess as f64 / (limit - many).max(1) as f64).min(1.0);
        Some(Self { excess, share })
    }
}

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

    /// A place for a connection that has one already, which it gives back.
    pub(crate) fn take_over(&self) -> ConnectionSlot {
        self.open.fetch_add(1, Ordering::Relaxed);
        ConnectionSlot(Arc::clone(&self.open))
    }

    /// How short places are, once more than so many percent are taken.
    pub(crate) fn crowding(&self, above_percent: u32) -> Option<Crowding> {
        Crowding::of(self.open(), self.limit, above_percent)
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

    #[test]
    fn places_run_short_above_a_share() {
        let slots = ConnectionSlots::new(200);
        let taken: Vec<_> = (0..150).map(|_| slots.take()).collect();
        assert_eq!(slots.crowding(75), None);
        let more: Vec<_> = (0..25).map(|_| slots.take()).collect();
        assert_eq!(slots.crowding(75), Some(Crowding { excess: 25, share: 0.5 }));
        drop((taken, more));
        assert_eq!(slots.crowding(0), None);
    }
}
