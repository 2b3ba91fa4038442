//! Sends packets to a local reader that may be slow, gone or another one by now, without ever waiting for it.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, Socket, Type};

/// Pause between attempts to connect to a reader whose queue of new connections is full.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a packet did not go out.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// Nobody listens on the path.
    #[error("nobody listens: {0}")]
    NoReader(io::Error),
    /// The reader has not taken what it was sent before.
    #[error("the reader is too slow")]
    Slow,
    /// Anything else.
    #[error("cannot send: {0}")]
    Failed(io::Error),
}

/// The sending end of a `SOCK_SEQPACKET` Unix socket: packets arrive whole and in order. It connects when there is
/// something to send, and once more for a packet whose connection has ended: a reader that was restarted listens on the
/// same path again.
#[derive(Debug)]
pub struct PacketSender {
    path: PathBuf,
    socket: Option<Socket>,
}

impl PacketSender {
    /// A sender to the socket at `path`; nothing needs to listen yet.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, socket: None }
    }

    /// Where it sends to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends one packet, and returns at once.
    ///
    /// # Errors
    /// The packet was not sent. When the reader is [`PacketError::Slow`], [`PacketSender::wait`] and try again; the
    /// connection stays, because a new one would only add to what the reader has not read.
    pub fn send(&mut self, packet: &[u8]) -> Result<(), PacketError> {
        loop {
            let (socket, fresh) = match &self.socket {
                Some(socket) => (socket, false),
                None => (&*self.socket.insert(connect(&self.path)?), true),
            };
            // Packets are never sent in part.
            let Err(error) = socket.send_with_flags(packet, libc::MSG_DONTWAIT | libc::MSG_EOR | libc::MSG_NOSIGNAL)
            else {
                return Ok(());
            };
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Err(PacketError::Slow),
                // The fault is the packet's, not the connection's.
                _ if error.raw_os_error() == Some(libc::EMSGSIZE) => return Err(PacketError::Failed(error)),
                _ => {
                    self.socket = None;
                    if fresh {
                        return Err(PacketError::Failed(error));
                    }
                }
            }
        }
    }

    /// Waits until the reader may take another packet, but not longer than `limit`.
    pub fn wait(&self, limit: Duration) {
        let Some(socket) = &self.socket else {
            // It does not even accept; there is nothing that would tell when.
            std::thread::sleep(limit.min(ACCEPT_PAUSE));
            return;
        };
        let mut descriptors = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT)];
        // An error, such as a signal, only ends the wait early: whoever tries again finds out.
        let _ = poll(&mut descriptors, Timespec::try_from(limit).ok().as_ref());
    }
}

fn connect(path: &Path) -> Result<Socket, PacketError> {
    let open = || {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(socket)
    };
    open().map_err(|error: io::Error| match error.kind() {
        // Its queue of new connections is full.
        io::ErrorKind::WouldBlock => PacketError::Slow,
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => PacketError::NoReader(error),
        _ => PacketError::Failed(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(path: &Path) -> Socket {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
        socket.listen(8).unwrap();
        socket
    }

    fn packet(socket: &Socket) -> Vec<u8> {
        let mut buffer = [0; 4096];
        let length = rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::empty()).unwrap().0;
        buffer[..length].to_vec()
    }

    #[test]
    fn a_restarted_reader_gets_the_next_packet() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.sock");
        let mut sender = PacketSender::new(path.clone());
        assert!(matches!(sender.send(b"early"), Err(PacketError::NoReader(_))));
        for (one, other) in [(b"1", b"2"), (b"3", b"4")] {
            let reader = reader(&path);
            sender.send(one).unwrap();
            sender.send(other).unwrap();
            let connection = reader.accept().unwrap().0;
            assert_eq!((packet(&connection), packet(&connection)), (one.to_vec(), other.to_vec()), "whole, in order");
            drop((reader, connection));
            std::fs::remove_file(&path).unwrap();
        }
        assert!(matches!(sender.send(b"late"), Err(PacketError::NoReader(_))));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(sender.send(b"no socket"), Err(PacketError::NoReader(_))));
    }

    #[test]
    fn a_slow_reader_is_told_apart_and_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.sock");
        let reader = reader(&path);
        let mut sender = PacketSender::new(path);
        let mut sent = 0;
        loop {
            match sender.send(&[7; 4000]) {
                Ok(()) => sent += 1,
                Err(PacketError::Slow) => break,
                Err(error) => panic!("{error}"),
            }
        }
        sender.wait(Duration::from_millis(1));
        assert!(matches!(sender.send(b"still"), Err(PacketError::Slow)));
        let connection = reader.accept().unwrap().0;
        for _ in 0..sent {
            assert_eq!(packet(&connection), [7; 4000]);
        }
        sender.wait(Duration::from_secs(30));
        sender.send(b"last").unwrap();
        assert_eq!(packet(&connection), b"last", "on the same connection");
        assert!(matches!(sender.send(&vec![0; 4 << 20]), Err(PacketError::Failed(_))));
        sender.send(b"the connection stays").unwrap();
    }
}
