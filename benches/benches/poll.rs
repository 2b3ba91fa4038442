//! What it costs to run a task once, beside what the task does, with shares and accounts (`fairness: on`) and without, in proportion to
//! tokio's `LocalSet`. Turns of the event loop are not in it, nor what caches have forgotten meanwhile.
//!
//! `cargo bench -p tollgate-benches --bench poll` (seconds; processor time of the thread, in rounds that take turns, so that others on the
//! machine change little)

use rustix::time::{ClockId, clock_gettime};
use tollgate_benches::polls::{TASKS, Tasks, Way};

const POLLS: u64 = 100_000;
const ROUNDS: usize = 101;
/// How often a task asks in a poll whether its slice is spent. One of a connection does so before each read.
const ASKS: [u32; 3] = [0, 1, 2];

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
    println!("| executor | one poll, ns | of LocalSet's | one that asks whether its slice is spent, ns | twice, ns |");
    println!("|---|---|---|---|---|");
    let mut taken: [[Vec<f64>; ASKS.len()]; WAYS.len()] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, way), taken) in WAYS.into_iter().zip(&mut taken) {
            for (asks, taken) in ASKS.into_iter().zip(taken) {
                taken.push(round(way, asks));
            }
        }
    }
    let medians = taken.map(|taken| taken.map(median));
    for ((name, _), [poll, once, twice]) in WAYS.into_iter().zip(medians) {
        println!("| {name} | {poll:.1} | {:.2} | {once:.1} | {twice:.1} |", poll / medians[0][0]);
    }
}

fn median(mut taken: Vec<f64>) -> f64 {
    taken.sort_by(f64::total_cmp);
    taken[taken.len() / 2]
}

/// Nanoseconds of one poll.
fn round(way: Way, asks: u32) -> f64 {
    let mut tasks = Tasks::new(way, asks);
    // Whatever the first ones cost more.
    tasks.run(POLLS / 10);
    let began = processor_time();
    let polls = tasks.run(POLLS);
    (processor_time() - began) / polls as f64
}

/// Of this thread, in nanoseconds.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
