//! Frees what is in force no more.
//!
//! Ten thousand rules take milliseconds to free, and so does the message that they came in. A worker that is just deciding by them must
//! not be the one who does it, because it was the last to let go: its connections would wait. Nor need the control thread, which the
//! kernel takes for as important as a worker. So what was replaced goes to a thread of its own, which has it until nobody else does.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::compile::SOON;
use crate::overhead;

/// How many wait to be freed. They take memory that nobody's account shows, so what is beyond is freed by whoever replaces it.
const WAITING: usize = 4;
/// How often the thread looks whether somebody still has what it waits for. Workers let go after a poll.
const LOOK: Duration = Duration::from_millis(1);
/// How long it looks. Who takes longer frees it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Frees something.
type Free = Box<dyn FnOnce() + Send>;

/// The way to the thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Retired(Option<SyncSender<Free>>);

impl Retired {
    /// Begins the thread. Where there is none, whoever lets go last frees what was replaced.
    pub(super) fn begin() -> Self {
        let (sender, receiver) = sync_channel(WAITING);
        match begin(receiver) {
            Ok(()) => Self(Some(sender)),
            Err(error) => {
                tracing::warn!(%error, "no thread to free replaced policies on: who uses them last does, and others wait for it; raise the limit of tasks (pids.max)");
                Self(None)
            }
        }
    }

    /// Takes what nobody can come upon any more, though some may still have it.
    pub(super) fn take<T: Send + Sync + 'static>(&self, replaced: Arc<T>) {
        self.send(Box::new(move || {
            wait_for_others(&replaced, PATIENCE);
            drop(replaced);
        }));
    }

    /// Takes what nobody else has, or what somebody else has use for.
    pub(super) fn free(&self, replaced: impl Send + 'static) {
        self.send(Box::new(move || drop(replaced)));
    }

    fn send(&self, free: Free) {
        match self.0.as_ref().map(|thread| thread.try_send(free)) {
            None | Some(Ok(())) => {}
            // Whoever replaces something is no worker: it may free that, too.
            Some(Err(TrySendError::Full(free) | TrySendError::Disconnected(free))) => drop(free),
        }
    }
}

fn begin(replaced: Receiver<Free>) -> io::Result<()> {
    thread::Builder::new().name("retire".to_owned()).spawn(move || {
        overhead::count_this_thread(overhead::Kind::Compile);
        // Being as important as a worker is no reason to give up.
        let _ = rustix::process::setpriority_process(None, SOON);
        replaced.into_iter().for_each(|free| free());
    })?;
    Ok(())
}

/// Waits until nobody else has it, but no longer than this.
fn wait_for_others<T>(replaced: &Arc<T>, patience: Duration) {
    let began = Instant::now();
    while Arc::strong_count(replaced) > 1 && began.elapsed() < patience {
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::control::WorldStore;
    use crate::identity::{IdentityTable, Sources};

    /// Says on which thread it was freed.
    struct Policies(Sender<Option<String>>);

    impl Drop for Policies {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().name().map(ToOwned::to_owned));
        }
    }

    /// What a worker does that is preempted in the middle of a decision.
    #[test]
    fn the_last_to_let_go_frees_nothing() {
        let (sender, freed_by) = channel();
        let (retired, policies) = (Retired::begin(), Arc::new(Policies(sender)));
        retired.take(Arc::clone(&policies));
        thread::sleep(20 * LOOK);
        drop(policies);
        assert_eq!(freed_by.recv().unwrap().as_deref(), Some("retire"));
    }

    #[test]
    fn who_does_not_let_go_keeps_only_so_much_from_being_freed() {
        let (sender, freed_by) = channel();
        let policies = || Arc::new(Policies(sender.clone()));
        let (retired, held) = (Retired::begin(), policies());
        retired.take(Arc::clone(&held));
        for _ in 0..=WAITING {
            retired.take(policies());
        }
        assert_eq!(freed_by.recv().unwrap().as_deref(), thread::current().name(), "there is no room for all");
        drop(held);
        // The thread may have begun after all had come.
        assert!(freed_by.iter().take(2).any(|name| name.as_deref() == Some("retire")));

        let held = policies();
        let _other = Arc::clone(&held);
        wait_for_others(&held, Duration::ZERO);
    }

    #[test]
    fn a_world_that_is_still_read_is_freed_by_no_reader() {
        let store = WorldStore::new(Sources::of_table(IdentityTable::default()));
        let read = store.load();
        let replaced = Arc::downgrade(&read);
        store.publish_identities(IdentityTable::default());
        assert_eq!(replaced.strong_count(), 2, "one is not the reader's");
        drop(read);
        while replaced.strong_count() > 0 {
            thread::sleep(LOOK);
        }
    }
}
