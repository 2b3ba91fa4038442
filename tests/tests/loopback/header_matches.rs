//! Rules with `header_matches`: what the upstream gets, over HTTP/1 and HTTP/2, and what becomes of secrets.

use std::fs;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_tests::peer::{End, Peer};
use tollgate_tests::policy::{http_port, ingress, of_another_endpoint};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

const TOKEN: &str = "t0k-5ecret";

/// Requests below `path` that pass `matches`.
fn rule(path: &str, matches: Value) -> Value {
    json!({"headers": [{"name": ":path", "stringMatch": {"prefix": path}}], "headerMatches": matches})
}

fn policy(site: &Site, rules: &[Value]) -> NetworkPolicy {
    ingress(site, json!([http_port(HTTP_PORT, rules)]))
}

/// A proxy with the secret `token` in a file.
fn proxy(site: &Site, upstream: std::net::SocketAddr, rules: &[Value]) -> Proxy {
    fs::write(site.path("token"), format!("{TOKEN}\n")).unwrap();
    without_secret(site, upstream, rules)
}

/// A proxy that finds no file.
fn without_secret(site: &Site, upstream: std::net::SocketAddr, rules: &[Value]) -> Proxy {
    let top = format!("secrets: [{{ name: token, file: \"{}\" }}]", site.path("token").display());
    let options = Options { top, ..Options::default() };
    Proxy::with(site, upstream, &options, &[policy(site, rules)])
}

/// Gives `token` another value, as careful programs do.
fn rotate(site: &Site, value: &str) {
    fs::write(site.path("next"), value).unwrap();
    fs::rename(site.path("next"), site.path("token")).unwrap();
}

/// What each action makes of the fields, byte for byte: everything else keeps its bytes and its place.
#[test]
fn actions_edit_the_forwarded_head() {
    // (name, match, received fields, forwarded fields; `None`: denied)
    let cases = [
        ("continue", json!({"value": "v"}), "X-H: v\r\n", Some("X-H: v\r\n")),
        ("fail", json!({"value": "v"}), "X-H: w\r\n", None),
        (
            "fail-on-match",
            json!({"value": "v", "matchAction": "FAIL_ON_MATCH", "mismatchAction": "CONTINUE_ON_MISMATCH"}),
            "X-H: v\r\n",
            None,
        ),
        ("delete-on-match", json!({"value": "v,v", "matchAction": "DELETE_ON_MATCH"}), "X-H: v\r\nx-h:v\r\n", Some("")),
        (
            "go-on",
            json!({"value": "v", "mismatchAction": "CONTINUE_ON_MISMATCH"}),
            "x-H:  w \r\n",
            Some("x-H:  w \r\n"),
        ),
        (
            "add",
            json!({"value": "v", "mismatchAction": "ADD_ON_MISMATCH"}),
            "X-h: w\r\nX-B: 2\r\n",
            Some("X-h: w\r\nX-B: 2\r\nx-h: v\r\n"),
        ),
        ("add-absent", json!({"value": "v", "mismatchAction": "ADD_ON_MISMATCH"}), "", Some("x-h: v\r\n")),
        ("delete", json!({"value": "v", "mismatchAction": "DELETE_ON_MISMATCH"}), "X-H: w\r\nX-h: u\r\n", Some("")),
        (
            "replace",
            json!({"value": "v", "mismatchAction": "REPLACE_ON_MISMATCH"}),
            "X-B: 1\r\nX-H: w\r\nX-C: 2\r\nx-h: u\r\n",
            Some("X-B: 1\r\nX-H: v\r\nX-C: 2\r\n"),
        ),
        ("replace-absent", json!({"value": "v", "mismatchAction": "REPLACE_ON_MISMATCH"}), "", Some("x-h: v\r\n")),
        (
            "inject",
            json!({"valueSdsSecret": "token", "mismatchAction": "REPLACE_ON_MISMATCH"}),
            "X-H: forged\r\n",
            Some("X-H: t0k-5ecret\r\n"),
        ),
    ];
    let rules: Vec<Value> = cases
        .iter()
        .map(|(name, header_match, ..)| {
            let mut header_match = header_match.clone();
            header_match["name"] = "X-H".into();
            rule(&format!("/{name}?"), json!([header_match]))
        })
        .collect();
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = proxy(&site, upstream.address(), &rules);
    let mut client = Peer::connect(proxy.http());
    let mut forwarded = String::new();
    for (name, _, received, expected) in &cases {
        let request = |fields: &str| {
            format!("POST /{name}? HTTP/1.1\r\nhOst: a\r\n{fields}X-Last:  1\r\nContent-Length: 2\r\n\r\nhi")
        };
        let added = |fields: &str| {
            // What no received field made room for comes last.
            let (kept, added) = fields.split_at(fields.rfind("x-h: v\r\n").unwrap_or(fields.len()));
            format!("POST /{name}? HTTP/1.1\r\nhOst: a\r\n{kept}X-Last: 1\r\nContent-Length: 2\r\n{added}\r\nhi")
        };
        client.send(request(received));
        let status = client.read_message().status();
        assert_eq!(status, if expected.is_some() { 200 } else { 403 }, "{name}");
        match expected {
            Some(fields) if fields == received => forwarded += &request(fields),
            Some(fields) => forwarded += &added(fields),
            None => {}
        }
    }
    upstream.expect(forwarded);
}

