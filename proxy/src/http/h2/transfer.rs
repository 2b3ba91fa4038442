//! Moves the body and trailers of one stream from one connection to the other, at the pace of the slower one.

use std::cell::Cell;
use std::future::poll_fn;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderName;

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

/// Moves everything that is left of `from`, its end included, without the trailer fields that are to be `dropped`. `came` is
/// told the size of each piece as it was sent. What can be sent again is `kept`.
pub(super) async fn transfer(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    count: &Cell<u64>,
    came: impl Fn(usize),
    dropped: impl Fn(&HeaderName) -> bool,
    kept: Option<&Retries>,
) -> Result<(), TransferError> {
    loop {
        tollgate_schedule::rest().await;
        let chunk = tokio::select! {
            biased;
            chunk = from.data() => chunk,
            () = reset(to) => return Err(TransferError::Sink),
        };
        match chunk {
            Some(Ok(chunk)) => {
                came(chunk.len());
                // The end goes out with the last bytes where they came together: no frame of its own for it.
                let last = from.is_end_stream();
                if let Some(kept) = kept {
                    kept.keep(&chunk, last);
                }
                let total = chunk.len();
                send(to, chunk, last, count).await?;
                // Only now may the sender send so much more. Fails only if the stream has ended, which the next read reports.
                let _ = from.flow_control().release_capacity(total);
                if last {
                    return Ok(());
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
            to.send_trailers(trailers)
        }
        Ok(None) => {
            if let Some(kept) = kept {
                kept.keep(b"", true);
            }
            to.send_data(Bytes::new(), true)
        }
        Err(error) => return Err(TransferError::Source(reset_code(&error))),
    }
    .map_err(|_| TransferError::Sink)
}

/// Sends one chunk, the `last` one with the end of the stream, as the receiver's window allows.
pub(super) async fn send(
    to: &mut SendStream<Bytes>,
    mut chunk: Bytes,
    last: bool,
    count: &Cell<u64>,
) -> Result<(), TransferError> {
    let broken = |_: h2::Error| TransferError::Sink;
    if chunk.is_empty() && last {
        return to.send_data(chunk, true).map_err(broken);
    }
    while !chunk.is_empty() {
        to.reserve_capacity(chunk.len());
        let capacity = match poll_fn(|cx| to.poll_capacity(cx)).await {
            Some(Ok(capacity)) => capacity,
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(TransferError::Sink),
        };
        let part = chunk.split_to(capacity.min(chunk.len()));
        count.set(count.get() + part.len() as u64);
        to.send_data(part, last && chunk.is_empty()).map_err(broken)?;
    }
    Ok(())
}

/// Waits until the receiver resets the stream.
async fn reset(to: &mut SendStream<Bytes>) {
    // An error means that the connection is gone, which ends the stream as well.
    let _ = poll_fn(|cx| to.poll_reset(cx)).await;
}
