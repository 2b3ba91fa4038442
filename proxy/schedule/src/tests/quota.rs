//! Keeping to a quota of processor time, with time that passes only when a test says so.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use super::{Books, again, key};
use crate::{Allowance, Clock, Executor, Group, ProcessClock, Quota, TenantId, Usage};

const MS: u64 = 1_000_000;
/// What the control side begins with, in thousandths.
const AIM: u32 = 965;
/// What one turn of the event loop takes, and what it takes to have been asleep before.
const EVENTS: u64 = 2_000;
const WOKEN: u64 = 20_000;

/// The clocks of a process with several threads.
#[derive(Clone, Default)]
struct Machine(Arc<[AtomicU64; 5]>);

impl Machine {
    fn add(&self, cells: &[usize], nanoseconds: u64) {
        for cell in cells {
            self.0[*cell].fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }

    /// The worker works.
    fn work(&self, nanoseconds: u64) {
        self.add(&[0, 1, 2], nanoseconds);
    }

    /// The worker sleeps.
    fn sleep(&self, nanoseconds: u64) {
        self.add(&[0], nanoseconds);
    }

    /// What the process has used.
    fn used(&self) -> u64 {
        self.0[2].load(Ordering::Relaxed)
    }

    /// How often an executor has asked for that.
    fn asked(&self) -> u64 {
        self.0[3].load(Ordering::Relaxed)
    }

    /// How often an executor has slept.
    fn naps(&self) -> u64 {
        self.0[4].load(Ordering::Relaxed)
    }

    /// Another thread has worked meanwhile.
    fn work_elsewhere(&self, nanoseconds: u64) {
        self.add(&[2], nanoseconds);
    }
}

impl Clock for Machine {
    fn now(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    fn thread_cpu(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }
}

impl ProcessClock for Machine {
    fn now(&self) -> u64 {
        Clock::now(self)
    }

    fn process_cpu(&self) -> u64 {
        self.add(&[3], 1);
        self.used()
    }

    fn sleep(&self, nanoseconds: u64) {
        assert!((1..=5 * MS).contains(&nanoseconds), "sleeps for {nanoseconds}");
        self.add(&[4], 1);
        self.add(&[0], nanoseconds);
        self.work(WOKEN);
    }
}

/// A task that another has something for now and then: when it does, and how long it took until it ran.
#[derive(Clone, Default)]
struct Light {
    due: Rc<Cell<Option<u64>>>,
    waker: Rc<RefCell<Option<Waker>>>,
    longest: Rc<Cell<u64>>,
    served: Rc<Cell<u64>>,
}

struct Bench {
    machine: Machine,
    quota: Arc<Quota>,
    executor: Executor,
    books: Books,
    lights: Vec<Light>,
    /// Lights are due this often.
    every: u64,
    next: u64,
    /// Moments and what the process had used by then.
    used: Vec<(u64, u64)>,
    /// Thousandths of a processor that other threads take.
    elsewhere: u64,
}

impl Bench {
    fn new(cpu: u64, period: u64) -> Self {
        let (machine, books) = (Machine::default(), Books::default());
        machine.sleep(50 * MS);
        let quota = Arc::new(Quota::new(machine.clone()));
        quota.set(Some(Allowance { cpu, period, aim: AIM }));
        let executor = Executor::paced(machine.clone(), books.clone(), Arc::clone(&quota));
        Self {
            machine,
            quota,
            executor,
            books,
            lights: Vec::new(),
            every: u64::MAX,
            next: u64::MAX,
            used: Vec::new(),
            elsewhere: 0,
        }
    }

    fn group(&self, tenant: u32) -> Group {
        self.executor.handle().group(key(tenant, 1))
    }

    /// A tenant that always has something to do, in polls of this cost.
    fn greedy(&self, tenant: u32, cost: u64) {
        let machine = self.machine.clone();
        let task = self.group(tenant).spawn(async move {
            loop {
                machine.work(cost);
                again().await;
            }
        });
        task.detach();
    }

    /// A tenant that has something to do for so long, now and then.
    fn light(&mut self, tenant: u32, cost: u64) {
        let (light, machine) = (Light::default(), self.machine.clone());
        let own = light.clone();
        let task = self.group(tenant).spawn(std::future::poll_fn(move |context| -> Poll<()> {
            own.waker.replace(Some(context.waker().clone()));
            if let Some(due) = own.due.take() {
                own.longest.set(own.longest.get().max(Clock::now(&machine) - due));
                own.served.set(own.served.get() + 1);
                machine.work(cost);
            }
            Poll::Pending
        }));
        task.detach();
        self.lights.push(light);
    }

