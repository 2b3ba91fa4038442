//! Secrets out of files, read again whenever they change.
//!
//! One of two sources; the other is the control plane.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use notify::Event;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use tokio::time::{sleep, timeout};
use tollgate_policy::Secrets;

use super::directory::DirectoryError;
use super::watch::Watch;
use crate::config::SecretFile;

/// How long nothing may happen before the files are read.
const QUIET: Duration = Duration::from_millis(50);

/// Longest time that a change waits for others to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between attempts to watch directories that have vanished.
const RETRY: Duration = Duration::from_secs(1);

/// Largest secret, in bytes: what fits into a request head with much else.
pub(super) const MAX_SECRET: usize = 16 * 1024;

/// Files with secrets, and the directories that hold them.
#[derive(Debug)]
pub struct SecretFiles {
    files: Vec<SecretFile>,
    directories: BTreeSet<PathBuf>,
    /// What was delivered last.
    current: Secrets,
    /// Files that somebody has written to and not closed yet: they keep their last value.
    being_written: BTreeSet<PathBuf>,
    /// A file has changed so lately that its writer may not be done.
    unsettled: bool,
    /// `None` once a directory has vanished.
    watch: Option<Watch>,
}

/// What a file holds.
enum Content {
    /// This, without the line end that editors and `echo` leave.
    Value(Vec<u8>),
    /// There is no such file, so the secret is not delivered.
    Missing,
    /// There is one, but no value in it.
    Unusable(&'static str),
}

impl SecretFiles {
    /// Reads the files and begins to watch their directories.
    ///
    /// # Errors
    /// A directory cannot be watched. A file that is missing or unusable is no error: what needs it fails until it comes.
    pub fn open(files: &[SecretFile]) -> Result<Self, DirectoryError> {
        let mut absolute = Vec::with_capacity(files.len());
        for SecretFile { name, file } in files {
            let file = std::path::absolute(file).map_err(|error| DirectoryError::Read { path: file.clone(), error })?; // as the events name it
            absolute.push(SecretFile { name: name.clone(), file });
        }
        let parent = |secret: &SecretFile| secret.file.parent().map(Path::to_owned);
        let directories: BTreeSet<PathBuf> = absolute.iter().filter_map(parent).collect();
        for path in &directories {
            std::fs::read_dir(path).map_err(|error| DirectoryError::Read { path: path.clone(), error })?;
        }
        let watch = Watch::new(directories.iter().map(PathBuf::as_path)).map_err(|error| {
            let path = directories.first().cloned().unwrap_or_default();
            DirectoryError::Watch { path, error }
        })?;
        let mut opened = Self {
            files: absolute,
            directories,
            current: Secrets::default(),
            being_written: BTreeSet::new(),
            unsettled: false,
            watch: Some(watch),
        };
        opened.current = opened.read(Duration::ZERO);
        Ok(opened)
    }

    /// Names of the secrets that have a file, whether it is there or not.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|secret| secret.name.as_str())
    }

    /// What the files held when they were last looked at.
    pub const fn current(&self) -> &Secrets {
        &self.current
    }

    /// Waits until a secret has another value, or comes, or goes. Files are read on the calling thread.
    pub async fn changed(&mut self) -> &Secrets {
        loop {
            match self.unsettled {
                true => sleep(QUIET).await,
                false => self.wait_for_change().await,
            }
            let next = self.read(QUIET);
            if next != self.current {
                self.current = next;
                return &self.current;
            }
        }
    }

    /// Waits until something has happened, and then until nothing has for [`QUIET`]; not for ever, since somebody may
    /// write all the time.
    async fn wait_for_change(&mut self) {
        loop {
            let Some(watch) = &mut self.watch else {
                sleep(RETRY).await;
                self.watch = Watch::new(self.directories.iter().map(PathBuf::as_path)).ok();
                if self.watch.is_some() {
                    self.being_written.clear();
                    return;
                }
                continue;
            };
            match watch.events.recv().await {
                Some(event) => {
                    if self.note(event) {
                        break;
                    }
                }
                None => self.watch = None,
            }
        }
        let settled = async {
            while let Some(watch) = &mut self.watch
                && let Ok(Some(event)) = timeout(QUIET, watch.events.recv()).await
            {
                self.note(event);
            }
        };
        // Whoever writes on is waited for, file by file, by its closing.
        let _ = timeout(PATIENCE, settled).await;
    }

    /// Whether there can be something new to read.
    fn note(&mut self, event: notify::Result<Event>) -> bool {
        let Ok(event) = event else {
            // The watch itself is in trouble; what it missed cannot be known.
            self.watch = None;
            return true;
        };
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
            EventKind::Access(_) => return false,
            EventKind::Modify(ModifyKind::Data(_)) => {
                self.being_written.extend(event.paths);
                return false;
            }
            EventKind::Remove(_) if event.paths.iter().any(|path| self.directories.contains(path)) => {
                self.watch = None;
            }
            _ if event.need_rescan() => self.being_written.clear(),
            _ => {}
        }
        for path in &event.paths {
            self.being_written.remove(path);
        }
        true
    }

    /// Files whose last change is not `quiet` ago keep their value, and are looked at again: the event that tells of a
    /// writer may come after what it has written.
    fn read(&mut self, quiet: Duration) -> Secrets {
        let mut secrets = Secrets::default();
        self.unsettled = false;
        for SecretFile { name, file } in &self.files {
            let lately = age(file).is_some_and(|age| age < quiet);
            self.unsettled |= lately;
            if lately || self.being_written.contains(file) {
                secrets.keep(name, &self.current);
                continue;
            }
            match content(file) {
                Content::Value(value) => secrets.insert(name, &value),
                Content::Missing => {}
                Content::Unusable(why) => secrets.insert_unusable(name, why),
            }
        }
        secrets
    }
}

/// Reads the files once, by the rules by which they are followed.
///
/// # Errors
/// A file is not there, which whoever named it for this one reading did not mean.
pub fn read_once(files: &[SecretFile]) -> Result<Secrets, SecretFileError> {
    let mut secrets = Secrets::default();
    for SecretFile { name, file } in files {
        match content(file) {
            Content::Value(value) => secrets.insert(name, &value),
            Content::Missing => return Err(SecretFileError { name: name.clone(), file: file.clone() }),
            Content::Unusable(why) => secrets.insert_unusable(name, why),
        }
    }
    Ok(secrets)
}

/// A file that [`read_once`] was to read is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("secret \"{name}\": {}: there is no such file; name the file that holds the value", file.display())]
pub struct SecretFileError {
    /// SDS name.
    pub name: String,
    /// As it was named.
    pub file: PathBuf,
}

/// Time since the last change; `None` when there is no such file, or another clock has set it to the future.
fn age(path: &Path) -> Option<Duration> {
    let metadata = std::fs::metadata(path).ok()?;
    let changed = Duration::new(metadata.ctime().try_into().ok()?, metadata.ctime_nsec().try_into().ok()?);
    SystemTime::now().duration_since(UNIX_EPOCH).ok()?.checked_sub(changed)
}

fn content(path: &Path) -> Content {
    let mut value = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_SECRET as u64 + 1).read_to_end(&mut value));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Content::Missing,
        Err(_) => return Content::Unusable("cannot be read"),
        Ok(length) if length > MAX_SECRET => return Content::Unusable("is over 16 KiB"),
        Ok(_) => {}
    }
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    Content::Value(value)
}
