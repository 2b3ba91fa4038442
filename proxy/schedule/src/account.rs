//! What a tenant has used on one worker. The worker writes, anybody reads; no lock and no contended write.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::work::WORKS;

/// Upper bounds of the classes of [`Usage::delays`], in nanoseconds; the last class has none.
pub const DELAY_BOUNDS: [u64; 7] = [50_000, 200_000, 1_000_000, 5_000_000, 20_000_000, 100_000_000, 500_000_000];

/// A poll that takes longer, in nanoseconds, holds up everybody else for longer than anybody should wait.
pub const SLOW_POLL: u64 = 2_000_000;
/// A sample that sums up to more nanoseconds is halved.
const MEMORY: u64 = 20_000_000;

/// Over how long the least time in the queue is looked for, in nanoseconds: a burst that is over by then is no standing queue (CoDel,
/// RFC 8289 section 4.3, has the same).
const INTERVAL: u64 = 100_000_000;

/// One poll, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Polled {
    pub(crate) took: u64,
    /// How long the task could have run before,
    pub(crate) waited: u64,
    /// and how long it could have if its tenant had not been held.
    pub(crate) held: u64,
    /// Nothing of its tenant's own was in its way.
    pub(crate) rested: bool,
    /// When it ended.
    pub(crate) ended: u64,
}

/// Counts since the account was opened.
#[derive(Debug, Default)]
pub struct Account {
    /// Processor time by [`Work`].
    cpu: [AtomicU64; WORKS],
    /// What polls in the sample were spent on lately; only its proportions count.
    sample: [AtomicU64; WORKS],
    polls: AtomicU64,
    longest: AtomicU64,
    slow: AtomicU64,
    panics: AtomicU64,
    waited: AtomicU64,
    held: AtomicU64,
    delays: [AtomicU64; DELAY_BOUNDS.len() + 1],
    /// Least time in the queue since the present interval began, and in the one before.
    least: AtomicU64,
    least_before: AtomicU64,
    interval_began: AtomicU64,
}

/// What an account says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, in nanoseconds; up to 600 us of the newest may be missing.
    pub cpu: u64,
    /// The same by [`Work`]: they add up to it.
    pub cpu_by_kind: [u64; WORKS],
    /// Polls of tasks.
    pub polls: u64,
    /// The longest of them, in nanoseconds.
    pub longest: u64,
    /// Those of them that took longer than [`SLOW_POLL`].
    pub slow: u64,
    /// Tasks that panicked.
    pub panics: u64,
    /// Nanoseconds that tasks could have run and did not, in sum.
    pub waited: u64,
    /// The same while the tenant had no turn because its share has an end.
    pub held: u64,
    /// How often that time was in the class of [`DELAY_BOUNDS`].
    pub delays: [u64; DELAY_BOUNDS.len() + 1],
}

impl Account {
    /// What was used so far.
    pub fn usage(&self) -> Usage {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let cpu_by_kind = std::array::from_fn(|kind| read(&self.cpu[kind]));
        Usage {
            cpu: cpu_by_kind.iter().sum(),
            cpu_by_kind,
            polls: read(&self.polls),
            longest: read(&self.longest),
            slow: read(&self.slow),
            panics: read(&self.panics),
            waited: read(&self.waited),
            held: read(&self.held),
            delays: std::array::from_fn(|class| read(&self.delays[class])),
        }
    }

    /// How long each of the tenant's tasks waits behind others of its own at the least, in nanoseconds: a queue that has not been
    /// empty, nor shorter, for 100 ms. What it waits for the end of its share counts. 0 for a tenant that uses less than its share, however long it waits for others.
    pub fn standing_delay(&self) -> u64 {
        self.least.load(Ordering::Relaxed).min(self.least_before.load(Ordering::Relaxed))
    }

    fn note_delay(&self, delay: u64, now: u64) {
        let least = self.least.load(Ordering::Relaxed);
        if now.saturating_sub(self.interval_began.load(Ordering::Relaxed)) < INTERVAL {
            self.least.store(least.min(delay), Ordering::Relaxed);
            return;
        }
        self.least_before.store(least.min(delay), Ordering::Relaxed);
        self.least.store(delay, Ordering::Relaxed);
        self.interval_began.store(now, Ordering::Relaxed);
    }

    pub(crate) fn poll(&self, Polled { took, waited, held, rested, ended }: Polled) {
        // Whoever is held waits behind what it has used itself.
        self.note_delay(if rested { 0 } else { waited + held }, ended);
        add(&self.polls, 1);
        add(&self.waited, waited);
        if held > 0 {
            add(&self.held, held);
        }
        if took > self.longest.load(Ordering::Relaxed) {
            self.longest.store(took, Ordering::Relaxed);
        }
        if took > SLOW_POLL {
            add(&self.slow, 1);
        }
        let class = DELAY_BOUNDS.iter().position(|bound| waited <= *bound).unwrap_or(DELAY_BOUNDS.len());
        add(&self.delays[class], 1);
    }

    /// Adds processor time, to each kind of work in proportion to the sample; what cannot be divided is the first's.
    pub(crate) fn add_cpu(&self, nanoseconds: u64) {
        let sample: [u64; WORKS] = std::array::from_fn(|kind| self.sample[kind].load(Ordering::Relaxed));
        let whole = sample.iter().sum::<u64>().max(1);
        let mut left = nanoseconds;
        for (cpu, part) in self.cpu.iter().zip(sample).skip(1).filter(|(_, part)| *part > 0) {
            let share = u128::from(nanoseconds) * u128::from(part) / u128::from(whole);
            let share = u64::try_from(share).unwrap_or(0);
            add(cpu, share);
            left -= share;
        }
        add(&self.cpu[0], left);
    }

    /// Notes what a poll in the sample was spent on. Old polls count ever less, so that proportions follow what the tenant does.
    pub(crate) fn sampled(&self, spent: &[u64; WORKS]) {
        let whole: u64 = self.sample.iter().map(|cell| cell.load(Ordering::Relaxed)).sum();
        for (cell, spent) in self.sample.iter().zip(spent) {
            let before = cell.load(Ordering::Relaxed);
            cell.store((if whole > MEMORY { before / 2 } else { before }) + spent, Ordering::Relaxed);
        }
    }

    pub(crate) fn panicked(&self) {
        add(&self.panics, 1);
    }
}

/// Adds without a locked instruction: only the worker writes.
fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}
