//! Ports whose policy has no HTTP rules: bytes and their ends pass as they are, or the connection is reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use serde_json::json;
use tollgate::reason::Reason;
use tollgate_tests::peer::{End, Peer};
use tollgate_tests::policy::{http_port, http_rule, ingress, tcp_port, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site, TCP_PORT};
use tollgate_tests::upstream::{OK, Upstream, WEBSOCKET_ACCEPTED, websocket_request};
use tollgate_tests::wait::{DEADLINE, until};

#[test]
fn bytes_and_half_closes_pass_both_ways() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, connection| {
        if connection == 0 {
            // The server speaks first, and ends first.
            peer.send("\x00hello\r\n");
            peer.finish_sending();
            peer.read_to_end();
        } else {
            // The client ends first; the server still answers.
            let said = peer.read_to_end();
            peer.send(said);
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.tcp());
    assert_eq!(client.read_to_end(), b"\x00hello\r\n");
    client.send("late words");
    drop(client);
    upstream.expect("late words");

    let mut client = Peer::connect(proxy.tcp());
    client.send(b"GET / HTTP/1.1\r\n\r\n\xff\x00");
    client.finish_sending();
    assert_eq!(client.read_to_end(), b"GET / HTTP/1.1\r\n\r\n\xff\x00");

    let flows = proxy.expect_flows(2);
    assert_eq!((&flows[0]["bytes_up"], &flows[0]["bytes_down"]), (&json!(10), &json!(8)));
    assert_eq!((&flows[1]["verdict"], &flows[1]["reason"]), (&json!("FORWARDED"), &json!(null)));
}

/// Whoever does not read is waited for, not buffered for.
#[test]
fn a_reader_that_rests_gets_everything_in_the_end() {
    const TOTAL: usize = 50 << 20;
    const PIECE: usize = 64 << 10;
    let piece = |index: usize| [index.to_be_bytes().as_slice(), &[b'x'; PIECE - size_of::<usize>()]].concat();
    let site = Site::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let progress = Arc::clone(&sent);
    let upstream = Upstream::scripted(&site, move |peer, _| {
        for index in 0..TOTAL / PIECE {
            peer.send(piece(index));
            progress.fetch_add(PIECE, Ordering::Relaxed);
        }
    });
    let mut proxy = Proxy::start(&site, upstream.address());
    let (_, before) = proxy.process().memory();
    let mut client = Peer::connect(proxy.tcp());
    let mut last = 0;
    let mut same = 0;
    until("an upstream that is not read from any more", || {
        let now = sent.load(Ordering::Relaxed);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (now > 0 && same == 20).then_some(())
    });
    for index in 0..TOTAL / PIECE {
        assert!(client.read_exact(PIECE) == piece(index), "piece {index}");
    }
    assert_eq!(client.read_to_end(), b"");
    let (_, after) = proxy.process().memory();
    assert!(after - before < 4096, "memory at most {before} KiB before, {after} KiB after");
}

