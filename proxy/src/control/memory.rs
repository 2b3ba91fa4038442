//! Looks at memory: what the process has, what it may have, and what its tenants hold. What follows is decided in `tenant`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Control;
use super::cgroup::{Group, Place, Version};
use crate::config::MemoryLimit;
use crate::metrics::resident_bytes;

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
    fn of_control_group(bytes: Option<u64>) -> Self {
        Self { bytes, source: if bytes.is_some() { "cgroup" } else { "none" } }
    }
}

/// The memory of the process: its end, which may be another at any time where the control group says it.
#[derive(Debug)]
pub struct Memory {
    configured: MemoryLimit,
    now: Mutex<MemoryEnd>,
}

impl Memory {
    /// What the configuration says, or else the control group that the process is in.
    pub fn new(configured: MemoryLimit) -> Arc<Self> {
        let now = match configured {
            MemoryLimit::Bytes(bytes) => MemoryEnd { bytes: Some(bytes), source: "configuration" },
            MemoryLimit::Off => MemoryEnd { bytes: None, source: "none" },
            MemoryLimit::OfControlGroup => MemoryEnd::of_control_group(at_start(Place::read())),
        };
        Arc::new(Self { configured, now: Mutex::new(now) })
    }

    /// The end that counts now.
    pub fn end(&self) -> MemoryEnd {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again, and returns the end if it is another than before. What cannot be read has not changed.
    fn look(&self) -> Option<MemoryEnd> {
        if self.configured != MemoryLimit::OfControlGroup {
            return None;
        }
        let end = match of_this_process() {
            Ok(bytes) => MemoryEnd::of_control_group(bytes),
            Err(error) => {
                tracing::debug!(%error, "cannot read what the control group says of memory; the end stays as it is");
                return None;
            }
        };
        let before = std::mem::replace(&mut *self.now.lock().unwrap_or_else(PoisonError::into_inner), end);
        (before != end).then(|| {
            tracing::info!(
                bytes = end.bytes,
                before = before.bytes,
                "the control group gives another amount of memory"
            );
            end
        })
    }
}

/// Looks for as long as the process lives, and tells the workers when there is something to do. With `shadow`, what is left for
/// all is only counted with.
pub async fn follow(control: Arc<Control>, memory: Arc<Memory>, shadow: bool, workers: watch::Sender<()>) {
    let books = Arc::clone(control.store().tenants().books());
    let mut last = Instant::now();
    let (mut given_back, mut end_read) = (last, last);
    let mut was_pressed = false;
    loop {
        let now = Instant::now();
        if now - end_read >= CALM {
            end_read = now;
            if let Some(end) = memory.look() {
                books.limit_memory(end.bytes);
                control.memory_changes(end.bytes.filter(|_| !shadow));
            }
        }
        let end = memory.end();
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

fn of_this_process() -> io::Result<Option<u64>> {
    end_of_control_group(&Place::read()?)
}

/// The least of what can be read, where nothing is known from before.
fn at_start(place: io::Result<Place>) -> Option<u64> {
    let unread = |path: &Path, error: &io::Error| {
        tracing::warn!(
            path = %path.display(),
            %error,
            "cannot read how much memory there may be, so an end that only this says does not count; make it readable or set \
             `limits: {{ memory }}`"
        );
    };
    let place = place.inspect_err(|error| unread(Path::new("/proc/self/cgroup"), error)).ok()?;
    let readable =
        ends(&place).into_iter().filter_map(|(path, end)| end.inspect_err(|error| unread(&path, error)).ok());
    readable.flatten().min()
}

/// The least that the groups may have that a process is in.
fn end_of_control_group(place: &Place) -> io::Result<Option<u64>> {
    let ends: Vec<_> = ends(place).into_iter().map(|(_, end)| end).collect::<io::Result<_>>()?;
    Ok(ends.into_iter().flatten().min())
}

/// What each of these groups may have, and the file that says so.
fn ends(place: &Place) -> Vec<(PathBuf, io::Result<Option<u64>>)> {
    let files = |version| match version {
        Version::One => &["memory.limit_in_bytes"][..],
        Version::Two => &["memory.max", "memory.high"],
    };
    let end = |group: &Group, file| Ok(group.read_number(file)?.filter(|bytes| *bytes < NONE));
    let of_group = |group: Group| files(group.version).iter().map(move |file| (group.path(file), end(&group, file)));
    place.groups("memory").into_iter().flat_map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cgroup::tests::Machine;

    #[test]
    fn the_least_of_all_groups_counts() {
        let machine = Machine::new();
        let end = |lines: &str| end_of_control_group(&machine.place(lines)).unwrap();
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

    #[test]
    fn what_cannot_be_read_is_no_end_that_is_gone() {
        let machine = Machine::new();
        machine.write("a/memory.max", "2000\n");
        // A directory can be opened, and not read.
        std::fs::create_dir(machine.root().join("a/memory.high")).unwrap();
        assert!(end_of_control_group(&machine.place("0::/a\n")).is_err());
    }

    /// The start waits for nobody, so what others say counts.
    #[test]
    fn what_cannot_be_read_at_a_start_takes_no_other_end_along() {
        let machine = Machine::new();
        machine.write("a/b/memory.max", "2000\n");
        machine.write("a/memory.max", "3000\n");
        for unread in ["a/b/memory.high", "memory.max"] {
            std::fs::create_dir(machine.root().join(unread)).unwrap();
            assert_eq!(at_start(Ok(machine.place("0::/a/b\n"))), Some(2000), "{unread}");
        }
        assert_eq!(at_start(Err(io::Error::other("gone"))), None);
    }
}
