//! Runs the tasks of one worker, the one of the group whose turn it is first.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use async_task::Runnable;
use slab::Slab;

use crate::account::{Account, Polled};
use crate::clock::Clock;
use crate::current;
use crate::fair::{Fair, Turn};
use crate::meter::{Ledger, Meter};
use crate::plain::{POLLS, Plain, Unmeasured};
use crate::quota::{Pace, Quota, Turns};
use crate::remote::Remote;
use crate::slice::SLICE;
use crate::spent::Sum;
use crate::task::Group;
use crate::work::{Marks, Sampler};
use crate::{GroupKey, Share, TenantId};

/// Time that tasks run before the event loop has its turn, in nanoseconds. Who is ready is found out only then, and a request needs
/// it twice, for itself and for its answer: so it waits for two of these and a poll each. A turn of the event loop costs a microsecond.
pub const QUANTUM: u64 = 100_000;
/// A turn goes on with the next task of its flow until it has taken so long, in nanoseconds, unless somebody has come who goes before:
/// no longer than one poll may take. So nobody need find out after each poll whose turn is next, and what a tenant uses is in the
/// caches for some polls: where four tenants took turns of one cheap request each, a request cost each a tenth more than alone.
pub(crate) const TURN: u64 = SLICE;
/// Who has used up what its share gives it has no turn for so long at least, in nanoseconds: to let somebody go on costs a turn of the
/// event loop.
const HOLD: u64 = 5_000_000;
/// How long the end of an executor waits for a thread that is just handing a task over. It takes a microsecond.
const HANDOVER: Duration = Duration::from_secs(1);

/// A task that may run; with it the place where its group queues, which changes when the group does.
pub(crate) type Ready = Runnable<Arc<AtomicUsize>>;

/// The tasks of one thread. Dropping it drops all that are left.
#[derive(Debug)]
pub struct Executor(Handle);

/// Makes groups.
#[derive(Clone, Debug)]
pub struct Handle(Rc<Local>);

pub(crate) struct Local {
    pub(crate) clock: Box<dyn Clock>,
    ledger: Box<dyn Ledger>,
    fair: RefCell<Fair<Queued>>,
    /// What takes the place of all that shares and measures, in an executor that does neither.
    pub(crate) plain: Option<Plain<Ready>>,
    meter: RefCell<Meter>,
    pub(crate) remote: Arc<Remote<Ready>>,
    /// Wakers of all tasks that have not ended.
    pub(crate) active: RefCell<Slab<Waker>>,
    /// What drives the executor.
    pump: RefCell<Option<Waker>>,
    /// Nothing can run, and the pump does not know of anything that has come since.
    asleep: Cell<bool>,
    /// When the present poll began; `None` in the event loop, where time passes unseen.
    now: Cell<Option<u64>>,
    /// Place of the tenant whose task is polled.
    running: Cell<Option<usize>>,
    /// Which polls are looked at more closely, and what they are spent on.
    pub(crate) sampler: Sampler,
    pub(crate) marks: Cell<Marks>,
    /// How long that task could have run before.
    pub(crate) waited: Cell<u64>,
    /// What its group has used; the task says which.
    pub(crate) spent: Cell<Option<Rc<Sum>>>,
    /// When the present poll has used up its slice.
    pub(crate) slice_end: Cell<u64>,
    /// What the clock last said in the present poll, if its task has not asked for its slice since.
    unasked: Cell<Option<u64>>,
    /// The processor time that the process may use, if anybody looks.
    quota: Option<Arc<Quota>>,
    /// Since when tasks wait for it.
    waits_since: Cell<Option<u64>>,
    /// Somebody is held whose release nobody waits for yet.
    held_anew: Cell<bool>,
}

#[derive(Debug)]
struct Queued {
    task: Ready,
    since: u64,
}

impl fmt::Debug for Local {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Executor").finish_non_exhaustive()
    }
}

