//! One admitted request and its response, both directions at once, between a downstream and its upstream connection.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use bytes::Buf;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tollgate_policy::SecurityId;

use super::answer::Answering;
use super::body::{BodyError, Cursor, Relay};
use super::buffer::Buffer;
use super::chunked::ChunkScanner;
use super::decide::{Forward, still_admitted};
use super::request::RequestBody;
use super::response::ResponseError;
use crate::flow::{Meter, OpenFlow};
use crate::http::limits::{Exceeded, Moved, RequestEnd};
use crate::http::retry::Failure;
use crate::listener::connection::Connection;
use crate::reason::Reason;
use crate::tcp::{Sender as _, Watched, fill, write_from};
use crate::tenant::{Pace, Pacing, Turn, UpstreamPlace};
use crate::upstream::UpstreamPath;

/// Bytes read ahead of the response, at most: the next requests of a pipelining client.
const PIPELINED: usize = 16 * 1024;

/// The upstream connection that belongs to a downstream connection.
#[derive(Debug)]
pub(crate) struct Paired {
    pub(crate) stream: TcpStream,
    pub(crate) path: UpstreamPath,
    /// Among its tenant's connections.
    pub(crate) place: UpstreamPlace,
    /// Identity that the socket's mark carries.
    pub(crate) source: SecurityId,
    /// Bytes received and not yet forwarded.
    pub(crate) buffer: Buffer,
    /// Whether an exchange has used it before.
    pub(crate) reused: bool,
}

/// How an exchange ended when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completed {
    /// Both connections may carry another exchange.
    KeepAlive,
    /// Both connections end.
    Close,
    /// The response came before the request's body had ended; the client may still be sending.
    Early,
    /// The upstream accepted the WebSocket: from here on both sides exchange bytes.
    Tunnel,
}

/// What went wrong in an exchange.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The client's connection failed.
    #[error("downstream failed: {0}")]
    Downstream(io::Error),
    /// The client's body is malformed or ended early.
    #[error("request body: {0}")]
    RequestBody(BodyError),
    /// The upstream failed in words, and may be asked again.
    #[error("the upstream answers {0}")]
    ServerError(u16),
    /// The upstream closed or failed before it had answered.
    #[error("the upstream ended without a response")]
    NoResponse,
    /// The same, after the client had ended its side.
    #[error("the client ended its side, and then the upstream without a response")]
    HalfClosed,
    /// The response must not be forwarded.
    #[error(transparent)]
    Response(#[from] ResponseError),
    /// The upstream ended in the middle of the response.
    #[error("response body: {0}")]
    ResponseBody(BodyError),
    /// The request may no longer go on, for this reason.
    #[error("the request may no longer go on: {}", .0.code())]
    Revoked(Reason),
    /// It took too long.
    #[error("a time limit of the exchange is exceeded")]
    TimedOut(Reason),
    /// This try did.
    #[error("no answer within the time of a try")]
    TryTimedOut,
    /// The process ends.
    #[error("the process ends")]
    Stopped,
}

/// What is known about an exchange while it runs, for its record and for what can still be said to the client.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Status of the final response, once any byte of it may have gone out; 0 before.
    pub(crate) status: Cell<u16>,
    /// The upstream has asked for the body with `100 Continue`.
    pub(super) continued: Cell<bool>,
    /// The client was sent an interim response.
    pub(super) interim: Cell<bool>,
    /// The client has ended its side, and the upstream was told.
    pub(crate) half_closed: Cell<bool>,
    /// When the request was sent to its end.
    request_ended: Cell<Option<RequestEnd>>,
    pub(crate) pacing: Pacing,
}

impl Progress {
    /// Of another attempt at the request.
    pub(crate) fn again(self) -> Self {
        let Self { request_ended, pacing, .. } = self;
        Self { request_ended, pacing, ..Self::default() }
    }

    /// At which its bodies go.
    pub(crate) fn pace<'a>(&'a self, connection: &'a Connection) -> Pace<'a> {
        Pace { payer: &connection.payer, pacing: &self.pacing, of_all: None }
    }

    /// Whether another attempt would come too late: the client was told something, or the upstream that the client is gone.
    pub(crate) fn told(&self) -> bool {
        self.status.get() != 0 || self.interim.get() || self.half_closed.get()
    }

    /// For time limits.
    fn moved(&self, flow: &OpenFlow) -> Moved {
        let Moved { bytes, held_back } = Moved::of(flow, &self.pacing);
        let interim = u64::from(self.continued.get()) + u64::from(self.status.get());
        Moved { bytes: bytes.wrapping_add(interim), held_back }
    }

