//! Cases of the test suite of Cilium's filter that are about what is on the wire: statuses and resets, the forwarded
//! bytes, flow records, streams of bytes with their ends. `tests/conformance/README.md` lists the whole suite.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::json::network_policy_from_value;
use tollgate_tests::peer::{End, Peer, status};
use tollgate_tests::policy::{ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site, TCP_PORT};
use tollgate_tests::upstream::{Upstream, WEBSOCKET_ACCEPTED, websocket_request};
use tollgate_tests::wait::{DEADLINE, until};

const TOKEN: &str = "d4ef0f5011f163ac";

/// The rules of most cases, on the HTTP listener's port.
fn with_matches() -> Value {
    let mut entries: Value = serde_json::from_str(include_str!("../../conformance/requests.json")).unwrap();
    entries[0]["port"] = HTTP_PORT.into();
    entries
}

/// The same without header matches.
fn plain() -> Value {
    let mut entries = with_matches();
    for rule in entries[0]["rules"][0]["http_rules"]["http_rules"].as_array_mut().unwrap() {
        rule.as_object_mut().unwrap().remove("header_matches");
    }
    entries
}

/// The client has identity 1.
fn ingress_options(site: &Site) -> Options {
    fs::write(site.path("token"), TOKEN).unwrap();
    Options {
        top: format!("secrets: [{{ name: bearer-token, file: \"{}\" }}]", site.path("token").display()),
        identities: "[{ identity: 1, addresses: [127.0.0.1] }]".into(),
        ..Options::default()
    }
}

/// A proxy for what the client sends: the client is the endpoint, and the site has identity 1.
fn egress(site: &Site, upstream: SocketAddr, entries: &Value) -> Proxy {
    let identities = format!("[{{ identity: 1, addresses: [{}] }}]", site.ip());
    let options = Options { direction: "egress", identities, ..Options::default() };
    let policy = json!({"endpoint_ips": ["127.0.0.1"], "endpoint_id": 3, "egress_per_port_policies": entries});
    Proxy::with(site, upstream, &options, &[network_policy_from_value(policy).unwrap()])
}

/// Name; method, authority and path; fields received; fields forwarded, `None` when the request is denied; what the
/// record has as missing, and as rejected.
type Row = (
    &'static str,
    [&'static str; 3],
    &'static str,
    Option<&'static str>,
    &'static [&'static str],
    &'static [&'static str],
);

const REDACTED: &str = "bearer-token=[redacted]";