#[test]
fn a_rotated_secret_counts_at_once_and_a_missing_one_fails() {
    let demand = json!([{"name": "x-token", "valueSdsSecret": "token", "matchAction": "DELETE_ON_MATCH"}]);
    let inject = json!([
        {"name": "authorization", "valueSdsSecret": "token", "mismatchAction": "REPLACE_ON_MISMATCH"},
    ]);
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = without_secret(&site, upstream.address(), &[rule("/demand", demand), rule("/inject", inject)]);
    let mut client = Peer::connect(proxy.http());
    let mut status = |path: &str, token: &str| {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Token: {token}\r\n\r\n"));
        client.read_message().status()
    };
    let missing = || {
        let status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
        status["policy"]["missing_secrets"].clone()
    };
    assert_eq!((status("/demand", ""), status("/inject", "")), (403, 403));
    let gone = format!("is not delivered: there is no file {}", site.path("token").display());
    assert_eq!(missing(), json!([{"name": "token", "reason": gone}]));
    assert_eq!(upstream.connections(), 0);
    let denied = proxy.expect_reason(Reason::RequestNotAllowed);
    let miss = &denied["policy"]["nearest_miss"];
    assert_eq!(miss["expected"], "comparable: secret \"token\" is not delivered");

    for value in ["one-t0ken", "two-t0ken"] {
        rotate(&site, value);
        until("the new secret", || (status("/demand", value) == 200).then_some(()));
        assert_eq!(status("/demand", "another"), 403);
        assert_eq!(status("/inject", "x"), 200);
        assert!(upstream.text().contains(&format!("authorization: {value}\\r\\n")), "{}", upstream.text());
    }
    assert_eq!(status("/demand", "one-t0ken"), 403);
    assert_eq!(missing(), json!([]));
    // One that no field can carry is not sent, and opens nothing.
    rotate(&site, "a\r\nX-Admin: 1");
    // Not by asking for what is still admitted: an exchange that the change overtakes is revoked.
    until("the broken secret", || (missing() != json!([])).then_some(()));
    assert_eq!(missing()[0]["reason"], "holds a line end or another control character");
    assert_eq!(status("/demand", "two-t0ken"), 403);
    assert_eq!((status("/inject", "x"), status("/demand", "")), (403, 403));
    assert!(!upstream.text().contains("X-Admin"));
    fs::remove_file(site.path("token")).unwrap();
    until("the loss", || (missing()[0]["reason"] == gone).then_some(()));
    assert_eq!(status("/demand", "two-t0ken"), 403);
}

