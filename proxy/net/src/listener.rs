//! TCP listeners, transparent or plain.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{Mark, NetError, Operation};

/// How a listening socket is set up before `bind`.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Accept connections for addresses that are not this host's (TPROXY). Needs CAP_NET_ADMIN or CAP_NET_RAW.
    pub transparent: bool,
    /// Mark of the socket and, by inheritance, of all accepted ones. Needs CAP_NET_ADMIN.
    pub mark: Option<Mark>,
    /// Let each worker have its own socket on the same address (`SO_REUSEPORT`). Must be off where BPF assigns the
    /// socket (`enable-bpf-tproxy`).
    pub reuse_port: bool,
    /// Length of the accept queue; the kernel caps it at `net.core.somaxconn`.
    pub backlog: i32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { transparent: false, mark: None, reuse_port: false, backlog: 1024 }
    }
}

/// Opens a TCP listener on `address` (port 0: the kernel chooses).
///
/// IPv4 and IPv6 are separate sockets: an IPv6 listener never takes IPv4 traffic. A mark or transparency that the kernel
/// refuses is an error: without them redirected traffic would not arrive or would lose its identity.
pub fn listen(address: SocketAddr, options: &ListenOptions) -> Result<TcpListener, NetError> {
    open(address, options).map_err(|(operation, error)| NetError::Listen { address, operation, error })
}

fn open(address: SocketAddr, options: &ListenOptions) -> Result<TcpListener, (Operation, std::io::Error)> {
    let socket = new_socket(address).map_err(|e| (Operation::Socket, e))?;
    set_mark_and_transparent(&socket, address, options.mark, options.transparent)?;
    socket.set_reuse_address(true).map_err(|e| (Operation::Option("SO_REUSEADDR"), e))?;
    if options.reuse_port {
        socket.set_reuse_port(true).map_err(|e| (Operation::Option("SO_REUSEPORT"), e))?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true).map_err(|e| (Operation::Option("IPV6_V6ONLY"), e))?;
    }
    socket.bind(&address.into()).map_err(|e| (Operation::Bind, e))?;
    socket.listen(options.backlog).map_err(|e| (Operation::Listen, e))?;
    Ok(socket.into())
}

/// A non-blocking, close-on-exec TCP socket of the family of `address`.
pub(crate) fn new_socket(address: SocketAddr) -> std::io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// Sets what must be there before `bind`: the mark, and the right to use addresses that are not ours.
pub(crate) fn set_mark_and_transparent(
    socket: &Socket,
    address: SocketAddr,
    mark: Option<Mark>,
    transparent: bool,
) -> Result<(), (Operation, std::io::Error)> {
    if let Some(mark) = mark {
        socket.set_mark(mark.raw()).map_err(|e| (Operation::Mark, e))?;
    }
    if transparent {
        set_transparent(socket, address).map_err(|e| (Operation::Transparent, e))?;
    }
    Ok(())
}

pub(crate) fn set_transparent(socket: &Socket, address: SocketAddr) -> std::io::Result<()> {
    if address.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}
