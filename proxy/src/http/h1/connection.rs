//! An HTTP/1 connection: request after request through decision, exchange and record.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::body::{Cursor, Relay};
use super::buffer::Buffer;
use super::chunked::ChunkScanner;
use super::decide::{Decision, Forward, Reply, decide, refused, still_admitted};
use super::exchange::{self, Completed, Downstream, ExchangeError, Paired, Progress};
use super::owed::Answering;
use super::request::{RequestBody, Version};
use super::retry::Retries;
use super::tunnel::{self, Tunnel};
use super::waiting::NextHead;
use crate::flow::{Meter, OpenFlow, Outcome};
use crate::http::respond::LocalReply;
use crate::http::retry::Failure;
use crate::listener::connection::Connection;
use crate::listener::handover::{self, Leave};
use crate::reason::Reason;
use crate::tenant::{Turn, WouldLimit};
use crate::upstream::{self, Opened};

/// Body bytes of a refused request that are read and thrown away so that the connection can go on.
const DISCARD_LIMIT: u64 = 64 * 1024;
/// How long, and how much, a connection that we end is still read from, so that our last bytes arrive before the reset
/// that unread bytes would cause (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// What happens to the downstream connection after a request.
enum Next<'c> {
    /// Read another request.
    Continue,
    /// Nothing more will come or go: close.
    Close,
    /// Close in order, but give our last bytes time to arrive.
    Linger,
    /// End it so that nobody takes what was sent for complete.
    Reset,
    /// The upstream accepted a WebSocket.
    Tunnel(Box<Tunnel>, Box<Paired>),
    /// It goes on, on another thread.
    Elsewhere(Leave<'c>),
}

/// Serves `stream` to its end. `buffer` holds what was read from it already.
pub(crate) async fn serve(connection: &Connection, stream: TcpStream, buffer: Buffer) {
    go_on(connection, stream, buffer, None).await;
}

/// The same for one that another thread has served so far, with its upstream.
pub(crate) async fn resume(connection: &Connection, stream: TcpStream, buffer: Buffer, paired: Option<Paired>) {
    // Whatever has changed on the way, nobody was told.
    if connection.is_over() {
        return;
    }
    drop(connection.idle.work());
    connection.idle.wait();
    go_on(connection, stream, buffer, paired).await;
}

async fn go_on(connection: &Connection, mut stream: TcpStream, buffer: Buffer, paired: Option<Paired>) {
    let mut session = Session { connection, buffer, paired };
    let (mut reader, writer) = stream.split();
    let mut answering = Answering { writer, owed: &connection.owed };
    let next = session.run(&mut reader, &mut answering.writer).await;
    let Session { buffer, paired, .. } = session;
    match next {
        Next::Linger => {
            drop(paired);
            linger(&mut reader, &mut answering.writer).await;
        }
        Next::Tunnel(tunnel, paired) => {
            drop(answering);
            tunnel::serve(connection, *tunnel, stream, buffer, *paired).await;
        }
        Next::Reset => {
            drop(answering);
            if let Some(paired) = paired {
                tollgate_net::reset(paired.stream);
            }
            tollgate_net::reset(stream);
        }
        Next::Elsewhere(leave) => {
            drop(answering);
            handover::leave(connection, leave, stream, &buffer, paired);
        }
        Next::Close | Next::Continue => {}
    }
}

/// One connection from request to request.
pub(super) struct Session<'c> {
    pub(super) connection: &'c Connection,
    /// Bytes read from the client and not yet used.
    pub(super) buffer: Buffer,
    pub(super) paired: Option<Paired>,
}

