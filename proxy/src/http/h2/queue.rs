//! What of the messages of a connection is in `h2`: charged from when it is handed over until it is written, or dropped with
//! its stream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use h2::SendStream;
use http::{HeaderMap, HeaderName};

use super::outlet::Outlet;
use super::request::size_of_fields;
use crate::fault;
use crate::tenant::{Charged, MemoryStep, Payer};
use crate::worker::Worker;

/// Bytes queued for a peer that does not read, per stream, while its tenant has room.
const MOST: usize = 64 * 1024;
/// The same when its tenant runs out of memory.
const LEAST: usize = 4 * 1024;
/// What a connection may have queued before its tenant's memory matters: enough to go on with.
const EASY: usize = 16 * 1024;
/// What `h2` needs for each piece. Measured.
const PIECE: usize = 384;
/// Bytes from which a piece keeps what `h2` has read it into, which takes 8 KiB, or as much as the largest frame that it was
/// made for.
const SMALL: usize = 8 * 1024;
/// Bytes of heads and trailers that a connection may have queued for a peer that does not read.
const HEADS: usize = 256 * 1024;
/// Bytes that are read ahead in one poll. What was read counts when its streams have passed it on, so they have to come to it before
/// more is read, also where one poll could read all that a peer may send.
const AHEAD: usize = 64 * 1024;
/// What `h2` keeps of a stream whose task has ended, beside the head: one that was answered without being passed on, until that has left. Measured.
/// One that was given up before it was opened takes no more.
pub(super) const QUEUED: usize = 13 * 256;

/// One direction of a connection: all its streams together.
#[derive(Debug)]
pub(super) struct Way {
    payer: Rc<Payer>,
    worker: Rc<Worker>,
    held: Cell<usize>,
    /// Of that, heads and trailers: of each outlet of this way, or what is left of it.
    heads: Cell<usize>,
    /// Where answers leave. Each connection to an upstream has its own, with its [`Outbound`].
    client: Rc<Outlet>,
    /// Bytes read for this way in the present poll of whoever reads them.
    read: Cell<usize>,
    /// Whoever reads requests whose answers are queued here, while the client takes none.
    asking: RefCell<Option<Waker>>,
    /// When that was last put on the list of those that wait for memory.
    asking_listed: Cell<Option<u64>>,
    /// Whoever reads what is queued here, while it may not go on.
    reader: RefCell<Option<Waker>>,
    /// When it was last put on the list of those that wait for memory.
    listed: Cell<Option<u64>>,
}

impl Way {
    pub(super) fn new(payer: &Rc<Payer>, worker: &Rc<Worker>) -> Rc<Self> {
        Rc::new(Self {
            payer: Rc::clone(payer),
            worker: Rc::clone(worker),
            held: Cell::default(),
            heads: Cell::default(),
            client: Rc::default(),
            read: Cell::default(),
            asking: RefCell::default(),
            asking_listed: Cell::default(),
            reader: RefCell::default(),
            listed: Cell::default(),
        })
    }

    /// Whether so much is queued that nothing more is read for it, as little memory as its tenant has left.
    pub(super) fn is_full(&self) -> bool {
        let held = self.held.get();
        self.has_many_heads()
            || held > EASY
                && match self.payer.memory_step() {
                    MemoryStep::Free => false,
                    MemoryStep::HoldBack => held > MOST,
                    MemoryStep::Shrink | MemoryStep::Refuse => true,
                }
    }

    fn has_many_heads(&self) -> bool {
        self.heads.get() > HEADS
    }

