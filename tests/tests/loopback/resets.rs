//! Peers that reset while the proxy cannot hand on what they sent: what they held is free at once, on both sides.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::json;
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, SERVER_START, frame, get, headers, headers_of};
use tollgate_tests::peer::{End, Peer};
use tollgate_tests::proxy::Proxy;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::DEADLINE;

/// An upstream that reads `begin` bytes, then nothing until told to go on, and reports how its connection ended.
struct Stalled {
    upstream: Upstream,
    begun: Receiver<()>,
    go_on: Sender<()>,
    ends: Receiver<End>,
}

impl Stalled {
    fn new(site: &Site, begin: usize) -> Self {
        let (begins, begun) = channel();
        let (go_on, wait) = channel();
        let (report, ends) = channel();
        let channels = Mutex::new((begins, wait, report));
        let upstream = Upstream::scripted(site, move |peer, _| {
            let channels = channels.lock().unwrap();
            let (begins, wait, report) = &*channels;
            peer.read_exact(begin);
            peer.stop_recording();
            begins.send(()).unwrap();
            wait.recv().unwrap();
            report.send(peer.read_to_any_end().1).unwrap();
        });
        Self { upstream, begun, go_on, ends }
    }

    fn address(&self) -> SocketAddr {
        self.upstream.address()
    }

    fn expect_begun(&self) {
        self.begun.recv_timeout(DEADLINE).unwrap();
    }

    /// The upstream is looked at only now: the proxy has noticed without its help.
    fn expect_reset(&self) {
        self.go_on.send(()).unwrap();
        assert_eq!(self.ends.recv_timeout(DEADLINE), Ok(End::Reset));
    }
}

#[test]
fn with_more_requests_sent_than_are_read_ahead() {
    const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
    let site = Site::new();
    let stalled = Stalled::new(&site, GET.len());
    let proxy = Proxy::start(&site, stalled.address());
    let mut client = Peer::connect(proxy.http());
    client.send(format!("{GET}GET /allowed HTTP/1.1\r\nHost: a\r\nX: "));
    client.send_until_stalled();
    stalled.expect_begun();
    client.reset();
    let record = proxy.expect_reason(Reason::DownstreamReset);
    assert_eq!(record["verdict"], "ERROR");
    stalled.expect_reset();
}

#[test]
fn in_a_request_that_the_upstream_does_not_read() {
    let site = Site::new();
    let head = "POST /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
    let stalled = Stalled::new(&site, head.len());
    let proxy = Proxy::start(&site, stalled.address());
    let mut client = Peer::connect(proxy.http());
    client.send(head);
    client.send_until_stalled();
    stalled.expect_begun();
    client.reset();
    let record = proxy.expect_reason(Reason::DownstreamReset);
    assert_eq!(record["verdict"], "ERROR");
    stalled.expect_reset();
}

#[test]
fn in_bytes_that_the_upstream_does_not_read() {
    let site = Site::new();
    let stalled = Stalled::new(&site, 1);
    let proxy = Proxy::start(&site, stalled.address());
    let mut client = Peer::connect(proxy.tcp());
    client.send_until_stalled();
    stalled.expect_begun();
    client.reset();
    proxy.expect_reason(Reason::DownstreamReset);
    stalled.expect_reset();
}

/// The half-close alone ends nothing: the upstream may still answer.
#[test]
fn after_a_half_close() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        assert_eq!(peer.read_to_end(), b"x");
        peer.send("y");
        // Notices nothing by itself: it was told of the end already.
        std::thread::park();
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.tcp());
    client.send("x");
    client.finish_sending();
    assert_eq!(client.read_exact(1), b"y");
    client.reset();
    let record = proxy.expect_reason(Reason::DownstreamReset);
    assert_eq!((&record["bytes_up"], &record["bytes_down"]), (&json!(1), &json!(1)));
}

#[test]
fn in_bytes_that_the_client_does_not_read() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.send_until_stalled();
        // Ends the connection with what nobody has taken.
        socket2::SockRef::from(peer.stream()).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.tcp());
    proxy.expect_reason(Reason::UpstreamReset);
    assert_eq!(client.read_to_any_end().1, End::Reset);
}

/// A server's GOAWAY without an error that leaves out a stream which it has begun to answer. With RST_STREAM(NO_ERROR) clients take
/// what they have for the whole.
#[test]
fn an_answer_that_an_orderly_goaway_cuts_off_does_not_look_whole() {
    const CANCEL: u32 = 8;
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.send(SERVER_START);
        peer.read_until(&headers_of(1));
        let (head, part, last_stream_0) =
            (headers(1, false, b"\x88"), frame(0, 0, 1, b"part"), frame(7, 0, 0, &[0; 8]));
        peer.send([head, part, last_stream_0].concat());
        peer.read_to_any_end();
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send([CLIENT_START, &get(1)].concat());
    client.read_until(&frame(3, 0, 1, &[0; 4])[..9]);
    assert_eq!(client.read_exact(4), CANCEL.to_be_bytes());
    proxy.expect_reason(Reason::UpstreamTruncated);
}
