//! Turns of more than one poll.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Bench, again};
use crate::executor::TURN;
use crate::{QUANTUM, TenantId};

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

/// How often somebody's polls followed each other without those of others, at most.
fn longest_run(order: &[(u32, u32)]) -> usize {
    order.chunk_by(|one, next| one == next).map(<[_]>::len).max().unwrap_or_default()
}

#[test]
fn a_turn_goes_on_for_as_long_as_a_long_poll() {
    for cost in [1_000, 30_000, TURN] {
        for others in [(21, 0, 64), (20, 1, 64)] {
            let order = run(&[(20, 0, 64), others], cost);
            let polls = TURN.div_ceil(cost) as usize;
            assert_eq!(longest_run(&order), polls, "polls of {cost} ns beside {others:?}");
            let first = order.iter().filter(|who| **who == (20, 0)).count();
            assert!(first.abs_diff(order.len() - first) <= polls, "{first} of {}", order.len());
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
    const { assert!(TURN > QUANTUM / 2 + COST, "the turn would end anyway") };
    let bench = Bench::new();
    let time = bench.time.clone();
    bench.group(21, 0).spawn(async move { time.work(QUANTUM / 2) }).detach();
    let polls = bench.greedy(&bench.group(20, 0), COST);
    bench.turn();
    assert_eq!(polls.get(), (QUANTUM / 2).div_ceil(COST));
}
