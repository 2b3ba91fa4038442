//! Findings as JUnit XML: a suite per file, a case per finding. What makes the check fail is a failure, or an error where
//! the file cannot be used; the rest passes and says what was seen in its output.

use std::fmt::Write as _;

use tollgate_policy::lint::Severity;

use super::report::{headline, place};
use super::rules::Rule;
use super::{Checked, Reported};

/// The document. `fail_on` is the least grave severity that is a failure.
pub(super) fn document(checked: &Checked, fail_on: Severity) -> String {
    let mut suites = String::new();
    let mut total = Counts::default();
    for file in &checked.files {
        let here: Vec<&Reported> = checked.findings.iter().filter(|finding| finding.at.file == *file).collect();
        let mut counts = Counts::default();
        let mut cases = String::new();
        for finding in here {
            counts.add(finding, fail_on);
            case(&mut cases, finding, fail_on);
        }
        let name = escape(&file.display().to_string());
        if cases.is_empty() {
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(cases, "    <testcase classname=\"{name}\" name=\"nothing found\" time=\"0\"/>");
            counts.tests = 1;
        }
        let _ =
            writeln!(suites, "  <testsuite name=\"{name}\" {} time=\"0\">\n{cases}  </testsuite>", counts.attributes());
        total.merge(&counts);
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"tollgate policy check\" {} time=\"0\">\n{suites}\
         </testsuites>\n",
        total.attributes()
    )
}

#[derive(Default)]
struct Counts {
    tests: usize,
    failures: usize,
    errors: usize,
}

impl Counts {
    fn add(&mut self, finding: &Reported, fail_on: Severity) {
        self.tests += 1;
        match outcome(finding, fail_on) {
            Outcome::Error => self.errors += 1,
            Outcome::Failure => self.failures += 1,
            Outcome::Passed => {}
        }
    }

    const fn merge(&mut self, other: &Self) {
        self.tests += other.tests;
        self.failures += other.failures;
        self.errors += other.errors;
    }

    fn attributes(&self) -> String {
        format!("tests=\"{}\" failures=\"{}\" errors=\"{}\"", self.tests, self.failures, self.errors)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failure,
    Error,
}

fn outcome(finding: &Reported, fail_on: Severity) -> Outcome {
    match finding.rule {
        Rule::File(_) if finding.rule.severity() == Severity::Error => Outcome::Error,
        rule if rule.severity() >= fail_on => Outcome::Failure,
        _ => Outcome::Passed,
    }
}

fn case(out: &mut String, finding: &Reported, fail_on: Severity) {
    let rule = finding.rule;
    let mut name = rule.id().to_owned();
    if let Some(line) = finding.at.line {
        let _ = write!(name, " at line {line}");
    }
    if !finding.at.element.is_empty() {
        let _ = write!(name, ": {}", finding.at.element);
    }
    let file = escape(&finding.at.file.display().to_string());
    let other = finding.because_of.as_ref();
    let because = other.map(|other| format!("\nbecause of: {}", place(other))).unwrap_or_default();
    let detail = format!("{}{because}\nwhy: {}\ninstead: {}", headline(finding), rule.why(), finding.instead);
    let (detail, what) = (escape(&detail), escape(&finding.what));
    let _ = writeln!(out, "    <testcase classname=\"{file}\" name=\"{}\" time=\"0\">", escape(&name));
    let element = match outcome(finding, fail_on) {
        Outcome::Passed => None,
        Outcome::Failure => Some("failure"),
        Outcome::Error => Some("error"),
    };
    let _ = match element {
        Some(tag) => writeln!(out, "      <{tag} type=\"{}\" message=\"{what}\">{detail}</{tag}>", rule.id()),
        None => writeln!(out, "      <system-out>{detail}</system-out>"),
    };
    out.push_str("    </testcase>\n");
}

/// XML 1.0 has no way to write most control characters, so they become the replacement character.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' | '\r' => {
                let _ = write!(escaped, "&#{};", c as u32);
            }
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
