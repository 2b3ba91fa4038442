//! The datapath's maps, opened. Made on the control thread and replaced as a whole: a worker only reads them.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tollgate_net::{Conntrack, ConntrackFlow, Ipcache, MapError, PinState};

use crate::config::{Identities, IdentitySettings};

/// Counts the times that maps were opened.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// A map, or why it cannot be used.
type Opened<M> = Result<M, MapError>;

/// The maps that the settings name. What could not be opened stays in it as the reason, and every lookup in it fails.
#[derive(Debug)]
pub struct Maps {
    ipcache: Option<Opened<Ipcache>>,
    conntrack: Option<(Opened<Conntrack>, Opened<Conntrack>)>,
    serial: u64,
    /// Set by a worker whose lookup failed.
    failed: AtomicBool,
}

/// What is to be done about maps that were opened some time ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapState {
    /// Nothing: each is what its pin is.
    Current,
    /// Open them again: a pin is another map, a lookup failed, or there was nothing to open before.
    Stale,
    /// A pin is gone. What is open can still be read, but nobody may be writing to it any more.
    Orphaned,
}

/// One map, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapView {
    /// `ipcache`, `conntrack4` or `conntrack6`.
    pub name: &'static str,
    /// The kernel's number of the map, or why it cannot be used.
    pub state: Result<u32, String>,
}

impl Maps {
    /// Opens what `settings` names; `None` when that is no map at all.
    pub fn open(settings: &IdentitySettings) -> Option<Self> {
        let ipcache = match &settings.source {
            Identities::Ipcache(path) => Some(Ipcache::open(path)),
            Identities::Static(_) | Identities::Nphds | Identities::Agent => None,
        };
        let conntrack = settings.conntrack.as_deref().map(|directory: &Path| {
            let v4 = Conntrack::open_v4(&directory.join("cilium_ct4_global"));
            (v4, Conntrack::open_v6(&directory.join("cilium_ct6_global")))
        });
        let serial = OPENED.fetch_add(1, Ordering::Relaxed) + 1;
        (ipcache.is_some() || conntrack.is_some()).then_some(Self {
            ipcache,
            conntrack,
            serial,
            failed: AtomicBool::new(false),
        })
    }

    /// Different for each time that maps were opened.
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// Whether identities of addresses come from a map.
    pub(crate) fn has_ipcache(&self) -> bool {
        self.ipcache.is_some()
    }

    pub(crate) fn has_conntrack(&self) -> bool {
        self.conntrack.is_some()
    }

    /// `None` without an entry.
    ///
    /// # Errors
    /// Nothing is known about the address.
    pub(crate) fn address(&self, address: IpAddr) -> Result<Option<u32>, LookupFailed> {
        match &self.ipcache {
            Some(Ok(map)) => map.lookup(address).map_err(|error| self.note(&error)),
            Some(Err(_)) | None => Err(LookupFailed),
        }
    }

    /// Identity of the flow's source; `None` without an entry.
    ///
    /// # Errors
    /// Nothing is known about the flow.
    pub(crate) fn source(&self, flow: &ConntrackFlow) -> Result<Option<u32>, LookupFailed> {
        let Some((v4, v6)) = &self.conntrack else { return Ok(None) };
        let map = if flow.source.ip().to_canonical().is_ipv4() { v4 } else { v6 };
        match map {
            Ok(map) => map.source_identity(flow).map_err(|error| self.note(&error)),
            Err(_) => Err(LookupFailed),
        }
    }

    fn note(&self, error: &io::Error) -> LookupFailed {
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "looking up an identity failed; the maps are opened again");
        }
        LookupFailed
    }

    /// Whether a lookup in an open map failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether the maps are still what is pinned. Looks at each pin.
    pub fn state(&self) -> MapState {
        if self.has_failed() {
            return MapState::Stale;
        }
        let mut state = MapState::Current;
        for pin in self.pins() {
            match pin {
                Ok(PinState::Same) => {}
                // Opening anew would lose it, so this comes before any other reason to do that.
                Ok(PinState::Missing) => return MapState::Orphaned,
                Ok(PinState::Replaced) | Err(_) => state = MapState::Stale,
            }
        }
        state
    }

    fn pins(&self) -> impl Iterator<Item = Result<PinState, &MapError>> {
        let ipcache = self.ipcache.iter().map(|map| map.as_ref().map(Ipcache::pin));
        let conntrack = self.conntrack.iter().flat_map(|(v4, v6)| [v4, v6]);
        ipcache.chain(conntrack.map(|map| map.as_ref().map(Conntrack::pin)))
    }

    /// Every map, for status.
    pub fn views(&self) -> Vec<MapView> {
        fn view<M>(name: &'static str, map: &Opened<M>, id: impl Fn(&M) -> u32) -> MapView {
            MapView { name, state: map.as_ref().map(id).map_err(ToString::to_string) }
        }
        let ipcache = self.ipcache.iter().map(|map| view("ipcache", map, Ipcache::id));
        let conntrack = self
            .conntrack
            .iter()
            .flat_map(|(v4, v6)| [view("conntrack4", v4, Conntrack::id), view("conntrack6", v6, Conntrack::id)]);
        ipcache.chain(conntrack).collect()
    }

    /// Why flows are refused now that could be judged otherwise: the ipcache, or both conntrack maps, cannot be used. A
    /// family that the datapath does not have has no conntrack map, and no flows.
    pub fn problems(&self) -> Vec<String> {
        let ipcache = self.ipcache.iter().filter_map(|map| map.as_ref().err());
        let conntrack = self.conntrack.iter().filter_map(|families| match families {
            (Err(v4), Err(_)) => Some(v4),
            _ => None,
        });
        ipcache.chain(conntrack).map(ToString::to_string).collect()
    }
}

/// A map cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LookupFailed;

impl fmt::Display for MapView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            Ok(id) => write!(f, "{} (map {id})", self.name),
            Err(reason) => write!(f, "{}: {reason}", self.name),
        }
    }
}
