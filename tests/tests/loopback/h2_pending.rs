//! Requests that `h2` keeps although their upstream reads, since it takes one at a time: nothing of them leaves that was revoked, and those
//! given up are few and on the account.

use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde_json::json;
use tollgate_tests::http2::{CLIENT_START, cancel, end_of, frame, get, headers, headers_of, literal};
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::h2_limits::Client;
use super::h2_memory::next_frame;
use super::memory::{self, GREEDY, held};
use super::trailers::have_role_read;

/// The stream of [`waiting_behind`].
const WAITS: u32 = 5;

/// An upstream whose first connection takes one stream at a time, gives none a window, and is sent `then` when the sender is dropped. It answers streams
/// up to `answered` as soon as they begin; other connections answer all.
fn one_at_a_time(site: &Site, answered: u32, then: Vec<u8>) -> (Upstream, Sender<()>) {
    let (gate, opened) = channel();
    let opened = Mutex::new(Some((opened, then)));
    let upstream = Upstream::scripted(site, move |peer, _| {
        let first = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        let last = if first.is_some() { answered } else { u32::MAX };
        // SETTINGS_MAX_CONCURRENT_STREAMS 1, SETTINGS_INITIAL_WINDOW_SIZE 0
        peer.send(frame(4, 0, 0, &[0, 3, 0, 0, 0, 1, 0, 4, 0, 0, 0, 0]));
        if let Some((opened, then)) = first {
            let mut stream = peer.stream().try_clone().unwrap();
            thread::spawn(move || {
                let _ = opened.recv();
                // Fails when the connection has been cut, which is what most wait for.
                let _ = stream.write_all(&then);
            });
        }
        drop(peer.read_exact(24));
        while let Some((kind, _, stream, _)) = next_frame(peer) {
            if kind == 1 && stream <= last {
                let _ = peer.try_send(headers(stream, true, b"\x88"));
            }
        }
    });
    (upstream, gate)
}

/// What lets the body of stream 3 pass, which has been answered.
fn window() -> Vec<u8> {
    frame(8, 0, 3, &[0, 0, 1, 0])
}

/// Has the only stream be taken by a request that was answered while its body waits for a window: the next one waits in `h2`.
fn waiting_behind(peer: Peer) -> Client {
    let mut client = Client::on(peer);
    let (first, early) = (client.stream(), client.stream());
    client.peer.send(get(first));
    // What the upstream takes is known when it has answered.
    client.peer.read_until(&headers_of(first));
    // A GET of `/allowed` with a body: all policies here let it pass.
    let request = headers(early, false, &get(early)[9..]);
    client.peer.send([request, frame(0, 1, early, b"hi")].concat());
    client.peer.read_until(&headers_of(early));
    client
}

/// The same of a client that begins.
fn waiting(proxy: &Proxy) -> Client {
    let mut peer = Peer::connect(proxy.http());
    peer.send(CLIENT_START);
    waiting_behind(peer)
}

/// Allows another path alone.
fn forbid(site: &Site, proxy: &Proxy) {
    proxy.push(&[ingress(site, json!([http_port(HTTP_PORT, &[http_rule(".*", "/other")])]))]);
}

