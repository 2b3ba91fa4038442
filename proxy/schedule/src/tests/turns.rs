//! Turns of more than one poll, while nobody else can run.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Bench, again};
use crate::executor::TURN;
use crate::{QUANTUM, SLICE, TenantId};

/// Lets so many tasks of each tenant and flow run, each poll of which takes `cost` nanoseconds. Returns whose polls they were, in order.
fn run(groups: &[(u32, u32, usize)], cost: u64) -> Vec<(u32, u32)> {
    let bench = Bench::new();
    let order = Rc::new(RefCell::new(Vec::new()));
    for &(tenant, flow, tasks) in groups {
        let group = bench.group(tenant, flow);
        for _ in 0..tasks {
            let (time, order) = (bench.time.clone(), Rc::clone(&order));
            let task = async move {
                loop {
                    time.work(cost);
                    order.borrow_mut().push((tenant, flow));
                    again().await;
                }
            };
            group.spawn(task).detach();
        }
    }
    bench.turns(100);
    order.take()
}

#[test]
fn nobody_waits_for_a_turn_that_goes_on() {
    for cost in [1_000, TURN, SLICE] {
        for order in [run(&[(20, 0, 64), (21, 0, 1)], cost), run(&[(20, 0, 64), (20, 1, 1)], cost)] {
            let alike = order.windows(2).filter(|two| two[0] == two[1]).count();
            // Who comes first is alone for one poll.
            assert!(alike <= 1, "{alike} of {}", order.len());
        }
    }
}

#[test]
fn who_comes_during_a_turn_ends_it() {
    let bench = Bench::new();
    let (group, other) = (bench.group(20, 0), bench.group(21, 0));
    let order = Rc::new(RefCell::new(Vec::new()));
    for task in 0..10 {
        let (time, told, other) = (bench.time.clone(), Rc::clone(&order), other.clone());
        let first = Rc::clone(&order);
        let polled = async move {
            time.work(1_000);
            told.borrow_mut().push(task);
            if task == 4 {
                other.spawn(async move { first.borrow_mut().push(100) }).detach();
            }
        };
        group.spawn(polled).detach();
    }
    bench.settle();
    assert_eq!(*order.borrow(), [0, 1, 2, 3, 4, 100, 5, 6, 7, 8, 9]);
}

/// Who has an end to its share is held when its turn has ended, so that must not be late.
#[test]
fn a_turn_of_one_alone_ends_too() {
    let bench = Bench::new();
    let tenant = TenantId::from_raw(20);
    bench.books.ends.borrow_mut().insert(tenant, 1_000);
    let polls = bench.greedy(&bench.group(20, 0), 1_000);
    bench.turn();
    assert_eq!(polls.get(), TURN / 1_000);
    assert_eq!(bench.usage(tenant).polls, polls.get());
}

#[test]
fn a_turn_ends_with_its_quantum() {
    const COST: u64 = QUANTUM / 5;
    const { assert!(!QUANTUM.is_multiple_of(TURN.next_multiple_of(COST)), "the last turn is cut off") };
    let bench = Bench::new();
    let polls = bench.greedy(&bench.group(20, 0), COST);
    bench.turns(10);
    assert_eq!(polls.get(), 10 * QUANTUM / COST);
}
