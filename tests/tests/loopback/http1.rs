//! HTTP/1: what arrives, at either end, is what was sent.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use socket2::SockRef;
use tollgate::reason::Reason;
use tollgate_tests::peer::{End, Peer};
use tollgate_tests::proxy::Proxy;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{OK, Upstream};

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
const GET_DENIED: &str = "GET /denied HTTP/1.1\r\nHost: a\r\n\r\n";

/// An odd but legal exchange; nothing of it may change.
#[test]
fn bytes_pass_unchanged() {
    const REQUEST: &str = "POST /allowed/%7Eb?x=%2F..&&=[] HTTP/1.1\r\nhOsT: A.example:80\r\nX-B: 1\r\nx-a:2\r\n\
        X-B:   spaced out \t\r\nCONTENT-length: 5\r\nX-empty:\r\nX-A: \x01t\r\ncookie: a=1\r\nCookie: b=2\r\n\r\nhello";
    let request = REQUEST.replace('\x01', "\u{e9}").replace("%7Eb", "~b");
    const RESPONSE: &str = "HTTP/1.1 299 Rather  Odd!\r\nsErVer: x\r\nX-2: b\r\nX-1: a\r\nx-2: c\r\nX-Pad:    p  \r\n\
        Content-Length: 4\r\nDate: never\r\n\r\nbody";
    let site = Site::new();
    let upstream = Upstream::answering(&site, RESPONSE);
    let proxy = Proxy::start(&site, upstream.address());
    for address in [upstream.address(), proxy.http()] {
        let mut client = Peer::connect(address);
        client.send(&request);
        let response = client.read_exact(RESPONSE.len());
        assert_eq!(response.escape_ascii().to_string(), RESPONSE.as_bytes().escape_ascii().to_string());
        client.finish_sending();
        assert_eq!(client.read_to_end(), b"");
    }
    let received = upstream.received();
    assert_eq!(received.len(), 2);
    assert_eq!(received[0].escape_ascii().to_string(), request.as_bytes().escape_ascii().to_string());
    assert_eq!(received[1].escape_ascii().to_string(), received[0].escape_ascii().to_string());
}

#[test]
fn one_upstream_connection_per_client() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let mut clients = [Peer::connect(proxy.http()), Peer::connect(proxy.http())];
    for _ in 0..3 {
        for client in &mut clients {
            client.send(GET);
            assert_eq!(client.read_message().body, b"ok");
        }
    }
    assert_eq!(upstream.received(), vec![GET.repeat(3).into_bytes(); 2]);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send([GET, GET_DENIED, GET, GET, GET_DENIED, GET_DENIED, GET].concat());
    let statuses: Vec<u16> = (0..7).map(|_| client.read_message().status()).collect();
    assert_eq!(statuses, [200, 403, 200, 200, 403, 403, 200]);
    upstream.expect(GET.repeat(4));
    let denied = proxy.expect_reason(Reason::RequestNotAllowed);
    assert_eq!(denied["l7"]["http"]["code"], 403);
    assert_eq!(proxy.expect_flows(7).len(), 7);
}

#[test]
fn a_denial_says_so_and_keeps_the_connection() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send("POST /denied HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    let denied = client.read_message();
    assert_eq!((denied.status(), denied.body.as_slice()), (403, &b"Access denied\r\n"[..]));
    assert_eq!(denied.field("x-tollgate-reason"), Some("request_not_allowed"));
    assert_eq!(denied.field("connection"), None);
    client
        .send("POST /denied HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: 1\r\n\r\n");
    assert_eq!(client.read_message().status(), 403);
    client.send(GET);
    assert_eq!(client.read_message().status(), 200);
    upstream.expect(GET);
}

#[test]
fn chunks_pass_unchanged_both_ways() {
    const REQUEST: &str = "PUT /allowed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
        Trailer: X-Sum, Host\r\n\r\n5\r\nhello\r\n0006;name=\"v\"\r\n world\r\n00\r\nX-Sum: 1\r\n\r\n";
    const RESPONSE: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        3;a\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Sum: 2\r\nX-Sum: 3\r\n\r\n";
    let site = Site::new();
    let upstream = Upstream::answering(&site, RESPONSE);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    for round in 1..=2 {
        client.send(REQUEST);
        let response = client.read_exact(RESPONSE.len());
        assert_eq!(response.escape_ascii().to_string(), RESPONSE.as_bytes().escape_ascii().to_string());
        upstream.expect(REQUEST.repeat(round));
    }
    // Byte by byte it is the same.
    for byte in REQUEST.as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(client.read_message().trailers, "X-Sum: 2\r\nX-Sum: 3\r\n");
    upstream.expect(REQUEST.repeat(3));
}

