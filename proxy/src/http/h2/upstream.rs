//! The upstream HTTP/2 connection that belongs to one downstream connection.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use http::request::Parts;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tollgate_policy::{Permit, SecurityId};

use super::connection::{CONNECTION_WINDOW, MAX_HEADER_LIST, STREAM_WINDOW};
use super::driver::{Outbound, UpstreamSocket, drive};
use super::outlet::Outlet;
use super::queue::{Piece, QUEUED, Way};
use super::request::size_of_head;
use super::stream::Broken;
use crate::listener::connection::Connection;
use crate::reason::Reason;
use crate::tenant::{Payer, WouldLimit};
use crate::upstream::{Opened, UpstreamPath};
use crate::worker::PanicCount;

/// Bytes that a connection to an upstream takes beside what is queued, in `h2` and here. Measured.
const CONNECTION_MEMORY: usize = 56 * 512;

/// Opens the connection when the first stream needs it, and again if it has ended or the client's identity has changed.
#[derive(Debug)]
pub(super) struct UpstreamSlot {
    /// Held while connecting, so that streams that come together share one connection.
    current: Mutex<Option<Rc<UpstreamConnection>>>,
    /// Attempts to connect that have ended, and why the last one failed, if it did.
    attempts: Cell<(u64, Option<Reason>)>,
    /// A copy is with each connection until its socket is closed.
    open: mpsc::Sender<Infallible>,
    /// What waits for the client: while that is too much, nothing is read.
    down: Rc<Way>,
    /// What waits for the upstream.
    up: Rc<Way>,
}

/// An open upstream connection. With its last user it ends.
#[derive(Debug)]
struct UpstreamConnection {
    sender: SendRequest<Piece>,
    path: UpstreamPath,
    source: SecurityId,
    outbound: Rc<Outbound>,
    /// Streams open now.
    streams: Cell<usize>,
    /// Until a record says so.
    would_limit: Cell<WouldLimit>,
    /// Tells the driver by its drop.
    _in_use: oneshot::Sender<Infallible>,
}

/// The right to one stream.
#[derive(Debug)]
pub(super) struct Turn {
    connection: Rc<UpstreamConnection>,
    /// The one that a request was sent on, 0 before.
    stream: u32,
}

impl UpstreamSlot {
    /// Each connection that is opened keeps a copy of `open` until its socket is closed.
    pub(super) fn new(open: mpsc::Sender<Infallible>, down: &Rc<Way>, up: &Rc<Way>) -> Self {
        let (down, up) = (Rc::clone(down), Rc::clone(up));
        Self { current: Mutex::default(), attempts: Cell::default(), open, down, up }
    }

    /// Waits until a request can be sent and the upstream takes another stream, as far as is known: what waits here can be given up or revoked
    /// without a trace. `h2` may queue it all the same: before the upstream's settings are known it takes any number, and it counts a stream that was
    /// answered until its body has left. What it has not opened is known to [`Outbound`].
    pub(super) async fn turn(
        &self,
        connection: &Rc<Connection>,
        permit: &Permit,
        source: SecurityId,
    ) -> Result<Turn, Reason> {
        let upstream = self.connection(connection, permit, source).await?;
        loop {
            if !upstream.is_usable() {
                return Err(Reason::UpstreamReset);
            }
            if upstream.streams.get() < upstream.sender.current_max_send_streams() {
                upstream.streams.set(upstream.streams.get() + 1);
                return Ok(Turn { connection: upstream, stream: 0 });
            }
            upstream.outbound.turns.notified().await;
        }
    }

    /// Ends the connection with a reset, unless it is being opened.
    pub(super) fn cut(&self) {
        if let Some(open) = self.current.try_lock().ok().as_deref().and_then(Option::as_ref) {
            open.outbound.cut();
        }
    }

    /// Lets go of a connection that was not in use for `limit`, again and again. That is noticed within half of it: a request
    /// need not tell anybody.
    pub(super) async fn let_go_when_idle(&self, limit: Duration) -> Infallible {
        let mut seen = None;
        let mut since = Instant::now();
        loop {
            tokio::time::sleep((limit / 4).max(Duration::from_millis(1))).await;
            // Whoever holds it connects.
            let Ok(mut current) = self.current.try_lock() else { continue };
            let Some(open) = current.as_ref() else { continue };
            let now = Some((self.attempts.get().0, open.outbound.requests()));
            if Rc::strong_count(open) > 1 || now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= limit {
                *current = None;
            }
        }
    }

