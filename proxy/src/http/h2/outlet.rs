//! What one connection has not written yet, as far as its socket tells.

use std::cell::Cell;
use std::task::Poll;

/// The socket of a connection, and the heads and trailers that it has not taken for certain. `h2` tells nobody when it has written them,
/// so they count until the socket has taken all there was.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    /// It took no more at the last write.
    blocked: Cell<bool>,
    flushes: Cell<u64>,
    heads: Cell<usize>,
}

impl Outlet {
    /// Notes how a write to the socket went.
    pub(super) fn wrote<T>(&self, written: &Poll<T>) {
        self.blocked.set(written.is_pending());
    }

    /// Whether the socket took no more at the last write.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// How often nothing was left to send: what was queued at an earlier number has left.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    /// Adds so many bytes of heads.
    pub(super) fn queue(&self, bytes: usize) {
        self.heads.set(self.heads.get() + bytes);
    }

    /// So many bytes of them have left before all have.
    pub(super) fn let_go(&self, bytes: usize) {
        self.heads.set(self.heads.get().saturating_sub(bytes));
    }

    /// Notes that nothing is left to send. Returns how many bytes of heads were.
    pub(super) fn flush(&self) -> usize {
        self.flushes.set(self.flushes.get() + 1);
        self.heads.take()
    }
}
