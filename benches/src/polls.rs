//! Tasks that can always run, on executors with shares and without: what a poll costs beside what the task does.

use std::cell::Cell;
use std::future::poll_fn;
use std::hint::black_box;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::task::LocalSet;
use tollgate_schedule::{
    Account, Clock, Executor, GroupKey, Ledger, Share, SystemClock, TenantId, Weight, slice_spent,
};

/// How many tasks there are.
pub const TASKS: u32 = 64;

/// Who runs them.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// tokio's own tasks of one thread.
    LocalSet,
    /// `fairness: off`.
    Plain,
    /// `fairness: on`, with tasks of so many tenants.
    Fair(u32),
    /// The same by a clock of which [`TICK`] passes whenever it is read: on every machine a quantum has as many polls.
    Ticking(u32),
}

/// In nanoseconds: about what a poll of a connection takes.
const TICK: u64 = 4_000;

/// The tasks, and how often they were polled.
#[derive(Debug)]
pub struct Tasks {
    polls: Rc<Cell<u64>>,
    runner: Runner,
}

#[derive(Debug)]
enum Runner {
    LocalSet(LocalSet),
    Executor(Executor),
}

impl Tasks {
    /// Starts them. Each asks so many times in a poll whether its slice is spent.
    pub fn new(way: Way, asks: u32) -> Self {
        let polls = Rc::new(Cell::new(0));
        let task = || {
            let polls = Rc::clone(&polls);
            poll_fn(move |context| {
                for _ in 0..asks {
                    black_box(slice_spent());
                }
                polls.set(polls.get() + 1);
                context.waker().wake_by_ref();
                Poll::<()>::Pending
            })
        };
        let spawn = |executor: Executor, tenants| {
            for index in 0..TASKS {
                let tenant = TenantId::from_raw(TenantId::FIRST + index % tenants);
                executor.handle().group(GroupKey { tenant, flow: 0 }).spawn(task()).detach();
            }
            Runner::Executor(executor)
        };
        let runner = match way {
            Way::LocalSet => {
                let set = LocalSet::new();
                (0..TASKS).for_each(|_| drop(set.spawn_local(task())));
                Runner::LocalSet(set)
            }
            Way::Plain => spawn(Executor::plain(), 1),
            Way::Fair(tenants) => spawn(Executor::new(SystemClock::default(), Accounts), tenants),
            Way::Ticking(tenants) => spawn(Executor::new(Ticking::default(), Accounts), tenants),
        };
        Self { polls, runner }
    }

    /// Polls so many times, or a few times more, since many are polled at once. Returns how often it was.
    pub fn run(&mut self, polls: u64) -> u64 {
        let mut context = Context::from_waker(Waker::noop());
        let before = self.polls.get();
        while self.polls.get() - before < polls {
            let _ = match &mut self.runner {
                Runner::LocalSet(set) => pin!(set).poll(&mut context),
                Runner::Executor(executor) => pin!(executor.quantum()).poll(&mut context),
            };
        }
        self.polls.get() - before
    }
}

struct Accounts;

impl Ledger for Accounts {
    fn open(&self, _: TenantId) -> (Arc<Account>, Share) {
        (Arc::default(), Share::of(Weight::DEFAULT))
    }
}

#[derive(Default)]
struct Ticking(Cell<u64>);

impl Clock for Ticking {
    fn now(&self) -> u64 {
        self.0.set(self.0.get() + TICK);
        self.0.get()
    }

    fn thread_cpu(&self) -> u64 {
        self.0.get()
    }
}
