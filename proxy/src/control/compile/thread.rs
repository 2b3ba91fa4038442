//! Threads that compile, or read what is compiled. They live for one piece of work, since there is mostly none; the kernel lets others go first.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{io, thread};

use tokio::sync::oneshot;

/// Of what is within its tenants' budgets, whether an update waits for it or not: a policy that takes a permission away must not starve behind
/// workers that somebody keeps busy, so not the lowest.
pub(in crate::control) const SOON: i32 = 10;
/// Of the rest.
pub(in crate::control) const LATE: i32 = 19;

/// Why nothing was compiled.
#[derive(Debug, thiserror::Error)]
pub(in crate::control) enum Failed {
    /// The kernel gave no thread.
    #[error("no thread to compile on: {0}")]
    Thread(#[from] io::Error),
    /// A defect of ours; what it said is in the log.
    #[error("the thread that compiles has panicked; please report it")]
    Panicked,
}

/// Begins `work` on a thread of this niceness, which is for Linux a property of a thread.
pub(super) fn begin(nice: i32, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let named = thread::Builder::new().name("compile".to_owned());
    named.spawn(move || {
        // Being as important as a worker is no reason to give up.
        let _ = rustix::process::setpriority_process(None, nice);
        work();
    })?;
    Ok(())
}

/// Does `work`, which somebody waits for.
///
/// # Errors
/// There was no thread, or it panicked.
pub(in crate::control) async fn run_soon<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Failed> {
    begun(SOON, work)?.await.map_err(|_| Failed::Panicked)
}

/// Does `work` on this thread.
///
/// # Errors
/// It has panicked, before it changed anything.
pub(in crate::control) fn run_here<R>(work: impl FnOnce() -> R) -> Result<R, Failed> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Failed::Panicked)
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

/// Processor time of this thread, in nanoseconds.
pub(in crate::control) fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