const REQUESTS: &[Row] = &[
    ("CiliumIntegrationTest.DeniedPathPrefix", ["GET", "host", "/prefix"], "", None, &[], &[]),
    (
        "CiliumIntegrationTest.AllowedPathPrefix",
        ["GET", "host", "/allowed"],
        "bearer-token: d4ef0f5011f163ac\r\n",
        Some("bearer-token: d4ef0f5011f163ac\r\n"),
        &["header42="],
        &[],
    ),
    (
        "CiliumIntegrationTest.AllowedPathPrefixWrongHeader",
        ["GET", "host", "/allowed"],
        "Bearer-Token: wrong-value\r\nx-envoy-original-dst-host: 1.1.1.1:9999\r\n",
        Some("Bearer-Token: d4ef0f5011f163ac\r\nx-envoy-original-dst-host: 1.1.1.1:9999\r\n"),
        &["header42=", REDACTED],
        &[REDACTED],
    ),
    ("CiliumIntegrationTest.AllowedPathRegex", ["GET", "host", "/maybe/public"], "", Some(""), &[], &[]),
    (
        "CiliumIntegrationTest.AllowedPathRegexDeleteHeader",
        ["GET", "host", "/maybe/public"],
        "User-Agent: test\r\n",
        Some(""),
        &[],
        &["user-agent=test"],
    ),
    (
        "CiliumIntegrationTest.AllowedHostRegexDeleteHeader",
        ["GET", "hostREGEXname", "/maybe/private"],
        "header42: test\r\n",
        Some(""),
        &[],
        &["header42=test"],
    ),
    ("CiliumIntegrationTest.DeniedPath", ["GET", "host", "/maybe/private"], "", None, &[], &[]),
    (
        "CiliumIntegrationTest.AllowedHostString",
        ["GET", "allowedHOST", "/maybe/private"],
        "",
        Some("header2: value2\r\n"),
        &["header2=value2", "header42="],
        &[],
    ),
    (
        "CiliumIntegrationTest.AllowedReplaced",
        ["GET", "allowedHOST", "/allowed"],
        "",
        Some("bearer-token: d4ef0f5011f163ac\r\nheader2: value2\r\n"),
        &["header42=", REDACTED, "header2=value2"],
        &[],
    ),
    (
        "CiliumIntegrationTest.Denied42",
        ["GET", "host", "/allowed"],
        "header42: anything\r\n",
        None,
        &[REDACTED],
        &["header42="],
    ),
    (
        "CiliumIntegrationTest.AllowedReplacedAndDeleted",
        ["GET", "allowedHOST", "/allowed"],
        "header42: anything\r\n",
        Some("bearer-token: d4ef0f5011f163ac\r\nheader2: value2\r\n"),
        &[REDACTED, "header2=value2"],
        &["header42="],
    ),
    ("CiliumIntegrationTest.AllowedHostRegex", ["GET", "hostREGEXname", "/maybe/private"], "", Some(""), &[], &[]),
    ("CiliumIntegrationTest.DeniedMethod", ["POST", "host", "/maybe/private"], "", None, &[], &[]),
    ("CiliumIntegrationTest.AcceptedMethod", ["PUT", "host", "/public/opinions"], "", Some(""), &[], &[]),
    ("CiliumIntegrationTest.L3DeniedPath", ["GET", "host", "/only-2-allowed"], "", None, &[], &[]),
];

fn head([method, host, path]: [&str; 3], fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
}

/// Sends a request and returns whether it was forwarded and answered; a denial is Cilium's own.
fn forwarded(client: &mut Peer, name: &str, request: &str) -> bool {
    client.send(request);
    let answer = client.read_message();
    match answer.status() {
        200 => true,
        status => {
            assert_eq!((status, answer.body.as_slice()), (403, &b"Access denied\r\n"[..]), "{name}");
            false
        }
    }
}

fn logged(flow: &Value, list: &str) -> Vec<String> {
    let list = flow["l7"]["http"][list].as_array().cloned().unwrap_or_default();
    let entry =
        |entry: &Value| [&entry["key"], &entry["value"]].map(|part| part.as_str().unwrap().to_owned()).join("=");
    list.iter().map(entry).collect()
}

/// All on one connection, and so `MultipleRequests`, too: none leaves anything behind for the next.
#[test]
fn requests() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let policy = ingress(&site, with_matches());
    let proxy = Proxy::with(&site, upstream.address(), &ingress_options(&site), &[policy]);
    let mut client = Peer::connect(proxy.http());
    let mut expected = String::new();
    for (name, request, received, fields, ..) in REQUESTS {
        assert_eq!(forwarded(&mut client, name, &head(*request, received)), fields.is_some(), "{name}");
        expected.extend(fields.map(|fields| head(*request, fields)));
    }
    upstream.expect(expected);
    for ((name, _, _, fields, missing, rejected), flow) in REQUESTS.iter().zip(proxy.expect_flows(REQUESTS.len())) {
        let verdict = if fields.is_some() { ("FORWARDED", 200) } else { ("DROPPED", 403) };
        assert_eq!((&flow["verdict"], &flow["l7"]["http"]["code"]), (&json!(verdict.0), &json!(verdict.1)), "{name}");
        let lists = ["missing_headers", "rejected_headers"].map(|list| logged(&flow, list));
        assert_eq!(lists, [missing.to_vec(), rejected.to_vec()], "{name}");
        assert_eq!((&flow["IP"]["source"], &flow["source"]["identity"]), (&json!("127.0.0.1"), &json!(1)), "{name}");
    }
}

