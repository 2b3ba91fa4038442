//! `tollgate status`: what a running proxy says about itself.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{AdminAddress, Exit, Failure, Output, admin_client, asynchronously, print, print_json};
use crate::visible::visible;

/// Show the state of a running proxy
///
/// Policy generation, endpoints, xDS streams, quarantined rules, limits, drain state, and what is wrong with them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  tollgate status --admin unix:run/admin.sock

Exit codes: 0 ready and enforcing everything as written; 1 findings: not ready, rules in quarantine, a control plane \
not connected; 2 bad input; 3 no proxy answers.")]
pub(super) struct Args {
    #[command(flatten)]
    admin: AdminAddress,
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let address = &args.admin.admin;
    let answer = asynchronously(admin_client::get(address, "/status"))?.map_err(Failure::cannot_tell)?;
    let Ok(Value::Object(status)) = serde_json::from_slice(&answer) else {
        let reason =
            format!("admin {address}: /status is not a JSON object; is this the admin endpoint of a Tollgate?");
        return Err(Failure::cannot_tell(reason));
    };
    let findings = findings(&status);
    let exit = match findings.is_empty() {
        true => Exit::Fine,
        false => Exit::Findings,
    };
    match args.output {
        Output::Json => print_json(&Value::Object(status))?,
        Output::Text => print(&text(&status, &findings))?,
    };
    Ok(exit)
}

/// What an operator has to look at.
fn findings(status: &Map<String, Value>) -> Vec<String> {
    let mut findings = Vec::new();
    if status.get("ready") == Some(&Value::Bool(false)) {
        let waiting: Vec<String> = list(status.get("waiting_for")).iter().map(inline).collect();
        findings.push(format!("not ready: waits for {}", waiting.join(", ")));
    }
    let policy = status.get("policy");
    for (member, meaning) in [
        ("refused", "policy refused"),
        ("quarantined", "not enforced as written"),
        ("conflicts", "claimed by several policies"),
        ("missing_secrets", "secret missing, so the rules that need it admit nothing"),
    ] {
        for item in list(policy.and_then(|policy| policy.get(member))) {
            findings.push(format!("{meaning}: {}", inline(item)));
        }
    }
    for item in list(status.get("tenants").and_then(|tenants| tenants.get("refused"))) {
        let meaning = match item.get("whole") {
            Some(Value::Bool(false)) => "tenant in force but for one part",
            _ => "tenant set aside, so its endpoints are tenants of their own",
        };
        findings.push(format!("{meaning}: {}", inline(item)));
    }
    for item in list(status.get("listeners_not_served")) {
        findings.push(format!("listener not served as the control plane asks: {}", inline(item)));
    }
    for stream in list(status.get("xds")) {
        let says = |member: &str, value: bool| stream.get(member) == Some(&Value::Bool(value));
        if says("connected", false) && !says("wanted", false) {
            let member = |name: &str| stream.get(name).map(inline).unwrap_or_default();
            findings.push(format!("control plane not connected: {}: {}", member("type_url"), member("last_error")));
        }
    }
    findings
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whatever the proxy says is shown, also what a later version adds; findings come last, where they are seen.
fn text(status: &Map<String, Value>, findings: &[String]) -> String {
    let mut out = String::new();
    members(&mut out, status, 0);
    for finding in findings {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(out, "! {finding}");
    }
    out
}

/// One member per line; lists and nested mappings below their names.
fn members(out: &mut String, object: &Map<String, Value>, indent: usize) {
    for (name, value) in object {
        match value {
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let _ = writeln!(out, "{:indent$}{name}:", "");
                for item in items {
                    let _ = writeln!(out, "{:indent$}  - {}", "", inline(item));
                }
            }
            Value::Object(below) if below.values().any(|value| value.is_object() || value.is_array()) => {
                let _ = writeln!(out, "{:indent$}{name}:", "");
                members(out, below, indent + 2);
            }
            other => {
                let (name, shown) = member(name, other);
                let _ = writeln!(out, "{:indent$}{name}: {shown}", "");
            }
        }
    }
}

/// Name and value for people: `age_ms: 90500` is `age: 90.5s`.
fn member<'a>(name: &'a str, value: &Value) -> (&'a str, String) {
    match (name.strip_suffix("_ms"), value.as_f64()) {
        (Some(name), Some(milliseconds)) => (name, format!("{:.1}s", milliseconds / 1000.0)),
        (Some(name), None) => (name, inline(value)),
        _ => (name, inline(value)),
    }
}

/// One value on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        // A peer's message must not steer a terminal.
        Value::String(text) => visible(text).into_owned(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::Object(members) if members.is_empty() => "none".to_owned(),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| {
                let (name, shown) = member(name, value);
                match value {
                    Value::Array(_) | Value::Object(_) => format!("{name}=({shown})"),
                    Value::String(text) if text.contains(' ') => format!("{name}=\"{shown}\""),
                    _ => format!("{name}={shown}"),
                }
            });
            members.collect::<Vec<_>>().join(" ")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            other => panic!("an object, not {other}"),
        }
    }

    #[test]
    fn a_healthy_proxy_has_no_findings_and_every_member_is_shown() {
        let status = object(json!({
            "ready": true,
            "waiting_for": [],
            "policy": { "generation": 7, "age_ms": 90_500, "quarantined": [], "source": { "xds": "unix:x" } },
            "flow_records_lost": { "forwarded": 0, "denied": 0 },
            "xds": [{ "type_url": "t", "connected": true, "accepted_age_ms": null, "last_error": null }],
        }));
        let findings = findings(&status);
        assert_eq!(findings, Vec::<String>::new());
        assert_eq!(
            text(&status, &findings),
            "ready: yes\n\
             waiting_for: none\n\
             policy:\n  generation: 7\n  age: 90.5s\n  quarantined: none\n  source: xds=unix:x\n\
             flow_records_lost: forwarded=0 denied=0\n\
             xds:\n  - type_url=t connected=yes accepted_age=- last_error=-\n"
        );
    }

    #[test]
    fn what_an_operator_must_look_at_is_a_finding() {
        let status = object(json!({
            "ready": false,
            "waiting_for": ["first policy", "listener ingress"],
            "policy": {
                "refused": [{ "name": "9", "reason": "endpoint_ips: is empty" }],
                "quarantined": [{ "rule": "69", "element": "port", "reason": "\u{1b}[31mb\u{202e}ad" }],
                "conflicts": [{ "endpoint": "10.0.0.1", "enforced": ["1", "2"] }],
                "missing_secrets": [{ "name": "token", "reason": "is not delivered" }],
            },
            "listeners_not_served": [{ "name": "lb", "reason": "no cleartext" }],
            "xds": [
                { "type_url": "t", "wanted": true, "connected": false, "last_error": "refused by peer" },
                { "type_url": "u", "wanted": false, "connected": false, "last_error": null },
            ],
        }));
        assert_eq!(
            findings(&status),
            [
                "not ready: waits for first policy, listener ingress",
                "policy refused: name=9 reason=\"endpoint_ips: is empty\"",
                "not enforced as written: rule=69 element=port reason=\\u{1b}[31mb\\u{202e}ad",
                "claimed by several policies: endpoint=10.0.0.1 enforced=(1, 2)",
                "secret missing, so the rules that need it admit nothing: name=token reason=\"is not delivered\"",
                "listener not served as the control plane asks: name=lb reason=\"no cleartext\"",
                "control plane not connected: t: refused by peer",
            ]
        );
    }
}
