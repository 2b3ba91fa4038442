//! Child processes that end with the test that started them, and whose output is there when it fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::wait::{until, within};

/// A running child process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: PathBuf,
}

impl Process {
    /// Starts `command`; both of its output streams go to a file in `directory`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(directory: &Path, name: &str, mut command: Command) -> Self {
        let output = directory.join(format!("{name}-{:08x}.log", fastrand::u32(..)));
        let file = File::create(&output).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        Self { child, name: name.to_owned(), output }
    }

    /// Everything it wrote so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// The file that holds it.
    pub fn log(&self) -> PathBuf {
        self.output.clone()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory in use now and at most so far, in KiB (`VmRSS`, `VmHWM`).
    ///
    /// # Panics
    /// When it has ended.
    pub fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        (value("VmRSS:"), value("VmHWM:"))
    }

    /// Open file descriptors.
    ///
    /// # Panics
    /// When it has ended.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait(&mut self) -> ExitStatus {
        let name = format!("the end of {}; it wrote: {}", self.name, self.output());
        until(&name, || self.ended())
    }

    /// Waits until `ready` finds something.
    ///
    /// # Panics
    /// When the process ends before, or nothing is found in time; the message has its output.
    pub fn until<T>(&mut self, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
        let found = within(crate::wait::DEADLINE, || match ready() {
            Some(found) => Some(Ok(found)),
            None => self.ended().map(Err),
        });
        match found {
            Some(Ok(found)) => found,
            Some(Err(status)) => panic!("{} ended with {status} before {what}: {}", self.name, self.output()),
            None => panic!("{}: no {what} in time: {}", self.name, self.output()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- output of {}:\n{}", self.name, self.output());
        }
    }
}
