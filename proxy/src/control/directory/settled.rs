//! Reads files in a state that nobody changes any more, however often others take their place.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tollgate_net::is_open_to_write;

use crate::policy_file::{self, FileResource, MAX_BYTES, PolicyFileError, PolicyFileErrors, broken};

/// How long nothing may happen before the directory is read, and how old a file's last change must be.
pub(super) const QUIET: Duration = Duration::from_millis(50);

/// Tells one state of a file from another without reading it. Good only for a state that is older than [`QUIET`], which
/// is far coarser than the clock of any file system in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    pub(super) length: u64,
    /// Seconds and nanoseconds of the status change: unlike the time of modification it cannot be set back, and it
    /// moves when a file becomes readable.
    changed: (i64, i64),
}

/// What a file says, or why it cannot be used.
pub(super) type Content = Result<Vec<FileResource>, Broken>;

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Broken {
    pub(super) errors: PolicyFileErrors,
    /// What it claims, as far as that can be told: policies that allow nothing.
    pub(super) claims: Vec<FileResource>,
    /// Not all of it could be looked at, or need be.
    pub(super) is_untold: bool,
}

/// What came of reading a file.
#[derive(Debug)]
pub(super) enum Attempt {
    /// What it says, in this state. Another file may be in its place by now, or somebody may have written it on.
    Whole(Stamp, Content, Opened),
    /// Somebody has just written it, or it is gone.
    Unsettled,
    /// Somebody has it open to write.
    BeingWritten,
}

/// A file that was read, and how it was then; nothing where it could not be opened.
#[derive(Debug)]
pub(super) struct Opened(Option<(File, Form)>);

impl Opened {
    const NOTHING: Self = Self(None);

    /// Whether nobody has written it on since, whatever has its name by now. The kernel's events may come later than that.
    pub(super) fn stays(&self) -> bool {
        self.0.as_ref().is_none_or(|(file, before)| Form::of(file).is_ok_and(|now| now == *before))
    }
}

/// Reads the file that is there now, which need not be there any more afterwards. Unless it `is_settled`, as it was when `looked` at, it
/// has to stay as it is for [`QUIET`] first: the first half of a file can be a valid one. Nor is that enough: who writes may rest for
/// longer. So one that was written in place since is not read, nor one that the kernel says somebody has open to write. Where it does not say
/// so, the caller has to know that of another in its place.
/// What a broken one claims is looked for only if somebody `wants_claims`.
pub(super) fn read(path: &Path, looked: Stamp, is_settled: bool, wants_claims: bool) -> Attempt {
    let unusable =
        |stamp, error: PolicyFileError| Attempt::Whole(stamp, Err(Broken::silent(error.into())), Opened::NOTHING);
    let file = match policy_file::open(path) {
        Ok(file) => file,
        Err(error) => {
            return match Stamp::of(path) {
                Ok(now) if is_settled && now == looked => unusable(now, error),
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => unusable(Stamp::UNKNOWN, error),
                // Of its deletion, or of what took its place, there is an event.
                _ => Attempt::Unsettled,
            };
        }
    };
    let (Ok(stamp), Ok(before)) = (file.metadata().map(|now| Stamp::from(&now)), Form::of(&file)) else {
        return Attempt::Unsettled;
    };
    if stamp != looked && stamp.inode == looked.inode {
        return Attempt::Unsettled;
    }
    if !is_settled || stamp != looked {
        std::thread::sleep(QUIET);
    }
    let interrupted = || {
        if is_being_written(&file) {
            // Of what takes its place there is an event.
            let has_its_name = Stamp::of(path).is_ok_and(|now| now.inode == stamp.inode);
            return Some(if has_its_name { Attempt::BeingWritten } else { Attempt::Unsettled });
        }
        let stays = Form::of(&file).is_ok_and(|now| now == before);
        (!stays).then_some(Attempt::Unsettled)
    };
    if let Some(interrupted) = interrupted() {
        return interrupted;
    }
    let found = match policy_file::bytes_of(&file, path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if stamp.length > MAX_BYTES && wants_claims => {
            Err(Broken::too_large(error, &file, path, stamp.length))
        }
        Err(error) => Err(Broken::silent(error.into())),
    };
    if let Some(interrupted) = interrupted() {
        return interrupted;
    }
    let content = found.and_then(|bytes| content(&bytes, path, wants_claims));
    Attempt::Whole(stamp, content, Opened(Some((file, before))))
}

