//! A connection on its way to the other side. Nothing of the thread that it leaves goes with it.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use tollgate_policy::SecurityId;

use crate::config;
use crate::flow::ListenerLog;
use crate::listener::connection::Carried;
use crate::metrics::ListenerSeries;
use crate::tenant::{SentPlace, UpstreamPlace};
use crate::upstream::UpstreamPath;
use crate::worker::ConnectionSlot;

/// A connection that changes sides, and the settings of the listener that it was accepted with.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) config: Arc<config::Listener>,
    pub(crate) series: ListenerSeries,
    pub(crate) access_log: ListenerLog,
    /// Taken out of the event loop of the side that it leaves.
    pub(crate) stream: TcpStream,
    pub(crate) downstream: SocketAddr,
    pub(crate) original_dst: SocketAddr,
    pub(crate) stage: Stage,
}

/// How far it is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Just accepted: nothing was counted, judged or read.
    Accepted,
    /// HTTP/1 between two exchanges.
    Between(Box<Resumed>),
}

/// What goes along with an HTTP/1 connection.
#[derive(Debug)]
pub(crate) struct Resumed {
    pub(crate) slot: ConnectionSlot,
    /// Its place among its tenant's.
    pub(crate) place: Option<SentPlace>,
    /// What was read of the requests to come.
    pub(crate) unread: Vec<u8>,
    /// Its upstream connection, which carries nothing now.
    pub(crate) upstream: Option<SentUpstream>,
    pub(crate) carried: Carried,
}

/// An upstream connection that goes along.
#[derive(Debug)]
pub(crate) struct SentUpstream {
    pub(crate) stream: TcpStream,
    pub(crate) path: UpstreamPath,
    pub(crate) place: UpstreamPlace,
    /// Identity that the socket's mark carries.
    pub(crate) source: SecurityId,
    pub(crate) reused: bool,
}
