//! As much HTTP/1.1 as a load generator needs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

const FIELDS: usize = 64;

/// One connection and what it has read ahead.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// The head of an answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether the connection takes another request.
    pub(crate) keep: bool,
}

/// Connects from `source`, or from where the kernel likes. Closing is a reset, also of what is not open yet: thousands of
/// connections in TIME_WAIT would leave the next load no ports.
pub(crate) async fn connect(source: Option<IpAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: vec![0; 4096], filled: 0 }
    }

    pub(crate) async fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request).await
    }

    /// Reads one answer with its whole body, which is dropped. Interim answers are skipped.
    pub(crate) async fn answer(&mut self) -> io::Result<Answer> {
        loop {
            if let Some((head, body, answer)) = parse(&self.buffer[..self.filled])? {
                let mut left = body.saturating_sub(self.filled - head);
                let used = (head + body).min(self.filled);
                self.buffer.copy_within(used..self.filled, 0);
                self.filled -= used;
                while left > 0 {
                    let want = left.min(self.buffer.len());
                    left -= some(self.stream.read(&mut self.buffer[..want]).await?)?;
                }
                if answer.status >= 200 {
                    return Ok(answer);
                }
            } else {
                if self.filled == self.buffer.len() {
                    self.buffer.resize(self.filled * 2, 0);
                }
                self.filled += some(self.stream.read(&mut self.buffer[self.filled..]).await?)?;
            }
        }
    }
}

fn some(count: usize) -> io::Result<usize> {
    if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(count) }
}

/// Length of the head, length of the body, and what it says; `None` while the head is incomplete.
fn parse(bytes: &[u8]) -> io::Result<Option<(usize, usize, Answer)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    let value =
        |name: &str| response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|f| f.value);
    let length = value("content-length").and_then(|text| str::from_utf8(text).ok()?.parse().ok());
    let keep = length.is_some() && !value("connection").is_some_and(|text| text.eq_ignore_ascii_case(b"close"));
    Ok(Some((head, length.unwrap_or(0), Answer { status: response.code.unwrap_or(0), keep })))
}

/// What every request of a role looks like.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Shape {
    #[arg(long, default_value = "/")]
    path: String,
    #[arg(long, default_value = "GET")]
    method: String,
    /// Further header fields.
    #[arg(long, default_value_t = 0)]
    fields: usize,
    /// Bytes of the value of each further field.
    #[arg(long, default_value_t = 0)]
    field_bytes: usize,
    /// Appends so many letters to the path that are others in each request: an automaton that is built while it reads has
    /// to compute new states for each.
    #[arg(long, default_value_t = 0)]
    hostile: usize,
}

/// A request that is sent many times.
#[derive(Clone)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    /// Where the letters begin that change.
    hostile: usize,
    letters: usize,
    random: fastrand::Rng,
}

impl Shape {
    pub(crate) fn request(&self, target: SocketAddr, keep: bool, seed: u64) -> Request {
        let head = format!("{} {}", self.method, self.path);
        let mut bytes = head.clone().into_bytes();
        bytes.resize(bytes.len() + self.hostile, b'a');
        bytes.extend_from_slice(format!(" HTTP/1.1\r\nHost: {target}\r\n").as_bytes());
        for index in 0..self.fields {
            bytes.extend_from_slice(format!("x-field-{index}: {}\r\n", "v".repeat(self.field_bytes)).as_bytes());
        }
        if !keep {
            bytes.extend_from_slice(b"Connection: close\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        let random = fastrand::Rng::with_seed(seed);
        Request { bytes, hostile: head.len(), letters: self.hostile, random }
    }

    /// The path of the next request, for HTTP/2.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl Request {
    /// The bytes of the next request.
    pub(crate) fn next(&mut self) -> &[u8] {
        for letter in &mut self.bytes[self.hostile..self.hostile + self.letters] {
            *letter = if self.random.bool() { b'a' } else { b'-' };
        }
        &self.bytes
    }
}

/// One word for what went wrong, for tables.
pub(crate) fn word(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => "reset",
        io::ErrorKind::UnexpectedEof => "closed",
        io::ErrorKind::TimedOut => "timeout",
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => "no-port",
        io::ErrorKind::InvalidData => "broken",
        _ => "other",
    }
}
