//! The executor with a clock of the test's own, and on a runtime with other threads.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Waker;

use super::{Bench, Books, again, key};
use crate::executor::TURN;
use crate::level::SAVED;
use crate::{Executor, QUANTUM, SLICE, SystemClock, TenantId, rest, slice_spent};

#[test]
fn many_tasks_of_one_tenant_are_worth_one_of_another() {
    let bench = Bench::new();
    let (crowd, single) = (bench.group(20, 1), bench.group(21, 1));
    let many: Vec<_> = (0..64).map(|_| bench.greedy(&crowd, 20_000)).collect();
    let one = bench.greedy(&single, 20_000);
    for _ in 0..1_000 {
        assert!(bench.turn(), "there is always more to do");
    }
    let many: u64 = many.iter().map(|polls| polls.get()).sum();
    assert!(many.abs_diff(one.get()) <= 2, "{many} {}", one.get());
    assert_eq!(many + one.get(), 1_000 * QUANTUM / 20_000, "the whole quantum is used");
}

#[test]
fn one_tenant_alone_has_everything() {
    let bench = Bench::new();
    let idle = bench.group(21, 1);
    idle.spawn(pending::<()>()).detach();
    let polls = bench.greedy(&bench.group(20, 1), 10_000);
    for _ in 0..100 {
        bench.turn();
    }
    assert_eq!(polls.get(), 100 * QUANTUM / 10_000);
}

#[test]
fn weights_come_from_the_ledger_and_change() {
    let bench = Bench::new();
    bench.books.weights.borrow_mut().insert(TenantId::from_raw(20), 300);
    let (heavy, light) = (bench.greedy(&bench.group(20, 1), 10_000), bench.greedy(&bench.group(21, 1), 10_000));
    bench.turns(100);
    assert!((2.9..3.1).contains(&(heavy.get() as f64 / light.get() as f64)), "{heavy:?} {light:?}");
    bench.executor.handle().set_share(TenantId::from_raw(21), crate::Share::of(crate::Weight::new(300)));
    let before = (heavy.get(), light.get());
    bench.turns(100);
    assert!((heavy.get() - before.0).abs_diff(light.get() - before.1) <= 2, "{heavy:?} {light:?}");
}

#[test]
fn a_spent_slice_lets_others_run() {
    let bench = Bench::new();
    let order = Rc::new(RefCell::new(Vec::new()));
    let (time, long) = (bench.time.clone(), Rc::clone(&order));
    let looping = bench.group(20, 1).spawn(async move {
        for step in 0..10 {
            assert!(!slice_spent());
            time.work(SLICE / 4);
            rest().await;
            long.borrow_mut().push(step);
        }
    });
    let short = Rc::clone(&order);
    let other = bench.group(21, 1).spawn(async move { short.borrow_mut().push(100) });
    bench.settle();
    drop((looping, other));
    assert_eq!(*order.borrow(), [0, 1, 2, 100, 3, 4, 5, 6, 7, 8, 9]);
    assert!(!slice_spent(), "only a task has a slice");
}

#[test]
fn a_group_may_change_under_its_tasks() {
    let bench = Bench::new();
    let group = bench.group(20, 1);
    let (moving, other) = (bench.greedy(&group, 10_000), bench.greedy(&bench.group(21, 1), 10_000));
    bench.turns(50);
    let turn = TURN / 10_000;
    assert!(moving.get().abs_diff(other.get()) <= turn);
    group.set_key(key(21, 1));
    assert_eq!(group.key(), key(21, 1));
    let third = bench.greedy(&bench.group(22, 1), 10_000);
    let before = (moving.get(), other.get());
    bench.turns(100);
    let (moving, other) = (moving.get() - before.0, other.get() - before.1);
    // The third one comes as one that has rested.
    let saved = SAVED / 10_000;
    assert!(
        moving.abs_diff(other) <= turn && third.get().abs_diff(moving + other + saved) <= 2 * turn,
        "{moving} {other} {third:?}"
    );
    let (old, new) = (bench.usage(TenantId::from_raw(20)), bench.usage(TenantId::from_raw(21)));
    let polls = QUANTUM / 10_000;
    assert!(old.polls <= 25 * polls + turn && new.polls + saved >= 74 * polls, "{old:?} {new:?}");
}

/// Counts itself while it lives.
struct Alive(Rc<Cell<usize>>);

