//! Waiting by condition: no test sleeps and hopes.

use std::time::{Duration, Instant};

/// How long anything may take before a test gives up. Far longer than needed, so that a busy machine fails no test.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How often a condition is looked at that nothing announces.
const INTERVAL: Duration = Duration::from_millis(5);

/// Returns what `look` finds once it finds something.
///
/// # Panics
/// When it finds nothing within [`DEADLINE`]; the message says `what` was awaited.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, look).unwrap_or_else(|| panic!("not within {DEADLINE:?}: {what}"))
}

/// Returns what `look` finds, or `None` if it finds nothing within `limit`.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(INTERVAL);
    }
}
