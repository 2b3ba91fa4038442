//! An accepted WebSocket: bytes both ways for as long as policy admits its handshake.

use tokio::net::TcpStream;

use super::buffer::Buffer;
use super::decide::still_admitted;
use super::exchange::Paired;
use crate::flow::OpenFlow;
use crate::http::limits::TimeLimits;
use crate::listener::connection::Connection;
use crate::tcp::{self, Counts, Ended, pump_both};

/// An accepted WebSocket, and the head of its handshake.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) flow: OpenFlow,
    pub(super) head: Buffer,
}

/// Relays an accepted WebSocket until it ends or policy no longer allows its handshake.
pub(super) async fn serve(
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
    let limits = TimeLimits::of_bytes(connection.listener.config.http.limits.stream_idle_timeout);
    let (began, payer) = (tokio::time::Instant::now(), &connection.payer);
    let ended = tokio::select! {
        biased;
        // First, so that what is ready to be moved waits for the judgement.
        ended = withdrawn => ended,
        ended = pump_both(payer, &mut downstream, buffer, &mut upstream, paired.buffer, &counts) => ended,
        reason = limits.exceeded_as_a_whole(|| counts.moved(), || Some(began)) => Ended::TimedOut(reason),
        reason = connection.idle.told_at_work() => Ended::Revoked(reason),
    };
    tcp::finish(flow, ended, &counts, &downstream, &upstream);
}
