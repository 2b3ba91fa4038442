//! Files that are large, or never found in a settled state, which are read one after the other by a thread that others go before.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use super::PATIENCE;
use super::settled::{self, Attempt, Stamp};
use crate::control::compile::{SOON, begun};

/// Bytes beyond which a file is large: what takes a few milliseconds.
pub(super) const LARGE: u64 = 64 << 10;

/// What is read aside.
#[derive(Debug, Default)]
pub(super) struct Aside {
    waiting: BTreeMap<PathBuf, Waiting>,
    under_way: Option<UnderWay>,
}

#[derive(Debug)]
struct Waiting {
    stamp: Stamp,
    is_settled: bool,
    /// Since when, whatever came in its place meanwhile.
    since: Instant,
}

#[derive(Debug)]
struct UnderWay {
    path: PathBuf,
    stamp: Stamp,
    is_wanted: bool,
    outcome: Option<oneshot::Receiver<Attempt>>,
    /// Once it is there.
    attempt: Option<Attempt>,
}

/// A file that has been read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) path: PathBuf,
    pub(super) attempt: Attempt,
    /// Nothing newer of it is known.
    pub(super) is_wanted: bool,
}

impl Aside {
    /// The file, which is as the stamp says, is to be read.
    pub(super) fn add(&mut self, path: PathBuf, stamp: Stamp, is_settled: bool) {
        if let Some(read) = self.under_way.as_mut().filter(|read| read.path == path && read.stamp == stamp) {
            read.is_wanted = true;
            return;
        }
        let since = self.waiting.get(&path).map_or_else(Instant::now, |waiting| waiting.since);
        self.waiting.insert(path, Waiting { stamp, is_settled, since });
    }

    /// Others are gone.
    pub(super) fn keep_only(&mut self, names: &BTreeSet<PathBuf>) {
        self.waiting.retain(|path, _| names.contains(path));
        if let Some(read) = self.under_way.as_mut().filter(|read| !names.contains(&read.path)) {
            read.is_wanted = false;
        }
    }

    /// What it says is known.
    pub(super) fn forget(&mut self, path: &Path) {
        self.waiting.remove(path);
        if let Some(read) = self.under_way.as_mut().filter(|read| read.path == path) {
            read.is_wanted = false;
        }
    }

    /// Begins to read the next one, unless one is under way.
    pub(super) fn begin(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        let Some((path, Waiting { stamp, is_settled, .. })) = self.take_next(Instant::now()) else { return };
        let file = path.clone();
        let (outcome, attempt) = match begun(SOON, move || settled::read(&file, stamp, is_settled)) {
            Ok(outcome) => (Some(outcome), None),
            // Without a thread there is this one.
            Err(_) => (None, Some(settled::read(&path, stamp, is_settled))),
        };
        self.under_way = Some(UnderWay { path, stamp, is_wanted: true, outcome, attempt });
    }

    /// The smallest is next, but no longer than others have patience.
    fn take_next(&mut self, now: Instant) -> Option<(PathBuf, Waiting)> {
        let all = || self.waiting.iter();
        let oldest =
            all().min_by_key(|(_, waiting)| waiting.since).filter(|(_, oldest)| now - oldest.since >= PATIENCE);
        let (path, _) = oldest.or_else(|| all().min_by_key(|(_, waiting)| waiting.stamp.length))?;
        let path = path.clone();
        self.waiting.remove_entry(&path)
    }

    /// Waits until one has been read. May be dropped and called again.
    pub(super) async fn wait(&mut self) {
        match &mut self.under_way {
            Some(UnderWay { outcome: Some(outcome), attempt: attempt @ None, path, stamp, .. }) => {
                *attempt = Some(outcome.await.unwrap_or_else(|_| Attempt::failed(path, *stamp)));
            }
            Some(_) => {}
            None => pending().await,
        }
    }

    /// The one that has been read.
    pub(super) fn finished(&mut self) -> Option<Read> {
        let read = self.under_way.as_mut()?;
        if let (None, Some(outcome)) = (&read.attempt, &mut read.outcome) {
            read.attempt = match outcome.try_recv() {
                Ok(attempt) => Some(attempt),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Closed) => Some(Attempt::failed(&read.path, read.stamp)),
            };
        }
        let UnderWay { path, is_wanted, attempt, .. } = self.under_way.take_if(|read| read.attempt.is_some())?;
        Some(Read { path, attempt: attempt?, is_wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else one that always comes back would go before it for ever.
    #[tokio::test(start_paused = true)]
    async fn the_small_go_first_until_another_has_waited_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: usize| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![b' '; bytes]).unwrap();
            let stamp = Stamp::of(&path).unwrap();
            (path, stamp)
        };
        let (small, large) = (file("small", 1), file("large", 3));
        let mut aside = Aside::default();
        let next = |aside: &mut Aside| aside.take_next(Instant::now()).map(|(path, _)| path);
        aside.add(large.0.clone(), large.1, true);
        for _ in 0..3 {
            aside.add(small.0.clone(), small.1, true);
            assert_eq!(next(&mut aside), Some(small.0.clone()));
            tokio::time::advance(PATIENCE / 4).await;
            aside.add(large.0.clone(), file("large", 4).1, true); // another one, which has waited for as long
        }
        tokio::time::advance(PATIENCE / 4).await;
        aside.add(small.0.clone(), small.1, true);
        assert_eq!((next(&mut aside), next(&mut aside), next(&mut aside)), (Some(large.0), Some(small.0), None));
    }
}
