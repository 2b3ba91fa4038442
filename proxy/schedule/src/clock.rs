//! The two clocks of a worker.

use rustix::time::{ClockId, clock_gettime};

use crate::quota::nanoseconds;

/// Where time comes from; tests have their own.
pub trait Clock {
    /// Nanoseconds since some moment; never goes back. Read for each poll, so it must cost next to nothing.
    fn now(&self) -> u64;

    /// Processor time of the calling thread, in nanoseconds. A system call.
    fn thread_cpu(&self) -> u64;
}

/// The processor's time-stamp counter where it is steady, else the system's monotonic clock.
#[derive(Debug)]
pub struct SystemClock {
    clock: quanta::Clock,
    started: u64,
}

impl Default for SystemClock {
    fn default() -> Self {
        let clock = quanta::Clock::new();
        Self { started: clock.raw(), clock }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> u64 {
        self.clock.delta_as_nanos(self.started, self.clock.raw())
    }

    fn thread_cpu(&self) -> u64 {
        nanoseconds(clock_gettime(ClockId::ThreadCPUTime))
    }
}
