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
}

impl Groups {
    pub(super) fn new(handle: Handle) -> Self {
        let built_in = |tenant| handle.group(GroupKey { tenant, flow: 0 });
        Self { system: built_in(TenantId::SYSTEM), accept: built_in(TenantId::ACCEPT), handle }
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
        self.handle.group(GroupKey { tenant, flow: 0 })
    }
}
