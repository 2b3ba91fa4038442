//! Files that are never found as somebody has left them: they are written, closed and written again all the time. None of it can be read,
//! and what such a file held before must not stay in force for as long as somebody likes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::settled;
use super::writers::LONG;
use crate::policy_file::{FileResource, PolicyResource, broken};

/// Since when they are, by path.
#[derive(Debug, Default)]
pub(super) struct Rewritten(BTreeMap<PathBuf, Unsettled>);

#[derive(Debug)]
struct Unsettled {
    since: Instant,
    is_said: bool,
}

impl Rewritten {
    /// Notes that a file was found while somebody may be writing it, who has written it `since` then without closing it. Returns whether
    /// that has gone on for [`LONG`], once. Who has taken all that time to write it once is somebody else's business.
    pub(super) fn note(&mut self, path: &Path, since: Option<Instant>, now: Instant) -> bool {
        let unsettled = self.0.entry(path.to_owned()).or_insert_with(|| Unsettled { since: now, is_said: false });
        if since.is_some_and(|since| since <= unsettled.since) {
            unsettled.since = now;
        }
        let is_due = !unsettled.is_said && now - unsettled.since >= LONG;
        unsettled.is_said |= is_due;
        is_due
    }

    /// All of that has lasted for so much longer.
    #[cfg(test)]
    pub(super) fn backdate(&mut self, by: std::time::Duration) {
        self.0.values_mut().for_each(|unsettled| unsettled.since -= by);
    }

    /// The file was read, or is as it was when it was.
    pub(super) fn forget(&mut self, path: &Path) {
        self.0.remove(path);
    }

    /// Others are gone.
    pub(super) fn keep_only(&mut self, names: &BTreeSet<PathBuf>) {
        self.0.retain(|path, _| names.contains(path));
    }
}

/// What the file claims as it is now; see [`settled::look`].
pub(super) async fn claims(path: &Path) -> Option<(Vec<FileResource>, bool)> {
    let file = path.to_owned();
    tokio::task::spawn_blocking(move || settled::look(&file)).await.ok().flatten()
}

/// The policies without what they allow, and all else as it is.
pub(super) fn denying(before: Vec<FileResource>) -> Vec<FileResource> {
    let is_policy = |one: &FileResource| matches!(one.resource, PolicyResource::Policy(_));
    let (policies, mut all): (Vec<_>, Vec<_>) = before.into_iter().partition(is_policy);
    all.extend(broken::denying(policies));
    all
}
