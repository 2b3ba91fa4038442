//! Input that two readers could read differently, by row of the bad-input matrix: what each leads to at the client,
//! what of it the upstream sees, and that the next client notices nothing.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tollgate::reason::Reason;
use tollgate_tests::peer::{End, Peer};
use tollgate_tests::policy::{http_port, http_rule, ingress};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::{Upstream, websocket_request};

const GOOD: &str = "GET /allowed/good HTTP/1.1\r\nHost: a\r\n\r\n";
/// What an attacker hopes to bring past the proxy.
const SMUGGLED: &str = "GET /allowed/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// What one row leads to.
enum Expect {
    /// A refusal with this status ends the connection; the upstream is not even opened.
    Refused(u16),
    /// A reset without an answer; the upstream is not opened.
    Reset,
    /// Policy refuses it, by its canonical form; the upstream is not opened.
    Denied,
    /// The client is sent to this path.
    Redirect(&'static str),
    /// The upstream gets these bytes.
    Forwarded(Vec<u8>),
}
use Expect::{Denied, Forwarded, Redirect, Refused, Reset};

/// Row of the matrix, the client's bytes, what they lead to.
type Row = (u32, Vec<u8>, Expect);

fn row(number: u32, bytes: impl AsRef<[u8]>, expect: Expect) -> Row {
    (number, bytes.as_ref().to_vec(), expect)
}

/// A POST with these header lines besides Host, and everything behind them.
fn post(lines: &str, body: &str) -> String {
    format!("POST /allowed HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n{body}")
}

/// A GET with these header lines besides Host.
fn get(lines: &str) -> String {
    format!("GET /allowed HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n")
}

/// A request line, and Host.
fn line(line: &str) -> String {
    format!("{line}\r\nHost: a\r\n\r\n")
}

/// A GET of this target.
fn target(target: &str) -> String {
    line(&format!("GET {target} HTTP/1.1"))
}

/// Passes as it is.
fn same(number: u32, bytes: impl AsRef<[u8]>) -> Row {
    row(number, &bytes, Forwarded(bytes.as_ref().to_vec()))
}

/// Passes in another form.
fn changed(number: u32, bytes: impl AsRef<[u8]>, forwarded: impl AsRef<[u8]>) -> Row {
    row(number, bytes, Forwarded(forwarded.as_ref().to_vec()))
}

fn framing() -> Vec<Row> {
    let lengths = |value: &str| post(&format!("Content-Length: {value}"), "abc");
    let codings = |value: &str| post(&format!("Transfer-Encoding: {value}"), "0\r\n\r\n");
    let mut rows = vec![
        row(1, post("Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\nX"), Refused(400)),
        row(2, post("Transfer-Encoding: chunked\r\nContent-Length: 4", "1f\r\n"), Refused(400)),
        row(3, codings("xchunked"), Refused(501)),
        row(4, codings("chunked, identity"), Refused(400)),
        row(5, codings("identity, chunked"), Refused(501)),
        row(6, post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"), Refused(400)),
        row(7, codings(",chunked"), Refused(501)),
        row(8, codings("gzip, chunked"), Refused(501)),
        row(9, codings("\u{b}chunked"), Refused(400)),
        row(10, post("Transfer-Encoding : chunked", "0\r\n\r\n"), Refused(400)),
        row(11, codings("\r\n chunked"), Refused(400)),
        row(12, "POST /allowed HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        row(13, codings(""), Refused(400)),
        same(14, codings("CHUNKED")),
        row(15, post("Content-Length: 3\r\nContent-Length: 3", "abc"), Refused(400)),
        row(16, post("Content-Length: 3\r\nContent-Length: 0", "abc"), Refused(400)),
        changed(22, post("Content-Length: 010", "0123456789"), post("Content-Length: 10", "0123456789")),
        same(23, post("Content_Length: 3\r\nContent-Length: 0", "")),
        // A back end may ignore such a body, and would take it for a request.
        changed(24, get("Content-Length: 3") + "abc", get("Content-Length: 3\r\nConnection: close") + "abc"),
    ];
    let refused = [
        (17, "3, 3"),
        (18, "+3"),
        (19, "0x3"),
        (19, "-1"),
        (19, "1_0"),
        (20, ""),
        (21, "18446744073709551616"),
        (0, "3 4"),
        (0, "3\u{b}"),
    ];
    rows.extend(refused.map(|(number, value)| row(number, lengths(value), Refused(400))));
    rows
}

fn head_syntax() -> Vec<Row> {
    let mut rows = vec![
        row(42, "GET /allowed HTTP/1.1\nHost: a\n\n", Refused(400)),
        row(43, get("X: a\rY: b"), Refused(400)),
        row(44, get("X: a\nX-Inj: b"), Refused(400)),
        row(45, get("X: a\0b"), Refused(400)),
        row(46, get("X: a\r\n b"), Refused(400)),
        row(47, "GET /allowed HTTP/1.1\r\n Host: a\r\n\r\n", Refused(400)),
        row(48, get("Xabc"), Refused(400)),
        row(48, get(": x"), Refused(400)),
        row(48, get("X Y: 1"), Refused(400)),
        row(48, b"GET /allowed HTTP/1.1\r\nHost: a\r\nX\x85: 1\r\n\r\n", Refused(400)),
        same(49, b"GET /allowed HTTP/1.1\r\nHost: a\r\nX: \xff\xa0\r\n\r\n"),
        row(50, line("GET  /allowed  HTTP/1.1"), Refused(400)),
        row(50, line("GET\t/allowed\tHTTP/1.1"), Refused(400)),
        row(51, line("GET /allowed x HTTP/1.1"), Refused(400)),
        row(52, "GET /allowed\r\n\r\n", Refused(400)),
        row(55, get(&vec!["X: 1"; 200].join("\r\n")), Refused(431)),
        row(56, get(&format!("X: {}", "a".repeat(100 << 10))), Refused(431)),
        row(57, target(&format!("/allowed/{}", "a".repeat(70_000))), Refused(414)),
        row(0, format!("\r\n\r\n\r\n\r\n\r\n{GOOD}"), Refused(400)),
        changed(0, format!("\r\n{GOOD}"), GOOD),
        row(0, format!(" {GOOD}"), Reset),
        row(124, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Reset),
    ];
    for version in ["HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.1.1", "HTTP/11"] {
        rows.push(row(53, line(&format!("GET /allowed {version}")), Refused(400)));
    }
    rows
}

fn methods_and_authorities() -> Vec<Row> {
    let host = |lines: &str| format!("GET /allowed HTTP/1.1\r\n{lines}\r\n");
    let mut rows = vec![
        row(54, line("get /get-only HTTP/1.1"), Denied),
        same(54, line("GET /get-only HTTP/1.1")),
        row(58, host(""), Refused(400)),
        row(59, host("Host: a\r\nHost: a\r\n"), Refused(400)),
        row(59, host("Host: a\r\nHost: b\r\n"), Refused(400)),
        changed(
            62,
            "GET http://other:80/allowed HTTP/1.1\r\nhost: a\r\nX: 1\r\n\r\n",
            "GET /allowed HTTP/1.1\r\nhost: other:80\r\nX: 1\r\n\r\n",
        ),
        row(63, target("https://a/allowed"), Refused(400)),
        row(64, target("http://u@a/allowed"), Refused(400)),
        row(65, target("ftp://a/allowed"), Refused(400)),
        row(66, line("CONNECT a:80 HTTP/1.1"), Refused(405)),
        row(67, target("*"), Refused(400)),
        row(67, target("a:80"), Refused(400)),
        row(67, target("admin"), Refused(400)),
        same(68, line("OPTIONS * HTTP/1.1")),
        row(91, post("Expect: 200-ok\r\nContent-Length: 3", "abc"), Refused(417)),
        row(92, line("TRACE /allowed HTTP/1.1"), Refused(405)),
        same(94, "GET /allowed HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    ];
    for value in ["a, b", "a/b", "a b", "a@b", "", "a:", "a:70000", "[::1", "a\u{e9}"] {
        rows.push(row(60, host(&format!("Host: {value}\r\n")), Refused(400)));
    }
    rows
}

fn paths() -> Vec<Row> {
    let mut rows = vec![
        row(69, target("/allowed/../denied"), Denied),
        row(69, target("/allowed/%2e%2e/denied"), Denied),
        changed(69, target("/denied/../allowed"), target("/allowed")),
        row(70, target("/allowed/..%2fdenied"), Redirect("/denied")),
        row(70, target("/allowed/..%5cdenied"), Redirect("/denied")),
        row(70, target("/denied/..%2fallowed"), Redirect("/allowed")),
        row(71, target("//denied"), Denied),
        changed(71, target("/allowed//x///y"), target("/allowed/x/y")),
        row(72, target("/allowed\\..\\denied"), Denied),
        row(73, target("/allowed/..;/denied"), Denied),
        row(73, target("/allowed/..;x/denied"), Denied),
        changed(73, target("/allowed/.;/b"), target("/allowed/b")),
        row(74, target("/allowed/%2E%2e;/denied"), Denied),
        same(76, target("/allowed?/../denied")),
        same(77, target("/allowed/%252e%252e/denied")),
        changed(82, target("/%61llowed"), target("/allowed")),
        changed(83, target("/../../allowed"), target("/allowed")),
        same(84, target("/allowed%0d%0aX:1")),
    ];
    let refused = [
        (75, "/allowed#/../denied"),
        (75, "/denied?x#/allowed"),
        (78, "/allowed/%c0%ae%c0%ae/denied"),
        (78, "/allowed/%ff"),
        (79, "/allowed%00/denied"),
        (80, "/allowed/%zz"),
        (80, "/allowed/%"),
        (80, "/allowed/%2%65"),
        (81, "/allowed/\u{e9}"),
    ];
    rows.extend(refused.map(|(number, path)| row(number, target(path), Refused(400))));
    rows
}

fn hop_by_hop() -> Vec<Row> {
    let handshake = "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__";
    let plain = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
    vec![
        same(85, get("X-HTTP-Method-Override: DELETE\r\nX-Original-URL: /denied")),
        changed(86, get("Connection: keep-alive, X-Auth\r\nX-Auth: 1"), get("Connection: keep-alive")),
        changed(86, get("X-Auth: 1\r\nX-B: 2\r\nConnection: x-auth"), get("X-B: 2")),
        changed(87, get("Connection: Host"), plain),
        changed(87, post("Connection: Content-Length\r\nContent-Length: 3", "abc"), post("Content-Length: 3", "abc")),
        changed(
            87,
            post("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            post("Transfer-Encoding: chunked", "0\r\n\r\n"),
        ),
        changed(88, get(handshake), plain),
        changed(90, get("Connection: upgrade\r\nUpgrade: foo"), plain),
        changed(90, get("Connection: upgrade\r\nUpgrade: websocket, foo"), plain),
        // No handshake without a key, so an ordinary request.
        changed(
            90,
            get("Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"),
            get("Sec-WebSocket-Version: 13"),
        ),
        // Kept: a proxy that trusts none of them need not hide them.
        same(93, get("X-Forwarded-For: 127.0.0.1\r\nX-Envoy-Internal: true")),
    ]
}

struct World {
    proxy: Proxy,
    upstream: Upstream,
}

impl World {
    fn new() -> (Site, Self) {
        let site = Site::new();
        let upstream = Upstream::ok(&site);
        let rules = [http_rule(".*", r"\*|/allowed.*"), http_rule("GET", "/get-only")];
        let policy = ingress(&site, json!([http_port(HTTP_PORT, &rules)]));
        let proxy = Proxy::with(&site, upstream.address(), &Options::default(), &[policy]);
        (site, Self { proxy, upstream })
    }

    /// Sends `bytes` in `pieces`, and checks everything about what comes of it.
    fn check(&self, name: &str, bytes: &[u8], piece: usize, expect: &Expect) {
        let before = self.upstream.connections();
        let mut client = Peer::connect(self.proxy.http());
        for part in bytes.chunks(piece) {
            if client.try_send(part).is_err() {
                break; // Refused before it was all sent.
            }
        }
        if let Reset = expect {
            client.expect_reset();
        } else {
            self.check_answer(name, &mut client, expect);
        }
        let opened = self.upstream.connections() - before;
        if let Forwarded(forwarded) = expect {
            assert_eq!(opened, 1, "{name}");
            let received = self.upstream.received().swap_remove(before);
            assert_eq!(received.escape_ascii().to_string(), forwarded.escape_ascii().to_string(), "{name}");
        } else {
            assert_eq!(opened, 0, "{name}: the upstream got {}", self.upstream.text());
        }
        drop(client);
        let mut next = Peer::connect(self.proxy.http());
        next.send(GOOD);
        assert_eq!(next.read_message().status(), 200, "after {name}");
    }

    fn check_answer(&self, name: &str, client: &mut Peer, expect: &Expect) {
        let answer = client.read_message();
        let status = match expect {
            Refused(status) => *status,
            Denied => 403,
            Redirect(_) => 307,
            Forwarded(_) | Reset => 200,
        };
        assert_eq!(answer.status(), status, "{name}: {}", answer.head);
        match expect {
            Refused(_) => {
                assert_eq!(answer.field("connection"), Some("close"), "{name}");
                assert_eq!(client.read_to_end(), b"", "{name}");
            }
            Redirect(location) => assert_eq!(answer.field("location"), Some(*location), "{name}"),
            _ => {}
        }
    }
}

fn check_all(rows: Vec<Row>) {
    let (_site, world) = World::new();
    for (number, bytes, expect) in rows {
        let name = format!("row {number}: {}", bytes[..bytes.len().min(160)].escape_ascii());
        world.check(&name, &bytes, bytes.len(), &expect);
        if bytes.len() < 500 {
            world.check(&format!("{name}, byte by byte"), &bytes, 1, &expect);
        }
        if let Refused(_) = expect {
            // What hides behind it is not taken for a request.
            let with_more = [bytes.as_slice(), SMUGGLED.as_bytes()].concat();
            world.check(&format!("{name}, with more"), &with_more, with_more.len(), &expect);
        }
    }
}

#[test]
fn ambiguous_framing() {
    check_all(framing());
}

#[test]
fn broken_heads() {
    check_all(head_syntax());
}

#[test]
fn wrong_methods_and_authorities() {
    check_all(methods_and_authorities());
}

#[test]
fn paths_that_mean_another() {
    check_all(paths());
}

#[test]
fn fields_of_one_hop() {
    check_all(hop_by_hop());
}

/// Rows 26–38 and 41: the framing breaks after the head was admitted, so the upstream must see an abort, never an end.
#[test]
fn broken_chunks_abort_the_upstream() {
    let head = post("Transfer-Encoding: chunked\r\nTrailer: X", "");
    let bodies: Vec<String> = [
        "0x3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n0\r\n\r\n",
        "3 x\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3;\nxx\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcXX0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\r\n",
        "0\r\nbad name: 1\r\n\r\n",
        "0\r\nX: 1\n\r\n",
        "3\r\nabc\r\n0\r\nX: a\0\r\n\r\n",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([
        format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(64 << 10)),
        format!("1;{}\r\na\r\n", "x".repeat(60)).repeat(1000) + "0\r\n\r\n",
        format!("0\r\nX: {}\r\n\r\n", "a".repeat(9 << 10)),
    ])
    .collect();

    let site = Site::new();
    let (report, ends) = channel();
    let report = Arc::new(Mutex::new(report));
    let upstream = Upstream::scripted(&site, move |peer, _| {
        let (bytes, end) = peer.read_to_any_end();
        report.lock().unwrap().send((bytes, end)).unwrap();
    });
    let proxy = Proxy::start(&site, upstream.address());
    for body in &bodies {
        let name = &body[..body.len().min(60)];
        let mut client = Peer::connect(proxy.http());
        // Fails when the proxy has seen enough.
        let _ = client.try_send(format!("{head}{body}{SMUGGLED}"));
        let (bytes, end) = ends.recv_timeout(tollgate_tests::wait::DEADLINE).expect(name);
        assert_eq!(end, End::Reset, "{name:?}: the upstream got {}", bytes.escape_ascii());
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains("smuggled") && !text.ends_with("0\r\n\r\n"), "{name:?}: {text}");
        let answer = client.read_message();
        assert_eq!((answer.status(), answer.field("connection")), (400, Some("close")), "{name:?}");
    }
    proxy.expect_reason(Reason::MalformedRequest);
}

/// Row 25: an empty body ends where it says.
#[test]
fn what_follows_an_empty_body_has_its_own_verdict() {
    let (_site, world) = World::new();
    let mut client = Peer::connect(world.proxy.http());
    client.send(post("Content-Length: 0", &target("/denied")));
    assert_eq!(client.read_message().status(), 200);
    assert_eq!(client.read_message().status(), 403);
}

/// Row 89: a handshake that the upstream does not take up opens no tunnel.
#[test]
fn what_follows_a_refused_handshake_has_its_own_verdict() {
    let (_site, world) = World::new();
    let mut client = Peer::connect(world.proxy.http());
    let handshake = websocket_request("/allowed");
    client.send(format!("{handshake}{}", target("/denied")));
    assert_eq!(client.read_message().status(), 200);
    assert_eq!(client.read_message().status(), 403);
    world.upstream.expect(handshake);
}

#[test]
fn each_refusal_names_its_reason() {
    let (_site, world) = World::new();
    for (bytes, reason) in [
        (get("X: a\0"), Reason::MalformedRequest),
        (target("/allowed/%00"), Reason::AmbiguousPath),
        (target("/allowed/a%2fb"), Reason::PathRedirect),
        ("GET /allowed HTTP/1.1\r\n\r\n".to_owned(), Reason::BadAuthority),
        (target(&format!("/{}", "a".repeat(70_000))), Reason::TargetTooLong),
        (get(&format!("X: {}", "a".repeat(70_000))), Reason::HeadersTooLarge),
        (post("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"), Reason::TransferCoding),
        (line("TRACE /allowed HTTP/1.1"), Reason::MethodNotSupported),
        (post("Expect: cake\r\nContent-Length: 1", "a"), Reason::Expectation),
    ] {
        let mut client = Peer::connect(world.proxy.http());
        let _ = client.try_send(bytes);
        let answer = client.read_message();
        assert_eq!(answer.field("x-tollgate-reason"), Some(reason.code()));
        assert_eq!(answer.status(), reason.answer().status);
        let record = world.proxy.expect_reason(reason);
        assert_eq!(record["verdict"], "DROPPED", "{record}");
        assert_eq!(record["detail"].is_string(), reason != Reason::PathRedirect, "{record}");
    }
    Peer::expect_reset_at(world.proxy.http(), "\0\0\0\0");
    world.proxy.expect_reason(Reason::ProtocolUnknown);
}
