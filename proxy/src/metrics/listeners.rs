//! Where the connections of each listener are counted. A control plane names listeners as it likes, so the places are bounded, and one
//! whose listener is gone goes to the next that needs it.

use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use tollgate_policy::Direction;

use super::Families;
use super::collector::DIRECTIONS;
use super::worker::{Counters, ListenerIndex, MAX_LISTENERS};

/// The place of a listener. Whoever counts there keeps a copy.
#[derive(Clone, Debug)]
pub struct ListenerSeries {
    index: ListenerIndex,
    /// Nobody's among the places that many share.
    _held: Option<Arc<()>>,
}

impl ListenerSeries {
    /// The place.
    pub const fn index(&self) -> ListenerIndex {
        self.index
    }

    /// The same without keeping it.
    pub(crate) const fn let_go(&self) -> Self {
        Self { index: self.index, _held: None }
    }
}

/// A place and who has it.
#[derive(Debug)]
pub(super) struct ListenerSlot {
    name: String,
    direction: Direction,
    held: Weak<()>,
    /// Connections that those before had. Counters of workers are never set back.
    before: u64,
}

/// What one listener, or several in one place, have counted.
pub(super) struct ListenerCount {
    pub(super) name: String,
    pub(super) direction: Direction,
    pub(super) open: u64,
    pub(super) total: u64,
}

impl Families {
    pub(super) fn listener_series(&self, name: &str, direction: Direction) -> ListenerSeries {
        let mut slots = self.listener_slots();
        let known = slots.iter().position(|slot| slot.name == name && slot.direction == direction);
        let index = match known {
            Some(index) => index,
            None if slots.len() < MAX_LISTENERS => {
                slots.push(ListenerSlot { name: name.to_owned(), direction, held: Weak::new(), before: 0 });
                slots.len() - 1
            }
            None => {
                let free = |index: usize, slot: &ListenerSlot| {
                    slot.held.strong_count() == 0 && self.connections_open(index) == 0
                };
                let Some(index) = slots.iter().enumerate().position(|(index, slot)| free(index, slot)) else {
                    tracing::warn!(listener = name, most = MAX_LISTENERS, "a listener is counted among others");
                    let shared = ListenerIndex(MAX_LISTENERS + direction as usize);
                    return ListenerSeries { index: shared, _held: None };
                };
                let before = self.sum(|worker| worker.listeners[index].opened.value());
                slots[index] = ListenerSlot { name: name.to_owned(), direction, held: Weak::new(), before };
                index
            }
        };
        let slot = &mut slots[index];
        let held = slot.held.upgrade().unwrap_or_default();
        slot.held = Arc::downgrade(&held);
        ListenerSeries { index: ListenerIndex(index), _held: Some(held) }
    }

    /// Each listener with a place of its own, and those without where there are any.
    pub(super) fn listener_counts(&self) -> Vec<ListenerCount> {
        let count = |index, name: &str, direction, before| ListenerCount {
            name: name.to_owned(),
            direction,
            open: self.connections_open(index),
            total: self.sum(|worker| worker.listeners[index].opened.value()).wrapping_sub(before),
        };
        let slots = self.listener_slots();
        let own = slots.iter().enumerate().map(|(index, slot)| count(index, &slot.name, slot.direction, slot.before));
        let others =
            DIRECTIONS.into_iter().map(|direction| count(MAX_LISTENERS + direction as usize, "(other)", direction, 0));
        own.chain(others.filter(|count| count.total > 0)).collect()
    }

    pub(super) fn connections_open(&self, listener: usize) -> u64 {
        let closed = self.sum(|worker| worker.listeners[listener].closed.value());
        // Read after `closed`: a connection that opens and closes in between must not make the difference negative.
        let opened = |worker: &Counters| {
            let counters = &worker.listeners[listener];
            counters.opened.value() + counters.resumed.value()
        };
        self.sum(opened).saturating_sub(closed)
    }

    fn listener_slots(&self) -> MutexGuard<'_, Vec<ListenerSlot>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
