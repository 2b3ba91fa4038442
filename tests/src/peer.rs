//! One end of a TCP connection under the test's full control: exact bytes out, exact bytes in.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;

use crate::wait::DEADLINE;

/// How long a receiver takes nothing before it counts as stalled.
const PATIENCE: Duration = Duration::from_millis(300);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The other side closed in order.
    Closed,
    /// The other side reset.
    Reset,
}

/// A message head and its body, framing undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Everything up to and with the empty line.
    pub head: String,
    /// The content; of a chunked message the decoded data.
    pub body: Vec<u8>,
    /// The trailer section of a chunked message, without its final empty line.
    pub trailers: String,
}

impl Message {
    /// The status code of a response.
    ///
    /// # Panics
    /// When the head has none.
    pub fn status(&self) -> u16 {
        status(&self.head)
    }

    /// The value of the first field of that name.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

/// The status code of a response head.
///
/// # Panics
/// When there is none.
pub fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|code| code.get(..3)).and_then(|code| code.parse().ok()).expect(head)
}

/// The value of the first field of that name in a head.
pub fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// One end of a connection. Every wait is bounded and panics with what came until then.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    /// Received and not yet taken.
    buffer: Vec<u8>,
    /// Room for one read.
    chunk: Box<[u8]>,
    record: Option<Arc<Mutex<Vec<u8>>>>,
    /// A send has met the reset; the kernel tells of it only once.
    reset: bool,
}

