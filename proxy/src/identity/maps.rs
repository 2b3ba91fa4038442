//! The datapath's maps, opened. Made on the control thread and replaced as a whole: a worker only reads them.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tollgate_net::{Conntrack, ConntrackFlow, Ipcache, MapError, PinState};

use crate::config::{Identities, IdentitySettings};

/// Counts the times that maps were opened.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// A map, or why it cannot be used.
type Opened<M> = Result<Arc<M>, MapError>;

/// The maps that the settings name. What could not be opened stays in it as the reason, and every lookup in it fails.
#[derive(Debug)]
pub struct Maps {
    ipcache: Option<Opened<Ipcache>>,
    conntrack: Option<(Opened<Conntrack>, Opened<Conntrack>)>,
    serial: u64,
    /// Set by a worker whose lookup failed.
    failed: AtomicBool,
}

/// What is to be done about maps that were opened some time ago. Each map is looked at for itself: that one is gone says nothing
/// about the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapState {
    /// Open them again: a pin is another map, a lookup failed, or there was nothing to open before.
    pub stale: bool,
    /// A pin is gone. What is open can still be read, but nobody may be writing to it any more.
    pub orphaned: bool,
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
    /// Opens what `settings` names; `None` when that is no map at all. A map of `before` whose pin is gone, and which can still be
    /// read, stays.
    pub fn open(settings: &IdentitySettings, before: Option<&Self>) -> Option<Self> {
        let before = before.filter(|maps| !maps.has_failed());
        let ipcache = match &settings.source {
            Identities::Ipcache(path) => {
                let before = before.and_then(|maps| maps.ipcache.as_ref());
                Some(open_or_keep(Ipcache::open(path), before, Ipcache::pin))
            }
            Identities::Static(_) | Identities::Nphds | Identities::Agent => None,
        };
        let conntrack = settings.conntrack.as_deref().map(|directory: &Path| {
            let (v4, v6) =
                before.and_then(|maps| maps.conntrack.as_ref()).map_or((None, None), |(v4, v6)| (Some(v4), Some(v6)));
            let opened_v4 = Conntrack::open_v4(&directory.join("cilium_ct4_global"));
            let opened_v6 = Conntrack::open_v6(&directory.join("cilium_ct6_global"));
            (open_or_keep(opened_v4, v4, Conntrack::pin), open_or_keep(opened_v6, v6, Conntrack::pin))
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
        let mut state = MapState { stale: self.has_failed(), orphaned: false };
        for pin in self.pins() {
            match pin {
                Ok(PinState::Same) => {}
                Ok(PinState::Missing) => state.orphaned = true,
                Ok(PinState::Replaced) | Err(_) => state.stale = true,
            }
        }
        state
    }

    fn pins(&self) -> impl Iterator<Item = Result<PinState, &MapError>> {
        let ipcache = self.ipcache.iter().map(|map| map.as_deref().map(Ipcache::pin));
        let conntrack = self.conntrack.iter().flat_map(|(v4, v6)| [v4, v6]);
        ipcache.chain(conntrack.map(|map| map.as_deref().map(Conntrack::pin)))
    }

    /// Every map, for status.
    pub fn views(&self) -> Vec<MapView> {
        fn view<M>(name: &'static str, map: &Opened<M>, id: impl Fn(&M) -> u32) -> MapView {
            MapView { name, state: map.as_deref().map(id).map_err(ToString::to_string) }
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

/// What was opened; or else what was open before, where it has lost its pin and would be lost with it.
fn open_or_keep<M>(opened: Result<M, MapError>, before: Option<&Opened<M>>, pin: impl Fn(&M) -> PinState) -> Opened<M> {
    match (opened, before) {
        (Ok(map), _) => Ok(Arc::new(map)),
        (Err(_), Some(Ok(map))) if pin(map) == PinState::Missing => Ok(Arc::clone(map)),
        (Err(error), _) => Err(error),
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
