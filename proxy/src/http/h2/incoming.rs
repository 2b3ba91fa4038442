//! The body of a message as it comes, and what of it was taken out of `h2` before it could go on: nobody would count it there.

use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

use super::handle::Handle;
use super::queue::charge_of;
use crate::tenant::{Charged, Payer};

/// Most bytes of what was gathered that go on in one piece: what a frame has.
const PIECE: usize = 16 * 1024;

/// What is still to come of a message.
#[derive(Debug)]
pub(super) struct Incoming {
    stream: Handle<RecvStream>,
    gathered: Option<Box<Gathered>>,
}

/// What came before it could go on. In one piece, so that it takes as much however small it came.
#[derive(Debug)]
struct Gathered {
    body: BytesMut,
    trailers: Option<HeaderMap>,
    charge: Charged,
}

impl Incoming {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream: Handle::new(stream), gathered: None }
    }

    /// Takes out what comes, on the account of `payer`, until this is dropped. The windows stay as they are. Ends only with
    /// the error of the stream.
    pub(super) async fn gather(&mut self, payer: &Rc<Payer>) -> h2::Error {
        loop {
            tollgate_schedule::rest().await;
            match poll_fn(|cx| self.stream.poll_data(cx)).await {
                Some(Ok(chunk)) => {
                    let gathered = self.gathered(payer);
                    gathered.body.extend_from_slice(&chunk);
                    gathered.count();
                }
                Some(Err(error)) => return error,
                None => break,
            }
        }
        match self.stream.trailers().await {
            Ok(Some(trailers)) => {
                let gathered = self.gathered(payer);
                gathered.trailers = Some(trailers);
                gathered.count();
                pending().await
            }
            Ok(None) => pending().await,
            Err(error) => error,
        }
    }

    fn gathered(&mut self, payer: &Rc<Payer>) -> &mut Gathered {
        self.gathered.get_or_insert_with(|| {
            Box::new(Gathered { body: BytesMut::new(), trailers: None, charge: payer.hold_for_a_while(0) })
        })
    }

    /// The next piece of the body; `None` before trailers and at the end.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(gathered) = &mut self.gathered {
            if !gathered.body.is_empty() {
                let piece = gathered.body.split_to(gathered.body.len().min(PIECE)).freeze();
                gathered.count();
                return Poll::Ready(Some(Ok(piece)));
            }
            if gathered.trailers.is_none() {
                self.gathered = None;
            }
        }
        self.stream.poll_data(cx)
    }

    /// Whether neither data nor trailers follow.
    pub(super) fn is_end_stream(&self) -> bool {
        let is_empty = |gathered: &Gathered| gathered.body.is_empty() && gathered.trailers.is_none();
        self.gathered.as_deref().is_none_or(is_empty) && self.stream.is_end_stream()
    }

    /// Lets the sender send so many bytes more.
    pub(super) fn release(&mut self, bytes: usize) {
        // Fails only if the stream has ended, which the next read reports.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }

    /// The trailers, to be asked for when the body has ended.
    ///
    /// # Errors
    /// The stream was reset, or its connection failed.
    pub(super) async fn trailers(&mut self) -> Result<Option<HeaderMap>, h2::Error> {
        match self.gathered.take().and_then(|gathered| gathered.trailers) {
            Some(trailers) => Ok(Some(trailers)),
            None => self.stream.trailers().await,
        }
    }
}

impl Gathered {
    /// Charges what is there.
    fn count(&mut self) {
        let trailers = self.trailers.as_ref().map_or(0, charge_of);
        self.charge.set(self.body.capacity() + trailers);
    }
}
