use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;
use tollgate_policy::{Direction, HeaderLog, NearestMiss, RuleRef, SecurityId};

use super::*;
use crate::reason::Reason;
use crate::tenant::Names;

const RULE: RuleRef =
    RuleRef { endpoint_id: 69, direction: Direction::Ingress, port_entry: 0, rule: Some(1), http_rule: None };

fn denied(method: &[u8], authority: &[u8], path: &[u8]) -> Sequenced {
    let mut record = FlowRecord::for_test(Outcome::Denied);
    record.time = SystemTime::UNIX_EPOCH + Duration::new(951_782_400, 7);
    record.duration_us = 1500;
    (record.cpu_us, record.queue_us, record.paced_us) = (Some(70), Some(8), 9);
    record.reason = Some(Reason::RequestNotAllowed);
    record.generation = 4;
    record.protocol = Protocol::Http11;
    record.source = SecurityId(32226);
    record.http = Some(HttpRecord::new(method, authority, path));
    record.http.as_mut().unwrap().status = 403;
    record.nearest_miss = Some(Box::new(NearestMiss {
        rule: RULE,
        name: None,
        field: ":path".into(),
        expected: r#"regex "/hello""#.into(),
        matched: vec![":method".into()],
    }));
    Sequenced { worker: 1, seq: 9, record: Box::new(record) }
}

fn line(item: &Sequenced) -> String {
    let mut out = Vec::new();
    write_line(&mut out, item, &Names::default().load());
    String::from_utf8(out).unwrap()
}

fn parse(item: &Sequenced) -> Value {
    serde_json::from_str(&line(item)).unwrap()
}

#[test]
fn a_denied_request_has_hubbles_shape() {
    assert_eq!(
        parse(&denied(b"GET", b"helloworld:5000", b"/hello3?a=b")),
        serde_json::json!({
            "time": "2000-02-29T00:00:00.000000007Z",
            "verdict": "DROPPED",
            "IP": { "source": "10.244.1.17", "destination": "10.244.2.232", "ipVersion": "IPv4" },
            "l4": { "TCP": { "source_port": 40000, "destination_port": 5000 } },
            "source": { "identity": 32226 },
            "destination": { "identity": 0 },
            "traffic_direction": "INGRESS",
            "Type": "L7",
            "l7": {
                "type": "REQUEST",
                "latency_ns": "1500000",
                "http": {
                    "code": 403, "method": "GET", "url": "http://helloworld:5000/hello3?a=b", "protocol": "HTTP/1.1",
                },
            },
            "policy": {
                "generation": 4,
                "name": "69",
                "nearest_miss": {
                    "rule": "69 ingress_per_port_policies[0].rules[1]",
                    "field": ":path",
                    "expected": "regex \"/hello\"",
                    "matched": [":method"],
                },
            },
            "reason": "request_not_allowed",
            "listener": "ingress",
            "tenant": "_unknown",
            "bytes_up": 0,
            "bytes_down": 0,
            "duration_us": 1500,
            "cpu_us": 70,
            "queue_us": 8,
            "paced_us": 9,
            "paced_by": "tenant_bandwidth",
            "worker": 1,
            "seq": 9,
        })
    );
}

