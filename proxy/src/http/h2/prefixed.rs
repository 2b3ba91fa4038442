//! The client's socket as `h2` sees it: what was read before it comes first, and every frame is charged to the budget,
//! and each poll ends with the task's slice of time: `h2` goes on for as long as its socket does.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tollgate_schedule::{Work, mark, poll_slice};

use super::arriving::Arriving;
use super::budget::Budget;
use super::frames::{Frames, Seen};
use super::queue::Way;
use super::table::ChargedTable;
use crate::http::Buffer;
use crate::listener::connection::Connection;
use crate::reason::Reason;

/// Bytes thrown away of what a client sends on after its last frame, so that it reads the reason before it meets the reset
/// that unread bytes would cause.
const DISCARD: usize = 256 * 1024;

/// Bytes that are read at a time for a client whose tenant gets nothing more: few streams, which are refused before the next are read.
const LITTLE: usize = 256;

/// Reads `buffer` first, then `stream`; writes to `stream`. Once the budget is used up it reads as ended, behind a whole
/// frame, so that `h2` writes what it has begun and shuts down; a GOAWAY with the reason is the last that is written then.
#[derive(Debug)]
pub(super) struct Prefixed {
    buffer: Buffer,
    stream: TcpStream,
    frames: Frames,
    table: ChargedTable,
    budget: Rc<Budget>,
    arriving: Rc<Arriving>,
    connection: Rc<Connection>,
    /// What waits for the client, and what for the upstream.
    down: Rc<Way>,
    up: Rc<Way>,
    last_words: LastWords,
}

#[derive(Debug)]
enum LastWords {
    /// None to say.
    None,
    /// To be written from there on.
    Written(Vec<u8>, usize),
    /// So many bytes were thrown away since.
    Said(usize),
}

impl Prefixed {
    pub(super) fn new(
        connection: &Rc<Connection>,
        stream: TcpStream,
        buffer: Buffer,
        (budget, arriving): (&Rc<Budget>, &Rc<Arriving>),
        (down, up): (&Rc<Way>, &Rc<Way>),
    ) -> Self {
        let (connection, budget, arriving) = (Rc::clone(connection), Rc::clone(budget), Rc::clone(arriving));
        let (down, up) = (Rc::clone(down), Rc::clone(up));
        let (frames, table) = (Frames::default(), ChargedTable::new(&connection.payer));
        Self { buffer, stream, frames, table, budget, arriving, connection, down, up, last_words: LastWords::None }
    }

    /// Writes with `write`, unless the task's slice of time is spent: what waits for its next poll has not left either.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let written = match poll_slice(cx) {
            Poll::Ready(()) => {
                let _work = mark(Work::Io);
                write(Pin::new(&mut self.stream), cx)
            }
            Poll::Pending => Poll::Pending,
        };
        self.down.client().wrote(&written);
        written
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = if self.arriving.are_many() { LITTLE } else { usize::MAX };
        if self.buffer.is_empty() {
            ready!(poll_slice(cx));
            if most < out.remaining() {
                let mut part = ReadBuf::new(out.initialize_unfilled_to(most));
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
                let n = part.filled().len();
                out.advance(n);
                return Poll::Ready(Ok(()));
            }
            return Pin::new(&mut self.stream).poll_read(cx, out);
        }
        let n = self.buffer.len().min(out.remaining()).min(most);
        out.put_slice(&self.buffer.filled()[..n]);
        self.buffer.consume(n);
        self.buffer.release();
        Poll::Ready(Ok(()))
    }

    /// Says why the connection ends, if it is our wish, and waits until the client has closed its side.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.last_words {
                LastWords::None => {
                    let Some(reason) = self.budget.over() else {
                        return Pin::new(&mut self.stream).poll_shutdown(cx);
                    };
                    self.last_words = LastWords::Written(go_away(self.budget.newest(), reason), 0);
                }
                LastWords::Written(frame, written) if *written < frame.len() => {
                    *written += ready!(Pin::new(&mut self.stream).poll_write(cx, &frame[*written..]))?;
                }
                LastWords::Written(..) => {
                    ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
                    self.last_words = LastWords::Said(0);
                }
                LastWords::Said(discarded) => {
                    let mut room = [0; 4096];
                    let mut out = ReadBuf::new(&mut room);
                    ready!(Pin::new(&mut self.stream).poll_read(cx, &mut out))?;
                    *discarded += out.filled().len();
                    if out.filled().is_empty() || *discarded > DISCARD {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

/// GOAWAY (RFC 9113 section 6.8) with ENHANCE_YOUR_CALM, and the reason's code as its debug data.
fn go_away(last_stream: u32, reason: Reason) -> Vec<u8> {
    let code = reason.code().as_bytes();
    #[expect(clippy::cast_possible_truncation, reason = "codes are words")]
    let length = 8 + code.len() as u8;
    let calm = u32::from(h2::Reason::ENHANCE_YOUR_CALM).to_be_bytes();
    [&[0, 0, length, 7, 0, 0, 0, 0, 0][..], &last_stream.to_be_bytes(), &calm, code].concat()
}

impl Drop for Prefixed {
    fn drop(&mut self) {
        if matches!(self.budget.over(), Some(Reason::SlowReader | Reason::TenantMemory)) {
            // The kernel would keep what nobody reads. It fails only if the connection is gone already.
            let _ = tollgate_net::reset_on_close(&self.stream);
        }
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.frames.is_over() {
            return Poll::Ready(Ok(()));
        }
        self.arriving.wants_more();
        ready!(self.down.poll_answers_taken(cx));
        ready!(self.up.poll_read_ahead(cx));
        ready!(self.arriving.poll_accepted(cx));
        let before = out.filled().len();
        {
            let _work = mark(Work::Io);
            ready!(self.poll_bytes(cx, out))?;
        }
        let Self { frames, budget, arriving, table, .. } = &mut *self;
        let followed = frames.follow(&out.filled()[before..], |seen| {
            table.see(seen);
            match seen {
                Seen::Head(head) => {
                    arriving.begin(head, budget.newest());
                    budget.take(head)
                }
                Seen::Block(_) => {
                    arriving.has_fields(table.list_size());
                    true
                }
            }
        });
        arriving.read(frames.is_within_block());
        out.set_filled(before + followed);
        self.up.read(followed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.write(cx, |stream, cx| stream.poll_write(cx, bytes));
        self.connection.idle.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.write(cx, |stream, cx| stream.poll_write_vectored(cx, slices));
        self.connection.idle.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_last_words(cx)
    }
}
