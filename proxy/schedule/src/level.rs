//! One level of start-time fair queueing: who shares on it, who of them is next, and where each one stands. What is shared, and by
//! whom, is the business of [`crate::fair`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use crate::Share;
use crate::reserve::{AHEAD, Promise, Reserve};

/// While the process has used up its quota of processor time, who has rested may still run for so long, in nanoseconds: more than
/// a request or two take.
const SPARED: u64 = 1_000_000;

/// How much of its share somebody may have later whom others had the use of meanwhile, in nanoseconds: what some requests take, and
/// new connections for them. Without it who asks for little among many who ask for much would wait for all of them again and again:
/// a hundredth of a worker is 0.2 ms in 20 ms. With it the others wait once, for so long, for each who has saved it up.
pub(crate) const SAVED: u64 = 500_000;

/// Cost over weight. Wide enough for ever: with 64 bits a day of work at full precision would wrap.
pub(crate) type Virtual = u128;

/// Who shares on one level, and who of them is next.
#[derive(Debug, Default)]
pub(crate) struct Level {
    runnable: Line,
    /// Of those who can run, the ones that need not wait for the quota of the process.
    spared: Line,
    /// There is such a quota.
    pub(crate) sparing: bool,
    /// Of those who can run, the ones that were promised a part.
    pub(crate) reserve: Reserve,
    /// The largest start tag of those whose turn came by weight; when nobody is left, the end of the last busy period.
    now: Virtual,
    latest_finish: Virtual,
    /// The latest end of the last turn of those who were forgotten. Who is new may be any of them.
    pub(crate) forgotten: Virtual,
    /// Makes equal start tags run in the order of their arrival.
    arrivals: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) start: Virtual,
    arrival: u64,
    pub(crate) slot: usize,
}

/// A heap that keeps its first place beside it: alone nobody pays for a heap, and who goes back into the line moves the others
/// once, not twice.
#[derive(Debug, Default)]
struct Line {
    /// Before all of `rest`. Without it the first one is there, too.
    first: Option<Place>,
    rest: BinaryHeap<Reverse<Place>>,
}

impl Line {
    fn push(&mut self, mut place: Place) {
        if let Some(first) = &mut self.first {
            if place < *first {
                std::mem::swap(&mut place, first);
            }
            self.rest.push(Reverse(place));
            return;
        }
        if let Some(mut top) = self.rest.peek_mut().filter(|top: &PeekMut<'_, _>| top.0 < place) {
            std::mem::swap(&mut place, &mut top.0);
        }
        self.first = Some(place);
    }

    fn pop(&mut self) -> Option<Place> {
        self.first.take().or_else(|| self.rest.pop().map(|Reverse(place)| place))
    }

    fn first(&self) -> Option<&Place> {
        self.first.as_ref().or_else(|| self.rest.peek().map(|Reverse(place)| place))
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.rest.is_empty()
    }
}

/// Where one tenant or flow stands on its level.
#[derive(Debug)]
pub(crate) struct Standing {
    start: Virtual,
    finish: Virtual,
    /// Virtual time of a nanosecond.
    pub(crate) rate: u64,
    pub(crate) promise: Promise,
    /// Up to here it is spared waiting for the quota.
    spared_until: Virtual,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Idle,
    Runnable,
    InService,
}

impl Standing {
    /// One whose last turn ended no later than at `finish`.
    pub(crate) fn new(share: Share, finish: Virtual) -> Self {
        let Share { weight, at_least, .. } = share;
        let promise = Promise::new(at_least);
        Self { start: finish, finish, rate: weight.rate(), promise, spared_until: 0, state: State::Idle }
    }
}

impl Level {
    /// Lets one run again that had nothing to do.
    pub(crate) fn wake(&mut self, who: &mut Standing, slot: usize) {
        if who.state == State::Idle {
            if self.sparing {
                // As much as its share would have been meanwhile; nothing where nobody else was given more.
                let rested = self.now.saturating_sub(who.finish).min(Virtual::from(SPARED) * Virtual::from(who.rate));
                who.spared_until = who.spared_until.max(self.now + rested);
            }
            let saved = Virtual::from(SAVED) * Virtual::from(who.rate);
            self.enter(who, slot, who.finish.max(self.now.saturating_sub(saved)), true);
        }
    }