#[test]
fn egress_requests() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = egress(&site, upstream.address(), &plain());
    let mut client = Peer::connect(proxy.http());
    let rows = [
        ("CiliumIntegrationEgressTest.DeniedPathPrefix", ["GET", "host", "/prefix"], false),
        ("CiliumIntegrationEgressTest.AllowedPathPrefix", ["GET", "host", "/allowed"], true),
        ("CiliumIntegrationEgressTest.AllowedPathRegex", ["GET", "host", "/maybe/public"], true),
        ("CiliumIntegrationEgressTest.DeniedPath", ["GET", "host", "/maybe/private"], false),
        ("CiliumIntegrationEgressTest.AllowedHostString", ["GET", "allowedHOST", "/maybe/private"], true),
        ("CiliumIntegrationEgressTest.AllowedHostRegex", ["GET", "hostREGEXname", "/maybe/private"], true),
        ("CiliumIntegrationEgressTest.DeniedMethod", ["POST", "host", "/maybe/private"], false),
        ("CiliumIntegrationEgressTest.AcceptedMethod", ["PUT", "host", "/public/opinions"], true),
        ("CiliumIntegrationEgressTest.L3DeniedPath", ["GET", "host", "/only-2-allowed"], false),
    ];
    for (name, request, expected) in rows {
        assert_eq!(forwarded(&mut client, name, &head(request, "")), expected, "{name}");
    }
    upstream.expect(rows.iter().filter(|(.., ok)| *ok).map(|(_, request, _)| head(*request, "")).collect::<String>());
    for flow in proxy.expect_flows(rows.len()) {
        assert_eq!((&flow["traffic_direction"], &flow["destination"]["identity"]), (&json!("EGRESS"), &json!(1)));
    }
}

/// Without HTTP rules the connection is refused before any answer, whatever it asks for.
#[test]
fn egress_connections() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let entries = json!([{"port": HTTP_PORT, "end_port": HTTP_PORT, "rules": [{"remote_policies": [42]}]}]);
    let proxy = egress(&site, upstream.address(), &entries);
    for (name, path) in [
        ("CiliumIntegrationEgressL34Test.DeniedPathPrefix", "/prefix"),
        ("CiliumIntegrationEgressL34Test.DeniedPathPrefix2", "/allowed"),
    ] {
        let seen = proxy.flows().len();
        Peer::expect_reset_at(proxy.http(), head(["GET", "host", path], ""));
        let flow = proxy.expect_flows(seen + 1).remove(seen);
        let record = [&flow["verdict"], &flow["reason"], &flow["l7"]["http"]];
        assert_eq!(record, [&json!("DROPPED"), &json!(Reason::PeerNotAllowed.code()), &Value::Null], "{name}");
    }
    assert_eq!(upstream.connections(), 0);
}

/// The filter refuses the policy for one entry, and resets every connection. Here that entry alone grants nothing.
#[test]
fn invalid_range() {
    let name = "CiliumIntegrationPortRangeTest.InvalidRange";
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let mut policy = ingress(&site, plain());
    let bad = json!([{"end_port": HTTP_PORT, "rules": [{"remote_policies": [2]}]}]);
    policy.egress_per_port_policies = ingress(&site, bad).ingress_per_port_policies;
    let proxy = Proxy::with(&site, upstream.address(), &ingress_options(&site), &[policy]);
    let mut client = Peer::connect(proxy.http());
    assert!(forwarded(&mut client, name, &head(["GET", "host", "/allowed"], "")), "{name}");
    assert!(!forwarded(&mut client, name, &head(["GET", "host", "/prefix"], "")), "{name}");
    let status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
    let quarantined = &status["policy"]["quarantined"][0];
    assert_eq!(
        (&quarantined["rule"], &quarantined["element"]),
        (&json!("7 egress_per_port_policies[0]"), &json!("port"))
    );
}

