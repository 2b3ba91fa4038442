//! A control group with an end to something, version 1 or 2, whichever the machine has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::wait::until;

const ROOT: &str = "/sys/fs/cgroup";

/// Dropped after the last process in it has ended.
#[derive(Debug)]
pub struct ControlGroup {
    folder: PathBuf,
    version_1: bool,
}

impl ControlGroup {
    /// One of which all processes together have `quota` of each `period`, in microseconds. None where that takes more than the test
    /// may do, which it says.
    ///
    /// # Panics
    /// In CI, instead.
    pub fn with_processor_time(name: &str, quota: u64, period: u64) -> Option<Self> {
        Self::create("cpu", name, |group| group.set(quota, period))
    }

    /// One that has so many bytes of memory; see [`with_processor_time`](Self::with_processor_time).
    ///
    /// # Panics
    /// As there.
    pub fn with_memory(name: &str, bytes: u64) -> Option<Self> {
        Self::create("memory", name, |group| group.set_memory(bytes))
    }

    /// Gives it so many bytes of memory from now on.
    ///
    /// # Errors
    /// The kernel has no such groups, or not for this user, or what is in it takes more.
    pub fn set_memory(&self, bytes: u64) -> io::Result<()> {
        let file = if self.version_1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(self.folder.join(file), bytes.to_string())
    }

    /// One that can be kept from having more threads; see [`with_processor_time`](Self::with_processor_time).
    ///
    /// # Panics
    /// As there.
    pub fn of_threads(name: &str) -> Option<Self> {
        Self::create("pids", name, |group| group.may_have_threads(true))
    }

    fn create(controller: &str, name: &str, prepare: impl FnOnce(&Self) -> io::Result<()>) -> Option<Self> {
        let version_1 = !Path::new(ROOT).join("cgroup.controllers").exists();
        let parent = Path::new(ROOT).join(if version_1 { controller } else { "" });
        let group = Self { folder: parent.join(format!("tollgate-{name}-{:08x}", fastrand::u32(..))), version_1 };
        match fs::create_dir(&group.folder).and_then(|()| prepare(&group)) {
            Ok(()) => Some(group),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "{name} cannot run: no control group: {error}");
                eprintln!("SKIPPED: {name}: no control group: {error}");
                None
            }
        }
    }

    /// Lets its processes begin threads, or no more of them than they have.
    ///
    /// # Errors
    /// The kernel has no such groups, or not for this user.
    pub fn may_have_threads(&self, more: bool) -> io::Result<()> {
        // Those that it has stay, however many; one that ends makes no room.
        let most = if more { "max" } else { "0" };
        fs::write(self.folder.join("pids.max"), most)
    }

    /// Gives it so much of each period from now on.
    ///
    /// # Errors
    /// The kernel has no such groups, or not for this user.
    pub fn set(&self, quota: u64, period: u64) -> io::Result<()> {
        match self.version_1 {
            false => fs::write(self.folder.join("cpu.max"), format!("{quota} {period}")),
            true => {
                fs::write(self.folder.join("cpu.cfs_period_us"), period.to_string())?;
                fs::write(self.folder.join("cpu.cfs_quota_us"), quota.to_string())
            }
        }
    }

    /// Takes a process in, with all of its threads.
    ///
    /// # Panics
    /// When it has ended.
    pub fn take_in(&self, process: u32) {
        fs::write(self.folder.join("cgroup.procs"), process.to_string()).unwrap();
    }

    /// In how many periods somebody in it ran, and in how many of them all were stopped, since they had used up what there is.
    ///
    /// # Panics
    /// When the kernel does not say.
    pub fn periods(&self) -> (u64, u64) {
        let text = fs::read_to_string(self.folder.join("cpu.stat")).unwrap();
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        (number("nr_periods "), number("nr_throttled "))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            until("the end of the last process in the control group", || fs::remove_dir(&self.folder).ok());
        }
    }
}
