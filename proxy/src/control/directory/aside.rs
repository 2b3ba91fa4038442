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
    wants_claims: bool,
    /// Since when, whatever came in its place meanwhile.
    since: Instant,
}

#[derive(Debug)]
struct UnderWay {
    path: PathBuf,
    stamp: Stamp,
    since: Instant,
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
    /// The file, which is as the stamp says, is to be read. What is read of it now counts only if it has waited for long, so that a mistake
    /// which is corrected at once does not come into force.
    pub(super) fn add(&mut self, path: PathBuf, stamp: Stamp, is_settled: bool, wants_claims: bool) {
        let now = Instant::now();
        let mut since = self.waiting.remove(&path).map_or(now, |waiting| waiting.since);
        if let Some(read) = self.under_way.as_mut().filter(|read| read.path == path) {
            if read.stamp == stamp {
                read.is_wanted = true;
                return;
            }
            read.is_wanted &= now - read.since >= PATIENCE;
            if !read.is_wanted {
                since = since.min(read.since);
            }
        }
        self.waiting.insert(path, Waiting { stamp, is_settled, wants_claims, since });
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
        let Some((path, waiting)) = self.take_next(Instant::now()) else { return };
        let Waiting { stamp, is_settled, wants_claims, since } = waiting;
        let file = path.clone();
        let (outcome, attempt) = match begun(SOON, move || settled::read(&file, stamp, is_settled, wants_claims)) {
            Ok(outcome) => (Some(outcome), None),
            // Without a thread there is this one.
            Err(_) => (None, Some(settled::read(&path, stamp, is_settled, wants_claims))),
        };
        self.under_way = Some(UnderWay { path, stamp, since, is_wanted: true, outcome, attempt });
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

    /// Whether one has been read.
    pub(super) fn is_finished(&mut self) -> bool {
        let Some(read) = &mut self.under_way else { return false };
        if let (None, Some(outcome)) = (&read.attempt, &mut read.outcome) {
            read.attempt = match outcome.try_recv() {
                Ok(attempt) => Some(attempt),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Closed) => Some(Attempt::failed(&read.path, read.stamp)),
            };
        }
        read.attempt.is_some()
    }

    /// The one that has been read.
    pub(super) fn finished(&mut self) -> Option<Read> {
        if !self.is_finished() {
            return None;
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
        aside.add(large.0.clone(), large.1, true, false);
        for _ in 0..3 {
            aside.add(small.0.clone(), small.1, true, false);
            assert_eq!(next(&mut aside), Some(small.0.clone()));
            tokio::time::advance(PATIENCE / 4).await;
            aside.add(large.0.clone(), file("large", 4).1, true, false); // another one, which has waited for as long
        }
        tokio::time::advance(PATIENCE / 4).await;
        aside.add(small.0.clone(), small.1, true, false);
        assert_eq!((next(&mut aside), next(&mut aside), next(&mut aside)), (Some(large.0), Some(small.0), None));
    }

    /// Else a mistake that is corrected at once would come into force.
    #[tokio::test(start_paused = true)]
    async fn a_form_that_was_replaced_at_once_has_no_effect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let form = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Stamp::of(&path).unwrap()
        };
        let mut aside = Aside::default();
        for (paused, is_wanted) in [(PATIENCE / 4, false), (PATIENCE / 4, false), (PATIENCE / 2, true)] {
            let stamp = form("1");
            aside.add(path.clone(), stamp, true, false);
            aside.begin();
            tokio::time::advance(paused).await;
            aside.add(path.clone(), form("22"), true, false);
            aside.wait().await;
            assert_eq!(aside.finished().map(|read| read.is_wanted), Some(is_wanted), "{paused:?}");
        }
        // One that is the same again is.
        let stamp = form("1");
        aside.add(path.clone(), stamp, true, false);
        aside.begin();
        aside.add(path.clone(), form("22"), true, false);
        aside.add(path.clone(), stamp, true, false);
        aside.wait().await;
        assert!(aside.finished().is_some_and(|read| read.is_wanted) && aside.waiting.is_empty());
    }
}
