//! Reads one HTTP/1 response head from an upstream and finds where its body ends (RFC 9112 section 6.3).
//!
//! A response that two readers could frame differently is not forwarded: its upstream could otherwise plant a second
//! response into a client's connection.

use std::mem::MaybeUninit;

use tollgate_schedule::{Work, mark};

use super::head::MAX_FIELDS;
use super::request::{parse_length, write_field};

/// Interim responses forwarded before a final one, at most.
pub(crate) const MAX_INTERIM: u32 = 10;

/// A response that cannot be forwarded safely.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResponseError {
    /// The head does not parse.
    #[error("the response head does not parse: {0}")]
    Syntax(httparse::Error),
    /// The head ends elsewhere than its lines say.
    #[error("the response head does not end where its lines say")]
    End,
    /// More than one way to find the end of the body.
    #[error("the response has contradictory framing")]
    Framing,
    /// A coding other than chunked.
    #[error("the response has a transfer coding other than chunked")]
    TransferCoding,
    /// Not a number.
    #[error("the response's Content-Length is not a number")]
    Length,
    /// A status outside 100–599.
    #[error("the response's status is not one of HTTP")]
    Status,
    /// 101 that is not the answer to a WebSocket's handshake.
    #[error("the response switches protocols, and is no answer to a WebSocket's handshake")]
    UnexpectedUpgrade,
    /// A line that ends without CR.
    #[error("the response head has a line that ends without CR")]
    BareLineFeed,
    /// No end within the limit.
    #[error("the response head is over the limit")]
    TooLong,
    /// More than [`MAX_INTERIM`] interim responses.
    #[error("more than {MAX_INTERIM} interim responses")]
    TooManyInterim,
}

/// How the end of a response's body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponseBody {
    None,
    Length(u64),
    Chunked,
    /// Until the upstream closes.
    UntilClose,
}

/// A response head, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) body: ResponseBody,
    /// The upstream ends its connection after this response, or speaks HTTP/1.0 without keep-alive.
    pub(crate) close: bool,
    /// The upstream said `keep-alive` in so many words, which an HTTP/1.0 client needs to hear.
    pub(crate) keep_alive: bool,
}

impl ResponseHead {
    /// Whether the final response is still to come.
    pub(crate) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Parses `head`, which must be complete. `to_head` is true when the request's method was HEAD.
    pub(crate) fn parse(head: &[u8], to_head: bool) -> Result<Self, ResponseError> {
        let _work = mark(Work::Http);
        let mut storage = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, head, &mut storage) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return Err(ResponseError::End),
            Err(error) => return Err(ResponseError::Syntax(error)),
        }
        let status = parsed.code.filter(|code| (100..600).contains(code)).ok_or(ResponseError::Status)?;
        let mut length = None;
        let mut chunked = false;
        let old = parsed.version == Some(0);
        let mut close_stated = false;
        let mut keep_alive = false;
        for field in parsed.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                if length.is_some() {
                    return Err(ResponseError::Framing);
                }
                length = Some(parse_length(field.value).ok_or(ResponseError::Length)?);
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                if chunked {
                    return Err(ResponseError::Framing);
                }
                if !field.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(ResponseError::TransferCoding);
                }
                chunked = true;
            } else if field.name.eq_ignore_ascii_case("connection") {
                for option in field.value.split(|&b| b == b',').map(|o| o.trim_ascii()) {
                    if option.eq_ignore_ascii_case(b"close") {
                        close_stated = true;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") {
                        keep_alive = true;
                    }
                }
            }
        }
        if chunked && (length.is_some() || old) {
            return Err(ResponseError::Framing);
        }
        let bodiless = to_head || status < 200 || status == 204 || status == 304;
        let body = match (bodiless, chunked, length) {
            (true, _, _) | (false, false, Some(0)) => ResponseBody::None,
            (false, true, _) => ResponseBody::Chunked,
            (false, false, Some(length)) => ResponseBody::Length(length),
            (false, false, None) => ResponseBody::UntilClose,
        };
        let close = close_stated || (old && !keep_alive) || body == ResponseBody::UntilClose;
        Ok(Self { status, body, close, keep_alive })
    }
}

