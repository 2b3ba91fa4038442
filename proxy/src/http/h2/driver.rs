//! Drives one upstream HTTP/2 connection to its end, and knows what of it has not left the process yet.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::client;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tollgate_schedule::{Work, mark, poll_slice};

use super::frames::Frames;
use super::outlet::Outlet;
use super::queue::{Piece, Way};
use super::table::ChargedTable;
use crate::tenant::Payer;

/// How long a connection that nobody uses any more may take to send the rest, such as resets and GOAWAY.
const GRACE: Duration = Duration::from_secs(1);
/// Requests given up before they left, on one connection. `h2` keeps the head of each until it was sent.
const MAX_ABANDONED: u32 = 32;

/// What an upstream connection has not sent yet, as far as it can be told from outside of `h2`. Requests leave in the
/// order of their numbers, from 1.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    outlet: Rc<Outlet>,
    /// Requests handed to `h2`.
    queued: Cell<u64>,
    /// Of these, the ones that have left for certain.
    left: Cell<u64>,
    /// Of the others, those given up.
    abandoned: Cell<u32>,
    cut: Cell<bool>,
    cut_now: Notify,
    /// Told when more streams may be opened, or none any more.
    pub(super) turns: Notify,
}

impl Outbound {
    /// The number of the next request.
    pub(super) fn queue(&self) -> u64 {
        self.queued.set(self.queued.get() + 1);
        self.queued.get()
    }

    /// How many there were.
    pub(super) fn requests(&self) -> u64 {
        self.queued.get()
    }

    /// Notes that a request got a reset instead of its end. Too many that have not left end the connection: a client
    /// could pile them up without limit while the upstream does not read.
    pub(super) fn abandon(&self, request: u64) {
        if request > self.left.get() {
            self.abandoned.set(self.abandoned.get() + 1);
        }
        if self.abandoned.get() > MAX_ABANDONED {
            self.cut();
        }
    }

    /// Sees to it that nothing of a request leaves from now on. What waits in `h2` cannot be taken back one by one.
    pub(super) fn revoke(&self, request: u64) {
        if self.outlet.is_blocked() || request > self.left.get() {
            self.cut();
        }
    }

    /// Ends the connection with a reset, without sending anything more.
    pub(super) fn cut(&self) {
        self.cut.set(true);
        self.cut_now.notify_one();
    }

    /// Whether it has been ended.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Notes that `h2` has written what it could.
    fn written(&self) {
        if !self.outlet.is_blocked() {
            self.left.set(self.queued.get());
            self.abandoned.set(0);
        }
    }

    /// Its socket, and the trailers that wait for it.
    pub(super) fn outlet(&self) -> &Rc<Outlet> {
        &self.outlet
    }
}

/// The socket of an upstream connection; notes whether writes get through, and is not read from while what came waits for a
/// client whose tenant has no more memory.
#[derive(Debug)]
pub(super) struct UpstreamSocket {
    stream: TcpStream,
    outbound: Rc<Outbound>,
    /// What waits for the client.
    down: Rc<Way>,
    frames: Frames,
    table: ChargedTable,
}

impl UpstreamSocket {
    pub(super) fn new(stream: TcpStream, outbound: &Rc<Outbound>, down: &Rc<Way>, payer: &Rc<Payer>) -> Self {
        let (outbound, down) = (Rc::clone(outbound), Rc::clone(down));
        Self { stream, outbound, down, frames: Frames::of_server(), table: ChargedTable::new(payer) }
    }

    /// Writes with `write`, unless the task's slice of time is spent: what waits for its next poll has not left either.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let _work = mark(Work::Io);
        let written = match poll_slice(cx) {
            Poll::Ready(()) => write(Pin::new(&mut self.stream), cx),
            Poll::Pending => Poll::Pending,
        };
        self.outbound.outlet.wrote(&written);
        written
    }
}

impl Drop for UpstreamSocket {
    fn drop(&mut self) {
        if self.outbound.is_cut() {
            // Also what the kernel holds is not to be sent. It fails only if the connection is gone already.
            let _ = tollgate_net::reset_on_close(&self.stream);
        }
    }
}

impl AsyncRead for UpstreamSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.down.poll_room(cx));
        ready!(self.down.poll_read_ahead(cx));
        ready!(poll_slice(cx));
        let before = out.filled().len();
        {
            let _work = mark(Work::Io);
            ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        }
        let Self { frames, table, .. } = &mut *self;
        let followed = frames.follow(&out.filled()[before..], |seen| {
            table.see(seen);
            true
        });
        self.down.read(followed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpstreamSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Drives the connection until it ends, is cut, or has been out of use for [`GRACE`]; `in_use` ends with its last user.
/// What waits for it is `up`, and for its client `down`.
pub(super) async fn drive(
    mut connection: client::Connection<UpstreamSocket, Piece>,
    outbound: Rc<Outbound>,
    (up, down): (Rc<Way>, Rc<Way>),
    in_use: oneshot::Receiver<Infallible>,
) {
    let mut room = connection.max_concurrent_send_streams();
    let driven = poll_fn(|cx| {
        down.polled_again();
        let ended = {
            let _work = mark(Work::Http);
            Pin::new(&mut connection).poll(cx)
        };
        outbound.written();
        up.written(&outbound.outlet);
        if std::mem::replace(&mut room, connection.max_concurrent_send_streams()) != room {
            outbound.turns.notify_waiters();
        }
        ended
    });
    let out_of_use = async {
        let _ = in_use.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        // Before anything else is written.
        biased;
        () = outbound.cut_now.notified() => {}
        result = driven => {
            // Streams see the error themselves; nobody else waits for it.
            if let Err(error) = result {
                tracing::debug!(%error, "upstream HTTP/2 connection ended");
            }
        }
        () = out_of_use => {}
    }
    drop(connection);
    up.flushed(&outbound.outlet);
    outbound.turns.notify_waiters();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_given_up_count_until_they_have_left() {
        let outbound = Outbound::default();
        let sent = outbound.queue();
        outbound.written();
        outbound.outlet.wrote(&Poll::<()>::Pending);
        for _ in 0..MAX_ABANDONED {
            outbound.abandon(sent);
            let waiting = outbound.queue();
            outbound.written();
            outbound.abandon(waiting);
        }
        assert!(!outbound.is_cut(), "what has left does not count");
        outbound.outlet.wrote(&Poll::Ready(()));
        outbound.written();
        outbound.outlet.wrote(&Poll::<()>::Pending);
        for _ in 0..MAX_ABANDONED {
            outbound.abandon(outbound.queue());
        }
        assert!(!outbound.is_cut());
        outbound.abandon(outbound.queue());
        assert!(outbound.is_cut());
    }

    #[test]
    fn revocation_cuts_what_has_not_left() {
        let outbound = Outbound::default();
        let request = outbound.queue();
        outbound.written();
        outbound.revoke(request);
        assert!(!outbound.is_cut());
        outbound.revoke(outbound.queue());
        assert!(outbound.is_cut(), "the head is still queued");

        let outbound = Outbound::default();
        let request = outbound.queue();
        outbound.written();
        outbound.outlet.wrote(&Poll::<()>::Pending);
        outbound.revoke(request);
        assert!(outbound.is_cut(), "its body may be what is blocked");
    }
}
