//! An HTTP/2 connection: accepts streams, starts a task for each, and ends with GOAWAY.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use super::arriving::Arriving;
use super::budget::Budget;
use super::detach::detach;
use super::incoming::Incoming;
use super::owed::Answering;
use super::prefixed::Prefixed;
use super::queue::{Piece, Way};
use super::stream;
use super::upstream::UpstreamSlot;
use crate::flow::{Fields, Outcome, Protocol};
use crate::http::Buffer;
use crate::http::h1::MAX_HEAD;
use crate::listener::connection::Connection;
use crate::reason::Reason;
use crate::tenant::{Charged, Pacing};
use tollgate_schedule::{Work, mark};

/// Streams open at a time on one connection.
const MAX_STREAMS: u32 = 100;
/// Bytes that a peer may send ahead on one stream.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes that a peer may send ahead on all streams of a connection.
pub(super) const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The same, streams first, for a client whose tenant is short of memory. Windows begin with so much (RFC 9113 section 6.9.2).
const LITTLE: (u32, u32, u32) = (10, 65_535, 65_535);
/// Largest header list; `h2` counts fields as RFC 9113 section 6.5.2 says.
#[expect(clippy::cast_possible_truncation, reason = "60 KiB")]
pub(super) const MAX_HEADER_LIST: u32 = MAX_HEAD as u32;
/// Bytes that `h2` takes for a client's connection beside what is queued: buffers, HPACK tables, its state. Measured.
const CONNECTION_MEMORY: usize = 14 * 1024;
/// Streams that a client may give up at once before we have seen them: as many as it may have open. How often is the
/// budget's business.
const MAX_UNSEEN_RESETS: usize = MAX_STREAMS as usize;
/// Streams that we have reset and still know, so that what a client had under way for them is no error of its own.
const MAX_REMEMBERED_RESETS: usize = MAX_STREAMS as usize;
/// Time for the client to read why it is sent away.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the streams of one connection share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) connection: Rc<Connection>,
    pub(super) upstream: UpstreamSlot,
    pub(super) budget: Rc<Budget>,
    arriving: Rc<Arriving>,
    /// What waits for the client, and what waits for the upstream.
    pub(super) down: Rc<Way>,
    pub(super) up: Rc<Way>,
    /// How long any of them was held back for its tenant's rate of bytes.
    pub(super) pacing: Pacing,
    /// Set off when the connection itself may not go on; its streams may end.
    pub(super) goaway: Notify,
}

impl Shared {
    /// Ends the connection when an answer says so.
    pub(super) fn end_if(&self, closes: bool) {
        if closes {
            self.goaway.notify_one();
        }
    }

    /// Ends the connection when it would be refused by now as a whole, not only a request on it.
    pub(super) fn end_if_refused(&self) {
        if self.connection.is_refused() {
            self.goaway.notify_one();
        }
    }
}

/// Ends the connection when a stream panics whose tenant is kept apart for such things: its next one comes in time.
pub(super) struct EndIfPanicked<'s>(&'s Shared);

impl<'s> EndIfPanicked<'s> {
    /// To be dropped after the panic was counted.
    pub(super) fn new(shared: &'s Shared) -> Self {
        Self(shared)
    }
}

impl Drop for EndIfPanicked<'_> {
    fn drop(&mut self) {
        self.0.end_if(std::thread::panicking() && self.0.connection.payer.is_kept_apart());
    }
}

/// Cuts the upstream connection off when a panic ends the connection's own task: if that was under the lock of `h2`, nobody tells its
/// streams, and they would wait for their answers.
struct CutIfPanicked<'s>(&'s Shared);

impl Drop for CutIfPanicked<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.upstream.cut();
        }
    }
}

