//! Connections that wait for their client hold their place until others need it.

use std::net::SocketAddr;

use socket2::SockRef;
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, big_get, go_away};
use tollgate_tests::peer::{End, Peer};
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";

/// A request for it panics.
const PANIC: &str = "/allowed/panic";

/// A proxy with eighteen places, of which one tenant may have nine and one remote identity of it eight; four of these are thought enough,
/// and there is no patience above that.
fn start(site: &Site, upstream: &Upstream, mode: &str) -> Proxy {
    start_at(site, upstream.address(), mode, "")
}

/// With more at the top of the configuration.
fn start_at(site: &Site, upstream: SocketAddr, mode: &str, top: &str) -> Proxy {
    let idle =
        "idle_connections: { above_percent: 50, before_request: 0s, while_not_reading: 0s, between_requests: 0s }";
    let top = format!("max_connections: 18\nlimits: {{ mode: {mode}, {idle} }}\n{top}");
    let environment = &[("TOLLGATE_FAULT_PANIC_PATH", PANIC), ("RUST_BACKTRACE", "0")];
    Proxy::with(site, upstream, &Options { top, environment, ..Options::default() }, &[usual(site)])
}

fn open(proxy: &Proxy) -> f64 {
    proxy.metric("tollgate_connections_open{listener=\"http\",direction=\"ingress\"}")
}

/// Connects, sends `bytes`, and returns once so many connections are open.
fn connect(proxy: &Proxy, bytes: impl AsRef<[u8]>, then_open: f64) -> Peer {
    let mut peer = Peer::connect(proxy.http());
    peer.send(bytes);
    until("the connection", || (open(proxy) == then_open).then_some(()));
    peer
}

fn ask(peer: &mut Peer) {
    peer.send(GET);
    assert_eq!(peer.read_message().status(), 200);
}

fn reaped(proxy: &Proxy) -> usize {
    proxy.flows().iter().filter(|flow| flow["reason"] == Reason::IdleReaped.code()).count()
}

#[test]
fn who_waits_longest_makes_room_and_who_never_asked_goes_first() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = start(&site, &upstream, "enforce");
    let mut first = connect(&proxy, "", 1.0);
    ask(&mut first);
    let mut preface_only = connect(&proxy, CLIENT_START, 2.0);
    let mut silent = connect(&proxy, "", 3.0);
    let mut half_a_head = connect(&proxy, "GET /allowed HT", 4.0);
    ask(&mut first);
    assert_eq!(reaped(&proxy), 0, "there is room");

    // One by one, as each takes the place of the longest silent.
    let mut second = Peer::connect(proxy.http());
    let (bytes, _) = preface_only.read_to_any_end();
    assert_eq!(go_away(&bytes), Some((0, String::new())));
    until("its place", || (open(&proxy) == 4.0).then_some(()));
    ask(&mut second);
    let mut third = Peer::connect(proxy.http());
    assert_eq!(silent.read_to_end(), b"");
    until("its place", || (open(&proxy) == 4.0).then_some(()));
    ask(&mut third);
    let mut fourth = Peer::connect(proxy.http());
    assert_eq!(half_a_head.read_to_end(), b"");
    until("its place", || (open(&proxy) == 4.0).then_some(()));
    ask(&mut fourth);

    // All have asked now, `second` the longest ago.
    ask(&mut first);
    let mut fifth = Peer::connect(proxy.http());
    assert_eq!(second.read_to_end(), b"");
    for peer in [&mut first, &mut third, &mut fourth, &mut fifth] {
        ask(peer);
    }
    until("the records", || (reaped(&proxy) == 4).then_some(()));
    let record = proxy.expect_reason(Reason::IdleReaped);
    assert_eq!(record["verdict"], "DROPPED", "{record}");
    assert_eq!(proxy.metric("tollgate_refusals_total{reason=\"idle_reaped\"}"), 4.0);
}

/// Whoever is in the middle of something is not idle, however long it takes.
#[test]
fn who_waits_for_an_answer_stays() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| drop(peer.read_to_any_end()));
    let proxy = start(&site, &upstream, "enforce");
    let ask_in_vain = |n: u8| {
        let peer = connect(&proxy, GET, f64::from(n));
        until("the request", || (upstream.connections() == usize::from(n)).then_some(()));
        peer
    };
    let peers: Vec<Peer> = (1..=8).map(ask_in_vain).collect();
    Peer::expect_reset_at(proxy.http(), "");
    proxy.expect_reason(Reason::TenantShare);
    assert_eq!((open(&proxy), reaped(&proxy)), (8.0, 0));
    drop(peers);
}

