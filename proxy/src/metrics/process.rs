//! The `process_*` metrics that every Prometheus client exports, read when asked for.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Resident memory in bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    status_field(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")?.checked_mul(1024)
}

/// Open file descriptors.
pub(super) fn open_fds() -> Option<u64> {
    // One of them is the directory itself.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

/// Soft limit of file descriptors; `None` when there is none.
pub(super) fn max_fds() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// User and system time of all threads.
pub(super) fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The number in a line such as `VmRSS:\t  1234 kB`.
fn status_field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
