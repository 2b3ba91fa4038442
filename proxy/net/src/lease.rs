//! Whether somebody has a file open to write, asked of the kernel, which knows it whenever they began and by whatever name.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use libc::{F_RDLCK, F_SETLEASE, F_UNLCK, c_int};
use rustix::fs::fstatfs;

/// `asm-generic/fcntl.h`, for the architectures that this is built for: which signal says that somebody wants to write.
const F_SETSIG: c_int = 10;

/// File systems that refuse a lease also when nobody writes (`linux/magic.h`): NFS and both of SMB. They give one only for what the server
/// has delegated.
const DELEGATING: [u32; 3] = [0x6969, 0xff53_4d42, 0xfe53_4d42];

/// Whether anybody has the file open to write, or mapped to write. It has to have been opened to read only.
///
/// Whoever opens it to write at this very moment is held up for the microseconds that this takes, or refused with `EWOULDBLOCK` if they
/// gave `O_NONBLOCK`.
///
/// # Errors
/// The kernel does not tell: the file is another user's and the process lacks `CAP_LEASE`, or its file system has no leases of its own.
pub fn is_open_to_write(file: &File) -> io::Result<bool> {
    let Err(error) = Lease::take(file) else { return Ok(false) };
    if error.raw_os_error() != Some(libc::EAGAIN) {
        return Err(error);
    }
    // Their number has 32 bits, in whatever type it comes.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "only those bits are compared")]
    let file_system = fstatfs(file)?.f_type as u32;
    if DELEGATING.contains(&file_system) { Err(io::ErrorKind::Unsupported.into()) } else { Ok(true) }
}

/// A lease to read, which is given only while nobody has the file open to write.
struct Lease<'f>(&'f File);

impl<'f> Lease<'f> {
    fn take(file: &'f File) -> io::Result<Self> {
        // The signal would be SIGIO, which ends the process; SIGURG does nothing.
        control(file, F_SETSIG, libc::SIGURG)?;
        control(file, F_SETLEASE, F_RDLCK)?;
        Ok(Self(file))
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Cannot fail for one that was taken.
        let _ = control(self.0, F_SETLEASE, F_UNLCK);
    }
}

#[expect(unsafe_code, reason = "rustix has no leases")]
fn control(file: &File, command: c_int, argument: c_int) -> io::Result<()> {
    // SAFETY: the descriptor lives as long as `file`, and both commands take a number and touch no memory of the process.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn it_tells_who_has_begun_before_and_by_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&path, "half").unwrap();
        std::fs::hard_link(&path, &other).unwrap();
        let file = File::open(&path).unwrap();
        assert!(!is_open_to_write(&file).unwrap());
        for name in [&path, &other] {
            let writer = File::options().append(true).open(name).unwrap();
            assert!(is_open_to_write(&file).unwrap());
            assert!(is_open_to_write(&File::open(&path).unwrap()).unwrap());
            drop(writer);
            assert!(!is_open_to_write(&file).unwrap());
        }
        let _reader = File::open(&path).unwrap();
        assert!(!is_open_to_write(&file).unwrap(), "who only reads it writes nothing");
        is_open_to_write(&File::open(folder.path()).unwrap()).expect_err("a directory has none");
    }

    #[test]
    fn whoever_wants_to_write_meanwhile_waits_and_ends_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "whole").unwrap();
        let file = File::open(&path).unwrap();
        let lease = Lease::take(&file).unwrap();
        let writer = thread::spawn(move || File::create(path).unwrap());
        // They wait, and the signal was sent, once the kernel calls the lease one that is to go.
        while held(&file) == F_RDLCK {
            thread::yield_now();
        }
        drop(lease);
        let writer = writer.join().unwrap();
        assert!(is_open_to_write(&file).unwrap());
        drop(writer);
        assert!(!is_open_to_write(&file).unwrap());
    }

    #[expect(unsafe_code, reason = "rustix has no leases")]
    fn held(file: &File) -> c_int {
        // SAFETY: the descriptor lives as long as `file`, and the command touches no memory of the process.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) }
    }
}
