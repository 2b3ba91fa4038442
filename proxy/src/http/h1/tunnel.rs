//! An accepted WebSocket: bytes both ways for as long as policy admits its handshake.

use std::time::Duration;

use tokio::net::TcpStream;

use super::buffer::Buffer;
use super::decide::still_admitted;
use super::exchange::Paired;
use crate::flow::OpenFlow;
use crate::http::limits::{Moved, RequestEnd, TimeLimits};
use crate::listener::connection::Connection;
use crate::tcp::{self, Ended, pump_both};
use crate::tenant::{Pace, Pacing};

/// An accepted WebSocket, and the head of its handshake.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) flow: OpenFlow,
    pub(super) head: Buffer,
    /// For how long it was held back so far.
    pub(super) pacing: Pacing,
}

/// Relays an accepted WebSocket until it ends or policy no longer allows its handshake.
pub(super) async fn serve(
    connection: &Connection,
    tunnel: Tunnel,
    mut downstream: TcpStream,
    buffer: Buffer,
    paired: Paired,
) {
    let Tunnel { flow, head, pacing } = tunnel;
    let _work = connection.idle.work();
    let mut upstream = paired.stream;
    let pace = Pace { payer: &connection.payer, pacing: &pacing, of_all: None };
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
    let limits = TimeLimits::of_bytes(connection.listener.config.http.limits.stream_idle_timeout);
    let began = RequestEnd::now(Duration::ZERO);
    let ended = tokio::select! {
        biased;
        // First, so that what is ready to be moved waits for the judgement.
        ended = withdrawn => ended,
        ended = pump_both(pace, &flow, &mut downstream, buffer, &mut upstream, paired.buffer) => ended,
        reason = limits.exceeded_as_a_whole(|| Moved::of(&flow, &pacing), || Some(began)) => Ended::TimedOut(reason),
        (_, reason) = connection.idle.told_at_work() => Ended::Revoked(reason),
    };
    tcp::finish(flow, pace, ended, &downstream, &upstream);
}
