//! The executor of this thread, found without being carried along.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::executor::{Local, Ready};
use crate::remote::Remote;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

pub(crate) fn set(local: Rc<Local>) {
    CURRENT.set(Some(local));
}

/// Forgets the executor, unless a newer one has taken its place.
pub(crate) fn remove(local: &Rc<Local>) {
    CURRENT.with_borrow_mut(|current| {
        if current.as_ref().is_some_and(|current| Rc::ptr_eq(current, local)) {
            *current = None;
        }
    });
}

/// Asks the executor of this thread, if there is one.
pub(crate) fn with<T>(ask: impl FnOnce(&Rc<Local>) -> T) -> Option<T> {
    CURRENT.try_with(|current| current.borrow().as_ref().map(ask)).ok().flatten()
}

/// Queues a task of the executor that `remote` belongs to, on whichever thread it was woken.
pub(crate) fn schedule(remote: &Arc<Remote<Ready>>, task: Ready) {
    let mut task = Some(task);
    with(|local| {
        if Arc::ptr_eq(&local.remote, remote)
            && let Some(task) = task.take()
        {
            local.push(task);
        }
    });
    if let Some(task) = task {
        remote.push(task);
    }
}
