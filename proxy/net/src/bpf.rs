//! Reads BPF maps that the datapath pins, through `bpf(2)`. Nothing here loads, creates or changes anything.
//!
//! Three of its commands are all that is needed, so no BPF library is drawn in: open a pin (`BPF_OBJ_GET`), ask what it
//! is (`BPF_OBJ_GET_INFO_BY_FD`), and look a key up (`BPF_MAP_LOOKUP_ELEM`). A map whose type or sizes are not what its
//! reader knows is never read: the bytes would mean something else.

mod conntrack;
mod ipcache;

use std::ffi::CString;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use conntrack::{Conntrack, ConntrackFlow};
pub use ipcache::Ipcache;

// `enum bpf_cmd`, `enum bpf_map_type` and a flag of `linux/bpf.h`.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;
const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
const BPF_F_RDONLY: u32 = 1 << 3;

/// A map could not be opened. The text names the path, what is wrong and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The pin cannot be opened.
    #[error("cannot open BPF map {}: {error}{}", path.display(), remedy(error))]
    Open {
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The pin is a map of another shape, or no map.
    #[error(
        "{} is {found}, but {wanted} is needed; name the map that this version of the datapath keeps",
        path.display()
    )]
    Shape {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What was to be read.
        wanted: &'static Shape,
    },
}

impl MapError {
    /// Whether there is no such pin.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Open { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

/// What an operator can do about `error`, as the end of a sentence.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "; the datapath's agent pins it when it starts: is it running, and is the host's /sys/fs/bpf mounted here?"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "; give the process CAP_BPF (or CAP_SYS_ADMIN), run it as the pin's owner (root) or with CAP_DAC_READ_SEARCH, and \
             name a pin on a BPF file system"
        }
        Some(libc::ENOSYS) => "; this kernel has no bpf(2)",
        _ => "",
    }
}

/// Type and sizes of a map, in bytes.
#[derive(Debug)]
pub struct Shape {
    name: &'static str,
    kinds: &'static [u32],
    key: u32,
    value: RangeInclusive<u32>,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most) = (self.value.start(), self.value.end());
        write!(f, "{} (keys of {} bytes, values of {least}", self.name, self.key)?;
        if least != most {
            write!(f, " to {most}")?;
        }
        f.write_str(" bytes)")
    }
}

/// Which file a path was when its map was opened. A pin that is replaced is another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pin {
    device: u64,
    inode: u64,
}

impl Pin {
    fn at(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// What became of a map's pin since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinState {
    /// Still this map.
    Same,
    /// Another file, and so another map.
    Replaced,
    /// Nothing, or nothing that can be looked at.
    Missing,
}

/// An open map of a known shape.
#[derive(Debug)]
struct PinnedMap {
    fd: OwnedFd,
    path: PathBuf,
    pin: Pin,
    id: u32,
    value_size: usize,
}

/// `struct bpf_map_info`, as far as it is read.
#[repr(C)]
#[derive(Debug, Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

impl PinnedMap {
    fn open(path: &Path, shape: &'static Shape) -> Result<Self, MapError> {
        let fail = |error| MapError::Open { path: path.to_owned(), error };
        // Before it is opened: a pin that is replaced in between is then seen to differ.
        let pin = Pin::at(path).map_err(fail)?;
        let fd = object_get(path).map_err(fail)?;
        let info = object_info(&fd).map_err(fail)?;
        if !shape.kinds.contains(&info.kind) || info.key_size != shape.key || !shape.value.contains(&info.value_size) {
            let MapInfo { kind, key_size, value_size, .. } = info;
            let found =
                format!("a BPF map of type {kind} (keys of {key_size} bytes, values of {value_size} bytes) or no map");
            return Err(MapError::Shape { path: path.to_owned(), found, wanted: shape });
        }
        Ok(Self { fd, path: path.to_owned(), pin, id: info.id, value_size: info.value_size as usize })
    }

    fn state(&self) -> PinState {
        match Pin::at(&self.path) {
            Ok(pin) if pin == self.pin => PinState::Same,
            Ok(_) => PinState::Replaced,
            Err(_) => PinState::Missing,
        }
    }

    /// Copies the value of `key` to the front of `value`; false when there is no entry. Costs one system call.
    fn lookup<const K: usize>(&self, key: &[u8; K], value: &mut [u8]) -> io::Result<bool> {
        if value.len() < self.value_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = LookupAttr {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        #[expect(unsafe_code, reason = "bpf(2) takes addresses as numbers")]
        // SAFETY: `key` has the size that `open` found the map's keys to have, `value` at least that of its values, and
        // both are borrowed until the call returns.
        let found = unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) };
        match found {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The part of `union bpf_attr` that `BPF_MAP_LOOKUP_ELEM` reads.
#[repr(C)]
struct LookupAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct ObjectGetAttr {
    path: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
struct ObjectInfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// A descriptor for what is pinned at `path`. The kernel makes it close-on-exec.
fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectGetAttr { path: path.as_ptr() as u64, bpf_fd: 0, file_flags: BPF_F_RDONLY };
    #[expect(unsafe_code, reason = "bpf(2) takes addresses as numbers")]
    // SAFETY: `path` ends with a zero byte and lives until the call returns.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    #[expect(unsafe_code, reason = "the kernel returns a descriptor as a number")]
    // SAFETY: the call succeeded, so this is a descriptor that was opened for us and that nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn object_info(fd: &OwnedFd) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut attr = ObjectInfoAttr {
        bpf_fd: fd.as_raw_fd().cast_unsigned(),
        info_len: size_of::<MapInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    #[expect(unsafe_code, reason = "bpf(2) takes addresses as numbers")]
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, of which every bit pattern is a `MapInfo`, and which
    // lives until the call returns.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// One `bpf(2)` call. The kernel takes what is beyond `attr` in `union bpf_attr` as zero.
///
/// # Safety
/// `attr` is the front part of `union bpf_attr` that the command reads, without padding, and the addresses in it are those
/// of memory that the kernel may read and write as the command says until the call returns.
#[expect(unsafe_code, reason = "no crate in the tree wraps bpf(2)")]
unsafe fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: `attr` is borrowed until the call returns, and of the size that is given; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
