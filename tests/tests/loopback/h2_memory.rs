//! Memory of HTTP/2 beside the bodies that are under way: heads and trailers that a client does not read, and what a client
//! sends before it is asked for.

use std::collections::BTreeMap;

use serde_json::json;
use tollgate_tests::http2::{CLIENT_START, big_get, cancel, end_of, frame, get, headers, literal};
use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Proxy;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::memory::{GREEDY, MIB, NEIGHBOUR, connect, held, settle, shown, start, start_with};

/// Clients of the greedy tenant.
const CLIENTS: usize = 8;
/// Requests that each has under way.
const STREAMS: u32 = 10;
/// Heads of each answer.
const HEADS: u32 = 10;
/// Bytes of a head's fields, in so many fields.
const HEAD: (usize, usize) = (48_000, 24);
/// Bytes that a request is to have so that the upstream does what the test is about.
const SPECIAL: usize = 1000;

/// Of a frame: type, flags, stream, payload. `None` when the connection has ended.
pub(super) fn next_frame(peer: &mut Peer) -> Option<(u8, u8, u32, Vec<u8>)> {
    if !peer.wait_for_bytes() {
        return None;
    }
    let header = peer.read_exact(9);
    let [_, l0, l1, l2, kind, flags, s0, s1, s2, s3] = [&[0][..], &header].concat()[..] else { unreachable!() };
    let payload = peer.read_exact(u32::from_be_bytes([0, l0, l1, l2]) as usize);
    Some((kind, flags, u32::from_be_bytes([s0, s1, s2, s3]), payload))
}

/// An HTTP/2 upstream with these settings and all windows: it answers short requests, and asks `special` from the
/// first long one on (stream, and whether it has ended).
pub(super) fn upstream(site: &Site, settings: &'static [u8], special: fn(&mut Peer, u32, bool)) -> Upstream {
    Upstream::scripted(site, move |peer, _| {
        drop(peer.read_exact(24));
        peer.send(frame(4, 0, 0, &[&[0, 4, 0x7f, 0xff, 0xff, 0xff], settings].concat()));
        peer.send(frame(8, 0, 0, &[0x7f, 0xff, 0, 0]));
        // Tables make a field short that comes again.
        let mut is_special = false;
        while let Some((kind, flags, stream, payload)) = next_frame(peer) {
            let ends = flags & 1 != 0;
            is_special |= payload.len() > SPECIAL / 2;
            match kind {
                1 if !is_special => {
                    peer.send([headers(stream, false, b"\x88"), frame(0, 1, stream, b"ok")].concat());
                }
                0 | 1 => special(peer, stream, ends),
                4 if flags == 0 => peer.send(frame(4, 1, 0, b"")),
                _ => {}
            }
        }
    })
}

/// Fields of [`HEAD`], behind what the block begins with.
fn block(begins: &[u8]) -> Vec<u8> {
    let fields = (0..HEAD.1).map(|n| literal(&format!("x-{n}"), HEAD.0 / HEAD.1));
    [begins].into_iter().map(<[u8]>::to_vec).chain(fields).collect::<Vec<_>>().concat()
}

/// A client that was served once.
pub(super) fn served(site: &Site, proxy: &Proxy, endpoint: u8, settings: &[u8]) -> Peer {
    let mut client = connect(site, proxy, endpoint);
    client.send(CLIENT_START);
    client.send(get(1));
    client.read_until(&end_of(1));
    assert_eq!(client.read_exact(2), b"ok");
    // Until the acknowledgement the proxy's windows are small.
    client.send([frame(4, 1, 0, b""), frame(4, 0, 0, settings)].concat());
    client
}

/// Clients that were served once and then sent `asked`, once each has `least` on the account; and what they hold: as counted
/// before and after, and what the process grew by.
fn hold(site: &Site, proxy: &mut Proxy, settings: &[u8], asked: &[u8], least: usize) -> (Vec<Peer>, u64, u64, u64) {
    let mut clients: Vec<Peer> = (0..CLIENTS).map(|_| served(site, proxy, GREEDY, settings)).collect();
    let (before, counted) = (settle(site, proxy), held(proxy, "greedy"));
    clients.iter_mut().for_each(|client| client.send(asked));
    until("what they hold", || (held(proxy, "greedy") > counted + (CLIENTS * least) as u64).then_some(()));
    let grown = settle(site, proxy).saturating_sub(before);
    (clients, counted, held(proxy, "greedy"), grown)
}