    /// The request was sent to its end.
    fn request_ends(&self) {
        if self.request_ended.get().is_none() {
            self.request_ended.set(Some(RequestEnd::now(self.pacing.held_back())));
        }
    }
}

/// The two halves of a downstream connection and what was read from it beyond the request's head.
#[derive(Debug)]
pub(crate) struct Downstream<'r, 'w, 'b> {
    pub(crate) reader: &'b mut ReadHalf<'r>,
    pub(crate) writer: &'b mut WriteHalf<'w>,
    pub(crate) buffer: &'b mut Buffer,
}

/// Runs the exchange of `forward`, whose head is `head`.
pub(crate) async fn run(
    connection: &Connection,
    forward: &Forward,
    head: &[u8],
    downstream: Downstream<'_, '_, '_>,
    paired: &mut Paired,
    progress: &Progress,
) -> Result<Completed, ExchangeError> {
    let Downstream { reader, writer, buffer } = downstream;
    let Paired { stream, buffer: response_buffer, .. } = paired;
    let (mut upstream_reader, mut upstream_writer) = stream.split();
    let passes = |name: &[u8]| forward.passes_trailer(connection, name);
    let mut relay = Relay {
        cursor: if forward.retries.body().is_some() { Cursor::Done } else { cursor_of(forward.body) },
        trailers: Some(&passes),
        meter: Meter::Up(&forward.flow),
        needs_sender: true,
        pace: Some(progress.pace(connection)),
        turn: Turn::default(),
    };
    let wire = forward.rewritten.as_deref().unwrap_or(head);
    let body_sent = Cell::new(false);
    let request = async {
        match forward.retries.body() {
            Some(body) => send_whole(wire, body, &mut relay, reader, &mut upstream_writer).await?,
            None => send_head(wire, &mut relay, reader, buffer, &mut upstream_writer).await?,
        }
        if !relay.cursor.is_done() {
            relay.run(reader, buffer, &mut upstream_writer).await?;
        }
        body_sent.set(true);
        progress.request_ends();
        watch(reader, buffer, &mut upstream_writer, progress).await
    };
    let withdrawn = cut_short(connection, forward, head, progress);
    tokio::pin!(request, withdrawn);
    let completed = {
        let answering = Answering { connection, forward, progress };
        let mut writer = Watched { writer, idle: &connection.idle, owed: &connection.owed };
        let response = answering.run(&mut upstream_reader, response_buffer, &mut writer);
        tokio::pin!(response);
        tokio::select! {
            biased;
            // First, so that what is ready to be moved waits for the judgement.
            error = &mut withdrawn => return Err(error),
            completed = &mut response => completed?,
            Err(error) = &mut request => match error {
                // The upstream may have answered before it stopped reading.
                BodyError::Write(_) => tokio::select! {
                    biased;
                    error = &mut withdrawn => return Err(error),
                    completed = &mut response => completed.map(|_| Completed::Early)?,
                },
                error => return Err(error.into()),
            },
        }
    };
    if body_sent.get() || matches!(completed, Completed::Tunnel | Completed::Early) {
        return Ok(completed);
    }
    if forward.expects_continue && !progress.continued.get() {
        // The client need not send its body now, nor the upstream read it: what comes next could be that body to one of
        // them and a request to the other.
        return Ok(Completed::Early);
    }
    // The answer came first. An upstream that still reads gets the rest, as it would without us.
    let rest = poll_fn(|context| match request.as_mut().poll(context) {
        Poll::Ready(Err(error)) => Poll::Ready(Some(error)),
        Poll::Pending if body_sent.get() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    let mut byte = [0];
    tokio::select! {
        biased;
        error = withdrawn => Err(error),
        error = rest => match error {
            None => Ok(completed),
            Some(BodyError::Write(_)) => Ok(Completed::Early),
            Some(error) => Err(error.into()),
        },
        // An upstream that ends its side is done with this client, which may be waiting to see that.
        _ = upstream_reader.peek(&mut byte) => Ok(Completed::Early),
    }
}

/// Waits for a reason to end the exchange before it ends itself.
async fn cut_short(connection: &Connection, forward: &Forward, head: &[u8], progress: &Progress) -> ExchangeError {
    tokio::select! {
        biased;
        error = withdrawn(connection, forward, head) => error,
        exceeded = limits_exceeded(forward, progress) => exceeded,
        (_, reason) = connection.idle.told_at_work() => ExchangeError::TimedOut(reason),
    }
}

/// The same while there is no upstream. Nobody reads from the client then, so only its reset is seen; and a try's time begins with its
/// upstream, that of the exchange with the end of its first request.
pub(crate) async fn cut_short_between(
    connection: &Connection,
    forward: &Forward,
    head: &[u8],
    reader: &ReadHalf<'_>,
    progress: &Progress,
) -> ExchangeError {
    let timed_out = async {
        if progress.request_ended.get().is_none() {
            return std::future::pending().await;
        }
        forward.limits.exceeded_as_a_whole(|| progress.moved(&forward.flow), || progress.request_ended.get()).await
    };
    tokio::select! {
        biased;
        error = withdrawn(connection, forward, head) => error,
        reason = timed_out => ExchangeError::TimedOut(reason),
        (_, reason) = connection.idle.told_at_work() => ExchangeError::TimedOut(reason),
        error = reader.failed() => ExchangeError::Downstream(error),
    }
}

/// Waits until the request may no longer go on, or the process ends.
async fn withdrawn(connection: &Connection, forward: &Forward, head: &[u8]) -> ExchangeError {
    loop {
        if connection.changed().await.stopping {
            return ExchangeError::Stopped;
        }
        if let Err(reason) = still_admitted(connection, head, forward.source) {
            return ExchangeError::Revoked(reason);
        }
    }
}

async fn limits_exceeded(forward: &Forward, progress: &Progress) -> ExchangeError {
    let answered = || progress.status.get() != 0;
    match forward.limits.exceeded(|| progress.moved(&forward.flow), || progress.request_ended.get(), answered).await {
        Exceeded::Exchange(reason) => ExchangeError::TimedOut(reason),
        Exceeded::Try => ExchangeError::TryTimedOut,
    }
}

impl ExchangeError {
    /// Those that another try may mend.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Self::ServerError(status) => Some(Failure::Status(*status)),
            Self::NoResponse => Some(Failure::NoResponse),
            Self::TryTimedOut => Some(Failure::TimedOut),
            _ => None,
        }
    }
}

