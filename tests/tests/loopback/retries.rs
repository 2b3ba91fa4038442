//! Requests that are sent again, where a listener asks for it (`spec/cilium-agent.md` section 2.3).

use std::net::SocketAddr;

use tollgate::reason::Reason;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{OK, Upstream, next_request};
use tollgate_tests::wait::until;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
const ERROR: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

fn proxy(site: &Site, upstream: SocketAddr, retries: u32) -> Proxy {
    let listener = format!("reason_header: true, http: {{ retries: {retries} }}");
    Proxy::with(site, upstream, &Options { listener, ..Options::default() }, &[usual(site)])
}

/// Fails with 503, then without a word, then answers.
fn recovering(site: &Site) -> Upstream {
    Upstream::scripted(site, |peer, connection| {
        while next_request(peer).is_some() {
            match connection {
                0 => peer.send(ERROR),
                1 => return,
                _ => peer.send(OK),
            }
        }
    })
}

#[test]
fn a_failing_upstream_is_asked_again_with_the_same_request() {
    let site = Site::new();
    let upstream = recovering(&site);
    let proxy = proxy(&site, upstream.address(), 3);
    let mut client = Peer::connect(proxy.http());
    let request = format!("{POST}body");
    client.send(format!("{request}{GET}"));
    for _ in 0..2 {
        let answer = client.read_message();
        assert_eq!((answer.status(), &*answer.body), (200, &b"ok"[..]));
    }
    let received: Vec<_> =
        upstream.received().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
    // What follows is sent once.
    assert_eq!(received, [request.clone(), request.clone(), format!("{request}{GET}")]);
    assert!(proxy.metric("tollgate_upstream_retries_total") == 2.0);
    assert!(proxy.expect_flows(2).iter().all(|flow| flow["l7"]["http"]["code"] == 200), "{:?}", proxy.flows());
}

#[test]
fn the_last_answer_is_the_clients() {
    let site = Site::new();
    let upstream = Upstream::answering(&site, ERROR);
    let proxy = proxy(&site, upstream.address(), 2);
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    let answer = client.read_message();
    assert_eq!((answer.status(), &*answer.body), (503, &b"busy"[..]));
    assert_eq!(answer.field("x-tollgate-reason"), None, "it is the upstream's own");
    assert_eq!(upstream.connections(), 3);
}

#[test]
fn an_upstream_that_cannot_be_reached_is_tried_again() {
    let site = Site::new();
    let proxy = proxy(&site, site.at(9), 2);
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    let answer = client.read_message();
    assert_eq!((answer.status(), answer.field("x-tollgate-reason")), (503, Some(Reason::UpstreamConnect.code())));
    assert!(proxy.metric("tollgate_upstream_retries_total") == 2.0);
}

#[test]
fn what_cannot_be_sent_twice_is_sent_once() {
    let site = Site::new();
    let upstream = Upstream::answering(&site, ERROR);
    let proxy = proxy(&site, upstream.address(), 3);
    // A body that comes later streams.
    let mut client = Peer::connect(proxy.http());
    client.send(POST);
    until("the head at the upstream", || (!upstream.text().is_empty()).then_some(()));
    client.send("body");
    assert_eq!(client.read_message().status(), 503);
    // So does one without a length.
    client.send("POST /allowed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n");
    assert_eq!(client.read_message().status(), 503);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn nothing_is_sent_again_unasked_or_after_an_interim_response() {
    let site = Site::new();
    let upstream = Upstream::answering(&site, format!("HTTP/1.1 103 Early Hints\r\n\r\n{ERROR}"));
    for retries in [0, 3] {
        let proxy = proxy(&site, upstream.address(), retries);
        let before = upstream.connections();
        let mut client = Peer::connect(proxy.http());
        client.send(GET);
        assert_eq!(client.read_message().status(), 103);
        assert_eq!(client.read_message().status(), 503);
        assert_eq!(upstream.connections(), before + 1);
    }
}
