//! What there is in a directory, and what of it is to be read.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::aside;
use super::settled::{self, Attempt, Content, Opened, QUIET, Stamp};
use super::{File, PATIENCE};
use crate::policy_file;

/// How a file was found.
#[derive(Debug)]
pub(super) enum Found {
    /// As it was.
    Same,
    /// Somebody may still be writing it.
    Unsettled,
    /// Somebody has it open to write, which may have no event.
    BeingWritten,
    /// As another one, to be read aside.
    Aside { stamp: Stamp, is_settled: bool, wants_claims: bool },
    /// With this content.
    Read(Stamp, Content, Opened),
}

/// The policy files of a directory.
pub(super) fn list(path: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if policy_file::is_policy_file(&path) && is_there(&path) {
            names.insert(path);
        }
    }
    Ok(names)
}

/// A link to nowhere is a deleted file: mounted configuration is deleted so.
pub(super) fn is_there(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(metadata) => metadata.is_file(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// How the file is found of which so much is `known`. Whoever `may_wait` for it has it read aside where that takes long; what may still be in the
/// making is not waited for any more when patience `is_over`.
pub(super) async fn find(path: &Path, known: Option<&File>, may_wait: bool, is_over: bool) -> Found {
    let stamp = match Stamp::of(path) {
        Ok(stamp) => stamp,
        // Its deletion is an event of its own.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Same,
        Err(_) => Stamp::UNKNOWN,
    };
    if known.and_then(|file| file.stamp) == Some(stamp) && stamp != Stamp::UNKNOWN {
        return Found::Same;
    }
    // An empty file that nobody knew is mostly one that somebody is about to write; after a while it is a mistake.
    let begun = stamp.length > 0 || known.is_some();
    let is_settled = stamp.age().is_none_or(|age| age >= if begun { QUIET } else { PATIENCE });
    if !is_settled && has_writer(path).await {
        return Found::BeingWritten;
    }
    let is_waited_for = !is_over || !begun || !may_wait;
    if !is_settled && is_waited_for {
        return Found::Unsettled;
    }
    // Where it held something before, that stays instead.
    let wants_claims = known.map_or(!may_wait, |file| file.only_claims);
    if may_wait && (!is_settled || stamp.length > aside::LARGE) {
        return Found::Aside { stamp, is_settled, wants_claims };
    }
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || settled::read(&file, stamp, true, wants_claims)).await;
    match read.unwrap_or_else(|_| Attempt::failed(path, stamp)) {
        Attempt::Whole(stamp, content, opened) => Found::Read(stamp, content, opened),
        Attempt::Unsettled => Found::Unsettled,
        Attempt::BeingWritten => Found::BeingWritten,
    }
}

async fn has_writer(path: &Path) -> bool {
    let file = path.to_owned();
    tokio::task::spawn_blocking(move || settled::has_writer(&file)).await.unwrap_or(false)
}
