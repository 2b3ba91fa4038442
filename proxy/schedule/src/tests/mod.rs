mod accounts;
mod clock;
mod ends;
mod fairness;
mod plain;
mod quota;
mod tasks;
mod turns;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::{Account, Clock, Executor, Group, GroupKey, Ledger, Share, TenantId, Usage, Weight};

/// Time that passes only when a test says so.
#[derive(Clone, Default)]
struct Time(Rc<Cell<u64>>, Rc<Cell<u64>>, Rc<Cell<u64>>, Rc<Cell<u64>>);

impl Time {
    /// The thread works.
    fn work(&self, nanoseconds: u64) {
        self.0.set(self.0.get() + nanoseconds);
        self.1.set(self.1.get() + nanoseconds);
    }

    /// Time goes on while the thread does not run.
    fn stall(&self, nanoseconds: u64) {
        self.0.set(self.0.get() + nanoseconds);
    }
}

impl Clock for Time {
    fn now(&self) -> u64 {
        // How often it was read.
        self.2.set(self.2.get() + 1);
        self.0.get()
    }

    fn thread_cpu(&self) -> u64 {
        self.3.set(self.3.get() + 1);
        self.1.get()
    }
}

#[derive(Clone, Default)]
struct Books {
    accounts: Rc<RefCell<HashMap<TenantId, Arc<Account>>>>,
    weights: Rc<RefCell<HashMap<TenantId, u32>>>,
    panicked: Rc<RefCell<Vec<TenantId>>>,
    /// How many times as long as they have run tenants wait.
    ends: Rc<RefCell<HashMap<TenantId, u64>>>,
}

impl Ledger for Books {
    fn open(&self, tenant: TenantId) -> (Arc<Account>, Share) {
        let weight = self.weights.borrow().get(&tenant).map_or(Weight::DEFAULT, |weight| Weight::new(*weight));
        let share = Share { has_end: self.ends.borrow().contains_key(&tenant), ..Share::of(weight) };
        (Arc::clone(self.accounts.borrow_mut().entry(tenant).or_default()), share)
    }

    fn pay(&self, tenant: TenantId, nanoseconds: u64) -> u64 {
        self.ends.borrow()[&tenant] * nanoseconds
    }

    fn panicked(&self, tenant: TenantId) {
        self.panicked.borrow_mut().push(tenant);
    }
}

/// A worker whose event loop is the test.
struct Bench {
    executor: Executor,
    time: Time,
    books: Books,
    wakes: Arc<Wakes>,
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Bench {
    fn new() -> Self {
        let (time, books) = (Time::default(), Books::default());
        Self { executor: Executor::new(time.clone(), books.clone()), time, books, wakes: Arc::default() }
    }

    fn group(&self, tenant: u32, flow: u32) -> Group {
        self.executor.handle().group(key(tenant, flow))
    }

    /// One quantum; true when there is more to do.
    fn turn(&self) -> bool {
        let waker = Waker::from(Arc::clone(&self.wakes));
        let quantum = pin!(self.executor.quantum());
        matches!(quantum.poll(&mut Context::from_waker(&waker)), Poll::Ready(()))
    }

    fn turns(&self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    /// Runs until nothing can run.
    fn settle(&self) {
        while self.turn() {}
    }

    fn usage(&self, tenant: TenantId) -> Usage {
        self.books.accounts.borrow().get(&tenant).map(|account| account.usage()).unwrap_or_default()
    }

    /// How often the executor has asked to be driven.
    fn wakes(&self) -> usize {
        self.wakes.0.load(Ordering::SeqCst)
    }

    /// A task that can always run: each poll takes `cost`, and is counted.
    fn greedy(&self, group: &Group, cost: u64) -> Rc<Cell<u64>> {
        let (time, polls) = (self.time.clone(), Rc::new(Cell::new(0)));
        let counted = Rc::clone(&polls);
        group
            .spawn(async move {
                loop {
                    time.work(cost);
                    counted.set(counted.get() + 1);
                    again().await;
                }
            })
            .detach();
        polls
    }
}

const fn key(tenant: u32, flow: u32) -> GroupKey {
    GroupKey { tenant: TenantId::from_raw(tenant), flow }
}

/// Gives way once.
async fn again() {
    let mut polled = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