#[test]
fn a_secret_that_nobody_delivers_is_told_from_a_file_that_is_gone() {
    let demand = json!([{"name": "x-token", "valueSdsSecret": "tokne", "matchAction": "DELETE_ON_MATCH"}]);
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = without_secret(&site, upstream.address(), &[rule("/demand", demand)]);
    let status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
    let reason = status["policy"]["missing_secrets"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("is not delivered: no such name in `secrets:`"), "{reason}");
    // And a running proxy takes none as an argument.
    let (ip, port) = (proxy.http().ip(), HTTP_PORT);
    let asked = format!("endpoint={ip}&direction=ingress&from=7&port={port}&method=GET&path=/demand");
    let explained = proxy.get(&format!("/policy/explain?format=text&{asked}")).1;
    assert!(explained.contains("secret \"tokne\" is not delivered, so "), "{explained}");
    assert!(!explained.contains("--secret"), "{explained}");
}

/// An exchange under way is judged again as it was received, with the secrets of the moment.
#[test]
fn long_exchanges_are_judged_as_they_were_received() {
    let demand = json!([{"name": "x-token", "valueSdsSecret": "token", "matchAction": "DELETE_ON_MATCH"}]);
    let site = Site::new();
    let (finish, finished) = channel::<()>();
    let finished = Mutex::new(finished);
    let upstream = Upstream::scripted(&site, move |peer, _| {
        peer.read_head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n12");
        if finished.lock().unwrap().recv().is_ok() {
            peer.send("34");
        }
        peer.wait_for_bytes();
    });
    let rules = [rule("/", demand)];
    let proxy = proxy(&site, upstream.address(), &rules);
    let begin = || {
        let mut client = Peer::connect(proxy.http());
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Token: {TOKEN}\r\n\r\n"));
        assert_eq!(tollgate_tests::peer::status(&client.read_head()), 200);
        assert_eq!(client.read_exact(2), b"12");
        client
    };
    // What was forwarded has no token any more; that is not what counts.
    let mut client = begin();
    assert!(!upstream.text().contains(TOKEN));
    proxy.push(&[policy(&site, &rules), of_another_endpoint()]);
    finish.send(()).unwrap();
    assert_eq!(client.read_exact(2), b"34");
    drop(client);

    let mut client = begin();
    rotate(&site, "another");
    assert_eq!(client.read_to_any_end(), (Vec::new(), End::Reset));
    let revoked = proxy.expect_reason(Reason::Revoked);
    assert_eq!(revoked["l7"]["http"]["code"], 200);
}

/// Flow records tell what was missing and rejected; a secret is in none of the places where people look.
#[test]
fn records_tell_what_was_found_and_no_secret() {
    let matches = json!([
        {"name": "authorization", "valueSdsSecret": "token", "mismatchAction": "REPLACE_ON_MISMATCH"},
        {"name": "x-debug", "matchAction": "DELETE_ON_MATCH", "mismatchAction": "CONTINUE_ON_MISMATCH"},
        {"name": "x-user", "value": "me"},
    ]);
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let mut rule = rule("/", matches);
    rule["headers"] = json!([]);
    let mut policy = ingress(&site, json!([http_port(HTTP_PORT, &[rule])]));
    policy.ingress_per_port_policies[0].rules[0].name = "tokens for me".to_owned();
    fs::write(site.path("token"), TOKEN).unwrap();
    let top = format!("secrets: [{{ name: token, file: \"{}\" }}]", site.path("token").display());
    let mut proxy = Proxy::with(&site, upstream.address(), &Options { top, ..Options::default() }, &[policy]);
    let mut client = Peer::connect(proxy.http());
    client.send("GET /1 HTTP/1.1\r\nHost: a\r\nAuthorization: f0rged\r\nX-Debug: 1\r\nX-User: me\r\n\r\n");
    assert_eq!(client.read_message().status(), 200);
    upstream.expect(format!("GET /1 HTTP/1.1\r\nHost: a\r\nAuthorization: {TOKEN}\r\nX-User: me\r\n\r\n"));
    client.send("GET /2 HTTP/1.1\r\nHost: a\r\nX-User: you\r\n\r\n");
    assert_eq!(client.read_message().status(), 403);

    let flows = proxy.expect_flows(2);
    let entry = |name: &str, value: &str| json!({"key": name, "value": value});
    let (allowed, denied) = (&flows[0]["l7"]["http"], &flows[1]["l7"]["http"]);
    assert_eq!(allowed["missing_headers"], json!([entry("authorization", "[redacted]")]));
    assert_eq!(allowed["rejected_headers"], json!([entry("authorization", "[redacted]"), entry("x-debug", "")]));
    assert_eq!(flows[0]["policy"]["rule_name"], "tokens for me");
    assert_eq!(
        denied["missing_headers"],
        json!([entry("authorization", "[redacted]"), entry("x-debug", ""), entry("x-user", "me")])
    );
    assert_eq!(denied["rejected_headers"], Value::Null);
    assert_eq!(flows[1]["policy"]["nearest_miss"]["name"], "tokens for me");
    for path in ["/flows", "/status", "/config_dump", "/metrics", "/listeners"] {
        let shown = proxy.get(path).1;
        assert!(!shown.contains(TOKEN) && !shown.contains("f0rged"), "{path}: {shown}");
    }
    let log = proxy.process().output();
    assert!(log.contains("serving") && !log.contains(TOKEN) && !log.contains("f0rged"), "{log}");
}

