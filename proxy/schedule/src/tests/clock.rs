//! How often the clock is read: it is most of what a turn costs.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Bench, again};
use crate::{QUANTUM, SLICE, TenantId, rest, slice_spent};

const A: TenantId = TenantId::from_raw(20);

impl Bench {
    /// How often the clock was read.
    fn reads(&self) -> u64 {
        self.time.2.get()
    }
}

/// Whether the slice is spent, and how often the clock was read to know that.
fn ask(time: &super::Time) -> (bool, u64) {
    let before = time.2.get();
    (slice_spent(), time.2.get() - before)
}

#[test]
fn a_question_reads_the_clock_only_when_something_was_asked_since_it_was_read() {
    let bench = Bench::new();
    let (time, seen) = (bench.time.clone(), Rc::new(RefCell::new(Vec::new())));
    let (told, group) = (Rc::clone(&seen), bench.group(20, 1));
    let own = group.clone();
    let asking = group.spawn(async move {
        for _ in 0..2 {
            for work in [0, 0, SLICE, 0] {
                time.work(work);
                told.borrow_mut().push(ask(&time));
            }
            again().await;
        }
        told.borrow_mut().push(ask(&time));
        time.work(SLICE);
        let _ = own.spent();
        told.borrow_mut().push(ask(&time));
    });
    bench.settle();
    drop(asking);
    let poll = [(false, 0), (false, 1), (true, 1), (true, 1)];
    assert_eq!(*seen.borrow(), [&poll[..], &poll, &[(false, 0), (true, 0)]].concat());
    assert!(!ask(&bench.time).0, "only a task has a slice");
}

#[test]
fn a_poll_goes_on_for_a_slice_and_two_steps_at_most() {
    const STEP: u64 = SLICE * 3 / 5;
    let longest = |reads_before: bool, reads_after: bool| {
        let bench = Bench::new();
        let (time, group) = (bench.time.clone(), bench.group(20, 1));
        let own = group.clone();
        let looping = async move {
            loop {
                if reads_before {
                    let _ = own.spent();
                }
                time.work(STEP);
                if reads_after {
                    let _ = own.spent();
                }
                rest().await;
            }
        };
        group.spawn(looping).detach();
        bench.turns(20);
        bench.usage(A).longest
    };
    for reads_after in [false, true] {
        assert!(longest(false, reads_after) <= SLICE + STEP, "{reads_after}");
        assert!(longest(true, reads_after) <= SLICE + 2 * STEP, "{reads_after}");
    }
}

#[test]
fn a_poll_costs_one_reading_and_a_quantum_two() {
    let bench = Bench::new();
    let (time, group) = (bench.time.clone(), bench.group(20, 1));
    let asking = async move {
        loop {
            rest().await;
            time.work(QUANTUM / 10);
            again().await;
        }
    };
    group.spawn(asking).detach();
    bench.turns(1);
    let (before, turns) = ((bench.reads(), bench.usage(A).polls), 50);
    bench.turns(turns);
    let (reads, polls) = (bench.reads() - before.0, bench.usage(A).polls - before.1);
    assert_eq!(polls, 10 * turns as u64);
    assert!(reads <= polls + 2 * turns as u64, "{reads} of {polls} polls");
}

#[test]
fn the_kernel_is_seldom_asked() {
    let bench = Bench::new();
    bench.greedy(&bench.group(20, 1), 10_000);
    let before = (bench.time.3.get(), bench.time.0.get());
    bench.turns(1_000);
    let (asked, time) = (bench.time.3.get() - before.0, bench.time.0.get() - before.1);
    assert!(asked * 500_000 <= time, "{asked} in {time} ns");
    assert!(asked * 600_000 >= time, "{asked} in {time} ns");
}