#[test]
fn what_header_matches_found_is_told() {
    let logged = |name: &str, value: &[u8]| LoggedHeader { name: name.into(), value: value.into() };
    let mut item = denied(b"GET", b"a", b"/");
    item.record.rule = Some(RULE);
    item.record.rule_name = Some("only \"admins\"".into());
    item.record.keep_header_log(Some(Box::new(HeaderLog {
        missing: vec![logged("x-user", b""), logged("authorization", b"[redacted]")],
        rejected: Vec::new(),
    })));
    let json = parse(&item);
    let missing = serde_json::json!([{"key": "x-user", "value": ""}, {"key": "authorization", "value": "[redacted]"}]);
    assert_eq!(json["l7"]["http"]["missing_headers"], missing);
    assert_eq!(json["l7"]["http"]["rejected_headers"], Value::Null);
    assert_eq!(json["policy"]["rule_name"], "only \"admins\"");

    let many = (0..100).map(|n| logged(&format!("x-{n}"), &[b'\n'; 1000])).collect();
    item.record.keep_header_log(Some(Box::new(HeaderLog { missing: Vec::new(), rejected: many })));
    let json = parse(&item);
    assert_eq!(json["l7"]["http"]["missing_headers"], Value::Null);
    let rejected = json["l7"]["http"]["rejected_headers"].as_array().unwrap();
    assert_eq!(rejected.len(), FlowRecord::MAX_LOGGED_FIELDS);
    let value = unescape(rejected[31]["value"].as_str().unwrap()).unwrap();
    assert_eq!((&rejected[31]["key"], value), (&Value::from("x-31"), vec![b'\n'; FlowRecord::MAX_LOGGED_VALUE]));
}

#[test]
fn a_forwarded_connection_names_its_rule_and_upstream() {
    let mut record = FlowRecord::for_test(Outcome::Forwarded);
    record.direction = Direction::Egress;
    record.downstream = "[::ffff:10.0.0.1]:1".parse().unwrap();
    record.original_dst = "[fd00::2]:443".parse().unwrap();
    record.upstream = Some(record.original_dst);
    record.upstream_source = Some("[fd00::1]:2".parse().unwrap());
    record.rule = Some(RULE);
    record.bytes_up = u64::MAX;
    let json = parse(&Sequenced { worker: 0, seq: 0, record: Box::new(record) });
    assert_eq!(json["verdict"], "FORWARDED");
    assert_eq!(json["Type"], "L3_L4");
    assert_eq!(json["IP"], serde_json::json!({"source": "10.0.0.1", "destination": "fd00::2", "ipVersion": "IPv6"}));
    assert_eq!((&json["upstream"], &json["upstream_source"]), (&"[fd00::2]:443".into(), &"[fd00::1]:2".into()));
    assert_eq!(json["policy"]["rule"], "69 ingress_per_port_policies[0].rules[1]");
    assert_eq!(json["bytes_up"], u64::MAX);
    assert_eq!(json["l7"], Value::Null);
}

#[test]
fn a_target_that_is_no_path_stands_alone() {
    assert_eq!(parse(&denied(b"OPTIONS", b"a", b"*"))["l7"]["http"]["url"], "*");
}

#[test]
fn what_a_limit_in_shadow_would_have_refused_says_so() {
    let mut record = FlowRecord::for_test(Outcome::Forwarded);
    record.would_limit = Some(Reason::TenantRate);
    let said = parse(&Sequenced { worker: 0, seq: 0, record: Box::new(record) });
    assert_eq!((&said["verdict"], &said["would_limit"]), (&"FORWARDED".into(), &"tenant_rate".into()));
    assert_eq!(said["reason"], Value::Null);
}

/// Whoever meets a field finds out what it is.
#[test]
fn every_field_and_reason_stands_on_its_page() {
    let page = include_str!("../../../../docs/flow-records.md");
    let written: Vec<&str> = page.split('`').collect();
    let Sequenced { mut record, .. } = *Box::new(denied(b"GET", b"a", b"/"));
    (record.rule, record.rule_name) = (Some(RULE), Some("n".into()));
    (record.detail, record.would_limit) = (Some("d".into()), Some(Reason::TenantRate));
    (record.upstream, record.upstream_source) = (Some(record.original_dst), Some(record.downstream));
    let field = |name: &str| LoggedHeader { name: name.into(), value: b"v".as_slice().into() };
    record.header_log = Some(Box::new(HeaderLog { missing: vec![field("a")], rejected: vec![field("b")] }));
    let said = parse(&Sequenced { worker: 0, seq: 0, record });
    let mut open = vec![&said];
    let mut fields = 0;
    while let Some(value) = open.pop() {
        let members = value.as_object().into_iter().flatten();
        for (name, value) in members {
            let path = [name.clone(), format!("l7.{name}"), format!("l7.http.{name}"), format!("policy.{name}")];
            let stands = path.iter().any(|name| written.contains(&name.as_str()));
            assert!(stands, "docs/flow-records.md does not say what {name} is");
            open.push(value);
            fields += 1;
        }
        open.extend(value.as_array().into_iter().flatten());
    }
    assert!(fields > 45, "{fields}");
    for reason in Reason::ALL {
        assert!(page.contains(&format!("\n| `{}` | ", reason.code())), "docs/flow-records.md has no {}", reason.code());
    }
}

