//! Who is charged for the time of a worker.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::rc::Rc;

use tollgate_schedule::{Account, Group, GroupKey, Handle, TenantId, Usage};

use super::Arrivals;
use super::run::share;
use crate::tenant::Table;

/// Makes the groups that the tasks of a worker run in.
#[derive(Debug)]
pub(crate) struct Groups {
    handle: Handle,
    /// By keys of its own, so that nobody can choose an address that shares the flow of somebody else's.
    addresses: RandomState,
    /// Noted where somebody asks.
    arrivals: Option<Rc<Arrivals>>,
    /// The worker's own chores.
    pub(crate) system: Group,
    /// Accept loops.
    pub(crate) accept: Group,
}

impl Groups {
    pub(super) fn new(handle: Handle, arrivals: Option<Rc<Arrivals>>) -> Self {
        let built_in = |tenant| handle.group(GroupKey { tenant, flow: 0 });
        Self {
            system: built_in(TenantId::SYSTEM),
            accept: built_in(TenantId::ACCEPT),
            addresses: RandomState::new(),
            arrivals,
            handle,
        }
    }

    /// Lets tenants have the shares of this table from now on, on each of so many workers.
    pub(crate) fn follow(&self, tenants: &Table, workers: u32) {
        for (tenant, settings) in tenants.groups() {
            self.handle.set_share(tenant, share(settings, workers));
        }
    }

    /// Shows what the scheduler counts for each tenant that has a connection here.
    pub(crate) fn accounts(&self, each: impl FnMut(TenantId, &Account)) {
        self.handle.accounts(each);
    }

    /// Who has begun to run here since this was last asked, with what its account said then; some may be gone already.
    pub(crate) fn arrivals(&self) -> HashMap<TenantId, Usage> {
        self.arrivals.as_deref().map(Arrivals::take).unwrap_or_default()
    }

    /// The group of a new connection, whose remote identity is found out in its first turn: until then it shares with those from, or
    /// to, its remote address. Otherwise one that connects again and again would have all others of its tenant wait behind it.
    pub(crate) fn of_connection(&self, tenant: TenantId, remote: IpAddr) -> Group {
        self.handle.group(GroupKey { tenant, flow: flow_of(remote, &self.addresses) })
    }
}

fn flow_of(remote: IpAddr, keys: &impl BuildHasher) -> u32 {
    let network = match remote.to_canonical() {
        IpAddr::V4(address) => address.to_bits().into(),
        // Of a cluster's own addresses each is another pod, and a node has many in one network.
        IpAddr::V6(address) if address.is_unique_local() => address.to_bits(),
        // Whoever else has one address has all of its network.
        IpAddr::V6(address) => address.to_bits() >> 64,
    };
    GroupKey::NEWCOMER | keys.hash_one(network) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_connection_shares_with_those_of_its_remote_network_only() {
        let keys = RandomState::new();
        let flow = |address: &str| flow_of(address.parse().unwrap(), &keys);
        assert_eq!(flow("10.0.0.1"), flow("::ffff:10.0.0.1"));
        assert_eq!(flow("2001:db8::1"), flow("2001:db8::ffff:2"));
        assert_ne!(flow("fd00::1"), flow("fd00::2"), "pods of one node");
        let others: std::collections::BTreeSet<u32> = (1..=100).map(|last| flow(&format!("10.0.0.{last}"))).collect();
        assert!(others.len() > 95, "{}", others.len());
        assert!(others.iter().all(|flow| flow & GroupKey::NEWCOMER != 0), "no identity has it");
    }
}