#[test]
fn shadow_lets_them_stay() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = start(&site, &upstream, "shadow");
    // Of shares, too.
    let mut peers: Vec<Peer> = (1..=18).map(|n| connect(&proxy, "", f64::from(n))).collect();
    Peer::expect_reset_at(proxy.http(), "");
    peers.iter_mut().for_each(ask);
    assert!(proxy.metric("tollgate_shadow_refusals_total{reason=\"idle_reaped\"}") >= 4.0);
    assert_eq!(reaped(&proxy), 0);
}

#[test]
fn who_does_not_read_makes_room() {
    let site = Site::new();
    // The first gets more than sockets hold, all others nothing.
    let upstream = Upstream::scripted(&site, |peer, number| {
        peer.read_head();
        if number == 0 {
            peer.send("HTTP/1.1 200 OK\r\n\r\n");
            let _ = (0..4096).try_for_each(|_| peer.try_send([b'x'; 64 << 10]));
            return;
        }
        peer.read_to_any_end();
    });
    let proxy = start(&site, &upstream, "enforce");
    let ask_in_vain = |n: u8| {
        let peer = connect(&proxy, GET, f64::from(n));
        until("the request", || (upstream.connections() == usize::from(n)).then_some(()));
        peer
    };
    let mut slow = ask_in_vain(1);
    let others: Vec<Peer> = (2..=4).map(ask_in_vain).collect();
    assert!(slow.read_head().starts_with("HTTP/1.1 200"));
    until("its end", || {
        drop(Peer::try_connect(proxy.http()));
        proxy.flows().into_iter().find(|flow| flow["reason"] == Reason::SlowReader.code())
    });
    let record = proxy.expect_reason(Reason::SlowReader);
    assert_eq!((&record["verdict"], &record["l7"]["http"]["code"]), (&"DROPPED".into(), &200.into()), "{record}");
    until("its place", || (open(&proxy) == 3.0).then_some(()));
    assert_eq!(proxy.metric("tollgate_refusals_total{reason=\"slow_reader\"}"), 1.0);
    drop(others);
}

#[test]
fn a_client_of_http_2_that_does_not_read_makes_room() {
    who_does_not_read_makes_room_after("", |_, _| {});
}

/// As its tenant is kept apart, it is told to come again in time, which it does not heed.
#[test]
fn a_client_of_http_2_that_is_sent_away_and_does_not_read_makes_room() {
    // In a lane there would be places of another thread's to make room in.
    who_does_not_read_makes_room_after("lanes: off", |proxy, client| {
        [3, 5, 7].into_iter().for_each(|stream| client.send(big_get(stream, PANIC, 1)));
        until("the panics", || (proxy.metric("tollgate_connection_panics_total") == 3.0).then_some(()));
    });
}

/// A client of HTTP/2 does not read an answer, and `then` does that before places run short. The configuration has `top`, too.
fn who_does_not_read_makes_room_after(top: &str, then: impl FnOnce(&Proxy, &mut Peer)) {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let proxy = start_at(&site, address.parse().unwrap(), "enforce", top);
    let mut slow = Peer::connect(proxy.http());
    SockRef::from(slow.stream()).set_recv_buffer_size(4096).unwrap();
    slow.send(CLIENT_START);
    // Windows as large as can be.
    slow.send(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff");
    slow.send(b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\x00\x00");
    slow.send(big_get(1, "/allowed/big/20000000", 1));
    // These wait for an answer that does not end.
    let hang = |n: u8| {
        let mut peer = connect(&proxy, CLIENT_START, f64::from(n));
        peer.send(big_get(1, "/allowed/hang", 1));
        peer.read_until(&[&[1, 4][..], &1_u32.to_be_bytes()].concat());
        peer
    };
    let others: Vec<Peer> = (2..=4).map(hang).collect();
    then(&proxy, &mut slow);
    until("its end", || {
        drop(Peer::try_connect(proxy.http()));
        let of_connection = |flow: &serde_json::Value| flow["reason"] == "slow_reader" && flow["l7"].is_null();
        proxy.flows().into_iter().find(of_connection)
    });
    until("the record of its stream", || {
        let of_stream = |flow: &serde_json::Value| flow["reason"] == "slow_reader" && !flow["l7"].is_null();
        proxy.flows().into_iter().find(of_stream)
    });
    until("its place", || (open(&proxy) == 3.0).then_some(()));
    assert_eq!(slow.read_to_any_end().1, End::Reset);
    drop(others);
}