    /// The worker's life for so long.
    fn run(&mut self, nanoseconds: u64) {
        let end = Clock::now(&self.machine) + nanoseconds;
        self.next = self.next.min(Clock::now(&self.machine).saturating_add(self.every));
        while Clock::now(&self.machine) < end {
            let before = Clock::now(&self.machine);
            self.machine.work(EVENTS);
            while Clock::now(&self.machine) >= self.next {
                for light in &self.lights {
                    if light.due.get().is_none() {
                        light.due.set(Some(self.next));
                    }
                    let waker = light.waker.borrow().clone();
                    waker.into_iter().for_each(Waker::wake);
                }
                self.next += self.every;
            }
            let quantum = pin!(self.executor.quantum());
            if quantum.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                let now = Clock::now(&self.machine);
                self.machine.sleep(self.next.saturating_sub(now).clamp(1, MS));
                self.machine.work(WOKEN);
            }
            let passed = Clock::now(&self.machine) - before;
            self.machine.work_elsewhere(passed * self.elsewhere / 1000);
            self.used.push((Clock::now(&self.machine), self.machine.used()));
        }
    }

    /// The most that the process has used in any such time.
    fn most_in(&self, period: u64) -> u64 {
        let mut first = 0;
        let mut most = 0;
        for (now, used) in &self.used {
            while self.used[first].0 + period < *now {
                first += 1;
            }
            most = most.max(used - self.used[first].1);
        }
        most
    }

