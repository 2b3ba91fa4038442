//! Upstreams that keep the exact bytes they receive and answer by script.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::peer::Peer;
use crate::site::Site;
use crate::wait::until;

/// Bytes received, by connection.
type Record = Arc<Mutex<Vec<Arc<Mutex<Vec<u8>>>>>>;

/// A listening upstream. Each connection runs the script on a thread of its own, which ends with the connection.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    record: Record,
}

impl Upstream {
    /// Runs `script` for each connection; it is given the connection and its number, from 0.
    ///
    /// # Panics
    /// When no port is free.
    pub fn scripted(site: &Site, script: impl Fn(&mut Peer, usize) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind(site.at(0)).unwrap(), script)
    }

    /// As [`Upstream::scripted`], on a listener from elsewhere, such as from a pod's network namespace.
    ///
    /// # Panics
    /// When it is no listener.
    pub fn on(listener: TcpListener, script: impl Fn(&mut Peer, usize) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let record = Record::default();
        let script = Arc::new(script);
        let connections = Arc::clone(&record);
        // Ends with the process: accepting costs nothing when nobody connects.
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let bytes = Arc::default();
                let number = {
                    let mut connections = connections.lock().unwrap();
                    connections.push(Arc::clone(&bytes));
                    connections.len() - 1
                };
                let script = Arc::clone(&script);
                thread::spawn(move || script(&mut Peer::new(stream).recording(bytes), number));
            }
        });
        Self { address, record }
    }

    /// Answers every request with `response` until the connection ends.
    pub fn answering(site: &Site, response: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::scripted(site, move |peer, _| {
            while let Some(_request) = next_request(peer) {
                peer.send(&response);
            }
        })
    }

    /// `200` with the body `ok`.
    pub fn ok(site: &Site) -> Self {
        Self::answering(site, OK)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.record.lock().unwrap().len()
    }

    /// Connections whose script has ended.
    pub fn finished(&self) -> usize {
        // A script that runs has the record of its connection, too.
        self.record.lock().unwrap().iter().filter(|bytes| Arc::strong_count(bytes) == 1).count()
    }

    /// Bytes received so far, by connection.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.record.lock().unwrap().iter().map(|bytes| bytes.lock().unwrap().clone()).collect()
    }

    /// Bytes received so far, as text.
    pub fn text(&self) -> String {
        self.received().concat().escape_ascii().to_string()
    }

    /// Waits until connection 0 has received exactly `expected`.
    ///
    /// # Panics
    /// When it does not.
    pub fn expect(&self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        let seen = || self.received().first().cloned().unwrap_or_default();
        until(&format!("{} at the upstream; it has {}", expected.escape_ascii(), self.text()), || {
            (seen().len() >= expected.len()).then_some(())
        });
        assert_eq!(seen().escape_ascii().to_string(), expected.escape_ascii().to_string());
    }
}

/// The answer of [`Upstream::ok`].
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What accepts the handshake of [`websocket_request`].
pub const WEBSOCKET_ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A WebSocket's handshake, with the key of RFC 6455 section 1.3.
pub fn websocket_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// Reads one request; `None` when the connection ends instead.
pub fn next_request(peer: &mut Peer) -> Option<crate::peer::Message> {
    peer.wait_for_bytes().then(|| peer.read_message())
}
