//! The upstream HTTP/2 connection that belongs to one downstream connection.

use std::cell::Cell;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Mutex;
use tollgate_policy::{Permit, SecurityId};

use super::connection::{CONNECTION_WINDOW, MAX_HEADER_LIST, STREAM_WINDOW};
use crate::listener::connection::Connection;
use crate::reason::Reason;

/// Opens the connection when the first stream needs it, and again if it has ended or the client's identity has changed.
#[derive(Debug, Default)]
pub(super) struct UpstreamSlot {
    /// Held while connecting, so that streams that come together share one connection.
    current: Mutex<Option<Current>>,
    /// Attempts to connect that have ended, and why the last one failed, if it did.
    attempts: Cell<(u64, Option<Reason>)>,
}

#[derive(Debug)]
struct Current {
    sender: SendRequest<Bytes>,
    address: SocketAddr,
    source: SecurityId,
}

impl UpstreamSlot {
    /// A sender that can take a request now.
    pub(super) async fn sender(
        &self,
        connection: &Connection,
        permit: &Permit,
        source: SecurityId,
    ) -> Result<(SendRequest<Bytes>, SocketAddr), Reason> {
        let (before, _) = self.attempts.get();
        let mut current = self.current.lock().await;
        if let Some(open) = current.as_ref().filter(|open| open.source == source)
            && let Ok(sender) = open.sender.clone().ready().await
        {
            return Ok((sender, open.address));
        }
        // Streams that waited for an attempt share its failure: with one each, the last would learn of it many time-outs
        // later.
        if let (ended, Some(reason)) = self.attempts.get()
            && ended != before
        {
            return Err(reason);
        }
        let connected = connect(connection, permit, source).await;
        let failure = connected.as_ref().err().copied();
        self.attempts.set((self.attempts.get().0 + 1, failure));
        let opened = connected?;
        let ready = opened.sender.clone().ready().await.map_err(|_| Reason::UpstreamReset)?;
        let address = opened.address;
        *current = Some(opened);
        Ok((ready, address))
    }
}

/// Connects, and starts the task that drives the connection.
async fn connect(connection: &Connection, permit: &Permit, source: SecurityId) -> Result<Current, Reason> {
    let (stream, address) = crate::upstream::open(connection, permit, source).await?;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST)
        .enable_push(false);
    let handshake = builder.handshake::<_, Bytes>(stream);
    let connect_timeout = connection.listener.config.connect_timeout;
    let Ok(Ok((sender, driver))) = tokio::time::timeout(connect_timeout, handshake).await else {
        return Err(Reason::UpstreamConnect);
    };
    tokio::task::spawn_local(async move {
        // Streams see the error themselves; nobody else waits for it.
        if let Err(error) = driver.await {
            tracing::debug!(upstream = %address, %error, "upstream HTTP/2 connection ended");
        }
    });
    Ok(Current { sender, address, source })
}
