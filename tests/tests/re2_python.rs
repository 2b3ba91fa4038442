//! The engine against RE2 itself, on expressions that nobody has looked at before.
//!
//! `TOLLGATE_RE2_SEED` and `TOLLGATE_RE2_COUNT` choose which and how many; without them the seed is random and printed when
//! something differs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../../proxy/policy/tests/policy/re2/answers.rs"]
mod answers;

use std::path::Path;
use std::process::Command;

use tollgate_tests::python::{SCRIPTS, python};

const EXPECTED: &str = include_str!("../../proxy/policy/tests/policy/re2/answers.txt");
const SYNTAX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proxy/policy/tests/policy/re2/syntax.txt");

/// What the script prints for these arguments.
fn ask(python: &Path, arguments: &[&str]) -> String {
    let script = Path::new(SCRIPTS).join("re2_oracle.py");
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn fresh_expressions() {
    let Some(python) = python() else { return };
    let seed = std::env::var("TOLLGATE_RE2_SEED").unwrap_or_else(|_| fastrand::u32(..).to_string());
    let count = std::env::var("TOLLGATE_RE2_COUNT").unwrap_or_else(|_| "5000".to_owned());
    let outcome = answers::compare(&ask(python, &[&seed, &count, SYNTAX]));
    assert_eq!(outcome.differences, "", "TOLLGATE_RE2_SEED={seed}");
    assert!(outcome.equal > 1500, "{outcome:?}");
}

/// The checked-in answers are what the installed RE2 says.
#[test]
fn the_checked_in_answers_are_current() {
    let Some(python) = python() else { return };
    assert!(ask(python, &["1", "2500", SYNTAX]) == EXPECTED, "make answers.txt again: see re2_oracle.py");
}
