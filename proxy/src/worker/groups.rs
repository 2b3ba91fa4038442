//! Who is charged for the time of a worker.

use tollgate_schedule::{Account, Group, GroupKey, Handle, TenantId};

use super::run::share;
use crate::tenant::Table;

/// Makes the groups that the tasks of a worker run in.
#[derive(Debug)]
pub(crate) struct Groups {
    handle: Handle,
    /// The worker's own chores.
    pub(crate) system: Group,
    /// Accept loops.
    pub(crate) accept: Group,
    fairness: bool,
}

impl Groups {
    /// Without `fairness` everything runs in one group, in the order of its wakes.
    pub(super) fn new(handle: Handle, fairness: bool) -> Self {
        let built_in = |tenant| {
            let tenant = if fairness { tenant } else { TenantId::UNKNOWN };
            handle.group(GroupKey { tenant, flow: 0 })
        };
        Self { system: built_in(TenantId::SYSTEM), accept: built_in(TenantId::ACCEPT), handle, fairness }
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

    /// The group of a new connection, whose remote identity is not known yet.
    pub(crate) fn of_connection(&self, tenant: TenantId) -> Group {
        self.handle.group(self.key(tenant, 0))
    }

    /// Who is charged for a connection: its tenant, and for its part of that the remote identity, as the flow.
    pub(crate) fn key(&self, tenant: TenantId, flow: u32) -> GroupKey {
        if self.fairness { GroupKey { tenant, flow } } else { self.system.key() }
    }
}
