//! Where the time of a worker goes.

use std::cell::Cell;
use std::rc::Rc;

use super::Bench;
use crate::executor::TURN;
use crate::{DELAY_BOUNDS, QUANTUM, SLOW_POLL, TenantId, Work, mark};

const A: TenantId = TenantId::from_raw(20);
const B: TenantId = TenantId::from_raw(21);

impl Bench {
    /// CPU time of both tenants, and of nobody.
    fn booked(&self) -> [u64; 3] {
        [A, B, TenantId::OVERHEAD].map(|tenant| self.usage(tenant).cpu)
    }
}

#[test]
fn all_time_is_somebodys_or_overhead() {
    let bench = Bench::new();
    bench.time.work(5_000_000);
    let (_a, _b) = (bench.greedy(&bench.group(20, 1), 30_000), bench.greedy(&bench.group(21, 1), 10_000));
    for _ in 0..100 {
        bench.turn();
        // The event loop's own.
        bench.time.work(20_000);
        // And its sleep.
        bench.time.stall(500_000);
    }
    // Long enough for accounts to be settled, however little was done.
    bench.time.stall(10_000_000);
    bench.turn();
    let [a, b, overhead] = bench.booked();
    assert_eq!(a + b + overhead, bench.time.1.get(), "{a} {b} {overhead}");
    assert_eq!(overhead, 5_000_000 + 100 * 20_000);
    assert!(a.abs_diff(b) <= TURN + 30_000, "{a} {b}");
}

#[test]
fn nobody_pays_for_what_the_kernel_ran_meanwhile() {
    let bench = Bench::new();
    let time = bench.time.clone();
    let interrupted = bench.group(20, 1).spawn(async move {
        for _ in 0..100 {
            time.work(20_000);
            // A poll that is interrupted for 4 ms, then one of which nothing is noticed but its sum.
            time.stall(4_000_000);
            super::again().await;
            time.work(20_000);
            time.stall(5_000);
            super::again().await;
        }
    });
    let other = bench.greedy(&bench.group(21, 1), 20_000);
    while bench.usage(A).polls < 200 {
        bench.turn();
    }
    drop(interrupted);
    let [a, b, overhead] = bench.booked();
    let truth = 200 * 20_000;
    assert!(a.abs_diff(truth) < truth / 10, "{a}, and not {truth}");
    let of_other = other.get() * 20_000;
    assert!(b.abs_diff(of_other) < of_other / 10 + QUANTUM, "{b}, and not {of_other}");
    assert!(a.abs_diff(b) < truth / 5, "nor was it anybody's turn for that: {a} {b}");
    assert!(overhead <= QUANTUM, "{overhead}");
    assert!(bench.usage(A).longest <= 60_000, "{:?}", bench.usage(A));
}

#[test]
fn waits_are_counted_by_length() {
    let bench = Bench::new();
    bench.greedy(&bench.group(20, 1), 150_000);
    bench.greedy(&bench.group(20, 1), 150_000);
    // More than a quantum each.
    bench.turns(20);
    let usage = bench.usage(A);
    // Each waits for the other's poll; it was woken in its own.
    assert_eq!((usage.polls, usage.longest), (20, 150_000));
    assert_eq!(usage.delays.iter().sum::<u64>(), usage.polls);
    assert!(DELAY_BOUNDS[1] < 300_000 && usage.delays[2] >= 17, "{usage:?}");
    assert!(usage.waited >= 17 * 150_000, "{usage:?}");
}

#[test]
fn an_idle_worker_settles_what_it_has_done() {
    let bench = Bench::new();
    let time = bench.time.clone();
    let small = bench.group(20, 1).spawn(async move { time.work(7_000) });
    bench.time.stall(20_000_000);
    bench.settle();
    drop(small);
    assert_eq!(bench.booked(), [7_000, 0, 0]);
}

#[test]
fn slow_polls_are_counted_by_their_own_time() {
    let bench = Bench::new();
    let time = bench.time.clone();
    let done = bench.group(20, 1).spawn(async move {
        time.work(SLOW_POLL + 1);
        super::again().await;
        time.work(SLOW_POLL);
        // What the kernel ran meanwhile makes nobody slow.
        time.stall(SLOW_POLL);
        super::again().await;
    });
    bench.settle();
    drop(done);
    assert_eq!((bench.usage(A).polls, bench.usage(A).slow), (3, 1));
    let (mut seen, _group) = (Vec::new(), bench.group(20, 1));
    bench.executor.handle().accounts(|tenant, account| seen.push((tenant, account.usage().slow)));
    assert_eq!(seen, [(A, 1)]);
}

/// What a request has cost: the polls of its connection's tasks between its beginning and its end, both within a poll.
#[test]
fn what_a_group_has_used_is_known_in_the_middle_of_a_poll() {
    let bench = Bench::new();
    let (mine, others) = (bench.group(20, 1), bench.greedy(&bench.group(20, 2), 30_000));
    let (time, group) = (bench.time.clone(), mine.clone());
    let found = Rc::new(Cell::new(None));
    let told = Rc::clone(&found);
    let task = mine.spawn(async move {
        time.work(5_000);
        let before = group.spent_before();
        time.work(7_000);
        super::again().await;
        time.work(11_000);
        told.set(Some(group.spent().since(before)));
    });
    // A part of the same connection.
    let (time, part) = (bench.time.clone(), mine.clone());
    part.spawn(async move { time.work(13_000) }).detach();
    while found.get().is_none() {
        bench.turn();
    }
    drop(task);
    let spent = found.get().unwrap_or_default();
    assert_eq!(spent.cpu, 7_000 + 13_000 + 11_000);
    assert!(spent.waited >= 30_000, "the others had their turns meanwhile: {spent:?}");
    assert_eq!((mine.spent().cpu, others.get() > 0), (5_000 + spent.cpu, true));
}

