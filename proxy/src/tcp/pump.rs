//! Moves bytes between two sockets, each direction on its own, with half-close and back-pressure.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tollgate_schedule::poll_slice;

use super::sender::{Sender, Unwritten, wait_for_turn, write_from};
use crate::flow::{Meter, OpenFlow};
use crate::http::Buffer;
use crate::reason::Reason;
use crate::tenant::{Pace, Turn};

/// Most bytes held per direction: one read, written before the next.
const WINDOW: usize = 16 * 1024;

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Both directions ended in order.
    Both,
    /// The client reset, or could not be written to.
    DownstreamReset,
    /// The upstream reset, or could not be written to.
    UpstreamReset,
    /// It may no longer go on, for this reason.
    Revoked(Reason),
    /// The process ends.
    Stopped,
    /// A time limit was exceeded.
    TimedOut(Reason),
}

/// Reads once into `buffer`'s spare room; 0 at the end of the stream or when the buffer holds `limit` bytes. While nothing
/// is there to read, an empty buffer owns no memory. A sender that is fast enough would be read from for ever: when the task's
/// slice is spent, this goes on in a later poll.
pub(crate) async fn fill(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut Buffer,
    limit: usize,
) -> io::Result<usize> {
    poll_fn(|context| {
        if poll_slice(context).is_pending() {
            buffer.release();
            return Poll::Pending;
        }
        let mut spare = ReadBuf::new(buffer.spare(limit));
        match Pin::new(&mut *reader).poll_read(context, &mut spare) {
            Poll::Ready(Ok(())) => {
                let n = spare.filled().len();
                buffer.filled_more(n);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                buffer.release();
                Poll::Pending
            }
        }
    })
    .await
}

/// Relays both directions until both have ended or one has failed, at this pace. What moves is counted for `flow` when it does. The
/// buffers hold what was read already.
pub(crate) async fn pump_both(
    pace: Pace<'_>,
    flow: &OpenFlow,
    downstream: &mut TcpStream,
    from_downstream: Buffer,
    upstream: &mut TcpStream,
    from_upstream: Buffer,
) -> Ended {
    let (mut downstream_reader, downstream_writer) = downstream.split();
    let (mut upstream_reader, upstream_writer) = upstream.split();
    let up_ended = Cell::new(false);
    let up = async {
        match pump(&mut downstream_reader, from_downstream, upstream_writer, Meter::Up(flow), pace).await {
            Ok(()) => {
                up_ended.set(true);
                // A client that has ended its side may still reset, and the upstream may have nothing to say.
                downstream_reader.failed().await;
                Ended::DownstreamReset
            }
            Err(Unwritten::Sender(_)) => Ended::DownstreamReset,
            Err(Unwritten::Receiver(_)) => Ended::UpstreamReset,
        }
    };
    let down = async {
        let moved = pump(&mut upstream_reader, from_upstream, downstream_writer, Meter::Down(flow), pace).await;
        moved.map_err(|failed| match failed {
            Unwritten::Sender(_) => Ended::UpstreamReset,
            Unwritten::Receiver(_) => Ended::DownstreamReset,
        })
    };
    tokio::pin!(up);
    tokio::select! {
        biased;
        ended = &mut up => return ended,
        down = down => if let Err(ended) = down {
            return ended;
        },
    }
    poll_fn(|context| match up.as_mut().poll(context) {
        Poll::Ready(ended) => Poll::Ready(ended),
        Poll::Pending if up_ended.get() => Poll::Ready(Ended::Both),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// One direction, to its orderly end, which is passed on as a half-close.
async fn pump(
    reader: &mut impl Sender,
    mut buffer: Buffer,
    mut writer: impl AsyncWrite + Unpin,
    meter: Meter<'_>,
    pace: Pace<'_>,
) -> Result<(), Unwritten> {
    let mut turn = Turn::default();
    loop {
        while !buffer.is_empty() {
            let piece = buffer.len().min(pace.piece());
            wait_for_turn(pace, &mut turn, piece, reader).await?;
            write_from(reader, &mut writer, &buffer.filled()[..piece]).await?;
            meter.add(piece);
            buffer.consume(piece);
        }
        if fill(reader, &mut buffer, WINDOW).await.map_err(Unwritten::Sender)? == 0 {
            // Fails only when the peer is gone, which the other direction reports.
            let _ = writer.shutdown().await;
            return Ok(());
        }
    }
}
