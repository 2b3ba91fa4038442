//! The answer to one HTTP/1 request, from the upstream to the client.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::body::{BodyError, Cursor, Relay};
use super::buffer::Buffer;
use super::chunked::ChunkScanner;
use super::decide::Forward;
use super::exchange::{Completed, ExchangeError, Progress};
use super::head::{HeadEnd, HeadScanner, MAX_HEAD};
use super::request::Version;
use super::response::{MAX_INTERIM, ResponseBody, ResponseError, ResponseHead, each_field, with_close};
use super::websocket::WebSocketKey;
use crate::flow::Meter;
use crate::http::retry::Failure;
use crate::listener::connection::Connection;
use crate::tcp::{Sender, fill};
use crate::tenant::Turn;

/// Reads the answer and forwards it.
pub(super) struct Answering<'a> {
    pub(super) connection: &'a Connection,
    pub(super) forward: &'a Forward,
    pub(super) progress: &'a Progress,
}

impl Answering<'_> {
    /// Until its end.
    ///
    /// # Errors
    /// There is none, or it must not be forwarded, or another try follows, or the client takes no more.
    pub(super) async fn run(
        &self,
        reader: &mut impl Sender,
        buffer: &mut Buffer,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Completed, ExchangeError> {
        let mut interim = 0;
        let (head, length) = loop {
            let length = read_head(reader, buffer).await?;
            let head = ResponseHead::parse(&buffer.filled()[..length], self.forward.to_head)?;
            if !head.is_interim() {
                break (head, length);
            }
            self.progress.continued.set(self.progress.continued.get() || head.status == 100);
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(ResponseError::TooManyInterim.into());
            }
            // HTTP/1.0 knows no interim responses (RFC 9110 section 15.2).
            if self.forward.version == Version::Http11 {
                self.progress.interim.set(true);
                writer.write_all(&buffer.filled()[..length]).await.map_err(ExchangeError::Downstream)?;
            }
            buffer.consume(length);
        };
        if self.forward.retries.may_follow(Failure::Status(head.status), self.progress.told()) {
            return Err(ExchangeError::ServerError(head.status));
        }
        if head.status == 101 {
            let accepts = |key: &WebSocketKey| key.is_accepted_by(&buffer.filled()[..length]);
            if !self.forward.websocket.as_ref().is_some_and(accepts) {
                return Err(ResponseError::UnexpectedUpgrade.into());
            }
            self.progress.status.set(101);
            self.log(101, &buffer.filled()[..length]);
            writer.write_all(&buffer.filled()[..length]).await.map_err(ExchangeError::Downstream)?;
            buffer.consume(length);
            return Ok(Completed::Tunnel);
        }
        self.forward_final(&head, length, reader, buffer, writer).await
    }

    fn log(&self, status: u16, head: &[u8]) {
        self.forward.flow.log_response(status, |log| each_field(head, |name, value| log.push(name, value)));
    }

    async fn forward_final(
        &self,
        head: &ResponseHead,
        length: usize,
        reader: &mut impl Sender,
        buffer: &mut Buffer,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Completed, ExchangeError> {
        let cursor = match head.body {
            ResponseBody::None => Cursor::Done,
            ResponseBody::Length(length) => Cursor::Length(length),
            ResponseBody::Chunked => Cursor::Chunked(ChunkScanner::response()),
            ResponseBody::UntilClose => Cursor::UntilClose,
        };
        let pace = Some(self.progress.pace(self.connection));
        let (meter, turn) = (Meter::Down(&self.forward.flow), Turn::default());
        let mut relay = Relay { cursor, trailers: None, meter, needs_sender: false, pace, turn };
        let ending = self.connection.is_ending() || self.connection.is_short_of_memory();
        // What came with the head goes out with it, unless it may have to wait.
        let came = if relay.is_paced() { &[] } else { &buffer.filled()[length..] };
        let body = relay.cursor.advance(came).map_err(|error| ExchangeError::ResponseBody(error.into()))?;
        self.progress.status.set(head.status);
        self.log(head.status, &buffer.filled()[..length]);
        if ending && !head.close {
            let edited = with_close(&buffer.filled()[..length]);
            let _held = self.connection.payer.hold_for_a_while(edited.capacity()); // until the client takes it
            writer.write_all(&edited).await.map_err(ExchangeError::Downstream)?;
            writer.write_all(&buffer.filled()[length..length + body]).await.map_err(ExchangeError::Downstream)?;
        } else {
            writer.write_all(&buffer.filled()[..length + body]).await.map_err(ExchangeError::Downstream)?;
        }
        buffer.consume(length + body);
        relay.meter.add(body);
        if !relay.cursor.is_done() {
            relay.run(reader, buffer, writer).await.map_err(|error| match error {
                BodyError::Write(error) => ExchangeError::Downstream(error),
                error => ExchangeError::ResponseBody(error),
            })?;
        }
        let persistent = self.forward.version == Version::Http11 || head.keep_alive;
        let close = head.close || self.forward.close || ending || !persistent;
        Ok(if close { Completed::Close } else { Completed::KeepAlive })
    }
}

/// Reads until `buffer` begins with a complete response head, and returns its length.
async fn read_head(reader: &mut (impl AsyncRead + Unpin), buffer: &mut Buffer) -> Result<usize, ExchangeError> {
    let mut scanner = HeadScanner::default();
    loop {
        match scanner.scan(buffer.filled()) {
            HeadEnd::At(length) => return Ok(length),
            HeadEnd::Partial => {}
            HeadEnd::BareLineFeed => return Err(ResponseError::BareLineFeed.into()),
            HeadEnd::TooLong { .. } => return Err(ResponseError::TooLong.into()),
        }
        match fill(reader, buffer, MAX_HEAD).await {
            Ok(0) | Err(_) => return Err(ExchangeError::NoResponse),
            Ok(_) => {}
        }
    }
}