    /// Waits while it is full.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_full() {
            return Poll::Ready(());
        }
        *self.reader.borrow_mut() = Some(cx.waker().clone());
        // What others let go of makes no room for heads.
        if !self.has_many_heads() {
            self.wait(&self.listed, cx.waker());
        }
        Poll::Pending
    }

    /// Waits while the client takes none of many heads that answer its requests: each further one would add to them. With little
    /// memory, few are many.
    pub(super) fn poll_answers_taken(&self, cx: &mut Context<'_>) -> Poll<()> {
        let little = || self.heads.get() > EASY && self.payer.memory_step() >= MemoryStep::Shrink;
        if !self.client.is_blocked() || !(self.has_many_heads() || little()) {
            return Poll::Ready(());
        }
        *self.asking.borrow_mut() = Some(cx.waker().clone());
        // What others let go of makes room as well, but not for many heads.
        if !self.has_many_heads() {
            self.wait(&self.asking_listed, cx.waker());
        }
        Poll::Pending
    }

    /// Waits for the next poll when enough was read in this one. Streams are woken by what was read for them, and have their turn first.
    pub(super) fn poll_read_ahead(&self, cx: &Context<'_>) -> Poll<()> {
        if self.read.get() < AHEAD {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Notes that so much was read.
    pub(super) fn read(&self, bytes: usize) {
        self.read.set(self.read.get() + bytes);
    }

    /// To be called when whoever reads is polled again.
    pub(super) fn polled_again(&self) {
        self.read.set(0);
    }

    /// Notes that an answer of our own was queued, with a body of so many bytes; or a reset, which has no fields.
    pub(super) fn queue_answer(&self, fields: &HeaderMap, body: usize) {
        self.queue_head(QUEUED + charge_of(fields) + body, &mut Ahead::default());
    }

    /// Notes that a head was queued that [counts](charge_of) so much, with those `ahead` of the same body.
    pub(super) fn queue_head(&self, bytes: usize, ahead: &mut Ahead) {
        let flushes = self.client.flushes();
        if ahead.flushes != flushes {
            *ahead = Ahead { flushes, bytes: 0 };
        }
        ahead.bytes += bytes;
        self.queue_on(&self.client, bytes);
        self.take(bytes);
    }

    /// Bytes that are held already leave with the heads of this outlet.
    fn queue_on(&self, outlet: &Outlet, bytes: usize) {
        outlet.queue(bytes);
        self.heads.set(self.heads.get() + bytes);
    }

    /// Where answers leave.
    pub(super) fn client(&self) -> &Rc<Outlet> {
        &self.client
    }

    /// To be called when `h2` has written what it could there.
    pub(super) fn written(&self, outlet: &Outlet) {
        if !outlet.is_blocked() {
            self.flushed(outlet);
        }
    }

    /// To be called when no head can be left in `h2` of the connection that has this outlet.
    pub(super) fn flushed(&self, outlet: &Outlet) {
        let heads = outlet.flush();
        if heads > 0 {
            self.let_go_of_heads(heads);
        }
    }

    fn let_go_of_heads(&self, bytes: usize) {
        let were_many = self.has_many_heads();
        self.heads.set(self.heads.get().saturating_sub(bytes));
        self.give_back(bytes);
        self.asking.take().into_iter().for_each(Waker::wake);
        if were_many && !self.has_many_heads() {
            // It looks itself whether there is room otherwise.
            self.reader.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Has a task woken after the next look at memory, once.
    fn wait(&self, listed: &Cell<Option<u64>>, waker: &Waker) {
        let list = &self.worker.held_back;
        if listed.replace(Some(list.round())) != Some(list.round()) {
            list.add(waker);
            self.worker.room().wait();
        }
    }

    fn take(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        self.payer.hold(bytes);
    }

    fn give_back(&self, bytes: usize) {
        self.payer.let_go(bytes);
        self.held.set(self.held.get().saturating_sub(bytes));
        if self.reader.borrow().is_some() && !self.is_full() {
            let reader = self.reader.take();
            reader.into_iter().for_each(Waker::wake);
        }
    }
}

/// Bytes of heads that a stream has queued before its body, unless the socket has taken all there was since.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ahead {
    flushes: u64,
    bytes: usize,
}

/// Bytes that a head or trailers count as while they are queued.
pub(super) fn charge_of(fields: &HeaderMap) -> usize {
    size_of_fields(fields) + PIECE
}

/// What one stream has queued, one way.
#[derive(Debug)]
pub(super) struct Queue {
    way: Rc<Way>,
    held: Cell<usize>,
    ahead: Cell<Ahead>,
    /// Bytes of trailers behind all pieces.
    trailers: Cell<usize>,
    writer: RefCell<Option<Waker>>,
    listed: Cell<Option<u64>>,
    leaving: RefCell<Option<Leaving>>,
    /// Where it leaves: the streams of one client may have several connections to upstreams.
    outlet: Rc<Outlet>,
}

/// Trailers that were queued with nothing before them.
#[derive(Debug)]
struct Leaving {
    names: Vec<HeaderName>,
    /// How often their connection had taken all there was.
    flushes: u64,
    _charge: Charged,
}

impl Queue {
    /// For a body behind the heads `ahead` of it.
    pub(super) fn new(way: &Rc<Way>, ahead: Ahead) -> Rc<Self> {
        Self::on(way, ahead, way.client())
    }

    /// For the body of a request that leaves there, behind its head.
    pub(super) fn of_request(way: &Rc<Way>, outlet: &Rc<Outlet>) -> Rc<Self> {
        Self::on(way, Ahead::default(), outlet)
    }

    fn on(way: &Rc<Way>, ahead: Ahead, outlet: &Rc<Outlet>) -> Rc<Self> {
        Rc::new(Self {
            way: Rc::clone(way),
            held: Cell::default(),
            ahead: Cell::new(ahead),
            trailers: Cell::default(),
            writer: RefCell::default(),
            listed: Cell::default(),
            leaving: RefCell::default(),
            outlet: Rc::clone(outlet),
        })
    }

    /// A piece of a body that is about to be queued. A small one is copied: else it would keep what the socket was read into,
    /// many times its size.
    pub(super) fn piece(self: &Rc<Self>, mut bytes: Bytes) -> Piece {
        if bytes.len() < SMALL {
            bytes = Bytes::copy_from_slice(&bytes);
        }
        let charged = bytes.len() + PIECE;
        self.held.set(self.held.get() + charged);
        self.way.take(charged);
        Piece { bytes, charge: Some((Rc::clone(self), charged)) }
    }

    /// Trailers that are to be queued behind all pieces.
    pub(super) fn trailers(self: &Rc<Self>, fields: HeaderMap) -> Trailers {
        let charge = charge_of(&fields);
        self.way.take(charge);
        Trailers { fields, charge, queue: Rc::clone(self) }
    }

    /// Notes that trailers were queued that [count](charge_of) so much.
    fn queue_trailers(&self, bytes: usize) {
        self.way.take(bytes);
        self.trailers.set(bytes);
        self.follow_pieces();
    }

    /// Trailers are a head like others when nothing is left before them that could wait for the peer's window.
    fn follow_pieces(&self) {
        if self.held.get() == 0 {
            self.way.queue_on(&self.outlet, self.trailers.take());
        }
    }

    /// Whether there is room for more, so that its sender may be told to go on.
    pub(super) fn has_room(&self) -> bool {
        let held = self.held.get();
        held <= LEAST || held <= MOST && !self.way.is_full()
    }

    /// Waits for that.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        self.wake_later(cx);
        // With little memory, what others let go of makes room as well.
        if self.held.get() <= MOST {
            self.way.wait(&self.listed, cx.waker());
        }
        Poll::Pending
    }

    /// Waits until nothing is left of the body, so that what comes behind it waits for no window.
    pub(super) fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.held.get() == 0 {
            return Poll::Ready(());
        }
        self.wake_later(cx);
        Poll::Pending
    }

    fn wake_later(&self, cx: &mut Context<'_>) {
        let mut writer = self.writer.borrow_mut();
        if !writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
            *writer = Some(cx.waker().clone());
        }
    }

    /// Whether a trailer that is `barred` by now has not left for certain.
    pub(super) fn may_still_hold(&self, barred: impl Fn(&HeaderName) -> bool) -> bool {
        let leaving = self.leaving.borrow();
        let leaving = leaving.as_ref().filter(|leaving| leaving.flushes == self.outlet.flushes());
        leaving.is_some_and(|leaving| leaving.names.iter().any(barred))
    }

    fn give_back(&self, bytes: usize) {
        self.held.set(self.held.get().saturating_sub(bytes));
        // They left before it.
        let ahead = self.ahead.take();
        if ahead.bytes > 0 && ahead.flushes == self.outlet.flushes() {
            self.outlet.let_go(ahead.bytes);
            self.way.let_go_of_heads(ahead.bytes);
        }
        self.follow_pieces();
        self.way.give_back(bytes);
        if self.has_room()
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
    }
}

