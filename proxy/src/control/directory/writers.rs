//! Who writes the files of a directory, by what the kernel says of them. What somebody has begun to write is not read before it is closed.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::Event;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use tokio::time::{Instant, sleep_until};

use crate::policy_file::{self, PolicyFileError};

/// How long a file is written before that is reported, and how long its closing is waited for that may have been missed.
pub(super) const LONG: Duration = Duration::from_secs(10);

/// Files that somebody has written to and not closed yet.
#[derive(Debug, Default)]
pub(super) struct Writers {
    files: BTreeMap<PathBuf, Writing>,
    /// One that has no name at the moment, by the number under which it gets the next one.
    moved: Option<(usize, Writing)>,
    /// One that was reported is done.
    mended: bool,
}

/// A file that is being written.
#[derive(Debug)]
struct Writing {
    since: Instant,
    last: Last,
    /// Its closing may have been missed since then.
    doubtful_since: Option<Instant>,
    /// Once it has taken [`LONG`].
    error: Option<PolicyFileError>,
}

/// What was done last to a file that is being written.
#[derive(Debug, PartialEq, Eq)]
enum Last {
    Written,
    /// By somebody else, or by who has just cut it to nothing.
    Opened,
    /// By who has opened it last, most probably: the next to close it has written nothing.
    Touched,
}

impl Writers {
    /// Whether somebody writes this file.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// Since when somebody writes it who has not closed it.
    pub(super) fn since(&self, path: &Path) -> Option<Instant> {
        self.files.get(path).map(|writing| writing.since)
    }

    /// The file is gone, or another in its place.
    pub(super) fn forget(&mut self, path: &Path) {
        let _ = self.take(path);
    }

    fn take(&mut self, path: &Path) -> Option<Writing> {
        let mut writing = self.files.remove(path)?;
        self.mended |= writing.error.take().is_some();
        Some(writing)
    }

    /// What is in the directory is not what was there.
    pub(super) fn clear(&mut self) {
        self.mended |= self.said().count() > 0;
        self.files.clear();
    }

    /// Events were lost. Whoever wrote may be done since then, or not.
    pub(super) fn doubt_all(&mut self, now: Instant) {
        for writing in self.files.values_mut() {
            writing.doubtful_since.get_or_insert(now);
        }
    }

    /// What the kernel says of files.
    pub(super) fn note(&mut self, event: &Event, now: Instant) {
        if event.need_rescan() {
            self.doubt_all(now);
        }
        for path in &event.paths {
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => self.written(path, now),
                EventKind::Access(AccessKind::Open(_)) => self.opened(path),
                EventKind::Modify(ModifyKind::Metadata(_)) => self.touched(path),
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => self.closed(path, now),
                EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                    self.moved = event.tracker().zip(self.take(path));
                }
                EventKind::Modify(ModifyKind::Name(RenameMode::To)) => self.named(path, event.tracker()),
                // A new name of what has one already says nothing else.
                EventKind::Modify(ModifyKind::Name(_)) | EventKind::Access(_) => {}
                _ => self.forget(path),
            }
        }
    }

    fn written(&mut self, path: &Path, now: Instant) {
        match self.files.get_mut(path) {
            Some(writing) => {
                writing.last = Last::Written;
                writing.doubtful_since = None; // it was not closed, then
            }
            None => {
                let writing = Writing { since: now, last: Last::Written, doubtful_since: None, error: None };
                self.files.insert(path.to_owned(), writing);
            }
        }
    }

    fn opened(&mut self, path: &Path) {
        if let Some(writing) = self.files.get_mut(path) {
            writing.last = Last::Opened;
        }
    }

    fn touched(&mut self, path: &Path) {
        if let Some(writing) = self.files.get_mut(path).filter(|writing| writing.last == Last::Opened) {
            writing.last = Last::Touched;
        }
    }

    /// `touch` opens a file to write, as the writer does, and closes it.
    fn closed(&mut self, path: &Path, now: Instant) {
        match self.files.get_mut(path).filter(|writing| writing.last == Last::Touched) {
            Some(writing) => {
                writing.last = Last::Written;
                writing.doubtful_since.get_or_insert(now);
            }
            None => self.forget(path),
        }
    }

    /// Whoever wrote the file writes it on under its new name.
    fn named(&mut self, path: &Path, tracker: Option<usize>) {
        self.forget(path);
        if let Some((_, writing)) = self.moved.take_if(|(moved, _)| Some(*moved) == tracker) {
            self.files.insert(path.to_owned(), writing);
        }
    }

    /// When there is something to [`say`](Self::say).
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.files.iter().filter_map(|(path, writing)| writing.deadline(path)).min()
    }

    /// Waits until then.
    pub(super) async fn wait(&self) {
        match self.deadline() {
            Some(deadline) => sleep_until(deadline).await,
            None => pending().await,
        }
    }

    /// Files that take [`LONG`], each once. Those are not among them whose closing was probably missed: they count as closed, and the
    /// directory is to be looked at.
    pub(super) fn say(&mut self, now: Instant) -> Vec<PolicyFileError> {
        let is_due = |path: &Path, writing: &Writing| writing.deadline(path).is_some_and(|deadline| deadline <= now);
        let closed =
            self.files.extract_if(.., |path, writing| writing.doubtful_since.is_some() && is_due(path, writing));
        self.mended |= closed.filter(|(_, writing)| writing.error.is_some()).count() > 0;
        let due = self.files.iter_mut().filter(|(path, writing)| is_due(path, writing));
        due.map(|(path, writing)| writing.error.insert(not_closed(path)).clone()).collect()
    }

    /// What was said and lasts.
    pub(super) fn said(&self) -> impl Iterator<Item = &PolicyFileError> {
        self.files.values().filter_map(|writing| writing.error.as_ref())
    }

    /// Whether one of which something was said is done since this was asked.
    pub(super) fn take_mended(&mut self) -> bool {
        std::mem::take(&mut self.mended)
    }
}

impl Writing {
    /// Of files that nobody reads there is nothing to say.
    fn deadline(&self, path: &Path) -> Option<Instant> {
        let since = match self.doubtful_since {
            Some(since) => Some(since),
            None => (self.error.is_none() && policy_file::is_policy_file(path)).then_some(self.since),
        };
        since.map(|since| since + LONG)
    }
}

fn not_closed(path: &Path) -> PolicyFileError {
    let message = format!(
        "somebody began to write it {} s ago and has not closed it, or cut it by its name; it is not read before it is closed: end \
         whoever writes it, or rename a finished one to its name",
        LONG.as_secs()
    );
    PolicyFileError::new(path, None, message)
}
