//! An executor without shares: tasks run in the order of their wakes, and no clock is read for them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use crate::account::Account;
use crate::clock::Clock;
use crate::meter::Ledger;
use crate::remote::Remote;
use crate::{Share, TenantId, Weight};

/// Polls before the event loop has its turn: as many as tokio's own tasks have.
pub(crate) const POLLS: usize = 61;
/// How often a poll may ask whether its slice is spent before it is: half a megabyte in the largest reads, or so many requests that
/// were all there at once.
pub(crate) const ASKS: u32 = 32;

/// Its tasks that may run, the one that was woken first in front.
#[derive(Debug)]
pub(crate) struct Plain<T> {
    queue: RefCell<VecDeque<T>>,
    /// How often the present poll may still ask; `None` in the event loop.
    asks: Cell<Option<u32>>,
}

impl<T> Default for Plain<T> {
    fn default() -> Self {
        Self { queue: RefCell::default(), asks: Cell::new(None) }
    }
}

impl<T> Plain<T> {
    /// Queues what was woken on this thread.
    pub(crate) fn push(&self, task: T) {
        self.queue.borrow_mut().push_back(task);
    }

    /// The one that has waited longest. What other threads have woken joins the line now.
    pub(crate) fn next(&self, remote: &Remote<T>) -> Option<T> {
        let mut queue = self.queue.borrow_mut();
        if remote.has_news() {
            queue.extend(remote.take());
        }
        queue.pop_front()
    }

    /// A poll begins.
    pub(crate) fn begin(&self) {
        self.asks.set(Some(ASKS));
    }

    /// The event loop has its turn.
    pub(crate) fn pause(&self) {
        self.asks.set(None);
    }

    /// Whether the present poll has gone on for long enough, by how often it has asked.
    pub(crate) fn slice_spent(&self) -> bool {
        let left = self.asks.get();
        self.asks.set(left.map(|left| left.saturating_sub(1)));
        left == Some(0)
    }
}

/// What an executor has that measures nothing: a clock that stands still, and accounts that nobody reads.
#[derive(Debug)]
pub(crate) struct Unmeasured;

impl Clock for Unmeasured {
    fn now(&self) -> u64 {
        0
    }

    fn thread_cpu(&self) -> u64 {
        0
    }
}

impl Ledger for Unmeasured {
    fn open(&self, _: TenantId) -> (Arc<Account>, Share) {
        (Arc::default(), Share::of(Weight::DEFAULT))
    }
}

#[cfg(all(test, loom))]
mod tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::remote::tests::Sleeper;

    /// In every interleaving of two other threads and a worker that sleeps when nothing may run, each task runs once: also what
    /// comes between the last look and the sleep, and what joins a line that was not empty.
    #[test]
    fn loom_tasks_of_other_threads_run_once() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(4);
        model.check(|| {
            let remote = Arc::new(Remote::new());
            let worker = std::sync::Arc::new(Sleeper::default());
            remote.set_worker(std::sync::Arc::clone(&worker).into());
            for task in 0..2 {
                let remote = Arc::clone(&remote);
                thread::spawn(move || remote.push(task));
            }
            let plain = Plain::default();
            plain.push(2);
            let mut run = Vec::new();
            while run.len() < 3 {
                match plain.next(&remote) {
                    Some(task) => run.push(task),
                    None => worker.sleep(),
                }
            }
            run.sort_unstable();
            assert_eq!(run, [0, 1, 2]);
            assert_eq!(plain.next(&remote), None);
        });
    }
}
