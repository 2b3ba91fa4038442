//! What it costs to run a task once, beside what the task does, with shares and accounts (`fairness: on`) and without, in proportion to
//! tokio's `LocalSet`. Turns of the event loop are not in it, nor what caches have forgotten meanwhile.
//!
//! `cargo bench -p tollgate-benches --bench poll` (seconds; processor time of the thread, in rounds that take turns, so that others on the
//! machine change little)

use std::cell::Cell;
use std::future::poll_fn;
use std::hint::black_box;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustix::time::{ClockId, clock_gettime};
use tokio::task::LocalSet;
use tollgate_schedule::{Account, Executor, GroupKey, Ledger, Share, SystemClock, TenantId, Weight, slice_spent};

const TASKS: u32 = 64;
const POLLS: u64 = 100_000;
const ROUNDS: usize = 101;

#[derive(Clone, Copy)]
enum Way {
    LocalSet,
    Plain,
    /// With tasks of so many tenants.
    Fair(u32),
}

const WAYS: [(&str, Way); 4] = [
    ("tokio's LocalSet", Way::LocalSet),
    ("`fairness: off`", Way::Plain),
    ("`fairness: on`, one tenant", Way::Fair(1)),
    ("`fairness: on`, 64 tenants", Way::Fair(64)),
];

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return; // `cargo test --benches` only wants to know that it starts
    }
    println!("{TASKS} tasks that can always run; medians of {ROUNDS} rounds of {POLLS} polls");
    println!(
        "| executor | one poll, ns | of LocalSet's | one that asks whether its slice is spent, ns |\n|---|---|---|---|"
    );
    let mut taken: [[Vec<f64>; 2]; WAYS.len()] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, way), taken) in WAYS.into_iter().zip(&mut taken) {
            for (asks, taken) in [false, true].into_iter().zip(taken) {
                taken.push(round(way, asks));
            }
        }
    }
    let medians = taken.map(|taken| taken.map(median));
    for ((name, _), [poll, asking]) in WAYS.into_iter().zip(medians) {
        println!("| {name} | {poll:.1} | {:.2} | {asking:.1} |", poll / medians[0][0]);
    }
}

fn median(mut taken: Vec<f64>) -> f64 {
    taken.sort_by(f64::total_cmp);
    taken[taken.len() / 2]
}

/// Nanoseconds of one poll.
fn round(way: Way, asks: bool) -> f64 {
    let polls = Rc::new(Cell::new(0));
    let task = || {
        let polls = Rc::clone(&polls);
        poll_fn(move |context| {
            if asks {
                black_box(slice_spent());
            }
            polls.set(polls.get() + 1);
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        })
    };
    match way {
        Way::LocalSet => {
            let mut set = LocalSet::new();
            (0..TASKS).for_each(|_| drop(set.spawn_local(task())));
            time(&polls, |context| pin!(&mut set).poll(context))
        }
        Way::Plain => time_executor(&Executor::plain(), 1, &polls, task),
        Way::Fair(tenants) => time_executor(&Executor::new(SystemClock::default(), Accounts), tenants, &polls, task),
    }
}

fn time_executor<F>(executor: &Executor, tenants: u32, polls: &Cell<u64>, task: impl Fn() -> F) -> f64
where
    F: Future<Output = ()> + 'static,
{
    for index in 0..TASKS {
        let tenant = TenantId::from_raw(TenantId::FIRST + index % tenants);
        executor.handle().group(GroupKey { tenant, flow: 0 }).spawn(task()).detach();
    }
    time(polls, |context| pin!(executor.quantum()).poll(context))
}

/// Polls by `turn`, which does so many at once.
fn time(polls: &Cell<u64>, mut turn: impl FnMut(&mut Context<'_>) -> Poll<()>) -> f64 {
    let mut context = Context::from_waker(Waker::noop());
    let mut until = |count| {
        while polls.get() < count {
            let _ = turn(&mut context);
        }
    };
    // Whatever the first ones cost more.
    until(POLLS / 10);
    let (before, began) = (polls.get(), processor_time());
    until(before + POLLS);
    (processor_time() - began) / (polls.get() - before) as f64
}

/// Of this thread, in nanoseconds.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

struct Accounts;

impl Ledger for Accounts {
    fn open(&self, _: TenantId) -> (Arc<Account>, Share) {
        (Arc::default(), Share::of(Weight::DEFAULT))
    }
}
