//! Moves one HTTP/1 body from a reader to a writer: bytes as they came, every one of them accounted for by the framing.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::buffer::Buffer;
use super::chunked::{ChunkError, ChunkScanner};
use super::head::{HeadEnd, HeadScanner};
use super::trailers::{self, MAX_TRAILERS, Passes, Passing, TrailerError};
use crate::flow::Meter;
use crate::tcp::{Sender, Unwritten, fill, wait_for_turn, write_from};
use crate::tenant::{Pace, Turn};

/// Most body bytes held per direction.
const WINDOW: usize = 16 * 1024;

/// Why a body could not be moved to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The sender failed.
    #[error("reading the body: {0}")]
    Read(io::Error),
    /// The sender ended before the body did.
    #[error("the body is truncated")]
    Truncated,
    /// The receiver failed.
    #[error("writing the body: {0}")]
    Write(io::Error),
    /// Chunked framing that is not well formed.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// A trailer section that is not well formed or too long.
    #[error(transparent)]
    Trailers(#[from] TrailerError),
    /// A trailer of which a part has left may not pass any more.
    #[error("a trailer is read by a rule by now")]
    Barred,
}

impl From<Unwritten> for BodyError {
    fn from(error: Unwritten) -> Self {
        match error {
            Unwritten::Sender(error) => Self::Read(error),
            Unwritten::Receiver(error) => Self::Write(error),
        }
    }
}

/// A place in a body, and how its end is found.
#[derive(Debug)]
pub(crate) enum Cursor {
    /// Nothing is left.
    Done,
    /// So many bytes are left.
    Length(u64),
    /// Chunked.
    Chunked(ChunkScanner),
    /// Until the sender closes.
    UntilClose,
}

impl Cursor {
    /// Moves over `bytes` as far as they belong to the body and may be forwarded as they are.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        match self {
            Self::Done => Ok(0),
            Self::UntilClose => Ok(bytes.len()),
            Self::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(n)
            }
            Self::Chunked(scanner) => {
                let mut n = scanner.advance(bytes)?;
                // The usual end, no trailer fields, goes out with the last chunk.
                if scanner.at_trailers() && bytes[n..].starts_with(b"\r\n") {
                    n += 2;
                    *self = Self::Done;
                }
                Ok(n)
            }
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    fn at_trailers(&self) -> bool {
        matches!(self, Self::Chunked(scanner) if scanner.at_trailers())
    }
}

/// A body under way: where it stands, which trailer fields may pass, and where bytes that moved are counted (framing included).
pub(crate) struct Relay<'a> {
    pub(crate) cursor: Cursor,
    /// Which trailer fields pass when they come; `None`: all harmless ones.
    pub(crate) trailers: Option<Passes<'a>>,
    pub(crate) meter: Meter<'a>,
    /// Whether a sender that resets ends it while the receiver does not read. Nobody waits for what a client has given up;
    /// what an upstream has sent before it went still arrives.
    pub(crate) needs_sender: bool,
    /// At whose pace it goes; what goes nowhere needs none.
    pub(crate) pace: Option<Pace<'a>>,
    pub(crate) turn: Turn,
}