/// Serves `stream` to its end, which is also that of its streams and of its upstream connections.
pub(crate) async fn serve(connection: &Rc<Connection>, stream: TcpStream, buffer: Buffer) {
    let started = Instant::now();
    let mut builder = h2::server::Builder::new();
    let (streams, stream_window, connection_window) =
        match connection.is_short_of_memory() || connection.payer.is_kept_apart() {
            true => LITTLE,
            false => (MAX_STREAMS, STREAM_WINDOW, CONNECTION_WINDOW),
        };
    builder
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_concurrent_streams(streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS);
    let metrics = connection.worker.flows.metrics();
    let budget = Budget::new(&connection.worker.limits, metrics);
    let _held = connection.payer.hold_for_a_while(CONNECTION_MEMORY);
    let (down, up) = (Way::new(&connection.payer, &connection.worker), Way::new(&connection.payer, &connection.worker));
    let arriving = Arriving::new(&connection.payer);
    let socket = Prefixed::new(connection, stream, buffer, (&budget, &arriving), (&down, &up));
    let handshake = builder.handshake(socket);
    let timeout = connection.listener.config.request_head_timeout;
    let Ok(Ok(server)) = tokio::time::timeout(timeout, handshake).await else { return };
    let (open, mut closed) = mpsc::channel(1);
    let upstream = UpstreamSlot::new(open, &down, &up);
    let pacing = Pacing::default();
    let shared = Shared {
        connection: Rc::clone(connection),
        upstream,
        budget,
        arriving,
        down,
        up,
        pacing,
        goaway: Notify::new(),
    };
    let shared = Rc::new(shared);
    let abuse = accept_streams(Rc::clone(&shared), server).await;
    shared.down.flushed(shared.down.client());
    shared.arriving.end();
    // Its end is that of the upstream connection.
    drop(shared);
    if let Some(Abuse { reason, detail }) = abuse {
        let mut flow = connection.open_flow(Protocol::Http2, started);
        flow.record_mut().detail = Some(detail.into());
        flow.finish(Outcome::Denied, Some(reason));
    }
    // The place of this connection is free only when nothing that it opened is left.
    closed.recv().await;
}

/// Why a connection was ended that behaves as no client does.
struct Abuse {
    reason: Reason,
    detail: String,
}

impl Abuse {
    /// By the budget.
    fn of(budget: &Budget) -> Option<Self> {
        budget.over().map(|reason| Self { reason, detail: budget.detail() })
    }

    /// By `h2`, which has told the client: a limit of its own, or a protocol error.
    fn told_by(error: &h2::Error, budget: &Budget) -> Option<Self> {
        if !error.is_library() || !error.is_go_away() {
            return None;
        }
        let reason = match error.reason() {
            // It told the client which one; here the frames have to say it.
            Some(h2::Reason::ENHANCE_YOUR_CALM) => budget.blames(),
            Some(h2::Reason::NO_ERROR) | None => return None,
            Some(_) => Reason::MalformedRequest,
        };
        let frames = budget.detail();
        let separator = if frames.is_empty() { "" } else { "; " };
        Some(Self { reason, detail: format!("{error}{separator}{frames}") })
    }
}

