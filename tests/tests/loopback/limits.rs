//! Time limits of exchanges and upstream connections, where a listener has them (`spec/cilium-agent.md` section 2.3).

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, SERVER_START, get, headers_of};
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{OK, Upstream, WEBSOCKET_ACCEPTED, next_request, websocket_request};
use tollgate_tests::wait::until;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";

fn proxy(site: &Site, upstream: &Upstream, http: &str) -> Proxy {
    let options = Options { listener: format!("reason_header: true, http: {{ {http} }}"), ..Options::default() };
    Proxy::with(site, upstream.address(), &options, &[usual(site)])
}

/// Reads whatever comes and says nothing.
fn silent(site: &Site) -> Upstream {
    Upstream::scripted(site, |peer, _| drop(peer.read_to_any_end()))
}

#[track_caller]
fn expect_answer(client: &mut Peer, status: u16, reason: Reason) {
    let answer = client.read_message();
    assert_eq!((answer.status(), answer.field("x-tollgate-reason")), (status, Some(reason.code())));
    client.read_to_end();
}

#[test]
fn a_response_that_does_not_come_is_504() {
    let site = Site::new();
    let upstream = silent(&site);
    for settings in ["timeout: 200ms", "stream_idle_timeout: 200ms"] {
        let proxy = proxy(&site, &upstream, settings);
        let mut client = Peer::connect(proxy.http());
        client.send(GET);
        expect_answer(&mut client, 504, Reason::UpstreamTimeout);
        let record = proxy.expect_reason(Reason::UpstreamTimeout);
        assert_eq!(record["verdict"], "ERROR", "{record}");
    }
    until("the upstream connections to end", || (upstream.finished() == 2).then_some(()));
}

#[test]
fn a_request_that_does_not_end_is_408() {
    let site = Site::new();
    let upstream = silent(&site);
    let proxy = proxy(&site, &upstream, "stream_idle_timeout: 200ms, timeout: 100ms");
    let mut client = Peer::connect(proxy.http());
    client.send("POST /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    expect_answer(&mut client, 408, Reason::DownstreamTimeout);
}

#[test]
fn a_response_that_stalls_is_reset() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        peer.read_to_any_end();
    });
    for settings in ["timeout: 300ms", "stream_idle_timeout: 300ms"] {
        let proxy = proxy(&site, &upstream, settings);
        let mut client = Peer::connect(proxy.http());
        client.send(GET);
        assert!(client.read_head().starts_with("HTTP/1.1 200"));
        assert_eq!(client.read_exact(4), b"half");
        client.expect_reset();
        proxy.expect_reason(Reason::UpstreamTimeout);
    }
}

/// A stream that moves is not idle, however long it takes.
#[test]
fn what_moves_is_not_idle() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\n");
        for _ in 0..25 {
            std::thread::sleep(Duration::from_millis(200));
            peer.send("x");
        }
    });
    let proxy = proxy(&site, &upstream, "stream_idle_timeout: 4s");
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    assert_eq!(client.read_message().body, [b'x'; 25]);
}

#[test]
fn a_clients_own_deadline_counts_where_the_listener_heeds_it() {
    const DEADLINE: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\nGrpc-Timeout: 100m\r\n\r\n";
    let site = Site::new();
    let upstream = silent(&site);
    let heeding = proxy(&site, &upstream, "grpc_timeout: true");
    let mut client = Peer::connect(heeding.http());
    client.send(DEADLINE);
    expect_answer(&mut client, 504, Reason::UpstreamTimeout);
    drop(heeding);

    let slow = Upstream::scripted(&site, |peer, _| {
        while next_request(peer).is_some() {
            std::thread::sleep(Duration::from_millis(400));
            peer.send(OK);
        }
    });
    let not_heeding = proxy(&site, &slow, "grpc_timeout: false");
    let mut client = Peer::connect(not_heeding.http());
    client.send(DEADLINE);
    assert_eq!(client.read_message().status(), 200);
}

#[test]
fn http_2_has_the_same_limits() {
    let site = Site::new();
    let upstream = silent(&site);
    let curl = |proxy: &Proxy, fields: &[&str]| {
        let url = format!("http://{}/allowed", proxy.http());
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--http2-prior-knowledge", "-o", "/dev/null", "-D", "-", &url]);
        for field in fields {
            command.args(["-H", field]);
        }
        let output = command.output().expect("curl is installed; see tests/missing-packages");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for settings in ["timeout: 200ms", "stream_idle_timeout: 200ms", "grpc_timeout: true"] {
        let proxy = proxy(&site, &upstream, settings);
        let plain = curl(&proxy, &["grpc-timeout: 200m"]);
        assert!(plain.starts_with("HTTP/2 504"), "{settings}: {plain}");
        let grpc = curl(&proxy, &["grpc-timeout: 200m", "content-type: application/grpc"]);
        assert!(grpc.contains("grpc-status: 4") && grpc.contains("grpc-message: upstream_timeout"), "{grpc}");
        proxy.expect_reason(Reason::UpstreamTimeout);
    }
}

#[test]
fn an_idle_upstream_connection_is_let_go_and_the_clients_stays() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = proxy(&site, &upstream, "upstream_idle_timeout: 200ms");
    let mut client = Peer::connect(proxy.http());
    for connections in 1..=2 {
        client.send(GET);
        assert_eq!(client.read_message().status(), 200);
        assert_eq!(upstream.connections(), connections);
        until("the idle upstream connection to end", || (upstream.finished() == connections).then_some(()));
    }
}