impl Alive {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[test]
fn a_panic_ends_its_task_only_and_is_told() {
    let bench = Bench::new();
    let count = Rc::default();
    let alive = Alive::new(&count);
    let panicking = bench.group(20, 1).spawn(async move {
        let _alive = alive;
        again().await;
        panic!("as the test wants it");
    });
    let other = bench.group(20, 1).spawn(async {
        again().await;
        again().await;
        7
    });
    bench.settle();
    assert_eq!(count.get(), 0, "what the task held is dropped");
    assert_eq!(*bench.books.panicked.borrow(), [TenantId::from_raw(20)]);
    assert_eq!(bench.usage(TenantId::from_raw(20)).panics, 1);
    let results = bench.group(22, 1).spawn(async move { (panicking.await, other.await) });
    bench.settle();
    let told = Rc::new(Cell::new(None));
    let tell = Rc::clone(&told);
    bench.group(22, 1).spawn(async move { tell.set(results.await) }).detach();
    bench.settle();
    assert_eq!(told.take(), Some((None, Some(7))));
}

/// What it does there is used by the poll that it is a part of, and its panic is no other's.
#[test]
fn a_task_may_begin_within_the_poll_that_starts_it() {
    let bench = Bench::new();
    let group = bench.group(20, 1);
    let order = Rc::new(RefCell::new(Vec::new()));
    let (time, own, log) = (bench.time.clone(), group.clone(), Rc::clone(&order));
    let starting = group.spawn(async move {
        time.work(1_000);
        let (inner, note) = (time.clone(), Rc::clone(&log));
        own.spawn_polled(async move {
            inner.work(2_000);
            note.borrow_mut().push("begins");
            again().await;
            note.borrow_mut().push("goes on");
        })
        .detach();
        let panicking = own.spawn_polled(async { panic!("as the test wants it") });
        assert_eq!(own.spent().cpu, 3_000);
        log.borrow_mut().push("has started it");
        assert_eq!(panicking.await, None::<()>);
        log.borrow_mut().push("ends");
    });
    bench.settle();
    drop(starting);
    assert_eq!(*order.borrow(), ["begins", "has started it", "ends", "goes on"]);
    assert_eq!(*bench.books.panicked.borrow(), [TenantId::from_raw(20)]);
}

#[test]
fn a_task_ends_when_it_is_dropped_or_cancelled() {
    let bench = Bench::new();
    let count = Rc::default();
    let waiting = |alive: Alive| async move {
        let _alive = alive;
        pending::<()>().await;
    };
    let group = bench.group(20, 1);
    let dropped = group.spawn(waiting(Alive::new(&count)));
    let cancelled = group.spawn(waiting(Alive::new(&count)));
    group.spawn(waiting(Alive::new(&count))).detach();
    bench.settle();
    assert_eq!(count.get(), 3);
    drop(dropped);
    assert_eq!(count.get(), 3, "not in the middle of whatever drops it");
    bench.settle();
    assert_eq!(count.get(), 2);
    let (seen, counted) = (Rc::new(Cell::new(None)), Rc::clone(&count));
    let see = Rc::clone(&seen);
    group
        .spawn(async move {
            cancelled.cancel().await;
            see.set(Some(counted.get()));
        })
        .detach();
    bench.settle();
    assert_eq!(seen.get(), Some(1), "gone before the wait is over");
}

#[test]
fn dropping_the_executor_drops_every_task() {
    let bench = Bench::new();
    let count = Rc::default();
    let group = bench.group(20, 1);
    for _ in 0..3 {
        let alive = Alive::new(&count);
        group
            .spawn(async move {
                pending::<()>().await;
                drop(alive)
            })
            .detach();
    }
    bench.settle();
    // One that was never polled, one that starts another when it goes, and one that panics.
    struct Last(crate::Group, Rc<Cell<usize>>);
    impl Drop for Last {
        fn drop(&mut self) {
            let alive = Alive::new(&self.1);
            self.0.spawn(async move { drop(alive) }).detach();
            panic!("as the test wants it");
        }
    }
    let last = Last(group.clone(), Rc::clone(&count));
    group
        .spawn(async move {
            pending::<()>().await;
            drop(last)
        })
        .detach();
    let alive = Alive::new(&count);
    group.spawn(async move { drop(alive) }).detach();
    assert_eq!(count.get(), 4);
    drop(bench);
    assert_eq!(count.get(), 0);
}

#[test]
fn the_event_loop_is_told_once_when_there_is_something_to_do_again() {
    let bench = Bench::new();
    let wakers = Rc::new(RefCell::new(Vec::<Waker>::new()));
    for _ in 0..3 {
        let wakers = Rc::clone(&wakers);
        let waiting = std::future::poll_fn(move |context| {
            wakers.borrow_mut().push(context.waker().clone());
            std::task::Poll::<()>::Pending
        });
        bench.group(20, 1).spawn(waiting).detach();
    }
    bench.settle();
    assert_eq!(bench.wakes(), 0);
    wakers.take().into_iter().for_each(Waker::wake);
    assert_eq!(bench.wakes(), 1);
    bench.settle();
    assert_eq!((bench.wakes(), wakers.borrow().len()), (1, 3));
    // The same from another thread.
    let remote = wakers.take();
    std::thread::spawn(move || remote.into_iter().for_each(Waker::wake)).join().unwrap();
    assert_eq!(bench.wakes(), 2);
    bench.settle();
    assert_eq!(wakers.borrow().len(), 3);
}

#[test]
fn a_second_executor_takes_nothing_away_from_the_first() {
    let (first, second) = (Bench::new(), Bench::new());
    let (a, b) = (first.greedy(&first.group(20, 1), 10_000), second.greedy(&second.group(20, 1), 10_000));
    first.turn();
    second.turn();
    drop(second);
    first.turn();
    let quantum = QUANTUM / 10_000;
    assert!(a.get() > quantum && b.get() >= quantum, "{a:?} {b:?}");
}

#[test]
fn other_threads_wake_tasks_on_a_runtime() {
    other_threads_wake_tasks_of(Executor::new(SystemClock::default(), Books::default()));
    other_threads_wake_tasks_of(Executor::plain());
}

fn other_threads_wake_tasks_of(executor: Executor) {
    const ROUNDS: usize = 2_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let group = executor.handle().group(key(20, 1));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (to_thread, mut from_task) = tokio::sync::mpsc::channel(1);
            let (to_task, mut from_thread) = tokio::sync::mpsc::channel(1);
            let thread = std::thread::spawn(move || {
                while let Some(n) = from_task.blocking_recv() {
                    if to_task.blocking_send(n + 1).is_err() {
                        return;
                    }
                }
            });
            let task = group.spawn(async move {
                let mut n = 0;
                while n < ROUNDS {
                    to_thread.send(n).await.unwrap();
                    n = from_thread.recv().await.unwrap();
                    tokio::time::sleep(std::time::Duration::ZERO).await;
                }
                n
            });
            (thread, task)
        })
        .collect();
    let (threads, tasks): (Vec<_>, Vec<_>) = tasks.into_iter().unzip();
    runtime.block_on(async {
        let all = async {
            for task in tasks {
                assert_eq!(task.await, Some(ROUNDS));
            }
        };
        let pump = tokio::task::unconstrained(async {
            loop {
                executor.quantum().await;
                tokio::task::yield_now().await;
            }
        });
        tokio::select! {
            () = pump => {}
            done = tokio::time::timeout(std::time::Duration::from_secs(60), all) => done.expect("a wake was lost"),
        }
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn tasks_outlive_neither_their_executor_nor_its_thread() {
    let waker = std::thread::spawn(|| {
        let bench = Bench::new();
        let kept = Rc::new(Cell::new(None));
        let keep = Rc::clone(&kept);
        let waiting = std::future::poll_fn(move |context| {
            keep.set(Some(context.waker().clone()));
            std::task::Poll::<()>::Pending
        });
        bench.group(20, 1).spawn(waiting).detach();
        bench.settle();
        kept.take().unwrap()
    });
    let waker = waker.join().unwrap();
    // Nothing is left that it could wake or drop.
    assert!(catch_unwind(AssertUnwindSafe(|| waker.wake())).is_ok());
}

#[test]
fn what_is_promised_is_a_part_of_the_time_that_the_thread_runs() {
    let bench = Bench::new();
    bench.books.weights.borrow_mut().insert(TenantId::from_raw(20), 1);
    let (promised, other) = (bench.group(20, 0), bench.group(21, 0));
    let share =
        crate::Share { weight: crate::Weight::new(1), at_least: crate::Part::of_millionths(400_000), has_end: false };
    bench.executor.handle().set_share(TenantId::from_raw(20), share);
    let (given, rest) = (bench.greedy(&promised, 10_000), bench.greedy(&other, 10_000));
    for _ in 0..1_000 {
        bench.turn();
        // A third of its time the event loop runs, and as long the kernel runs somebody else.
        bench.time.work(100_000);
        bench.time.stall(100_000);
    }
    let ran = 1_000.0 * (QUANTUM as f64 + 100_000.0);
    let part = given.get() as f64 * 10_000.0 / ran;
    assert!((0.39..0.41).contains(&part), "{part}, and {} to the other", rest.get());
}

/// Whom the event loop finds ready waits for nobody but the quantum and the poll that were under way: not for those who want to run
/// all the time, however many they are.
#[test]
fn who_comes_from_the_event_loop_after_a_rest_runs_first() {
    let bench = Bench::new();
    // Of those who are due at the very same moment the first is whoever came first, so none takes as long as another.
    let cost = |tenant| 29_000 + 41 * u64::from(tenant);
    let crowd: Vec<_> = (20..40).map(|tenant| bench.greedy(&bench.group(tenant, 1), cost(tenant))).collect();
    let all = || crowd.iter().map(|polls| polls.get()).sum::<u64>();
    let visitor = bench.group(50, 1);
    bench.turns(20);
    for _ in 0..100 {
        let before = bench.time.0.get();
        bench.turns(3);
        let quantum = (bench.time.0.get() - before) / 3;
        assert!(quantum < QUANTUM + 31_000, "{quantum}");
        let (polls, seen) = (all(), Rc::new(Cell::new(None)));
        let (first, counts) = (Rc::clone(&seen), crowd.iter().map(Rc::clone).collect::<Vec<_>>());
        visitor.spawn(async move { first.set(Some(counts.iter().map(|polls| polls.get()).sum::<u64>())) }).detach();
        bench.turn();
        assert_eq!(seen.get(), Some(polls), "somebody else ran before");
    }
}
