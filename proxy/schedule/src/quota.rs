//! The processor time that the whole process may use, and who waits so that it does not use more.
//!
//! A control group that has used up its quota is stopped by the kernel until the next period begins, all threads of it: whoever
//! keeps a worker busy for half of each period has everybody wait for the other half. So the workers keep below the quota by
//! themselves, some hundred microseconds at a time: a bucket that time fills and every thread of the process empties. While it is empty nobody's
//! turn comes, but for those who have rested (`fair.rs`), who may empty it a little further.
//!
//! A worker of which nobody's turn may come sleeps, and what happens to its sockets meanwhile it sees afterwards, all at once. If each
//! event woke it, that would be most of what it does with a small quota: to be woken costs some microseconds, a quarter of a request.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// What a quota may be full of, and how far those who have rested may go beyond: thousandths of what it gives in a period. Added to
/// what is aimed at, that must be less than all of it.
const BURST: u64 = 20;
const DEPTH: u64 = 10;
/// Nor may more be aimed at.
const MOST_AIM: u32 = 1000 - (BURST + DEPTH) as u32;
/// A worker that waits does so until what the quota gives in so many nanoseconds has come together: whoever has a request meanwhile
/// waits for half of that, on average, with half a processor.
const ROUND: u64 = 600_000;
/// Or at least so many nanoseconds of processor time: with less, a small quota would go into falling asleep and into being cold
/// afterwards, which costs some 30 us where it was measured (a virtual machine whose processor had nothing else to do).
const LEAST_PORTION: u64 = 180_000;
/// For so long it sleeps at most: the quota can be changed meanwhile, or the process be told to end.
const LONGEST_NAP: u64 = 5_000_000;
/// The bucket is not looked at more often, in nanoseconds of time: a look is a system call.
const LOOK: u64 = 50_000;
/// It is looked at as often at least, in nanoseconds of time.
const LOOK_IN_ANY_CASE: u64 = 5_000_000;
/// So many threads may empty it at once without being seen between two looks.
const THREADS: u64 = 4;
/// The price of processor time is a multiple of one part in 2^20.
const ONE: u64 = 1 << 20;

/// Where the time of a process comes from; tests have their own. The same for all threads.
pub trait ProcessClock: Send + Sync {
    /// Nanoseconds since some moment; never goes back.
    fn now(&self) -> u64;

    /// Processor time of all threads of the process, in nanoseconds. A system call.
    fn process_cpu(&self) -> u64;

    /// The calling thread does nothing for so many nanoseconds, or a little longer.
    fn sleep(&self, nanoseconds: u64);
}

/// The system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemProcessClock;

impl ProcessClock for SystemProcessClock {
    fn now(&self) -> u64 {
        nanoseconds(clock_gettime(ClockId::Monotonic))
    }

    fn process_cpu(&self) -> u64 {
        nanoseconds(clock_gettime(ClockId::ProcessCPUTime))
    }

    fn sleep(&self, nanoseconds: u64) {
        thread::sleep(Duration::from_nanos(nanoseconds));
    }
}

pub(crate) fn nanoseconds(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// How much processor time there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// In each period, in nanoseconds; at least 1.
    pub cpu: u64,
    /// In nanoseconds; at least 1.
    pub period: u64,
    /// Thousandths of it that are aimed at: up to 970.
    pub aim: u32,
}

/// The bucket that all threads share. Atomic cells only: nobody waits for anybody.
pub struct Quota {
    clock: Box<dyn ProcessClock>,
    /// Time in which a nanosecond of processor time is paid, in parts of [`ONE`]. 0 without a quota.
    price: AtomicU64,
    /// All of these are time, in nanoseconds: how long the bucket takes to be full, to fill as far as it may be overdrawn, to
    /// gather what a worker waits for, and the period.
    burst: AtomicU64,
    depth: AtomicU64,
    portion: AtomicU64,
    period: AtomicU64,
    /// When what was used so far is paid. Before, the bucket is overdrawn.
    paid_at: AtomicU64,
    looked_at: AtomicU64,
    look_at: AtomicU64,
    /// Processor time of executors; the last look has seen so much of it, and so much of all other threads'.
    worked: AtomicU64,
    worked_seen: AtomicU64,
    others_seen: AtomicU64,
    waited: AtomicU64,
}

impl fmt::Debug for Quota {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Quota").field("price", &self.price).finish_non_exhaustive()
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self::new(SystemProcessClock)
    }
}

/// Whose turn may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turns {
    Everybody,
    /// Those who have used little.
    Spared,
    Nobody,
}

/// What a look at the bucket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) turns: Turns,
    /// For how long to sleep if none of those can run, in nanoseconds. 0 for everybody.
    pub(crate) nap: u64,
}

impl Pace {
    pub(crate) const FREE: Self = Self { turns: Turns::Everybody, nap: 0 };
}

impl Quota {
    /// Without an end, until one is set.
    pub fn new(clock: impl ProcessClock + 'static) -> Self {
        Self {
            clock: Box::new(clock),
            price: AtomicU64::default(),
            burst: AtomicU64::default(),
            depth: AtomicU64::default(),
            portion: AtomicU64::default(),
            period: AtomicU64::default(),
            paid_at: AtomicU64::default(),
            looked_at: AtomicU64::default(),
            look_at: AtomicU64::default(),
            worked: AtomicU64::default(),
            worked_seen: AtomicU64::default(),
            others_seen: AtomicU64::default(),
            waited: AtomicU64::default(),
        }
    }

