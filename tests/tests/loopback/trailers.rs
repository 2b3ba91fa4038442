//! Which trailers may pass is decided when they pass, however long what comes before them takes.

use serde_json::{Value, json};
use tollgate_tests::http2::{CLIENT_START, SERVER_START, end_of, frame, frames, headers, literal};
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::h2_memory::next_frame;

/// Has a rule look at the field from now on.
fn have_role_read(site: &Site, proxy: &Proxy) {
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
