//! Moves the body and trailers of one stream from one connection to the other, at the pace of the slower one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderName;

use super::incoming::Incoming;
use super::queue::{Piece, Queue, Trailers};
use super::retry::Retries;
use crate::flow::Meter;
use crate::http::h1::FORBIDDEN_TRAILERS;
use crate::tenant::{Pace, Turn};

/// Why a body could not be moved to its end.
#[derive(Debug)]
pub(super) enum TransferError {
    /// The sending side reset the stream, or its connection failed.
    Source(Reason),
    /// The receiving side reset the stream, or its connection failed.
    Sink,
}

/// The reset code of an error; a connection that broke counts as CANCEL. One that ended in order did not so for a stream that it cut
/// off: with its NO_ERROR clients would take what they have for the whole (RFC 9113, 8.1).
pub(super) fn reset_code(error: &h2::Error) -> Reason {
    let ended = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
    error.reason().filter(|_| !ended).unwrap_or(Reason::CANCEL)
}

/// Where a body goes.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    stream: &'a mut SendStream<Piece>,
    queue: Rc<Queue>,
    /// Where bytes are counted that went there.
    meter: Meter<'a>,
    pace: Pace<'a>,
    turn: Turn,
    /// What came and has to wait for its turn; its sender may send as much again when it has gone.
    held: VecDeque<Piece>,
}

/// How a body ends.
enum End {
    /// With its last bytes.
    WithBytes,
    /// With these fields behind them.
    Trailers(Trailers),
    /// With nothing behind them.
    Alone,
}

/// What happened to a body.
enum Step {
    /// More of it came, or its end.
    Came(Option<Result<Bytes, h2::Error>>),
    /// It is the turn of what was held longest.
    Turn,
}

/// Whether the trailer field of this name may not pass by now.
pub(super) type Dropped<'a> = &'a dyn Fn(&HeaderName) -> bool;

/// Moves everything that is left of `from`, its end included, without the trailer fields that are to be `dropped` when they go. `came`
/// is told the size of each piece as it was sent. What can be sent again is `kept`.
///
/// Trailers of which some may have to be dropped wait here until the receiver's windows have let the body before them pass, for as long as that takes: in
/// `h2` nobody could drop them. What has not left even then can be asked of the queue.
///
/// What came is queued at once, and its sender may send as much again when there is room: so nothing waits where nobody
/// sees it, and what is queued is no more than the windows that were given. Beyond its tenant's rate it is held here before.
pub(super) async fn transfer(
    from: &mut Incoming,
    to: &mut Sink<'_>,
    came: impl Fn(usize),
    dropped: Option<Dropped<'_>>,
    kept: Option<&Retries>,
) -> Result<(), TransferError> {
    // Bytes that were queued and not yet given back to the sender's window.
    let mut owed = 0;
    // Once nothing more will come.
    let mut end = None;
    let end = loop {
        tollgate_schedule::rest().await;
        let step = poll_fn(|cx| {
            if owed > 0 && to.queue.poll_room(cx).is_ready() {
                from.release(std::mem::take(&mut owed));
            }
            if to.poll_turn(cx).is_ready() {
                return Poll::Ready(Ok(Step::Turn));
            }
            if end.is_none()
                && let Poll::Ready(chunk) = from.poll_data(cx)
            {
                return Poll::Ready(Ok(Step::Came(chunk)));
            }
            // An error means that the connection is gone, which ends the stream as well.
            to.stream.poll_reset(cx).map(|_| Err(TransferError::Sink))
        })
        .await?;
        match step {
            Step::Came(Some(Ok(chunk))) => {
                came(chunk.len());
                // The end goes out with the last bytes where they came together: no frame of its own for it.
                let last = from.is_end_stream();
                if let Some(kept) = kept {
                    kept.keep(&chunk, last);
                }
                end = last.then_some(End::WithBytes);
                if to.holds(&chunk) {
                    to.hold(chunk);
                    continue;
                }
                owed += chunk.len();
                to.send(chunk, last)?;
            }
            Step::Came(Some(Err(error))) => return Err(TransferError::Source(reset_code(&error))),
            Step::Came(None) => end = Some(behind_bytes(from, &to.queue, kept).await?),
            Step::Turn => owed += to.pass_on(matches!(end, Some(End::WithBytes)))?,
        }
        if to.held.is_empty()
            && let Some(end) = end.take()
        {
            break end;
        }
    };
    match end {
        End::WithBytes => Ok(()),
        End::Trailers(trailers) => match dropped {
            Some(dropped) => {
                to.until_passed().await?;
                trailers.without(dropped).followed().send(to.stream)
            }
            None => trailers.send(to.stream),
        },
        End::Alone => to.stream.send_data(Piece::uncharged(Bytes::new()), true),
    }
    .map_err(|_| TransferError::Sink)?;
    to.until_taken().await
}

