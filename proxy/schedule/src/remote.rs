//! How other threads hand tasks to a worker that they have woken.
//!
//! Rare: the control thread publishes, a blocking call ends. So this may be a lock, but never one that the worker waits
//! for. What is handed over and whom to wake have a lock each: of the first, whoever holds it has yet to say that there is
//! news, so a worker that finds it taken will be woken. One that were held afterwards, too, would hide what is in it.

use std::task::Waker;

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};
use std::sync::{PoisonError, TryLockError};

/// The queue of one worker.
#[derive(Debug)]
pub(crate) struct Remote<T> {
    inbox: Mutex<Vec<T>>,
    worker: Mutex<Option<Waker>>,
    /// Set when something may be in the inbox, and only then is it looked into.
    news: AtomicBool,
}

impl<T> Remote<T> {
    pub(crate) fn new() -> Self {
        Self { inbox: Mutex::new(Vec::new()), worker: Mutex::new(None), news: AtomicBool::new(false) }
    }

    /// Puts an item in, and wakes the worker unless somebody has done so since it last looked.
    pub(crate) fn push(&self, item: T) {
        self.lock(&self.inbox).push(item);
        // After the lock is free, and whoever sets it wakes: a worker that did not get the lock will be woken.
        if !self.news.swap(true, Ordering::AcqRel) {
            let worker = self.lock(&self.worker).clone();
            if let Some(worker) = worker {
                worker.wake();
            }
        }
    }

    /// Tells whom to wake from now on. For the worker, once, before it looks; may wait a moment for the lock.
    pub(crate) fn set_worker(&self, worker: Waker) {
        *self.lock(&self.worker) = Some(worker);
    }

    /// Whether [`Remote::take`] may find something. One load.
    pub(crate) fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    /// Takes everything out; nothing when somebody is just putting something in, who wakes the worker then. For the worker.
    pub(crate) fn take(&self) -> Vec<T> {
        // A swap, to see everything that was put in before it was set.
        self.news.swap(false, Ordering::AcqRel);
        match self.inbox.try_lock() {
            Ok(mut inbox) => std::mem::take(&mut *inbox),
            Err(TryLockError::Poisoned(inbox)) => std::mem::take(&mut *inbox.into_inner()),
            Err(TryLockError::WouldBlock) => Vec::new(),
        }
    }

    fn lock<'l, V>(&self, mutex: &'l Mutex<V>) -> MutexGuard<'l, V> {
        let guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        // Loom changes threads at its own operations only: without one in here nobody would ever find a lock taken.
        #[cfg(loom)]
        self.news.load(Ordering::Relaxed);
        guard
    }
}

#[cfg(all(test, loom))]
pub(crate) mod tests {
    use std::task::Wake;

    use loom::sync::{Arc, Condvar};
    use loom::thread;

    use super::*;

    /// A thread that sleeps until it is woken, or was since it last slept.
    #[derive(Default)]
    pub(crate) struct Sleeper {
        woken: Mutex<bool>,
        wake: Condvar,
    }

    impl Wake for Sleeper {
        fn wake(self: std::sync::Arc<Self>) {
            *self.woken.lock().unwrap() = true;
            self.wake.notify_one();
        }
    }

    impl Sleeper {
        pub(crate) fn sleep(&self) {
            let mut woken = self.woken.lock().unwrap();
            while !*woken {
                woken = self.wake.wait(woken).unwrap();
            }
            *woken = false;
        }
    }

    /// In every interleaving of two other threads and a worker that sleeps when it finds nothing, the worker gets each item
    /// once. A wake that were lost would leave it asleep for ever, which loom reports.
    #[test]
    fn loom_nothing_is_lost_or_slept_through() {
        // Four forced switches of threads: with more it takes minutes.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(4);
        model.check(|| {
            let remote = Arc::new(Remote::new());
            for item in 0..2 {
                let remote = Arc::clone(&remote);
                thread::spawn(move || remote.push(item));
            }
            let worker = std::sync::Arc::new(Sleeper::default());
            remote.set_worker(std::sync::Arc::clone(&worker).into());
            let mut found = Vec::new();
            while found.len() < 2 {
                if !remote.has_news() {
                    worker.sleep();
                    continue;
                }
                found.extend(remote.take());
            }
            found.sort_unstable();
            assert_eq!(found, [0, 1]);
        });
    }
}
