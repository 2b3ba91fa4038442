//! A watched directory of policy files: the source of policy without a control plane, and what the reference control
//! plane serves.
//!
//! Each file stands for itself: one that does not load keeps its last good content and is reported, one that is written again and
//! again so that it cannot be read denies after a while, one that is deleted takes its resources along. A file is read only when its writer is done with it, because the first half of a list of
//! rules can be a valid list of rules. A large one is read aside once there was a first reading, so that it holds up no other.
//!
//! Of a file that does not load when the directory is read for the first time, nothing is known from before. It allows nothing, and what
//! it claims nobody else decides about alone.

mod aside;
mod found;
mod rewritten;
mod settled;
#[cfg(test)]
mod tests;
mod writers;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::Event;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RemoveKind};
use tokio::time::{Instant, sleep, timeout};
use tollgate_proto::cilium::{NetworkPolicy, NetworkPolicyHosts};
use tollgate_proto::tenant::Tenant;

use self::aside::Aside;
use self::found::{Found, find, is_there, list};
use self::rewritten::Rewritten;
use self::settled::{Attempt, Broken, Content, Opened, QUIET, Stamp};
use self::writers::Writers;
use super::watch::{EVENTS, Watch};
use crate::policy_file::claims::{Contested, contested};
use crate::policy_file::{FilePlace, FileResource, PolicyFileError, PolicyFileErrors, PolicyResource};

/// Longest time that a change waits for others to end, and that a file is only waited for that is never found settled.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between attempts to watch a directory that has vanished.
const RETRY: Duration = Duration::from_secs(1);

/// What follows at a start where not all that a file claims can be told.
const UNTOLD: &str = "not all that it claims can be told, so policies that claim the same decide without it";

/// What the files of a directory hold, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySet {
    /// Policies of endpoints.
    pub policies: Vec<Arc<NetworkPolicy>>,
    /// Where they stand, one for each.
    pub places: Vec<FilePlace>,
    /// Addresses of identities.
    pub hosts: Vec<NetworkPolicyHosts>,
    /// Tenants, and where they stand.
    pub tenants: Vec<(Tenant, FilePlace)>,
}

impl PolicySet {
    /// What several of the policies claim.
    pub fn contested(&self) -> Vec<Contested> {
        contested(self.places.iter().zip(self.policies.iter().map(|policy| &**policy)))
    }
}

/// One look at the directory.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The last good content of every file that is there, or else what it claims.
    pub set: PolicySet,
    /// Whether `set` differs from the reading before.
    pub changed: bool,
    /// The directory could be listed once. Before, nothing is known of what it holds, and `set` is not that.
    pub is_known: bool,
    /// What is wrong now and was not, or not in this way, at the reading before.
    pub errors: Vec<PolicyFileError>,
}

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It is not there, or not a directory, or not readable.
    #[error("{}: cannot read the directory: {error}; create it or correct the path", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// What the system said. Part of the text, so not a source, which would be printed again.
        error: io::Error,
    },
    /// The kernel refused to report its changes.
    #[error("{}: cannot watch the directory: {error}; if the limit is reached, raise fs.inotify.max_user_instances or \
             fs.inotify.max_user_watches", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: notify::Error,
    },
}

/// A directory whose policy files are read again whenever they change.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    writers: Writers,
    rewritten: Rewritten,
    /// Why the directory could not be listed the last time.
    unreadable: Option<PolicyFileError>,
    /// Something happened since the last reading, and when it began.
    pending_since: Option<Instant>,
    /// Something happened while the directory was looked at.
    looked_too_early: bool,
    /// `None` once the directory has vanished.
    watch: Option<Watch>,
    changed: bool,
    errors: Vec<PolicyFileError>,
    /// Something that was wrong is right again.
    mended: bool,
    /// A reading was handed out in which the directory could be listed.
    delivered: bool,
    aside: Aside,
}

/// What is known of one file.
#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    resources: Vec<FileResource>,
    /// `resources` are what it claims: it has not loaded since the first reading.
    only_claims: bool,
    error: Option<PolicyFileErrors>,
}

