//! What heads of HTTP/2 requests keep in memory beside themselves: what they were read with, and what was sent with them.

use tollgate_tests::http2::{end_of, frame, get, headers, literal};
use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Proxy;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::h2_memory::{Windows, post, served, upstream};
use super::memory::{GREEDY, MIB, held, settle, start};

const CLIENTS: usize = 4;

/// Each alone would keep the 8 KiB that it was read with.
#[test]
fn small_heads_between_other_frames_take_no_more_than_they_count() {
    const HEADS: u32 = 95;
    let site = Site::new();
    // Takes the first body, for which it gives a window, and answers nothing.
    let upstream = upstream(&site, &[0, 4, 0, 0, 0, 0], |peer, stream, _| {
        if stream == 3 {
            peer.send(frame(8, 0, stream, &[0, 0, 0xff, 0xff]));
        }
    });
    let mut proxy = start(&site, upstream.address(), "weight: 1");
    let mut clients: Vec<Peer> = (0..CLIENTS).map(|_| served(&site, &proxy, GREEDY, b"")).collect();
    let (before, counted) = (settle(&site, &mut proxy), held(&proxy, "greedy"));
    for client in &mut clients {
        let mut windows = Windows { connection: 1 << 20, stream: 256 << 10 };
        client.send(post(3, &[], false));
        for n in 0..HEADS {
            windows.send(client, 3, &[b'y'; 8000]);
            client.send(get(2 * n + 5));
        }
    }
    let least = CLIENTS as u64 * u64::from(HEADS) * 6000;
    until("the requests", || (held(&proxy, "greedy") > counted + least).then_some(()));
    let grown = settle(&site, &mut proxy).saturating_sub(before);
    let counted = held(&proxy, "greedy") - counted;
    println!("{counted} bytes are on the account, the process grew by {grown}");
    assert!(grown < counted / 10 * 12 + MIB / 2, "{counted} of {grown}");
}

/// A field that tables keep, and one that they do not, which is large.
fn head(n: u32) -> Vec<u8> {
    let small = format!("{n:04}");
    [&b"\x82\x86\x01\x01a\x04\x08/allowed\x40\x01x\x04"[..], small.as_bytes(), &literal("f", 14_000)].concat()
}

/// A path that tables keep, and a field that they do not, which is large. The table of `h2` keeps a path where it was read.
fn head_with_path(n: u32) -> Vec<u8> {
    let path = format!("/allowed/{n:04}");
    [&b"\x82\x86\x01\x01a\x44\x0d"[..], path.as_bytes(), &literal("f", 14_000)].concat()
}

/// So many of these heads.
const HEADS: u32 = 150;

/// Clients of a proxy that have sent these heads and got their answers; what is on the account without them and with them, and what the
/// process grew by.
fn clients_of(site: &Site, upstream: &Upstream, head: fn(u32) -> Vec<u8>) -> (Proxy, Vec<Peer>, [u64; 2], u64) {
    let mut proxy = start(site, upstream.address(), "weight: 1");
    let mut clients: Vec<Peer> = (0..CLIENTS).map(|_| served(site, &proxy, GREEDY, b"")).collect();
    let (before, counted) = (settle(site, &mut proxy), held(&proxy, "greedy"));
    for client in &mut clients {
        for n in 0..HEADS {
            client.send(headers(2 * n + 3, true, &head(n)));
            client.read_until(&end_of(2 * n + 3));
        }
    }
    let grown = settle(site, &mut proxy).saturating_sub(before);
    let counted = [counted, held(&proxy, "greedy")];
    println!("{counted:?} bytes are on the account, the process grew by {grown}");
    (proxy, clients, counted, grown)
}

fn ok(peer: &mut Peer, stream: u32, _: bool) {
    peer.send([headers(stream, false, b"\x88"), frame(0, 1, stream, b"ok")].concat());
}

#[test]
fn what_tables_keep_of_paths_is_on_the_account() {
    let site = Site::new();
    let upstream = upstream(&site, b"", ok);
    let (proxy, mut clients, [counted, with_paths], grown) = clients_of(&site, &upstream, head_with_path);
    let idle = with_paths.saturating_sub(counted);
    assert!(idle > 2 * MIB, "{idle}: nothing is kept");
    assert!(grown < idle / 10 * 12 + MIB / 2 && idle < grown / 10 * 12 + MIB / 2, "{idle} of {grown}");
    // Fields that take the place of the paths.
    for client in &mut clients {
        let field = [&b"\x40\x01x\x7f\x81\x18"[..], &[b'v'; 3200]].concat();
        let stream = 2 * HEADS + 3;
        client.send(headers(stream, true, &[&b"\x82\x86\x01\x01a\x04\x08/allowed"[..], &field, &field].concat()));
        client.read_until(&end_of(stream));
    }
    until("nothing to be kept", || (held(&proxy, "greedy") < counted + MIB / 2).then_some(()));
}

/// When they are sent on, and when they are read.
#[test]
fn what_tables_keep_of_heads_does_not_keep_the_rest() {
    let site = Site::new();
    let upstream = upstream(&site, b"", ok);
    let (_proxy, _clients, [before, after], grown) = clients_of(&site, &upstream, head);
    let counted = after.saturating_sub(before);
    assert!(grown < counted + MIB, "{counted} of {grown}");
}
