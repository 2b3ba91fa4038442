//! Time that is kept for somebody: a floor under the share of whoever is promised one, whatever the others weigh.
//!
//! Virtual clocks (Zhang, 1990): whoever is promised a part has a moment, in time of the worker, up to which what it was given pays
//! the promise. While that moment is past, it is behind, and goes before everybody else; the earliest first. What it is given
//! beyond comes from its turns by weight, as everybody's, and both count for both: a promise is the least, not an extra.

use crate::level::{Place, Virtual};

/// How far a promise may fall behind, in nanoseconds: what could not be given for so long is not made up for.
const LAG: u64 = 100_000_000;
/// How far it may be paid ahead, beside the last turn: who used time that nobody else wanted is not behind everybody for as long
/// afterwards. The same holds for turns by weight.
pub(crate) const AHEAD: u64 = 10_000_000;

/// In the units of [`Part`].
const WHOLE: u64 = 1_000_000;

/// A part of a worker's time. `Default` is none of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    millionths: u32,
}

impl Part {
    /// So many millionths; all of it at most.
    pub const fn of_millionths(millionths: u32) -> Self {
        Self { millionths: if millionths as u64 > WHOLE { WHOLE as u32 } else { millionths } }
    }

    /// The same as a number.
    pub const fn millionths(self) -> u32 {
        self.millionths
    }
}

/// What somebody is promised.
#[derive(Debug, Default)]
pub(crate) struct Promise {
    pub(crate) part: Part,
    /// Up to when it is kept.
    kept_until: u64,
}

/// Those who can run and were promised something, and the worker's time.
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    /// Nanoseconds for which the thread ran somebody, or its event loop.
    time: u64,
    runnable: Vec<Reserved>,
}

#[derive(Debug)]
struct Reserved {
    place: Place,
    kept_until: u64,
    /// It need not wait for the quota of the process.
    spared: bool,
}

impl Promise {
    pub(crate) const fn new(part: Part) -> Self {
        Self { part, kept_until: 0 }
    }

    /// Whether there is one.
    pub(crate) const fn is_any(&self) -> bool {
        self.part.millionths > 0
    }
}

impl Reserve {
    /// Time has passed.
    pub(crate) const fn pass(&mut self, nanoseconds: u64) {
        self.time = self.time.saturating_add(nanoseconds);
    }

    /// Somebody was given so much of the time that has passed.
    pub(crate) fn pay(&self, promise: &mut Promise, cost: u64) {
        let part = u64::from(promise.part.millionths.max(1));
        let begun = promise.kept_until.min(self.time.saturating_add(AHEAD));
        promise.kept_until = begun.saturating_add(cost.saturating_mul(WHOLE) / part);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runnable.is_empty()
    }

    /// Puts one into the line that has a promise. After a rest (`anew`) it is owed nothing for that.
    pub(crate) fn push(&mut self, place: Place, promise: &mut Promise, anew: bool, spared: bool) {
        let earliest = if anew { self.time } else { self.time.saturating_sub(LAG) };
        promise.kept_until = promise.kept_until.max(earliest);
        self.runnable.push(Reserved { place, kept_until: promise.kept_until, spared });
    }

    /// Has one that can run start no later than `now`.
    pub(crate) fn bring_forward(&mut self, slot: usize, now: Virtual) {
        for reserved in self.runnable.iter_mut().filter(|reserved| reserved.place.slot == slot) {
            reserved.place.start = reserved.place.start.min(now);
        }
    }

    /// Takes out who is furthest behind.
    pub(crate) fn pop_behind(&mut self) -> Option<Place> {
        let behind = self.runnable.iter().enumerate().filter(|(_, reserved)| reserved.kept_until <= self.time);
        let (index, _) = behind.min_by_key(|(_, reserved)| reserved.kept_until)?;
        Some(self.runnable.swap_remove(index).place)
    }

    /// Takes out one that need not wait for the quota of the process.
    pub(crate) fn pop_spared(&mut self) -> Option<Place> {
        let index = self.runnable.iter().position(|reserved| reserved.spared)?;
        Some(self.runnable.swap_remove(index).place)
    }

    /// Takes out who is first by weight, if that is before `other`.
    pub(crate) fn pop_before(&mut self, other: Option<&Place>) -> Option<Place> {
        let (index, first) = self.runnable.iter().enumerate().min_by(|(_, a), (_, b)| a.place.cmp(&b.place))?;
        if other.is_some_and(|other| *other < first.place) {
            return None;
        }
        Some(self.runnable.swap_remove(index).place)
    }
}