    /// Puts one into its line, after a rest (`anew`) or after a turn.
    fn enter(&mut self, who: &mut Standing, slot: usize, start: Virtual, anew: bool) {
        who.start = start;
        who.state = State::Runnable;
        self.arrivals += 1;
        let place = Place { start, arrival: self.arrivals, slot };
        let spared = self.sparing && start < who.spared_until;
        match who.promise.is_any() {
            true => self.reserve.push(place, &mut who.promise, anew, spared),
            false if spared => self.spared.push(place),
            false => self.runnable.push(place),
        }
    }

    /// The slot of who runs next.
    pub(crate) fn pick(&mut self) -> Option<usize> {
        let line =
            match self.spared.first().is_some_and(|first| self.runnable.first().is_none_or(|other| first < other)) {
                true => &mut self.spared,
                false => &mut self.runnable,
            };
        let by_weight = match self.reserve.is_empty() {
            true => line.pop(),
            false => {
                // Out of its turn: the others' time does not go on to where it stands.
                if let Some(place) = self.reserve.pop_behind() {
                    return Some(place.slot);
                }
                self.reserve.pop_before(line.first()).or_else(|| line.pop())
            }
        };
        let Place { start, slot, .. } = by_weight?;
        self.now = self.now.max(start);
        Some(slot)
    }

    /// The slot of who runs next while the quota is used up. Out of its turn, too: else those who are spared would earn each other
    /// more of it.
    pub(crate) fn pick_spared(&mut self) -> Option<usize> {
        let promised = self.reserve.pop_behind().or_else(|| self.reserve.pop_spared());
        promised.or_else(|| self.spared.pop()).map(|place| place.slot)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.runnable.is_empty() && self.spared.is_empty() && self.reserve.is_empty()
    }

    /// Whether all who can run would still come after the one in service, whose turn goes on.
    pub(crate) fn none_before(&self, who: &Standing) -> bool {
        let after = |line: &Line| line.first().is_none_or(|first| who.start < first.start);
        self.reserve.is_empty() && after(&self.runnable) && after(&self.spared)
    }

    /// Ends the turn of the one in service.
    pub(crate) fn charge(&mut self, who: &mut Standing, slot: usize, cost: u64, again: bool) {
        let of_rate = |time: u64| Virtual::from(time) * Virtual::from(who.rate);
        who.finish = who.start + of_rate(cost);
        self.reserve.pass(cost);
        if who.promise.is_any() {
            self.reserve.pay(&mut who.promise, cost);
            who.finish = who.finish.min(self.now + of_rate(AHEAD + cost));
        }
        self.latest_finish = self.latest_finish.max(who.finish);
        who.state = State::Idle;
        if again {
            self.enter(who, slot, who.finish, false);
        } else if self.is_idle() {
            self.now = self.latest_finish;
        }
    }

    /// What one had by a promise that it has no more is not held against it.
    pub(crate) fn forgive(&mut self, who: &mut Standing, slot: usize) {
        who.start = who.start.min(self.now);
        who.finish = who.finish.min(self.now);
        self.reserve.bring_forward(slot, self.now);
    }

    /// Whether forgetting this one would forgive it nothing.
    pub(crate) fn is_even_with(&self, who: &Standing) -> bool {
        who.state == State::Idle && who.finish <= self.now
    }

    /// Whether it has rested for so long that it would begin as somebody does who was never here.
    pub(crate) fn is_as_new(&self, who: &Standing) -> bool {
        let saved = Virtual::from(SAVED) * Virtual::from(who.rate);
        who.state == State::Idle && who.finish.saturating_add(saved) <= self.now
    }

    /// Nor does it earn anything: who comes next has saved no more than this one.
    pub(crate) fn forget(&mut self, who: &Standing) {
        self.forgotten = self.forgotten.max(who.finish);
    }
}