    /// Says how much there is from now on; `None`: without an end. What is owed stays owed.
    pub fn set(&self, allowance: Option<Allowance>) {
        let Some(Allowance { cpu, period, aim }) = allowance else {
            self.price.store(0, Ordering::Relaxed);
            return;
        };
        let aimed = u128::from(cpu) * u128::from(aim.clamp(1, MOST_AIM)) / 1000;
        let price = narrow(u128::from(period) * u128::from(ONE) / aimed.max(1)).max(1);
        let part = |thousandths: u64| narrow(u128::from(cpu) * u128::from(thousandths) / 1000);
        let store = |cell: &AtomicU64, used: u64| cell.store(time_of(used, price), Ordering::Relaxed);
        store(&self.burst, part(BURST));
        store(&self.depth, part(DEPTH));
        let of_a_round = narrow(aimed * u128::from(ROUND) / u128::from(period.max(1)));
        store(&self.portion, of_a_round.max(LEAST_PORTION).min(part(BURST)));
        self.period.store(period, Ordering::Relaxed);
        if self.price.swap(price, Ordering::Relaxed) == 0 {
            // What was used before is not owed.
            let used = self.clock.process_cpu();
            let worked = self.worked.load(Ordering::Relaxed);
            self.worked_seen.fetch_max(worked, Ordering::Relaxed);
            self.others_seen.fetch_max(used.saturating_sub(worked), Ordering::Relaxed);
            self.looked_at.store(self.clock.now(), Ordering::Relaxed);
        }
    }

    /// Time for which tasks of a thread could run and had to wait, in nanoseconds, all threads together.
    pub fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }

    /// Whether there is an end.
    pub(crate) fn is_set(&self) -> bool {
        self.price.load(Ordering::Relaxed) != 0
    }

    /// A thread of an executor has used so much more.
    pub(crate) fn work(&self, nanoseconds: u64) {
        if nanoseconds > 0 && self.is_set() {
            self.worked.fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }

    /// The thread sleeps.
    pub(crate) fn nap(&self, pace: Pace) {
        self.clock.sleep(pace.nap);
    }

    /// Tasks had to wait for so long.
    pub(crate) fn wait(&self, nanoseconds: u64) {
        self.waited.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Whose turn may come on a thread. One that is `waiting` waits until enough has come together.
    pub(crate) fn look(&self, waiting: bool) -> Pace {
        let price = self.price.load(Ordering::Relaxed);
        if price == 0 {
            return Pace::FREE;
        }
        let now = self.clock.now();
        let look_at = self.look_at.load(Ordering::Relaxed);
        // One thread looks, the others take its word.
        if now >= look_at
            && self.look_at.compare_exchange(look_at, now + LOOK, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.count(now, price);
        }
        let paid_at = self.paid_at.load(Ordering::Relaxed);
        let portion = self.portion.load(Ordering::Relaxed);
        // Half of it will do, when it has slept: what it used beyond the last one, and others meanwhile, is in there, too.
        let enough = portion / 2;
        if paid_at.saturating_add(if waiting { enough } else { 0 }) <= now {
            return Pace::FREE;
        }
        let overdrawn = paid_at.saturating_sub(now);
        let turns = if overdrawn < self.depth.load(Ordering::Relaxed) { Turns::Spared } else { Turns::Nobody };
        Pace { turns, nap: portion.max(overdrawn.saturating_add(enough)).clamp(1, LONGEST_NAP) }
    }

    /// Takes out of the bucket what was used since the last look.
    fn count(&self, now: u64, price: u64) {
        let used = self.clock.process_cpu();
        let worked = self.worked.load(Ordering::Relaxed);
        let since = now.saturating_sub(self.looked_at.swap(now, Ordering::Relaxed));
        let by_workers = worked.saturating_sub(self.worked_seen.fetch_max(worked, Ordering::Relaxed));
        // What workers have not told of yet counts here, once: it does not come again when they have.
        let others = used.saturating_sub(worked);
        let by_others = others.saturating_sub(self.others_seen.fetch_max(others, Ordering::Relaxed));
        // Others do not ask before they work. Half of all is the tenants', whatever is compiled or logged meanwhile.
        let cost = time_of(by_workers, price).saturating_add(time_of(by_others, price).min(since / 2));
        let full = now.saturating_sub(self.burst.load(Ordering::Relaxed));
        // What was used in a period is forgotten in the next, as the kernel does.
        let most = now.saturating_add(self.period.load(Ordering::Relaxed));
        let pay = |paid_at: u64| Some(paid_at.saturating_add(cost).max(full).min(most));
        let paid_at = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).unwrap_or_default();
        let left = now.saturating_sub(pay(paid_at).unwrap_or_default());
        let soon = narrow(u128::from(left) * u128::from(ONE) / u128::from(price)) / THREADS;
        self.look_at.store(now + soon.clamp(LOOK, LOOK_IN_ANY_CASE), Ordering::Relaxed);
    }
}

/// Time in which so much processor time is paid.
fn time_of(used: u64, price: u64) -> u64 {
    narrow(u128::from(used) * u128::from(price) / u128::from(ONE))
}

fn narrow(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
