//! What to do with a connection once `accept` returned, and with the errors of `accept` itself.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::NetError;

/// Idle time before, and time between, keep-alive probes on downstream connections; the value of Cilium's filter.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// A downstream connection that is ready for use.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// The client's address.
    pub downstream: SocketAddr,
    /// Where the client wanted to go, before redirection.
    pub original_dst: SocketAddr,
}

impl Accepted {
    /// Prepares what `accept` returned: socket options set, both addresses known.
    ///
    /// An error concerns this connection only; drop it and accept the next.
    pub fn new(stream: TcpStream, downstream: SocketAddr) -> Result<Self, NetError> {
        prepare_accepted(&stream)?;
        let original_dst =
            original_dst(&stream).map_err(|error| NetError::Accepted { operation: "getsockname", error })?;
        Ok(Self { stream, downstream: canonical(downstream), original_dst })
    }
}

impl Accepted {
    /// Lets the kernel hold no more than so many bytes that it has not sent yet (`TCP_NOTSENT_LOWAT`): else it takes megabytes for a peer
    /// that does not read. With `None` as many as it likes.
    pub fn limit_unsent(self, bytes: Option<u32>) -> Result<Self, NetError> {
        limit_unsent(&self.stream, bytes)
            .map_err(|error| NetError::Accepted { operation: "TCP_NOTSENT_LOWAT", error })?;
        Ok(self)
    }
}

/// See [`Accepted::limit_unsent`].
pub(crate) fn limit_unsent(stream: &impl AsFd, bytes: Option<u32>) -> io::Result<()> {
    bytes.map_or(Ok(()), |bytes| SockRef::from(stream).set_tcp_notsent_lowat(bytes))
}

/// Sets `TCP_NODELAY` and keep-alive (probes after 300 s of silence, every 300 s) on an accepted socket.
///
/// The mark is inherited from the listener and stays as it is.
pub fn prepare_accepted(stream: &impl AsFd) -> Result<(), NetError> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true).map_err(|error| NetError::Accepted { operation: "TCP_NODELAY", error })?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive).map_err(|error| NetError::Accepted { operation: "SO_KEEPALIVE", error })
}

/// The destination that the client dialled: the local address of the accepted socket.
///
/// TPROXY hands over connections without rewriting them, so no lookup is needed. IPv4-mapped IPv6 addresses come back as
/// IPv4, so that one endpoint has one spelling.
pub fn original_dst(stream: &impl AsFd) -> io::Result<SocketAddr> {
    let address = SockRef::from(stream).local_addr()?;
    address
        .as_socket()
        .map(canonical)
        .ok_or_else(|| io::Error::other("the socket's local address is not an IP address"))
}

/// IPv4-mapped IPv6 addresses as IPv4; all others unchanged.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ std::net::IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        std::net::IpAddr::V6(_) => address,
    }
}

/// What an accept loop does after `accept` failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptError {
    /// The connection died before it was accepted, or nothing was there: accept the next at once.
    PerConnection,
    /// The process or the host is out of descriptors or memory, or the error is not a known one. The connection stays
    /// in the queue, so accepting at once would spin: pause, and free something.
    Exhausted,
    /// The socket is no listener any more: the loop cannot go on.
    Fatal,
}

impl AcceptError {
    /// Sorts an error of `accept(2)`. Pending network errors of a new connection are delivered through `accept` on
    /// Linux, and count as that connection's own.
    pub fn classify(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(
                libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EAGAIN
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
                | libc::ETIMEDOUT,
            ) => Self::PerConnection,
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => Self::Fatal,
            _ => Self::Exhausted,
        }
    }
}
