//! An HTTP/1 connection: request after request through decision, exchange and record.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tollgate_policy::Permit;

use super::body::{Cursor, Relay};
use super::buffer::Buffer;
use super::chunked::ChunkScanner;
use super::decide::{Decision, Forward, Reply, decide, refused, still_admitted};
use super::exchange::{self, Completed, Downstream, ExchangeError, Paired, Progress};
use super::head::{HeadEnd, HeadScanner, MAX_HEAD};
use super::request::{Refusal, RequestBody, Version};
use super::retry::Retries;
use crate::flow::{OpenFlow, Outcome, Protocol};
use crate::http::limits::TimeLimits;
use crate::http::respond::LocalReply;
use crate::http::retry::Failure;
use crate::listener::connection::Connection;
use crate::reason::Reason;
use crate::tcp::{self, Counts, Ended, fill, pump_both};
use crate::upstream;

/// Body bytes of a refused request that are read and thrown away so that the connection can go on.
const DISCARD_LIMIT: u64 = 64 * 1024;
/// How long, and how much, a connection that we end is still read from, so that our last bytes arrive before the reset
/// that unread bytes would cause (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;
/// Empty lines accepted before a request line (RFC 9112 section 2.2).
const MAX_EMPTY_LINES: usize = 4;

/// What happens to the downstream connection after a request.
#[derive(Debug)]
enum Next {
    /// Read another request.
    Continue,
    /// Nothing more will come or go: close.
    Close,
    /// Close in order, but give our last bytes time to arrive.
    Linger,
    /// End it so that nobody takes what was sent for complete.
    Reset,
    /// A WebSocket was accepted.
    Tunnel(Box<Tunnel>),
}

#[derive(Debug)]
struct Tunnel {
    flow: OpenFlow,
    head: Buffer,
}

/// Serves `stream` to its end. `buffer` holds what was read from it already.
pub(crate) async fn serve(connection: &Connection, mut stream: TcpStream, buffer: Buffer) {
    let mut session = Session { connection, buffer, paired: None };
    let (mut reader, mut writer) = stream.split();
    let next = session.run(&mut reader, &mut writer).await;
    let Session { buffer, paired, .. } = session;
    match (next, paired) {
        (Next::Tunnel(tunnel), Some(paired)) => serve_tunnel(connection, *tunnel, stream, buffer, paired).await,
        (Next::Linger, paired) => {
            drop(paired);
            linger(&mut reader, &mut writer).await;
        }
        (Next::Reset | Next::Tunnel(_), paired) => {
            if let Some(paired) = paired {
                tollgate_net::reset(paired.stream);
            }
            tollgate_net::reset(stream);
        }
        (Next::Close | Next::Continue, _) => {}
    }
}

struct Session<'c> {
    connection: &'c Connection,
    /// Bytes read from the client and not yet used.
    buffer: Buffer,
    paired: Option<Paired>,
}

/// What waiting for a request head led to.
enum NextHead {
    /// The head is the first so many bytes of the buffer.
    Complete(usize, Instant),
    /// The client is done, or we are.
    End,
    /// What came is no head that can be taken.
    Refused(Refusal, Instant),
}

