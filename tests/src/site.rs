//! The place where one loopback test runs: an address nobody else uses and a directory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Port of the proxy's listener `http`; its policy is [`crate::policy::http`] in most tests.
pub const HTTP_PORT: u16 = 25080;
/// Port of the proxy's listener `tcp`.
pub const TCP_PORT: u16 = 25081;
/// Taken by the owner of an address for as long as it uses it.
const CLAIM_PORT: u16 = 25079;

/// An address out of 127.0.0.0/8 and a temporary directory. Ports need no search: those below the ephemeral range are
/// free on an address of one's own.
#[derive(Debug)]
pub struct Site {
    ip: Ipv4Addr,
    _claim: TcpListener,
    directory: TempDir,
}

impl Site {
    /// A place that no other test has, in this process or another.
    ///
    /// # Panics
    /// When no address can be had.
    #[expect(clippy::new_without_default, reason = "each is different")]
    pub fn new() -> Self {
        let (ip, claim) = crate::wait::until("a free loopback address", || {
            let ip = Ipv4Addr::new(127, fastrand::u8(64..128), fastrand::u8(..), fastrand::u8(1..255));
            TcpListener::bind((ip, CLAIM_PORT)).ok().map(|claim| (ip, claim))
        });
        Self { ip, _claim: claim, directory: tempfile::tempdir().unwrap() }
    }

    /// The address of proxy, upstream and endpoint.
    pub fn ip(&self) -> IpAddr {
        self.ip.into()
    }

    /// `port` of the address.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// A file or directory of this test.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }
}