/// Asserts that what is counted is what the process grew by, but for what `h2` takes for each client while it takes a head
/// of this size apart for one side and puts one together for the other.
fn assert_counted(before: u64, after: u64, grown: u64) {
    let counted = after - before;
    println!("{before}, then {after} bytes are on the account, the process grew by {grown}");
    assert!(grown < counted + CLIENTS as u64 * (512 << 10), "{counted} of {grown}");
    assert!(counted < grown / 4 * 5, "{counted} of {grown}");
}

/// Reads frames until `ended` streams have ended, and returns how many of a type came.
fn count(client: &mut Peer, kind: u8, ended: u32) -> u32 {
    let (mut seen, mut left) = (0, ended);
    while left > 0 {
        let frame = next_frame(client).expect("the connection goes on");
        seen += u32::from(frame.0 == kind);
        left -= u32::from(matches!(frame.0, 0 | 1) && frame.1 & 1 != 0);
    }
    seen
}

fn asked() -> Vec<u8> {
    (0..STREAMS).flat_map(|n| big_get(2 * n + 3, "/allowed", SPECIAL)).collect()
}

/// Interim heads and a final one.
fn heads(peer: &mut Peer, stream: u32, _: bool) {
    let (interim, last) = (headers(stream, false, &block(b"\x08\x03103")), headers(stream, true, &block(b"\x88")));
    // Fails when the proxy has ended, which the next read tells.
    let _ = peer.try_send([interim.repeat(HEADS as usize - 1), last].concat());
}

#[test]
fn heads_that_a_client_does_not_read_are_on_the_account_and_few() {
    let site = Site::new();
    let upstream = upstream(&site, b"", heads);
    let mut proxy = start(&site, upstream.address(), "weight: 1");
    let (mut clients, before, after, grown) = hold(&site, &mut proxy, b"", &asked(), 256 << 10);
    assert_counted(before, after, grown);
    let each = (after - before) / CLIENTS as u64;
    assert!((256 << 10..MIB).contains(&each), "{each}");
    // All of them come when they are asked for, and are gone then.
    for client in &mut clients {
        assert_eq!(count(client, 1, STREAMS), STREAMS * HEADS);
    }
    until("as much as before", || (held(&proxy, "greedy") <= before).then_some(()));
    drop(clients);
    until("nothing to be held", || (held(&proxy, "greedy") == 0).then_some(()));
}

#[test]
fn heads_that_a_client_does_not_read_keep_to_the_ceiling() {
    let site = Site::new();
    let upstream = upstream(&site, b"", heads);
    let mut proxy = start(&site, upstream.address(), "ceilings: { memory: 3MiB }");
    let (mut clients, _, after, grown) = hold(&site, &mut proxy, b"", &asked(), 100 << 10);
    assert!(after < 3 * MIB, "{after}");
    assert!(grown < 6 * MIB, "{grown}");
    let mut neighbour = served(&site, &proxy, NEIGHBOUR, b"");
    neighbour.send(big_get(3, "/allowed", SPECIAL));
    assert_eq!(count(&mut neighbour, 1, 1), HEADS);
    assert_eq!(shown(&proxy, "endpoint-8", "refusals"), json!({}));
    assert_eq!(shown(&proxy, "greedy", "refusals"), json!({}));
    assert_eq!(count(clients.last_mut().unwrap(), 1, STREAMS), STREAMS * HEADS);
}

#[test]
fn trailers_that_wait_for_a_window_are_on_the_account() {
    let site = Site::new();
    let upstream = upstream(&site, b"", |peer, stream, _| {
        let _ = peer.try_send([headers(stream, false, b"\x88"), frame(0, 0, stream, b"body")].concat());
        let _ = peer.try_send(headers(stream, true, &block(b"")));
    });
    let mut proxy = start(&site, upstream.address(), "weight: 1");
    // No window for streams, and all for the connection.
    let settings: &[u8] = &[0, 4, 0, 0, 0, 0];
    let (mut clients, before, after, grown) = hold(&site, &mut proxy, settings, &asked(), STREAMS as usize * HEAD.0);
    assert_counted(before, after, grown);
    for client in &mut clients {
        client.send(frame(4, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]));
        assert_eq!(count(client, 1, STREAMS), 2 * STREAMS);
    }
    until("as much as before", || (held(&proxy, "greedy") <= before).then_some(()));
}