    /// The connection for `source`, opened if there is none.
    async fn connection(
        &self,
        connection: &Rc<Connection>,
        permit: &Permit,
        source: SecurityId,
    ) -> Result<Rc<UpstreamConnection>, Reason> {
        let (before, _) = self.attempts.get();
        let mut current = self.current.lock().await;
        if let Some(open) = current.as_ref().filter(|open| open.source == source && open.is_usable()) {
            return Ok(Rc::clone(open));
        }
        // Streams that waited for an attempt share its failure: with one each, the last would learn of it many time-outs
        // later.
        if let (ended, Some(reason)) = self.attempts.get()
            && ended != before
        {
            return Err(reason);
        }
        let connected = self.connect(connection, permit, source).await;
        let failure = connected.as_ref().err().copied();
        self.attempts.set((self.attempts.get().0 + 1, failure));
        let opened = Rc::new(connected?);
        *current = Some(Rc::clone(&opened));
        Ok(opened)
    }

    /// Connects, and starts the task that drives the connection.
    async fn connect(
        &self,
        connection: &Rc<Connection>,
        permit: &Permit,
        source: SecurityId,
    ) -> Result<UpstreamConnection, Reason> {
        let Opened { stream, path, place, would_limit } = crate::upstream::open(connection, permit, source).await?;
        let outbound = Rc::new(Outbound::default());
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_LIST)
            .enable_push(false);
        let socket = UpstreamSocket::new(stream, &outbound, &self.down, &connection.payer);
        let handshake = builder.handshake::<_, Piece>(socket);
        let connect_timeout = connection.listener.config.connect_timeout;
        let Ok(Ok((sender, driver))) = tokio::time::timeout(connect_timeout, handshake).await else {
            return Err(Reason::UpstreamConnect);
        };
        let (in_use, used) = oneshot::channel();
        let ways = (Rc::clone(&self.up), Rc::clone(&self.down));
        let driven = drive(driver, Rc::clone(&outbound), Rc::clone(connection), ways, used);
        let panics = PanicCount::new(connection.worker.flows.metrics(), &connection.payer);
        let held = connection.payer.hold_for_a_while(CONNECTION_MEMORY);
        let guards = (self.open.clone(), panics, place, held);
        connection.spawn(async move {
            let _guards = guards;
            driven.await;
        });
        let (streams, would_limit) = (Cell::default(), Cell::new(would_limit));
        Ok(UpstreamConnection { sender, path, source, outbound, streams, would_limit, _in_use: in_use })
    }
}

impl UpstreamConnection {
    /// Whether it takes another request, now or later.
    fn is_usable(&self) -> bool {
        let ready = self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        !self.outbound.is_cut() && matches!(ready, Poll::Ready(Ok(())))
    }
}

impl Turn {
    /// Where what is sent on it leaves.
    pub(super) fn outlet(&self) -> &Rc<Outlet> {
        self.connection.outbound.outlet()
    }

    /// Where the connection goes.
    pub(super) fn path(&self) -> UpstreamPath {
        self.connection.path
    }

    /// Whether its connection would have been refused; the first who asks is told.
    pub(super) fn would_limit(&self) -> WouldLimit {
        self.connection.would_limit.take()
    }

    /// Sends the request.
    ///
    /// # Errors
    /// The connection has ended.
    pub(super) fn send(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Piece>), h2::Error> {
        let (response, body) = self.connection.sender.clone().send_request(request, end)?;
        self.stream = body.stream_id().as_u32();
        self.connection.outbound.queue(self.stream);
        Ok((response, body))
    }

    /// To be called when the stream of a request with this head was reset before its end.
    pub(super) fn end(&self, broken: &Broken, payer: &Rc<Payer>, head: &Parts) {
        let outbound = &self.connection.outbound;
        match broken {
            // Nothing of it leaves from here on.
            Broken::Revoked(_) => outbound.revoke(self.stream),
            // What the upstream has ended itself, `h2` has dropped.
            Broken::Upstream(_) => {}
            _ => outbound.abandon(self.stream, payer, QUEUED + size_of_head(head)),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Nobody else ends it then, and `h2` keeps the head of what has not left.
        if std::thread::panicking() {
            self.connection.outbound.revoke(self.stream);
        }
        let streams = &self.connection.streams;
        streams.set(streams.get().saturating_sub(1));
        self.connection.outbound.turns.notify_one();
    }
}
