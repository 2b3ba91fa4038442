//! The HTTP endpoints for operators: admin, metrics and health, each on its own socket, all on the control thread.
//!
//! They show what other rooms know ([`Views`]) and pass on what an operator asks for ([`Actions`]); they decide
//! nothing. Everything is bounded: connections, request heads, the time a client may take to send or to read. A
//! client that follows flow records and does not read them is dropped.

mod config_dump;
mod connection;
mod flows;
mod respond;
mod stats;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tollgate_net::SocketFile;

use crate::config::{ListenAddress, Node};
use crate::explanation::{Asked, Explained};
use crate::flow::FlowLog;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use connection::{Patience, Stream};

/// Clients at the same time, per socket; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// Followers of flow records at the same time.
const MAX_FOLLOWERS: usize = 16;
/// Pause after a failed accept (out of descriptors): never spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;

/// Why an admin socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}; stop what uses it, or choose another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said. Part of the text, so not a source, which would be printed again.
        error: io::Error,
    },
    /// The Unix socket cannot be opened.
    #[error(transparent)]
    Unix(#[from] tollgate_net::NetError),
    /// The socket cannot be registered with the runtime.
    #[error("cannot use the socket: {0}")]
    Register(io::Error),
}

/// What a socket serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Everything.
    Admin,
    /// `/metrics` alone.
    Metrics,
    /// `/healthz` and `/ready`.
    Health,
}

/// A listener as `/listeners` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundListener {
    /// Its name.
    pub name: String,
    /// The addresses it accepts on.
    pub addresses: Vec<SocketAddr>,
}

/// What the rest of the process shows. Called on the control thread; must not block.
pub trait Views: Send + Sync + 'static {
    /// Members of `/status` beside those that admin itself knows (version, node, uptime, readiness, connections, lost
    /// flow records): policy generation and age, endpoints, quarantined rules, conflicts, xDS streams, drain state.
    fn status(&self) -> serde_json::Map<String, serde_json::Value>;
    /// For `/config_dump`: an object with the resolved configuration, and what is in force. Its members `networkpolicies`,
    /// `clusters`, `routes` and `endpoints` (names) and `listeners` (objects with a `name`) are shown in Envoy's form, too.
    fn config_dump(&self) -> serde_json::Value;
    /// What the policies in force say about a connection or request.
    ///
    /// # Errors
    /// The question contradicts itself.
    fn explain(&self, asked: &Asked) -> Result<Explained, String>;
    /// Names of the clusters that the control plane has told of.
    fn clusters(&self) -> Vec<String>;
    /// For `/tenants`: who is a tenant, what each may use and has used.
    fn tenants(&self, endpoints: bool) -> serde_json::Value;
    /// The listeners that are bound now.
    fn listeners(&self) -> Vec<BoundListener>;
}

/// What an operator may ask for. Called on the control thread; must not block.
pub trait Actions: Send + Sync + 'static {
    /// Stops accepting and lets connections end; the process stays.
    fn drain(&self);
    /// Ends the process, with the usual drain.
    fn quit(&self);
    /// Changes the log level (`info`, or a filter such as `info,tollgate::http=debug`).
    ///
    /// # Errors
    /// The level is not understood; the message says what is.
    fn set_log_level(&self, level: &str) -> Result<(), String>;
}

/// Everything that the endpoints need.
pub struct AdminState {
    /// Who we are towards the control plane.
    pub node: Node,
    /// What `/server_info` says instead of our version: agents ask for a certain one.
    pub reported_version: Option<String>,
    /// Start of the process.
    pub started: Instant,
    /// Whether we are ready.
    pub readiness: Readiness,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/flows`.
    pub flows: Arc<FlowLog>,
    /// What the rest of the process shows.
    pub views: Box<dyn Views>,
    /// What an operator may ask for.
    pub actions: Box<dyn Actions>,
    /// Slots of followers.
    pub followers: Arc<Semaphore>,
}

impl AdminState {
    /// What keeps the process from being ready; empty when it is.
    fn waiting_for(&self) -> Vec<String> {
        let mut waiting = self.readiness.waiting_for();
        if self.metrics.upstreams_are_refused() {
            waiting.push("the privilege to mark upstream sockets (CAP_NET_ADMIN)".to_owned());
        }
        waiting
    }

    /// The slots for [`AdminState::followers`].
    pub fn follower_slots() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_FOLLOWERS))
    }
}

/// An open admin socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// Unix, with its file.
    Unix(UnixListener, SocketFile),
}

/// Opens an admin socket; a Unix socket is made for owner and group (mode 0660), and its file goes with it. Needs a Tokio
/// runtime.
///
/// # Errors
/// The address is in use, not ours or not permitted.
pub fn bind(address: &ListenAddress) -> Result<Socket, AdminError> {
    match address {
        ListenAddress::Tcp(address) => {
            let fail = |error| AdminError::Listen { address: *address, error };
            let listener = std::net::TcpListener::bind(address).map_err(fail)?;
            listener.set_nonblocking(true).map_err(fail)?;
            Ok(Socket::Tcp(TcpListener::from_std(listener).map_err(AdminError::Register)?))
        }
        ListenAddress::Unix(path) => {
            let listener = tollgate_net::listen_unix(path, SOCKET_MODE)?;
            let file = SocketFile::of(path);
            Ok(Socket::Unix(UnixListener::from_std(listener).map_err(AdminError::Register)?, file))
        }
    }
}

/// Serves the socket until the future is dropped; its connections end with it.
pub async fn serve(socket: Socket, surface: Surface, state: Arc<AdminState>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, socket.accept().await)
        };
        tokio::select! {
            (slot, accepted) = accept => match accepted {
                Ok(stream) => {
                    let state = Arc::clone(&state);
                    connections.spawn(async move {
                        connection::serve(stream, surface, state, Patience::DEFAULT).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "an admin connection failed");
                }
            }
        }
    }
}

impl Socket {
    /// The TCP address, for a socket that was bound to port 0.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
        })
    }
}

#[cfg(test)]
mod tests;