#[test]
fn an_idle_upstream_connection_of_http_2_is_let_go_and_the_clients_stays() {
    const GOAWAY: &[u8] = b"\0\0\x08\x07\0\0\0\0\0";
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.send(SERVER_START);
        peer.read_until(&headers_of(1));
        peer.send(b"\0\0\x01\x01\x05\0\0\0\x01\x88");
        peer.read_to_any_end();
    });
    let proxy = proxy(&site, &upstream, "upstream_idle_timeout: 200ms");
    let mut client = Peer::connect(proxy.http());
    client.send(CLIENT_START);
    for (connections, stream) in [(1, 1_u32), (2, 3)] {
        client.send(get(stream));
        client.read_until(&[&[1, 5][..], &stream.to_be_bytes()].concat());
        assert_eq!(upstream.connections(), connections);
        until("the idle upstream connection to end", || (upstream.finished() == connections).then_some(()));
    }
    let ended = |bytes: &Vec<u8>| bytes.windows(GOAWAY.len()).any(|part| part == GOAWAY);
    assert!(upstream.received().iter().all(ended), "{}", upstream.text());
    proxy.expect_flows(2);
}

/// The upstream takes one stream at a time.
#[test]
fn a_request_of_http_2_that_waits_for_its_turn_has_limits_too() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        // SETTINGS_MAX_CONCURRENT_STREAMS 1, and 200 without an end.
        peer.send(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x01");
        peer.read_until(&headers_of(1));
        peer.send(b"\0\0\x01\x01\x04\0\0\0\x01\x88");
        peer.read_to_any_end();
    });
    let proxy = proxy(&site, &upstream, "grpc_timeout: true");
    let seen = script::run(python, &site, "h2_client.py", &["waiting", &proxy.http().to_string()]);
    assert_eq!((&seen["second"]["status"], &seen["first"]), (&json!(504), &json!(null)), "{seen}");
    assert_eq!(proxy.expect_reason(Reason::UpstreamTimeout)["l7"]["http"]["url"], "http://a/allowed/second");
    assert_eq!(upstream.connections(), 1);
}

/// However long its answer takes: the next request joins it.
#[test]
fn an_upstream_connection_of_http_2_with_a_stream_is_not_idle() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.send(SERVER_START);
        peer.read_until(&headers_of(1));
        peer.read_until(&headers_of(3));
        for stream in [1_u32, 3] {
            peer.send([&b"\0\0\x01\x01\x05"[..], &stream.to_be_bytes(), b"\x88"].concat());
        }
        peer.read_to_any_end();
    });
    let proxy = proxy(&site, &upstream, "upstream_idle_timeout: 200ms");
    let mut client = Peer::connect(proxy.http());
    client.send(CLIENT_START);
    client.send(get(1));
    until("the request at the upstream", || (!upstream.text().is_empty()).then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    client.send(get(3));
    client.read_until(b"\x01\x05\0\0\0\x03\x88");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn bytes_that_do_not_move_are_reset() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.send("hello");
        peer.read_to_any_end();
    });
    for (keys, limited) in [("tcp_idle_timeout: 300ms", true), ("http: { stream_idle_timeout: 300ms }", false)] {
        let options = Options { listener: keys.into(), ..Options::default() };
        let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
        let mut client = Peer::connect(proxy.tcp());
        client.send("hello");
        assert_eq!(client.read_exact(5), b"hello");
        if limited {
            client.expect_reset();
            let record = proxy.expect_reason(Reason::UpstreamTimeout);
            assert_eq!((&record["bytes_up"], &record["bytes_down"]), (&json!(5), &json!(5)), "{record}");
            until("the upstream's end", || (upstream.finished() == 1).then_some(()));
        } else {
            std::thread::sleep(Duration::from_secs(1));
            client.finish_sending();
            client.read_to_end();
        }
    }
}

#[test]
fn websockets_can_be_forbidden_and_may_idle_out() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send(WEBSOCKET_ACCEPTED);
        peer.read_to_any_end();
    });
    let forbidding = proxy(&site, &upstream, "websocket: false");
    let mut client = Peer::connect(forbidding.http());
    client.send(websocket_request("/allowed"));
    let answer = client.read_message();
    assert_eq!((answer.status(), answer.field("x-tollgate-reason")), (403, Some(Reason::UpgradeNotAllowed.code())));
    assert_eq!(upstream.connections(), 0);
    drop(forbidding);

    let proxy = proxy(&site, &upstream, "stream_idle_timeout: 200ms");
    let mut client = Peer::connect(proxy.http());
    client.send(websocket_request("/allowed"));
    assert_eq!(client.read_head(), WEBSOCKET_ACCEPTED);
    client.expect_reset();
    proxy.expect_reason(Reason::UpstreamTimeout);
}