#[test]
fn trailers_that_decide_something_are_stripped() {
    const HEAD: &str = "PUT /allowed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Host\r\n\r\n";
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    let trailers = "X-Sum: 1\r\nHost: evil\r\nContent-Length: 9\r\nAuthorization: x\r\nX-Unannounced: 1\r\n";
    client.send(format!("{HEAD}2\r\nhi\r\n0\r\n{trailers}\r\n"));
    assert_eq!(client.read_message().status(), 200);
    upstream.expect(format!("{HEAD}2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n"));
}

/// The upstream's own words reach the client before the body leaves it.
#[test]
fn expectation_is_between_client_and_upstream() {
    const HEAD: &str = "POST /allowed HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, connection| {
        peer.read_head();
        if connection == 1 {
            peer.send("HTTP/1.1 417 No Thanks\r\nContent-Length: 0\r\n\r\n");
        } else {
            peer.send("HTTP/1.1 100 Go On\r\nX-I: 1\r\n\r\n");
            peer.read_exact(5);
            peer.send(OK);
        }
        peer.wait_for_bytes();
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send(HEAD);
    assert_eq!(client.read_head(), "HTTP/1.1 100 Go On\r\nX-I: 1\r\n\r\n");
    upstream.expect(HEAD);
    client.send("hello");
    assert_eq!(client.read_message().status(), 200);

    let mut client = Peer::connect(proxy.http());
    client.send(HEAD);
    assert_eq!(client.read_head(), "HTTP/1.1 417 No Thanks\r\nContent-Length: 0\r\n\r\n");
    // Whether a body still follows is open now, so nothing does: the upstream could take it for a request.
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(upstream.received()[1], HEAD.as_bytes());

    let mut client = Peer::connect(proxy.http());
    client.send(HEAD.replace("allowed", "denied"));
    assert_eq!(client.read_message().status(), 403);
    assert_eq!(upstream.connections(), 2, "a denied request opens nothing");
}

#[test]
fn a_half_closed_client_still_gets_its_response() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc");
        // The client's half-close must not end the connection before the answer has.
        peer.send("def");
        peer.wait_for_bytes();
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    client.finish_sending();
    assert_eq!(client.read_message().body, b"abcdef");
    assert_eq!(client.read_to_end(), b"");
}

/// Only the upstream can know whether a client that ends its side is worth an answer.
#[test]
fn a_client_that_goes_away_is_told_to_the_upstream() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.read_to_end();
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    client.finish_sending();
    assert_eq!(client.read_to_end(), b"");
    proxy.expect_reason(Reason::DownstreamReset);
}

#[test]
fn a_client_that_goes_away_in_its_body_is_not_malformed() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_to_any_end();
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send("POST /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
    drop(client);
    let record = proxy.expect_reason(Reason::DownstreamReset);
    assert_eq!(record["verdict"], "ERROR");
}

/// A client may wait for the end of the answer before it sends its body, or not send it at all.
#[test]
fn an_early_answer_that_ends_with_the_connection_ends() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send("HTTP/1.0 200 OK\r\n\r\nuntil the end");
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send("POST /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    assert_eq!(client.read_head(), "HTTP/1.0 200 OK\r\n\r\n");
    assert_eq!(client.read_to_end(), b"until the end");
}

#[test]
fn an_idle_upstream_that_closes_ends_the_client_too() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send(OK);
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    assert_eq!(client.read_message().status(), 200);
    assert_eq!(client.read_to_end(), b"");
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    assert_eq!(client.read_message().status(), 200);
}