/// Whether the kernel says that somebody has the file open to write, whenever they began and by whatever name.
pub(super) fn has_writer(path: &Path) -> bool {
    policy_file::open(path).is_ok_and(|file| is_being_written(&file))
}

/// Where it does not say that, its events have to do.
fn is_being_written(file: &File) -> bool {
    is_open_to_write(file).unwrap_or(false)
}

/// What a file claims that is never found in a settled state, and whether that is not all; `None` where there is nothing in it.
pub(super) fn look(path: &Path) -> Option<(Vec<FileResource>, bool)> {
    let file = policy_file::open(path).ok()?;
    let found = match policy_file::bytes_of(&file, path) {
        Ok(bytes) if bytes.is_empty() => return None,
        Ok(bytes) => content(&bytes, path, true),
        Err(error) => Err(Broken::too_large(error, &file, path, file.metadata().ok()?.len())),
    };
    Some(match found {
        Ok(resources) => (broken::denying(resources), false),
        Err(broken) => (broken.claims, broken.is_untold),
    })
}

fn content(bytes: &[u8], path: &Path, wants_claims: bool) -> Content {
    let parse =
        || policy_file::text_of(bytes, path).map_err(Into::into).and_then(|text| policy_file::parse(text, path));
    catch_unwind(AssertUnwindSafe(parse)).unwrap_or_else(|_| Err(reader_failed(path))).map_err(|errors| {
        if !wants_claims {
            return Broken::silent(errors);
        }
        let text = String::from_utf8_lossy(bytes);
        let claims = catch_unwind(AssertUnwindSafe(|| broken::claims(&text, path)));
        Broken { errors, is_untold: claims.is_err(), claims: claims.unwrap_or_default() }
    })
}

fn reader_failed(path: &Path) -> PolicyFileErrors {
    PolicyFileError::new(path, None, "cannot be read: the reader failed; please report it").into()
}

impl Broken {
    /// One of which nothing can be told.
    fn silent(errors: PolicyFileErrors) -> Self {
        Self { errors, claims: Vec::new(), is_untold: true }
    }

    /// One that is never found in a settled state, and claims that. Its endpoints deny, unless nothing of it was in force.
    pub(super) fn rewritten(path: &Path, claims: Vec<FileResource>, denies: bool) -> Self {
        let effect = if denies { "its endpoints deny until it can be read" } else { "it cannot be read" };
        let message = format!(
            "somebody writes it, or puts another in its place, all the time; {effect}: end whoever does, or rename a finished one to its name \
             less often"
        );
        Self { errors: PolicyFileError::new(path, None, message).into(), claims, is_untold: false }
    }

    /// One that nobody reads as a whole. What it claims is looked for all the same, in as much of it as takes no more than some seconds.
    fn too_large(error: PolicyFileError, file: &File, path: &Path, length: u64) -> Self {
        let searched = catch_unwind(AssertUnwindSafe(|| broken::claims_of_large(file, path)));
        let (claims, is_untold) = searched.ok().and_then(Result::ok).unwrap_or((Vec::new(), true));
        Self { errors: error.into(), claims, is_untold: is_untold || length > broken::SEARCHED }
    }
}

impl Attempt {
    /// The thread that reads has panicked.
    pub(super) fn failed(path: &Path, stamp: Stamp) -> Self {
        Self::Whole(stamp, Err(Broken::silent(reader_failed(path))), Opened::NOTHING)
    }
}

impl Stamp {
    /// Of a file that cannot even be asked.
    pub(super) const UNKNOWN: Self = Self { inode: 0, length: 0, changed: (0, 0) };

    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&std::fs::metadata(path)?))
    }

    /// `None` for a change in the future, which another clock has set.
    pub(super) fn age(&self) -> Option<Duration> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let changed = Duration::new(self.changed.0.try_into().ok()?, self.changed.1.try_into().ok()?);
        since_epoch.checked_sub(changed)
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), length: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
    }
}

/// What changes of an open file when it is written, and not when another takes its name.
#[derive(Debug, PartialEq, Eq)]
struct Form {
    length: u64,
    modified: (i64, i64),
}

impl Form {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { length: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }
}
