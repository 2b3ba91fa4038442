//! How the threads of the log stay out of the way of those that serve traffic, which may have to share a core with them.
//!
//! Being nicer is about how much of the core a thread gets, not about when: until the kernel's next tick, 4 ms or 1 ms away, it
//! takes nobody off who has work. So these threads work in portions and offer the core after each.

use std::thread;
use std::time::Duration;

/// A third of a worker's share where both want all they can get, in the kernel's units.
const NICE: i32 = 5;
/// The turn of which a thread gives up what is left when it offers the core: with one as long as the kernel's own it would not
/// be back for a long time.
const TURN: Duration = Duration::from_micros(500);

/// Puts the calling thread behind those of the workers.
pub(super) fn stay() {
    // Being as important as a worker is no reason to give up, nor is a kernel that knows no turns.
    let _ = rustix::process::setpriority_process(None, NICE);
    let _ = tollgate_net::ask_for_turns_of(TURN);
}

/// Offers the core to a worker that wants it.
pub(super) fn let_them_pass() {
    thread::yield_now();
}
