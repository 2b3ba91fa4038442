//! Tenants from files and control planes. One that makes no sense is set aside alone and listed; nothing is refused as a
//! whole, so that one team's mistake holds up nobody.

use std::sync::Arc;

use tollgate_proto::tenant::Tenant;
use tollgate_xds::{Handler, Rejection, State, Update};

use super::Control;
use super::world::after_publishing;
use crate::policy_file::FilePlace;
use crate::tenant::{Delivered, Group};

/// Takes each state of `tollgate.tenant.v1.Tenant`.
pub struct TenantHandler {
    control: Arc<Control>,
    tenants: State<Tenant>,
}

impl TenantHandler {
    /// Tells `control`.
    pub fn new(control: &Arc<Control>) -> Self {
        Self { control: Arc::clone(control), tenants: State::default() }
    }
}

impl Handler for TenantHandler {
    type Resource = Tenant;

    fn name(tenant: &Tenant) -> String {
        tenant.name.clone()
    }

    async fn apply(&mut self, update: Update<Tenant>) -> Result<(), Rejection> {
        for resource in update.changed.iter().filter(|resource| resource.partly_read.is_some()) {
            tracing::warn!(tenant = resource.name, "tenant has a field that this version does not know");
        }
        let next = self.tenants.after(update);
        let delivered = next.iter().map(|(name, tenant)| delivered(format!("resource {name}"), tenant));
        self.control.replace_tenants(delivered.collect());
        self.tenants = next;
        Ok(())
    }
}

fn delivered(origin: String, tenant: &Tenant) -> Delivered {
    Delivered { origin, group: Group::of_resource(tenant).map_err(|error| error.to_string()) }
}

impl Control {
    /// Groups endpoints as these files say, from now on and also on open connections.
    pub(super) fn replace_tenants_of_files<'t>(
        self: &Arc<Self>,
        tenants: impl Iterator<Item = (&'t Tenant, &'t FilePlace)>,
    ) {
        let delivered = tenants.map(|(tenant, place)| delivered(place.to_string(), tenant));
        self.replace_tenants(delivered.collect());
    }

    /// Groups endpoints like this, from now on and also on open connections. Of what contradicts itself the first counts.
    pub fn replace_tenants(self: &Arc<Self>, delivered: Vec<Delivered>) {
        if self.store().tenants().delivers(&delivered) {
            return;
        }
        self.store().publish_tenants(delivered);
        after_publishing(|| self.tell_of_tenants());
        // In a task, since a large policy takes time, and so does an update that is on its way.
        let control = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = control.compile_within_new_limits().await {
                tracing::error!(%error, "policies keep the limits that they were compiled within");
            }
        });
    }

    /// Says what has become of tenants, unless that was said before.
    fn tell_of_tenants(&self) {
        let (problems, groups) = {
            let tenants = self.store().tenants();
            let refused = tenants.refused().iter();
            let refused = refused.map(|refused| format!("tenant set aside: {}: {}", refused.origin, refused.reason));
            let idle = tenants.groups().filter_map(|(_, group)| without_effect(group));
            (refused.chain(idle).collect(), tenants.groups().count())
        };
        let news = self.say_once_of_tenants(problems);
        for problem in &news {
            tracing::warn!("{problem}");
        }
        tracing::info!(groups, "tenants in force");
    }
}

/// Settings of a group that are read but have no effect in this version, as a sentence.
pub(crate) fn without_effect(group: &Group) -> Option<String> {
    let settings = group.settings.without_effect();
    (!settings.is_empty())
        .then(|| format!("tenant {:?}: no effect in this version: {}", &*group.name, settings.join(", ")))
}
