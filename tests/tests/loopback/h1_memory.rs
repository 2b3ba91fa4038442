//! Memory of HTTP/1 requests under way beside what was read of them: what is made of their heads.

use std::fmt::Write as _;

use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Proxy;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::memory::{GREEDY, NEIGHBOUR, connect, held, shown, start};

const CLIENTS: usize = 150;
/// Bytes of each head.
const HEAD: usize = 45_000;

/// Resident bytes of the process once nothing moves any more, although requests go there and answers come back.
fn settled(site: &Site, proxy: &mut Proxy) -> u64 {
    let mut other = connect(site, proxy, NEIGHBOUR);
    let mut seen = (0, 0);
    while seen.1 < 100 {
        other.send("GET /refused HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(other.read_message().status(), 403);
        let now = proxy.process().memory().0;
        seen = if now == seen.0 { (now, seen.1 + 1) } else { (now, 0) };
    }
    seen.0 * 1024
}

/// Clients that each have a request under way which counts as `least` bytes or more. Asserts that what is counted of them is what
/// the process grows by, and that nothing counts when they are gone.
fn assert_counted(request: &str, least: usize) {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| drop(peer.read_to_any_end()));
    let mut proxy = start(&site, upstream.address(), "weight: 1");
    let ask = |proxy: &Proxy, count: usize| {
        let mut clients: Vec<Peer> = (0..count).map(|_| connect(&site, proxy, GREEDY)).collect();
        clients.iter_mut().for_each(|client| client.send(request));
        clients
    };
    let under_way = |proxy: &Proxy, count: usize| {
        until("the requests", || (shown(proxy, "greedy", "requests_in_flight") == count).then_some(()));
        until("their heads", || {
            (upstream.received().iter().filter(|bytes| bytes.len() > HEAD / 2).count() == count).then_some(())
        });
    };
    // What is made once is made.
    let first = ask(&proxy, 20);
    under_way(&proxy, first.len());
    let (before, counted) = (settled(&site, &mut proxy), held(&proxy, "greedy"));
    let clients = ask(&proxy, CLIENTS);
    under_way(&proxy, first.len() + CLIENTS);
    let grown = settled(&site, &mut proxy) - before;
    let counted = held(&proxy, "greedy") - counted;
    let ratio = counted as f64 / grown as f64;
    println!("{counted} bytes are on the account, the process grew by {grown}: {ratio:.3}");
    assert!(counted > (CLIENTS * least) as u64, "{counted}");
    assert!((0.85..1.2).contains(&ratio), "{counted} of {grown}");
    drop((first, clients));
    until("nothing to be held", || (held(&proxy, "greedy") == 0).then_some(()));
}

/// Fields that are about so many bytes together.
fn fields() -> String {
    (0..HEAD / 500).fold(String::new(), |mut text, n| {
        let _ = write!(text, "x-{n}: {:a<490}\r\n", "");
        text
    })
}

#[test]
fn heads_that_are_rewritten_are_on_the_account() {
    // A field of this hop.
    let request = format!("GET /allowed HTTP/1.1\r\nHost: a\r\nConnection: x-0\r\n{}\r\n", fields());
    assert_counted(&request, 2 * HEAD);
}

#[test]
fn names_of_trailers_are_on_the_account() {
    let names: Vec<String> = (0..90).map(|n| format!("{:a<490}{n}", "x-")).collect();
    let head = "GET /allowed HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n";
    assert_counted(&format!("{head}Trailer: {}\r\n\r\n", names.join(",")), 2 * HEAD);
}