/// Starts a task for each stream until the connection ends.
async fn accept_streams(shared: Rc<Shared>, mut server: h2::server::Connection<Prefixed, Piece>) -> Option<Abuse> {
    let _cut = CutIfPanicked(&shared);
    let connection = &shared.connection;
    let idle = connection.listener.config.http.upstream_idle_timeout;
    let upstream_idle = shared.upstream.let_go_when_idle(idle.unwrap_or_default());
    tokio::pin!(upstream_idle);
    let mut ending = false;
    let mut leaves_at: Option<Instant> = None;
    // From then on nothing is taken any more, though its client may not have heeded the GOAWAY.
    let mut refuses_at: Option<Instant> = None;
    loop {
        // All that has come is there at once: as many streams as a client likes.
        tollgate_schedule::rest().await;
        if connection.is_ending() && !ending {
            ending = true;
            server.graceful_shutdown();
        }
        let has_to_leave = async {
            match leaves_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            accepted = accept(&mut server, &shared) => match accepted {
                Some(Ok(Accepted { mut respond, .. })) if refuses_at.is_some_and(|at| at <= Instant::now()) => {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    shared.down.queue_answer(&http::HeaderMap::new(), 0);
                }
                Some(Ok(accepted)) => {
                    connection.count_request();
                    let stream = stream::serve(Rc::clone(&shared), accepted);
                    match shared.arriving.are_many() {
                        // It is refused before others are read, which take their room until they are.
                        true => connection.spawn_polled(stream),
                        false => connection.spawn(stream),
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(downstream = %connection.downstream, %error, "HTTP/2 connection failed");
                    return Abuse::of(&shared.budget).or_else(|| Abuse::told_by(&error, &shared.budget));
                }
                None => return Abuse::of(&shared.budget),
            },
            () = over(&shared.budget) => {
                // What has come is no longer served; `server` only says so.
                let last_words = async { while let Some(Ok(_)) = accept(&mut server, &shared).await {} };
                let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
                return Abuse::of(&shared.budget);
            }
            // Its client comes again, and is taken up where its tenant is.
            _ = connection.changed() => if connection.is_over() || connection.is_misplaced() {
                shared.goaway.notify_one();
            },
            reason = reaped(connection, leaves_at.is_some()) => {
                if reason.ends_at_work() {
                    // It is on record, and nothing reaches the client.
                    shared.budget.end(reason);
                    return None;
                }
                leaves_at = Some(Instant::now() + LAST_WORDS);
                refuses_at = leaves_at;
                if !std::mem::replace(&mut ending, true) {
                    server.graceful_shutdown();
                }
            }
            // Requests that the client had sent by then are served.
            () = has_to_leave => match connection.idle.is_working() {
                true => leaves_at = Some(Instant::now() + LAST_WORDS),
                false => return None,
            },
            () = shared.goaway.notified(), if !ending => {
                ending = true;
                server.graceful_shutdown();
                if connection.payer.is_kept_apart() && leaves_at.is_none() {
                    leaves_at = Some(Instant::now() + LAST_WORDS);
                    refuses_at = leaves_at;
                }
            }
            never = &mut upstream_idle, if idle.is_some() => match never {},
        }
    }
}

/// Waits until the connection is told to make room for others. One that is `leaving` already, but for its streams, only hears what ends
/// those too: how long they go on is up to its client and the upstream.
async fn reaped(connection: &Connection, leaving: bool) -> Reason {
    match leaving {
        true => connection.reaped_at_work(Protocol::Http2).await,
        false => connection.reaped(Protocol::Http2).await,
    }
}

/// A request, and the way to answer it.
pub(super) struct Accepted {
    pub(super) parts: http::request::Parts,
    pub(super) body: Incoming,
    pub(super) respond: Answering,
    /// What it takes, but for its bodies.
    pub(super) charge: Charged,
}

/// The next stream. Reading frames on the way to it, and writing those that wait, is what takes time.
async fn accept(
    server: &mut h2::server::Connection<Prefixed, Piece>,
    shared: &Shared,
) -> Option<Result<Accepted, h2::Error>> {
    let mut again = false;
    let accepted = poll_fn(|cx| {
        if std::mem::replace(&mut again, true) {
            // Its task was, and meanwhile streams had their turn.
            shared.up.polled_again();
        }
        let _work = mark(Work::Http);
        let accepted = server.poll_accept(cx);
        shared.down.written(shared.down.client());
        if accepted.is_pending() {
            shared.arriving.none_left();
            record_too_large(shared);
        }
        accepted
    });
    Some(accepted.await?.map(|(request, respond)| {
        let (mut parts, body) = request.map(Incoming::new).into_parts();
        let respond = Answering::new(respond);
        let charge = shared.arriving.accept(respond.stream_id().as_u32(), detach(&mut parts));
        record_too_large(shared);
        Accepted { parts, body, respond, charge }
    }))
}

/// Writes records of the requests that `h2` has refused because of the size of their heads.
fn record_too_large(shared: &Shared) {
    for _ in 0..shared.arriving.take_too_large() {
        let mut flow = shared.connection.open_flow(Protocol::Http2, Instant::now());
        flow.record_mut().detail = Some("the list of header fields is over 60 KiB".into());
        flow.log_request(Some(Reason::HeadersTooLarge), Fields::default());
        flow.finish(Outcome::Denied, Some(Reason::HeadersTooLarge));
    }
}

/// Waits until the budget is used up. That happens while the connection reads, so in the task that waits here.
async fn over(budget: &Budget) {
    poll_fn(|_| if budget.over().is_some() { Poll::Ready(()) } else { Poll::Pending }).await;
}