impl Peer {
    /// Connects to `address`.
    ///
    /// # Panics
    /// When nobody accepts.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, DEADLINE);
        Self::new(stream.unwrap_or_else(|error| panic!("{address}: {error}")))
    }

    /// Connects to `address`. For where a reset is an answer: one that comes at once is a failure to connect.
    ///
    /// # Errors
    /// Nobody accepts, or whoever did has reset the connection already.
    pub fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        TcpStream::connect_timeout(&address, DEADLINE).map(Self::new)
    }

    /// Connects to `address`, sends `bytes`, and asserts that nothing but a reset comes, at whichever of these steps.
    ///
    /// # Panics
    /// When anything else comes.
    pub fn expect_reset_at(address: SocketAddr, bytes: impl AsRef<[u8]>) {
        match TcpStream::connect_timeout(&address, DEADLINE) {
            // So early that the system tells it as a failure to connect.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{address}"),
            Ok(stream) => {
                let mut peer = Self::new(stream);
                let _ = peer.try_send(bytes);
                peer.expect_reset();
            }
        }
    }

    /// Takes over an accepted or connected stream.
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new(), chunk: vec![0; 64 << 10].into(), record: None, reset: false }
    }

    /// Appends everything received from now on to `record`, too.
    #[must_use]
    pub fn recording(mut self, record: Arc<Mutex<Vec<u8>>>) -> Self {
        self.record = Some(record);
        self
    }

    /// Keeps nothing more in the record: for bytes that are too many.
    pub fn stop_recording(&mut self) {
        self.record = None;
    }

    /// Forgets what was received and not taken.
    pub fn discard(&mut self) {
        self.buffer.clear();
    }

    /// The stream itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Our address.
    pub fn local(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// Sends all of `bytes`.
    ///
    /// # Panics
    /// When the other side has gone or does not read.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the other side takes what is sent");
    }

    /// Sends as much of `bytes` as the other side takes before it ends the connection.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        let sent = self.stream.write_all(bytes.as_ref());
        self.reset |= matches!(&sent, Err(error) if error.kind() == ErrorKind::ConnectionReset);
        sent
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Reads once. `Ok(0)` is the end.
    fn fill(&mut self) -> std::io::Result<usize> {
        let n = self.stream.read(&mut self.chunk)?;
        let chunk = &self.chunk[..n];
        self.buffer.extend_from_slice(chunk);
        if let Some(record) = &self.record {
            record.lock().unwrap().extend_from_slice(chunk);
        }
        Ok(n)
    }

    /// Waits until there is something to read. False when the connection ends instead.
    pub fn wait_for_bytes(&mut self) -> bool {
        !self.buffer.is_empty() || matches!(self.fill(), Ok(1..))
    }

    fn received(&self) -> String {
        self.buffer.escape_ascii().to_string()
    }

    fn fill_or_panic(&mut self, what: &str) {
        match self.fill() {
            Ok(0) => panic!("closed instead of {what}, after: {}", self.received()),
            Ok(_) => {}
            Err(error) => panic!("{error} instead of {what}, after: {}", self.received()),
        }
    }

    /// Everything up to and with `delimiter`.
    ///
    /// # Panics
    /// When the connection ends before.
    pub fn read_until(&mut self, delimiter: &[u8]) -> Vec<u8> {
        loop {
            let found = self.buffer.windows(delimiter.len()).position(|window| window == delimiter);
            if let Some(at) = found {
                return self.buffer.drain(..at + delimiter.len()).collect();
            }
            self.fill_or_panic(&format!("{:?}", delimiter.escape_ascii().to_string()));
        }
    }

    /// The next `n` bytes.
    ///
    /// # Panics
    /// When the connection ends before.
    pub fn read_exact(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            self.fill_or_panic(&format!("{n} bytes"));
        }
        self.buffer.drain(..n).collect()
    }

    /// Sends `total` bytes: `pattern` again and again.
    ///
    /// # Panics
    /// When the other side has gone or does not read.
    pub fn send_repeated(&mut self, pattern: &[u8], total: u64) {
        let mut left = total;
        while left > 0 {
            let n = pattern.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.send(&pattern[..n]);
            left -= n as u64;
        }
    }

    /// Sends until the other side has taken nothing for a while.
    ///
    /// # Panics
    /// When the other side ends the connection instead.
    pub fn send_until_stalled(&mut self) {
        self.stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let error = loop {
            if let Err(error) = self.stream.write(&[b'x'; 64 << 10]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        self.stream.set_write_timeout(Some(DEADLINE)).unwrap();
    }

    /// Asserts that the next `total` bytes are `pattern` again and again, without keeping them.
    ///
    /// # Panics
    /// When they are not, or the connection ends before.
    pub fn expect_repeated(&mut self, pattern: &[u8], total: u64) {
        let mut left = total;
        let mut at = 0;
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill_or_panic(&format!("{left} more bytes"));
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let n = self.buffer.len().min(pattern.len() - at).min(most);
            assert!(self.buffer[..n] == pattern[at..at + n], "other bytes than sent, {left} bytes before the end");
            self.buffer.drain(..n);
            at = (at + n) % pattern.len();
            left -= n as u64;
        }
    }

    /// The next message head.
    ///
    /// # Panics
    /// When the connection ends before.
    pub fn read_head(&mut self) -> String {
        String::from_utf8_lossy(&self.read_until(b"\r\n\r\n")).into_owned()
    }

    /// The next request or response that has a body by its framing fields; a response without any runs to the end.
    ///
    /// # Panics
    /// When the connection ends before the message does.
    pub fn read_message(&mut self) -> Message {
        let head = self.read_head();
        self.read_body(head)
    }

    /// The body that belongs to `head`.
    ///
    /// # Panics
    /// When the connection ends before the message does.
    pub fn read_body(&mut self, head: String) -> Message {
        let mut message = Message { head, body: Vec::new(), trailers: String::new() };
        let response = message.head.starts_with("HTTP/");
        let bodiless = response && matches!(message.status(), 100..200 | 204 | 304);
        if bodiless {
            return message;
        }
        if message.field("transfer-encoding").is_some() {
            (message.body, message.trailers) = self.read_chunks();
        } else if let Some(length) = message.field("content-length") {
            message.body = self.read_exact(length.parse().unwrap());
        } else if response {
            message.body = self.read_to_end();
        }
        message
    }

    fn read_chunks(&mut self) -> (Vec<u8>, String) {
        let mut body = Vec::new();
        loop {
            let line = self.read_until(b"\r\n");
            let digits = line.split(|byte| !byte.is_ascii_hexdigit()).next().unwrap_or_default();
            let size = usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
            if size == 0 {
                break;
            }
            body.extend(self.read_exact(size));
            assert_eq!(self.read_exact(2), b"\r\n");
        }
        let mut trailers = String::new();
        loop {
            let line = self.read_until(b"\r\n");
            if line == b"\r\n" {
                return (body, trailers);
            }
            trailers.push_str(&String::from_utf8_lossy(&line));
        }
    }

    /// Everything up to the other side's orderly close.
    ///
    /// # Panics
    /// When it resets or does not close.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let (bytes, end) = self.read_to_any_end();
        assert_eq!(end, End::Closed, "after: {}", bytes.escape_ascii());
        bytes
    }

    /// Everything up to the end of the connection, and which end that is.
    ///
    /// # Panics
    /// When there is none.
    pub fn read_to_any_end(&mut self) -> (Vec<u8>, End) {
        let end = loop {
            match self.fill() {
                Ok(0) if self.reset => break End::Reset,
                Ok(0) => break End::Closed,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break End::Reset,
                Err(error) => panic!("{error} instead of an end, after: {}", self.received()),
            }
        };
        (std::mem::take(&mut self.buffer), end)
    }

    /// Asserts that the other side resets without another byte.
    ///
    /// # Panics
    /// When it does anything else.
    pub fn expect_reset(&mut self) {
        let (bytes, end) = self.read_to_any_end();
        assert_eq!((bytes.escape_ascii().to_string().as_str(), end), ("", End::Reset));
    }
}
