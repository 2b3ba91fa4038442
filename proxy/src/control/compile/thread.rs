//! Threads that compile, or read what is compiled. They live for one piece of work, since there is mostly none; the kernel lets others go first.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use tokio::sync::oneshot;

use crate::overhead;

/// Of what is within its tenants' budgets, whether an update waits for it or not: a policy that takes a permission away must not starve behind
/// workers that somebody keeps busy, so not the lowest.
pub(in crate::control) const SOON: i32 = 10;
/// Of the rest.
pub(in crate::control) const LATE: i32 = 19;

/// Nothing was compiled: a defect of ours; what it said is in the log.
#[derive(Debug, thiserror::Error)]
#[error("compiling has panicked; please report it")]
pub(in crate::control) struct Failed;

/// Begins `work` on a thread of this niceness, which is for Linux a property of a thread.
///
/// # Errors
/// There is no thread.
pub(super) fn begin(nice: i32, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    #[cfg(test)]
    shortage::look()?;
    let named = thread::Builder::new().name("compile".to_owned());
    named.spawn(move || {
        overhead::count_this_thread(overhead::Kind::Compile);
        // Being as important as a worker is no reason to give up.
        let _ = rustix::process::setpriority_process(None, nice);
        work();
    })?;
    Ok(())
}

/// Does `work`, which somebody waits for: on this thread if there is no other, since what is not in force while nothing can be begun may
/// be a denial. Probes and streams wait then.
///
/// # Errors
/// It has panicked.
pub(in crate::control) async fn run_soon<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Failed> {
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let given = Arc::clone(&work);
    match begun(SOON, move || take(&given).map(|work| work())) {
        Ok(outcome) => outcome.await.ok().flatten().ok_or(Failed),
        Err(error) => {
            tracing::warn!(%error, "no thread to compile on: probes and streams wait; raise the limit of tasks (pids.max)");
            take(&work).map_or(Err(Failed), run_here)
        }
    }
}

/// Does `work` on this thread.
///
/// # Errors
/// It has panicked, before it changed anything.
pub(in crate::control) fn run_here<R>(work: impl FnOnce() -> R) -> Result<R, Failed> {
    let work = || {
        #[cfg(test)]
        shortage::panic_if_asked();
        work()
    };
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Failed)
}

/// Begins `work`, whose outcome comes later, or nothing if it panics.
///
/// # Errors
/// There is no thread.
pub(in crate::control) fn begun<R: Send + 'static>(
    nice: i32,
    work: impl FnOnce() -> R + Send + 'static,
) -> io::Result<oneshot::Receiver<R>> {
    let (done, outcome) = oneshot::channel();
    begin(nice, move || drop(done.send(work())))?;
    Ok(outcome)
}

/// For tests: the kernel gives this thread no others.
#[cfg(test)]
pub(in crate::control) mod shortage {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static LASTS: Cell<bool> = const { Cell::new(false) };
        static DEFECTS: Cell<u32> = const { Cell::new(0) };
    }

    /// Lasts until it is dropped.
    #[derive(Debug)]
    pub(in crate::control) struct Shortage(());

    impl Shortage {
        pub(in crate::control) fn begin() -> Self {
            LASTS.set(true);
            Self(())
        }

        /// The first so many works that are done here instead end in a panic.
        pub(in crate::control) fn with_defects(count: u32) -> Self {
            DEFECTS.set(count);
            Self::begin()
        }
    }

    impl Drop for Shortage {
        fn drop(&mut self) {
            LASTS.set(false);
            DEFECTS.set(0);
        }
    }

    pub(super) fn look() -> io::Result<()> {
        if LASTS.get() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }

    pub(super) fn panic_if_asked() {
        let left = DEFECTS.get();
        DEFECTS.set(left.saturating_sub(1));
        assert_eq!(left, 0, "meant to be");
    }
}
