//! What a client is told when the task of its stream panics: INTERNAL_ERROR. `h2` would cancel the stream, which says that nobody wants
//! it any more.

use std::ops::{Deref, DerefMut};

use h2::server::SendResponse;

use super::handle::despite_a_panic;
use super::queue::Piece;

/// The way to the client of one stream, which resets it when a panic ends its task.
pub(super) struct Answering(SendResponse<Piece>);

impl Answering {
    pub(super) const fn new(respond: SendResponse<Piece>) -> Self {
        Self(respond)
    }
}

impl Deref for Answering {
    type Target = SendResponse<Piece>;

    fn deref(&self) -> &SendResponse<Piece> {
        &self.0
    }
}

impl DerefMut for Answering {
    fn deref_mut(&mut self) -> &mut SendResponse<Piece> {
        &mut self.0
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if std::thread::panicking() {
            despite_a_panic(|| self.0.send_reset(h2::Reason::INTERNAL_ERROR));
        }
    }
}