/// What ends a body that has no more bytes. It is there already, and taken out of `h2`, where nobody would count it while bytes
/// wait for their turn.
async fn behind_bytes(from: &mut Incoming, queue: &Rc<Queue>, kept: Option<&Retries>) -> Result<End, TransferError> {
    match from.trailers().await {
        Ok(Some(mut trailers)) => {
            if let Some(kept) = kept {
                kept.give_up();
            }
            // As for HTTP/1. Trailers are announced too rarely in HTTP/2 to pass only those that are.
            FORBIDDEN_TRAILERS.iter().for_each(|name| drop(trailers.remove(*name)));
            Ok(End::Trailers(queue.trailers(trailers)))
        }
        Ok(None) => {
            if let Some(kept) = kept {
                kept.keep(b"", true);
            }
            Ok(End::Alone)
        }
        Err(error) => Err(TransferError::Source(reset_code(&error))),
    }
}

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        // Others of the connection are held up no longer.
        self.pace.give_up(&mut self.turn);
    }
}

impl<'a> Sink<'a> {
    pub(super) fn new(stream: &'a mut SendStream<Piece>, queue: Rc<Queue>, meter: Meter<'a>, pace: Pace<'a>) -> Self {
        Self { stream, queue, meter, pace, turn: Turn::default(), held: VecDeque::new() }
    }

    /// Queues one chunk, the `last` one with the end of the stream.
    fn send(&mut self, chunk: Bytes, last: bool) -> Result<(), TransferError> {
        let piece = self.queue.piece(chunk);
        self.put(piece, last)
    }

    fn put(&mut self, piece: Piece, last: bool) -> Result<(), TransferError> {
        self.meter.add(piece.len());
        self.stream.send_data(piece, last).map_err(|_| TransferError::Sink)
    }

    /// Queues a body that is here as a whole, when it is its turn.
    pub(super) async fn send_whole(&mut self, body: Bytes) -> Result<(), TransferError> {
        if self.holds(&body) {
            self.hold(body);
            while !self.held.is_empty() {
                poll_fn(|cx| {
                    if self.poll_turn(cx).is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                    self.stream.poll_reset(cx).map(|_| Err(TransferError::Sink))
                })
                .await?;
                self.pass_on(true)?;
            }
            return Ok(());
        }
        self.send(body, true)
    }

    /// Whether a chunk has to wait for its turn. The end alone does so only behind others.
    fn holds(&self, chunk: &Bytes) -> bool {
        !self.held.is_empty() || self.pace.is_set() && !chunk.is_empty()
    }

    /// Keeps a chunk until its turn, in pieces that go at once.
    fn hold(&mut self, mut chunk: Bytes) {
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(self.pace.piece()));
            self.held.push_back(self.queue.piece(piece));
        }
    }

    /// Waits for the turn of what was held longest.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.held.front() {
            Some(piece) => self.pace.poll(&mut self.turn, piece.len(), cx),
            None => Poll::Pending,
        }
    }

    /// Queues what was held longest, with the end of the stream if it is the last and that came with it. Returns its size.
    fn pass_on(&mut self, ends: bool) -> Result<usize, TransferError> {
        let Some(piece) = self.held.pop_front() else { return Ok(0) };
        let size = piece.len();
        let last = ends && self.held.is_empty();
        self.put(piece, last)?;
        Ok(size)
    }

    /// Waits until nothing of the body is left.
    async fn until_passed(&mut self) -> Result<(), TransferError> {
        poll_fn(|cx| {
            if self.queue.poll_empty(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            self.stream.poll_reset(cx).map(|_| Err(TransferError::Sink))
        })
        .await
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