#[test]
fn responses_without_a_body_have_none() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        while peer.wait_for_bytes() {
            let head = peer.read_head();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            peer.send(match path.as_str() {
                "/allowed/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/allowed/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 700\r\n\r\n",
                "/allowed/head-chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            });
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    for (method, path, status) in [
        ("GET", "/allowed/204", 204),
        ("GET", "/allowed/304", 304),
        ("HEAD", "/allowed/head", 200),
        ("HEAD", "/allowed/head-chunked", 200),
        ("HEAD", "/denied", 403),
        ("GET", "/allowed/204", 204),
    ] {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let head = client.read_head();
        assert_eq!(tollgate_tests::peer::status(&head), status, "{method} {path}");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn http_1_0_ends_with_the_connection_unless_kept() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        while peer.wait_for_bytes() {
            let head = peer.read_head();
            if head.contains("keep-alive") {
                peer.send("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok");
            } else {
                peer.send("HTTP/1.0 200 OK\r\n\r\nuntil the end");
                return;
            }
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    let kept = "GET /allowed HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
    let plain = "GET /allowed HTTP/1.0\r\n\r\n";
    let mut refused = Peer::connect(proxy.http());
    refused.send(kept.replace("allowed", "denied"));
    assert_eq!(refused.read_message().field("connection"), Some("close"), "it would wait for the end");
    assert_eq!(refused.read_to_end(), b"");
    for _ in 0..2 {
        client.send(kept);
        assert_eq!(client.read_message().body, b"ok");
    }
    client.send(plain);
    assert_eq!(client.read_head(), "HTTP/1.0 200 OK\r\n\r\n");
    assert_eq!(client.read_to_end(), b"until the end");
    upstream.expect([kept, kept, plain].concat());
}

#[test]
fn an_early_answer_leaves_the_upload_running() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.read_exact(3);
        peer.send(OK);
        peer.read_exact(7);
        peer.read_head();
        peer.send(OK);
        peer.wait_for_bytes();
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    let head = "POST /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n";
    client.send(head);
    client.send("abc");
    assert_eq!(client.read_message().status(), 200, "before the body has ended");
    client.send("defghij");
    client.send(GET);
    assert_eq!(client.read_message().status(), 200);
    upstream.expect([head, "abcdefghij", GET].concat());
}

#[test]
fn an_early_answer_of_an_upstream_that_stops_reading_arrives() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send("HTTP/1.1 413 Too Much\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!");
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send("POST /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    client.send([b'x'; 1000]);
    let answer = client.read_message();
    assert_eq!((answer.status(), answer.body.as_slice()), (413, &b"no!"[..]));
}

#[test]
fn an_upstream_that_refuses_is_503_with_its_reason() {
    let site = Site::new();
    let proxy = Proxy::start(&site, site.at(25099));
    let mut client = Peer::connect(proxy.http());
    for _ in 0..2 {
        client.send(GET);
        let answer = client.read_message();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.field("x-tollgate-reason"), Some("upstream_connect"));
    }
    proxy.expect_reason(Reason::UpstreamConnect);
}

#[test]
fn an_upstream_that_closes_without_an_answer_is_503() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, connection| {
        peer.read_head();
        if connection == 1 {
            peer.send("HTTP/1.1 200 OK\r\nContent-Le");
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    for _ in 0..2 {
        let mut client = Peer::connect(proxy.http());
        client.send(GET);
        let answer = client.read_message();
        assert_eq!((answer.status(), answer.field("x-tollgate-reason")), (503, Some("upstream_reset")));
        assert_eq!(client.read_to_end(), b"");
    }
    proxy.expect_reason(Reason::UpstreamReset);
}

/// No client may take a part of a response for the whole.
#[test]
fn a_truncated_response_has_no_clean_end() {
    const HEADS: [&str; 3] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    ];
    let site = Site::new();
    let (client_has_it, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::scripted(&site, move |peer, connection| {
        peer.read_head();
        peer.send(HEADS[connection % 3]);
        if connection >= 3 {
            // A reset overtakes bytes that are still under way.
            wait.lock().unwrap().recv().unwrap();
            SockRef::from(peer.stream()).set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    let proxy = Proxy::start(&site, upstream.address());
    for (connection, head) in HEADS.iter().chain(&HEADS).enumerate() {
        let mut client = Peer::connect(proxy.http());
        client.send(GET);
        client.read_until(b"abc");
        if connection >= 3 {
            client_has_it.send(()).unwrap();
        }
        let (_, end) = client.read_to_any_end();
        assert_eq!(end, End::Reset, "{connection}: {head:?}");
        if connection == 0 {
            proxy.expect_reason(Reason::UpstreamTruncated);
        }
    }
}

#[test]
fn responses_that_could_smuggle_are_502() {
    const INTERIM: &str = "HTTP/1.1 103 Early Hints\r\n\r\n";
    let responses: Vec<String> = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 1000 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "okHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "nonsense\r\n\r\n",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(1 << 20))])
    .collect();
    let site = Site::new();
    let script = responses.clone();
    let upstream = Upstream::scripted(&site, move |peer, connection| {
        peer.read_head();
        // Fails when the proxy has seen enough.
        let _ = peer.try_send(&script[connection]);
        peer.wait_for_bytes();
    });
    let proxy = Proxy::start(&site, upstream.address());
    for response in &responses {
        let mut client = Peer::connect(proxy.http());
        client.send([GET, GET].concat());
        let answer = client.read_message();
        let shown = response.get(..80).unwrap_or(response);
        assert_eq!(
            (answer.status(), answer.field("x-tollgate-reason")),
            (502, Some("upstream_malformed")),
            "{shown:?}"
        );
        assert_eq!(client.read_to_end(), b"", "{shown:?}");
    }
    proxy.expect_reason(Reason::UpstreamMalformed);

    let site = Site::new();
    let upstream = Upstream::answering(&site, INTERIM.repeat(11) + OK);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    let got = String::from_utf8(client.read_to_end()).unwrap();
    let rest = got.strip_prefix(&INTERIM.repeat(10)).expect("ten interim responses pass");
    assert!(rest.starts_with("HTTP/1.1 502 "), "{rest}");
}

#[test]
fn interim_responses_pass() {
    let site = Site::new();
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n";
    let upstream = Upstream::answering(&site, hints.repeat(10) + OK);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    for _ in 0..2 {
        client.send(GET);
        for _ in 0..10 {
            assert_eq!(client.read_head(), hints);
        }
        assert_eq!(client.read_message().body, b"ok");
    }
}

/// Bytes that an upstream sends unasked belong to no response.
#[test]
fn unasked_bytes_of_an_upstream_reach_nobody() {
    let site = Site::new();
    let upstream = Upstream::answering(&site, format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"));
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send([GET, GET].concat());
    client.finish_sending();
    assert_eq!(String::from_utf8(client.read_to_end()).unwrap(), OK.repeat(2));
    assert_eq!(upstream.connections(), 2, "the next request has another upstream");

    // Without another request both connections end: such an upstream cannot be trusted with the next.
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    assert_eq!(String::from_utf8(client.read_to_end()).unwrap(), OK);
}

#[test]
fn nothing_follows_a_request_that_closes() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::start(&site, upstream.address());
    for last in ["GET /allowed HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET /allowed HTTP/1.0\r\n\r\n"] {
        let before = upstream.connections();
        let mut client = Peer::connect(proxy.http());
        client.send([last, GET].concat());
        assert_eq!(String::from_utf8(client.read_to_end()).unwrap(), OK, "{last}");
        assert_eq!(upstream.received()[before].escape_ascii().to_string(), last.escape_default().to_string());
    }
}

/// A body where none may be would be the next response of the connection.
#[test]
fn a_body_where_none_may_be_is_dropped() {
    let site = Site::new();
    let body = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL";
    let upstream = Upstream::answering(&site, format!("HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n{body}"));
    let proxy = Proxy::start(&site, upstream.address());
    for method in ["GET", "HEAD"] {
        let mut client = Peer::connect(proxy.http());
        client.send(format!("{method} /allowed HTTP/1.1\r\nHost: a\r\n\r\n").repeat(2));
        client.finish_sending();
        let expected = "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n".repeat(2);
        assert_eq!(String::from_utf8(client.read_to_end()).unwrap(), expected, "{method}");
    }
}

/// To a back end that ignores the body of a GET, that body is the next request, and its answer the answer to whatever
/// comes next on the connection.
#[test]
fn a_body_that_a_back_end_may_ignore_ends_its_upstream() {
    for method in ["GET", "DELETE", "OPTIONS", "PROPFIND"] {
        let site = Site::new();
        let upstream = Upstream::scripted(&site, |peer, _| {
            peer.read_head();
            peer.send(OK);
            // Says nothing before it would say it to the wrong request.
            for _ in 0..2 {
                if !peer.wait_for_bytes() {
                    return;
                }
                peer.read_head();
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret");
        });
        let proxy = Proxy::start(&site, upstream.address());
        let mut client = Peer::connect(proxy.http());
        let first = format!("{method} /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n", GET_DENIED.len());
        client.send(format!("{first}\r\n{GET_DENIED}{GET}"));
        for _ in 0..2 {
            assert_eq!(client.read_message().body, b"ok", "{method}");
        }
        upstream.expect(format!("{first}Connection: close\r\n\r\n{GET_DENIED}"));
        assert_eq!(upstream.received()[1], GET.as_bytes());
    }
}
