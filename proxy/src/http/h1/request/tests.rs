use tollgate_policy::HeaderEdits;

use super::*;
use crate::config::{EscapedSlashes, Underscores};

const CILIUM: Normalize = Normalize {
    path: true,
    merge_slashes: true,
    escaped_slashes: EscapedSlashes::UnescapeAndRedirect,
    field_underscores: Underscores::Keep,
};

fn with<T>(head: &[u8], f: impl FnOnce(Result<RequestHead<'_, '_>, Refusal>) -> T) -> T {
    let mut storage: FieldStorage<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    f(RequestHead::parse(head, &mut storage, &CILIUM))
}

fn reason(head: &str) -> Option<Reason> {
    with(head.as_bytes(), |result| result.err().map(|refusal| refusal.reason))
}

/// What goes upstream, as text.
fn forwarded(head: &str) -> String {
    with(head.as_bytes(), |result| {
        let request = result.unwrap();
        let bytes = request.rewritten(head.as_bytes(), &HeaderEdits::default(), None);
        let bytes = bytes.as_deref().unwrap_or(head.as_bytes()).to_vec();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Rows of the bad-input matrix that end before policy.
#[test]
fn refused() {
    use Reason::*;
    let h = "Host: a\r\n";
    for (head, expected) in [
        (format!("POST / HTTP/1.1\r\n{h}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: xchunked\r\n\r\n"), TransferCoding),
        (format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: chunked, identity\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: identity, chunked\r\n\r\n"), TransferCoding),
        (
            format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
            MalformedRequest,
        ),
        (format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: ,chunked\r\n\r\n"), TransferCoding),
        (format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: \x0bchunked\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding : chunked\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding:\r\n chunked\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.0\r\n{h}Transfer-Encoding: chunked\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: \r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Content-Length: 3\r\nContent-Length: 3\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Content-Length: 3, 3\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Content-Length: +3\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Content-Length: 0x3\r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Content-Length: \r\n\r\n"), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Content-Length: 18446744073709551616\r\n\r\n"), MalformedRequest),
        (format!("GET / HTTP/1.1\r\n{h}Connection: {}\r\n\r\n", "x,".repeat(101)), MalformedRequest),
        (format!("POST / HTTP/1.1\r\n{h}Content-Length: 9223372036854775808\r\n\r\n"), MalformedRequest),
        (format!("GET / HTTP/1.1\r\n{h}X: a\rY: b\r\n\r\n"), MalformedRequest),
        (format!("GET / HTTP/1.1\r\n{h}X: a\x00b\r\n\r\n"), MalformedRequest),
        (format!("GET / HTTP/1.1\r\n{h}X: a\r\n b\r\n\r\n"), MalformedRequest),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n".into(), MalformedRequest),
        (format!("GET / HTTP/1.1\r\n{h}Xabc\r\n\r\n"), MalformedRequest),
        (format!("GET / HTTP/1.1\r\n{h}X Y: 1\r\n\r\n"), MalformedRequest),
        (format!("GET  /  HTTP/1.1\r\n{h}\r\n"), MalformedRequest),
        (format!("GET\t/ HTTP/1.1\r\n{h}\r\n"), MalformedRequest),
        (format!("GET / x HTTP/1.1\r\n{h}\r\n"), MalformedRequest),
        ("GET /smug\r\n\r\n".into(), MalformedRequest),
        (format!("GET / HTTP/1.2\r\n{h}\r\n"), MalformedRequest),
        (format!("GET / HTTP/2.0\r\n{h}\r\n"), MalformedRequest),
        (format!("GET / http/1.1\r\n{h}\r\n"), MalformedRequest),
        (format!("GET / HTTP/1.1\r\n{h}{}\r\n", "X: y\r\n".repeat(100)), HeadersTooLarge),
        ("GET / HTTP/1.1\r\n\r\n".into(), BadAuthority),
        (format!("GET / HTTP/1.1\r\n{h}{h}\r\n"), BadAuthority),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".into(), BadAuthority),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n".into(), BadAuthority),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), BadAuthority),
        (format!("GET https://a/x HTTP/1.1\r\n{h}\r\n"), MalformedRequest),
        (format!("GET ftp://a/x HTTP/1.1\r\n{h}\r\n"), MalformedRequest),
        (format!("GET http://a@evil/x HTTP/1.1\r\n{h}\r\n"), BadAuthority),
        (format!("CONNECT a:80 HTTP/1.1\r\n{h}\r\n"), MethodNotSupported),
        (format!("TRACE / HTTP/1.1\r\n{h}\r\n"), MethodNotSupported),
        (format!("GET * HTTP/1.1\r\n{h}\r\n"), MalformedRequest),
        (format!("GET a:80 HTTP/1.1\r\n{h}\r\n"), MalformedRequest),
        (format!("GET admin HTTP/1.1\r\n{h}\r\n"), MalformedRequest),
        (format!("GET /a%00 HTTP/1.1\r\n{h}\r\n"), AmbiguousPath),
        (format!("GET /a#b HTTP/1.1\r\n{h}\r\n"), AmbiguousPath),
        (format!("GET / HTTP/1.1\r\n{h}Expect: 200-ok\r\n\r\n"), Expectation),
    ] {
        assert_eq!(reason(&head), Some(expected), "{head}");
    }
}

#[test]
fn accepted_and_unchanged() {
    for head in [
        "GET /hello HTTP/1.1\r\nhOsT: a:5000\r\nX-b: 1\r\nx-A: 2\r\nX-B: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n",
        "get / HTTP/1.1\r\nHost: a\r\nX: \u{ff}\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n",
    ] {
        with(head.as_bytes(), |result| {
            assert!(result.unwrap().rewritten(head.as_bytes(), &HeaderEdits::default(), None).is_none(), "{head}");
        });
    }
}

#[test]
fn rewritten() {
    for (head, expected) in [
        ("GET /a/../b?c HTTP/1.1\r\nhost: a\r\n\r\n", "GET /b?c HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("GET http://evil/x HTTP/1.1\r\nX: 1\r\nHost: a\r\n\r\n", "GET /x HTTP/1.1\r\nX: 1\r\nHost: evil\r\n\r\n"),
        ("GET http://evil HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nHost: evil\r\n\r\n"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 010\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Auth\r\nx-auth: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\n",
        ),
        (
            "HEAD / HTTP/1.1\r\nConnection: Keep-Alive\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HEAD / HTTP/1.1\r\nConnection: close\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: Host, Content-Length\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        ),
    ] {
        assert_eq!(forwarded(head), expected);
    }
}

/// What policy sees and what goes upstream are the same fields.
#[test]
fn policy_sees_what_is_forwarded() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Auth, close\r\nX-Auth: 1\r\nX-B: 1\r\nx-b: 2\r\n\r\n";
    with(head, |result| {
        let request = result.unwrap();
        let values = |name: &str| {
            let mut values = Vec::new();
            request.each(name, &mut |value| values.push(value.to_vec()));
            values
        };
        assert_eq!(values("x-auth"), Vec::<Vec<u8>>::new());
        assert_eq!(values("x-b"), [b"1", b"2"]);
        assert_eq!(values("connection"), [b"close"]);
    });
    with(b"DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", |result| {
        let mut values = Vec::new();
        result.unwrap().each("connection", &mut |value| values.push(value.to_vec()));
        assert_eq!(values, [b"close"], "also where the client sent none");
    });
}

#[test]
fn properties() {
    let head = b"POST /a HTTP/1.1\r\nHost: h:1\r\nContent-Length: 5\r\nConnection: close\r\nTrailer: A, b\r\n\r\n";
    with(head, |result| {
        let request = result.unwrap();
        assert_eq!(request.body, RequestBody::Length(5));
        assert_eq!((request.authority, request.canonical_path()), (&b"h:1"[..], &b"/a"[..]));
        assert!(request.close && request.websocket.is_none());
        assert_eq!(request.announced_trailers(), [b"a", b"b"]);
    });
    with(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", |result| assert!(!result.unwrap().close));
    with(b"GET / HTTP/1.0\r\n\r\n", |result| assert!(result.unwrap().close));
}