/// A body of 10,000 bytes and trailers behind it.
fn body_and_trailers(peer: &mut Peer, stream: u32, _: bool) {
    let _ = peer.try_send([headers(stream, false, b"\x88"), frame(0, 0, stream, &[b'b'; 10_000])].concat());
    let _ = peer.try_send(headers(stream, true, &block(b"")));
}

#[test]
fn trailers_behind_a_body_that_is_paced_are_on_the_account() {
    let site = Site::new();
    let upstream = upstream(&site, b"", body_and_trailers);
    // One body of all goes at once, and the others wait for longer than any test does.
    let ceiling = "ceilings: { bytes: { per_second: 1KiB, burst: 16KiB } }";
    let mut proxy = start(&site, upstream.address(), ceiling);
    let least = STREAMS as usize * (HEAD.0 + 5000);
    let (clients, before, after, grown) = hold(&site, &mut proxy, b"", &asked(), least);
    assert_counted(before, after, grown);
    drop(clients);
    until("nothing to be held", || (held(&proxy, "greedy") == 0).then_some(()));
}

#[test]
fn trailers_come_behind_a_body_that_is_paced() {
    let site = Site::new();
    let upstream = upstream(&site, b"", body_and_trailers);
    let ceiling = "ceilings: { bytes: { per_second: 256KiB, burst: 16KiB } }";
    let proxy = start(&site, upstream.address(), ceiling);
    let mut client = served(&site, &proxy, GREEDY, b"");
    client.send(frame(8, 0, 0, &[0x7f, 0xff, 0, 0]));
    client.send(asked());
    let (mut body, mut trailers, mut left) = (0, 0, STREAMS);
    while left > 0 {
        let (kind, flags, _, payload) = next_frame(&mut client).expect("the connection goes on");
        body += if kind == 0 { payload.len() } else { 0 };
        if kind == 1 && flags & 1 != 0 {
            left -= 1;
            trailers += payload.len();
        }
        trailers += if kind == 9 { payload.len() } else { 0 };
    }
    // The last CONTINUATION frames may be on their way.
    assert_eq!(body, STREAMS as usize * 10_000);
    assert!(trailers > (STREAMS - 1) as usize * HEAD.0 * 3 / 4, "{trailers}");
    assert!(shown(&proxy, "greedy", "paced").as_u64().unwrap() > 0);
}

#[test]
fn bodies_that_are_kept_for_another_try_are_on_the_account() {
    const BODY: usize = 12_000;
    let site = Site::new();
    // Takes all, and answers when it is asked for something else.
    let upstream = upstream(&site, b"", |_, _, _| {});
    let listener = "reason_header: true, http: { retries: 3 }";
    let mut proxy = start_with(&site, upstream.address(), "weight: 1", listener);
    let asked: Vec<u8> = (0..STREAMS).flat_map(|n| post(2 * n + 3, &[&[b'b'; BODY]], true)).collect();
    let (clients, before, after, grown) = hold(&site, &mut proxy, b"", &asked, STREAMS as usize * BODY);
    assert_counted(before, after, grown);
    drop(clients);
    until("nothing to be held", || (held(&proxy, "greedy") == 0).then_some(()));
}

/// A request with a body, in so many frames. The policy allows no method but GET.
pub(super) fn post(stream: u32, body: &[&[u8]], ends: bool) -> Vec<u8> {
    let field = literal("x", 3 * SPECIAL);
    let head = headers(stream, false, &[&b"\x82\x86\x01\x01a\x04\x08/allowed"[..], &field].concat());
    let frames =
        body.iter().enumerate().map(|(n, piece)| frame(0, u8::from(ends && n + 1 == body.len()), stream, piece));
    [head].into_iter().chain(frames).collect::<Vec<_>>().concat()
}

/// What a client may still send: RFC 9113 section 5.2.
pub(super) struct Windows {
    pub(super) connection: usize,
    pub(super) stream: usize,
}

impl Windows {
    /// Sends on a stream, in so large a frame, once the windows allow it.
    pub(super) fn send(&mut self, client: &mut Peer, stream: u32, bytes: &[u8]) {
        while self.connection.min(self.stream) < bytes.len() {
            let (kind, _, of, payload) = next_frame(client).expect("the connection goes on");
            if kind == 8 {
                let more = u32::from_be_bytes(payload.try_into().unwrap()) as usize;
                *(if of == 0 { &mut self.connection } else { &mut self.stream }) += more;
            }
        }
        self.connection -= bytes.len();
        self.stream -= bytes.len();
        client.send(frame(0, 0, stream, bytes));
    }
}

