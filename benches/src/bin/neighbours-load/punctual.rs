//! A timer that tells how late it was: whoever should have had the core at once, and had not, was held up by the kernel or by the
//! host of a virtual machine. What was late meanwhile says nothing of a proxy.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

/// A thread with a real-time priority is on its core within a tenth of this.
const HELD_UP: Duration = Duration::from_micros(300);

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
}

/// Prints `{"held_up": [[from, until], …], "seconds": …}`, in seconds of the clock that all processes read.
pub(crate) async fn run(options: Options) -> anyhow::Result<Value> {
    let mut timer = Timer::every(Duration::from_millis(1))?;
    let end = Instant::now() + options.seconds;
    while Instant::now() < end {
        timer.tick().await?;
    }
    Ok(json!({ "held_up": timer.held_up(), "seconds": options.seconds.as_secs_f64() }))
}

/// Exact to microseconds; the runtime's own is to a millisecond.
pub(crate) struct Timer {
    /// To the runtime it is a pipe: something to read from when it is ready.
    timer: Receiver,
    interval: Duration,
    /// When the first tick is due.
    first: Instant,
    /// The same by the clock that every process of the machine reads, in seconds.
    first_by_all: f64,
    passed: u32,
    held_up: Vec<[f64; 2]>,
}

impl Timer {
    pub(crate) fn every(interval: Duration) -> anyhow::Result<Self> {
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        let every = Timespec { tv_sec: interval.as_secs() as i64, tv_nsec: interval.subsec_nanos().into() };
        let setting = Itimerspec { it_interval: every, it_value: every };
        let now = clock_gettime(ClockId::Monotonic);
        let first = Instant::now() + interval;
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting)?;
        Ok(Self {
            timer: Receiver::from_owned_fd_unchecked(timer)?,
            interval,
            first,
            first_by_all: now.tv_sec as f64 + now.tv_nsec as f64 / 1e9 + interval.as_secs_f64(),
            passed: 0,
            held_up: Vec::new(),
        })
    }

    /// When tick number `number` is due, from 0.
    pub(crate) fn due(&self, number: u32) -> Instant {
        self.first + self.interval * number
    }

    /// When the first tick is due, in seconds of the clock that all processes read.
    pub(crate) fn first_by_all(&self) -> f64 {
        self.first_by_all
    }

    /// Waits for the next tick.
    pub(crate) async fn tick(&mut self) -> anyhow::Result<()> {
        let due = self.due(self.passed);
        let ticks = self.timer.read_u64_le().await?;
        let now = Instant::now();
        if now.saturating_duration_since(due) > HELD_UP {
            self.held_up.push([due, now].map(|moment| self.first_by_all + (moment - self.first).as_secs_f64()));
        }
        self.passed += ticks as u32;
        Ok(())
    }

    /// From when until when it was not on the core though it was its turn.
    pub(crate) fn held_up(self) -> Vec<[f64; 2]> {
        self.held_up
    }
}
