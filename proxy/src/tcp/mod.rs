//! Connections that policy admits as bytes: copied both ways with half-close, judged again whenever policy changes.

mod pump;
mod sender;
mod watched;

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tollgate_policy::SecurityId;

pub(crate) use pump::{Ended, fill, pump_both};
pub(crate) use sender::{Sender, Unwritten, wait_for_turn, write_from};
pub(crate) use watched::Watched;

use crate::flow::{OpenFlow, Outcome, Protocol};
use crate::http::Buffer;
use crate::http::limits::{Moved, RequestEnd, TimeLimits};
use crate::listener::connection::Connection;
use crate::listener::judge::{Admitted, Basis};
use crate::reason::Reason;
use crate::tenant::{Pace, Pacing};
use crate::upstream::{self, Opened};

/// Relays an admitted connection to its end. `buffer` holds what was read from it already.
pub(crate) async fn relay(
    connection: &Connection,
    mut downstream: TcpStream,
    buffer: Buffer,
    mut admitted: Admitted,
    by: Basis,
) {
    let mut flow = connection.open_flow(Protocol::Tcp, Instant::now());
    by.note(&mut flow);
    admitted.note(&mut flow);
    let Opened { mut stream, path, place: _place, would_limit } =
        match upstream::open(connection, &admitted.permit, admitted.source).await {
            Ok(opened) => opened,
            Err(reason) => {
                tollgate_net::reset(downstream);
                flow.finish(Outcome::of_unsent(reason), Some(reason));
                return;
            }
        };
    path.note(flow.record_mut());
    flow.note_would_limit(would_limit);
    let limits = TimeLimits::of_bytes(connection.listener.config.tcp_idle_timeout);
    let (began, pacing) = (RequestEnd::now(Duration::ZERO), Pacing::default());
    let pace = Pace { payer: &connection.payer, pacing: &pacing, of_all: None };
    let ended = {
        let pumps = pump_both(pace, &flow, &mut downstream, buffer, &mut stream, connection.buffer());
        tokio::select! {
            biased;
            // First, because connecting took time: not a byte may pass under a policy that is gone.
            ended = withdrawn(connection, admitted.source) => ended,
            ended = pumps => ended,
            reason = limits.exceeded_as_a_whole(|| Moved::of(&flow, &pacing), || Some(began)) => Ended::TimedOut(reason),
            (_, reason) = connection.idle.told_at_work() => Ended::Revoked(reason),
        }
    };
    finish(flow, pace, ended, &downstream, &stream);
}

/// Waits until the connection may no longer pass as bytes, or the process ends.
async fn withdrawn(connection: &Connection, source: SecurityId) -> Ended {
    loop {
        if connection.changed().await.stopping {
            return Ended::Stopped;
        }
        if let Err(reason) = connection.still_passes(source) {
            return Ended::Revoked(reason);
        }
    }
}

/// Ends both sides the way the relay ended, and the record with them.
pub(crate) fn finish(mut flow: OpenFlow, pace: Pace<'_>, ended: Ended, downstream: &TcpStream, upstream: &TcpStream) {
    flow.note_paced(pace);
    let (outcome, reason) = match ended {
        Ended::Both => (Outcome::Forwarded, None),
        Ended::Revoked(reason) => (Outcome::Denied, Some(reason)),
        Ended::Stopped => (Outcome::Failed, Some(Reason::Draining)),
        Ended::TimedOut(reason) => (Outcome::Failed, Some(reason)),
        Ended::DownstreamReset => (Outcome::Forwarded, Some(Reason::DownstreamReset)),
        Ended::UpstreamReset => (Outcome::Forwarded, Some(Reason::UpstreamReset)),
    };
    if ended != Ended::Both {
        // A reset on one side is a reset on the other, never a clean end.
        let _ = tollgate_net::reset_on_close(downstream);
        let _ = tollgate_net::reset_on_close(upstream);
    }
    flow.finish(outcome, reason);
}
