//! Tenants whose share has an end.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::Bench;
use crate::TenantId;

const A: TenantId = TenantId::from_raw(20);
const B: TenantId = TenantId::from_raw(21);
const SECOND: u64 = 1_000_000_000;

impl Bench {
    /// The tenant waits so many times as long as it has run.
    fn pay(&self, tenant: TenantId, times: u64) {
        self.books.ends.borrow_mut().insert(tenant, times);
    }

    /// Drives the executor for so long, sleeping when nothing can run.
    fn drive(&self, nanoseconds: u64) {
        let until = self.time.0.get() + nanoseconds;
        while self.time.0.get() < until {
            let release = self.executor.next_release();
            if !self.turn() {
                let asleep = release.unwrap_or(Duration::from_millis(1));
                self.time.stall(u64::try_from(asleep.as_nanos()).unwrap().max(1));
            }
        }
    }
}

#[test]
fn who_has_an_end_gets_that_much_and_its_neighbour_the_rest() {
    let bench = Bench::new();
    bench.pay(A, 49);
    let (a, b) = (bench.greedy(&bench.group(20, 1), 50_000), bench.greedy(&bench.group(21, 1), 50_000));
    bench.drive(10 * SECOND);
    let (a, b) = (a.get() * 50_000, b.get() * 50_000);
    // A fiftieth, and half of that where it waits for the least hold.
    assert!((9 * SECOND / 100..=SECOND / 5).contains(&a), "{a}");
    assert!(b > 97 * SECOND / 10, "{b}");
    let usage = bench.usage(A);
    assert!(usage.held > 9 * SECOND, "{usage:?}");
    assert!(usage.waited < SECOND / 10, "that is nobody else's doing: {usage:?}");
    assert_eq!(bench.usage(B).held, 0);
}

#[test]
fn alone_it_sleeps_and_everything_that_comes_meanwhile_has_its_turn_later() {
    let bench = Bench::new();
    bench.pay(A, 99);
    let (group, done) = (bench.group(20, 1), Rc::new(Cell::new(0)));
    let small = || {
        let (time, done) = (bench.time.clone(), Rc::clone(&done));
        group
            .spawn(async move {
                time.work(100_000);
                super::again().await;
                done.set(done.get() + 1);
            })
            .detach();
    };
    small();
    assert!(bench.turn(), "so that its release is waited for");
    assert!(!bench.turn());
    assert_eq!(bench.executor.next_release(), Some(Duration::from_micros(9_900)));
    (0..3).for_each(|_| small());
    assert!(!bench.turn(), "it is held");
    bench.time.stall(9_899_999);
    assert!(!bench.turn());
    assert_eq!(done.get(), 0);
    bench.time.stall(1);
    bench.turn();
    assert!(done.get() > 0 || bench.usage(A).polls > 1, "it goes on");
    bench.drive(SECOND);
    assert_eq!(done.get(), 4);
    assert_eq!(bench.executor.next_release(), None);
    // The queue stands for as long as they wait, although nobody else is there.
    (0..60).for_each(|_| small());
    bench.drive(SECOND / 2);
    assert!(bench.books.accounts.borrow()[&A].standing_delay() > 0);
}

#[test]
fn who_has_no_end_any_more_goes_on() {
    let bench = Bench::new();
    bench.pay(A, 999);
    let group = bench.group(20, 1);
    let polls = bench.greedy(&group, 100_000);
    bench.turn();
    assert_eq!(polls.get(), 1);
    bench.executor.handle().set_share(A, crate::Share::of(crate::Weight::DEFAULT));
    bench.time.stall(SECOND);
    bench.drive(SECOND / 100);
    assert!(polls.get() > 50, "{}", polls.get());
}

#[test]
fn tasks_of_who_is_held_end_with_the_executor() {
    let bench = Bench::new();
    bench.pay(A, 999_999);
    let polls = bench.greedy(&bench.group(20, 1), 100_000);
    let seen = Rc::downgrade(&polls);
    drop(polls);
    bench.turn();
    assert!(bench.executor.next_release().is_some() && seen.upgrade().is_some());
    drop(bench);
    assert!(seen.upgrade().is_none(), "nothing of it is left");
}

#[test]
fn who_is_held_is_not_forgotten() {
    let bench = Bench::new();
    bench.pay(A, 99);
    // It leaves while it is held, and others come and go: its place is nobody else's until it is released.
    let time = bench.time.clone();
    let leaver = bench.group(20, 1);
    leaver.spawn(async move { time.work(100_000) }).detach();
    drop(leaver);
    bench.turn();
    for tenant in 30..60 {
        let other = bench.greedy(&bench.group(tenant, 1), 1_000);
        bench.turn();
        assert!(other.get() > 0, "{tenant}");
    }
    bench.drive(SECOND / 10);
    assert_eq!(bench.executor.next_release(), None);
}