impl<'c> Session<'c> {
    async fn run(&mut self, reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) -> Next<'c> {
        loop {
            tollgate_schedule::rest().await; // pipelined requests are all there at once
            let head = self.next_head(reader).await;
            let _work = self.connection.idle.work();
            let next = match head {
                NextHead::End => return Next::Close,
                NextHead::Elsewhere(leave) => return Next::Elsewhere(leave),
                NextHead::Refused(refusal, started) => {
                    let decision = refused(self.connection, refusal, started);
                    self.act(decision, self.connection.buffer(), reader, writer).await
                }
                NextHead::Complete(length, started) => {
                    self.connection.count_request();
                    self.connection.owed.begin();
                    let head = self.buffer.split_front(length);
                    let decision = decide(self.connection, head.filled(), started);
                    self.act(decision, head, reader, writer).await
                }
            };
            if !matches!(next, Next::Continue) {
                return next;
            }
        }
    }

    async fn act(
        &mut self,
        decision: Decision,
        head: Buffer,
        reader: &mut ReadHalf<'_>,
        writer: &mut WriteHalf<'_>,
    ) -> Next<'c> {
        match decision {
            Decision::Reply(reply) => self.reply(*reply, reader, writer).await,
            Decision::Forward(forward) => self.forward(*forward, head, reader, writer).await,
        }
    }

    /// Sends an answer of our own and makes the connection ready for what follows, if anything can follow.
    async fn reply(&mut self, reply: Reply, reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) -> Next<'c> {
        let Reply { reply, mut flow, reason, body, expects_continue, to_head, close } = reply;
        let ending = self.connection.is_ending();
        let keep = !reply.close && !close && !ending && !expects_continue && body.is_some();
        let keep = keep && !matches!(body, Some(RequestBody::Length(DISCARD_LIMIT..)));
        if let Some(http) = &mut flow.record_mut().http {
            http.status = reply.status;
        }
        // A client that does not read may keep us here to the end of the process.
        flow.if_dropped(Outcome::Denied, Some(reason));
        reply.log(&flow);
        self.connection.owed.end();
        let sent = writer.write_all(&reply.to_http1(to_head, !keep)).await;
        flow.finish(Outcome::Denied, Some(reason));
        match sent {
            Err(_) => Next::Close,
            Ok(()) if keep && self.discard(body, reader).await => Next::Continue,
            Ok(()) => Next::Linger,
        }
    }

    /// Reads a refused request's body to its end. False when it is too long, malformed or slow.
    async fn discard(&mut self, body: Option<RequestBody>, reader: &mut ReadHalf<'_>) -> bool {
        let cursor = match body {
            None => return false,
            Some(RequestBody::None) => return true,
            Some(RequestBody::Length(length)) => Cursor::Length(length),
            Some(RequestBody::Chunked) => Cursor::Chunked(ChunkScanner::request()),
        };
        let (meter, turn) = (Meter::Off, Turn::default());
        let mut relay = Relay { cursor, trailers: None, meter, needs_sender: false, pace: None, turn };
        let mut limited = reader.take(DISCARD_LIMIT);
        let mut nowhere = tokio::io::sink();
        let discard = relay.run(&mut limited, &mut self.buffer, &mut nowhere);
        matches!(tokio::time::timeout(LINGER, discard).await, Ok(Ok(())))
    }

    /// Sends an admitted request on and its response back.
    async fn forward(
        &mut self,
        mut forward: Forward,
        head: Buffer,
        reader: &mut ReadHalf<'_>,
        writer: &mut WriteHalf<'_>,
    ) -> Next<'c> {
        self.drop_ended_upstream();
        forward.retries = Retries::of(self.connection, &forward, &mut self.buffer);
        forward.flow.if_dropped(Outcome::Failed, Some(Reason::Draining));
        let mut progress = Progress::default();
        let (mut paired, result) = loop {
            let tried = self.attempt(&mut forward, head.filled(), reader, writer, &progress).await;
            let may_follow = |failure| forward.retries.may_follow(failure, progress.told());
            match tried {
                Ok((paired, Err(error))) if error.failure().is_some_and(may_follow) => {
                    tracing::debug!(downstream = %self.connection.downstream, %error, "asking the upstream again");
                    // Of this try it need not do any more, and the client's port is free for the next.
                    tollgate_net::reset(paired.stream);
                }
                // Another try of a tenant that has too many would be one too many.
                Err(NotOpened::Failed(Reason::UpstreamConnect)) if may_follow(Failure::Unsent) => {}
                Ok(tried) => break tried,
                Err(NotOpened::Failed(reason)) => return self.fail(forward, reason, reader, writer).await,
                Err(NotOpened::Over(error)) => {
                    return self.exchange_failed(forward, &error, false, reader, writer).await;
                }
            }
            if let Err(error) = pause(self.connection, &mut forward, head.filled(), reader, &progress).await {
                return self.exchange_failed(forward, &error, false, reader, writer).await;
            }
            progress = progress.again();
        };
        let reused = std::mem::replace(&mut paired.reused, true);
        match result {
            Ok(Completed::Tunnel) => {
                let tunnel = Tunnel { flow: forward.flow, head, pacing: progress.pacing };
                Next::Tunnel(Box::new(tunnel), Box::new(paired))
            }
            Ok(completed) => {
                forward.flow.finish(Outcome::Forwarded, None);
                match completed {
                    Completed::KeepAlive if forward.last => Next::Continue,
                    Completed::KeepAlive => {
                        // Nobody reads from an idle upstream, which is what would give an empty buffer back.
                        paired.buffer.release();
                        self.paired = Some(paired);
                        Next::Continue
                    }
                    Completed::Early => Next::Linger,
                    _ => Next::Close,
                }
            }
            Err(error) => {
                tollgate_net::reset(paired.stream);
                tracing::debug!(downstream = %self.connection.downstream, %error, "exchange failed");
                let error = match error {
                    // It went away, as the client had before.
                    ExchangeError::NoResponse if progress.half_closed.get() => ExchangeError::HalfClosed,
                    error => error,
                };
                self.exchange_failed(forward, &error, reused, reader, writer).await
            }
        }
    }

    /// One try: how it ended, with the upstream that it had.
    async fn attempt(
        &mut self,
        forward: &mut Forward,
        head: &[u8],
        reader: &mut ReadHalf<'_>,
        writer: &mut WriteHalf<'_>,
        progress: &Progress,
    ) -> Result<(Paired, Result<Completed, ExchangeError>), NotOpened> {
        // A client whose address now carries another identity gets an upstream marked with that one.
        let mut paired = match self.paired.take().filter(|paired| paired.source == forward.source) {
            Some(paired) => paired,
            None => {
                let (paired, would_limit) = open_upstream(self.connection, forward, head, reader, progress).await?;
                forward.flow.note_would_limit(would_limit);
                paired
            }
        };
        paired.path.note(forward.flow.record_mut());
        let downstream = Downstream { reader, writer, buffer: &mut self.buffer };
        let result = exchange::run(self.connection, forward, head, downstream, &mut paired, progress).await;
        note_progress(self.connection, &mut forward.flow, progress);
        Ok((paired, result))
    }

    /// Ends a failed exchange the way its cause asks for; where nothing was sent yet, the client is told why.
    async fn exchange_failed(
        &mut self,
        forward: Forward,
        error: &ExchangeError,
        reused: bool,
        reader: &mut ReadHalf<'_>,
        writer: &mut WriteHalf<'_>,
    ) -> Next<'c> {
        let started = forward.flow.http.as_ref().is_some_and(|http| http.status != 0);
        let (outcome, reason) = match error {
            ExchangeError::Downstream(_) | ExchangeError::HalfClosed => (Outcome::Failed, Reason::DownstreamReset),
            ExchangeError::RequestBody(_) => (Outcome::Denied, Reason::MalformedRequest),
            ExchangeError::NoResponse | ExchangeError::ServerError(_) => (Outcome::Failed, Reason::UpstreamReset),
            ExchangeError::Response(_) => (Outcome::Failed, Reason::UpstreamMalformed),
            ExchangeError::ResponseBody(_) => (Outcome::Failed, Reason::UpstreamTruncated),
            ExchangeError::Revoked(reason) => (Outcome::Denied, *reason),
            ExchangeError::TimedOut(reason @ (Reason::SlowReader | Reason::TenantMemory)) => (Outcome::Denied, *reason),
            ExchangeError::TimedOut(reason) => (Outcome::Failed, *reason),
            ExchangeError::TryTimedOut => (Outcome::Failed, Reason::UpstreamTimeout),
            ExchangeError::Stopped => (Outcome::Failed, Reason::Draining),
        };
        let gone = matches!(error, ExchangeError::Downstream(_));
        // A reused connection that ends without an answer is an ordinary race of keep-alive; clients repeat the request
        // themselves where that is safe, but only if they see the close and not a 503.
        let race = matches!(error, ExchangeError::HalfClosed) || reused && matches!(error, ExchangeError::NoResponse);
        if started || gone || race {
            forward.flow.finish(outcome, Some(reason));
            return if race { Next::Close } else { Next::Reset };
        }
        if outcome == Outcome::Denied {
            let config = &self.connection.listener.config;
            let reply = LocalReply::refusal(reason, forward.grpc, &config.denied_body, config.reason_header);
            let to_head = forward.to_head;
            let reply =
                Reply { reply, flow: forward.flow, reason, body: None, expects_continue: false, to_head, close: true };
            return self.reply(reply, reader, writer).await;
        }
        self.fail(forward, reason, reader, writer).await
    }

    /// Answers for an upstream that could not.
    async fn fail(
        &mut self,
        forward: Forward,
        reason: Reason,
        reader: &mut ReadHalf<'_>,
        writer: &mut WriteHalf<'_>,
    ) -> Next<'c> {
        let config = &self.connection.listener.config;
        let Forward { mut flow, body, grpc, to_head, close, version, .. } = forward;
        let reply = LocalReply::refusal(reason, grpc, &config.denied_body, config.reason_header);
        if let Some(http) = &mut flow.record_mut().http {
            http.status = reply.status;
        }
        reply.log(&flow);
        let keep = !reply.close && !close && version == Version::Http11 && body == RequestBody::None;
        let sent = writer.write_all(&reply.to_http1(to_head, !keep)).await;
        flow.finish(Outcome::of_unsent(reason), Some(reason));
        let _ = reader;
        match sent {
            Err(_) => Next::Close,
            Ok(()) if keep => Next::Continue,
            Ok(()) => Next::Linger,
        }
    }
}