/// Trailers that wait until all pieces before them are queued. They count until they are, or are dropped.
#[derive(Debug)]
pub(super) struct Trailers {
    fields: HeaderMap,
    charge: usize,
    queue: Rc<Queue>,
}

impl Trailers {
    /// All but those that are to be `dropped`.
    pub(super) fn without(mut self, dropped: impl Fn(&HeaderName) -> bool) -> Self {
        let names: Vec<HeaderName> = self.fields.keys().filter(|name| dropped(name)).cloned().collect();
        names.into_iter().for_each(|name| drop(self.fields.remove(name)));
        self
    }

    /// Has the queue remember them until they have left; to be queued next, with nothing before them.
    pub(super) fn followed(self) -> Self {
        let names: Vec<HeaderName> = self.fields.keys().cloned().collect();
        if !names.is_empty() {
            let way = &self.queue.way;
            let bytes = names.iter().map(|name| name.as_str().len() + size_of::<HeaderName>()).sum();
            let (flushes, charge) = (self.queue.outlet.flushes(), way.payer.hold_for_a_while(bytes));
            *self.queue.leaving.borrow_mut() = Some(Leaving { names, flushes, _charge: charge });
        }
        self
    }

    /// Queues them.
    ///
    /// # Errors
    /// The stream has ended.
    pub(super) fn send(mut self, stream: &mut SendStream<Piece>) -> Result<(), h2::Error> {
        stream.send_trailers(std::mem::take(&mut self.fields))?;
        self.queue.queue_trailers(self.charge);
        Ok(())
    }
}

