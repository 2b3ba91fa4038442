//! Unix listeners for the admin, xDS and access-log sockets.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::NetError;

/// Opens a listener on the Unix socket `path` with file mode `mode` (for example `0o660`).
///
/// Missing parent directories are created. A socket file that nobody answers on (left by a process that was killed) is
/// replaced; one that somebody answers on, and any file that is not a socket, is left alone and is an error.
pub fn listen_unix(path: &Path, mode: u32) -> Result<UnixListener, NetError> {
    let fail = |operation: &'static str, remedy: &'static str| {
        move |error: io::Error| NetError::ListenUnix { path: path.to_owned(), operation, error, remedy }
    };
    let address = SockAddr::unix(path).map_err(fail("address", "; socket paths have at most 107 bytes"))?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(fail("create the directory", ""))?;
    }
    remove_stale(path, &address).map_err(fail(
        "bind",
        "; another process answers on it, or it is no socket: stop it, or choose another path",
    ))?;

    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(fail("socket", ""))?;
    // Before bind, so that the file never exists with more permission than asked for ...
    rustix::fs::fchmod(&socket, mode.into()).map_err(|e| fail("fchmod", "")(e.into()))?;
    socket.bind(&address).map_err(fail("bind", ""))?;
    // ... and after it, because bind takes the umask's bits away.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fail("chmod", ""))?;
    socket.listen(1024).map_err(fail("listen", ""))?;
    Ok(socket.into())
}

/// The file of a Unix socket, removed when this is dropped, so that nobody takes it for one that answers. One that has taken
/// its place since stays: it is another process's.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl SocketFile {
    /// Takes charge of the file at `path`, on which the caller listens.
    pub fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), inode: inode(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            // Whoever comes next replaces what is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Removes the socket file at `path` if no process listens on it.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let in_use = || Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
    if !metadata.file_type().is_socket() {
        return in_use();
    }
    // Non-blocking: a listener whose queue is full answers EAGAIN, and is alive.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => in_use(),
    }
}
