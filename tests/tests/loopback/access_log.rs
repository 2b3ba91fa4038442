//! `access_log: [{ unix: SOCKET }]`: what a reader such as Cilium's agent gets, decoded by Google's protobuf, and what becomes
//! of entries whose reader is slow, gone or a new one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_tests::access_log::AccessLogReader;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::{Upstream, WEBSOCKET_ACCEPTED, websocket_request};
use tollgate_tests::wait::until;

/// Most bytes that an agent reads at once.
const LIMIT: u64 = 4096;

fn socket(site: &Site) -> PathBuf {
    site.path("access_log.sock")
}

/// Everything is logged to [`socket`].
fn options(site: &Site) -> Options {
    let top = format!("access_log: [{{ unix: \"{}\" }}]", socket(site).display());
    Options { top, listener: "http: { request_id: true }, proxy_id: 11750".into(), ..Options::default() }
}

fn fields(list: &Value) -> Vec<(&str, &str)> {
    list.as_array().unwrap().iter().map(|f| (f["key"].as_str().unwrap(), f["value"].as_str().unwrap())).collect()
}

fn field<'e>(entry: &'e Value, name: &str) -> Option<&'e str> {
    fields(&entry["http"]["headers"]).into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn timestamp(entry: &Value) -> Duration {
    Duration::from_nanos(entry["timestamp"].as_str().unwrap().parse().unwrap())
}

/// What an entry says that is neither a time nor random.
fn essence(mut entry: Value) -> Value {
    for key in ["timestamp", "bytes", "source_address"] {
        entry.as_object_mut().unwrap().remove(key);
    }
    let headers = entry["http"]["headers"].as_array_mut().into_iter().flatten();
    for header in headers.filter(|header| header["key"] == "x-request-id" && header["value"] != "mine") {
        header["value"] = "UUID".into();
    }
    entry
}

/// An entry of a request that the first rule admits.
fn expected(site: &Site, kind: &str, http: Value) -> Value {
    json!({
        "is_ingress": true,
        "entry_type": kind,
        "policy_name": site.ip().to_string(),
        "proxy_id": 11750,
        "cilium_rule_ref": match kind {
            "Denied" => "request_not_allowed; nearest: 7 ingress_per_port_policies[0].rules[0].http_rules[0]",
            _ => "7 ingress_per_port_policies[0].rules[0].http_rules[0]",
        },
        "source_security_id": 2,
        "destination_security_id": 0,
        "destination_address": site.at(HTTP_PORT).to_string(),
        "http": http,
    })
}

fn header(key: &str, value: &str) -> Value {
    json!({"key": key, "value": value})
}

