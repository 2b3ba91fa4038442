//! A client in a pod: HTTP/1.1 over one kept connection, so that a step can say which socket a request went over.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::program::PATIENCE;

/// Longest response read. The demo's are a few hundred bytes.
const MAX_RESPONSE: usize = 64 << 10;

/// A response, as far as the demo looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// An open connection, and how many requests went over it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    local: SocketAddr,
    requests: usize,
}

impl Connection {
    /// Connects from the network namespace of the calling thread.
    pub(super) fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { local: stream.local_addr()?, stream, requests: 0 })
    }

    /// This side's address: it tells connections apart.
    pub(super) const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Requests sent so far, with or without an answer.
    pub(super) const fn requests(&self) -> usize {
        self.requests
    }

    /// Sends a request without a body and reads the response; the connection stays open if the peer keeps it.
    ///
    /// # Errors
    /// The connection's own, such as a reset; `InvalidData` for what is no HTTP/1.1 response with a length.
    pub(super) fn send(&mut self, method: &str, path: &str) -> io::Result<Answer> {
        self.requests += 1;
        let length = if method == "POST" { "content-length: 0\r\n" } else { "" };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: helloworld:5000\r\n{length}\r\n");
        self.stream.write_all(request.as_bytes())?;
        let mut received = Vec::new();
        loop {
            if let Some(answer) = parse(&received)? {
                return Ok(answer);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed before the whole response")),
                read => received.extend_from_slice(&buffer[..read]),
            }
        }
    }
}

/// The response in `received`, once it is complete.
fn parse(received: &[u8]) -> io::Result<Option<Answer>> {
    let invalid = |what: String| io::Error::new(ErrorKind::InvalidData, format!("not an HTTP response: {what}"));
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(received).map_err(|error| invalid(error.to_string()))? {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial if received.len() > MAX_RESPONSE => return Err(invalid("endless head".to_owned())),
        httparse::Status::Partial => return Ok(None),
    };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok())
        .filter(|length| *length <= MAX_RESPONSE)
        .ok_or_else(|| invalid("no usable content-length".to_owned()))?;
    let Some(body) = received.get(head..head + length) else {
        return Ok(None);
    };
    let status = response.code.unwrap_or_default();
    Ok(Some(Answer { status, body: String::from_utf8_lossy(body).trim_end().to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::{Answer, parse};

    #[test]
    fn a_response_is_complete_with_its_last_byte() {
        let bytes = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 15\r\n\r\nAccess denied\r\n";
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]).unwrap(), None, "{end}");
        }
        assert_eq!(parse(bytes).unwrap(), Some(Answer { status: 403, body: "Access denied".to_owned() }));
    }

    #[test]
    fn what_is_no_response_with_a_length_is_an_error() {
        for bytes in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"] {
            assert!(parse(bytes.as_bytes()).is_err(), "{bytes}");
        }
    }
}
