//! The demo's programs: processes of their own, whose output is kept in files and which end with their owner.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before it counts as failed. It takes milliseconds; a busy machine takes longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Time between two looks at a condition.
const PACE: Duration = Duration::from_millis(10);

/// Looks until there is an answer; `None` when there was none within [`PATIENCE`].
pub(super) fn wait_until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = look() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(PACE);
    }
}

/// A running program. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    output: PathBuf,
}

impl Program {
    /// Starts `command`; standard output goes to `NAME.out` in `directory`, standard error to `NAME.log`.
    pub(super) fn start(name: &str, directory: &Path, mut command: Command) -> io::Result<Self> {
        let output = directory.join(format!("{name}.out"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(directory.join(format!("{name}.log")))?)
            .spawn()?;
        Ok(Self { child, output })
    }

    /// What it has written to standard output, without a line that is not complete yet.
    pub(super) fn lines(&self) -> Vec<String> {
        let text = fs::read(&self.output).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(str::to_owned).collect()
    }

    /// Whether it has ended on its own.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it, and returns when it is gone.
    pub(super) fn kill(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines that each program of `directory` wrote to standard error, with its name in front.
pub(super) fn last_words(directory: &Path) -> String {
    const LINES: usize = 20;
    let mut logs: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    let mut out = String::new();
    for log in logs {
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let name = log.file_stem().unwrap_or_default().to_string_lossy();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            out += &format!("{name}: {line}\n");
        }
    }
    match out.is_empty() {
        true => out,
        false => format!("\nWhat the programs wrote to standard error:\n{out}"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Program, last_words, wait_until};

    #[test]
    fn output_is_kept_and_only_whole_lines_count() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo bad luck >&2; printf 'one\\ntwo\\nthr'; exec sleep 1000"]);
        let mut program = Program::start("talker", directory.path(), command).unwrap();
        assert!(wait_until(|| (program.lines().len() == 2).then_some(())).is_some(), "{:?}", program.lines());
        assert_eq!(program.lines(), ["one", "two"]);
        assert!(last_words(directory.path()).ends_with(":\ntalker: bad luck\n"));
        assert!(!program.has_ended());
        program.kill();
        assert!(program.has_ended());
    }
}