impl Relay<'_> {
    /// Moves the rest of the body, beginning with what `buffer` holds.
    pub(crate) async fn run(
        &mut self,
        reader: &mut impl Sender,
        buffer: &mut Buffer,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), BodyError> {
        loop {
            let n = self.cursor.advance(buffer.filled())?;
            let mut left = n;
            while left > 0 {
                let piece = self.turn(left, reader).await?;
                self.write(reader, writer, &buffer.filled()[..piece]).await?;
                buffer.consume(piece);
                self.meter.add(piece);
                left -= piece;
            }
            if self.cursor.is_done() {
                return Ok(());
            }
            if self.cursor.at_trailers() {
                let section = read_trailers(reader, buffer).await?;
                // As it came: what does not pass was sent, too. Which of it passes is decided behind the wait.
                self.turns(section, reader).await?;
                let left_out = trailers::keep_harmless(&mut buffer.filled_mut()[..section])?;
                self.pass_trailers(reader, writer, &buffer.filled()[left_out..section]).await?;
                buffer.consume(section);
                self.meter.add(section);
                self.cursor = Cursor::Done;
                return Ok(());
            }
            if fill(reader, buffer, WINDOW).await.map_err(BodyError::Read)? == 0 {
                return match self.cursor {
                    Cursor::UntilClose => Ok(()),
                    _ => Err(BodyError::Truncated),
                };
            }
        }
    }

    /// Whether its bytes may have to wait.
    pub(crate) fn is_paced(&self) -> bool {
        self.pace.is_some_and(Pace::is_set)
    }

    /// Waits until so many bytes may go, or a piece of them, and returns how many.
    pub(crate) async fn turn(&mut self, bytes: usize, reader: &impl Sender) -> Result<usize, BodyError> {
        let Some(pace) = self.pace else { return Ok(bytes) };
        let piece = bytes.min(pace.piece());
        if self.needs_sender {
            wait_for_turn(pace, &mut self.turn, piece, reader).await?;
        } else {
            pace.wait(&mut self.turn, piece).await;
        }
        Ok(piece)
    }

    /// Waits until all of so many bytes may go, which go at once then.
    pub(crate) async fn turns(&mut self, bytes: usize, reader: &impl Sender) -> Result<(), BodyError> {
        let mut left = bytes;
        while left > 0 {
            left -= self.turn(left, reader).await?;
        }
        Ok(())
    }

    /// Writes what may pass of a `section` of harmless trailers. Each field is judged whenever the receiver takes some of it: one that does
    /// not read may be waited for while policy changes.
    async fn pass_trailers(
        &self,
        reader: &impl Sender,
        writer: &mut (impl AsyncWrite + Unpin),
        section: &[u8],
    ) -> Result<(), BodyError> {
        let Some(passes) = self.trailers else { return self.write(reader, writer, section).await };
        let mut passing = Passing::new(section);
        while !passing.is_done() {
            let taken = poll_fn(|cx| match passing.next(passes) {
                Some(bytes) => Pin::new(&mut *writer).poll_write(cx, bytes).map_err(BodyError::Write),
                None => Poll::Ready(Err(BodyError::Barred)),
            });
            let taken = tokio::select! {
                biased;
                taken = taken => taken?,
                error = reader.failed() => return Err(BodyError::Read(error)),
            };
            if taken == 0 {
                return Err(BodyError::Write(io::ErrorKind::WriteZero.into()));
            }
            passing.took(taken);
        }
        Ok(())
    }

    async fn write(
        &self,
        reader: &impl Sender,
        writer: &mut (impl AsyncWrite + Unpin),
        bytes: &[u8],
    ) -> Result<(), BodyError> {
        if self.needs_sender {
            Ok(write_from(reader, writer, bytes).await?)
        } else {
            writer.write_all(bytes).await.map_err(BodyError::Write)
        }
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        // What is given up does not wait.
        if let Some(pace) = self.pace {
            pace.give_up(&mut self.turn);
        }
    }
}

/// Reads until `buffer` begins with a complete trailer section, and returns its length.
async fn read_trailers(reader: &mut (impl AsyncRead + Unpin), buffer: &mut Buffer) -> Result<usize, BodyError> {
    let mut scanner = HeadScanner::default();
    loop {
        match scanner.scan(buffer.filled()) {
            HeadEnd::At(length) if length <= MAX_TRAILERS => return Ok(length),
            HeadEnd::Partial if buffer.len() < MAX_TRAILERS => {}
            _ => return Err(TrailerError.into()),
        }
        if fill(reader, buffer, MAX_TRAILERS * 2).await.map_err(BodyError::Read)? == 0 {
            return Err(BodyError::Truncated);
        }
    }
}

#[cfg(test)]
mod tests;
