//! A reader of Cilium access logs, in Python.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde_json::Value;

use crate::python::SCRIPTS;
use crate::wait::DEADLINE;

/// A running `access_log_reader.py`, which says what it does. Killed when dropped.
#[derive(Debug)]
pub struct AccessLogReader {
    child: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
}

impl AccessLogReader {
    /// Starts one that tells of each entry.
    ///
    /// # Panics
    /// When it cannot listen on `socket`.
    pub fn start(python: &Path, socket: &Path) -> Self {
        Self::start_with(python, socket, &[])
    }

    /// Starts one that only counts entries.
    ///
    /// # Panics
    /// When it cannot listen on `socket`.
    pub fn counting(python: &Path, socket: &Path) -> Self {
        Self::start_with(python, socket, &["--quiet"])
    }

    fn start_with(python: &Path, socket: &Path, flags: &[&str]) -> Self {
        let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
        let mut child = Command::new(python)
            .arg(Path::new(SCRIPTS).join("access_log_reader.py"))
            .args([proto.join("proto"), proto.join("stubs")])
            .arg(socket)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::sync_channel(100_000);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let reader = Self { child, commands, lines };
        assert_eq!(reader.line(), "ready");
        reader
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line of the access log's reader")
    }

    /// The next entry.
    ///
    /// # Panics
    /// When none comes, or it was cut off or does not decode.
    pub fn entry(&self) -> Value {
        let line = self.line();
        let entry: Value = serde_json::from_str(&line).unwrap();
        assert!(entry["error"].is_null(), "{line}");
        entry
    }

    /// The next `n` entries.
    pub fn entries(&self, n: usize) -> Vec<Value> {
        (0..n).map(|_| self.entry()).collect()
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.commands, "{command}").expect("the access log's reader runs");
    }

    /// Has it take nothing more; returns when it does not.
    ///
    /// # Panics
    /// When it has ended.
    pub fn pause(&mut self) {
        self.tell("pause");
        while !self.line().contains("paused") {}
    }

    /// Has it go on.
    ///
    /// # Panics
    /// When it has ended.
    pub fn resume(&mut self) {
        self.tell("resume");
    }

    /// What came since its start: `{"count": {TYPE: N}, "connections": N}`.
    ///
    /// # Panics
    /// When it has ended.
    pub fn count(&mut self) -> Value {
        self.tell("count");
        loop {
            let value: Value = serde_json::from_str(&self.line()).unwrap();
            if !value["count"].is_null() {
                return value;
            }
        }
    }

    /// Has it take what is there and end.
    ///
    /// # Panics
    /// When it has ended before.
    pub fn quit(mut self) {
        self.tell("quit");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for AccessLogReader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