fn secret_policies(site: &Site) -> [NetworkPolicy; 2] {
    let path = |path: &str| json!([{"name": ":path", "exact_match": path}]);
    let rules = |remote: u32, rule: Value| json!({"remote_policies": [remote], "http_rules": {"http_rules": [rule]}});
    let matches = json!([
        {"name": "header42", "match_action": "FAIL_ON_MATCH", "mismatch_action": "CONTINUE_ON_MISMATCH"},
        {"name": "bearer-token", "value_sds_secret": "nonexisting-sds-secret",
         "mismatch_action": "REPLACE_ON_MISMATCH"},
    ]);
    [
        json!([rules(1, json!({"headers": path("/allowed2")})), rules(42, json!({"headers": path("/only42")}))]),
        json!([rules(1, json!({"headers": path("/allowed"), "header_matches": matches}))]),
    ]
    .map(|rules| ingress(site, json!([{"port": HTTP_PORT, "rules": rules}])))
}

#[test]
fn secrets() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let [first, second] = secret_policies(&site);
    let options = Options {
        identities: "[{ identity: 1, addresses: [127.0.0.0/8] }, { identity: 42, addresses: [192.168.1.1] }]".into(),
        ..Options::default()
    };
    let proxy = Proxy::with(&site, upstream.address(), &options, std::slice::from_ref(&first));
    let mut client = Peer::connect(proxy.http());
    for (name, fields) in [
        ("SDSIntegrationTest.TestDeniedL3", ""),
        ("SDSIntegrationTest.TestDeniedL3SpoofedXFF", "X-Forwarded-For: 192.168.1.1\r\n"),
    ] {
        let seen = proxy.flows().len();
        assert!(!forwarded(&mut client, name, &head(["GET", "host", "/only42"], fields)), "{name}");
        let flow = proxy.expect_flows(seen + 1).remove(seen);
        assert_eq!((&flow["IP"]["source"], &flow["source"]["identity"]), (&json!("127.0.0.1"), &json!(1)), "{name}");
        assert_eq!([logged(&flow, "missing_headers"), logged(&flow, "rejected_headers")], [[""; 0]; 2], "{name}");
    }
    let name = "SDSIntegrationTest.TestMissingSDSSecretOnUpdate";
    let mut asks = |path: &str| forwarded(&mut client, name, &head(["GET", "host", path], ""));
    assert!(asks("/allowed2") && !asks("/allowed"), "{name}");
    proxy.push(&[second]);
    assert!(!asks("/allowed"), "{name}");
    let flow = proxy.expect_flows(5).remove(4);
    assert_eq!(
        (logged(&flow, "missing_headers"), logged(&flow, "rejected_headers").len()),
        (vec!["header42=".into()], 0)
    );
    proxy.push(&[first]);
    assert!(!asks("/allowed") && asks("/allowed2"), "{name}");
}

/// Nobody looks at the server name of a connection yet, and TLS is neither ended nor begun: rules that ask for it admit
/// nothing, and the connection is reset.
#[test]
fn tls_rules() {
    let name = "CiliumNetworkPolicyTest.TlsPolicyUpdate";
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| peer.send("hello"));
    let with = |rule: Value| ingress(&site, json!([{"port": TCP_PORT, "rules": [rule]}]));
    let plain = || with(json!({"remote_policies": [1]}));
    let proxy = Proxy::with(&site, upstream.address(), &ingress_options(&site), &[plain()]);
    let refused = [
        (json!({"server_names": ["cilium.io", "example.com"]}), Reason::PeerNotAllowed),
        (json!({"downstream_tls_context": {"tls_sds_secret": "secret1"}}), Reason::Quarantined),
        (json!({"upstream_tls_context": {"validation_context_sds_secret": "cacerts"}}), Reason::Quarantined),
    ];
    for (seen, (rule, reason)) in refused.into_iter().enumerate() {
        proxy.push(&[with(rule)]);
        Peer::expect_reset_at(proxy.tcp(), CLIENT_HELLO);
        let flow = proxy.expect_flows(seen + 1).remove(seen);
        assert_eq!((&flow["verdict"], &flow["reason"]), (&json!("DROPPED"), &json!(reason.code())), "{name}");
    }
    assert_eq!(upstream.connections(), 0, "{name}");
    proxy.push(&[plain()]);
    assert_eq!(Peer::connect(proxy.tcp()).read_to_end(), b"hello", "{name}");
}