#[test]
fn requests_and_answers_are_told_in_order_with_every_field() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::answering(&site, "HTTP/1.1 201 Made\r\nServer: s\r\nContent-Length: 2\r\n\r\nok");
    let reader = AccessLogReader::start(python, &socket(&site));
    let proxy = Proxy::with(&site, upstream.address(), &options(&site), &[usual(&site)]);
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() - Duration::from_secs(2);
    let mut client = Peer::connect(proxy.http());
    client.send("GET /allowed/x?q HTTP/1.1\r\nHost: a:80\r\nX-Forwarded-Proto: https\r\nUser-Agent: u\r\n\r\n");
    assert_eq!(client.read_message().status(), 201);
    let [request, response] = reader.entries(2).try_into().unwrap();
    assert_eq!(request["source_address"], client.local().to_string());
    assert_eq!(response["source_address"], client.local().to_string());
    let id = field(&request, "x-request-id").unwrap();
    assert_eq!(field(&response, "x-request-id"), Some(id));
    assert!(upstream.text().contains(&format!("x-request-id: {id}")), "{}", upstream.text());
    let after = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + Duration::from_secs(2);
    let times = [before, timestamp(&request), timestamp(&response), after];
    assert!(times.is_sorted(), "{times:?}");
    let http = |headers: &[Value], status: u16| {
        json!({
            "http_protocol": "HTTP11", "scheme": "https", "host": "a:80", "path": "/allowed/x?q", "method": "GET",
            "headers": headers, "status": status, "missing_headers": [], "rejected_headers": [],
        })
    };
    let asked = [header(":scheme", "http"), header("user-agent", "u"), header("x-request-id", "UUID")];
    assert_eq!(essence(request), expected(&site, "Request", http(&asked, 0)));
    let answered = [header("x-request-id", "UUID"), header("server", "s"), header("content-length", "2")];
    assert_eq!(essence(response), expected(&site, "Response", http(&answered, 201)));

    client.send("PUT /denied HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nContent-Length: 1\r\n\r\n1");
    assert_eq!(client.read_message().status(), 403);
    let [denied, response] = reader.entries(2).try_into().unwrap();
    let http = |headers: &[Value], status: u16| {
        json!({
            "http_protocol": "HTTP11", "scheme": "http", "host": "a", "path": "/denied", "method": "PUT",
            "headers": headers, "status": status, "missing_headers": [], "rejected_headers": [],
        })
    };
    let asked = [header(":scheme", "http"), header("x-request-id", "mine"), header("content-length", "1")];
    assert_eq!(essence(denied), expected(&site, "Denied", http(&asked, 0)));
    let answered =
        [header("x-request-id", "mine"), header("content-type", "text/plain"), header("content-length", "15")];
    let mut refused = expected(&site, "Response", http(&answered, 403));
    refused["cilium_rule_ref"] = expected(&site, "Denied", json!({}))["cilium_rule_ref"].clone();
    assert_eq!(essence(response), refused);
}

/// Type, path and status of the next entries.
fn told(reader: &AccessLogReader, n: usize) -> Vec<String> {
    let line = |entry: Value| {
        let http = &entry["http"];
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", text(&entry["entry_type"]), text(&http["path"]), http["status"])
    };
    reader.entries(n).into_iter().map(line).collect()
}

/// Each request has one entry and then its answer's, however it ends; a connection has one if it is refused.
#[test]
fn whatever_becomes_of_a_request_it_is_told() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, number| match number {
        0 => {
            peer.read_head();
            peer.send(format!("HTTP/1.1 100 Continue\r\n\r\n{WEBSOCKET_ACCEPTED}"));
            peer.read_to_any_end();
        }
        // No answer.
        1 => drop(peer.read_head()),
        _ => {
            peer.read_head();
            peer.send(b"HTTP/1.1 204 Fine\r\nX-B: a\xFFb\r\n\r\n");
            peer.read_to_any_end();
        }
    });
    let reader = AccessLogReader::start(python, &socket(&site));
    let proxy = Proxy::with(&site, upstream.address(), &options(&site), &[usual(&site)]);
    let connect = || Peer::connect(proxy.http());

    // An open tunnel is told of at once.
    let mut tunnel = connect();
    tunnel.send(websocket_request("/allowed/tunnel"));
    assert_eq!(told(&reader, 2), ["Request /allowed/tunnel 0", "Response /allowed/tunnel 101"]);
    drop(tunnel);

    let mut unanswered = connect();
    unanswered.send("GET /allowed/gone HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(unanswered.read_message().status(), 503);
    assert_eq!(told(&reader, 2), ["Request /allowed/gone 0", "Response /allowed/gone 503"]);

    let mut client = connect();
    client.send("GET /a%2Fb HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_message().status(), 307);
    assert_eq!(told(&reader, 2), ["Request /a/b 0", "Response /a/b 307"]);
    client.send("GET /allowed/1 HTTP/1.0\r\nX-A: \u{1F980}\r\nX-A: 2\r\n\r\n");
    assert_eq!(client.read_head().lines().next(), Some("HTTP/1.1 204 Fine"));
    let [request, response] = reader.entries(2).try_into().unwrap();
    assert_eq!(request["http"]["http_protocol"], "HTTP10");
    let asked: Vec<_> = fields(&request["http"]["headers"]).into_iter().filter(|(name, _)| *name == "x-a").collect();
    assert_eq!(asked, [("x-a", "\u{1F980}"), ("x-a", "2")]);
    assert_eq!(field(&response, "x-b"), Some("a\u{FFFD}b"), "protobuf's texts are UTF-8");

    let mut malformed = connect();
    malformed.send("GET /allowed HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert_eq!(malformed.read_message().status(), 400);
    let [denied, response] = reader.entries(2).try_into().unwrap();
    assert_eq!((&denied["entry_type"], &denied["cilium_rule_ref"]), (&json!("Denied"), &json!("bad_authority")));
    assert_eq!((&response["entry_type"], &response["http"]["status"]), (&json!("Response"), &json!(400)));

    // Bytes that policy lets pass are not told of; a connection that it refuses is.
    let mut bytes = Peer::connect(proxy.tcp());
    bytes.send("\r\n\r\n");
    drop(bytes);
    proxy.expect_flows(6);
    proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("GET", "/")])]))]);
    Peer::expect_reset_at(proxy.tcp(), "hello");
    let denied = reader.entry();
    assert_eq!((&denied["entry_type"], &denied["http"]), (&json!("Denied"), &Value::Null));
    assert_eq!(denied["destination_address"], proxy.tcp().to_string());
    assert_eq!(denied["policy_name"], site.ip().to_string());
}

