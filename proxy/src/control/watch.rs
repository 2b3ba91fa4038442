//! The kernel's word on what happens in directories.

use std::path::Path;

use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::overhead;

/// Events between two readings; beyond it the watching thread waits, and the kernel's own queue takes over.
pub(super) const EVENTS: usize = 1024;

/// Directories that are watched, not what is below them. Dropped after its receiver, so that it never waits for a reader.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) events: mpsc::Receiver<notify::Result<Event>>,
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Begins to watch all of `directories`, or none.
    pub(super) fn new<'p>(directories: impl IntoIterator<Item = &'p Path>) -> notify::Result<Self> {
        // It fails as its own does when there are as many threads as there may be.
        std::thread::Builder::new().spawn(|| ()).map_err(notify::Error::io)?;
        let (sender, events) = mpsc::channel(EVENTS);
        let mut watcher = notify::recommended_watcher(move |event| {
            overhead::count_this_thread(overhead::Kind::Control);
            let _ = sender.blocking_send(event); // nobody watches any more
        })?;
        // One that got no thread says so only here. It would panic when it is told a directory, and again when it is dropped.
        if let Err(error) = watcher.configure(Config::default()) {
            std::mem::forget(watcher);
            return Err(error);
        }
        for directory in directories {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(Self { events, _watcher: watcher })
    }
}
