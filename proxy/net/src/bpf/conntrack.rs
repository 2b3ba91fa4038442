//! The datapath's connection tracking, for the one thing that a proxy reads in it: the source identity that the first
//! packet of a connection carried (`spec/cilium-agent.md` section 5.5, `cilium-filter.md` section 2.3).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::{BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH, MapError, PinState, PinnedMap, Shape};

const VALUE: usize = 56;
/// Where `src_sec_id` is in a value. The datapath promises not to move it.
const SOURCE_IDENTITY: usize = 44;
const TCP: u8 = 6;

const KINDS: &[u32] = &[BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH];
const SHAPE_V4: Shape =
    Shape { name: "an IPv4 conntrack map, a hash", kinds: KINDS, key: 14, value: VALUE as u32..=VALUE as u32 };
const SHAPE_V6: Shape =
    Shape { name: "an IPv6 conntrack map, a hash", kinds: KINDS, key: 38, value: VALUE as u32..=VALUE as u32 };

/// The conntrack map of one address family. Any number of threads may look up at a time.
#[derive(Debug)]
pub struct Conntrack {
    map: PinnedMap,
    ipv4: bool,
}

/// A TCP connection as the datapath tracks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackFlow {
    /// Who connected.
    pub source: SocketAddr,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// Towards the local endpoint, so on an ingress listener.
    pub ingress: bool,
}

impl Conntrack {
    /// Opens the IPv4 map that is pinned at `path`, for reading.
    ///
    /// # Errors
    /// There is no such pin, it may not be opened, or it is something else.
    pub fn open_v4(path: &Path) -> Result<Self, MapError> {
        PinnedMap::open(path, &SHAPE_V4).map(|map| Self { map, ipv4: true })
    }

    /// The same for IPv6.
    ///
    /// # Errors
    /// As [`Conntrack::open_v4`].
    pub fn open_v6(path: &Path) -> Result<Self, MapError> {
        PinnedMap::open(path, &SHAPE_V6).map(|map| Self { map, ipv4: false })
    }

    /// The identity of the flow's source; `None` when the flow is not tracked, its identity is not known (0), or its
    /// addresses are not of this map's family. One system call, no allocation.
    ///
    /// # Errors
    /// The kernel refused: nothing is known about the flow.
    pub fn source_identity(&self, flow: &ConntrackFlow) -> io::Result<Option<u32>> {
        let mut value = [0; VALUE];
        let found = match (flow.source.ip().to_canonical(), flow.destination.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) if self.ipv4 => {
                self.map.lookup::<14>(&key(&source.octets(), &destination.octets(), flow), &mut value)?
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) if !self.ipv4 => {
                self.map.lookup::<38>(&key(&source.octets(), &destination.octets(), flow), &mut value)?
            }
            _ => false,
        };
        let mut identity = [0; 4];
        identity.copy_from_slice(&value[SOURCE_IDENTITY..SOURCE_IDENTITY + 4]);
        let identity = u32::from_ne_bytes(identity);
        Ok((found && identity != 0).then_some(identity))
    }

    /// The kernel's number of the map, as `bpftool` shows it.
    pub fn id(&self) -> u32 {
        self.map.id
    }

    /// What became of the pin.
    pub fn pin(&self) -> PinState {
        self.map.state()
    }
}

/// Source address, destination address, *destination* port, source port, all in network order, protocol, and 1 for
/// ingress or 0 for egress; nothing between them.
fn key<const A: usize, const K: usize>(source: &[u8; A], destination: &[u8; A], flow: &ConntrackFlow) -> [u8; K] {
    const { assert!(K == 2 * A + 6) };
    let mut key = [0; K];
    key[..A].copy_from_slice(source);
    key[A..2 * A].copy_from_slice(destination);
    key[2 * A..2 * A + 2].copy_from_slice(&flow.destination.port().to_be_bytes());
    key[2 * A + 2..2 * A + 4].copy_from_slice(&flow.source.port().to_be_bytes());
    key[2 * A + 4] = TCP;
    key[2 * A + 5] = u8::from(flow.ingress);
    key
}
