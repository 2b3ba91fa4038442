//! The map from addresses to security identities (`spec/cilium-agent.md` section 5.6, `cilium-filter.md` section 2.2).

use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::{BPF_MAP_TYPE_LPM_TRIE, MapError, PinState, PinnedMap, Shape};

/// Older datapaths have values of 4 or 12 bytes, today's 24; the identity is the first word in all of them.
const SHAPE: Shape =
    Shape { name: "an ipcache, an LPM trie", kinds: &[BPF_MAP_TYPE_LPM_TRIE], key: 24, value: 4..=MAX_VALUE };
const MAX_VALUE: u32 = 64;

/// Bits of a key in front of the address; each lookup fixes them and the whole address.
const FIXED_BITS: u32 = 32;

/// The datapath's ipcache. Any number of threads may look up at a time.
#[derive(Debug)]
pub struct Ipcache(PinnedMap);

impl Ipcache {
    /// Opens the map that is pinned at `path`, for reading.
    ///
    /// # Errors
    /// There is no such pin, it may not be opened, or it is something else.
    pub fn open(path: &Path) -> Result<Self, MapError> {
        PinnedMap::open(path, &SHAPE).map(Self)
    }

    /// The identity of the longest prefix that covers `address`; `None` when no entry does. IPv4-mapped IPv6 addresses
    /// count as IPv4. One system call, no allocation.
    ///
    /// # Errors
    /// The kernel refused: nothing is known about the address.
    pub fn lookup(&self, address: IpAddr) -> io::Result<Option<u32>> {
        let mut value = [0; MAX_VALUE as usize];
        let found = self.0.lookup(&key(address), &mut value)?;
        let [a, b, c, d, ..] = value;
        Ok(found.then_some(u32::from_ne_bytes([a, b, c, d])))
    }

    /// The kernel's number of the map, as `bpftool` shows it.
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// What became of the pin.
    pub fn pin(&self) -> PinState {
        self.0.state()
    }
}

/// `u32` prefix length in the host's order, `u16` cluster 0, `u8` 0, `u8` family, and the address in network order, an
/// IPv4 one in the first 4 of its 16 bytes.
fn key(address: IpAddr) -> [u8; 24] {
    let mut key = [0; 24];
    let (bits, family) = match address.to_canonical() {
        IpAddr::V4(v4) => {
            key[8..12].copy_from_slice(&v4.octets());
            (32, 1)
        }
        IpAddr::V6(v6) => {
            key[8..].copy_from_slice(&v6.octets());
            (128, 2)
        }
    };
    key[..4].copy_from_slice(&(FIXED_BITS + bits).to_ne_bytes());
    key[7] = family;
    key
}