/// A TLS record with the beginning of a ClientHello.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x00\x10\x01\x00\x00\x0c\x03\x03";

/// What one end does with a stream of bytes.
type Part = fn(&mut Peer, usize);

/// Name for a TCP port, name for a WebSocket behind an HTTP rule, bytes that are many, what server and client do.
const STREAMS: &[(&str, &str, usize, Part, Part)] = &[
    (
        "CiliumTcpProxyIntegrationTest.CiliumTcpProxyUpstreamWritesFirst",
        "CiliumWebSocketIntegrationTest.CiliumWebSocketUpstreamWritesFirst",
        5,
        |server, _| {
            server.send("hello");
            assert_eq!(server.read_exact(5), b"world");
            server.finish_sending();
            assert_eq!(server.read_to_end(), b"");
        },
        |client, _| {
            assert_eq!(client.read_exact(5), b"hello");
            client.send("world");
            assert_eq!(client.read_to_end(), b"");
            client.finish_sending();
        },
    ),
    (
        "CiliumTcpProxyIntegrationTest.CiliumTcpProxyUpstreamDisconnect",
        "CiliumWebSocketIntegrationTest.CiliumWebSocketUpstreamDisconnect",
        5,
        |server, _| {
            assert_eq!(server.read_exact(5), b"hello");
            server.send("world");
        },
        |client, _| {
            client.send("hello");
            assert_eq!(client.read_to_end(), b"world");
        },
    ),
    (
        "CiliumTcpProxyIntegrationTest.CiliumTcpProxyDownstreamDisconnect",
        "CiliumWebSocketIntegrationTest.CiliumWebSocketDownstreamDisconnect",
        5,
        |server, _| {
            assert_eq!(server.read_exact(5), b"hello");
            server.send("world");
            assert_eq!(server.read_to_end(), b"again");
        },
        |client, _| {
            client.send("hello");
            assert_eq!(client.read_exact(5), b"world");
            client.send("again");
            client.finish_sending();
            assert_eq!(client.read_to_end(), b"");
        },
    ),
    (
        "CiliumTcpProxyIntegrationTest.CiliumTcpProxyLargeWrite",
        "CiliumWebSocketIntegrationTest.CiliumWebSocketLargeWrite",
        32 << 10,
        |server, size| {
            let said = server.read_exact(size);
            server.send(said);
            assert_eq!(server.read_to_end(), b"");
        },
        |client, size| {
            let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            client.send(&data);
            assert!(client.read_exact(size) == data);
            client.finish_sending();
            assert_eq!(client.read_to_end(), b"");
        },
    ),
];

/// Over TCP, and as what follows a WebSocket's handshake that a rule admits.
#[test]
fn streams() {
    for (tcp, websocket, size, server, client) in STREAMS {
        let site = Site::new();
        let (report, finished) = channel();
        let report = Mutex::new(report);
        let upstream = Upstream::scripted(&site, move |peer, connection| {
            if connection == 1 {
                peer.read_head();
                peer.send(WEBSOCKET_ACCEPTED);
            }
            server(peer, *size);
            report.lock().unwrap().send(()).unwrap();
        });
        let proxy = Proxy::start(&site, upstream.address());
        client(&mut Peer::connect(proxy.tcp()), *size);
        assert_eq!(finished.recv_timeout(DEADLINE), Ok(()), "{tcp}");

        let mut peer = Peer::connect(proxy.http());
        peer.send(websocket_request("/allowed"));
        assert_eq!(status(&peer.read_head()), 101, "{websocket}");
        client(&mut peer, *size);
        assert_eq!(finished.recv_timeout(DEADLINE), Ok(()), "{websocket}");
        drop(peer);
        for flow in proxy.expect_flows(2) {
            assert_eq!((&flow["verdict"], &flow["reason"]), (&json!("FORWARDED"), &Value::Null), "{tcp}: {flow}");
        }
    }
}