    fn usage(&self, tenant: u32) -> Usage {
        self.books.accounts.borrow()[&TenantId::from_raw(tenant)].usage()
    }
}

#[test]
fn no_period_uses_more_than_the_quota_and_little_of_it_is_left() {
    for (cpu, period) in [(50, 100), (10, 100), (90, 100), (5, 10), (100, 1000)] {
        let (cpu, period) = (cpu * MS, period * MS);
        let mut bench = Bench::new(cpu, period);
        bench.greedy(20, 30_000);
        bench.run(30 * period);
        let most = bench.most_in(period);
        assert!(most <= cpu, "{most} of {cpu} in {period}");
        let whole = bench.machine.used();
        assert!(whole >= 30 * cpu * 9 / 10, "{whole} of {}", 30 * cpu);
        let waited = bench.quota.waited();
        assert!((30 * (period - cpu)..=32 * (period - cpu * 9 / 10)).contains(&waited), "waited for {waited}");
    }
}

#[test]
fn use_is_spread_over_the_period() {
    let mut bench = Bench::new(50 * MS, 100 * MS);
    bench.greedy(20, 30_000);
    bench.run(500 * MS);
    // Of each two milliseconds about half, and never all of it, but for the burst at the beginning.
    bench.used.retain(|(now, _)| *now > 100 * MS);
    let most = bench.most_in(2 * MS);
    assert!(most < 1_400_000, "{most} in two milliseconds");
}

#[test]
fn who_has_used_little_hardly_waits() {
    let mut bench = Bench::new(50 * MS, 100 * MS);
    bench.greedy(20, 30_000);
    bench.greedy(21, 30_000);
    bench.light(22, 40_000);
    bench.every = 3 * MS + 10_000;
    bench.run(1000 * MS);
    let light = &bench.lights[0];
    assert!(light.served.get() > 300, "{light:?}", light = light.served);
    // A nap, or a quantum that had begun and the poll that it ends with.
    let longest = light.longest.get();
    assert!(longest <= 750_000, "waited for {longest}");
    assert!(bench.most_in(100 * MS) <= 50 * MS);
}

/// As above, but each of its steps needs another, as an answer follows a request.
#[test]
fn who_comes_back_after_a_rest_need_not_wait_for_what_is_left_of_its_share() {
    let mut bench = Bench::new(10 * MS, 100 * MS);
    bench.greedy(20, 100_000);
    bench.light(22, 40_000);
    bench.every = MS / 2;
    bench.run(20 * MS);
    let (used, waited) = (bench.usage(22).cpu, bench.lights[0].longest.get());
    // More than its share could not be spared: 1 ms at a time.
    assert!(used > 0 && waited > 0, "{used} {waited}");
    bench.every = 20 * MS;
    bench.next = u64::MAX;
    bench.run(1000 * MS);
    bench.lights[0].longest.set(0);
    bench.run(1000 * MS);
    // With a tenth of a processor it takes so long to gather what is worth to wake for.
    let longest = bench.lights[0].longest.get();
    assert!(longest <= 2_100_000, "waited for {longest}");
}

#[test]
fn a_crowd_of_newcomers_does_not_use_more_than_the_quota() {
    let mut bench = Bench::new(50 * MS, 100 * MS);
    bench.greedy(20, 30_000);
    for tenant in 30..330 {
        bench.light(tenant, 40_000);
    }
    bench.every = 7 * MS;
    bench.run(2000 * MS);
    let most = bench.most_in(100 * MS);
    assert!(most <= 50 * MS, "{most}");
    let least = bench.lights.iter().map(|light| light.served.get()).min().unwrap();
    assert!(least > 10, "one of them was served {least} times");
    let whole = bench.machine.used();
    assert!(whole >= 900 * MS, "{whole}");
}

#[test]
fn other_threads_count_and_leave_tenants_half() {
    let mut bench = Bench::new(100 * MS, 100 * MS);
    bench.greedy(20, 30_000);
    bench.elsewhere = 200;
    bench.run(1000 * MS);
    let most = bench.most_in(100 * MS);
    assert!(most <= 100 * MS, "{most}");
    assert!(bench.machine.used() >= 900 * MS);
    // Those who take all of it: the kernel will stop the process now and then, but nobody is forgotten.
    bench.elsewhere = 1000;
    let before = bench.usage(20).cpu;
    bench.run(1000 * MS);
    let used = bench.usage(20).cpu - before;
    assert!(used >= 400 * MS, "{used}");
}

#[test]
fn without_a_quota_nobody_waits_and_the_clock_is_not_read() {
    let mut bench = Bench::new(50 * MS, 100 * MS);
    bench.greedy(20, 30_000);
    bench.run(100 * MS);
    let waited = bench.quota.waited();
    bench.quota.set(None);
    // One wait may still be told of.
    bench.run(MS);
    assert!(bench.quota.waited() - waited <= MS);
    let (waited, used, asked) = (bench.quota.waited(), bench.machine.used(), bench.machine.asked());
    bench.run(100 * MS);
    assert!(bench.machine.used() - used >= 100 * MS);
    assert_eq!((bench.quota.waited(), bench.machine.asked()), (waited, asked));
    // And again with one: what was used meanwhile is not owed.
    bench.quota.set(Some(Allowance { cpu: 50 * MS, period: 100 * MS, aim: AIM }));
    let used = bench.machine.used();
    bench.run(10 * MS);
    assert!(bench.machine.used() - used >= 4 * MS);
}

#[test]
fn what_other_threads_wake_is_not_slept_through() {
    let mut bench = Bench::new(50 * MS, 100 * MS);
    // Overdraws the quota so far that nobody may run, and has nothing else to do.
    bench.light(20, 10 * MS);
    bench.run(MS);
    let waker = bench.lights[0].waker.borrow().clone().unwrap();
    bench.lights[0].due.set(Some(0));
    waker.wake_by_ref();
    bench.run(MS);
    assert_eq!(bench.lights[0].served.get(), 1);
    std::thread::spawn(move || waker.wake()).join().unwrap();
    let naps = bench.machine.naps();
    let quantum = pin!(bench.executor.quantum());
    assert!(quantum.poll(&mut Context::from_waker(Waker::noop())).is_ready(), "nobody would look again");
    assert_eq!(bench.machine.naps(), naps + 1, "nothing that could run is left, or it does not wait");
}

/// Clients of one that waits: each sends again as soon as it has its answer, so there is an event every few microseconds.
#[test]
fn a_worker_that_waits_does_not_wake_for_each_event() {
    for (percent, least) in [(50, 88), (25, 83), (10, 80)] {
        let quota = percent * MS;
        let mut bench = Bench::new(quota, 100 * MS);
        bench.greedy(20, 30_000);
        for _ in 0..100 {
            bench.light(20, 10_000);
        }
        bench.every = 10_000;
        bench.run(1000 * MS);
        // A hundred thousand events.
        let naps = bench.machine.naps();
        assert!((300..=1500).contains(&naps), "{naps} naps with {percent} %");
        let used = bench.usage(20).cpu;
        assert!(used >= 10 * quota * least / 100, "{used} of {}", 10 * quota);
    }
}
