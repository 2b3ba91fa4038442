//! The executor that shares nothing.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::fairness::Random;
use super::{Bench, again, key};
use crate::plain::{ASKS, POLLS};
use crate::{Executor, TenantId, rest, slice_spent};

impl Bench {
    fn plain() -> Self {
        Self {
            executor: Executor::plain(),
            time: Default::default(),
            books: Default::default(),
            wakes: Default::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Polled(usize),
    Woken(usize),
}

/// What tasks of the model do: each notes that it runs, and wakes some of the others and itself.
#[derive(Clone)]
struct World {
    wakers: Rc<RefCell<Vec<Waker>>>,
    events: Rc<RefCell<Vec<Event>>>,
    random: Rc<RefCell<Random>>,
}

impl World {
    fn below(&self, bound: usize) -> usize {
        self.random.borrow_mut().below(bound)
    }

    fn wake(&self, task: usize) {
        self.events.borrow_mut().push(Event::Woken(task));
        let waker = self.wakers.borrow()[task].clone();
        waker.wake();
    }

    /// Starts one more, which runs for ever.
    fn spawn(&self, bench: &Bench) {
        let (world, task) = (self.clone(), self.wakers.borrow().len());
        self.wakers.borrow_mut().push(Waker::noop().clone());
        let polled = move |context: &mut std::task::Context<'_>| {
            world.wakers.borrow_mut()[task] = context.waker().clone();
            world.events.borrow_mut().push(Event::Polled(task));
            for _ in 0..world.below(3) {
                let other = world.below(task + 1);
                world.wake(other);
            }
            Poll::<()>::Pending
        };
        bench.group(20 + task as u32 % 3, 0).spawn(poll_fn(polled)).detach();
    }
}

/// Who should run, in which order.
#[derive(Default)]
struct Model {
    queue: VecDeque<usize>,
    /// A task that is woken twice before it runs runs once.
    woken: HashSet<usize>,
    /// What other threads have woken, until the executor looks.
    remote: Vec<usize>,
}

impl Model {
    fn wake(&mut self, task: usize) {
        if self.woken.insert(task) {
            self.queue.push_back(task);
        }
    }

    fn wake_from_elsewhere(&mut self, task: usize) {
        if self.woken.insert(task) {
            self.remote.push(task);
        }
    }

