//! What an HTTP/2 connection can hold: nothing outlives its client, nothing grows without bound while a peer does not
//! read, and nothing leaves that was revoked.

use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use socket2::SockRef;
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, SERVER_START, big_get, cancel, end_of, get, headers_of};
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

/// Fields of as many streams as may be open with so much each are more than the kernel takes for a peer that does not read.
pub(super) const LARGE: usize = 55_000;
/// Streams that a client may have open.
pub(super) const STREAMS: u32 = 100;

/// An upstream that begins as HTTP/2 does, and reads nothing before the sender is dropped; then all until the end.
pub(super) fn silent_upstream(site: &Site) -> (Upstream, Sender<()>) {
    let listener = TcpListener::bind(site.at(0)).unwrap();
    // So that little of what is sent is with the kernel.
    SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    let (gate, opened): (Sender<()>, Receiver<()>) = channel();
    let opened = Arc::new(Mutex::new(opened));
    let upstream = Upstream::on(listener, move |peer, _| {
        peer.send(SERVER_START);
        // An error is what is waited for; all connections wait for the same.
        let _ = opened.lock().unwrap_or_else(PoisonError::into_inner).recv();
        while peer.wait_for_bytes() {
            peer.discard();
        }
    });
    (upstream, gate)
}

/// A client that asks, and knows when the proxy has dealt with what it asked.
pub(super) struct Client {
    pub(super) peer: Peer,
    next: u32,
}

impl Client {
    pub(super) fn connect(proxy: &Proxy) -> Self {
        let mut peer = Peer::connect(proxy.http());
        peer.send(CLIENT_START);
        Self::on(peer)
    }

    /// One that has begun.
    pub(super) fn on(peer: Peer) -> Self {
        Self { peer, next: 1 }
    }

    pub(super) fn stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    pub(super) fn ask(&mut self, path: &str, size: usize) -> u32 {
        let stream = self.stream();
        self.peer.send(big_get(stream, path, size));
        stream
    }

    /// Returns once everything sent so far was judged: the proxy takes streams in order, and answers this one itself.
    pub(super) fn settle(&mut self) {
        let stream = self.ask("/denied", 1);
        self.peer.read_until(&end_of(stream));
    }
}

#[test]
fn an_upstream_connection_ends_with_its_client() {
    const CLIENTS: usize = 4;
    let site = Site::new();
    let (upstream, _gate) = silent_upstream(&site);
    let mut proxy = Proxy::start(&site, upstream.address());
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(&proxy)).collect();
    for client in &mut clients {
        for _ in 1..STREAMS {
            client.ask("/allowed", LARGE);
        }
        client.settle();
    }
    assert_eq!(upstream.connections(), CLIENTS);
    // Not from before the clients: what else the proxy opens, it may open while they are there.
    let during = proxy.process().descriptors();
    drop(clients);
    // A probe of readiness may or may not be open at any time.
    until("the connections closed", || (proxy.process().descriptors() + 2 * CLIENTS <= during + 1).then_some(()));
}

#[test]
fn requests_that_were_given_up_do_not_pile_up() {
    const ROUNDS: u32 = 100;
    const AT_ONCE: u32 = 40;
    let site = Site::new();
    let (upstream, _gate) = silent_upstream(&site);
    // The rate of resets has a limit of its own.
    let options = Options { top: "limits: { http2_resets: \"off\" }".into(), ..Options::default() };
    let mut proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let (before, _) = proxy.process().memory();
    let mut client = Client::connect(&proxy);
    for _ in 0..ROUNDS {
        let streams: Vec<u32> = (0..AT_ONCE).map(|_| client.ask("/allowed", 8000)).collect();
        client.settle();
        client.peer.send(streams.into_iter().flat_map(cancel).collect::<Vec<u8>>());
    }
    client.settle();
    let (_, most) = proxy.process().memory();
    // 32 MB were sent.
    assert!(most - before < 12 << 10, "memory {before} KiB before, {most} KiB at most");
    assert!(proxy.process().descriptors() < 64, "connections that were cut are closed");
}

