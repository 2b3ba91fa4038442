//! The Python environment of the tests, and the control plane that runs in it.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// The directory of the scripts.
pub const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python");

/// Longest wait for an event. Only a failing test waits so long.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);

/// The environment's python, or `None` after saying why not.
///
/// # Panics
/// There is none although this is CI, where a skipped test would be a hole.
pub fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = PYTHON.get_or_init(|| {
        let script = Path::new(CRATE).join("python/venv");
        let output = Command::new(&script).output().map_err(|error| format!("{}: {error}", script.display()))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    });
    match found {
        Ok(path) => Some(path),
        Err(why) => {
            assert!(env::var("CI").as_deref() != Ok("true"), "no Python environment: {why}");
            println!("SKIPPED: no Python environment: {why}");
            None
        }
    }
}

/// A running `control_plane.py`, which says what commands and events there are. Killed when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    child: Child,
    commands: ChildStdin,
    events: Receiver<String>,
}

impl ControlPlane {
    /// Starts the process; it listens nowhere yet.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(python: &Path) -> anyhow::Result<Self> {
        Self::script(python, "control_plane.py")
    }

    /// Starts another script that is driven in the same way.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn script(python: &Path, name: &str) -> anyhow::Result<Self> {
        let proto = fs::canonicalize(Path::new(CRATE).join("../proto"))?;
        let mut command = Command::new(python);
        command.arg(Path::new(SCRIPTS).join(name)).args([proto.join("proto"), proto.join("stubs")]);
        Self::run(command)
    }

    /// Starts a program that is driven in the same way, whatever it is written in.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn run(mut command: Command) -> anyhow::Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(|| format!("{command:?}"))?;
        let commands = child.stdin.take().context("its standard input is a pipe")?;
        let output = child.stdout.take().context("its standard output is a pipe")?;
        let (sender, events) = mpsc::sync_channel(10_000);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, commands, events })
    }

    /// Gives one command.
    ///
    /// # Errors
    /// The process has ended.
    pub fn tell(&mut self, command: &Value) -> anyhow::Result<()> {
        writeln!(self.commands, "{command}").context("the control plane has ended")
    }

    /// The next event.
    ///
    /// # Errors
    /// None came for a minute, the process has ended, or it reports an error.
    pub fn event(&mut self) -> anyhow::Result<Value> {
        let line = self.events.recv_timeout(EVENT_TIMEOUT).context("no event from the control plane")?;
        let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        ensure!(event["event"] != "error", "{event}");
        Ok(event)
    }

    /// Skips events up to the next one of this kind, and returns it.
    ///
    /// # Errors
    /// As [`event`](Self::event).
    pub fn wait_for(&mut self, kind: &str) -> anyhow::Result<Value> {
        loop {
            let event = self.event()?;
            if event["event"] == kind {
                return Ok(event);
            }
        }
    }

    /// The next answer of a proxy, be it `ack` or `nack`.
    ///
    /// # Errors
    /// As [`event`](Self::event), or the answer is to nothing that was asked.
    pub fn answer(&mut self) -> anyhow::Result<Value> {
        loop {
            let event = self.event()?;
            match event["event"].as_str() {
                Some("ack" | "nack") => return Ok(event),
                Some("stale") => bail!("an answer to no response: {event}"),
                _ => {}
            }
        }
    }

    /// Serves on a Unix socket.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub fn listen(&mut self, socket: &Path) -> anyhow::Result<()> {
        self.tell(&json!({"do": "listen", "address": format!("unix:{}", socket.display())}))?;
        self.wait_for("listening").map(drop)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
