//! A timer that is exact to some ten microseconds, for an event loop whose own are a millisecond apart.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Wakes one task, once each time that it is set.
#[derive(Debug)]
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// A timer of the runtime that the caller has entered.
    ///
    /// # Errors
    /// There is no file descriptor left.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[expect(unsafe_code, reason = "tokio's safe way is deprecated")]
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: `OwnedFd` is an open file descriptor, always the same one, until it is dropped; nobody but the `AsyncFd` can do that.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Ok(Self(timer?))
    }

    /// Wakes the task of `context` after so long, and nobody for what was set before.
    ///
    /// # Errors
    /// Nobody will be woken. Not known to happen.
    pub fn set(&self, context: &mut Context<'_>, after: Duration) -> io::Result<()> {
        let seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
        // No time at all would turn it off.
        let it_value = Timespec { tv_sec: seconds, tv_nsec: after.subsec_nanos().max(1).into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        loop {
            match self.0.poll_read_ready(context) {
                // That it went off before; setting it has taken that back.
                Poll::Ready(before) => before?.clear_ready(),
                Poll::Pending => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_wakes_once_each_time_that_it_is_set() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let timer = Timer::new().unwrap();
            for _ in 0..20 {
                let began = Instant::now();
                let mut polls = 0;
                let woken = pin!(poll_fn(|context| {
                    polls += 1;
                    if polls > 1 {
                        return Poll::Ready(());
                    }
                    // The later of the two counts.
                    timer.set(context, Duration::from_micros(1)).unwrap();
                    std::thread::sleep(Duration::from_micros(100));
                    timer.set(context, Duration::from_millis(3)).unwrap();
                    Poll::Pending
                }));
                tokio::time::timeout(Duration::from_secs(60), woken).await.expect("it has woken nobody");
                assert!(began.elapsed() >= Duration::from_millis(3), "what was set before has woken it");
            }
        });
    }
}