#[test]
fn http_2_streams_are_told_as_requests() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let reader = AccessLogReader::start(python, &socket(&site));
    let proxy = Proxy::with(&site, address.parse().unwrap(), &options(&site), &[usual(&site)]);
    let url = |path: &str| format!("http://{}{path}", proxy.http());
    let common =
        ["-sS", "--noproxy", "*", "--max-time", "20", "--http2-prior-knowledge", "-H", "X-Forwarded-Proto: wss"];
    for path in ["/allowed/headers", "/denied"] {
        let output = Command::new("curl").args(common).arg(url(path)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let entries = reader.entries(4);
    let kinds: Vec<_> = entries.iter().map(|entry| entry["entry_type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Request", "Response", "Denied", "Response"]);
    for (entry, (path, status)) in
        entries.iter().zip([("/allowed/headers", 0), ("/allowed/headers", 200), ("/denied", 0), ("/denied", 403)])
    {
        let http = &entry["http"];
        assert_eq!((&http["http_protocol"], &http["scheme"]), (&json!("HTTP2"), &json!("wss")));
        assert_eq!((&http["path"], &http["status"], &http["method"]), (&json!(path), &json!(status), &json!("GET")));
        assert_eq!(http["host"], proxy.http().to_string());
    }
    assert!(field(&entries[0], "x-request-id").is_some());
    assert_eq!(field(&entries[1], "x-request-id"), field(&entries[0], "x-request-id"));
}

/// Only the last try's answer went out.
#[test]
fn a_request_that_was_sent_again_is_told_once() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_http_2, http_2) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let http_1 = Upstream::scripted(&site, |peer, connection| {
        peer.read_head();
        peer.send(format!("HTTP/1.1 {} Word\r\nContent-Length: 0\r\n\r\n", if connection == 2 { 200 } else { 503 }));
        peer.read_to_any_end();
    });
    for (upstream, version) in [(http_1.address(), "--http1.1"), (http_2.parse().unwrap(), "--http2-prior-knowledge")] {
        let reader = AccessLogReader::start(python, &socket(&site));
        let options = Options { listener: "http: { retries: 3 }".into(), ..options(&site) };
        let proxy = Proxy::with(&site, upstream, &options, &[usual(&site)]);
        let url = |path: &str| format!("http://{}{path}", proxy.http());
        for path in ["/allowed/fail/2", "/denied"] {
            let common = ["-sS", "--noproxy", "*", "--max-time", "20", version];
            let output = Command::new("curl").args(common).arg(url(path)).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let expected =
            ["Request /allowed/fail/2 0", "Response /allowed/fail/2 200", "Denied /denied 0", "Response /denied 403"];
        assert_eq!(told(&reader, 4), expected, "{version}");
        assert!(proxy.metric("tollgate_upstream_retries_total") == 2.0);
        reader.quit();
        fs::remove_file(socket(&site)).unwrap();
    }
}

