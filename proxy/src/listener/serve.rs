//! The life of one accepted connection: held for its first policy, judged, detected, served.

use std::rc::Rc;
use std::time::Instant;

use tokio::net::TcpStream;
use tollgate_net::Accepted;
use tollgate_policy::{ConnectionVerdict, DenyReason};

use super::connection::{Connection, Judged, ListenerContext, denial_reason, note_denial};
use crate::detect::{Detected, PREFACE, detect};
use crate::flow::{Outcome, Protocol};
use crate::http::{Buffer, h1, h2};
use crate::reason::Reason;
use crate::tcp::{self, fill};
use crate::worker::Worker;

/// Connections that one worker holds for a first policy at a time; more are decided at once.
const MAX_HELD: usize = 1024;

/// Serves `stream` until one side or policy ends it.
pub(crate) async fn serve(connection: Rc<Connection>, stream: TcpStream) {
    if connection.is_loop() {
        return refuse(&connection, stream, Reason::Loop, None);
    }
    let judged = judge_when_known(&connection).await;
    let buffer = Buffer::new(&connection.worker.buffers);
    match judged.verdict {
        ConnectionVerdict::Deny { reason, nearest } => {
            let has_policy = connection.worker.world.load().has_policy;
            let reason = denial_reason(reason, has_policy);
            refuse(&connection, stream, reason, Some((judged.generation, nearest)));
        }
        ConnectionVerdict::AllowTcp { rule, name, permit } => {
            let admitted =
                Judged { verdict: (rule, name, permit), generation: judged.generation, identities: judged.identities };
            tcp::relay(&connection, stream, buffer, admitted).await;
        }
        ConnectionVerdict::InspectHttp => serve_http(&connection, stream, buffer).await,
    }
}

/// Judges the connection; if its endpoint has no policy yet, waits for one, but not longer than `policy_wait`.
async fn judge_when_known(connection: &Connection) -> Judged<ConnectionVerdict> {
    let worker = &connection.worker;
    let unknown = |judged: &Judged<ConnectionVerdict>| {
        matches!(judged.verdict, ConnectionVerdict::Deny { reason: DenyReason::NoPolicy, .. })
    };
    let judged = connection.judge();
    if !unknown(&judged) || worker.held.get() >= MAX_HELD {
        return judged;
    }
    let _held = worker.flows.metrics().hold();
    worker.held.set(worker.held.get() + 1);
    let deadline = tokio::time::Instant::now() + connection.listener.config.policy_wait;
    let judged = loop {
        let judged = connection.judge();
        if !unknown(&judged) {
            break judged;
        }
        match tokio::time::timeout_at(deadline, connection.subscription.changed()).await {
            Ok(state) if !state.draining => {}
            _ => break connection.judge(),
        }
    };
    worker.held.set(worker.held.get().saturating_sub(1));
    judged
}

/// Resets a connection that is refused before any of its bytes count, and records why.
fn refuse(
    connection: &Connection,
    stream: TcpStream,
    reason: Reason,
    denial: Option<(u64, Option<Box<tollgate_policy::NearestMiss>>)>,
) {
    let mut flow = connection.open_flow(Protocol::Tcp, Instant::now());
    if let Some((generation, nearest)) = denial {
        note_denial(&mut flow, generation, nearest);
    }
    tollgate_net::reset(stream);
    flow.finish(Outcome::Denied, Some(reason));
}

/// Finds out which HTTP the client speaks, then serves that.
async fn serve_http(connection: &Rc<Connection>, mut stream: TcpStream, mut buffer: Buffer) {
    let mut deadline = None;
    loop {
        match detect(buffer.filled()) {
            Detected::Http1 => return h1::serve(connection, stream, buffer).await,
            Detected::Http2 => return h2::serve(connection, stream, buffer).await,
            Detected::Unknown => return refuse(connection, stream, Reason::ProtocolUnknown, None),
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
                _ => return refuse(connection, stream, Reason::DownstreamReset, None),
            },
            state = connection.subscription.changed() => {
                if state.draining && buffer.is_empty() {
                    return;
                }
                let judged = connection.judge();
                if let ConnectionVerdict::Deny { nearest, .. } = judged.verdict {
                    return refuse(connection, stream, Reason::Revoked, Some((judged.generation, nearest)));
                }
            }
            () = timed_out => return refuse(connection, stream, Reason::DownstreamTimeout, None),
        }
    }
}

/// Resets a connection for which the process has no room.
pub(super) fn refuse_over_limit(worker: &Rc<Worker>, listener: &Rc<ListenerContext>, accepted: Accepted) {
    let connection = Connection::new(worker, listener, accepted.downstream, accepted.original_dst);
    refuse(&connection, accepted.stream, Reason::ConnectionLimit, None);
}