impl Drop for Trailers {
    fn drop(&mut self) {
        self.queue.way.give_back(self.charge);
    }
}

/// A piece of a body, as `h2` queues it.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    charge: Option<(Rc<Queue>, usize)>,
}

impl Piece {
    /// One that costs nothing worth counting.
    pub(super) fn uncharged(bytes: Bytes) -> Self {
        Self { bytes, charge: None }
    }

    /// Bytes that are left of it.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        fault::panic_for_body(&self.bytes);
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    /// Runs inside of `h2`, under its lock of the connection: nothing here may call `h2`. Wakers only put tasks on a list.
    fn drop(&mut self) {
        if let Some((queue, charged)) = self.charge.take() {
            queue.give_back(charged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::channel;
    use crate::metrics::Metrics;
    use crate::tenant::{Settings, TenantId};
    use crate::worker::{Accounts, run_tasks};

    /// Trailers of requests of one client on two connections to upstreams.
    #[test]
    fn what_one_connection_has_written_is_no_other_ones() {
        let (_, workers) = Metrics::new(1);
        let (mut senders, _consumer) = channel(workers, 8);
        let flows = senders.remove(0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = run_tasks(&runtime, true, Accounts::for_test(), None, |groups| async move {
            let worker = Rc::new(Worker::for_test(groups, flows));
            let payer = Payer::accept(&worker.flows, &worker.lines, TenantId::UNKNOWN, &Settings::default());
            let (before, up) = (payer.memory(), Way::new(&payer, &worker));
            let outlets: [Rc<Outlet>; 2] = std::array::from_fn(|_| Rc::default());
            let queues = outlets.each_ref().map(|outlet| Queue::of_request(&up, outlet));
            // The second is behind a piece of its body.
            let piece = queues[1].piece(Bytes::from_static(b"body"));
            queues[0].queue_trailers(100);
            queues[1].queue_trailers(1000);
            let held = || payer.memory() - before;
            assert_eq!(held(), 1100 + piece.charge.as_ref().unwrap().1 as u64);
            drop(piece);
            outlets.each_ref().iter().for_each(|outlet| outlet.wrote(&Poll::<()>::Pending));
            outlets[0].wrote(&Poll::Ready(()));
            outlets.each_ref().iter().for_each(|outlet| up.written(outlet));
            assert_eq!((held(), outlets.each_ref().map(|outlet| outlet.flushes())), (1000, [1, 0]));
            up.flushed(&outlets[0]);
            assert_eq!(held(), 1000, "the first has ended");
            outlets[1].wrote(&Poll::Ready(()));
            up.written(&outlets[1]);
            assert_eq!(held(), 0);
        });
        assert_eq!(ended, Some(()), "it has panicked");
    }
}