impl From<BodyError> for ExchangeError {
    /// What the request's direction met; failures to write to the upstream are told apart before.
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Read(error) => Self::Downstream(error),
            // A client that gives up is no attack.
            BodyError::Truncated => Self::Downstream(io::ErrorKind::UnexpectedEof.into()),
            BodyError::Barred => Self::Revoked(Reason::Revoked),
            error => Self::RequestBody(error),
        }
    }
}

fn cursor_of(body: RequestBody) -> Cursor {
    match body {
        RequestBody::None => Cursor::Done,
        RequestBody::Length(length) => Cursor::Length(length),
        RequestBody::Chunked => Cursor::Chunked(ChunkScanner::request()),
    }
}

/// Sends the head with as much of the body as is there already, in one write.
async fn send_head(
    wire: &[u8],
    relay: &mut Relay<'_>,
    reader: &ReadHalf<'_>,
    buffer: &mut Buffer,
    writer: &mut WriteHalf<'_>,
) -> Result<(), BodyError> {
    // A body that may have to wait follows by itself.
    let body = if relay.is_paced() { 0 } else { relay.cursor.advance(buffer.filled())? };
    write_from(reader, writer, wire.chain(&buffer.filled()[..body])).await?;
    buffer.consume(body);
    relay.meter.add(body);
    Ok(())
}

/// Sends a request that is here as a whole.
async fn send_whole(
    wire: &[u8],
    body: &[u8],
    relay: &mut Relay<'_>,
    reader: &ReadHalf<'_>,
    writer: &mut WriteHalf<'_>,
) -> Result<(), BodyError> {
    relay.turns(body.len(), reader).await?;
    write_from(reader, writer, wire.chain(body)).await?;
    relay.meter.add(body.len());
    Ok(())
}

/// Once the request is sent, notices a client that goes away, and keeps what it sends ahead.
///
/// A half-close is no reason to stop, since the response may still have a reader. But most clients that end their side
/// are gone altogether, and only the upstream can know whether to go on: it is told as it would be without us.
async fn watch(
    reader: &mut ReadHalf<'_>,
    buffer: &mut Buffer,
    upstream: &mut WriteHalf<'_>,
    progress: &Progress,
) -> Result<Infallible, BodyError> {
    while buffer.len() < PIPELINED {
        if fill(reader, buffer, PIPELINED).await.map_err(BodyError::Read)? > 0 {
            continue;
        }
        if buffer.is_empty() {
            progress.half_closed.set(true);
            // Fails only when the upstream is gone, which reading from it reports.
            let _ = upstream.shutdown().await;
        }
        break;
    }
    // A reset is all that can still come, or all that matters of what comes.
    Err(BodyError::Read(reader.failed().await))
}