const TOKEN: &str = "t0k-5ecret";

/// Like the case `AllowedPathPrefixWrongHeader` of the upstream's suite, but the secret is in no part of an entry.
#[test]
fn header_edits_are_told_and_no_secret_is() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let matches = json!([
        {"name": "authorization", "valueSdsSecret": "token", "mismatchAction": "REPLACE_ON_MISMATCH"},
        {"name": "x-debug", "matchAction": "DELETE_ON_MATCH", "mismatchAction": "CONTINUE_ON_MISMATCH"},
        {"name": "x-user", "value": "me", "mismatchAction": "ADD_ON_MISMATCH"},
    ]);
    let rules = ingress(&site, json!([http_port(HTTP_PORT, &[json!({"headerMatches": matches})])]));
    let upstream = Upstream::ok(&site);
    let reader = AccessLogReader::start(python, &socket(&site));
    fs::write(site.path("token"), TOKEN).unwrap();
    let mut options = options(&site);
    options.top += &format!("\nsecrets: [{{ name: token, file: \"{}\" }}]", site.path("token").display());
    let proxy = Proxy::with(&site, upstream.address(), &options, &[rules]);
    let mut client = Peer::connect(proxy.http());
    for (sent, missing, rejected) in [
        ("Authorization: f0rged\r\nX-Debug: 1\r\n", 2, 2),
        ("AUTHORIZATION: t0k-5ecret\r\nX-Debug: 1\r\n", 1, 1),
        ("X-Debug: 1\r\n", 2, 1),
    ] {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{sent}\r\n"));
        assert_eq!(client.read_message().status(), 200);
        let entries = reader.entries(2);
        for entry in &entries {
            let text = entry.to_string();
            assert!(!text.contains(TOKEN) && !text.contains("f0rged"), "{text}");
            let http = &entry["http"];
            let found = |list: &Value| list.as_array().unwrap().len();
            assert_eq!(
                (found(&http["missing_headers"]), found(&http["rejected_headers"])),
                (missing, rejected),
                "{text}"
            );
            assert!(fields(&http["missing_headers"]).contains(&("x-user", "me")), "{text}");
        }
        let told = fields(&entries[0]["http"]["headers"]);
        assert!(told.contains(&("authorization", "[redacted]")) && told.contains(&("x-user", "me")), "{told:?}");
        assert!(told.iter().all(|(name, _)| *name != "x-debug"), "{told:?}");
    }
    assert_eq!(upstream.text().matches(TOKEN).count(), 3);
}

#[test]
fn packets_stay_below_what_an_agent_reads() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let big = format!("HTTP/1.1 200 OK\r\nSet-Cookie: {}\r\nX-End: 1\r\nContent-Length: 0\r\n\r\n", "c".repeat(5000));
    let upstream = Upstream::answering(&site, big);
    let reader = AccessLogReader::start(python, &socket(&site));
    let proxy = Proxy::with(&site, upstream.address(), &options(&site), &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    let many: String = (0..90).map(|n| format!("X-Field-{n}: {}\r\n", "v".repeat(40 + n))).collect();
    let long = "p".repeat(6000);
    for (path, more) in [("", &*format!("Cookie: {}\r\n", "k".repeat(4000))), ("", &many), (&long, &many)] {
        client.send(format!("GET /allowed{path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n{more}\r\n"));
        assert_eq!(client.read_message().status(), 200);
        for entry in reader.entries(2) {
            assert!(entry["bytes"].as_u64().unwrap() < LIMIT, "{entry}");
            assert_eq!(field(&entry, "x-request-id"), Some("mine"), "{entry}");
            assert!(field(&entry, "x-tollgate-trimmed").is_some(), "{entry}");
            let told = entry["http"]["path"].as_str().unwrap();
            assert_eq!((told.starts_with("/allowed"), told.ends_with("...")), (true, !path.is_empty()), "{told}");
            if entry["entry_type"] == "Response" {
                assert_eq!(field(&entry, "set-cookie"), None);
                assert_eq!(field(&entry, "x-end").is_some(), path.is_empty(), "{entry}");
            }
        }
    }
}

