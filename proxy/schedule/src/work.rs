//! What kind of work the time of a poll goes to, by marks around parts of it. They count in a sample of polls only, one in 64 on
//! average: elsewhere a mark is a look at a flag. What the sample says is scaled to all of a tenant's time when that is booked.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::current;
use crate::executor::Local;

/// A kind of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// Sockets, timers, and whatever has no mark.
    #[default]
    Io,
    /// Reading, judging the form of, and writing of messages.
    Http,
    /// Encryption.
    Tls,
    /// Deciding by policy.
    Policy,
    /// Records and entries of logs.
    Log,
    /// Following changes of configuration.
    Config,
}

/// How many kinds there are.
pub const WORKS: usize = 6;

impl Work {
    /// Each, with its name in metrics, in order.
    pub const ALL: [(Self, &'static str); WORKS] = [
        (Self::Io, "io"),
        (Self::Http, "http"),
        (Self::Tls, "tls"),
        (Self::Policy, "policy"),
        (Self::Log, "log"),
        (Self::Config, "config"),
    ];
}

thread_local! {
    static SAMPLED: Cell<bool> = const { Cell::new(false) };
}

/// Time spent on each kind in the present poll, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    kind: Work,
    since: u64,
    spent: [u64; WORKS],
}

impl Marks {
    fn turn_to(&mut self, kind: Work, now: u64) -> Work {
        self.spent[self.kind as usize] += now.saturating_sub(self.since);
        self.since = now;
        std::mem::replace(&mut self.kind, kind)
    }
}

/// Which polls are in the sample. Not every 64th: tasks that take turns would be in it always or never.
#[derive(Debug)]
pub(crate) struct Sampler {
    left: Cell<u32>,
    random: Cell<u32>,
}

impl Default for Sampler {
    /// The first poll is in it.
    fn default() -> Self {
        Self { left: Cell::new(1), random: Cell::new(0x9E37_79B9) }
    }
}

impl Sampler {
    fn takes_this(&self) -> bool {
        let left = self.left.get() - 1;
        if left > 0 {
            self.left.set(left);
            return false;
        }
        // xorshift32 (Marsaglia 2003).
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        self.random.set(random);
        self.left.set(33 + random % 63);
        true
    }
}

impl Local {
    /// A poll begins. Whether it is in the sample.
    pub(crate) fn begin_marks(&self, now: u64) -> bool {
        let sampled = self.sampler.takes_this();
        if sampled {
            self.marks.set(Marks { since: now, ..Marks::default() });
            SAMPLED.set(true);
        }
        sampled
    }

    /// A poll in the sample has ended: what it spent on each kind.
    pub(crate) fn end_marks(&self, now: u64) -> [u64; WORKS] {
        SAMPLED.set(false);
        let mut marks = self.marks.get();
        marks.turn_to(Work::Io, now);
        marks.spent
    }

    fn turn_to(&self, kind: Work) -> Work {
        let mut marks = self.marks.get();
        let before = marks.turn_to(kind, self.now_in_poll());
        self.marks.set(marks);
        before
    }
}

/// Until this is dropped, the time of the poll goes to a kind of work.
#[derive(Debug)]
#[must_use = "the time counts until this is dropped"]
pub struct Mark {
    /// The kind to go back to, in a poll of the sample.
    before: Option<Work>,
    /// Of this thread.
    _local: PhantomData<*const ()>,
}

/// From here on the time of the present poll goes to `kind`. Marks nest. None may be held over an `await`: the task would take it into
/// another poll.
pub fn mark(kind: Work) -> Mark {
    let before = if SAMPLED.get() { current::with(|local| local.turn_to(kind)) } else { None };
    Mark { before, _local: PhantomData }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            current::with(|local| local.turn_to(before));
        }
    }
}
