//! Which trailers may pass is decided when they pass, however long what comes before them takes.

use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use serde_json::{Value, json};
use socket2::SockRef;
use tollgate_tests::http2::{CLIENT_START, SERVER_START, end_of, frame, frames, get, headers, headers_of, literal};
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::h2_limits::{Client, LARGE, STREAMS, silent_upstream};
use super::h2_memory::next_frame;

/// Has a rule look at the field from now on.
pub(super) fn have_role_read(site: &Site, proxy: &Proxy) {
    let admins: Value = json!({"headers": [{"name": "x-role", "stringMatch": {"exact": "admin"}}]});
    proxy.push(&[ingress(site, json!([http_port(HTTP_PORT, &[http_rule(".*", "/|/allowed.*"), admins])]))]);
}

#[test]
fn of_http_1() {
    const HEAD: &str =
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Role, X-Sum\r\n\r\n2\r\nhi\r\n";
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send(HEAD);
    upstream.expect(HEAD);
    have_role_read(&site, &proxy);
    client.send("0\r\nX-Role: admin\r\nX-Sum: 1\r\n\r\n");
    assert_eq!(client.read_message().status(), 200);
    upstream.expect(format!("{HEAD}0\r\nX-Sum: 1\r\n\r\n"));
}

/// They come at once, and wait for the body before them.
#[test]
fn of_http_2_behind_a_body_that_is_paced() {
    const BODY: usize = 20_000;
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        drop(peer.read_exact(24));
        peer.send(SERVER_START);
        while let Some((kind, flags, stream, _)) = next_frame(peer) {
            if matches!(kind, 0 | 1) && flags & 1 != 0 {
                peer.send([headers(stream, false, b"\x88"), frame(0, 1, stream, b"ok")].concat());
            }
        }
    });
    let paced = "ceilings: { bytes: { per_second: 1KiB, burst: 16KiB } }";
    let top = format!("tenants: {{ groups: [{{ name: slow, members: {{ endpoint_ids: [7] }}, {paced} }}] }}");
    let proxy = Proxy::with(&site, upstream.address(), &Options { top, ..Options::default() }, &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    let post = headers(1, false, b"\x83\x86\x84\x01\x01a");
    let body: Vec<u8> = [b'b'; BODY].chunks(10_000).flat_map(|piece| frame(0, 0, 1, piece)).collect();
    client.send([CLIENT_START, &post, &body, &headers(1, true, &literal("x-role", 5))].concat());
    let came = || upstream.received().first().map_or(0, Vec::len);
    until("what goes at once", || (came() > 10_000).then_some(()));
    have_role_read(&site, &proxy);
    assert!(came() < BODY, "the rest is held back for some seconds");
    client.read_until(&end_of(1));
    let frames = frames(&upstream.received()[0][24..]);
    let (_, trailers) = frames.iter().rfind(|(kind, _)| *kind == 1).unwrap();
    assert_eq!((frames.iter().filter(|(kind, _)| *kind == 1).count(), &trailers[..]), (2, &b""[..]));
}

/// They come at once, and what is before them waits for the window of an upstream that takes its time.
#[test]
fn of_http_2_behind_a_body_that_waits_for_a_window() {
    const POST: u32 = 3;
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        drop(peer.read_exact(24));
        // SETTINGS_INITIAL_WINDOW_SIZE: 0
        peer.send(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
        while let Some((kind, flags, stream, _)) = next_frame(peer) {
            if matches!(kind, 0 | 1) && flags & 1 != 0 {
                peer.send(headers(stream, true, b"\x88"));
                if stream > POST {
                    peer.send(frame(8, 0, POST, &[0, 0, 1, 0]));
                }
            }
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Client::connect(&proxy);
    // Its window is known when it has answered.
    let first = client.stream();
    client.peer.send(get(first));
    client.peer.read_until(&headers_of(first));
    assert_eq!(client.stream(), POST);
    let post = headers(POST, false, b"\x83\x86\x84\x01\x01a");
    client.peer.send([post, frame(0, 0, POST, b"hi"), headers(POST, true, &literal("x-role", 5))].concat());
    client.settle();
    have_role_read(&site, &proxy);
    let opening = client.stream();
    client.peer.send(get(opening));
    client.peer.read_until(&headers_of(POST));
    let frames = frames(&upstream.received()[0][24..]);
    let of_post: Vec<_> = frames.iter().rev().take(2).map(|(kind, payload)| (*kind, &payload[..])).collect();
    assert_eq!(of_post, [(1, &b""[..]), (0, b"hi")]);
}

/// Their body has left, but the upstream reads nothing more: what is queued for it cannot be judged again, nor be sent.
#[test]
fn of_http_2_for_an_upstream_that_does_not_read() {
    let site = Site::new();
    let (upstream, gate) = silent_upstream(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Client::connect(&proxy);
    let post = client.stream();
    client.peer.send([headers(post, false, b"\x83\x86\x84\x01\x01a"), frame(0, 0, post, b"hi")].concat());
    client.settle();
    for _ in 0..STREAMS - 2 {
        client.ask("/allowed", LARGE);
    }
    client.settle();
    client.peer.send(headers(post, true, &literal("x-role", 5)));
    client.settle();
    have_role_read(&site, &proxy);
    client.peer.read_until(&end_of(post));
    drop((gate, client));
    until("the end at the upstream", || (upstream.finished() == 1).then_some(()));
    let (received, head) = (upstream.received().concat(), headers_of(post));
    assert!(!received.windows(head.len()).any(|bytes| bytes == head), "the trailer was sent");
}

/// The same where the upstream goes away in order meanwhile, and another connection of the client's takes what it is sent.
#[test]
fn of_http_2_for_an_upstream_that_goes_and_does_not_read() {
    let (leave, leaves) = channel::<()>();
    let leaves = Mutex::new(leaves);
    let site = Site::new();
    let listener = TcpListener::bind(site.at(0)).unwrap();
    // So that little of what is sent is with the kernel.
    SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    let upstream = Upstream::on(listener, move |peer, connection| {
        drop(peer.read_exact(24));
        peer.send(frame(4, 0, 0, b""));
        if connection == 0 {
            let leaves = leaves.lock().unwrap();
            let _ = leaves.recv();
            // GOAWAY for what comes from now on.
            peer.send(frame(7, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]));
            let _ = leaves.recv();
            drop(peer.read_to_any_end());
        }
        while let Some((kind, flags, stream, _)) = next_frame(peer) {
            if kind == 1 && flags & 1 != 0 {
                peer.send(headers(stream, true, b"\x88"));
            }
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Client::connect(&proxy);
    let post = client.stream();
    client.peer.send([headers(post, false, b"\x83\x86\x84\x01\x01a"), frame(0, 0, post, b"hi")].concat());
    client.settle();
    for _ in 0..STREAMS / 2 {
        client.ask("/allowed", LARGE);
    }
    client.settle();
    client.peer.send(headers(post, true, &literal("x-role", 5)));
    client.settle();
    leave.send(()).unwrap();
    until("another connection", || {
        let stream = client.stream();
        client.peer.send(get(stream));
        client.settle();
        (upstream.received().len() == 2).then_some(())
    });
    until("a request on it", || upstream.received()[1].windows(6).any(|frame| frame == headers_of(1)).then_some(()));
    have_role_read(&site, &proxy);
    client.peer.read_until(&end_of(post));
    drop((leave, client));
    until("the end at the upstream", || (upstream.finished() >= 1).then_some(()));
    let (received, head) = (upstream.received()[0].clone(), headers_of(post));
    assert!(!received.windows(head.len()).any(|bytes| bytes == head), "the trailer was sent");
}