/// A back end that merges trailers into the header fields would find there what policy did not see.
#[test]
fn trailers_that_rules_read_are_dropped() {
    const HEAD: &str =
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Role, X-Sum, X-Tier\r\n\r\n";
    let role = json!([{"name": "X-Role", "matchAction": "FAIL_ON_MATCH", "mismatchAction": "CONTINUE_ON_MISMATCH"}]);
    let tier = json!({"headers": [{"name": "x-tier", "stringMatch": {"exact": "gold"}}]});
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = proxy(&site, upstream.address(), &[rule("/", role), tier]);
    let mut client = Peer::connect(proxy.http());
    client.send(format!("{HEAD}2\r\nhi\r\n0\r\nX-Role: admin\r\nX-Sum: 1\r\nx-tier: gold\r\n\r\n"));
    assert_eq!(client.read_message().status(), 200);
    upstream.expect(format!("{HEAD}2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n"));
}

#[test]
fn http2_is_edited_alike() {
    let Some(python) = python() else { return };
    let matches = json!([
        {"name": "authorization", "valueSdsSecret": "token", "mismatchAction": "REPLACE_ON_MISMATCH"},
        {"name": "x-add", "value": "2", "mismatchAction": "ADD_ON_MISMATCH"},
        {"name": "x-debug", "matchAction": "DELETE_ON_MATCH", "mismatchAction": "CONTINUE_ON_MISMATCH"},
        {"name": "x-new", "value": "n", "mismatchAction": "ADD_ON_MISMATCH"},
        {"name": "cookie", "value": "a=1; b=2"},
        {"name": ":path", "value": "/denied", "matchAction": "FAIL_ON_MATCH",
         "mismatchAction": "CONTINUE_ON_MISMATCH"},
    ]);
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let proxy = proxy(&site, address.parse().unwrap(), &[rule("/", matches)]);
    let seen = script::run(python, &site, "h2_client.py", &["edited", &proxy.http().to_string()]);
    assert_eq!(
        seen["received"],
        json!([
            [":authority", "a"],
            [":method", "GET"],
            [":path", "/headers"],
            [":scheme", "http"],
            ["authorization", TOKEN],
            ["cookie", "a=1"],
            ["cookie", "b=2"],
            ["x-add", "1"],
            ["x-add", "2"],
            ["x-new", "n"],
            ["x-other", "o"],
        ])
    );
    assert_eq!((&seen["denied"], &seen["other_cookie"]), (&json!(403), &json!(403)));
    // The upstream sends back the trailers that it got.
    assert_eq!(seen["trailers"], json!([["x-sum", "7"]]));
    let flows = proxy.expect_flows(4);
    let edited = flows.iter().find(|flow| flow["l7"]["http"]["url"] == "http://a/headers").unwrap();
    let keys = |list: &str| -> Vec<String> {
        let list = edited["l7"]["http"][list].as_array().unwrap();
        list.iter().map(|entry| format!("{}={}", entry["key"], entry["value"])).collect()
    };
    assert_eq!(
        keys("missing_headers"),
        [r#""authorization"="[redacted]""#, r#""x-add"="2""#, r#""x-new"="n""#, r#"":path"="/denied""#]
    );
    assert_eq!(keys("rejected_headers"), [r#""authorization"="[redacted]""#, r#""x-debug"="""#]);
}