impl Session<'_> {
    async fn run(&mut self, reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) -> Next {
        loop {
            tollgate_schedule::rest().await; // pipelined requests are all there at once
            let head = self.next_head(reader).await;
            let _work = self.connection.idle.work();
            let next = match head {
                NextHead::End => return Next::Close,
                NextHead::Refused(refusal, started) => {
                    let decision = refused(self.connection, refusal, started);
                    self.act(decision, Buffer::new(&self.connection.worker.buffers), reader, writer).await
                }
                NextHead::Complete(length, started) => {
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
    ) -> Next {
        match decision {
            Decision::Reply(reply) => self.reply(*reply, reader, writer).await,
            Decision::Forward(forward) => self.forward(*forward, head, reader, writer).await,
        }
    }

    /// Waits for a complete request head. An idle connection waits as long as both ends like; one that has begun a head
    /// has `request_head_timeout` to end it.
    async fn next_head(&mut self, reader: &mut ReadHalf<'_>) -> NextHead {
        if self.buffer.is_empty() && !self.wait_for_bytes(reader).await {
            return NextHead::End;
        }
        let started = Instant::now();
        let mut scanner = HeadScanner::default();
        let mut empty_lines = 0;
        let mut deadline = None;
        loop {
            while scanner.is_fresh() && self.buffer.filled().starts_with(b"\r\n") && empty_lines < MAX_EMPTY_LINES {
                self.buffer.consume(2);
                empty_lines += 1;
            }
            let end = scanner.scan(self.buffer.filled());
            if let HeadEnd::At(length) = end {
                return NextHead::Complete(length, started);
            }
            if let Some((reason, detail)) = end.refusal() {
                return NextHead::Refused(Refusal { reason, detail: detail.to_owned() }, started);
            }
            let deadline = *deadline.get_or_insert_with(|| {
                tokio::time::Instant::now() + self.connection.listener.config.request_head_timeout
            });
            let told = self.connection.reaped(Protocol::Http11);
            let read = fill(reader, &mut self.buffer, MAX_HEAD);
            let more = async {
                tokio::select! { biased; read = read => read, _ = told => Ok(0) }
            };
            match tokio::time::timeout_at(deadline, more).await {
                Ok(Ok(0) | Err(_)) => return NextHead::End,
                Ok(Ok(_)) => {}
                Err(_elapsed) => {
                    let detail = "the request head did not end in time".to_owned();
                    return NextHead::Refused(Refusal { reason: Reason::DownstreamTimeout, detail }, started);
                }
            }
        }
    }

    /// Waits between requests. False when the connection ends: the client closed it, its upstream did, an end is no longer
    /// who it was, or we drain.
    async fn wait_for_bytes(&mut self, reader: &mut ReadHalf<'_>) -> bool {
        let idle = self.connection.listener.config.http.upstream_idle_timeout;
        let idle_from = idle.map(|limit| tokio::time::Instant::now() + limit);
        loop {
            if self.connection.listener.signals.state().draining {
                return false;
            }
            let has_upstream = self.paired.is_some();
            let upstream_ended = async {
                match &mut self.paired {
                    // A byte of an idle upstream belongs to no response; one may have come with the last.
                    Some(paired) if !paired.buffer.is_empty() => {}
                    Some(paired) => drop(paired.stream.readable().await),
                    None => std::future::pending().await,
                }
            };
            let upstream_idle = async {
                match (idle_from, has_upstream) {
                    (Some(from), true) => tokio::time::sleep_until(from).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                read = fill(reader, &mut self.buffer, MAX_HEAD) => return matches!(read, Ok(1..)),
                () = upstream_ended => {
                    // A client that would see the upstream's close without us sees it with us.
                    if self.drop_ended_upstream() {
                        return false;
                    }
                }
                _ = self.connection.changed() => if self.connection.is_over() {
                    return false;
                },
                () = upstream_idle => self.paired = None,
                _ = self.connection.reaped(Protocol::Http11) => return false,
            }
        }
    }

    /// Lets go of an upstream that has closed or has sent bytes nobody asked for. Returns whether it did.
    fn drop_ended_upstream(&mut self) -> bool {
        let Some(paired) = &self.paired else { return false };
        let mut byte = [0];
        let usable = paired.buffer.is_empty()
            && matches!(paired.stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        if !usable {
            self.paired = None;
        }
        !usable
    }

    /// Sends an answer of our own and makes the connection ready for what follows, if anything can follow.
    async fn reply(&mut self, reply: Reply, reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) -> Next {
        let Reply { reply, mut flow, reason, body, expects_continue, to_head, close } = reply;
        let draining = self.connection.listener.signals.state().draining;
        let keep = !reply.close && !close && !draining && !expects_continue && body.is_some();
        let keep = keep && !matches!(body, Some(RequestBody::Length(DISCARD_LIMIT..)));
        if let Some(http) = &mut flow.record_mut().http {
            http.status = reply.status;
        }
        // A client that does not read may keep us here to the end of the process.
        flow.if_dropped(Outcome::Denied, Some(reason));
        reply.log(&flow);
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
        let count = std::cell::Cell::new(0);
        let mut relay = Relay { cursor, trailers: None, count: &count, needs_sender: false };
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
    ) -> Next {
        self.drop_ended_upstream();
        forward.retries = Retries::of(self.connection, &forward, &mut self.buffer);
        forward.flow.if_dropped(Outcome::Failed, Some(Reason::Draining));
        let mut progress = Progress::default();
        let (mut paired, result) = loop {
            // A client whose address now carries another identity gets an upstream marked with that one.
            let mut paired = match self.paired.take().filter(|paired| paired.source == forward.source) {
                Some(paired) => paired,
                None => match open_upstream(self.connection, &forward.permit, &forward, head.filled()).await {
                    Ok(paired) => paired,
                    Err(NotOpened::Failed(_)) if forward.retries.may_follow(Failure::Unsent, progress.told()) => {
                        forward.retries.pause(self.connection).await;
                        continue;
                    }
                    Err(NotOpened::Revoked(reason)) => {
                        let error = ExchangeError::Revoked(reason);
                        return self.exchange_failed(forward, &error, false, reader, writer).await;
                    }
                    Err(NotOpened::Failed(reason)) => return self.fail(forward, reason, reader, writer).await,
                },
            };
            paired.path.note(forward.flow.record_mut());
            let downstream = Downstream { reader, writer, buffer: &mut self.buffer };
            let result =
                exchange::run(self.connection, &forward, head.filled(), downstream, &mut paired, &progress).await;
            note_progress(&mut forward.flow, &progress);
            match &result {
                Err(error) if may_retry(&forward, error, &progress) => {
                    tracing::debug!(downstream = %self.connection.downstream, %error, "asking the upstream again");
                    // Of this try it need not do any more, and the client's port is free for the next.
                    tollgate_net::reset(paired.stream);
                    forward.retries.pause(self.connection).await;
                    progress = Progress::again(&progress);
                }
                _ => break (paired, result),
            }
        };
        let reused = std::mem::replace(&mut paired.reused, true);
        match result {
            Ok(Completed::Tunnel) => {
                self.paired = Some(paired);
                Next::Tunnel(Box::new(Tunnel { flow: forward.flow, head }))
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

    /// Ends a failed exchange the way its cause asks for; where nothing was sent yet, the client is told why.
    async fn exchange_failed(
        &mut self,
        forward: Forward,
        error: &ExchangeError,
        reused: bool,
        reader: &mut ReadHalf<'_>,
        writer: &mut WriteHalf<'_>,
    ) -> Next {
        let started = forward.flow.http.as_ref().is_some_and(|http| http.status != 0);
        let (outcome, reason) = match error {
            ExchangeError::Downstream(_) | ExchangeError::HalfClosed => (Outcome::Failed, Reason::DownstreamReset),
            ExchangeError::RequestBody(_) => (Outcome::Denied, Reason::MalformedRequest),
            ExchangeError::NoResponse | ExchangeError::ServerError(_) => (Outcome::Failed, Reason::UpstreamReset),
            ExchangeError::Response(_) => (Outcome::Failed, Reason::UpstreamMalformed),
            ExchangeError::ResponseBody(_) => (Outcome::Failed, Reason::UpstreamTruncated),
            ExchangeError::Revoked(reason) => (Outcome::Denied, *reason),
            ExchangeError::TimedOut(Reason::SlowReader) => (Outcome::Denied, Reason::SlowReader),
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
    ) -> Next {
        let config = &self.connection.listener.config;
        let Forward { mut flow, body, grpc, to_head, close, version, .. } = forward;
        let reply = LocalReply::refusal(reason, grpc, &config.denied_body, config.reason_header);
        if let Some(http) = &mut flow.record_mut().http {
            http.status = reply.status;
        }
        reply.log(&flow);
        let keep = !reply.close && !close && version == Version::Http11 && body == RequestBody::None;
        let sent = writer.write_all(&reply.to_http1(to_head, !keep)).await;
        flow.finish(Outcome::Failed, Some(reason));
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
    /// The request may no longer go on.
    Revoked(Reason),
}

/// Connects the upstream of this connection's first request, or of the first after its last upstream ended. Policy or
/// identities may have changed by then, and nothing was sent yet: the request of `head` is judged again in that case.
async fn open_upstream(
    connection: &Connection,
    permit: &Permit,
    forward: &Forward,
    head: &[u8],
) -> Result<Paired, NotOpened> {
    let opened = upstream::open(connection, permit, forward.source).await;
    let (stream, path) = opened.map_err(NotOpened::Failed)?;
    if connection.moment() != forward.moment {
        still_admitted(connection, head, forward.source).map_err(NotOpened::Revoked)?;
    }
    Ok(Paired { stream, path, source: forward.source, buffer: Buffer::new(&connection.worker.buffers), reused: false })
}

/// Whether the request is sent again after a try that ended so.
fn may_retry(forward: &Forward, error: &ExchangeError, progress: &Progress) -> bool {
    error.failure().is_some_and(|failure| forward.retries.may_follow(failure, progress.told()))
}

fn note_progress(flow: &mut OpenFlow, progress: &Progress) {
    flow.add_up(progress.up.get());
    flow.add_down(progress.down.get());
    if let Some(http) = &mut flow.record_mut().http {
        http.status = progress.status.get();
    }
}

/// Relays an accepted WebSocket until it ends or policy no longer allows its handshake.
async fn serve_tunnel(
    connection: &Connection,
    tunnel: Tunnel,
    mut downstream: TcpStream,
    buffer: Buffer,
    paired: Paired,
) {
    let Tunnel { flow, head } = tunnel;
    let _work = connection.idle.work();
    let mut upstream = paired.stream;
    let counts = Counts::default();
    let withdrawn = async {
        loop {
            if connection.changed().await.stopping {
                return Ended::Stopped;
            }
            if let Err(reason) = still_admitted(connection, head.filled(), paired.source) {
                return Ended::Revoked(reason);
            }
        }
    };
    let limits = TimeLimits::of_bytes(connection.listener.config.http.stream_idle_timeout);
    let (began, moved) = (tokio::time::Instant::now(), || counts.up.get().wrapping_add(counts.down.get()));
    let ended = tokio::select! {
        biased;
        // First, so that what is ready to be moved waits for the judgement.
        ended = withdrawn => ended,
        ended = pump_both(&mut downstream, buffer, &mut upstream, paired.buffer, &counts) => ended,
        reason = limits.exceeded_as_a_whole(moved, || Some(began)) => Ended::TimedOut(reason),
    };
    tcp::finish(flow, ended, &counts, &downstream, &upstream);
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
