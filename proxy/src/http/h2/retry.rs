//! What it takes to send an HTTP/2 request again: its body, as far as it came, while it is short. Where no retries are asked
//! for, nothing is kept.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::RouteLimits;
use crate::http::retry::{Failure, Tries};
use crate::tenant::{Charged, Payer};

/// Longest body that is kept, in bytes: as much as HTTP/1 reads at once.
const MAX_BODY: usize = 16 * 1024;

/// How often a request may be sent again, and its body.
#[derive(Debug)]
pub(super) struct Retries {
    tries: Cell<Tries>,
    body: RefCell<Kept>,
    known: Cell<Known>,
}

/// What is kept of a body.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    /// On whose account it is.
    charge: Option<Charged>,
}

impl Kept {
    fn count(&mut self) {
        if let Some(charge) = &mut self.charge {
            charge.set(self.bytes.capacity());
        }
    }
}

/// How much of the body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// There is none.
    Bodiless,
    /// It is still with the connection.
    Unread,
    /// What came is kept.
    Part,
    /// All of it is.
    Whole,
}

impl Retries {
    /// The retries of a request that has a body or is `bodiless`.
    pub(super) fn of(limits: &RouteLimits, bodiless: bool) -> Self {
        let known = if bodiless { Known::Bodiless } else { Known::Unread };
        Self { tries: Cell::new(Tries::of(limits)), body: RefCell::default(), known: Cell::new(known) }
    }

    /// Keeps what it keeps on the account of `payer`.
    pub(super) fn on_account(self, payer: &Rc<Payer>) -> Self {
        if self.tries.get().are_left() {
            self.body.borrow_mut().charge = Some(payer.hold_for_a_while(0));
        }
        self
    }

    /// Keeps a piece of the body that is about to be sent, or lets go of all when that is too much.
    pub(super) fn keep(&self, piece: &[u8], last: bool) {
        if self.tries.get().are_left() {
            let mut body = self.body.borrow_mut();
            if body.bytes.len() + piece.len() > MAX_BODY {
                drop(body);
                return self.give_up();
            }
            body.bytes.extend_from_slice(piece);
            body.count();
            self.known.set(if last { Known::Whole } else { Known::Part });
        }
    }

    /// Sends nothing again.
    pub(super) fn give_up(&self) {
        self.tries.set(Tries::default());
        self.known.set(Known::Part);
        drop(self.body.take());
    }

    /// The whole body, where it was sent before.
    pub(super) fn body(&self) -> Option<Bytes> {
        (self.known.get() == Known::Whole).then(|| Bytes::copy_from_slice(&self.body.borrow().bytes))
    }

    /// Whether a try that failed so is followed by another; see [`Tries::may_follow`].
    pub(super) fn may_follow(&self, failure: Failure, told: bool) -> bool {
        let is_here = match self.known.get() {
            Known::Bodiless | Known::Whole => true,
            Known::Unread => failure == Failure::Unsent,
            Known::Part => false,
        };
        is_here && self.tries.get().may_follow(failure, told)
    }

    /// Takes the next try. Returns how long to wait before it.
    pub(super) fn take(&self) -> Duration {
        let mut tries = self.tries.get();
        let pause = tries.take();
        self.tries.set(tries);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries(bodiless: bool) -> Retries {
        Retries::of(&RouteLimits { retries: 2, ..RouteLimits::default() }, bodiless)
    }

    fn may_follow(retries: &Retries) -> (bool, bool) {
        (retries.may_follow(Failure::Unsent, false), retries.may_follow(Failure::Status(503), false))
    }

    #[test]
    fn a_request_is_sent_again_as_a_whole() {
        assert_eq!(may_follow(&retries(true)), (true, true));
        let retries = retries(false);
        assert_eq!(may_follow(&retries), (true, false), "its body may be on the way");
        retries.keep(b"on", false);
        assert_eq!((may_follow(&retries), retries.body()), ((false, false), None));
        retries.keep(b"e", true);
        assert_eq!((may_follow(&retries), retries.body()), ((true, true), Some(Bytes::from_static(b"one"))));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let retries = retries(false);
        retries.keep(&[0; MAX_BODY], false);
        retries.keep(b"", false);
        assert_eq!(retries.body.borrow().bytes.len(), MAX_BODY);
        retries.keep(b"x", true);
        assert_eq!((may_follow(&retries), retries.body()), ((false, false), None));
        assert_eq!(retries.body.borrow().bytes.capacity(), 0);
    }

    #[test]
    fn nothing_is_kept_unasked() {
        let retries = Retries::of(&RouteLimits::default(), false);
        retries.keep(b"one", true);
        assert_eq!((may_follow(&retries), retries.body()), ((false, false), None));
        assert_eq!(retries.body.borrow().bytes.capacity(), 0);
    }
}
