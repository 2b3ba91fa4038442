//! Who writes the files of a directory, by what the kernel says of them. What somebody has begun to write is not read before it is closed.
//!
//! Mostly it says so by itself. Of who began before the directory was watched, or writes through a link or another name, it only answers when
//! asked, so such files are asked about again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::Event;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use tokio::time::{Instant, sleep_until};

use super::PATIENCE;
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
    closing: Closing,
    /// Once it has taken [`LONG`].
    error: Option<PolicyFileError>,
}

/// How the end of its writing gets known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    /// By an event.
    Told,
    /// The event may have been missed: at this time whoever reads the file asks, and reads it also where the kernel has no answer.
    Doubtful(Instant),
    /// There may be no event: whoever reads the file asks again at this time.
    AskedAt(Instant),
    /// Whoever reads the file is to ask now.
    Asked,
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
        self.files.get(path).is_some_and(|writing| writing.closing != Closing::Asked)
    }

    /// The kernel, when asked, said that somebody does.
    pub(super) fn found(&mut self, path: &Path, now: Instant) {
        let closing = Closing::AskedAt(now + PATIENCE);
        self.files.entry(path.to_owned()).or_insert_with(|| Writing::begun(now)).closing = closing;
    }

    /// The kernel did not say so when it was asked. Whoever writes it next has begun then: who always does is [told](super::rewritten) from who
    /// writes it once.
    pub(super) fn answered(&mut self, path: &Path) {
        if self.files.get(path).is_some_and(|writing| writing.closing == Closing::Asked) {
            self.forget(path);
        }
    }

    /// Nobody asks any more about others.
    pub(super) fn keep_only(&mut self, names: &BTreeSet<PathBuf>) {
        let gone =
            self.files.extract_if(.., |path, writing| writing.closing == Closing::Asked && !names.contains(path));
        self.mended |= gone.filter(|(_, writing)| writing.error.is_some()).count() > 0;
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
            writing.doubt(now);
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
                if !matches!(writing.closing, Closing::AskedAt(_)) {
                    writing.closing = Closing::Told; // it was not closed, then
                }
            }
            None => _ = self.files.insert(path.to_owned(), Writing::begun(now)),
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
                writing.doubt(now);
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

    /// Files that take [`LONG`], each once. Of those whose closing may be no event, or was probably missed, it is time to ask: they do not count as
    /// written meanwhile, and the directory is to be looked at.
    pub(super) fn say(&mut self, now: Instant) -> Vec<PolicyFileError> {
        let is_due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        // Nobody asks about files that nobody reads.
        self.files.retain(|path, writing| policy_file::is_policy_file(path) || !is_due(writing.closing.deadline()));
        let mut long = Vec::new();
        for (path, writing) in &mut self.files {
            if is_due(writing.long_at(path)) {
                long.push(writing.error.insert(not_closed(path)).clone());
            }
            if is_due(writing.closing.deadline()) {
                writing.closing = Closing::Asked;
            }
        }
        long
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
    fn begun(now: Instant) -> Self {
        Self { since: now, last: Last::Written, closing: Closing::Told, error: None }
    }

    /// Its closing may have been missed.
    fn doubt(&mut self, now: Instant) {
        if self.closing == Closing::Told {
            self.closing = Closing::Doubtful(now + LONG);
        }
    }

    fn deadline(&self, path: &Path) -> Option<Instant> {
        self.closing.deadline().into_iter().chain(self.long_at(path)).min()
    }

    /// When it has taken [`LONG`], unless that was said. Of files that nobody reads there is nothing to say, nor of those that may be closed.
    fn long_at(&self, path: &Path) -> Option<Instant> {
        let is_open = matches!(self.closing, Closing::Told | Closing::AskedAt(_));
        (self.error.is_none() && is_open && policy_file::is_policy_file(path)).then(|| self.since + LONG)
    }
}

impl Closing {
    /// When it is to be asked for.
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Doubtful(at) | Self::AskedAt(at) => Some(at),
            Self::Told | Self::Asked => None,
        }
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