/// Type and stream of all frames that have come to the upstream's first connection.
fn frames(upstream: &Upstream) -> Vec<(u8, u32)> {
    let received = upstream.received().first().cloned().unwrap_or_default();
    let mut rest = received.get(24..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some((&[l0, l1, l2, kind, _, s0, s1, s2, s3], payload)) = rest.split_first_chunk::<9>() {
        frames.push((kind, u32::from_be_bytes([s0, s1, s2, s3])));
        rest = payload.get(u32::from_be_bytes([0, l0, l1, l2]) as usize..).unwrap_or_default();
    }
    frames
}

/// Whether the head of this stream is among them.
fn has_come(upstream: &Upstream, stream: u32) -> bool {
    frames(upstream).contains(&(1, stream))
}

#[test]
fn a_revoked_request_does_not_leave_when_the_one_before_it_has() {
    let site = Site::new();
    let (upstream, gate) = one_at_a_time(&site, 3, window());
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = waiting(&proxy);
    let secret = client.stream();
    assert_eq!(secret, WAITS);
    client.peer.send(get(secret));
    client.settle();
    forbid(&site, &proxy);
    client.peer.read_until(&end_of(secret));
    drop(gate);
    until("its end or its head", || (upstream.finished() == 1 || has_come(&upstream, WAITS)).then_some(()));
    assert!(!has_come(&upstream, WAITS), "it was sent after it had been refused");
}

/// The first requests of a connection come to `h2` before it knows how many the upstream takes.
#[test]
fn a_revoked_request_of_a_burst_does_not_leave() {
    const BURST: u32 = 10;
    let site = Site::new();
    let (upstream, gate) = one_at_a_time(&site, 0, headers(1, true, b"\x88"));
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Client::connect(&proxy);
    let burst: Vec<u8> = (0..BURST).flat_map(|_| get(client.stream())).collect();
    client.peer.send(burst);
    client.settle();
    until("the first at the upstream", || has_come(&upstream, 1).then_some(()));
    forbid(&site, &proxy);
    proxy.expect_flows(BURST as usize + 1);
    drop((gate, client));
    until("the end at the upstream", || (upstream.finished() == 1).then_some(()));
    let frames = frames(&upstream);
    let after_reset = frames.iter().skip_while(|(kind, _)| *kind != 3).any(|(kind, _)| *kind == 1);
    assert!(!after_reset, "one was sent after the first had been refused: {frames:?}");
}

/// Nobody waits for it, but the upstream would do it.
#[test]
fn a_request_that_was_given_up_does_not_leave_once_policy_has_changed() {
    let site = Site::new();
    let (upstream, gate) = one_at_a_time(&site, 3, window());
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = waiting(&proxy);
    let secret = client.stream();
    client.peer.send(get(secret));
    client.settle();
    client.peer.send(cancel(secret));
    client.settle();
    forbid(&site, &proxy);
    until("another connection", || {
        client.ask("/other", 1);
        client.settle();
        (upstream.connections() == 2).then_some(())
    });
    drop(gate);
    until("its end or its head", || (upstream.finished() == 1 || has_come(&upstream, WAITS)).then_some(()));
    assert!(!has_come(&upstream, WAITS), "it was sent after it had been forbidden");
}

/// Nothing is before it that could wait for a window.
#[test]
fn a_trailer_that_a_rule_has_come_to_read_does_not_leave() {
    let site = Site::new();
    let (upstream, gate) = one_at_a_time(&site, 3, window());
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = waiting(&proxy);
    let post = client.stream();
    let head = headers(post, false, b"\x83\x86\x84\x01\x01a");
    client.peer.send([head, headers(post, true, &literal("x-role", 5))].concat());
    client.settle();
    have_role_read(&site, &proxy);
    client.peer.read_until(&end_of(post));
    drop(gate);
    until("its end or its head", || (upstream.finished() == 1 || has_come(&upstream, WAITS)).then_some(()));
    assert!(!has_come(&upstream, WAITS), "the trailer was sent");
}

#[test]
fn requests_that_were_given_up_and_have_not_left_are_on_the_account() {
    const HEAD: usize = 8000;
    const GIVEN_UP: u32 = 20;
    let site = Site::new();
    let (upstream, gate) = one_at_a_time(&site, 3, window());
    let proxy = memory::start(&site, upstream.address(), "weight: 1");
    let mut peer = memory::connect(&site, &proxy, GREEDY);
    peer.send(CLIENT_START);
    let mut client = waiting_behind(peer);
    let before = held(&proxy, "greedy");
    for _ in 0..GIVEN_UP {
        let stream = client.ask("/allowed", HEAD);
        client.settle();
        client.peer.send(cancel(stream));
    }
    client.settle();
    let all = u64::from(GIVEN_UP) * HEAD as u64;
    until("them on the account", || (held(&proxy, "greedy") > before + all).then_some(()));
    drop(gate);
    until("them at the upstream", || has_come(&upstream, WAITS + 2 * (GIVEN_UP - 1)).then_some(()));
    until("as much as before", || (held(&proxy, "greedy") <= before).then_some(()));
}

#[test]
fn requests_that_were_given_up_and_have_not_left_are_few() {
    let site = Site::new();
    let (upstream, _gate) = one_at_a_time(&site, 3, window());
    // The rate of resets has a limit of its own.
    let options = Options { top: "limits: { http2_resets: \"off\" }".into(), ..Options::default() };
    let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let mut client = waiting(&proxy);
    for _ in 0..40 {
        let stream = client.ask("/allowed", 8000);
        client.settle();
        client.peer.send(cancel(stream));
    }
    client.settle();
    until("the end at the upstream", || (upstream.finished() >= 1).then_some(()));
    assert!(!has_come(&upstream, WAITS), "it has been cut");
}
