//! Groups of tasks, and tasks.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_task::{Builder, FallibleTask};
use pin_project_lite::pin_project;

use crate::GroupKey;
use crate::current::schedule;
use crate::executor::{Local, Ready};
use crate::spent::{Spent, Sum};

/// Tasks that are charged to the same tenant and flow, now and when that changes: those of one connection.
#[derive(Clone, Debug)]
pub struct Group(Rc<Membership>);

#[derive(Debug)]
struct Membership {
    local: Rc<Local>,
    key: Cell<GroupKey>,
    /// What its tasks have used.
    spent: Rc<Sum>,
    /// Where its tasks queue. They carry a copy, which other threads take along but never look at.
    slot: Arc<AtomicUsize>,
}

impl Group {
    pub(crate) fn new(local: &Rc<Local>, key: GroupKey) -> Self {
        let slot = Arc::new(AtomicUsize::new(local.join(key)));
        Self(Rc::new(Membership { local: Rc::clone(local), key: Cell::new(key), spent: Rc::default(), slot }))
    }

    /// Who is charged.
    pub fn key(&self) -> GroupKey {
        self.0.key.get()
    }

    /// Lets somebody else be charged, from the next time that each task is woken.
    pub fn set_key(&self, key: GroupKey) {
        if self.0.key.replace(key) != key {
            let before = self.0.slot.swap(self.0.local.join(key), Ordering::Relaxed);
            self.0.local.leave(before);
        }
    }

    /// Whether what its tasks use is measured: not by [an executor that shares nothing](crate::Executor::plain).
    pub fn is_measured(&self) -> bool {
        self.0.local.plain.is_none()
    }

    /// What its tasks have used so far, the present poll included.
    pub fn spent(&self) -> Spent {
        self.0.spent.now(&self.0.local)
    }

    /// The same where something begins in the present poll: what that was waited for is to be counted from here on.
    pub fn spent_before(&self) -> Spent {
        self.0.spent.before(&self.0.local)
    }

    /// Starts a task of this group. It begins to run after this has returned.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let (task, started) = self.start(future);
        task.schedule();
        started
    }

    /// The same for a task whose first poll is a part of the present one, which has to be one of this group.
    pub fn spawn_polled<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let (task, started) = self.start(future);
        task.run();
        started
    }

    fn start<F>(&self, future: F) -> (Ready, Task<F::Output>)
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let local = &self.0.local;
        let remote = Arc::clone(&local.remote);
        let mut active = local.active.borrow_mut();
        let place = active.vacant_entry();
        let enlisted = Enlisted { group: self.clone(), place: place.key() };
        let (task, handle) = Builder::new().metadata(Arc::clone(&self.0.slot)).spawn_local(
            move |_| Running { future: Some(future), enlisted },
            move |task: Ready| schedule(&remote, task),
        );
        place.insert(task.waker());
        (task, Task(handle.fallible()))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.local.leave(self.slot.load(Ordering::Relaxed));
    }
}

/// Takes a task off the executor's list when its future is gone.
struct Enlisted {
    group: Group,
    place: usize,
}

impl Drop for Enlisted {
    fn drop(&mut self) {
        let waker = self.group.0.local.active.borrow_mut().try_remove(self.place);
        // After the list is free again: it may be the last that holds the task.
        drop(waker);
    }
}

pin_project! {
    /// A future that keeps its panics to itself, those of its destructors included.
    struct Running<F> {
        // None when it has panicked.
        #[pin]
        future: Option<F>,
        // After the future, which may need its group to the end.
        enlisted: Enlisted,
    }

    impl<F> PinnedDrop for Running<F> {
        fn drop(this: Pin<&mut Self>) {
            this.end();
        }
    }
}

impl<F> Running<F> {
    fn end(self: Pin<&mut Self>) {
        let mut future = self.project().future;
        contain(|| future.set(None));
    }
}

impl<F: Future> Future for Running<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let membership = &self.enlisted.group.0;
        if membership.local.plain.is_none() {
            membership.local.spent.set(Some(Rc::clone(&membership.spent)));
        }
        let future = self.as_mut().project().future.as_pin_mut();
        match contain(|| future.map(|future| future.poll(context))) {
            Some(Some(polled)) => polled.map(Some),
            Some(None) => Poll::Ready(None),
            None => {
                self.enlisted.group.0.local.panicked();
                self.end();
                Poll::Ready(None)
            }
        }
    }
}

/// None when it panics.
fn contain<T>(act: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(done) => Some(done),
        Err(panic) => {
            // What was thrown may have a destructor of its own.
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                std::mem::forget(again);
            }
            None
        }
    }
}

/// A task that was started. Await it for its result: none when it panicked, or went with its executor. Dropping it ends
/// the task, which happens at the task's next turn.
#[derive(Debug)]
#[must_use = "a task ends when this is dropped; `detach` lets it go on"]
pub struct Task<T>(FallibleTask<Option<T>, Arc<AtomicUsize>>);

impl<T> Task<T> {
    /// Lets the task go on by itself.
    pub fn detach(self) {
        self.0.detach();
    }

    /// Ends the task and waits until its future is gone. Returns its result if it had one already.
    pub async fn cancel(self) -> Option<T> {
        self.0.cancel().await.flatten()
    }
}

impl<T> Future for Task<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        Pin::new(&mut self.0).poll(context).map(Option::flatten)
    }
}