/// The metrics of the access log, by name and labels.
fn counters(proxy: &Proxy) -> BTreeMap<String, u64> {
    let (_, text) = proxy.get("/metrics");
    let lines = text.lines().filter_map(|line| line.strip_prefix("tollgate_access_log_"));
    let samples = lines.filter_map(|line| line.rsplit_once(' '));
    let name = |name: &str| match name.split_once("cause=\"") {
        Some((_, cause)) => format!("lost {}", cause.trim_end_matches("\"}")),
        None => name.split('{').next().unwrap().to_owned(),
    };
    let mut counters = BTreeMap::new();
    for (sample, value) in samples {
        *counters.entry(name(sample)).or_default() += value.parse::<u64>().unwrap_or_default();
    }
    counters
}

/// Waits until each of `made` entries is written or lost, and returns how many were written.
fn settled(proxy: &Proxy, made: u64) -> (u64, BTreeMap<String, u64>) {
    until("every entry's fate", || {
        let counters = counters(proxy);
        let lost: u64 = counters.iter().filter(|(name, _)| name.starts_with("lost ")).map(|(_, value)| value).sum();
        let lost = lost + counters.get("entries_lost_total").copied().unwrap_or_default();
        let written = counters["written_total"];
        assert!(counters["entries_total"] <= made && written + lost <= made, "{counters:?}");
        (written + lost == made).then_some((written, counters))
    })
}

/// Sends `n` requests, each tenth of which is denied.
fn ask(client: &mut Peer, n: usize) {
    const BURST: usize = 50;
    for _ in 0..n / BURST {
        let request = |n: usize| {
            let path = if n % 10 == 9 { "/denied" } else { "/allowed" };
            format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
        };
        client.send((0..BURST).map(request).collect::<String>());
        for n in 0..BURST {
            assert_eq!(client.read_message().status(), if n % 10 == 9 { 403 } else { 200 });
        }
    }
}

fn counted(reader: &mut AccessLogReader) -> u64 {
    let told = reader.count();
    assert_eq!(told["count"].get("error"), None, "{told}");
    told["count"].as_object().unwrap().values().map(|value| value.as_u64().unwrap()).sum()
}

#[test]
fn ten_thousand_requests_are_told_or_counted_as_lost() {
    const REQUESTS: usize = 10_000;
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.stop_recording();
        while peer.wait_for_bytes() {
            peer.read_message();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let mut reader = AccessLogReader::counting(python, &socket(&site));
    let options = Options { workers: 2, ..options(&site) };
    let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ask(&mut Peer::connect(proxy.http()), REQUESTS / 4));
        }
    });
    let (written, counters) = settled(&proxy, 2 * REQUESTS as u64);
    assert_eq!(counters["entries_total"], 2 * REQUESTS as u64);
    let received = until("the last entry", || Some(counted(&mut reader)).filter(|received| *received >= written));
    assert_eq!(received, written);
    assert_eq!(reader.count()["connections"], 1, "shared by the workers");
}

