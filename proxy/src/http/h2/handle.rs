//! Handles of `h2` that are dropped while a panic ends their task. The streams of a connection share a lock of `h2`, and a panic under it
//! poisons it: from then on most of what can be done with a handle panics, the drop of some included. A second panic during the first
//! would abort the process.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A handle whose drop ends at most its own task.
#[derive(Debug)]
pub(super) struct Handle<T>(Option<T>);

impl<T> Handle<T> {
    pub(super) const fn new(handle: T) -> Self {
        Self(Some(handle))
    }
}

impl<T> Deref for Handle<T> {
    type Target = T;

    #[expect(clippy::expect_used, reason = "only its drop takes it out")]
    fn deref(&self) -> &T {
        self.0.as_ref().expect("only its drop takes it out")
    }
}

impl<T> DerefMut for Handle<T> {
    #[expect(clippy::expect_used, reason = "only its drop takes it out")]
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("only its drop takes it out")
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        let handle = self.0.take();
        if std::thread::panicking() {
            despite_a_panic(|| drop(handle));
        }
    }
}

/// Does something while a panic ends the task, and goes on with that one if it panics as well: what it would say is known.
pub(super) fn despite_a_panic(act: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(act));
}