#[test]
fn a_reset_is_a_reset_on_the_other_side() {
    let site = Site::new();
    let (report, ends) = channel();
    let report = std::sync::Mutex::new(report);
    let upstream = Upstream::scripted(&site, move |peer, connection| {
        peer.send("x");
        if connection == 0 {
            report.lock().unwrap().send(peer.read_to_any_end().1).unwrap();
        } else {
            peer.read_exact(1);
            socket2::SockRef::from(peer.stream()).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.tcp());
    client.read_exact(1);
    client.reset();
    assert_eq!(ends.recv_timeout(DEADLINE), Ok(End::Reset));
    proxy.expect_reason(Reason::DownstreamReset);

    let mut client = Peer::connect(proxy.tcp());
    client.read_exact(1);
    client.send("x");
    client.expect_reset();
    proxy.expect_reason(Reason::UpstreamReset);
}

#[test]
fn an_upstream_that_refuses_is_a_reset() {
    let site = Site::new();
    let proxy = Proxy::start(&site, site.at(25099));
    Peer::expect_reset_at(proxy.tcp(), "");
    proxy.expect_reason(Reason::UpstreamConnect);
}

/// Connections that policy does not admit are reset before any byte, with the reason that fits.
#[test]
fn what_policy_denies_is_reset() {
    let http = http_port(HTTP_PORT, &[http_rule("GET", "/allowed")]);
    for (entry, reason) in [
        (http, Reason::PortNotAllowed),
        (json!({"port": TCP_PORT, "rules": [{"remotePolicies": [1234]}]}), Reason::PeerNotAllowed),
        (json!({"port": TCP_PORT, "rules": [{"deny": true}]}), Reason::DenyRule),
        (json!({"port": TCP_PORT, "endPort": 1, "rules": [{"deny": true}]}), Reason::Quarantined),
    ] {
        let site = Site::new();
        let upstream = Upstream::ok(&site);
        let policy = ingress(&site, json!([entry]));
        let proxy = Proxy::with(&site, upstream.address(), &Options::default(), &[policy]);
        Peer::expect_reset_at(proxy.tcp(), "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(proxy.expect_reason(reason)["verdict"], "DROPPED");
        assert_eq!(upstream.connections(), 0, "{reason:?}");
    }
}

#[test]
fn peers_are_told_apart_by_identity() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let options = Options { identities: "[{ identity: 1234, addresses: [127.0.0.1] }]".into(), ..Options::default() };
    let only = |identity: u32| {
        let entry = json!({"port": TCP_PORT, "rules": [{"remotePolicies": [identity]}]});
        [ingress(&site, json!([entry]))]
    };
    let proxy = Proxy::with(&site, upstream.address(), &options, &only(1234));
    let mut client = Peer::connect(proxy.tcp());
    client.send("GET / HTTP/1.1\r\n\r\n");
    assert_eq!(client.read_exact(OK.len()), OK.as_bytes());
    proxy.push(&only(4321));
    client.expect_reset();
    Peer::expect_reset_at(proxy.tcp(), "");
    assert_eq!(proxy.expect_reason(Reason::PeerNotAllowed)["source"]["identity"], 1234);
}

/// Live connections follow policy: whatever it no longer allows ends at once, whatever it still allows goes on.
#[test]
fn policy_that_changes_ends_what_it_no_longer_allows() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        let head = peer.read_head();
        peer.send(if head.contains("websocket") {
            WEBSOCKET_ACCEPTED
        } else {
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        });
        while peer.wait_for_bytes() {
            let said = peer.read_exact(1);
            peer.send(said);
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut tcp = Peer::connect(proxy.tcp());
    tcp.send("x\r\n\r\n");
    tcp.read_head();
    let mut stream = Peer::connect(proxy.http());
    stream.send("GET /allowed/stream HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.read_until(b"1\r\nx\r\n");
    let [mut kept, mut websocket] = ["/allowed/kept", "/allowed/ended"].map(|path| {
        let mut client = Peer::connect(proxy.http());
        client.send(websocket_request(path));
        assert_eq!(tollgate_tests::peer::status(&client.read_head()), 101);
        client
    });
    let echoes = |client: &mut Peer| {
        client.send("\x01");
        client.read_exact(1) == b"\x01"
    };
    assert!(echoes(&mut kept) && echoes(&mut websocket));

    // The same again ends nothing.
    proxy.push(&[usual(&site)]);
    assert!(echoes(&mut kept) && echoes(&mut websocket));

    let rule = http_rule("GET", "/allowed/kept");
    proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[rule])]))]);
    websocket.expect_reset();
    stream.expect_reset();
    until("the end of the TCP connection", || (proxy.flows().len() == 3).then_some(()));
    let (_, end) = tcp.read_to_any_end();
    assert_eq!(end, End::Reset);
    assert!(echoes(&mut kept), "what is still allowed goes on");
    for flow in proxy.expect_flows(3) {
        assert_eq!((&flow["reason"], &flow["verdict"]), (&json!("revoked"), &json!("DROPPED")));
    }
}

/// A port that gains HTTP rules inspects from then on: what passes uninspected has to end.
#[test]
fn a_port_that_gains_rules_ends_uninspected_connections() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.send("x");
        peer.wait_for_bytes();
    });
    let plain = ingress(&site, json!([tcp_port(TCP_PORT)]));
    let proxy = Proxy::with(&site, upstream.address(), &Options::default(), &[plain]);
    let mut client = Peer::connect(proxy.tcp());
    client.read_exact(1);
    proxy.push(&[ingress(&site, json!([http_port(TCP_PORT, &[http_rule("GET", "/allowed")])]))]);
    client.expect_reset();
    proxy.expect_reason(Reason::Revoked);
}
