//! WebSocket handshakes: what opens a tunnel, and what only looks like it.

use tollgate::reason::Reason;
use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Proxy;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{Upstream, WEBSOCKET_ACCEPTED, websocket_request};

const GET_DENIED: &str = "GET /denied HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn what_follows_an_accepted_handshake_belongs_to_the_tunnel() {
    let handshake = websocket_request("/allowed");
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send(format!("{WEBSOCKET_ACCEPTED}first"));
        let said = peer.read_to_end();
        peer.send(said);
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send(format!("{handshake}{GET_DENIED}"));
    assert_eq!(client.read_head(), WEBSOCKET_ACCEPTED);
    assert_eq!(client.read_exact(5), b"first");
    client.send("\0");
    client.finish_sending();
    assert_eq!(client.read_to_end(), format!("{GET_DENIED}\0").into_bytes());
    upstream.expect(format!("{handshake}{GET_DENIED}\0"));
}

/// Any 101 but the answer to a well-formed handshake would let the client speak to the upstream uninspected.
#[test]
fn a_tunnel_opens_for_nothing_but_a_handshake() {
    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    const ANSWER: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    let asked = websocket_request("/allowed");
    let asked_without = |part: &str| asked.replacen(part, "", 1);
    let accepted_without = |part: &str| WEBSOCKET_ACCEPTED.replacen(part, "", 1);
    let cases = [
        (asked_without(KEY), WEBSOCKET_ACCEPTED.to_owned()),
        (asked_without("Sec-WebSocket-Version: 13\r\n"), WEBSOCKET_ACCEPTED.to_owned()),
        (asked.replacen(KEY, &KEY.repeat(2), 1), WEBSOCKET_ACCEPTED.to_owned()),
        (asked.replacen("GET", "OPTIONS", 1), WEBSOCKET_ACCEPTED.to_owned()),
        (asked_without(KEY), "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 0\r\n\r\n".to_owned()),
        (asked.clone(), "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned()),
        (asked.clone(), accepted_without(ANSWER)),
        (asked.clone(), WEBSOCKET_ACCEPTED.replacen("s3pP", "S3pP", 1)),
        (asked.clone(), accepted_without("Upgrade: websocket\r\n")),
        (asked.clone(), accepted_without("Connection: Upgrade\r\n")),
    ];
    let site = Site::new();
    let script = cases.clone();
    let upstream = Upstream::scripted(&site, move |peer, connection| {
        peer.read_head();
        peer.send(&script[connection].1);
        peer.wait_for_bytes();
    });
    let proxy = Proxy::start(&site, upstream.address());
    for (index, (request, response)) in cases.iter().enumerate() {
        let mut client = Peer::connect(proxy.http());
        client.send(format!("{request}{GET_DENIED}"));
        let answer = client.read_message();
        assert_eq!(
            (answer.status(), answer.field("x-tollgate-reason")),
            (502, Some("upstream_malformed")),
            "{request:?} {response:?}"
        );
        assert_eq!(client.read_to_end(), b"", "{request:?} {response:?}");
        let received = upstream.received()[index].escape_ascii().to_string();
        assert!(!received.contains("denied"), "{received}");
    }
    proxy.expect_reason(Reason::UpstreamMalformed);
}
