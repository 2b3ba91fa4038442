//! The kernel's word on what happens in directories.

use std::path::Path;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::overhead;

/// Events between two readings; beyond it the watching thread waits, and the kernel's own queue takes over.
const EVENTS: usize = 1024;

/// Directories that are watched, not what is below them. Dropped after its receiver, so that it never waits for a reader.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) events: mpsc::Receiver<notify::Result<Event>>,
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Begins to watch all of `directories`, or none.
    pub(super) fn new<'p>(directories: impl IntoIterator<Item = &'p Path>) -> notify::Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS);
        let mut watcher = notify::recommended_watcher(move |event| {
            overhead::count_this_thread(overhead::Kind::Control);
            let _ = sender.blocking_send(event); // nobody watches any more
        })?;
        for directory in directories {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(Self { events, _watcher: watcher })
    }
}
