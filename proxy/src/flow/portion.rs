//! How the threads of the log share a core with those that serve traffic: a short portion of work, then a rest.
//!
//! Threads that are nice get less of a core, but not shorter turns: the kernel takes nobody off before its next tick, 4 ms or 1 ms
//! away, who does not leave by itself. Nor does it help to offer the core without leaving: whoever does that often is not back before
//! the others have had so many turns that records are lost.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

/// How long one works at a time.
const LENGTH: Duration = Duration::from_micros(200);
/// How long it then leaves the core to whoever serves traffic there.
pub(super) const REST: Duration = Duration::from_micros(500);
/// Behind everything that serves traffic.
const NICE: i32 = 5;

/// Puts the calling thread behind those that serve traffic.
pub(super) fn give_way() {
    // Being as important as a worker is no reason to give up.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// How long a thread has worked since it left its core.
#[derive(Debug)]
pub(super) struct Portion {
    began: Instant,
}

impl Portion {
    pub(super) fn begin() -> Self {
        Self { began: Instant::now() }
    }

    /// What comes next; `None` when nothing more will. To wait for it is a rest, too.
    pub(super) fn next<T>(&mut self, queue: &Receiver<T>) -> Option<T> {
        match queue.try_recv() {
            Ok(next) => Some(next),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => {
                let next = queue.recv().ok()?;
                self.began = Instant::now();
                Some(next)
            }
        }
    }

    /// To be called after each small piece of work. Rests when it was enough; who is `pressed` goes on. Returns whether it rested.
    pub(super) fn end_of_piece(&mut self, pressed: bool) -> bool {
        if self.began.elapsed() < LENGTH {
            return false;
        }
        if !pressed {
            thread::sleep(REST);
        }
        self.began = Instant::now();
        !pressed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn long_ago() -> Portion {
        Portion { began: Instant::now().checked_sub(2 * LENGTH).unwrap() }
    }

    #[test]
    fn whoever_has_worked_for_long_rests_unless_pressed() {
        assert!(!Portion { began: Instant::now() + LENGTH }.end_of_piece(false), "it has just begun");
        assert!(long_ago().end_of_piece(false));
        assert!(!long_ago().end_of_piece(true), "much is waiting");
    }

    #[test]
    fn to_find_something_is_no_rest() {
        let (sender, queue) = sync_channel(2);
        let mut portion = long_ago();
        sender.send(1).unwrap();
        let began = portion.began;
        assert_eq!(portion.next(&queue), Some(1));
        assert_eq!(portion.began, began, "it was there already");
        drop(sender);
        assert_eq!(portion.next(&queue), None);
    }
}
