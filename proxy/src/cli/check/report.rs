//! Findings as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tollgate_policy::lint::Severity;

use super::input::Located;
use super::{Checked, Reported};

/// Version of the JSON form. Members may be added without changing it.
const JSON_VERSION: u32 = 1;

/// For people: `file:line: severity[rule]: what`, then why and what to do; a count at the end.
pub(super) fn text(checked: &Checked) -> String {
    let mut out = String::new();
    for finding in &checked.findings {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(out, "{}", headline(finding));
        if !finding.at.element.is_empty() {
            let _ = writeln!(out, "  at: {}", finding.at.element);
        }
        if let Some(other) = &finding.because_of {
            let _ = writeln!(out, "  because of: {}", place(other));
        }
        let _ = writeln!(out, "  why: {}", finding.rule.why());
        let _ = writeln!(out, "  instead: {}", finding.instead);
    }
    let _ = writeln!(out, "{}", summary(checked));
    out
}

pub(super) fn headline(finding: &Reported) -> String {
    let rule = finding.rule;
    format!("{}: {}[{}]: {}", place(&finding.at), rule.severity(), rule.id(), finding.what)
}

pub(super) fn place(at: &Located) -> String {
    match at.line {
        Some(line) => format!("{}:{line}", at.file.display()),
        None => at.file.display().to_string(),
    }
}

fn summary(checked: &Checked) -> String {
    let count = |number: usize, one: &str, more: &str| match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {more}"),
    };
    let policies = count(checked.policies, "policy", "policies");
    let held = match (checked.policies, checked.tenants) {
        (_, 0) => policies,
        (0, tenants) => count(tenants, "tenant", "tenants"),
        (_, tenants) => format!("{policies} and {}", count(tenants, "tenant", "tenants")),
    };
    format!(
        "{} with {}: {}, {}, {}",
        count(checked.files.len(), "file", "files"),
        held,
        count(checked.count(Severity::Error), "error", "errors"),
        count(checked.count(Severity::Warning), "warning", "warnings"),
        count(checked.count(Severity::Note), "note", "notes"),
    )
}

/// For programs: one object, described in `docs/policy-check.md`.
pub(super) fn json(checked: &Checked) -> String {
    let object = json!({
        "version": JSON_VERSION,
        "findings": checked.findings.iter().map(finding).collect::<Vec<_>>(),
        "summary": {
            "files": checked.files.len(),
            "policies": checked.policies,
            "tenants": checked.tenants,
            "errors": checked.count(Severity::Error),
            "warnings": checked.count(Severity::Warning),
            "notes": checked.count(Severity::Note),
        },
    });
    format!("{object:#}\n")
}

fn finding(finding: &Reported) -> Value {
    let mut object = located(&finding.at);
    object["rule"] = finding.rule.id().into();
    object["severity"] = finding.rule.severity().as_str().into();
    object["what"] = finding.what.as_str().into();
    object["why"] = finding.rule.why().into();
    object["instead"] = finding.instead.as_str().into();
    object["because_of"] = finding.because_of.as_ref().map(located).unwrap_or_default();
    object
}

fn located(at: &Located) -> Value {
    json!({ "file": at.file.display().to_string(), "line": at.line, "element": at.element })
}