/// The proxy serves on whatever the reader does, and knows what it lost.
#[test]
fn a_reader_that_is_absent_or_restarts_loses_nothing_uncounted() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::with(&site, upstream.address(), &options(&site), &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    ask(&mut client, 50);
    let (written, before) = settled(&proxy, 100);
    assert_eq!((written, before["lost no_reader"]), (0, 100));

    let mut made = 100;
    let mut received = 0;
    for _ in 0..3 {
        let mut reader = AccessLogReader::counting(python, &socket(&site));
        ask(&mut client, 50);
        made += 100;
        let (written, _) = settled(&proxy, made);
        received += until("the entries", || Some(counted(&mut reader)).filter(|count| *count >= written - received));
        assert_eq!(received, written);
        reader.quit();
        fs::remove_file(socket(&site)).unwrap();
    }
    assert_eq!(received, 300, "whoever listens gets everything");
    ask(&mut client, 50);
    let (written, after) = settled(&proxy, made + 100);
    assert_eq!((written, after["lost no_reader"]), (300, 200));
}

/// A reader that takes nothing holds up no request; denials are the last to be lost.
#[test]
fn a_slow_reader_holds_up_nobody() {
    const REQUESTS: u64 = 10_000;
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let mut reader = AccessLogReader::counting(python, &socket(&site));
    let proxy = Proxy::with(&site, upstream.address(), &options(&site), &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    reader.pause();
    ask(&mut client, REQUESTS as usize);
    let made = 2 * REQUESTS;
    until("a full queue", || (counters(&proxy)["lost slow_reader"] > 0).then_some(()));
    reader.resume();
    let (written, counters) = settled(&proxy, made);
    let received = until("the last entry", || Some(counted(&mut reader)).filter(|received| *received >= written));
    assert_eq!(received, written);
    assert_eq!(received + counters["lost slow_reader"], made, "{counters:?}");
    assert_eq!(reader.count()["count"]["Denied"], REQUESTS / 10, "denials have places of their own");
}

/// A listener names a socket of its own.
#[test]
fn a_listener_can_have_its_own_socket() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let mut options = options(&site);
    let own = site.path("own.sock");
    options.listener += &format!(", access_log: {{ unix: \"{}\" }}", own.display());
    let both: [&Path; 2] = [&own, &socket(&site)];
    let readers = both.map(|path| AccessLogReader::start(python, path));
    let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    client.send("GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_message().status(), 200);
    for reader in &readers {
        assert_eq!(told(reader, 2), ["Request /allowed 0", "Response /allowed 200"]);
    }
}

/// No policy has spoken, so it is no denial, and an entry has no field for the reason; the client is not told, either.
#[test]
fn the_reason_of_a_tenants_limit_is_told() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let mut options = options(&site);
    options.top += "\ntenants: { default: { ceilings: { requests: { per_second: 1, burst: 1 } } } }";
    let reader = AccessLogReader::start(python, &socket(&site));
    let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    let refused = loop {
        client.send("GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.read_message();
        if answer.status() != 200 {
            break answer;
        }
    };
    assert_eq!((refused.status(), refused.field("x-tollgate-reason")), (429, None));
    let told = std::iter::repeat_with(|| reader.entry()).find(|entry| entry["http"]["status"] == 429).unwrap();
    assert_eq!(told["entry_type"], "Response");
    assert_eq!(field(&told, "x-tollgate-reason"), Some("tenant_rate"), "{told}");
}

/// What a limit resets has no answer, and is no denial either.
#[test]
fn a_connection_that_a_limit_refuses_has_no_entry() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let mut options = options(&site);
    options.top += "\ntenants: { default: { ceilings: { connections: 1 } } }";
    let reader = AccessLogReader::start(python, &socket(&site));
    let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    let mut ask = |path: &str| {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.read_message().status()
    };
    assert_eq!(ask("/allowed"), 200);
    // One that waits for its client would make room.
    Peer::expect_reset_at(proxy.http(), "");
    proxy.expect_reason(Reason::TenantConnections);
    assert_eq!(ask("/denied"), 403);
    assert_eq!(
        told(&reader, 4),
        ["Request /allowed 0", "Response /allowed 200", "Denied /denied 0", "Response /denied 403"]
    );
}
