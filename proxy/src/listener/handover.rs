//! How connections change threads: out of a worker and into its lane, or back.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::sync::mpsc::Permit;
use tollgate_net::Accepted;

use super::accept;
use super::connection::{Carried, Connection, ListenerContext, tenant_of_accepted};
use super::serving::{Served, Serving};
use crate::flow::{Outcome, Protocol};
use crate::http::Buffer;
use crate::http::h1::{self, Paired};
use crate::lane::{Handover, Resumed, SentUpstream, Stage};
use crate::reason::Reason;
use crate::worker::{PanicCount, Worker};

/// What a connection needs to leave.
pub(crate) struct Leave<'a> {
    pub(super) way: Permit<'a, Handover>,
    pub(super) carried: Carried,
}

/// Hands over a connection that was just accepted, if that is where its tenant is. It is counted there.
pub(super) fn pass_on(worker: &Worker, listener: &ListenerContext, accepted: Accepted) -> Option<Accepted> {
    let Some(side) = worker.side.as_ref().filter(|side| side.is_anybody_in_lane()) else { return Some(accepted) };
    let Accepted { stream, downstream, original_dst } = accepted;
    let tenant = tenant_of_accepted(worker, &listener.config, downstream, original_dst);
    let way = side.is_misplaced(tenant).then(|| side.way()).flatten();
    let Some(way) = way else { return Some(Accepted { stream, downstream, original_dst }) };
    // Fails only for a socket that the event loop does not know.
    if let Ok(stream) = stream.into_std() {
        way.send(handover(listener, stream, downstream, original_dst, Stage::Accepted));
    }
    None
}

/// Hands over an HTTP/1 connection between two exchanges, with what was read of the requests to come.
pub(crate) fn leave(
    connection: &Connection,
    leave: Leave<'_>,
    stream: TcpStream,
    unread: &Buffer,
    paired: Option<Paired>,
) {
    let upstream = paired.and_then(|Paired { stream, path, place, source, reused, .. }| {
        // Without it the next request opens another.
        let stream = stream.into_std().ok()?;
        Some(SentUpstream { stream, path, place, source, reused })
    });
    let resumed = Resumed {
        slot: connection.worker.slots.take_over(),
        place: connection.payer.send_place(),
        unread: unread.filled().to_vec(),
        upstream,
        carried: leave.carried,
    };
    if let Ok(stream) = stream.into_std() {
        let (downstream, original_dst) = (connection.downstream, connection.original_dst);
        let stage = Stage::Between(Box::new(resumed));
        leave.way.send(handover(&connection.listener, stream, downstream, original_dst, stage));
    }
}

fn handover(
    listener: &ListenerContext,
    stream: std::net::TcpStream,
    downstream: SocketAddr,
    original_dst: SocketAddr,
    stage: Stage,
) -> Handover {
    let (config, series, access_log) =
        (Arc::clone(&listener.config), listener.series.clone(), listener.access_log.clone());
    Handover { config, series, access_log, stream, downstream, original_dst, stage }
}

impl Serving {
    /// Goes on with a connection that has come from the other side. It keeps the settings that it was accepted with; a listener
    /// that is gone takes it along.
    pub(crate) fn take_up(&self, handover: Handover) {
        let Handover { config, series, access_log, stream, downstream, original_dst, stage } = handover;
        let found = self.listener_of(&config).filter(|(served, _)| !served.is_stopping());
        let Some((served, known)) = found else {
            tracing::debug!(listener = config.name, %downstream, "a connection came over whose listener is gone");
            let (name, signals) = (Arc::from(config.name.as_str()), Rc::default());
            let listener = Rc::new(ListenerContext { config, name, series, signals, access_log });
            reset(stream);
            return record_loss(self.worker(), &listener, downstream, original_dst, &stage, Reason::Draining);
        };
        let listener = if Arc::ptr_eq(&known.config, &config) {
            known
        } else {
            let (name, signals) = (Arc::clone(&known.name), Rc::clone(&known.signals));
            Rc::new(ListenerContext { config, name, series, signals, access_log })
        };
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(listener = %listener.name, %error, "a connection cannot change threads; raise the limit of open files");
                return record_loss(self.worker(), &listener, downstream, original_dst, &stage, Reason::Internal);
            }
        };
        match stage {
            Stage::Accepted => {
                accept::start(self.worker(), &served, &listener, Accepted { stream, downstream, original_dst });
            }
            Stage::Between(resumed) => {
                let connection =
                    Connection::resume(self.worker(), &listener, downstream, original_dst, resumed.carried);
                go_on(self.worker(), &served, connection, stream, *resumed);
            }
        }
    }
}

/// Starts the task of an HTTP/1 connection where it was left.
fn go_on(worker: &Rc<Worker>, served: &Rc<Served>, connection: Connection, stream: TcpStream, resumed: Resumed) {
    let Resumed { slot, place, unread, upstream, .. } = resumed;
    if let Some(place) = place {
        connection.payer.take_place(place);
    }
    let metrics = worker.flows.metrics();
    let opened = metrics.connection_resumed(connection.listener.series.index());
    let panics = PanicCount::new(metrics, &connection.payer);
    let entered = worker.enter();
    let group = connection.group().clone();
    let paired = upstream.and_then(|SentUpstream { stream, path, place, source, reused }| {
        let stream = TcpStream::from_std(stream).ok()?;
        Some(Paired { stream, path, place, source, buffer: connection.buffer(), reused })
    });
    let buffer = Buffer::with(&worker.buffers, &connection.payer, &unread);
    served.spawn(&group, async move {
        let _guards = (opened, slot, panics, entered);
        h1::resume(&connection, stream, buffer, paired).await;
    });
}

/// Leaves a record of a connection that came over and cannot be served.
fn record_loss(
    worker: &Rc<Worker>,
    listener: &Rc<ListenerContext>,
    downstream: SocketAddr,
    original_dst: SocketAddr,
    stage: &Stage,
    reason: Reason,
) {
    let metrics = worker.flows.metrics();
    let (_opened, protocol, connection) = match stage {
        Stage::Accepted => (
            metrics.connection_opened(listener.series.index()),
            Protocol::Tcp,
            Connection::new(worker, listener, downstream, original_dst),
        ),
        Stage::Between(resumed) => (
            metrics.connection_resumed(listener.series.index()),
            Protocol::Http11,
            Connection::resume(worker, listener, downstream, original_dst, resumed.carried),
        ),
    };
    connection.open_flow(protocol, Instant::now()).finish(Outcome::Failed, Some(reason));
}

fn reset(stream: std::net::TcpStream) {
    if let Ok(stream) = TcpStream::from_std(stream) {
        tollgate_net::reset(stream);
    }
}