/// Three tenants do other things in other proportions; what is marked inside of something else is not that.
#[test]
fn time_goes_to_the_kinds_of_work_that_were_marked() {
    let bench = Bench::new();
    let worker = |tenant, work: fn(&super::Time)| {
        let time = bench.time.clone();
        let group = bench.group(tenant, 1);
        group
            .spawn(async move {
                loop {
                    work(&time);
                    super::again().await;
                }
            })
            .detach();
    };
    worker(20, |time| {
        time.work(5_000);
        let _http = mark(Work::Http);
        time.work(10_000);
        {
            let _policy = mark(Work::Policy);
            time.work(20_000);
        }
        time.work(5_000);
    });
    worker(21, |time| time.work(10_000));
    bench.turns(4_000);
    let [a, b] = [A, B].map(|tenant| bench.usage(tenant));
    for usage in [a, b, bench.usage(TenantId::OVERHEAD)] {
        assert_eq!(usage.cpu_by_kind.iter().sum::<u64>(), usage.cpu, "nothing is lost");
    }
    let parts = a.cpu_by_kind.map(|spent| (spent as f64 / a.cpu as f64 * 1000.0).round());
    // What ran before the first sample of it was io.
    let expected = [125.0, 375.0, 0.0, 500.0, 0.0, 0.0];
    assert!(parts.iter().zip(expected).all(|(part, expected)| (part - expected).abs() < 20.0), "{parts:?}");
    assert_eq!(b.cpu_by_kind[0], b.cpu);
    assert!(a.polls >= 5_000 && b.polls >= 20_000, "they share by time: {a:?} {b:?}");
}

/// Two tasks that take turns exactly: each is in the sample.
#[test]
fn the_sample_does_not_keep_time_with_the_tasks() {
    let bench = Bench::new();
    let seen: Vec<Rc<Cell<u32>>> = (20..22)
        .map(|tenant| {
            let (time, seen) = (bench.time.clone(), Rc::new(Cell::new(0)));
            let counted = Rc::clone(&seen);
            let task = async move {
                loop {
                    // Reads the clock only in a poll of the sample.
                    let reads = time.2.get();
                    drop(mark(Work::Log));
                    counted.set(counted.get() + u32::from(time.2.get() > reads));
                    time.work(10_000);
                    super::again().await;
                }
            };
            bench.group(tenant, 1).spawn(task).detach();
            seen
        })
        .collect();
    for _ in 0..3_200 {
        bench.turn();
    }
    let polls = bench.usage(A).polls + bench.usage(B).polls;
    let [a, b] = [seen[0].get(), seen[1].get()];
    let fair = f64::from(a + b) * 64.0 / polls as f64;
    assert!((0.9..1.1).contains(&fair), "one in 64: {a} {b} of {polls}");
    assert!(a.abs_diff(b) * 5 < a + b, "{a} {b}");
}

/// So many tasks of one group, each of which wants to run all the time.
fn crowd(bench: &Bench, tenant: u32, count: usize) -> Vec<crate::Task<()>> {
    let group = bench.group(tenant, 0);
    let greedy = |_| {
        let time = bench.time.clone();
        group.spawn(async move {
            loop {
                time.work(10_000);
                super::again().await;
            }
        })
    };
    (0..count).map(greedy).collect()
}

#[test]
fn a_queue_that_stands_is_told_from_a_burst_and_from_others() {
    let bench = Bench::new();
    let delay = |tenant: TenantId| bench.books.accounts.borrow()[&tenant].standing_delay();
    let run_for = |milliseconds: u64| {
        let until = bench.time.0.get() + milliseconds * 1_000_000;
        while bench.time.0.get() < until {
            bench.turn();
        }
    };
    let many = crowd(&bench, 20, 100);
    // Now and then something small, of somebody who is far below its share.
    let (time, polls) = (bench.time.clone(), Rc::new(Cell::new(0)));
    let (light, seen) = (bench.group(21, 0), Rc::clone(&polls));
    let visit = || {
        let (time, seen) = (time.clone(), Rc::clone(&seen));
        light.spawn(async move {
            time.work(5_000);
            seen.set(seen.get() + 1);
        })
    };
    run_for(50);
    assert_eq!(delay(A), 0, "a burst");
    run_for(60);
    assert_eq!(delay(A), 0, "it has not stood for a whole interval");
    for _ in 0..60 {
        visit().detach();
        run_for(5);
    }
    assert_eq!(polls.get(), 60);
    // Each of a hundred waits for the 99 others.
    assert!((900_000..1_100_000).contains(&delay(A)), "{}", delay(A));
    assert_eq!(delay(B), 0, "it waited for others only");
    drop(many);
    bench.settle();
    visit().detach();
    bench.group(20, 0).spawn(async {}).detach();
    bench.settle();
    assert_eq!((delay(A), delay(B)), (0, 0), "it is over at once");
}
