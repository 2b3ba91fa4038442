//! `tollgate flows`: what a running proxy decided, newest last. Records come worker by worker; here they are put in order,
//! unless they are followed.

use std::io::{self, Write as _};

use http_body_util::BodyExt as _;
use serde_json::Value;
use tollgate_proto::nearest::nearest;

use super::{AdminAddress, Exit, Failure, Output, admin_client, asynchronously, print};
use crate::visible::visible;

/// Show flow records of a running proxy
///
/// One line per request or connection: time, verdict, addresses, request, and for a refusal its reason and the rule
/// that came closest.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  tollgate flows --denied --admin unix:run/admin.sock

Exit codes: 0 shown, also when there are none; 2 bad input; 3 no proxy answers, or it went away while following.")]
pub(super) struct Args {
    #[command(flatten)]
    admin: AdminAddress,
    /// Go on with new records until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only what policy refused, or what was no proper request; limits are no denials
    #[arg(long)]
    denied: bool,
    /// Only what a limit refused; with --denied, both
    #[arg(long)]
    limited: bool,
    /// Only what a limit in shadow would have refused, or held back; with --denied or --limited, those too
    #[arg(long)]
    would_limit: bool,
    /// Only what this tenant pays for
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Begin with this many of the latest records [default: 100, with --follow 0]
    #[arg(short = 'n', long, value_name = "COUNT")]
    limit: Option<u32>,
    /// How to print it: text, or the JSON lines as they are
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    asynchronously(show(args))?
}