/// Why a request has no upstream.
enum NotOpened {
    /// It could not be reached.
    Failed(Reason),
    /// The request does not need one any more.
    Over(ExchangeError),
}

/// Connects the upstream of this connection's first request, or of the first after its last upstream ended, or of another try.
/// Policy or identities may change meanwhile, and nothing was sent yet: the request of `head` is judged again in that case.
async fn open_upstream(
    connection: &Connection,
    forward: &Forward,
    head: &[u8],
    reader: &ReadHalf<'_>,
    progress: &Progress,
) -> Result<(Paired, WouldLimit), NotOpened> {
    let opened = tokio::select! {
        biased;
        opened = upstream::open(connection, &forward.permit, forward.source) => opened.map_err(NotOpened::Failed)?,
        // A request that nobody waits for, or that is denied by now, must not wait here.
        error = exchange::cut_short_between(connection, forward, head, reader, progress) => {
            return Err(NotOpened::Over(error));
        }
    };
    if connection.moment() != forward.moment {
        let revoked = |reason| NotOpened::Over(ExchangeError::Revoked(reason));
        still_admitted(connection, head, forward.source).map_err(revoked)?;
    }
    let Opened { stream, path, place, would_limit } = opened;
    let (source, buffer) = (forward.source, connection.buffer());
    Ok((Paired { stream, path, place, source, buffer, reused: false }, would_limit))
}

