//! Runs the Python clients and servers of `tests/python` for one test.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::process::Process;
use crate::python::SCRIPTS;
use crate::site::Site;

/// Starts `script` with `arguments`; `python` is [`crate::python::python`].
pub fn start(python: &Path, site: &Site, script: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(python);
    command.arg("-u").arg(Path::new(SCRIPTS).join(script)).args(arguments);
    Process::start(&site.path(""), script, command)
}

/// Starts a server, which prints one line once it serves, and returns that line.
///
/// # Panics
/// When it does not print one.
pub fn serve(python: &Path, site: &Site, script: &str, arguments: &[&str]) -> (Process, String) {
    let mut process = start(python, site, script, arguments);
    let output = process.log();
    let line = process.until("its first line", || {
        let text = std::fs::read_to_string(&output).ok()?;
        Some(text.split_once('\n')?.0.to_owned())
    });
    (process, line)
}

/// Runs a script to its end, and returns what it printed as JSON in its last line.
///
/// # Panics
/// When it fails or prints none.
pub fn run(python: &Path, site: &Site, script: &str, arguments: &[&str]) -> Value {
    let mut process = start(python, site, script, arguments);
    let status = process.wait();
    let output = process.output();
    assert!(status.success(), "{script} {arguments:?}: {status}: {output}");
    let last = output.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{script} {arguments:?}: {error}: {output}"))
}
