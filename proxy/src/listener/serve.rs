//! The life of one accepted connection: held for its first policy, judged, detected, served.

use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tollgate_net::Accepted;

use super::connection::{Connection, ListenerContext};
use super::judge::{Basis, Denied, Judged, Passage};
use crate::detect::{Detected, PREFACE, detect};
use crate::flow::{Outcome, Protocol};
use crate::http::{Buffer, h1, h2};
use crate::reason::Reason;
use crate::tcp::{self, fill};
use crate::tenant::Limited;
use crate::worker::Worker;

/// Serves `stream` until one side or policy ends it.
pub(crate) async fn serve(connection: Rc<Connection>, stream: TcpStream) {
    if connection.is_loop() {
        return refuse(&connection, stream, Reason::Loop);
    }
    let Judged { verdict, by } = judge_when_known(&connection, &stream).await;
    let buffer = connection.buffer();
    match verdict {
        Err(denied) => refuse_judged(&connection, stream, denied, by),
        Ok(Passage::Tcp(admitted)) => tcp::relay(&connection, stream, buffer, admitted, by).await,
        Ok(Passage::Http) => serve_http(&connection, stream, buffer).await,
    }
}

/// Judges the connection; if its endpoint has no policy yet, or identities cannot be looked up yet, waits for that, but not
/// longer than `policy_wait` or its client.
async fn judge_when_known(connection: &Connection, stream: &TcpStream) -> Judged<Passage> {
    let worker = &connection.worker;
    let unknown = |judged: &Judged<Passage>| judged.verdict.as_ref().is_err_and(Denied::is_pending);
    let mut judged = connection.judge();
    if !unknown(&judged) {
        return judged;
    }
    let _place = match worker.waiting.take(connection.endpoint(), connection.downstream.ip()) {
        Ok(place) => place,
        Err(full) => return judged.with_detail(&full),
    };
    let _held = worker.flows.metrics().hold();
    let deadline = tokio::time::Instant::now() + connection.listener.config.policy_wait;
    let mut gone = pin!(gone(stream));
    let mut is_over = false;
    while unknown(&judged) && !is_over {
        tokio::select! {
            biased;
            state = connection.changed() => is_over = state.draining,
            () = &mut gone => return judged.with_detail("the client went away while it was held"),
            () = tokio::time::sleep_until(deadline) => is_over = true,
        }
        judged = connection.judge();
    }
    judged
}

/// Waits until the client has reset the connection, or has closed it without a word. One that has ended what it sends may wait for the
/// answer. Takes nothing from the socket.
async fn gone(stream: &TcpStream) {
    // Neither is there for bytes that wait to be read, as being readable is: the end of what is received comes with PRIORITY.
    let ended = stream.ready(Interest::PRIORITY | Interest::ERROR).await;
    if ended.is_ok_and(|ended| !ended.is_error()) && stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes > 0) {
        // Fails only where the event loop ends.
        let _ = stream.ready(Interest::ERROR).await;
    }
}

/// Resets a connection that is refused without asking policy, and records why.
pub(super) fn refuse(connection: &Connection, stream: TcpStream, reason: Reason) {
    let flow = connection.open_flow(Protocol::Tcp, Instant::now());
    tollgate_net::reset(stream);
    flow.finish(Outcome::Denied, Some(reason));
}

/// The same for one that a limit refuses.
pub(super) fn refuse_limited(connection: &Connection, stream: TcpStream, limited: Limited) {
    let mut flow = connection.open_flow(Protocol::Tcp, Instant::now());
    flow.note_limited(limited);
    tollgate_net::reset(stream);
    flow.finish(Outcome::Denied, Some(limited.reason));
}

/// The same for one that was judged.
fn refuse_judged(connection: &Connection, stream: TcpStream, denied: Denied, by: Basis) {
    let mut flow = connection.open_flow(Protocol::Tcp, Instant::now());
    by.note(&mut flow);
    let reason = denied.note(&mut flow);
    tollgate_net::reset(stream);
    flow.finish(Outcome::Denied, Some(reason));
}

/// Finds out which HTTP the client speaks, then serves that.
async fn serve_http(connection: &Rc<Connection>, mut stream: TcpStream, mut buffer: Buffer) {
    let mut deadline = None;
    connection.idle.wait();
    loop {
        match detect(buffer.filled()) {
            Detected::Http1 => return h1::serve(connection, stream, buffer).await,
            Detected::Http2 => return h2::serve(connection, stream, buffer).await,
            Detected::Unknown => return refuse(connection, stream, Reason::ProtocolUnknown),
            Detected::Undecided => {}
        }
        if !buffer.is_empty() && deadline.is_none() {
            deadline = Some(tokio::time::Instant::now() + connection.listener.config.request_head_timeout);
        }
        let timed_out = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            read = fill(&mut stream, &mut buffer, PREFACE.len().max(16 * 1024)) => match read {
                Ok(1..) => {}
                // A connection that ends before it says anything is no request.
                _ if buffer.is_empty() => return,
                _ => return refuse(connection, stream, Reason::DownstreamReset),
            },
            state = connection.changed() => {
                if state.draining && buffer.is_empty() {
                    return;
                }
                let Judged { verdict, by } = connection.judge();
                if let Err(denied) = verdict {
                    return refuse_judged(connection, stream, denied.into_revocation(), by);
                }
            }
            _ = connection.reaped(Protocol::Tcp) => return,
            () = timed_out => return refuse(connection, stream, Reason::DownstreamTimeout),
        }
    }
}

/// Resets a connection for which the process has no room.
pub(super) fn refuse_over_limit(worker: &Rc<Worker>, listener: &Rc<ListenerContext>, accepted: Accepted) {
    let connection = Connection::new(worker, listener, accepted.downstream, accepted.original_dst);
    refuse(&connection, accepted.stream, Reason::ConnectionLimit);
}