async fn show(args: &Args) -> Result<Exit, Failure> {
    let address = &args.admin.admin;
    if args.follow
        && let Some(why) = unknown_tenant(args).await
    {
        // It may come yet. A standard error that is closed keeps nobody from following.
        let _ = writeln!(io::stderr(), "tollgate: warning: {why}");
    }
    let response = admin_client::open(address, &path(args)).await.map_err(Failure::cannot_tell)?;
    let mut body = response.into_body();
    let (mut partial, mut kept) = (Vec::new(), String::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::cannot_tell(format_args!("admin {address}: the flow records break off: {error}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        partial.extend_from_slice(&data);
        let Some(end) = partial.iter().rposition(|byte| *byte == b'\n') else {
            continue;
        };
        let rest = partial.split_off(end + 1);
        let lines = String::from_utf8_lossy(&partial).into_owned();
        partial = rest;
        if !args.follow {
            kept += &lines;
        } else if !show_lines(lines.lines(), args)? {
            return Ok(Exit::Fine);
        }
    }
    if args.follow {
        return Err(Failure::cannot_tell(format_args!("admin {address}: the proxy went away")));
    }
    // One that is gone may have records still, and one that is there none yet.
    if kept.is_empty()
        && let Some(why) = unknown_tenant(args).await
    {
        return Err(Failure::bad_input(why));
    }
    show_lines(in_order(&kept).into_iter(), args).map(|_| Exit::Fine)
}

/// Why there is nothing of the tenant that is asked for: nobody is called so. `None` where that cannot be told.
async fn unknown_tenant(args: &Args) -> Option<String> {
    let wanted = args.tenant.as_deref()?;
    let answer = admin_client::get(&args.admin.admin, "/tenants").await.ok()?;
    let shown: Value = serde_json::from_slice(&answer).ok()?;
    let names: Vec<&str> = shown["tenants"].as_array()?.iter().filter_map(|tenant| tenant["name"].as_str()).collect();
    (!names.contains(&wanted)).then(|| misspelt(wanted, &names))
}

fn misspelt(wanted: &str, names: &[&str]) -> String {
    let wanted = wanted.escape_debug();
    match nearest(&wanted.to_string(), names) {
        Some(near) => format!("--tenant: no tenant is called \"{wanted}\"; did you mean \"{}\"?", near.escape_debug()),
        None => format!("--tenant: no tenant is called \"{wanted}\"; `tollgate tenants --all` names all"),
    }
}

/// Returns whether anybody still reads.
fn show_lines<'l>(lines: impl Iterator<Item = &'l str>, args: &Args) -> Result<bool, Failure> {
    print(&match args.output {
        Output::Json => lines.map(|line| format!("{line}\n")).collect::<String>(),
        Output::Text => lines.map(|line| visible(&text(line)).into_owned() + "\n").collect(),
    })
}

/// The lines by the time at which they begin. Times are of one length, so that their text tells; what has none stays first.
fn in_order(lines: &str) -> Vec<&str> {
    let time = |line: &&str| {
        let record: Option<Value> = serde_json::from_str(line).ok();
        record.and_then(|record| record["time"].as_str().map(ToOwned::to_owned))
    };
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_by_cached_key(time);
    lines
}

fn path(args: &Args) -> String {
    let mut query = Vec::new();
    if args.follow {
        query.push("follow=1".to_owned());
    }
    if args.denied {
        query.push("denied=1".to_owned());
    }
    if args.limited {
        query.push("limited=1".to_owned());
    }
    if args.would_limit {
        query.push("would_limit=1".to_owned());
    }
    if let Some(tenant) = &args.tenant {
        query.push(format!("tenant={}", percent_encode(tenant)));
    }
    if let Some(limit) = args.limit {
        query.push(format!("limit={limit}"));
    }
    match query.is_empty() {
        true => "/flows".to_owned(),
        false => format!("/flows?{}", query.join("&")),
    }
}

/// Everything but what may stand in a query as it is.
fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'/');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// One record for people. What the line does not have is left out; a line that is no record is shown as it is.
fn text(line: &str) -> String {
    let Ok(record) = serde_json::from_str::<Value>(line) else {
        return line.to_owned();
    };
    if let Some(lost) = record.pointer("/lost_events/num_events_lost") {
        return format!("{lost} records were lost: this reader was too slow");
    }
    let word = |pointer: &str| match record.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let socket = |address: String, port: String| match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    };
    let mut out = format!(
        "{} {:9} {:7} {} ({}) -> {} ({})",
        word("/time"),
        word("/verdict"),
        word("/traffic_direction").to_lowercase(),
        socket(word("/IP/source"), word("/l4/TCP/source_port")),
        word("/source/identity"),
        socket(word("/IP/destination"), word("/l4/TCP/destination_port")),
        word("/destination/identity"),
    );
    if record.pointer("/l7/http").is_some() {
        let request = [word("/l7/http/protocol"), word("/l7/http/method"), word("/l7/http/url"), word("/l7/http/code")];
        out += &format!(" {}", request.join(" "));
    }
    if record.get("tenant").is_some() {
        out += &format!(" tenant={}", word("/tenant"));
    }
    if let Some(held_back) = record["paced_us"].as_u64() {
        out += &format!(" paced={}", milliseconds(held_back));
    }
    out += &why(&record, word);
    let rule = |path: &str, name: &str| match record.pointer(name) {
        // As JSON, so that a name with quotes or line ends stays one word on one line.
        Some(name) => format!("{} {name}", word(path)),
        None => word(path),
    };
    if record.pointer("/policy/nearest_miss").is_some() {
        out += &format!(
            " nearest: {} is not {} ({})",
            word("/policy/nearest_miss/field"),
            word("/policy/nearest_miss/expected"),
            rule("/policy/nearest_miss/rule", "/policy/nearest_miss/name"),
        );
    } else if record.pointer("/policy/rule").is_some() {
        out += &format!(" rule={}", rule("/policy/rule", "/policy/rule_name"));
    }
    for (list, label) in [("missing_headers", "missing"), ("rejected_headers", "rejected")] {
        let Some(headers) = record.pointer(&format!("/l7/http/{list}")).and_then(Value::as_array) else { continue };
        let names: Vec<_> = headers.iter().filter_map(|header| header["key"].as_str()).collect();
        out += &format!(" {label}={}", names.join(","));
    }
    out
}

/// Of microseconds.
fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03}ms", microseconds / 1000, microseconds % 1000)
}

