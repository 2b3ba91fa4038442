//! Upstream connections: marked, and from the client's own address where that is wanted.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::{
    Mark, NetError, Operation,
    accept::{canonical, limit_unsent},
    listener::{new_socket, set_mark_and_transparent},
};

/// How an upstream socket is set up before it connects.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpstreamOptions {
    /// Allow a `source` that is not an address of this host. Needs CAP_NET_ADMIN or CAP_NET_RAW.
    pub transparent: bool,
    /// Mark of the socket: tells the datapath the flow's source identity. Needs CAP_NET_ADMIN.
    pub mark: Option<Mark>,
    /// Local address to connect from; port 0: any port of that address. `None`: the kernel chooses both.
    pub source: Option<SocketAddr>,
    /// Whether a connection from the very port of `source` ends with a reset (`SO_LINGER` with zero time), so that the host
    /// does not remember it and the client can use its port again at once. What the upstream has not taken yet is lost then.
    pub reset_on_close: bool,
    /// Bytes that the kernel holds and has not sent yet, as for [`crate::Accepted::limit_unsent`].
    pub unsent: Option<u32>,
}

/// A connected upstream socket.
#[derive(Debug)]
pub struct Upstream {
    /// The connection, with `TCP_NODELAY` set.
    pub stream: TcpStream,
    /// The source port asked for was taken on this path, so that the connection has the right address but another port.
    pub source_port_changed: bool,
}

/// Connects to `destination`. Must run inside a Tokio runtime; it has no timeout of its own, drop the future to give up.
///
/// A source port that is taken (`EADDRINUSE` at bind, `EADDRNOTAVAIL` at connect because the same four addresses are in
/// use, for example by a connection in TIME_WAIT) is given up for another port of the same address, and reported. Marks or
/// transparency that the kernel refuses are errors, never ignored: the flow would go out under a wrong identity.
pub async fn connect(destination: SocketAddr, options: &UpstreamOptions) -> Result<Upstream, NetError> {
    let destination = canonical(destination);
    let source = options.source.map(canonical);
    if let Some(source_address) = source.filter(|source| source.is_ipv4() != destination.is_ipv4()) {
        return Err(NetError::FamilyMismatch { destination, source_address });
    }
    let fail = |(operation, error)| NetError::Connect { destination, source_address: source, operation, error };
    match connect_from(destination, source, options).await {
        Ok(stream) => Ok(Upstream { stream, source_port_changed: false }),
        Err((operation, error)) => {
            let Some(any_port) = other_port(source, &error) else {
                return Err(fail((operation, error)));
            };
            let stream = connect_from(destination, Some(any_port), options).await.map_err(fail)?;
            Ok(Upstream { stream, source_port_changed: true })
        }
    }
}

/// The same address with any port, if `error` says that the port asked for is taken.
fn other_port(source: Option<SocketAddr>, error: &io::Error) -> Option<SocketAddr> {
    let mut source = source.filter(|source| source.port() != 0)?;
    if !matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL)) {
        return None;
    }
    source.set_port(0);
    Some(source)
}

async fn connect_from(
    destination: SocketAddr,
    source: Option<SocketAddr>,
    options: &UpstreamOptions,
) -> Result<TcpStream, (Operation, io::Error)> {
    let socket = new_socket(destination).map_err(|e| (Operation::Socket, e))?;
    set_mark_and_transparent(&socket, destination, options.mark, options.transparent)?;
    if let Some(source) = source {
        // Both, so that one client address and port can have connections to several upstreams at a time.
        socket.set_reuse_address(true).map_err(|e| (Operation::Option("SO_REUSEADDR"), e))?;
        socket.set_reuse_port(true).map_err(|e| (Operation::Option("SO_REUSEPORT"), e))?;
        if source.port() == 0 {
            // The port is then chosen at connect, unique per destination: else one client address would run out of
            // ports after about 28,000 connections to all upstreams together.
            set_bind_address_no_port(&socket).map_err(|e| (Operation::Option("IP_BIND_ADDRESS_NO_PORT"), e))?;
        }
        if options.reset_on_close && source.port() != 0 {
            socket.set_linger(Some(Duration::ZERO)).map_err(|e| (Operation::Option("SO_LINGER"), e))?;
        }
        socket.bind(&source.into()).map_err(|e| (Operation::Bind, e))?;
    }
    socket.set_tcp_nodelay(true).map_err(|e| (Operation::Option("TCP_NODELAY"), e))?;
    limit_unsent(&socket, options.unsent).map_err(|e| (Operation::Option("TCP_NOTSENT_LOWAT"), e))?;
    TcpSocket::from_std_stream(socket.into()).connect(destination).await.map_err(|e| (Operation::Connect, e))
}

#[expect(unsafe_code, reason = "none of the socket crates in the tree knows this option")]
fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; the kernel reads `size_of::<c_int>()` bytes
    // from `on`, which lives until the call returns, and keeps no pointer to it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether `address` is this host's, by the kernel's routes: to an address of its own it would send from that same
/// address. Costs a datagram socket for a moment; sends nothing. An IPv4 address that is secondary on its interface is
/// not found, because the kernel prefers the first one as the source. An address without a route is not this host's.
pub fn is_own_address(address: IpAddr) -> bool {
    let address = address.to_canonical();
    // Any port but 0, which some systems refuse as a destination.
    let destination = SocketAddr::new(address, 9);
    let source = || {
        let socket = Socket::new(Domain::for_address(destination), Type::DGRAM, None)?;
        socket.connect(&destination.into())?;
        socket.local_addr()
    };
    source().ok().and_then(|source| source.as_socket()).is_some_and(|source| source.ip() == address)
}

/// Makes the close of `stream` a reset instead of an orderly end (`SO_LINGER` with zero time). For streams that another
/// owner, such as an HTTP server, will drop.
pub fn reset_on_close(stream: &impl AsFd) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Closes `stream` with a TCP reset, so that the peer cannot take the end for a complete answer.
pub fn reset(stream: impl AsFd) {
    // It fails only when the connection is gone already, and then there is nobody left to tell.
    let _ = reset_on_close(&stream);
}
