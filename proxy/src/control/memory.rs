//! Looks at memory: what the process has, what it may have, and what its tenants hold. What follows is decided in `tenant`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::cgroup::{Place, Version};
use crate::config::MemoryLimit;
use crate::metrics::resident_bytes;
use crate::tenant::Books;

/// Between two looks while there is enough.
const CALM: Duration = Duration::from_secs(1);
/// The same while somebody is short of it: memory can be gone within a second.
const PRESSED: Duration = Duration::from_millis(100);
/// Between two attempts to have freed memory given back.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(10);
/// From there on it is no limit but how version 1 writes that there is none.
const NONE: u64 = 1 << 60;

/// How much memory the process may have, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEnd {
    /// In bytes; `None` without an end.
    pub bytes: Option<u64>,
    /// `configuration`, `cgroup` or `none`.
    pub source: &'static str,
}

impl MemoryEnd {
    /// What the configuration says, or else the control group that the process is in.
    pub fn of(configured: MemoryLimit) -> Self {
        match configured {
            MemoryLimit::Bytes(bytes) => Self { bytes: Some(bytes), source: "configuration" },
            MemoryLimit::Off => Self { bytes: None, source: "none" },
            MemoryLimit::OfControlGroup => {
                let bytes = end_of_control_group(&Place::of_this_process());
                Self { bytes, source: if bytes.is_some() { "cgroup" } else { "none" } }
            }
        }
    }
}

/// Looks for as long as the process lives, and tells the workers when there is something to do. With `shadow`, what is left for
/// all is only counted with.
pub async fn follow(books: Arc<Books>, end: MemoryEnd, shadow: bool, workers: watch::Sender<()>) {
    let mut last = Instant::now();
    let mut given_back = last;
    let mut was_pressed = false;
    loop {
        let now = Instant::now();
        // A process that cannot look at itself takes its tenants' word.
        let mut resident = if end.bytes.is_some() { resident_bytes().unwrap_or(0) } else { 0 };
        if keeps_much(end, resident, books.room().used()) && now - given_back >= GIVE_BACK_EVERY {
            given_back = now;
            // Of what the allocator keeps of bursts that are over, nobody should be told that it is missing.
            let _ = tokio::task::spawn_blocking(tollgate_net::give_back_freed_memory).await;
            resident = resident_bytes().unwrap_or(resident);
        }
        let pressed = books.look_at_memory(end.bytes, resident, shadow, now - last);
        if pressed || was_pressed {
            workers.send_replace(());
        }
        (last, was_pressed) = (now, pressed);
        tokio::time::sleep(if was_pressed { PRESSED } else { CALM }).await;
    }
}

/// Whether the process has much that is no tenant's: a part of it may be free.
fn keeps_much(end: MemoryEnd, resident: u64, used: u64) -> bool {
    end.bytes.is_some_and(|most| resident.saturating_sub(used) > most / 5)
}

/// The least that the groups may have that a process is in.
fn end_of_control_group(place: &Place) -> Option<u64> {
    let ends = place.groups("memory").into_iter().flat_map(|group| match group.version {
        Version::One => [group.number("memory.limit_in_bytes"), None],
        Version::Two => [group.number("memory.max"), group.number("memory.high")],
    });
    ends.flatten().filter(|bytes| *bytes < NONE).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cgroup::tests::Machine;

    #[test]
    fn the_least_of_all_groups_counts() {
        let machine = Machine::new();
        let end = |lines: &str| end_of_control_group(&machine.place(lines));
        assert_eq!(end("0::/a/b\n"), None);
        machine.write("a/memory.max", "max\n");
        machine.write("a/b/memory.max", "2000\n");
        assert_eq!(end("0::/a/b\n"), Some(2000));
        machine.write("a/memory.high", "1000\n");
        assert_eq!(end("0::/a/b\n"), Some(1000), "of a group above");
        machine.write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        machine.write("memory/x/memory.limit_in_bytes", "500\n");
        assert_eq!(end("4:cpu:/a\n3:memory:/x\n0::/\n"), Some(500));
        assert_eq!(end("3:memory:/\n"), None);
        // In a container the path may be that of the host.
        machine.write("memory/memory.limit_in_bytes", "700\n");
        assert_eq!(end("3:memory:/docker/123\n"), Some(700));
    }
}