impl Directory {
    /// Begins to watch the directory. Nothing is read before [`next`](Self::next).
    ///
    /// # Errors
    /// The directory cannot be read or watched.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let unreadable = |error| DirectoryError::Read { path: path.to_owned(), error };
        std::fs::read_dir(path).map_err(unreadable)?;
        let absolute = std::path::absolute(path).map_err(unreadable)?; // as the events name it
        let watch = Watch::new([&*absolute]).map_err(|error| DirectoryError::Watch { path: path.to_owned(), error })?;
        Ok(Self {
            path: absolute,
            files: BTreeMap::new(),
            writers: Writers::default(),
            rewritten: Rewritten::default(),
            unreadable: None,
            pending_since: Some(Instant::now()),
            looked_too_early: false,
            watch: Some(watch),
            changed: false,
            errors: Vec::new(),
            mended: false,
            delivered: false,
            aside: Aside::default(),
        })
    }

    /// The first reading at once, each later one when something changed: in the content, or in what is wrong with it.
    ///
    /// May be dropped and called again without losing a change. Files are read on other threads, large ones when the others are
    /// in a reading already.
    pub async fn next(&mut self) -> Reading {
        loop {
            if let Some(since) = self.wait_for_change().await {
                self.wait_for_quiet(since).await;
                let is_over = since.elapsed() >= PATIENCE;
                let unsettled = self.look(is_over).await;
                self.aside.begin();
                if unsettled && !is_over {
                    sleep(QUIET).await;
                    continue;
                }
                // What is still being written is looked at again, but holds up nothing else.
                let again = std::mem::take(&mut self.looked_too_early) || unsettled;
                self.pending_since = again.then(Instant::now);
            }
            let mended = self.writers.take_mended() | std::mem::take(&mut self.mended);
            let is_first = !self.delivered && self.unreadable.is_none();
            if self.changed || !self.errors.is_empty() || mended || is_first {
                // What is broken in a directory that could not be listed at the start claims as much as at the start.
                self.delivered |= is_first;
                let (changed, errors) = (std::mem::take(&mut self.changed), std::mem::take(&mut self.errors));
                return Reading { set: self.set(), changed, is_known: self.delivered, errors };
            }
        }
    }

    /// What is wrong with the directory and the files of the last reading, by name.
    pub fn failing(&self) -> impl Iterator<Item = &PolicyFileError> {
        let files = self.files.values().filter_map(|file| file.error.as_ref()).flat_map(PolicyFileErrors::iter);
        self.unreadable.iter().chain(files).chain(self.writers.said())
    }

    fn set(&self) -> PolicySet {
        let mut set = PolicySet::default();
        for FileResource { place, resource } in self.files.values().flat_map(|file| &file.resources) {
            match resource {
                PolicyResource::Policy(policy) => {
                    set.policies.push(Arc::clone(policy));
                    set.places.push(place.clone());
                }
                PolicyResource::Hosts(hosts) => set.hosts.push(hosts.clone()),
                PolicyResource::Tenant(tenant) => set.tenants.push(((**tenant).clone(), place.clone())),
            }
        }
        set
    }

    /// When something happened that is to be looked at; `None` when a large file has been read instead, or there is something to say.
    async fn wait_for_change(&mut self) -> Option<Instant> {
        loop {
            if self.aside.is_finished() {
                self.catch_up().await;
                self.take_from_aside();
                return None;
            }
            let now = Instant::now();
            if self.writers.deadline().is_some_and(|deadline| deadline <= now) {
                self.errors.extend(self.writers.say(now));
                self.pending_since.get_or_insert(now);
                // The first reading says it, too, but not before it is whole.
                if self.delivered {
                    return None;
                }
            }
            if self.pending_since.is_some() {
                return self.pending_since;
            }
            match &mut self.watch {
                Some(watch) => tokio::select! {
                    event = watch.events.recv() => match event {
                        Some(event) => _ = self.note(event),
                        None => self.watch = None,
                    },
                    () = self.aside.wait() => {}
                    () = self.writers.wait() => {}
                },
                None => {
                    sleep(RETRY).await;
                    self.watch = Watch::new([&*self.path]).ok();
                    if self.watch.is_some() {
                        self.writers.doubt_all(Instant::now());
                        self.pending_since = Some(Instant::now());
                    }
                }
            }
        }
    }

    fn take_from_aside(&mut self) {
        let Some(aside::Read { path, attempt, is_wanted }) = self.aside.finished() else { return };
        match attempt {
            _ if !is_wanted || !is_there(&path) => {}
            Attempt::BeingWritten => {
                self.writers.found(&path, Instant::now());
                self.note_unsettled(&path);
            }
            // Another may be in its place by now, and yet another when that has been read: this one is newer than what is known.
            Attempt::Whole(stamp, content, opened) if self.is_finished(&path, &opened) => {
                self.take(path, Some(stamp), content);
            }
            // Its closing is an event of its own, but that may have come already.
            _ => {
                self.note_unsettled(&path);
                self.pending_since.get_or_insert_with(Instant::now);
            }
        }
        self.aside.begin();
    }

    /// Whether nobody writes the file that was read, or has written it since.
    fn is_finished(&self, path: &Path, opened: &Opened) -> bool {
        !self.writers.has(path) && opened.stays()
    }

    /// Notes all that has happened until now: what had no place waits in the kernel until there is one.
    async fn catch_up(&mut self) {
        loop {
            let mut count = 0;
            while let Some(Ok(event)) = self.watch.as_mut().map(|watch| watch.events.try_recv()) {
                count += 1;
                self.looked_too_early |= self.note(event);
            }
            if count < EVENTS {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until nothing has happened for [`QUIET`], but not for ever: somebody may write all the time.
    async fn wait_for_quiet(&mut self, since: Instant) {
        while since.elapsed() < PATIENCE
            && let Some(watch) = &mut self.watch
            && let Ok(Some(event)) = timeout(QUIET, watch.events.recv()).await
        {
            let _ = self.note(event);
        }
    }

    /// Returns whether the directory is to be looked at.
    fn note(&mut self, event: notify::Result<Event>) -> bool {
        let Ok(event) = event else {
            // The watch itself is in trouble; what it missed cannot be known.
            self.watch = None;
            return true;
        };
        self.writers.note(&event, Instant::now());
        let is_news = match event.kind {
            EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
            EventKind::Modify(ModifyKind::Data(_)) => false, // its closing is another event
            _ => true,
        };
        if event.paths.contains(&self.path)
            && matches!(event.kind, EventKind::Remove(RemoveKind::Folder) | EventKind::Modify(ModifyKind::Name(_)))
        {
            self.watch = None;
            self.writers.clear();
        }
        if is_news {
            self.pending_since.get_or_insert_with(Instant::now);
        }
        is_news
    }

    /// Reads what has changed. Returns whether a file may still be in the making, which is not waited for any more when patience is over.
    async fn look(&mut self, is_over: bool) -> bool {
        let names = match list(&self.path) {
            Ok(names) => names,
            Err(error) => {
                self.report_unreadable(&error);
                return false;
            }
        };
        self.mended |= self.unreadable.take().is_some();
        let gone: Vec<_> = self.files.keys().filter(|path| !names.contains(*path)).cloned().collect();
        for path in gone {
            if let Some(file) = self.files.remove(&path) {
                self.changed |= !file.resources.is_empty();
                self.mended |= file.error.is_some();
            }
            self.writers.forget(&path);
        }
        self.aside.keep_only(&names);
        self.rewritten.keep_only(&names);
        self.writers.keep_only(&names);
        let mut unsettled = false;
        for path in names {
            let known = self.files.get(&path);
            let is_missing = !self.delivered && known.is_none();
            let found = match self.writers.has(&path) {
                true => Found::Unsettled,
                false => find(&path, known, self.delivered, is_over).await,
            };
            let found = self.confirmed(&path, found).await;
            // Of a large one that is seen when it is read.
            if matches!(found, Found::Unsettled | Found::BeingWritten) {
                self.note_unsettled(&path);
            }
            match found {
                Found::Same => {
                    self.aside.forget(&path);
                    self.rewritten.forget(&path);
                }
                Found::Aside { stamp, is_settled, wants_claims } => {
                    self.aside.add(path, stamp, is_settled, wants_claims);
                }
                Found::Read(stamp, content, _) => {
                    self.aside.forget(&path);
                    self.take(path, Some(stamp), content);
                }
                // Its closing is an event of its own, or asked for.
                Found::Unsettled | Found::BeingWritten if !is_missing && self.writers.has(&path) => {}
                Found::Unsettled | Found::BeingWritten => {
                    unsettled = true;
                    if is_missing && is_over {
                        self.take_claims(path).await;
                    }
                }
            }
        }
        unsettled
    }

    /// How the file was found, unless somebody has written it while it was read.
    async fn confirmed(&mut self, path: &Path, found: Found) -> Found {
        match found {
            Found::BeingWritten => self.writers.found(path, Instant::now()),
            Found::Aside { is_settled: true, .. } => {} // it is asked when it is read
            _ => self.writers.answered(path),
        }
        let Found::Read(_, _, opened) = &found else { return found };
        self.catch_up().await;
        if self.is_finished(path, opened) { found } else { Found::Unsettled }
    }

    /// Takes over what a file claims that is never found settled: the first reading waits for nobody for ever, and misses nothing in silence.
    async fn take_claims(&mut self, path: PathBuf) {
        if let Some((claims, is_untold)) = rewritten::claims(&path).await {
            let broken = Broken { is_untold, ..Broken::rewritten(&path, claims, true) };
            self.take(path, None, Err(broken));
        }
    }

    /// Notes that a file could not be read because somebody writes it. What it held before does not stay in force if that is how it is kept
    /// from being read; its policies deny, and all else of it stays, until it is read and loads.
    fn note_unsettled(&mut self, path: &Path) {
        // At a start nothing of it is in force, and what it claims is still to be found out.
        if !self.delivered || !self.rewritten.note(path, self.writers.since(path), Instant::now()) {
            return;
        }
        let file = self.files.entry(path.to_owned()).or_default();
        let before = std::mem::take(&mut file.resources);
        let Broken { errors, .. } = Broken::rewritten(path, Vec::new(), !before.is_empty());
        if file.error.as_ref() != Some(&errors) {
            self.errors.extend(errors.iter().cloned());
        }
        (file.error, file.stamp) = (Some(errors), None);
        file.resources = rewritten::denying(before.clone());
        self.changed |= file.resources != before;
    }

    fn take(&mut self, path: PathBuf, stamp: Option<Stamp>, content: Content) {
        let is_first = !self.delivered && !self.files.contains_key(&path);
        if stamp.is_some() {
            self.rewritten.forget(&path);
            self.writers.forget(&path);
        }
        let file = self.files.entry(path).or_default();
        file.stamp = stamp;
        let resources = match content {
            Ok(resources) => {
                file.only_claims = false;
                self.mended |= file.error.take().is_some();
                resources
            }
            Err(Broken { mut errors, claims, is_untold }) => {
                let is_all = is_first || file.only_claims;
                if is_all && is_untold {
                    errors = errors.followed_by(UNTOLD);
                }
                if file.error.as_ref() != Some(&errors) {
                    self.errors.extend(errors.iter().cloned());
                }
                file.error = Some(errors);
                if !is_all {
                    return;
                }
                file.only_claims = true;
                claims
            }
        };
        self.changed |= file.resources != resources;
        file.resources = resources;
    }

    /// A directory that cannot be listed says nothing about its files, so they stay.
    fn report_unreadable(&mut self, error: &io::Error) {
        self.watch = None;
        let message = format!("cannot read the directory: {error}; what was read before stays, put it back");
        let error = PolicyFileError::new(&self.path, None, message);
        if self.unreadable.as_ref() != Some(&error) {
            self.errors.push(error.clone());
            self.unreadable = Some(error);
        }
    }
}
