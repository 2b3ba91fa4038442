//! Sockets that bytes come from, watched for a reset while those bytes cannot be handed on.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, Take};
use tokio::net::tcp::ReadHalf;

use crate::tenant::{Pace, Turn};

/// Where bytes come from.
pub(crate) trait Sender: AsyncRead + Unpin {
    /// Waits until the connection has failed, and returns how. The end of what is sent is no failure: a half-close is legal.
    async fn failed(&self) -> io::Error;
}

impl Sender for ReadHalf<'_> {
    async fn failed(&self) -> io::Error {
        match self.ready(Interest::ERROR).await {
            Ok(_) => io::ErrorKind::ConnectionReset.into(),
            Err(error) => error,
        }
    }
}

impl<S: Sender> Sender for &mut S {
    async fn failed(&self) -> io::Error {
        (**self).failed().await
    }
}

impl<S: Sender> Sender for Take<S> {
    async fn failed(&self) -> io::Error {
        self.get_ref().failed().await
    }
}

#[cfg(test)]
impl Sender for &[u8] {
    async fn failed(&self) -> io::Error {
        std::future::pending().await
    }
}

/// Why bytes could not be handed on.
#[derive(Debug)]
pub(crate) enum Unwritten {
    /// Who sent them has gone meanwhile.
    Sender(io::Error),
    /// Who was to get them has gone.
    Receiver(io::Error),
}

/// Waits until bytes that came from `sender` may go on, unless that resets.
pub(crate) async fn wait_for_turn(
    pace: Pace<'_>,
    turn: &mut Turn,
    bytes: usize,
    sender: &impl Sender,
) -> Result<(), Unwritten> {
    if !pace.is_set() {
        return Ok(());
    }
    tokio::select! {
        biased;
        () = pace.wait(turn, bytes) => Ok(()),
        error = sender.failed() => Err(Unwritten::Sender(error)),
    }
}

/// Writes all of `bytes`, which came from `sender`. A sender that resets ends the wait for a receiver that does not read: it
/// would otherwise hold both connections for as long as the receiver likes, at no cost of its own.
pub(crate) async fn write_from(
    sender: &impl Sender,
    writer: &mut (impl AsyncWrite + Unpin),
    mut bytes: impl bytes::Buf,
) -> Result<(), Unwritten> {
    tokio::select! {
        biased;
        written = writer.write_all_buf(&mut bytes) => written.map_err(Unwritten::Receiver),
        error = sender.failed() => Err(Unwritten::Sender(error)),
    }
}