impl Executor {
    /// An executor for this thread. One per thread: of several, all but the newest pass their wakes the long way round.
    pub fn new(clock: impl Clock + 'static, ledger: impl Ledger + 'static) -> Self {
        Self::make(clock, ledger, None, None)
    }

    /// The same, and it keeps to the quota of the process: while that is used up, its thread sleeps now and then, for milliseconds
    /// at most, and looks at nothing.
    pub fn paced(clock: impl Clock + 'static, ledger: impl Ledger + 'static, quota: Arc<Quota>) -> Self {
        Self::make(clock, ledger, Some(quota), None)
    }

    /// One that shares nothing: tasks run in the order of their wakes, whosever they are, so many between two turns of the event
    /// loop. Nothing is measured: groups have keys, but no accounts.
    pub fn plain() -> Self {
        Self::make(Unmeasured, Unmeasured, None, Some(Plain::default()))
    }

    fn make(
        clock: impl Clock + 'static,
        ledger: impl Ledger + 'static,
        quota: Option<Arc<Quota>>,
        plain: Option<Plain<Ready>>,
    ) -> Self {
        let (overhead, _) = ledger.open(TenantId::OVERHEAD);
        let local = Rc::new(Local {
            clock: Box::new(clock),
            ledger: Box::new(ledger),
            fair: RefCell::default(),
            plain,
            meter: RefCell::new(Meter::new(overhead)),
            remote: Arc::new(Remote::new()),
            active: RefCell::default(),
            pump: RefCell::default(),
            asleep: Cell::new(false),
            now: Cell::new(None),
            running: Cell::new(None),
            sampler: Sampler::default(),
            marks: Cell::default(),
            waited: Cell::new(0),
            spent: Cell::new(None),
            slice_end: Cell::new(u64::MAX),
            unasked: Cell::new(None),
            quota,
            waits_since: Cell::new(None),
            held_anew: Cell::new(false),
        });
        current::set(Rc::clone(&local));
        Self(Handle(local))
    }

    /// For those who spawn.
    pub fn handle(&self) -> Handle {
        self.0.clone()
    }

    /// Runs tasks for a [`QUANTUM`], then completes: let the event loop have its turn, and come back. While nothing can run it
    /// waits; whoever drives it ends that when it is time for the [next release](Self::next_release). Run it without a budget of
    /// the event loop's own, which all tenants would share.
    pub async fn quantum(&self) {
        poll_fn(|context| self.0.0.poll_quantum(context)).await;
    }

    /// When a tenant that has used up what its share gives it may go on: to be asked before each quantum.
    pub fn next_release(&self) -> Option<Duration> {
        let local = &self.0.0;
        let until = local.fair.borrow().next_release()?;
        Some(Duration::from_nanos(until.saturating_sub(local.clock.now())))
    }
}

impl Handle {
    /// A new group with this key; groups with equal keys share.
    pub fn group(&self, key: GroupKey) -> Group {
        Group::new(&self.0, key)
    }

    /// Changes the share of a tenant that runs here. One that comes later has the share that the ledger names then.
    pub fn set_share(&self, tenant: TenantId, share: Share) {
        self.0.fair.borrow_mut().set_share(tenant, share);
    }

    /// Shows the accounts of the tenants that have a group here.
    pub fn accounts(&self, mut each: impl FnMut(TenantId, &Account)) {
        let (fair, meter) = (self.0.fair.borrow(), self.0.meter.borrow());
        for (place, tenant) in fair.tenants() {
            if let Some(account) = meter.account(place) {
                each(tenant, account);
            }
        }
    }
}

impl Local {
    /// Adds a member to a group and returns where it queues.
    pub(crate) fn join(&self, key: GroupKey) -> usize {
        if self.plain.is_some() {
            return 0;
        }
        let mut opened = None;
        let (slot, tenant) = self.fair.borrow_mut().join(key, || {
            let (account, share) = self.ledger.open(key.tenant);
            opened = Some(account);
            share
        });
        if let Some(account) = opened {
            self.meter.borrow_mut().admit(tenant, account, &*self.clock);
        }
        slot
    }

