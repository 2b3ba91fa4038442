//! An HTTP/2 connection: accepts streams, starts a task for each, and ends with GOAWAY.

use std::rc::Rc;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use super::prefixed::Prefixed;
use super::stream;
use super::upstream::UpstreamSlot;
use crate::http::Buffer;
use crate::http::h1::MAX_HEAD;
use crate::listener::connection::Connection;

/// Streams open at a time on one connection.
const MAX_STREAMS: u32 = 100;
/// Bytes that a peer may send ahead on one stream.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes that a peer may send ahead on all streams of a connection.
pub(super) const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Largest header list; `h2` counts fields as RFC 9113 section 6.5.2 says.
#[expect(clippy::cast_possible_truncation, reason = "60 KiB")]
pub(super) const MAX_HEADER_LIST: u32 = MAX_HEAD as u32;
/// Bytes queued for a peer that does not read, per stream. Times [`MAX_STREAMS`], this is most of what a connection holds.
pub(super) const MAX_SEND_BUFFER: usize = 64 * 1024;

/// What the streams of one connection share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) connection: Rc<Connection>,
    pub(super) upstream: UpstreamSlot,
    /// Set off when the connection itself may not go on; its streams may end.
    pub(super) goaway: Notify,
}

impl Shared {
    /// Ends the connection when it would be refused by now as a whole, not only a request on it.
    pub(super) fn end_if_refused(&self) {
        if self.connection.is_refused() {
            self.goaway.notify_one();
        }
    }
}

/// Serves `stream` to its end, which is also that of its streams and of its upstream connections.
pub(crate) async fn serve(connection: &Rc<Connection>, stream: TcpStream, buffer: Buffer) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(MAX_SEND_BUFFER);
    let handshake = builder.handshake(Prefixed { buffer, stream });
    let timeout = connection.listener.config.request_head_timeout;
    let Ok(Ok(server)) = tokio::time::timeout(timeout, handshake).await else { return };
    let (open, mut closed) = mpsc::channel(1);
    let upstream = UpstreamSlot::new(open);
    accept_streams(Rc::new(Shared { connection: Rc::clone(connection), upstream, goaway: Notify::new() }), server)
        .await;
    // The place of this connection is free only when nothing that it opened is left.
    closed.recv().await;
}

/// Starts a task for each stream until the connection ends.
async fn accept_streams(shared: Rc<Shared>, mut server: h2::server::Connection<Prefixed, Bytes>) {
    let connection = &shared.connection;
    let idle = connection.listener.config.http.upstream_idle_timeout;
    let upstream_idle = shared.upstream.let_go_when_idle(idle.unwrap_or_default());
    tokio::pin!(upstream_idle);
    let mut ending = false;
    loop {
        if connection.listener.signals.state().draining && !ending {
            ending = true;
            server.graceful_shutdown();
        }
        tokio::select! {
            biased;
            accepted = server.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    tokio::task::spawn_local(stream::serve(Rc::clone(&shared), request, respond));
                }
                Some(Err(error)) => {
                    tracing::debug!(downstream = %connection.downstream, %error, "HTTP/2 connection failed");
                    return;
                }
                None => return,
            },
            _ = connection.changed() => if connection.is_over() {
                shared.goaway.notify_one();
            },
            () = shared.goaway.notified(), if !ending => {
                ending = true;
                server.graceful_shutdown();
            }
            never = &mut upstream_idle, if idle.is_some() => match never {},
        }
    }
}
