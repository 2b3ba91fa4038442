//! Who waits on one thread for the rate of bytes of its tenant: remote identities take turns, and those of one go in the order of
//! asking. Only the first of a line has reserved anything, so all who wait have one piece for each thread between them, and the
//! threads take turns. Whoever gives up leaves nothing behind but what others have reserved after it, and the next in line has that.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
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
        lines.retain(|_, line| line.first().is_some());
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
    waiting: RefCell<Waiting>,
    /// Of the next to ask.
    next: Cell<u64>,
    /// What is reserved, and by whom: the first, or who was it and gave up.
    turn: Cell<Option<(u64, Turn)>>,
}

/// Those who wait.
#[derive(Debug, Default)]
struct Waiting {
    /// By flow, which is the remote identity, and by their numbers, in the order of asking.
    flows: HashMap<u32, BTreeMap<u64, Waker>>,
    /// Flows in which somebody waits, in the order in which each has a turn.
    order: VecDeque<u32>,
}

impl Waiting {
    fn first(&self) -> Option<(u64, &Waker)> {
        let (number, waker) = self.flows.get(self.order.front()?)?.first_key_value()?;
        Some((*number, waker))
    }

    fn add(&mut self, flow: u32, number: u64, waker: Waker) {
        let of_flow = self.flows.entry(flow).or_default();
        if of_flow.is_empty() {
            self.order.push_back(flow);
        }
        of_flow.insert(number, waker);
    }

    /// Somebody leaves, who was the first if it `went`.
    fn remove(&mut self, flow: u32, number: u64, went: bool) {
        let Some(of_flow) = self.flows.get_mut(&flow) else { return };
        of_flow.remove(&number);
        if of_flow.is_empty() {
            self.flows.remove(&flow);
            // Mostly it is in front.
            if let Some(at) = self.order.iter().position(|other| *other == flow) {
                self.order.remove(at);
            }
        } else if went {
            self.order.rotate_left(1);
        }
    }
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
    pub(super) fn enter(self: &Rc<Self>, flow: u32, now: Instant, bytes: usize, waker: &Waker) -> Option<Place> {
        self.enter_at(flow, self.commons.since(now), bytes, waker)
    }

    fn enter_at(self: &Rc<Self>, flow: u32, since: Duration, bytes: usize, waker: &Waker) -> Option<Place> {
        let number = self.next.get();
        if self.first().is_none() && self.until_turn(number, since, bytes).is_zero() {
            self.turn.set(None);
            return None;
        }
        self.next.set(number + 1);
        self.waiting.borrow_mut().add(flow, number, waker.clone());
        self.commons.standing(self.tenant).waiting.fetch_add(1, Ordering::Relaxed);
        Some(Place { line: Rc::clone(self), flow, number, went: false })
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
        self.waiting.borrow().first().map(|(number, _)| number)
    }
}

/// A place in a line. Whoever has one asks when it is woken, or drops it: all behind wait for the first.
#[derive(Debug)]
pub(super) struct Place {
    line: Rc<Line>,
    flow: u32,
    number: u64,
    went: bool,
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
        let mut waiting = self.line.waiting.borrow_mut();
        if let Some(known) = waiting.flows.get_mut(&self.flow).and_then(|of_flow| of_flow.get_mut(&self.number)) {
            known.clone_from(waker);
        }
        None
    }

    /// It is its turn, and its bytes go.
    pub(super) fn go(mut self) {
        self.line.turn.set(None);
        self.went = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let line = &self.line;
        let was_first = line.first() == Some(self.number);
        line.waiting.borrow_mut().remove(self.flow, self.number, self.went);
        line.commons.standing(line.tenant).waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some((_, turn)) = line.turn.get().filter(|(of, _)| *of == self.number)
            && line.reserved().take_back(turn.reservation)
        {
            line.turn.set(None);
        }
        if was_first {
            // Whatever waking does, it finds the line free.
            let next = line.waiting.borrow().first().map(|(_, waker)| waker.clone());
            next.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests;
