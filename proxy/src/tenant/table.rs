//! Which tenant pays for an endpoint, at one moment: a part of the World.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use tollgate_policy::SecurityId;

use super::commons::Space;
use super::{Guarantee, Isolation, Settings, TenantId};
use crate::prefixes::Prefixes;

/// An immutable table. Endpoints are found by their number in one probe, addresses in as many as there are different
/// lengths of prefixes.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub(super) groups: Arc<GroupTable>,
    /// Endpoints that are tenants of their own.
    pub(super) own: Arc<HashMap<u64, TenantId>>,
}

/// Whom configured groups consist of.
#[derive(Debug, Default)]
pub(super) struct GroupTable {
    pub(super) endpoints: HashMap<u64, TenantId>,
    pub(super) addresses: Prefixes<TenantId>,
    pub(super) identities: HashMap<SecurityId, TenantId>,
    pub(super) settings: HashMap<TenantId, Arc<Settings>>,
    /// Those that have guarantees of places.
    pub(super) guaranteed: Vec<(TenantId, Guarantee)>,
    /// Of every endpoint that is in no group.
    pub(super) default: Arc<Settings>,
}

/// What the kernel's addresses say about the local end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct LocalEnd {
    /// Number of the endpoint whose policy is enforced; `None` when it has none.
    pub endpoint: Option<u64>,
    /// Its address; `None` where the endpoint is known by a name.
    pub address: Option<IpAddr>,
}

impl Table {
    /// The tenant that pays. `identity` is what the address carries; it is asked for only where a group has members by
    /// identity and none of another kind matches.
    pub fn tenant(&self, end: LocalEnd, identity: impl FnOnce(IpAddr) -> Option<SecurityId>) -> TenantId {
        let groups = &*self.groups;
        if let Some(tenant) = end.endpoint.and_then(|endpoint| groups.endpoints.get(&endpoint)) {
            return *tenant;
        }
        if let Some(address) = end.address {
            if let Some(tenant) = groups.addresses.lookup(address) {
                return tenant;
            }
            if !groups.identities.is_empty()
                && let Some(tenant) = identity(address).and_then(|identity| groups.identities.get(&identity))
            {
                return *tenant;
            }
        }
        end.endpoint.and_then(|endpoint| self.own.get(&endpoint).copied()).unwrap_or(TenantId::UNKNOWN)
    }

    /// The group of an endpoint that has these addresses: by its number, or else by the first address that any group has. Members
    /// by identity are known by their connections only.
    pub fn group(&self, endpoint: u64, mut addresses: impl Iterator<Item = IpAddr>) -> Option<TenantId> {
        let by_number = self.groups.endpoints.get(&endpoint).copied();
        by_number.or_else(|| addresses.find_map(|address| self.groups.addresses.lookup(address)))
    }

    /// What those may use that are in no group.
    pub fn default_settings(&self) -> &Settings {
        &self.groups.default
    }

    /// Endpoints that are in no group.
    pub fn endpoints(&self) -> usize {
        self.own.len()
    }

    /// Groups and what they may use.
    pub fn groups(&self) -> impl Iterator<Item = (TenantId, &Settings)> {
        self.groups.settings.iter().map(|(id, settings)| (*id, &**settings))
    }

    /// Places that are kept free for somebody. What is guaranteed to every endpoint is not: nobody knows how many there are.
    pub(super) fn guarantees(&self, space: Space) -> impl Iterator<Item = (TenantId, u32)> {
        let places = move |(id, guarantee): &(TenantId, Guarantee)| Some((*id, guarantee.of(space)?.get()));
        self.groups.guaranteed.iter().filter_map(places)
    }

    /// Tenants that are to be kept apart.
    pub(crate) fn isolated(&self) -> impl Iterator<Item = TenantId> + '_ {
        let kept_apart = |settings: &Settings| settings.isolation == Isolation::Lane;
        let groups = self.groups().filter(move |(_, settings)| kept_apart(settings)).map(|(id, _)| id);
        let own = kept_apart(&self.groups.default).then(|| self.own.values().copied());
        groups.chain(own.into_iter().flatten())
    }

    /// What `tenant` may use. Those that are in no group, and share a place, have the settings of any endpoint.
    pub fn settings(&self, tenant: TenantId) -> &Settings {
        self.groups.settings.get(&tenant).unwrap_or(&self.groups.default)
    }
}