/// Why it ended as it did, and which limit it would have met. The detail is about the first of the two that there is.
fn why(record: &Value, word: impl Fn(&str) -> String) -> String {
    let detail = record.get("detail").map(|_| format!(" ({})", word("/detail")));
    let said = ["reason", "would_limit"].into_iter().filter(|name| record.get(name).is_some());
    let said = said.map(|name| format!(" {name}={}", word(&format!("/{name}")))).enumerate();
    said.map(|(at, text)| if at == 0 { text + detail.as_deref().unwrap_or_default() } else { text }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line_with_its_reason_and_nearest_rule() {
        let line = r#"{"time":"2026-01-02T03:04:05.678901Z","verdict":"DROPPED","IP":{"source":"10.0.0.1",
            "destination":"fd00::2","ipVersion":"IPv6"},"l4":{"TCP":{"source_port":40000,"destination_port":5000}},
            "source":{"identity":32226},"destination":{"identity":0},"traffic_direction":"INGRESS","Type":"L7",
            "l7":{"type":"REQUEST","http":{"code":403,"method":"GET","url":"http://h/hello3","protocol":"HTTP/1.1"}},
            "policy":{"generation":3,
            "nearest_miss":{"rule":"69 ingress","field":":path","expected":"regex \"/hello\""}},
            "reason":"request_not_allowed"}"#;
        assert_eq!(
            text(line),
            "2026-01-02T03:04:05.678901Z DROPPED   ingress 10.0.0.1:40000 (32226) -> [fd00::2]:5000 (0) HTTP/1.1 GET \
             http://h/hello3 403 reason=request_not_allowed nearest: :path is not regex \"/hello\" (69 ingress)"
        );
    }

    #[test]
    fn rules_have_their_names_and_header_matches_their_fields() {
        let line = r#"{"time":"T","verdict":"FORWARDED","IP":{"source":"10.0.0.1","destination":"10.0.0.2"},
            "l4":{"TCP":{"source_port":1,"destination_port":2}},"source":{"identity":3},"destination":{"identity":0},
            "traffic_direction":"INGRESS","l7":{"http":{"code":200,"method":"GET","url":"/","protocol":"HTTP/2",
            "missing_headers":[{"key":"x-a","value":""},{"key":"x-b","value":"1"}],
            "rejected_headers":[{"key":"x-c","value":"2"}]}},"policy":{"rule":"69 ingress","rule_name":"to \"admin\""}}"#;
        let expected = "T FORWARDED ingress 10.0.0.1:1 (3) -> 10.0.0.2:2 (0) HTTP/2 GET / 200 rule=69 ingress \
                        \"to \\\"admin\\\"\" missing=x-a,x-b rejected=x-c";
        assert_eq!(text(line), expected);
        let line = r#"{"policy":{"nearest_miss":{"rule":"69 ingress","name":"n","field":"x","expected":"present"}}}"#;
        assert!(text(line).ends_with(" nearest: x is not present (69 ingress \"n\")"), "{}", text(line));
    }

    #[test]
    fn who_is_held_back_is_told_from_who_is_slow() {
        let line = r#"{"tenant":"a","paced_us":1500023,"paced_by":"tenant_bandwidth"}"#;
        assert!(text(line).ends_with(" tenant=a paced=1500.023ms"), "{}", text(line));
    }

    #[test]
    fn a_name_that_nobody_has_is_no_empty_answer() {
        let names = ["_unknown", "team-a", "endpoint-69"];
        assert_eq!(misspelt("taem-a", &names), "--tenant: no tenant is called \"taem-a\"; did you mean \"team-a\"?");
        let far = misspelt("x\n", &names);
        assert_eq!(far, "--tenant: no tenant is called \"x\\n\"; `tollgate tenants --all` names all");
    }

    #[test]
    fn what_a_shadow_would_have_done_is_said_beside_what_was() {
        let said = |members: &str| text(&format!("{{{members}}}")).split_once("-> : () ").unwrap().1.to_owned();
        let would = r#""would_limit":"tenant_rate""#;
        let alone = format!(r#"{would},"detail":"ceilings.requests: 1/s, burst 4""#);
        assert_eq!(said(&alone), "would_limit=tenant_rate (ceilings.requests: 1/s, burst 4)");
        let both = format!(r#""reason":"bad_authority",{would},"detail":"two""#);
        assert_eq!(said(&both), "reason=bad_authority (two) would_limit=tenant_rate");
    }

    #[test]
    fn records_of_several_workers_are_in_the_order_of_time() {
        let line = |time: u32, worker: u32| format!("{{\"time\":\"2026-01-02T03:04:0{time}Z\",\"worker\":{worker}}}\n");
        let came = [line(3, 0), line(5, 0), line(1, 1), line(3, 1), "{\"lost_events\":{}}\n".to_owned()].concat();
        let shown = in_order(&came);
        assert_eq!(shown[0], "{\"lost_events\":{}}");
        let expected: Vec<String> = [line(1, 1), line(3, 0), line(3, 1), line(5, 0)].into();
        assert_eq!(shown[1..], expected.iter().map(|line| line.trim_end()).collect::<Vec<_>>());
    }

    #[test]
    fn losses_are_said_and_other_lines_are_kept() {
        let lost = r#"{"lost_events":{"source":"FOLLOWER","num_events_lost":7}}"#;
        assert_eq!(text(lost), "7 records were lost: this reader was too slow");
        assert_eq!(text("not JSON"), "not JSON");
    }
}
