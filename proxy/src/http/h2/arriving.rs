//! Streams of a client between the frame that opens them and the task that serves them. `h2` reads all frames that have come before it
//! hands over the first of their streams, and their tasks have turns of their own: so a stream is on the account from its frame on, and
//! whole before its task has run.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::connection::MAX_HEADER_LIST;
use super::frames::{CONTINUATION, FrameHead, HEADERS};
use crate::tenant::{Charged, MemoryStep, Payer};

/// Bytes that a stream takes beside its head and its bodies, here and in `h2`, for both sides of the proxy. Measured.
const STREAM: usize = 14 * 512;
/// What of that there is before it is handed over, here and in `h2`. Measured, as for those that `h2` answers.
const ARRIVED: usize = 7 * 512;

/// Those of one connection, in the order in which they came.
#[derive(Debug)]
pub(super) struct Arriving {
    payer: Rc<Payer>,
    streams: RefCell<VecDeque<Opened>>,
    /// The header block that comes is the newest one's.
    opens: Cell<bool>,
    /// It has not ended, so `h2` does not know of the stream.
    is_within_block: Cell<bool>,
    /// `h2` asks for more, so it has looked at all whole frames that it has.
    wants_more: Cell<bool>,
    /// Those that `h2` did not hand over, for their heads.
    too_large: Cell<u32>,
}

/// A stream that nobody serves yet.
#[derive(Debug)]
struct Opened {
    stream: u32,
    charge: Charged,
    /// Whether the list of its fields may be larger than `h2` takes.
    is_large: bool,
}

impl Arriving {
    pub(super) fn new(payer: &Rc<Payer>) -> Rc<Self> {
        Rc::new(Self {
            payer: Rc::clone(payer),
            streams: RefCell::default(),
            opens: Cell::default(),
            is_within_block: Cell::default(),
            wants_more: Cell::default(),
            too_large: Cell::default(),
        })
    }

    /// A frame begins, when `newest` was the newest stream.
    pub(super) fn begin(&self, head: FrameHead, newest: u32) {
        match head.kind {
            HEADERS if head.stream > newest => {
                let charge = self.payer.hold_for_a_while(ARRIVED);
                let opened = Opened { stream: head.stream, charge, is_large: false };
                self.streams.borrow_mut().push_back(opened);
                self.opens.set(true);
            }
            CONTINUATION => {}
            _ => self.opens.set(false),
        }
    }

    /// The fields of the present block have so many bytes at the most so far, as they are decoded.
    pub(super) fn has_fields(&self, most: u32) {
        if self.opens.get()
            && let Some(newest) = self.streams.borrow_mut().back_mut()
        {
            newest.is_large = most >= MAX_HEADER_LIST;
        }
    }

    /// Notes that `h2` asks for more.
    pub(super) fn wants_more(&self) {
        self.wants_more.set(true);
    }

    /// Notes that it gets more, and whether that ends inside of a header block.
    pub(super) fn read(&self, is_within_block: bool) {
        self.wants_more.set(false);
        self.is_within_block.set(is_within_block);
    }

    /// Whether the tenant of the connection gets nothing more, so that little is to be read at a time.
    pub(super) fn are_many(&self) -> bool {
        self.payer.memory_step() >= MemoryStep::Refuse
    }

    /// Waits for the next poll while there [are many](Self::are_many) and some of them can be served: whoever reads accepts them first.
    pub(super) fn poll_accepted(&self, cx: &Context<'_>) -> Poll<()> {
        let waiting = self.streams.borrow().len() > usize::from(self.is_within_block.get());
        if waiting && self.are_many() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// The charge of a stream that `h2` hands over, with a head that takes so many bytes. It does that in their order, so those before it have
    /// been answered or reset there.
    pub(super) fn accept(&self, stream: u32, head: usize) -> Charged {
        let mut streams = self.streams.borrow_mut();
        while streams.front().is_some_and(|opened| opened.stream < stream) {
            self.never_comes(streams.pop_front());
        }
        let mut charge = match streams.pop_front_if(|opened| opened.stream == stream) {
            Some(opened) => opened.charge,
            None => self.payer.hold_for_a_while(STREAM),
        };
        charge.set(STREAM + head);
        charge
    }

    /// `h2` has nothing to hand over: those that it has looked at it has answered or reset itself.
    pub(super) fn none_left(&self) {
        if !self.wants_more.get() {
            return;
        }
        let mut streams = self.streams.borrow_mut();
        let left = usize::from(self.is_within_block.get());
        while streams.len() > left {
            self.never_comes(streams.pop_front());
        }
    }

    fn never_comes(&self, opened: Option<Opened>) {
        let is_large = opened.is_some_and(|opened| opened.is_large);
        self.too_large.set(self.too_large.get() + u32::from(is_large));
    }

    /// How many were refused since the last question because the list of their fields is too large: `h2` answers 431, and tells nobody.
    pub(super) fn take_too_large(&self) -> u32 {
        self.too_large.take()
    }

    /// The connection has ended.
    pub(super) fn end(&self) {
        self.streams.borrow_mut().clear();
    }
}