/// Visits the fields of a head that [`ResponseHead::parse`] understands.
pub(crate) fn each_field(head: &[u8], mut visit: impl FnMut(&[u8], &[u8])) {
    let mut storage = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    if config.parse_response_with_uninit_headers(&mut parsed, head, &mut storage).is_ok() {
        parsed.headers.iter().for_each(|field| visit(field.name.as_bytes(), field.value));
    }
}

/// The head with `connection: close`, for a connection that we are about to end.
pub(crate) fn with_close(head: &[u8]) -> Vec<u8> {
    let mut storage = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let Ok(httparse::Status::Complete(_)) = config.parse_response_with_uninit_headers(&mut parsed, head, &mut storage)
    else {
        return head.to_vec();
    };
    let first_line = memchr::memchr(b'\n', head).map_or(0, |at| at + 1);
    let mut out = Vec::with_capacity(head.len() + 24);
    out.extend_from_slice(&head[..first_line]);
    for field in parsed.headers.iter() {
        let hop = field.name.eq_ignore_ascii_case("connection") || field.name.eq_ignore_ascii_case("keep-alive");
        if !hop {
            write_field(&mut out, field.name.as_bytes(), field.value);
        }
    }
    out.extend_from_slice(b"connection: close\r\n\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> Result<(u16, ResponseBody, bool), ResponseError> {
        ResponseHead::parse(head.as_bytes(), false).map(|h| (h.status, h.body, h.close))
    }

    #[test]
    fn framing() {
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", (200, ResponseBody::Length(5), false)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", (200, ResponseBody::None, true)),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", (200, ResponseBody::Chunked, false)),
            ("HTTP/1.1 200 OK\r\n\r\n", (200, ResponseBody::UntilClose, true)),
            ("HTTP/1.1 204 No Content\r\n\r\n", (204, ResponseBody::None, false)),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", (304, ResponseBody::None, false)),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", (200, ResponseBody::Length(1), true)),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: Keep-Alive\r\n\r\n",
                (200, ResponseBody::Length(1), false),
            ),
            ("HTTP/1.1 100 Continue\r\n\r\n", (100, ResponseBody::None, false)),
            ("HTTP/1.1 200\r\nContent-Length: 1\r\n\r\n", (200, ResponseBody::Length(1), false)),
        ] {
            assert_eq!(parse(head), Ok(expected), "{head}");
        }
        assert_eq!(
            ResponseHead::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true).unwrap().body,
            ResponseBody::None
        );
    }

    /// Rows 117–123 of the bad-input matrix.
    #[test]
    fn refused() {
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n", ResponseError::TransferCoding),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", ResponseError::Length),
            ("HTTP/1.1 999 OK\r\n\r\n", ResponseError::Status),
            ("HTTP/1.1 1000 OK\r\n\r\n", ResponseError::Syntax(httparse::Error::Status)),
            ("HTTP/1.1 200 OK\r\nX: a\x00\r\n\r\n", ResponseError::Syntax(httparse::Error::HeaderValue)),
            ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", ResponseError::Syntax(httparse::Error::HeaderName)),
            ("okHTTP/1.1 200 OK\r\n\r\n", ResponseError::Syntax(httparse::Error::Version)),
        ] {
            assert_eq!(parse(head), Err(expected), "{head}");
        }
    }

    #[test]
    fn closing() {
        let head = b"HTTP/1.1 200 Fine\r\nX-A: 1\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n";
        assert_eq!(with_close(head), b"HTTP/1.1 200 Fine\r\nX-A: 1\r\nconnection: close\r\n\r\n");
    }
}
