//! The limit of open files, which is the limit of connections.

use std::io;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// `RLIMIT_NOFILE` of this process; `None` means without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// How many descriptors may be open now.
    pub soft: Option<u64>,
    /// How far the process may raise `soft` on its own.
    pub hard: Option<u64>,
}

impl DescriptorLimit {
    /// Reads the limit.
    pub fn current() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        Self { soft: current, hard: maximum }
    }
}

/// Raises the soft limit of open files to the hard limit and returns what is in force now.
///
/// Each proxied connection holds two descriptors, and the usual soft limit of 1,024 is there only for programs that use
/// `select(2)`, which this one does not.
pub fn raise_nofile() -> io::Result<DescriptorLimit> {
    let DescriptorLimit { soft, hard } = DescriptorLimit::current();
    if soft != hard {
        setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    }
    Ok(DescriptorLimit::current())
}

/// The kernel's table takes 8 bytes for each descriptor: 8 MiB.
const MOST: u64 = 1 << 20;

/// Has the kernel make its table large enough for so many descriptors, as far as the limit of open files and a million go. Returns
/// for how many.
///
/// Otherwise it grows whenever as many are open as it has room for, and whoever opens the next one waits until all processors have
/// passed through a quiescent state of RCU: some 10 ms, in which a worker serves nobody. It never shrinks. To be called while
/// there is one thread, which need not wait.
///
/// # Errors
/// There is no descriptor left, or no memory. The table will grow as before.
pub fn make_room_for_descriptors(count: u64) -> io::Result<u64> {
    let limit = DescriptorLimit::current().soft.unwrap_or(MOST);
    let count = count.min(limit).min(MOST);
    let Some(last) = count.checked_sub(1).and_then(|last| i32::try_from(last).ok()) else { return Ok(0) };
    let any = eventfd(0, EventfdFlags::CLOEXEC)?;
    // The lowest that is free from there on.
    fcntl_dupfd_cloexec(&any, last)?;
    Ok(count)
}

/// How many descriptors this process has open.
pub fn open_descriptors() -> io::Result<usize> {
    // One of the entries is the directory that is being read.
    Ok(std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::{DescriptorLimit, make_room_for_descriptors, open_descriptors, raise_nofile};

    #[test]
    fn raises_to_the_hard_limit() {
        let limit = raise_nofile().unwrap();
        assert_eq!(limit.soft, limit.hard);
        assert_eq!(raise_nofile().unwrap(), limit);
    }

    #[test]
    fn the_table_grows_at_once() {
        let size = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap().trim().parse().unwrap()
        };
        let limit = raise_nofile().unwrap().soft.unwrap_or(u64::MAX);
        let wanted = limit.min(2 * size());
        assert_eq!(make_room_for_descriptors(wanted).unwrap(), wanted);
        assert!(size() >= wanted, "{} for {wanted}", size());
        assert_eq!(make_room_for_descriptors(0).unwrap(), 0);
        assert!(make_room_for_descriptors(u64::MAX).unwrap() <= DescriptorLimit::current().soft.unwrap_or(u64::MAX));
    }

    #[test]
    fn counts_descriptors() {
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(open_descriptors().unwrap() >= files.len());
    }
}
