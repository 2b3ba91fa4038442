//! Moves the body and trailers of one stream from one connection to the other, at the pace of the slower one.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderName;

use super::queue::{Piece, Queue, Way};
use super::retry::Retries;
use crate::http::h1::FORBIDDEN_TRAILERS;

/// Why a body could not be moved to its end.
#[derive(Debug)]
pub(super) enum TransferError {
    /// The sending side reset the stream, or its connection failed.
    Source(Reason),
    /// The receiving side reset the stream, or its connection failed.
    Sink,
}

/// The reset code of an error; a connection that broke counts as CANCEL.
pub(super) fn reset_code(error: &h2::Error) -> Reason {
    error.reason().unwrap_or(Reason::CANCEL)
}

/// Where a body goes.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    stream: &'a mut SendStream<Piece>,
    queue: Rc<Queue>,
    /// Bytes that went there.
    count: &'a Cell<u64>,
}

/// Moves everything that is left of `from`, its end included, without the trailer fields that are to be `dropped`. `came` is
/// told the size of each piece as it was sent. What can be sent again is `kept`.
///
/// What came is queued at once, and its sender may send as much again when there is room: so nothing waits where nobody
/// sees it, and what is queued is no more than the windows that were given.
pub(super) async fn transfer(
    from: &mut RecvStream,
    to: &mut Sink<'_>,
    came: impl Fn(usize),
    dropped: impl Fn(&HeaderName) -> bool,
    kept: Option<&Retries>,
) -> Result<(), TransferError> {
    // Bytes that were queued and not yet given back to the sender's window.
    let mut owed = 0;
    loop {
        tollgate_schedule::rest().await;
        let chunk = poll_fn(|cx| {
            if owed > 0 && to.queue.poll_room(cx).is_ready() {
                // Fails only if the stream has ended, which the next read reports.
                let _ = from.flow_control().release_capacity(std::mem::take(&mut owed));
            }
            if let Poll::Ready(chunk) = from.poll_data(cx) {
                return Poll::Ready(Ok(chunk));
            }
            // An error means that the connection is gone, which ends the stream as well.
            to.stream.poll_reset(cx).map(|_| Err(TransferError::Sink))
        })
        .await?;
        match chunk {
            Some(Ok(chunk)) => {
                came(chunk.len());
                // The end goes out with the last bytes where they came together: no frame of its own for it.
                let last = from.is_end_stream();
                if let Some(kept) = kept {
                    kept.keep(&chunk, last);
                }
                owed += chunk.len();
                to.send(chunk, last)?;
                if last {
                    return to.until_taken().await;
                }
            }
            Some(Err(error)) => return Err(TransferError::Source(reset_code(&error))),
            None => break,
        }
    }
    match from.trailers().await {
        Ok(Some(mut trailers)) => {
            if let Some(kept) = kept {
                kept.give_up();
            }
            // As for HTTP/1. Trailers are announced too rarely in HTTP/2 to pass only those that are.
            FORBIDDEN_TRAILERS.iter().for_each(|name| drop(trailers.remove(*name)));
            let names: Vec<HeaderName> = trailers.keys().filter(|name| dropped(name)).cloned().collect();
            names.into_iter().for_each(|name| drop(trailers.remove(name)));
            to.stream.send_trailers(trailers)
        }
        Ok(None) => {
            if let Some(kept) = kept {
                kept.keep(b"", true);
            }
            to.stream.send_data(Piece::uncharged(Bytes::new()), true)
        }
        Err(error) => return Err(TransferError::Source(reset_code(&error))),
    }
    .map_err(|_| TransferError::Sink)?;
    to.until_taken().await
}

impl<'a> Sink<'a> {
    pub(super) fn new(stream: &'a mut SendStream<Piece>, way: &Rc<Way>, count: &'a Cell<u64>) -> Self {
        Self { stream, queue: Queue::new(way), count }
    }

    /// Queues one chunk, the `last` one with the end of the stream.
    pub(super) fn send(&mut self, chunk: Bytes, last: bool) -> Result<(), TransferError> {
        self.count.set(self.count.get() + chunk.len() as u64);
        self.stream.send_data(self.queue.piece(chunk), last).map_err(|_| TransferError::Sink)
    }

    /// Waits until little enough is left for the stream to be forgotten: what its sender may send is free with it.
    async fn until_taken(&mut self) -> Result<(), TransferError> {
        poll_fn(|cx| {
            if self.queue.poll_room(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            self.stream.poll_reset(cx).map(|_| Err(TransferError::Sink))
        })
        .await
    }
}
