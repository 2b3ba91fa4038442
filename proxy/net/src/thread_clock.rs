//! The processor time of one thread, for others to ask for.

use std::io;
use std::time::Duration;

/// The clock of the processor time of one thread. Other threads of the process may read it while that one lives; later its number
/// may be another thread's.
#[derive(Clone, Copy, Debug)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// The clock of the calling thread.
    ///
    /// # Errors
    /// The system has no such clocks.
    #[expect(unsafe_code, reason = "no crate in the tree wraps this one")]
    pub fn of_this_thread() -> io::Result<Self> {
        let mut clock = 0;
        // SAFETY: the thread is the calling one, so it lives; the number is written to a place of its type that outlives the call.
        let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        match error {
            0 => Ok(Self(clock)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// What the thread has used since it began, user and system time. `None` once it has ended.
    #[expect(unsafe_code, reason = "rustix reads no clocks whose numbers are found out at run time")]
    pub fn read(self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the time is written to a place of its type that outlives the call; a number of no clock is answered by an error.
        let result = unsafe { libc::clock_gettime(self.0, &raw mut time) };
        let (seconds, nanoseconds) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
        (result == 0).then(|| Duration::new(seconds, nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn it_tells_what_another_thread_has_used() {
        const WORK: Duration = Duration::from_millis(20);
        let ((tell, told), (end, ended)) = (channel(), channel::<()>());
        let worker = thread::spawn(move || {
            let clock = ThreadClock::of_this_thread().unwrap();
            while clock.read().unwrap() < WORK {
                std::hint::spin_loop();
            }
            tell.send(clock).unwrap();
            ended.recv().unwrap_err();
        });
        let clock = told.recv().unwrap();
        let own = ThreadClock::of_this_thread().unwrap();
        let used = clock.read().unwrap();
        assert!(used >= WORK && own.read().unwrap() < WORK, "{used:?}, here {:?}", own.read());
        drop(end);
        worker.join().unwrap();
        assert_eq!(clock.read(), None);
    }
}