/// With an upstream that takes one stream at a time, too: whoever waits for a turn waits in nobody's memory.
#[test]
fn requests_wait_for_their_turn_and_can_be_given_up() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        // SETTINGS_MAX_CONCURRENT_STREAMS 1, acknowledged before anything is asked for.
        peer.send(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x01");
        peer.read_until(&headers_of(1));
        // 200 without an end, for as long as nobody resets it.
        peer.send(b"\0\0\x01\x01\x04\0\0\0\x01\x88");
        peer.read_until(&cancel(1)[3..]);
        peer.read_until(&headers_of(3));
        // 200 and the end.
        peer.send(b"\0\0\x01\x01\x05\0\0\0\x03\x88");
        while peer.wait_for_bytes() {
            peer.discard();
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Client::connect(&proxy);
    let first = client.stream();
    client.peer.send(get(first));
    client.peer.read_until(&[&[1, 4][..], &first.to_be_bytes()].concat());
    let given_up: Vec<u32> = (0..STREAMS / 2).map(|_| client.ask("/allowed", 8000)).collect();
    client.settle();
    let kept = client.stream();
    client.peer.send(get(kept));
    client.settle();
    client.peer.send(given_up.into_iter().flat_map(cancel).collect::<Vec<u8>>());
    client.settle();
    client.peer.send(cancel(first));
    client.peer.read_until(&[&[1, 5][..], &kept.to_be_bytes()].concat());
    let received = upstream.received().concat();
    assert!(received.len() < 8000, "nothing of the {} requests that were given up: {}", STREAMS / 2, received.len());
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_revoked_request_does_not_leave_when_the_upstream_reads_again() {
    const BEFORE: u32 = STREAMS - 2;
    let site = Site::new();
    let (upstream, gate) = silent_upstream(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Client::connect(&proxy);
    for _ in 0..BEFORE {
        client.ask("/allowed", LARGE);
    }
    let secret = client.stream();
    client.peer.send(get(secret));
    client.settle();
    proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[http_rule(".*", "/other")])]))]);
    client.peer.read_until(&end_of(secret));
    let flows = proxy.expect_flows(BEFORE as usize + 2);
    let revoked = flows.iter().filter(|flow| flow["reason"] == Reason::Revoked.code()).count();
    assert_eq!(revoked, BEFORE as usize + 1);
    drop((gate, client));
    until("the end at the upstream", || (upstream.finished() == 1).then_some(()));
    let received = upstream.received().concat();
    let head = headers_of(2 * BEFORE + 1);
    assert!(!received.windows(head.len()).any(|bytes| bytes == head), "it was sent after it had been refused");
}

/// A client that does not read holds little of ours.
#[test]
fn answers_that_nobody_reads_are_held_within_bounds() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let mut proxy = Proxy::start(&site, address.parse().unwrap());
    let (before, _) = proxy.process().memory();
    let client = Peer::connect(proxy.http());
    SockRef::from(client.stream()).set_recv_buffer_size(4096).unwrap();
    let mut client = client;
    // SETTINGS_INITIAL_WINDOW_SIZE and the connection's window as large as can be.
    client.send(CLIENT_START);
    client.send(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff");
    client.send(b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\x00\x00");
    for n in 0..STREAMS {
        client.send(big_get(2 * n + 1, "/allowed/big/250000", 1));
    }
    // Until nothing moves any more, although others make their way there and back.
    let mut other = Client::connect(&proxy);
    let mut seen = (0, 0);
    while seen.1 < 100 {
        let stream = other.stream();
        other.peer.send(get(stream));
        other.peer.read_until(&end_of(stream));
        let (now, _) = proxy.process().memory();
        seen = if now == seen.0 { (now, seen.1 + 1) } else { (now, 0) };
    }
    let (_, most) = proxy.process().memory();
    assert!(most - before < 14 << 10, "memory {before} KiB before, {most} KiB at most");
}
