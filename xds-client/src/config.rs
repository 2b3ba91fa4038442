//! What the client must be told: who it is, where the control plane is, and its bounds.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Backoff, Mode};

/// Everything that a [`crate::Client`] needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Who we are.
    pub node: Node,
    /// Where the control plane listens.
    pub address: Address,
    /// Which variant of the protocol to speak, or to begin with.
    pub mode: Mode,
    /// Pacing of reconnects.
    pub backoff: Backoff,
    /// How long the peer may take to accept a connection and to send its first HTTP/2 frame. A Cilium agent binds its
    /// socket minutes before it serves it; a connection that stays silent for longer than this is replaced.
    pub handshake_timeout: Duration,
    /// Largest message that is accepted from the peer, in bytes.
    pub max_message_bytes: usize,
}

impl ClientConfig {
    /// Default of [`Self::max_message_bytes`]. A node's whole policy is one response, which the peer does not bound, so
    /// the limit only has to stop a corrupt length prefix (up to 4 GiB) from reserving all memory of the node.
    pub const MAX_MESSAGE_BYTES: usize = 1 << 30;

    /// Default of [`Self::handshake_timeout`].
    pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

    pub(crate) const fn is_fixed(&self) -> bool {
        matches!(self.mode, Mode::Fixed(_))
    }

    /// A configuration with every bound at its default.
    #[must_use]
    pub fn new(node: Node, address: Address) -> Self {
        Self {
            node,
            address,
            mode: Mode::default(),
            backoff: Backoff::default(),
            handshake_timeout: Self::HANDSHAKE_TIMEOUT,
            max_message_bytes: Self::MAX_MESSAGE_BYTES,
        }
    }
}

/// Identity towards the control plane; sent in the first request of each stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// For a Cilium agent: four parts joined by `~`, the second an IP address.
    pub id: String,
    /// Cluster name.
    pub cluster: String,
    /// Name of this program.
    pub user_agent: String,
    /// Version of this program.
    pub user_agent_version: String,
}

/// Where the control plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Path of a Unix stream socket; resolved again for each connection, because the inode changes when the agent
    /// restarts.
    Unix(PathBuf),
    /// `host:port`, HTTP/2 without TLS.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(authority) => write!(f, "http://{authority}"),
        }
    }
}
