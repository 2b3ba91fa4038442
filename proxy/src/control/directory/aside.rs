//! Large files, which are read one after the other, the smallest first, by a thread that others go before.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::{Stamp, reader_failed};
use crate::control::compile::{SOON, begun};
use crate::policy_file::{self, FileResource, PolicyFileErrors};

/// Bytes beyond which a file is large: what takes a few milliseconds.
pub(super) const LARGE: u64 = 64 << 10;

type Content = Result<Vec<FileResource>, PolicyFileErrors>;

/// What is read aside.
#[derive(Debug, Default)]
pub(super) struct Aside {
    waiting: BTreeMap<PathBuf, Stamp>,
    under_way: Option<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    path: PathBuf,
    stamp: Stamp,
    outcome: Option<oneshot::Receiver<Content>>,
    /// Once it is there.
    content: Option<Content>,
}

/// A file that has been read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) path: PathBuf,
    /// What it was when it was to be read.
    pub(super) stamp: Stamp,
    pub(super) content: Content,
}

impl Aside {
    /// The file, which is as the stamp says, is to be read.
    pub(super) fn add(&mut self, path: PathBuf, stamp: Stamp) {
        let is_read = |read: &UnderWay| read.path == path && read.stamp == stamp;
        if !self.under_way.as_ref().is_some_and(is_read) {
            self.waiting.insert(path, stamp);
        }
    }

    /// The file is gone.
    pub(super) fn forget(&mut self, path: &Path) {
        self.waiting.remove(path);
    }

    /// Begins to read the next one, unless one is under way.
    pub(super) fn begin(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        let smallest = self.waiting.iter().min_by_key(|(_, stamp)| stamp.length).map(|(path, _)| path.clone());
        let Some((path, stamp)) = smallest.and_then(|path| self.waiting.remove_entry(&path)) else { return };
        let file = path.clone();
        let (outcome, content) = match begun(SOON, move || policy_file::read(&file)) {
            Ok(outcome) => (Some(outcome), None),
            // Without a thread there is this one.
            Err(_) => (None, Some(policy_file::read(&path))),
        };
        self.under_way = Some(UnderWay { path, stamp, outcome, content });
    }

    /// Waits until one has been read. May be dropped and called again.
    pub(super) async fn wait(&mut self) {
        match &mut self.under_way {
            Some(UnderWay { outcome: Some(outcome), content: content @ None, path, .. }) => {
                *content = Some(outcome.await.unwrap_or_else(|_| Err(reader_failed(path))));
            }
            Some(_) => {}
            None => pending().await,
        }
    }

    /// The one that has been read.
    pub(super) fn finished(&mut self) -> Option<Read> {
        let read = self.under_way.as_mut()?;
        if let (None, Some(outcome)) = (&read.content, &mut read.outcome) {
            read.content = match outcome.try_recv() {
                Ok(content) => Some(content),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Closed) => Some(Err(reader_failed(&read.path))),
            };
        }
        let UnderWay { path, stamp, content, .. } = self.under_way.take_if(|read| read.content.is_some())?;
        Some(Read { path, stamp, content: content? })
    }
}
