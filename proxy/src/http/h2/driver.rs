//! Drives one upstream HTTP/2 connection to its end, and knows what of it has not left the process yet.

use std::cell::{Cell, RefCell};
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
use super::opened::Opened;
use super::outlet::Outlet;
use super::queue::{Piece, Way};
use super::table::ChargedTable;
use crate::listener::connection::Connection;
use crate::tenant::{Charged, Payer};

/// How long a connection that nobody uses any more may take to send the rest, such as resets and GOAWAY.
const GRACE: Duration = Duration::from_secs(1);
/// Requests given up before they left, on one connection. `h2` keeps the head of each until it was sent.
const MAX_ABANDONED: usize = 32;

/// What an upstream connection has not sent yet, as far as it can be told from outside of `h2`. The heads of requests leave in the
/// order of their streams: what is beyond the last that has been opened waits, be it for the socket or for the upstream to take more streams.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    outlet: Rc<Outlet>,
    /// Requests handed to `h2`.
    requests: Cell<u64>,
    /// The stream of the last one.
    queued: Cell<u32>,
    /// The last stream whose head the socket has taken.
    opened: Cell<u32>,
    /// Streams beyond that which were given up, with what `h2` keeps of them.
    abandoned: RefCell<Vec<(u32, Charged)>>,
    cut: Cell<bool>,
    cut_now: Notify,
    /// Told when more streams may be opened, or none any more.
    pub(super) turns: Notify,
}

impl Outbound {
    /// Notes that a request was handed to `h2`, on this stream.
    pub(super) fn queue(&self, stream: u32) {
        self.requests.set(self.requests.get() + 1);
        self.queued.set(stream);
    }

    /// How many there were.
    pub(super) fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Notes that a request got a reset instead of its end: so many bytes of it are kept until it has left. Too many that have not end the connection: a
    /// client could pile them up without limit while the upstream takes none.
    pub(super) fn abandon(&self, stream: u32, payer: &Rc<Payer>, bytes: usize) {
        if stream <= self.opened.get() {
            return;
        }
        let mut abandoned = self.abandoned.borrow_mut();
        abandoned.push((stream, payer.hold_for_a_while(bytes)));
        if abandoned.len() > MAX_ABANDONED {
            self.cut();
        }
    }

    /// Whether a request that was given up may still leave.
    fn has_abandoned(&self) -> bool {
        !self.abandoned.borrow().is_empty()
    }

