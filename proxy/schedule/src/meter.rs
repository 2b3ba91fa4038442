//! Whose account the time of a worker goes to.
//!
//! Each poll is measured with the cheap clock, which also runs while the kernel runs somebody else. The thread's own
//! clock is read once in 500 us of work, and after each poll that took suspiciously long: what the cheap clock has counted too
//! much is taken back from those who ran meanwhile. What nobody ran for is overhead, so that all accounts add up to the
//! thread's processor time.

use std::sync::Arc;

use crate::account::{Account, Polled};
use crate::clock::Clock;
use crate::work::WORKS;
use crate::{Share, TenantId};

/// A poll that seems to take longer is measured with the thread's clock, in nanoseconds.
const SUSPICIOUS: u64 = 300_000;
/// After so much work accounts are settled, in nanoseconds: the thread's clock is a system call, which costs as much as some ten
/// polls beside what they do. Less often, and a poll that was interrupted could be charged for more of the event loop.
const SETTLED: u64 = 500_000;
/// The same where somebody waits for what is used.
const SETTLED_SOON: u64 = 100_000;
/// With less to do, accounts are settled this often, in nanoseconds.
const INTERVAL: u64 = 10_000_000;

/// Where accounts come from. A worker asks on its own thread, in the middle of its work: what answers must not block, spawn
/// or wake anything.
pub trait Ledger {
    /// The account and the share of a tenant that begins to run here.
    fn open(&self, tenant: TenantId) -> (Arc<Account>, Share);

    /// A tenant whose share has an end has used so many nanoseconds, here and now. Returns for how many it has no turn after that.
    fn pay(&self, tenant: TenantId, nanoseconds: u64) -> u64 {
        let _ = (tenant, nanoseconds);
        0
    }

    /// A task of this tenant has panicked. The task is gone; everybody else goes on.
    fn panicked(&self, tenant: TenantId) {
        let _ = tenant;
    }
}

#[derive(Debug)]
struct Tally {
    account: Arc<Account>,
    /// Measured since the accounts were last settled.
    measured: u64,
}

/// Processor time that was booked since that was last told, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Booked {
    /// Nobody's.
    pub(crate) beside: u64,
    pub(crate) all: u64,
}

/// Measures one worker.
#[derive(Debug)]
pub(crate) struct Meter {
    /// By the tenant's place in the run queue.
    tallies: Vec<Option<Tally>>,
    overhead: Arc<Account>,
    /// Places of those who ran since the accounts were last settled.
    ran: Vec<usize>,
    /// What they took together.
    measured: u64,
    /// Overhead that was booked since the worker last went back to its event loop.
    beside: u64,
    /// All that was booked since then.
    booked: u64,
    /// Accounts are settled after so much work.
    often: u64,
    /// The thread's processor time, and the time, when the accounts were last settled.
    settled_cpu: u64,
    settled_at: u64,
}

impl Meter {
    pub(crate) fn new(overhead: Arc<Account>) -> Self {
        Self {
            tallies: Vec::new(),
            overhead,
            ran: Vec::new(),
            measured: 0,
            beside: 0,
            booked: 0,
            often: SETTLED,
            settled_cpu: 0,
            settled_at: 0,
        }
    }

    /// Gives a place to a tenant that is new here. Another may have had it before.
    pub(crate) fn admit(&mut self, place: usize, account: Arc<Account>, clock: &dyn Clock) {
        if self.ran.contains(&place) {
            self.settle(clock.thread_cpu());
        }
        if self.tallies.len() <= place {
            self.tallies.resize_with(place + 1, || None);
        }
        self.tallies[place] = Some(Tally { account, measured: 0 });
    }

    /// Notes one poll, and returns what it costs.
    pub(crate) fn polled(&mut self, place: usize, poll: Polled, clock: &dyn Clock) -> u64 {
        let took = poll.took;
        let cpu = (took > SUSPICIOUS).then(|| clock.thread_cpu());
        let cost = match cpu {
            Some(cpu) => took.min(cpu.saturating_sub(self.settled_cpu).saturating_sub(self.measured)),
            None => took,
        };
        if let Some(Some(tally)) = self.tallies.get_mut(place) {
            if tally.measured == 0 {
                self.ran.push(place);
            }
            tally.measured += cost.max(1);
            self.measured += cost.max(1);
            tally.account.poll(Polled { took: cost, ..poll });
        }
        if let Some(cpu) = cpu {
            self.settle(cpu);
        }
        cost
    }

    /// The account of who has this place.
    pub(crate) fn account(&self, place: usize) -> Option<&Account> {
        self.tallies.get(place)?.as_ref().map(|tally| &*tally.account)
    }

    /// Notes what a poll in the sample was spent on. Its time is booked with that of all others.
    pub(crate) fn sampled(&self, place: usize, spent: &[u64; WORKS]) {
        if let Some(account) = self.account(place) {
            account.sampled(spent);
        }
    }

    /// Counts a task that has panicked.
    pub(crate) fn panicked(&self, place: usize) {
        if let Some(Some(tally)) = self.tallies.get(place) {
            tally.account.panicked();
        }
    }

    /// Has accounts settled more often, or as they were: where somebody waits for what is used.
    pub(crate) const fn settle_often(&mut self, often: bool) {
        self.often = if often { SETTLED_SOON } else { SETTLED };
    }

    /// To be called when the worker goes back to its event loop.
    pub(crate) fn pause(&mut self, now: u64, clock: &dyn Clock) -> Booked {
        if self.measured >= self.often || now.saturating_sub(self.settled_at) >= INTERVAL {
            self.settled_at = now;
            self.settle(clock.thread_cpu());
        }
        Booked { beside: std::mem::take(&mut self.beside), all: std::mem::take(&mut self.booked) }
    }

    /// Books what was measured, in proportion, and the rest as overhead.
    fn settle(&mut self, cpu: u64) {
        let spent = cpu.saturating_sub(self.settled_cpu);
        let shared = self.measured.min(spent);
        let mut booked = 0;
        for place in self.ran.drain(..) {
            let Some(Some(tally)) = self.tallies.get_mut(place) else { continue };
            let measured = std::mem::take(&mut tally.measured);
            let share = u128::from(measured) * u128::from(shared) / u128::from(self.measured.max(1));
            let share = u64::try_from(share).unwrap_or(measured);
            tally.account.add_cpu(share);
            booked += share;
        }
        self.overhead.add_cpu(spent - booked);
        self.beside += spent - booked;
        self.booked += spent;
        self.measured = 0;
        self.settled_cpu = self.settled_cpu.max(cpu);
    }
}