#[test]
fn a_forged_line_stays_inside_its_string() {
    let json = parse(&denied(b"GET\"}\n{\"verdict\":\"FORWARDED", b"a", b"/\x1b[2J\xff\\x41"));
    assert_eq!(json["verdict"], "DROPPED");
    assert_eq!(json["l7"]["http"]["method"], r#"GET"}\x0A{"verdict":"FORWARDED"#);
    assert_eq!(json["l7"]["http"]["url"], r"http://a/\x1B[2J\xFF\\x41");
}

#[test]
fn unescape_refuses_what_was_not_escaped() {
    for broken in [r"\", r"\x", r"\x4", r"\xZZ", r"\n", "\n", "é"] {
        assert_eq!(unescape(broken), None, "{broken:?}");
    }
}

proptest! {
    #[test]
    fn hostile_bytes_come_back(
        method in prop::collection::vec(any::<u8>(), 0..40),
        authority in prop::collection::vec(any::<u8>(), 0..40),
        path in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let path = [b"/".as_slice(), &path].concat();
        let line = line(&denied(&method, &authority, &path));
        prop_assert!(line.is_ascii());
        prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
        let json: Value = serde_json::from_str(&line).unwrap();
        let http = &json["l7"]["http"];
        prop_assert_eq!(unescape(http["method"].as_str().unwrap()).unwrap(), method);
        let url = [b"http://".as_slice(), &authority, &path].concat();
        prop_assert_eq!(unescape(http["url"].as_str().unwrap()).unwrap(), url);
    }

    #[test]
    fn names_are_json_strings(
        name in "\\PC*|[\\x00-\\x{9f}\u{2028}\"\\\\]{0,8}",
        matched in prop::collection::vec(any::<String>(), 0..3),
    ) {
        let mut item = denied(b"GET", b"a", b"/");
        item.record.listener = name.as_str().into();
        let miss = item.record.nearest_miss.as_mut().unwrap();
        miss.name = Some(name.as_str().into());
        miss.matched = matched.iter().map(|text| Arc::from(text.as_str())).collect();
        let line = line(&item);
        prop_assert!(!line.trim_end_matches('\n').contains(|c: char| c.is_control()));
        let json: Value = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(json["listener"].as_str().unwrap(), &name);
        prop_assert_eq!(json["policy"]["nearest_miss"]["name"].as_str().unwrap(), &name);
        let back: Vec<&str> =
            json["policy"]["nearest_miss"]["matched"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        prop_assert_eq!(back, matched);
    }

    #[test]
    fn every_time_is_a_timestamp(seconds in 0_u64..253_402_300_800, nanos in 0_u32..1_000_000_000) {
        let mut item = denied(b"GET", b"a", b"/");
        item.record.time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        let json = parse(&item);
        prop_assert_eq!(humantime::parse_rfc3339(json["time"].as_str().unwrap()).unwrap(), item.record.time);
    }
}

#[test]
fn a_clock_before_1970_does_not_break_the_line() {
    let mut item = denied(b"GET", b"a", b"/");
    item.record.time = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    assert_eq!(parse(&item)["time"], "1970-01-01T00:00:00.000000000Z");
}