/// A client that sends `TOTAL` bytes and ends, towards a server that has ended and does not read; once nothing moves any
/// more, `then` gets the proxy, and what the server has to wait for.
fn unread(
    name: &str,
    site: &Site,
    options: &Options,
    then: impl FnOnce(Proxy, std::sync::mpsc::Sender<()>),
) -> (usize, End) {
    const TOTAL: usize = 50 << 20;
    let (go_on, wait) = channel::<()>();
    let (report, received) = channel();
    let (wait, report) = (Mutex::new(wait), Mutex::new(report));
    let upstream = Upstream::scripted(site, move |peer, _| {
        peer.stop_recording();
        peer.finish_sending();
        let _ = wait.lock().unwrap().recv();
        let (bytes, end) = peer.read_to_any_end();
        report.lock().unwrap().send((bytes.len(), end)).unwrap();
    });
    let proxy = Proxy::with(site, upstream.address(), options, &[usual(site)]);
    let mut client = Peer::connect(proxy.tcp());
    assert_eq!(client.read_to_end(), b"", "{name}");
    let sent = Arc::new(AtomicUsize::new(0));
    let progress = Arc::clone(&sent);
    let sender = std::thread::spawn(move || {
        let piece = [b'x'; 64 << 10];
        while progress.load(Ordering::Relaxed) < TOTAL && client.try_send(piece).is_ok() {
            progress.fetch_add(piece.len(), Ordering::Relaxed);
        }
        let _ = client.stream().shutdown(std::net::Shutdown::Write);
        drop(client);
    });
    let (mut last, mut same) = (0, 0);
    until("a server that is not sent to any more", || {
        let now = sent.load(Ordering::Relaxed);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (now > 0 && same == 20).then_some(())
    });
    assert!(last < TOTAL, "{name}: all of it is somewhere");
    then(proxy, go_on);
    let outcome = received.recv_timeout(DEADLINE).unwrap();
    sender.join().unwrap();
    (outcome.0.abs_diff(TOTAL), outcome.1)
}

#[test]
fn upstream_flush() {
    let name = "CiliumTcpProxyIntegrationTest.CiliumTcpProxyUpstreamFlush";
    let site = Site::new();
    let mut kept = None;
    let (short_of_all, end) = unread(name, &site, &Options::default(), |proxy, go_on| {
        go_on.send(()).unwrap();
        kept = Some(proxy);
    });
    assert_eq!((short_of_all, end), (0, End::Closed), "{name}");
    let flow = kept.unwrap().expect_flows(1).remove(0);
    assert_eq!((&flow["verdict"], &flow["bytes_up"]), (&json!("FORWARDED"), &json!(50 << 20)), "{name}");
}

/// Whoever has not got everything must not take it for the end.
#[test]
fn upstream_flush_and_exit() {
    let name = "CiliumTcpProxyIntegrationTest.CiliumTcpProxyUpstreamFlushEnvoyExit";
    let site = Site::new();
    let options = Options { top: "drain_timeout: 100ms".into(), ..Options::default() };
    let (short_of_all, end) = unread(name, &site, &options, |mut proxy, go_on| {
        proxy.terminate();
        assert_eq!(proxy.wait().code(), Some(0), "{name}: {}", proxy.process().output());
        go_on.send(()).unwrap();
    });
    assert!(short_of_all > 0 && end == End::Reset, "{name}: {short_of_all} bytes short, {end:?}");
}