/// Waits before the next try, unless something ends the exchange meanwhile.
async fn pause(
    connection: &Connection,
    forward: &mut Forward,
    head: &[u8],
    reader: &ReadHalf<'_>,
    progress: &Progress,
) -> Result<(), ExchangeError> {
    let pause = forward.retries.take(connection);
    tokio::select! {
        biased;
        error = exchange::cut_short_between(connection, forward, head, reader, progress) => Err(error),
        () = tokio::time::sleep(pause) => Ok(()),
    }
}

fn note_progress(connection: &Connection, flow: &mut OpenFlow, progress: &Progress) {
    flow.note_paced(progress.pace(connection));
    if let Some(http) = &mut flow.record_mut().http {
        http.status = progress.status.get();
    }
}

/// Says that nothing more will come, and reads on for a moment.
async fn linger(reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) {
    if writer.shutdown().await.is_err() {
        return;
    }
    let mut scratch = [0; 1024];
    let mut left = LINGER_BYTES;
    let drained = async {
        while left > 0 {
            match reader.read(&mut scratch).await {
                Ok(n @ 1..) => left = left.saturating_sub(n),
                _ => return,
            }
        }
    };
    // When the time is over the client has had its chance.
    let _ = tokio::time::timeout(LINGER, drained).await;
}
