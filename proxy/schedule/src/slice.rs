//! How long one poll may go on. Nothing interrupts a task, so those that have much to do ask, and go on in a later poll.

use std::future::poll_fn;
use std::task::{Context, Poll};

use crate::current;

/// Time of one poll, in nanoseconds.
pub const SLICE: u64 = 100_000;

/// Whether the present poll has used up its [`SLICE`]. Never outside of a task. Reads the clock, about 20 ns, unless that was done since
/// the task last asked: a poll that has just begun knows the time. So a poll takes its slice and two steps between questions at the
/// most. An executor that [measures nothing](crate::Executor::plain) counts how often it is asked.
pub fn slice_spent() -> bool {
    current::with(|local| local.slice_spent()).unwrap_or(false)
}

/// Ready until the slice is spent; then the task is woken at once, and goes on when it is its group's turn again. Ask before
/// an operation that would go on for ever with a peer that is fast enough.
pub fn poll_slice(context: &Context<'_>) -> Poll<()> {
    if slice_spent() {
        context.waker().wake_by_ref();
        return Poll::Pending;
    }
    Poll::Ready(())
}

/// Lets others run if the slice is spent. For loops.
pub async fn rest() {
    poll_fn(|context| poll_slice(context)).await;
}