    pub(crate) fn leave(&self, slot: usize) {
        if self.plain.is_none() {
            self.fair.borrow_mut().leave(slot);
        }
    }

    /// Queues a task that was woken on this thread.
    pub(crate) fn push(&self, task: Ready) {
        match &self.plain {
            Some(plain) => plain.push(task),
            None => self.push_by_share(task),
        }
        if self.asleep.replace(false)
            && let Some(pump) = &*self.pump.borrow()
        {
            pump.wake_by_ref();
        }
    }

    fn push_by_share(&self, task: Ready) {
        let since = self.now.get().unwrap_or_else(|| {
            // The first wake of many that the event loop found: they came together.
            let now = self.clock.now();
            self.now.set(Some(now));
            now
        });
        let slot = task.metadata().load(Ordering::Relaxed);
        self.fair.borrow_mut().push(slot, Queued { task, since });
    }

    /// Takes over what other threads have woken.
    fn take_remote(&self) {
        if self.remote.has_news() {
            self.remote.take().into_iter().for_each(|task| self.push(task));
        }
    }

    fn poll_quantum(&self, context: &mut Context<'_>) -> Poll<()> {
        if !self.pump.borrow().as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            self.remote.set_worker(context.waker().clone());
            self.pump.replace(Some(context.waker().clone()));
        }
        self.asleep.set(false);
        if let Some(plain) = &self.plain {
            return self.run_in_order(plain);
        }
        let began = self.clock.now();
        let mut now = began;
        self.now.set(Some(now));
        self.fair.borrow_mut().release(now);
        let pace = self.pace(now);
        let mut over = false;
        let end = began.saturating_add(QUANTUM);
        while now < end {
            self.take_remote();
            let next = match pace.turns {
                Turns::Everybody => self.fair.borrow_mut().next(),
                Turns::Spared => self.fair.borrow_mut().next_spared(),
                Turns::Nobody => None,
            };
            let Some(turn) = next else {
                over = true;
                break;
            };
            // Who is spared waiting has what it needs, and no more.
            let until = if pace.turns == Turns::Everybody { end } else { now };
            now = self.take_turn(turn, now, until);
        }
        self.slice_end.set(u64::MAX);
        self.now.set(None);
        let booked = self.meter.borrow_mut().pause(now, &*self.clock);
        self.fair.borrow_mut().pass(booked.beside);
        let idle = self.fair.borrow().is_idle();
        if let Some(quota) = &self.quota {
            quota.work(booked.all);
            if over && !idle {
                self.waits_since.set(self.waits_since.get().or(Some(now)));
                // Nothing that comes meanwhile could run much sooner, and to be woken for each of it costs what is short.
                quota.nap(pace);
                return Poll::Ready(());
            }
        }
        if self.held_anew.take() || (!over && !idle) {
            return Poll::Ready(());
        }
        self.asleep.set(true);
        Poll::Pending
    }

    /// Runs the task whose turn it is, from `now` on, and until `end` more of its flow, unless somebody comes before them. Returns when
    /// that ended.
    fn take_turn(&self, turn: Turn<Queued>, mut now: u64, end: u64) -> u64 {
        let Turn { item: mut next, tenant, mut rested, released } = turn;
        let (end, mut used) = (end.min(now.saturating_add(TURN)), 0);
        loop {
            let held = released.min(now).saturating_sub(next.since);
            let waited = now.saturating_sub(next.since).saturating_sub(held);
            self.slice_end.set(now.saturating_add(SLICE));
            self.unasked.set(Some(now));
            self.running.set(Some(tenant));
            self.waited.set(waited + held);
            let sampled = self.begin_marks(now);
            next.task.run();
            self.running.set(None);
            let ended = self.clock.now();
            let poll = Polled { took: ended.saturating_sub(now), waited, held, rested, ended };
            let cost = self.meter.borrow_mut().polled(tenant, poll, &*self.clock);
            if sampled {
                self.meter.borrow().sampled(tenant, &self.end_marks(ended));
            }
            if let Some(spent) = self.spent.take() {
                spent.add(cost, waited + held);
            }
            now = ended;
            self.now.set(Some(now));
            used += cost;
            let Some(more) = (now < end).then(|| self.fair.borrow_mut().more()).flatten() else { break };
            (next, rested) = (more, false);
        }
        self.charge(tenant, used, now);
        now
    }

    fn run_in_order(&self, plain: &Plain<Ready>) -> Poll<()> {
        for _ in 0..POLLS {
            let Some(task) = plain.next(&self.remote) else {
                plain.pause();
                self.asleep.set(true);
                return Poll::Pending;
            };
            plain.begin();
            task.run();
        }
        plain.pause();
        Poll::Ready(())
    }

    /// Whether the present poll has gone on for long enough. What the clock has said since the last question will do: no more than one
    /// step of the task is in between.
    pub(crate) fn slice_spent(&self) -> bool {
        match &self.plain {
            Some(plain) => plain.slice_spent(),
            None => self.unasked.take().unwrap_or_else(|| self.clock.now()) >= self.slice_end.get(),
        }
    }

    /// The time, in a poll.
    pub(crate) fn now_in_poll(&self) -> u64 {
        let now = self.clock.now();
        self.unasked.set(Some(now));
        now
    }

    /// Whose turn may come as far as the quota of the process goes.
    fn pace(&self, now: u64) -> Pace {
        let Some(quota) = &self.quota else { return Pace::FREE };
        let is_set = quota.is_set();
        self.fair.borrow_mut().set_sparing(is_set);
        self.meter.borrow_mut().settle_often(is_set);
        let pace = quota.look(self.waits_since.get().is_some());
        if (pace.turns == Turns::Everybody || self.fair.borrow().is_idle())
            && let Some(since) = self.waits_since.take()
        {
            quota.wait(now.saturating_sub(since));
        }
        pace
    }

    /// Ends a turn.
    fn charge(&self, place: usize, cost: u64, ended: u64) {
        let mut fair = self.fair.borrow_mut();
        let wait = fair.with_end(place).map_or(0, |tenant| self.ledger.pay(tenant, cost));
        if wait > 0 {
            fair.hold(ended.saturating_add(wait.max(HOLD)));
            self.held_anew.set(true);
        }
        fair.charge(cost);
    }

    /// Nanoseconds that the present poll has taken so far.
    pub(crate) fn present_poll(&self) -> u64 {
        let began = self.running.get().and_then(|_| self.now.get());
        began.map_or(0, |began| self.now_in_poll().saturating_sub(began))
    }

    /// Counts a task that has panicked in the present poll.
    pub(crate) fn panicked(&self) {
        let Some(place) = self.running.get() else { return };
        self.meter.borrow().panicked(place);
        let tenant = self.fair.borrow().tenant(place);
        self.ledger.panicked(tenant);
    }
}

impl Drop for Executor {
    /// Drops every task that has not ended, here and now: their futures belong to this thread.
    fn drop(&mut self) {
        let local = &self.0.0;
        let began = std::time::Instant::now();
        // Dropping one may wake or start others.
        while !local.active.borrow().is_empty() && began.elapsed() < HANDOVER {
            let wakers: Vec<Waker> = local.active.borrow().iter().map(|(_, waker)| waker.clone()).collect();
            wakers.into_iter().for_each(Waker::wake);
            if let Some(plain) = &local.plain {
                while let Some(task) = plain.next(&local.remote) {
                    drop(task);
                }
            }
            local.take_remote();
            local.fair.borrow_mut().release(u64::MAX);
            loop {
                let next = local.fair.borrow_mut().next();
                let Some(turn) = next else { break };
                drop(turn.item.task);
            }
            // Only a task that another thread is just handing over is left, if any.
            thread::yield_now();
        }
        current::remove(local);
    }
}