/// Each would keep what was read together with it.
#[test]
fn small_pieces_that_wait_take_no_more_than_they_count() {
    const PIECES: usize = 2000;
    let site = Site::new();
    // No window for streams but the first of those, which takes all.
    let upstream = upstream(&site, &[0, 4, 0, 0, 0, 0], |peer, stream, _| {
        if stream == 3 {
            peer.send(frame(8, 0, stream, &[0, 0, 0xff, 0xff]));
        }
    });
    let mut proxy = start(&site, upstream.address(), "weight: 1");
    let mut client = served(&site, &proxy, GREEDY, b"");
    let mut windows = Windows { connection: 1 << 20, stream: 256 << 10 };
    client.send(post(3, &[], false));
    client.send(post(5, &[], false));
    windows.send(&mut client, 3, b"begins");
    let (before, counted) = (settle(&site, &mut proxy), held(&proxy, "greedy"));
    for _ in 0..PIECES {
        client.send(frame(0, 0, 5, b"x"));
        windows.connection -= 1;
        windows.send(&mut client, 3, &[b'y'; 8000]);
    }
    until("what waits", || (held(&proxy, "greedy") > counted + PIECES as u64 * 300).then_some(()));
    let grown = settle(&site, &mut proxy).saturating_sub(before);
    let counted = held(&proxy, "greedy") - counted;
    println!("{counted} bytes are on the account, the process grew by {grown}");
    assert!(grown < counted + MIB, "{counted} of {grown}");
}

/// Bytes of a request's body, as it comes and as it has to arrive.
fn body(stream: u32) -> Vec<u8> {
    (0..200_000_u32).map(|n| (n / 7 + stream) as u8).collect()
}

#[test]
fn bodies_that_wait_for_a_turn_are_on_the_account() {
    const BODIES: u32 = 5;
    let site = Site::new();
    // One stream at a time, and no answer before the end of a body.
    let upstream = upstream(&site, &[0, 3, 0, 0, 0, 1], |peer, stream, ends| {
        if ends && stream > 3 {
            peer.send([headers(stream, false, b"\x88"), frame(0, 1, stream, b"ok")].concat());
        }
    });
    let mut proxy = start(&site, upstream.address(), "weight: 1");
    // The first one has the turn, and is never answered.
    let mut asked = big_get(3, "/allowed", SPECIAL);
    let streams = || (0..BODIES).map(|n| 2 * n + 5);
    for stream in streams() {
        // :method POST; the policy allows no other way.
        asked.extend(headers(stream, false, b"\x82\x86\x01\x01a\x04\x08/allowed"));
        body(stream).chunks(16 << 10).for_each(|chunk| asked.extend(frame(0, 0, stream, chunk)));
        asked.extend(headers(stream, true, &block(b"")));
    }
    let (mut clients, before, after, grown) =
        hold(&site, &mut proxy, b"", &asked, BODIES as usize * (200_000 + HEAD.0));
    assert_counted(before, after, grown);
    for client in &mut clients {
        client.send(cancel(3));
        assert_eq!(count(client, 0, BODIES), BODIES);
    }
    until("as much as before", || (held(&proxy, "greedy") <= before).then_some(()));
    let received = upstream.received();
    let whole = received.iter().filter(|bytes| are_whole(bytes, streams())).count();
    assert_eq!(whole, CLIENTS);
}

/// Whether these bytes hold the bodies of these requests, on streams of whatever number.
fn are_whole(bytes: &[u8], mut requests: impl Iterator<Item = u32>) -> bool {
    let mut bodies: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut rest = bytes.get(24..).unwrap_or_default();
    while let [l0, l1, l2, kind, _, s0, s1, s2, s3, tail @ ..] = rest {
        let Some((payload, tail)) = tail.split_at_checked(u32::from_be_bytes([0, *l0, *l1, *l2]) as usize) else {
            break;
        };
        if *kind == 0 {
            bodies.entry(u32::from_be_bytes([*s0, *s1, *s2, *s3])).or_default().extend(payload);
        }
        rest = tail;
    }
    requests.all(|request| bodies.values().any(|got| *got == body(request)))
}
