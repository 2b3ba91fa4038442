//! Wakes a worker that waits for the quota of the process. The runtime's own timers are a millisecond apart.

use std::io;
use std::task::Context;
use std::time::Duration;

use tokio::runtime::Runtime;
use tollgate_net::Timer;

/// A timer of the kernel's, among the sockets of a worker.
#[derive(Debug)]
pub(crate) struct Alarm(Timer);

impl Alarm {
    /// One for the worker of this runtime.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub(crate) fn new(runtime: &Runtime) -> io::Result<Self> {
        let _entered = runtime.enter();
        Ok(Self(Timer::new()?))
    }
}

impl tollgate_schedule::Alarm for Alarm {
    fn wake_after(&self, context: &mut Context<'_>, nanoseconds: u64) {
        if self.0.set(context, Duration::from_nanos(nanoseconds)).is_err() {
            // Rather too early than never.
            context.waker().wake_by_ref();
        }
    }
}
