//! Bodies far larger than any buffer pass whole, and in flat memory.

use std::fs::File;
use std::process::Command;

use tollgate_tests::nginx::Nginx;
use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Proxy;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{OK, Upstream};

const GIB: u64 = 1 << 30;
/// Memory that the proxy may gain over idle, in KiB.
const GROWTH: u64 = 4 << 10;
/// Size of a chunk in chunked bodies, and of a write in all.
const PIECE: usize = 256 << 10;

/// A pattern without a period that any buffer size divides.
fn pattern() -> Vec<u8> {
    (0..PIECE).map(|at| ((at * 31) ^ (at >> 8)) as u8).collect()
}

/// One chunk of a chunked body, which repeated and closed by [`LAST_CHUNK`] is `GIB` long.
fn chunk() -> Vec<u8> {
    [format!("{PIECE:x}\r\n").as_bytes(), &pattern(), b"\r\n"].concat()
}

const LAST_CHUNK: &str = "0\r\n\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked";

/// Framing field, what is repeated, how many bytes of it, and what ends the body.
fn bodies() -> [(String, Vec<u8>, u64, &'static str); 2] {
    let chunk = chunk();
    let chunked = chunk.len() as u64 * (GIB / PIECE as u64);
    [(format!("Content-Length: {GIB}"), pattern(), GIB, ""), (CHUNKED.to_owned(), chunk, chunked, LAST_CHUNK)]
}

/// Runs `transfer`, and checks what memory the proxy needed for it.
fn in_flat_memory(name: &str, proxy: &mut Proxy, transfer: impl FnOnce(&mut Proxy)) {
    let (idle, _) = proxy.process().memory();
    transfer(proxy);
    let (now, most) = proxy.process().memory();
    println!("{name}: {idle} KiB idle, {now} KiB after, {most} KiB at most");
    assert!(most - idle < GROWTH, "{name}: {idle} KiB idle, {most} KiB at most");
}

#[test]
fn one_gibibyte_up() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        while peer.wait_for_bytes() {
            let head = peer.read_head();
            peer.stop_recording();
            let (_, repeated, total, end) = bodies().into_iter().find(|(field, ..)| head.contains(field)).unwrap();
            peer.expect_repeated(&repeated, total);
            assert_eq!(peer.read_exact(end.len()), end.as_bytes());
            peer.send(OK);
        }
    });
    let mut proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    for (field, repeated, total, end) in bodies() {
        in_flat_memory(&format!("upload, {field}"), &mut proxy, |_| {
            client.send(format!("POST /allowed HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n"));
            client.send_repeated(&repeated, total);
            client.send(end);
            assert_eq!(client.read_message().status(), 200);
        });
    }
    let flows = proxy.expect_flows(2);
    assert_eq!(flows[0]["bytes_up"].as_u64(), Some(GIB));
}

#[test]
fn one_gibibyte_down() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        while peer.wait_for_bytes() {
            let head = peer.read_head();
            let [length, chunked] = bodies();
            let (field, repeated, total, end) = if head.contains("/chunked") { chunked } else { length };
            peer.send(format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n"));
            peer.send_repeated(&repeated, total);
            peer.send(end);
        }
    });
    let mut proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    for (path, (field, repeated, total, end)) in ["/allowed/length", "/allowed/chunked"].into_iter().zip(bodies()) {
        in_flat_memory(&format!("download, {field}"), &mut proxy, |_| {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(client.read_head(), format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n"));
            client.expect_repeated(&repeated, total);
            assert_eq!(client.read_exact(end.len()), end.as_bytes());
        });
    }
    let flows = proxy.expect_flows(2);
    assert_eq!(flows[0]["bytes_down"].as_u64(), Some(GIB));
}

#[test]
fn one_gibibyte_down_over_http_2() {
    let site = Site::new();
    let nginx = Nginx::start(&site, &[("allowed/zeros", b"")]);
    File::create(site.path("www/allowed/zeros")).unwrap().set_len(GIB).unwrap();
    let mut proxy = Proxy::start(&site, nginx.http2());
    in_flat_memory("download over HTTP/2", &mut proxy, |proxy| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "120", "--http2-prior-knowledge", "--output", "/dev/null"])
            .args(["--write-out", "%{http_version} %{http_code} %{size_download}"])
            .arg(format!("http://{}/allowed/zeros", proxy.http()))
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text, format!("2 200 {GIB}"), "{}", String::from_utf8_lossy(&output.stderr));
    });
}
