//! `tollgate status`: what a running proxy says about itself.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{AdminAddress, Exit, Failure, Output, admin_client, asynchronously, print, print_json};

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
        let waiting: Vec<String> = list(status, "waiting_for").iter().map(inline).collect();
        findings.push(format!("not ready: waits for {}", waiting.join(", ")));
    }
    for quarantine in list(status, "quarantined") {
        findings.push(format!("quarantined: {}", inline(quarantine)));
    }
    for conflict in list(status, "conflicts") {
        findings.push(format!("claimed by several policies: {}", inline(conflict)));
    }
    for stream in list(status, "xds_streams") {
        if stream.get("connected") == Some(&Value::Bool(false)) {
            let member = |name: &str| stream.get(name).map(inline).unwrap_or_default();
            findings
                .push(format!("not connected: {} {}", member("type_url"), member("last_error")).trim_end().to_owned());
        }
    }
    findings
}

fn list<'a>(status: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    status.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Every member on a line of its own, lists and tables below their names, so that whatever the proxy says is shown.
fn text(status: &Map<String, Value>, findings: &[String]) -> String {
    let width = status.keys().map(String::len).max().unwrap_or_default();
    let mut out = String::new();
    for (name, value) in status {
        match value {
            Value::Array(items) if !items.is_empty() => {
                // Writing to a string cannot fail.
                let _ = writeln!(out, "{name}");
                for item in items {
                    let _ = writeln!(out, "  {}", inline(item));
                }
            }
            other => {
                let _ = writeln!(out, "{name:width$}  {}", inline(other));
            }
        }
    }
    for finding in findings {
        let _ = writeln!(out, "! {finding}");
    }
    out
}

/// One value on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        // Control characters of a peer's message must not reach a terminal.
        Value::String(text) => text.chars().flat_map(printable).collect(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::Object(members) if members.is_empty() => "none".to_owned(),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| match value {
                Value::Array(_) | Value::Object(_) => format!("{name}=({})", inline(value)),
                Value::String(text) if text.contains(' ') => {
                    format!("{name}=\"{}\"", inline(value))
                }
                _ => format!("{name}={}", inline(value)),
            });
            members.collect::<Vec<_>>().join(" ")
        }
    }
}

fn printable(c: char) -> impl Iterator<Item = char> {
    let (escaped, plain) = match c.is_control() {
        true => (Some(c.escape_default()), None),
        false => (None, Some(c)),
    };
    escaped.into_iter().flatten().chain(plain)
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
            "generation": 7,
            "quarantined": [],
            "flow_records_lost": { "forwarded": 0, "denied": 0 },
            "xds_streams": [{ "type_url": "t", "connected": true, "last_error": null }],
        }));
        let findings = findings(&status);
        assert_eq!(findings, Vec::<String>::new());
        assert_eq!(
            text(&status, &findings),
            "ready              yes\n\
             generation         7\n\
             quarantined        none\n\
             flow_records_lost  forwarded=0 denied=0\n\
             xds_streams\n  type_url=t connected=yes last_error=-\n"
        );
    }

    #[test]
    fn what_an_operator_must_look_at_is_a_finding() {
        let status = object(json!({
            "ready": false,
            "waiting_for": ["first policy", "listener ingress"],
            "quarantined": ["69 ingress_per_port_policies[0].port: \u{1b}[31mbad"],
            "conflicts": [{ "key": "10.0.0.1", "enforced": ["1", "2"] }],
            "xds_streams": [{ "type_url": "t", "connected": false, "last_error": "refused by peer" }],
        }));
        assert_eq!(
            findings(&status),
            [
                "not ready: waits for first policy, listener ingress",
                "quarantined: 69 ingress_per_port_policies[0].port: \\u{1b}[31mbad",
                "claimed by several policies: key=10.0.0.1 enforced=(1, 2)",
                "not connected: t refused by peer",
            ]
        );
    }
}
