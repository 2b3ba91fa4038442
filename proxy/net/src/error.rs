//! What can go wrong with a socket, told with the address and the remedy.

use std::{fmt, io, net::SocketAddr, path::PathBuf};

/// The step of setting up a socket that failed. Prints as the kernel's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `socket(2)`.
    Socket,
    /// `SO_MARK`.
    Mark,
    /// `IP_TRANSPARENT` or `IPV6_TRANSPARENT`.
    Transparent,
    /// Any other socket option.
    Option(&'static str),
    /// `bind(2)`.
    Bind,
    /// `listen(2)`.
    Listen,
    /// `connect(2)`.
    Connect,
    /// Registration with the runtime.
    Register,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket => "socket",
            Self::Mark => "SO_MARK",
            Self::Transparent => "IP_TRANSPARENT",
            Self::Option(name) => name,
            Self::Bind => "bind",
            Self::Listen => "listen",
            Self::Connect => "connect",
            Self::Register => "register with the runtime",
        })
    }
}

impl Operation {
    /// What an operator can do about `error`, as the end of a sentence.
    fn remedy(self, error: &io::Error) -> &'static str {
        match (self, error.raw_os_error()) {
            (Self::Mark, Some(libc::EPERM)) => {
                "; give the process CAP_NET_ADMIN (or CAP_NET_RAW on Linux 5.17 and later)"
            }
            (Self::Transparent, Some(libc::EPERM)) => "; give the process CAP_NET_ADMIN, or set `transparent: false`",
            (Self::Bind | Self::Listen, Some(libc::EADDRINUSE)) => {
                "; another socket holds this address: stop its process (`ss -ltnp` names it) or choose another address"
            }
            (Self::Bind, Some(libc::EADDRNOTAVAIL)) => "; this host has no such address",
            (Self::Bind, Some(libc::EACCES)) => "; ports below 1024 need CAP_NET_BIND_SERVICE",
            (Self::Socket, Some(libc::EAFNOSUPPORT)) => "; IPv6 is disabled on this host: remove this address",
            (Self::Socket, Some(libc::EMFILE | libc::ENFILE)) => "; raise the limit of open files (RLIMIT_NOFILE)",
            _ => "",
        }
    }
}

/// A socket could not be set up. The text names the operation, the address and, where there is one, the remedy.
///
/// The kernel's error is part of the text and is reachable with [`NetError::io_error`]; it is not repeated as a source.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A TCP listener could not be opened.
    #[error("cannot listen on {address}: {operation}: {error}{}", operation.remedy(error))]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The failed step.
        operation: Operation,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A Unix listener could not be opened.
    #[error("cannot listen on unix socket {}: {operation}: {error}{remedy}", path.display())]
    ListenUnix {
        /// The socket's path.
        path: PathBuf,
        /// The failed step in words.
        operation: &'static str,
        /// The kernel's answer.
        error: io::Error,
        /// What to do about it, starting with a semicolon, or empty.
        remedy: &'static str,
    },
    /// An upstream connection could not be opened.
    #[error("cannot connect to {destination}{}: {operation}: {error}{}", From(source_address), operation.remedy(error))]
    Connect {
        /// The upstream's address.
        destination: SocketAddr,
        /// The local address that was asked for.
        source_address: Option<SocketAddr>,
        /// The failed step.
        operation: Operation,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The source address to keep and the destination are of different families, so no socket can have both.
    #[error("cannot connect to {destination} from {source_address}: one is IPv4 and the other IPv6")]
    FamilyMismatch {
        /// The upstream's address.
        destination: SocketAddr,
        /// The local address that was asked for.
        source_address: SocketAddr,
    },
    /// An accepted socket could not be prepared; usually the client is gone already.
    #[error("cannot use an accepted connection: {operation}: {error}")]
    Accepted {
        /// The failed step in words.
        operation: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The process may not do what a transparent listener needs.
    #[error("listener {listener}: transparent mode needs {needs}, but {error}; {remedy}")]
    Capability {
        /// The listener's name in the configuration.
        listener: String,
        /// The socket option that was refused.
        needs: &'static str,
        /// The kernel's answer to the probe.
        error: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl NetError {
    /// The kernel's answer behind this error, if there was one.
    pub const fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Listen { error, .. }
            | Self::ListenUnix { error, .. }
            | Self::Connect { error, .. }
            | Self::Accepted { error, .. }
            | Self::Capability { error, .. } => Some(error),
            Self::FamilyMismatch { .. } => None,
        }
    }
}

/// Prints ` from ADDRESS`, or nothing.
struct From<'a>(&'a Option<SocketAddr>);

impl fmt::Display for From<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |address| write!(f, " from {address}"))
    }
}
