//! Limits in shadow refuse nothing, and each record says which of them it would have met: whoever tries limits out sees whom they would hit.

use std::process::Command;

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, get as stream_of};
use tollgate_tests::proxy::Proxy;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::bandwidth::{Two, ask, get};
use super::tenants::connect;

fn flows(proxy: &Proxy, query: &str) -> Vec<Value> {
    let (_, body) = proxy.get(&format!("/flows?{query}"));
    body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a command says about the proxy of this site.
fn says(site: &Site, command: &[&str]) -> String {
    let admin = format!("unix:{}", site.path("admin.sock").display());
    let program = env!("CARGO_BIN_EXE_tollgate-under-test");
    let output = Command::new(program).args(command).args(["--admin", &admin]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An entry of `/tenants`.
fn shown(proxy: &Proxy, tenant: &str) -> Value {
    let shown: Value = serde_json::from_str(&proxy.get("/tenants").1).unwrap();
    shown["tenants"].as_array().unwrap().iter().find(|entry| entry["name"] == tenant).unwrap().clone()
}

/// Nothing became of it but what would have become of it without limits.
fn expect_marked(record: &Value, reason: Reason, detail: &str) {
    assert_eq!((&record["verdict"], &record["reason"]), (&json!("FORWARDED"), &Value::Null), "{record}");
    assert_eq!((&record["would_limit"], &record["detail"]), (&json!(reason.code()), &json!(detail)), "{record}");
}

#[test]
fn a_request_that_would_have_been_refused_is_served_and_marked() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "shadow: true, ceilings: { header: 1KiB }", "");
    let long = format!("GET /allowed/1 HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "x".repeat(1024));
    let (mut busy, mut calm) = (connect(two.busy, two.proxy.http()), connect(two.calm, two.proxy.http()));
    for request in [&get("/allowed/0"), &long, &get("/allowed/2"), &long.replace("/allowed/1", "/denied")] {
        let expected = if request.contains("/denied") { 403 } else { 200 };
        assert_eq!(ask(&mut busy, request).status(), expected);
    }
    assert_eq!(ask(&mut calm, &long).status(), 200);
    let records = two.records("busy", 4);
    let marks: Vec<&Value> = records.iter().map(|record| &record["would_limit"]).collect();
    let mark = json!("tenant_headers");
    assert_eq!(marks, [&Value::Null, &mark, &Value::Null, &mark]);
    expect_marked(&records[1], Reason::TenantHeaders, "ceilings.header: 1024 bytes");
    assert_eq!(records[3]["reason"], "request_not_allowed", "policy speaks after limits");
    assert_eq!(two.records("endpoint-8", 1)[0]["would_limit"], Value::Null);
    // Who looks for them finds them, and only them.
    let found = |query| flows(&two.proxy, query).len();
    assert_eq!((found("would_limit=1"), found("limited=1"), found("denied=1")), (2, 0, 1));
    assert_eq!((found("would_limit=1&denied=1"), found("would_limit=1&tenant=endpoint-8")), (2, 0));
    let text = says(&site, &["flows", "--would-limit", "--tenant", "busy"]);
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains(" would_limit=tenant_headers (ceilings.header: 1024 bytes)"), "{text}");
    // Each is counted, apart from what policy denied and limits refused.
    let counts = |tenant| ["denied", "limited", "would_limit"].map(|key| shown(&two.proxy, tenant)[key].clone());
    assert_eq!(counts("busy"), [1, 0, 2].map(Value::from));
    assert_eq!(counts("endpoint-8"), [0, 0, 0].map(Value::from));
    let table = says(&site, &["tenants", "--once", "--sort", "shadow"]);
    let words = |line: usize| table.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
    let head = table.lines().next().unwrap().replace("IN FLIGHT", "IN_FLIGHT");
    let column = |name: &str| words(1)[head.split_whitespace().position(|word| word == name).unwrap()];
    assert_eq!(["TENANT", "DENIED", "LIMITED", "SHADOW", "SHARE"].map(column), ["busy", "1", "0", "2", "100.0%"]);
}

#[test]
fn a_connection_that_would_have_been_refused_is_marked_in_its_first_record() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "shadow: true, ceilings: { connections: 1 }", "");
    let mut open = [0, 1].map(|_| connect(two.busy, two.proxy.http()));
    for path in ["/allowed/0", "/allowed/1"] {
        for client in &mut open {
            assert_eq!(ask(client, &get(path)).status(), 200);
        }
    }
    let records = two.records("busy", 4);
    let marked = flows(&two.proxy, "would_limit=1");
    assert_eq!((records.len(), marked.len()), (4, 1));
    expect_marked(&marked[0], Reason::TenantConnections, "ceilings.connections: 1");
    assert!(marked[0]["l7"]["http"]["url"].as_str().unwrap().ends_with("/allowed/0"), "{}", marked[0]);
    assert_eq!(shown(&two.proxy, "busy")["would_limit"], 1);
}

#[test]
fn a_connection_to_an_upstream_that_would_have_been_refused_is_marked() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "shadow: true, ceilings: { upstream_connections: 1 }", "");
    let mut first = connect(two.busy, two.proxy.http());
    assert_eq!(ask(&mut first, &get("/allowed/0")).status(), 200);
    let expect = |count: usize| {
        let marked = until("the records", || {
            let marked = flows(&two.proxy, "would_limit=1");
            (marked.len() >= count).then_some(marked)
        });
        assert_eq!(marked.len(), count);
        assert!(marked.iter().all(|record| record["would_limit"] == Reason::TenantUpstreams.code()), "{marked:?}");
    };
    // HTTP/1: the request that it was opened for, and none after it.
    let mut second = connect(two.busy, two.proxy.http());
    (0..2).for_each(|_| assert_eq!(ask(&mut second, &get("/allowed/1")).status(), 200));
    two.records("busy", 3);
    expect(1);
    // Bytes.
    let mut bytes = connect(two.busy, two.proxy.tcp());
    bytes.send(get("/allowed/2"));
    bytes.read_message();
    drop(bytes);
    expect(2);
    // HTTP/2, whose upstream here speaks none: the record tells of both.
    let mut third = connect(two.busy, two.proxy.http());
    third.send(CLIENT_START);
    third.send(stream_of(1));
    expect(3);
    assert_eq!(shown(&two.proxy, "busy")["would_limit"], 3);
}