    /// Holds a quantum against what should have happened; returns how many tasks ran.
    fn follow(&mut self, events: Vec<Event>) -> usize {
        self.queue.extend(self.remote.drain(..));
        let mut polls = 0;
        let mut events = events.into_iter().peekable();
        while let Some(event) = events.next() {
            let Event::Polled(task) = event else { panic!("{event:?} in nobody's poll") };
            assert_eq!(self.queue.pop_front(), Some(task), "it is somebody else's turn");
            self.woken.remove(&task);
            polls += 1;
            // Who wakes itself goes into the line when its poll is over.
            let mut again = false;
            while let Some(Event::Woken(other)) = events.next_if(|event| matches!(event, Event::Woken(_))) {
                if other == task { again = true } else { self.wake(other) }
            }
            if again {
                self.wake(task);
            }
        }
        polls
    }
}

/// A hundred thousand random steps: wakes here and on other threads, new tasks, and quanta. Each wake is one poll, in the order of
/// wakes; a quantum ends after so many, or when nobody is left.
#[test]
fn tasks_run_once_for_each_wake_in_its_order() {
    let bench = Bench::plain();
    let random = Rc::new(RefCell::new(Random(11)));
    let world = World { wakers: Rc::default(), events: Rc::default(), random };
    let mut model = Model::default();
    let (mut full, mut drained, mut ran, mut remote) = (0, 0, 0, 0);
    world.spawn(&bench);
    model.wake(0);
    for step in 0..100_000 {
        let tasks = world.wakers.borrow().len();
        match world.below(100) {
            0 if tasks < 300 => {
                world.spawn(&bench);
                model.wake(tasks);
            }
            1 => {
                let woken: Vec<usize> = (0..1 + world.below(5)).map(|_| world.below(tasks)).collect();
                // One that has not run yet has no waker, and is in the line.
                let wakers: Vec<_> = woken.iter().map(|&task| world.wakers.borrow()[task].clone()).collect();
                std::thread::spawn(move || wakers.into_iter().for_each(Waker::wake)).join().unwrap();
                woken.iter().for_each(|&task| model.wake_from_elsewhere(task));
                remote += woken.len();
            }
            2..80 => {
                let task = world.below(tasks);
                world.wake(task);
                world.events.borrow_mut().clear();
                model.wake(task);
            }
            _ => {
                let more = bench.turn();
                let polls = model.follow(world.events.take());
                assert_eq!(more, polls == POLLS, "step {step}: {polls} polls");
                assert!(polls == POLLS || model.queue.is_empty(), "step {step}: {} tasks are left", model.queue.len());
                (full, drained, ran) = (full + usize::from(more), drained + usize::from(!more), ran + polls);
            }
        }
    }
    assert!(full > 1_000 && drained > 100 && ran > 100_000 && remote > 1_000, "{full} {drained} {ran} {remote}");
}

#[test]
fn a_slice_is_so_many_questions() {
    let bench = Bench::plain();
    let order = Rc::new(RefCell::new(Vec::new()));
    let (long, short) = (Rc::clone(&order), Rc::clone(&order));
    let looping = bench.group(20, 1).spawn(async move {
        for step in 0..ASKS + 2 {
            rest().await;
            long.borrow_mut().push(step);
        }
        assert!((0..ASKS).any(|_| slice_spent()) && slice_spent(), "it stays spent");
    });
    let other = bench.group(21, 1).spawn(async move { short.borrow_mut().push(1_000) });
    let done = bench.group(22, 1).spawn(async move { (looping.await, other.await) });
    bench.settle();
    drop(done);
    let before: Vec<u32> = order.borrow().iter().copied().take_while(|step| *step != 1_000).collect();
    assert_eq!(before, (0..ASKS).collect::<Vec<_>>(), "the other has its turn when the slice is spent");
    assert_eq!(order.borrow().len(), ASKS as usize + 3);
    assert!((0..2 * ASKS).all(|_| !slice_spent()), "only a task has a slice");
}

#[test]
fn nothing_is_measured_whoever_is_charged() {
    let bench = Bench::plain();
    let group = bench.group(20, 1);
    assert!(!group.is_measured() && Bench::new().group(20, 1).is_measured());
    let polls = bench.greedy(&group, 10_000);
    bench.turns(3);
    group.set_key(key(21, 2));
    bench.turns(3);
    assert_eq!((polls.get(), group.key()), (6 * POLLS as u64, key(21, 2)));
    assert_eq!(group.spent(), Default::default());
    bench.executor.handle().set_share(TenantId::from_raw(21), crate::Share::of(crate::Weight::new(3)));
    bench.executor.handle().accounts(|tenant, _| panic!("{tenant:?} has an account"));
    assert_eq!(bench.executor.next_release(), None);
}

#[test]
fn a_panic_ends_its_task_and_no_other() {
    let bench = Bench::plain();
    let group = bench.group(20, 1);
    let panicking = group.spawn(async {
        again().await;
        panic!("as the test wants it");
    });
    let other = group.spawn(async {
        again().await;
        again().await;
        7
    });
    let told = Rc::new(Cell::new(None));
    let tell = Rc::clone(&told);
    group.spawn(async move { tell.set(Some((panicking.await, other.await))) }).detach();
    bench.settle();
    assert_eq!(told.take(), Some((None::<()>, Some(7))));
}

#[test]
fn what_is_left_ends_with_the_executor() {
    let bench = Bench::plain();
    let group = bench.group(20, 1);
    let held = Rc::new(());
    for starts in [true, false] {
        let (held, another, of) = (Rc::clone(&held), Rc::clone(&held), group.clone());
        // When it goes, it starts another.
        let last = OnDrop(Some(move || of.spawn(async move { drop(another) }).detach()));
        group
            .spawn(async move {
                pending::<()>().await;
                drop((held, last));
            })
            .detach();
        if starts {
            bench.settle();
        }
    }
    drop(group);
    drop(bench);
    assert_eq!(Rc::strong_count(&held), 1);
}

struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0.take().unwrap()();
    }
}
