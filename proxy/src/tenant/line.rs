//! Who waits on one thread for the rate of bytes of its tenant: in the order of asking. Only the first of a line has reserved anything, so
//! all who wait have one piece for each thread between them, and the threads take turns. Whoever gives up leaves nothing behind
//! but what others have reserved after it, and the next in line has that.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::bandwidth::{Bandwidth, Reservation, Reserved};
use super::{Commons, TenantId};

/// The lines of one thread.
#[derive(Debug, Default)]
pub(crate) struct Lines(RefCell<HashMap<TenantId, Rc<Line>>>);

impl Lines {
    /// The line of a tenant that has this rate. Those who wait under another, which it had before, ask again once they know.
    pub(super) fn of(&self, commons: &Arc<Commons>, tenant: TenantId, bandwidth: Bandwidth) -> Rc<Line> {
        let mut lines = self.0.borrow_mut();
        if let Some(line) = lines.get(&tenant).filter(|line| line.bandwidth == bandwidth) {
            return Rc::clone(line);
        }
        // Tenants come and go.
        lines.retain(|_, line| !line.waiting.borrow().is_empty());
        let line = Rc::new(Line::new(Arc::clone(commons), tenant, bandwidth));
        lines.insert(tenant, Rc::clone(&line));
        line
    }
}

/// Those of one tenant that wait on one thread.
#[derive(Debug)]
pub(super) struct Line {
    commons: Arc<Commons>,
    tenant: TenantId,
    bandwidth: Bandwidth,
    /// By their numbers, in the order of asking.
    waiting: RefCell<BTreeMap<u64, Waker>>,
    /// Of the next to ask.
    next: Cell<u64>,
    /// What is reserved, and by whom: the first, or who was it and gave up.
    turn: Cell<Option<(u64, Turn)>>,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    reservation: Reservation,
    bytes: usize,
}

impl Line {
    fn new(commons: Arc<Commons>, tenant: TenantId, bandwidth: Bandwidth) -> Self {
        let (waiting, next, turn) = (RefCell::default(), Cell::default(), Cell::default());
        Self { commons, tenant, bandwidth, waiting, next, turn }
    }

    /// Lets so many bytes go now, if nobody waits and they may. Else whoever asks gets a place.
    pub(super) fn enter(self: &Rc<Self>, now: Instant, bytes: usize, waker: &Waker) -> Option<Place> {
        self.enter_at(self.commons.since(now), bytes, waker)
    }

    fn enter_at(self: &Rc<Self>, since: Duration, bytes: usize, waker: &Waker) -> Option<Place> {
        let number = self.next.get();
        if self.waiting.borrow().is_empty() && self.until_turn(number, since, bytes).is_zero() {
            self.turn.set(None);
            return None;
        }
        self.next.set(number + 1);
        self.waiting.borrow_mut().insert(number, waker.clone());
        self.commons.standing(self.tenant).waiting.fetch_add(1, Ordering::Relaxed);
        Some(Place { line: Rc::clone(self), number })
    }

    /// How long the first, which has this number, still waits for so many bytes.
    fn until_turn(&self, number: u64, since: Duration, bytes: usize) -> Duration {
        // What another has left is good until its time has come: used later, it would be more than the rate and the burst give.
        let is_good =
            |(of, turn): &(u64, Turn)| *of == number || turn.bytes >= bytes && !turn.reservation.is_over(since);
        let turn = self.turn.get().filter(is_good).map_or_else(
            || Turn { reservation: self.reserved().reserve(self.bandwidth, since, bytes), bytes },
            |(_, turn)| turn,
        );
        self.turn.set(Some((number, turn)));
        turn.reservation.wait(self.bandwidth, since)
    }

    fn reserved(&self) -> &Reserved {
        &self.commons.standing(self.tenant).bytes
    }

    fn first(&self) -> Option<u64> {
        self.waiting.borrow().first_key_value().map(|(number, _)| *number)
    }
}

/// A place in a line. Whoever has one asks when it is woken, or drops it: all behind wait for the first.
#[derive(Debug)]
pub(super) struct Place {
    line: Rc<Line>,
    number: u64,
}

impl Place {
    /// How long it is until so many bytes may go; `None` while others come first, and the task is woken when none does. To be asked
    /// with the same number each time.
    pub(super) fn ask(&self, now: Instant, bytes: usize, waker: &Waker) -> Option<Duration> {
        self.ask_at(self.line.commons.since(now), bytes, waker)
    }

    fn ask_at(&self, since: Duration, bytes: usize, waker: &Waker) -> Option<Duration> {
        if self.line.first() == Some(self.number) {
            return Some(self.line.until_turn(self.number, since, bytes));
        }
        if let Some(known) = self.line.waiting.borrow_mut().get_mut(&self.number) {
            known.clone_from(waker);
        }
        None
    }

    /// It is its turn, and its bytes go.
    pub(super) fn go(self) {
        self.line.turn.set(None);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let line = &self.line;
        let was_first = line.first() == Some(self.number);
        line.waiting.borrow_mut().remove(&self.number);
        line.commons.standing(line.tenant).waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some((_, turn)) = line.turn.get().filter(|(of, _)| *of == self.number)
            && line.reserved().take_back(turn.reservation)
        {
            line.turn.set(None);
        }
        if was_first {
            // Whatever waking does, it finds the line free.
            let next = line.waiting.borrow().first_key_value().map(|(_, waker)| waker.clone());
            next.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests;
