//! Where identities come from at one moment: a part of the World.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate_net::ConntrackFlow;
use tollgate_policy::SecurityId;

use super::{Asking, IdentityTable, Maps};
use crate::config::{Identities, IdentityMode, IdentitySettings};
use crate::metrics::{IdentityMap, LookupResult, Worker as Metrics};

/// What a source says: an identity, no entry, or that it cannot say.
pub type Answer = Result<Option<SecurityId>, Unavailable>;

/// Which source cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The first state of NetworkPolicyHosts has not come yet.
    #[error("no NetworkPolicyHosts has come from the control plane yet")]
    Hosts,
    /// The agent has not named its maps yet.
    #[error("no listener of the control plane has named the maps of identities yet")]
    Agent,
    /// The ipcache.
    #[error("the ipcache cannot be read")]
    Ipcache,
    /// The conntrack map of the flow's family.
    #[error("the conntrack map cannot be read")]
    Conntrack,
}

/// The sources of identities in force.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `None` until NetworkPolicyHosts has come.
    table: Option<Arc<IdentityTable>>,
    maps: Option<Arc<Maps>>,
    settings: Arc<IdentitySettings>,
}

impl Sources {
    /// The sources of `settings`, with the maps opened. `table` has the listed identities, or what NetworkPolicyHosts said;
    /// nobody is looked up in it where there is an ipcache.
    pub fn new(settings: &IdentitySettings, table: Option<Arc<IdentityTable>>) -> Self {
        Self { table, maps: Maps::open(settings, None).map(Arc::new), settings: Arc::new(settings.clone()) }
    }

    /// Only this table.
    pub fn of_table(table: IdentityTable) -> Self {
        let settings = IdentitySettings::new(Identities::Static(Vec::new()));
        Self::new(&settings, Some(Arc::new(table)))
    }

    /// The same sources with another table.
    #[must_use]
    pub fn with_table(&self, table: IdentityTable) -> Self {
        Self { table: Some(Arc::new(table)), ..self.clone() }
    }

    /// The same sources with the maps opened anew, but for those whose pin is gone; `None` where there are none.
    pub fn reopened(&self) -> Option<Self> {
        let before = self.maps.as_deref()?;
        Some(Self { maps: Maps::open(&self.settings, Some(before)).map(Arc::new), ..self.clone() })
    }

    /// The same with every map opened anew, whatever becomes of it; `None` where there are none.
    pub fn opened_anew(&self) -> Option<Self> {
        self.maps.is_some().then(|| Self::new(&self.settings, self.table.clone()))
    }

    /// What these are the sources of.
    pub fn settings(&self) -> &IdentitySettings {
        &self.settings
    }

    /// What NetworkPolicyHosts said, whether it is used now or not.
    pub fn hosts(&self) -> Option<Arc<IdentityTable>> {
        self.table.clone().filter(|_| !matches!(self.settings.source, Identities::Static(_)))
    }

    /// Whose word counts.
    pub(crate) fn mode(&self) -> IdentityMode {
        self.settings.mode
    }

    /// How long an answer of the ipcache may be used.
    pub(crate) fn ttl(&self) -> Duration {
        self.settings.ttl
    }

    /// The open maps.
    pub fn maps(&self) -> Option<&Arc<Maps>> {
        self.maps.as_ref()
    }

    /// The maps, where the identities of addresses are in one: what it says now it may not say in a moment, and each
    /// question is a system call.
    pub(crate) fn ipcache(&self) -> Option<&Maps> {
        self.maps.as_deref().filter(|maps| maps.has_ipcache())
    }

    /// What `address` carries.
    ///
    /// # Errors
    /// The source cannot be asked.
    pub fn address(&self, address: IpAddr) -> Answer {
        match (&self.settings.source, self.ipcache(), &self.table) {
            (Identities::Agent, ..) => Err(Unavailable::Agent),
            (_, Some(maps), _) => match maps.address(address) {
                Ok(identity) => Ok(identity.and_then(known)),
                Err(_) => Err(Unavailable::Ipcache),
            },
            (_, None, Some(table)) => Ok(table.lookup(address)),
            (_, None, None) => Err(Unavailable::Hosts),
        }
    }

    /// How the ipcache is asked about the addresses of a worker's connections; `None` where there is none.
    pub(crate) fn asking(&self, now: Instant, metrics: &Metrics) -> Option<Asking<impl Fn(IpAddr) -> Answer>> {
        let maps = self.ipcache()?;
        let ask = |address| {
            let answer = self.address(address);
            metrics.identity_lookup(IdentityMap::Ipcache, LookupResult::of(&answer));
            answer
        };
        Some(Asking { ttl: self.ttl(), serial: maps.serial(), now, ask })
    }

    /// What the first packet of the flow carried; nothing where conntrack is not asked.
    ///
    /// # Errors
    /// The source cannot be asked.
    pub(crate) fn conntrack(&self, flow: &ConntrackFlow, metrics: &Metrics) -> Answer {
        let Some(maps) = self.maps.as_deref().filter(|maps| maps.has_conntrack()) else { return Ok(None) };
        let answer = match maps.source(flow) {
            Ok(identity) => Ok(identity.and_then(known)),
            Err(_) => Err(Unavailable::Conntrack),
        };
        metrics.identity_lookup(IdentityMap::Conntrack, LookupResult::of(&answer));
        answer
    }

    /// What has to come before identities can be looked up, for readiness: `None` when they can, or when nobody asks. An agent
    /// names its maps with its first listener, and has none while no policy needs one.
    pub fn waits_for(&self) -> Option<String> {
        let problems = self.maps.iter().flat_map(|maps| maps.problems());
        let awaits_hosts = self.settings.source == Identities::Nphds && self.table.is_none();
        let hosts = awaits_hosts.then(|| Unavailable::Hosts.to_string());
        let all: Vec<String> = problems.chain(hosts).collect();
        (!all.is_empty()).then(|| format!("identities: {}", all.join("; ")))
    }

    /// Every entry of the table, for dumps. Maps are not dumped.
    pub fn entries(&self) -> impl Iterator<Item = (IpNet, SecurityId)> {
        self.table.iter().flat_map(|table| table.entries())
    }
}

/// 0 is what the datapath writes where it does not know.
fn known(identity: u32) -> Option<SecurityId> {
    (identity != 0).then_some(SecurityId(identity))
}