    /// Sees to it that nothing of a request leaves from now on. What waits in `h2` cannot be taken back one by one.
    pub(super) fn revoke(&self, stream: u32) {
        if self.outlet.is_blocked() || stream > self.opened.get() {
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

    /// Notes that the socket has taken the heads of all streams up to this one.
    fn open(&self, stream: u32) {
        if self.opened.replace(stream) != stream {
            self.abandoned.borrow_mut().retain(|(abandoned, _)| *abandoned > stream);
        }
    }

    /// Whether nothing was left when `h2` had written what it could: a stream that waits to be opened keeps its trailers, too.
    fn is_written(&self) -> bool {
        !self.outlet.is_blocked() && self.queued.get() <= self.opened.get()
    }

    /// Notes that nothing of it leaves any more.
    fn end(&self) {
        // Nor does what is given up from now on.
        self.open(u32::MAX);
        self.turns.notify_waiters();
    }

    /// Its socket, and the trailers that wait for it.
    pub(super) fn outlet(&self) -> &Rc<Outlet> {
        &self.outlet
    }
}

/// The socket of an upstream connection; notes whether writes get through and which requests have, and is not read from while what came waits for a
/// client whose tenant has no more memory.
#[derive(Debug)]
pub(super) struct UpstreamSocket {
    stream: TcpStream,
    outbound: Rc<Outbound>,
    /// What waits for the client.
    down: Rc<Way>,
    frames: Frames,
    table: ChargedTable,
    opened: Opened,
}

impl UpstreamSocket {
    pub(super) fn new(stream: TcpStream, outbound: &Rc<Outbound>, down: &Rc<Way>, payer: &Rc<Payer>) -> Self {
        let (outbound, down) = (Rc::clone(outbound), Rc::clone(down));
        let (frames, table) = (Frames::of_server(), ChargedTable::new(payer));
        Self { stream, outbound, down, frames, table, opened: Opened::default() }
    }

    /// Writes `slices` with `write`, unless the task's slice of time is spent: what waits for its next poll has not left either.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let _work = mark(Work::Io);
        let written = match poll_slice(cx) {
            Poll::Ready(()) => write(Pin::new(&mut self.stream), cx),
            Poll::Pending => Poll::Pending,
        };
        self.outbound.outlet.wrote(&written);
        if let Poll::Ready(Ok(mut taken)) = written {
            for slice in slices {
                let n = taken.min(slice.len());
                self.outbound.open(self.opened.follow(&slice[..n]));
                taken -= n;
            }
        }
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
        self.write(cx, &[io::IoSlice::new(bytes)], |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, slices, |stream, cx| stream.poll_write_vectored(cx, slices))
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
/// What waits for it is `up`, and for its client, the `downstream` one, `down`.
pub(super) async fn drive(
    mut connection: client::Connection<UpstreamSocket, Piece>,
    outbound: Rc<Outbound>,
    downstream: Rc<Connection>,
    (up, down): (Rc<Way>, Rc<Way>),
    in_use: oneshot::Receiver<Infallible>,
) {
    let mut room = connection.max_concurrent_send_streams();
    let changed = Cell::new(false);
    let forbidden = async {
        let (changes, mut moment) = (downstream.subscribe(), downstream.moment());
        loop {
            downstream.changed_since(&changes).await;
            if std::mem::replace(&mut moment, downstream.moment()) != moment {
                // Nobody waits any more for what was given up, so nobody judges it again.
                if outbound.has_abandoned() {
                    break outbound.cut();
                }
                changed.set(true);
            }
        }
    };
    let driven = poll_fn(|cx| {
        if changed.take() {
            // The tasks of its streams were woken by the change as well: nothing goes before they have judged what waits here.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        down.polled_again();
        let ended = {
            let _work = mark(Work::Http);
            Pin::new(&mut connection).poll(cx)
        };
        if outbound.is_written() {
            up.flushed(&outbound.outlet);
        }
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
        () = forbidden => {}
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
    outbound.end();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::channel;
    use crate::metrics::Metrics;
    use crate::tenant::{Settings, TenantId};

    #[test]
    fn requests_given_up_count_until_they_have_left() {
        let (_, workers) = Metrics::new(1);
        let (mut senders, _consumer) = channel(workers, 8);
        let payer = Payer::accept(&Rc::new(senders.remove(0)), &Rc::default(), TenantId::UNKNOWN, &Settings::default());
        let before = payer.memory();
        let held = || payer.memory() - before;
        let outbound = Outbound::default();
        let streams: Vec<u32> = (0..).step_by(2).map(|n| n + 1).take(MAX_ABANDONED + 2).collect();
        streams.iter().for_each(|stream| outbound.queue(*stream));
        outbound.open(streams[0]);
        // All that there is room for, the last ones first.
        streams.iter().skip(2).rev().for_each(|stream| outbound.abandon(*stream, &payer, 100));
        outbound.abandon(streams[0], &payer, 100);
        assert_eq!((outbound.is_cut(), held()), (false, 100 * MAX_ABANDONED as u64), "what has left does not count");
        assert!(!outbound.is_written(), "the socket has taken what it was given, not what waits to be opened");
        outbound.open(streams[2]);
        assert_eq!(held(), 100 * (MAX_ABANDONED - 1) as u64);
        for (stream, is_cut) in [(101, false), (103, true)] {
            outbound.abandon(stream, &payer, 100);
            assert_eq!(outbound.is_cut(), is_cut);
        }
        outbound.end();
        outbound.abandon(105, &payer, 100);
        assert_eq!(held(), 0);
    }

    #[test]
    fn all_has_left_once_all_streams_are_opened() {
        let outbound = Outbound::default();
        outbound.queue(1);
        assert!(!outbound.is_written());
        outbound.open(1);
        assert!(outbound.is_written());
        outbound.outlet.wrote(&Poll::<()>::Pending);
        assert!(!outbound.is_written());
    }

    #[test]
    fn revocation_cuts_what_has_not_left() {
        let outbound = Outbound::default();
        outbound.queue(1);
        outbound.open(1);
        outbound.revoke(1);
        assert!(!outbound.is_cut());
        outbound.queue(3);
        outbound.revoke(3);
        assert!(outbound.is_cut(), "the head is still queued");

        let outbound = Outbound::default();
        outbound.queue(1);
        outbound.open(1);
        outbound.outlet.wrote(&Poll::<()>::Pending);
        outbound.revoke(1);
        assert!(outbound.is_cut(), "its body may be what is blocked");
    }
}
