//! Tenants from files and control planes. What makes no sense is set aside alone, if it can be without the rest of its tenant, and
//! listed; nothing is refused as a whole, so that one team's mistake holds up nobody.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use tollgate_proto::tenant::Tenant;
use tollgate_proto::unread;
use tollgate_xds::{Handler, Rejection, Resource, State, Update};

use super::Control;
use super::policies::ClaimOrder;
use super::world::after_publishing;
use crate::policy_file::FilePlace;
use crate::tenant::{Delivered, Group, RefusedGroup};

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
        for resource in &update.changed {
            if let Some(field) = unknown_field(resource) {
                tracing::warn!(tenant = resource.name, field, "tenant has a field that this version does not know");
            }
        }
        let order = if update.first_on_stream { ClaimOrder::BeginsAnew } else { ClaimOrder::Continues };
        let next = self.tenants.after(update);
        self.control.replace_tenants(delivered_by(&next), order);
        self.tenants = next;
        Ok(())
    }
}

/// The way to a field of the resource that this version does not know. Other encodings of what it knows are none.
fn unknown_field(resource: &Resource<Tenant>) -> Option<String> {
    let bytes = resource.partly_read.as_ref()?;
    unread::beyond(bytes, &resource.message.encode_to_vec(), &[])
}

/// What a control plane says, each with the name by which its author finds it: what the client adds to tell resources of one name
/// apart is left out where there is only one.
fn delivered_by(tenants: &State<Tenant>) -> Vec<Delivered> {
    let mut count: HashMap<&str, usize> = HashMap::new();
    for (_, tenant) in tenants.iter() {
        *count.entry(&tenant.name).or_default() += 1;
    }
    let shown = |name: &'_ str, tenant: &Tenant| {
        let added = name.strip_prefix(&*tenant.name).is_some_and(|rest| rest.starts_with(" ("));
        let alone = count.get(&*tenant.name) == Some(&1);
        format!("resource {}", if added && alone { &tenant.name } else { name })
    };
    tenants.iter().map(|(name, tenant)| delivered(shown(name, tenant), tenant)).collect()
}

fn delivered(origin: String, tenant: &Tenant) -> Delivered {
    match Group::of_resource(tenant) {
        Ok((group, left_out)) => {
            Delivered { origin, group: Ok(group), left_out: left_out.iter().map(ToString::to_string).collect() }
        }
        Err(error) => Delivered { origin, group: Err(error.to_string()), left_out: Vec::new() },
    }
}

impl Control {
    /// Groups endpoints as these files say, from now on and also on open connections.
    pub(super) fn replace_tenants_of_files<'t>(
        self: &Arc<Self>,
        tenants: impl Iterator<Item = (&'t Tenant, &'t FilePlace)>,
    ) {
        let delivered = tenants.map(|(tenant, place)| delivered(place.to_string(), tenant));
        self.replace_tenants(delivered.collect(), ClaimOrder::Continues);
    }

    /// Groups endpoints like this, from now on and also on open connections. Of what contradicts itself that counts which was there
    /// before.
    pub fn replace_tenants(self: &Arc<Self>, delivered: Vec<Delivered>, order: ClaimOrder) {
        {
            let tenants = self.store().tenants();
            let anew = order == ClaimOrder::BeginsAnew && !tenants.refused().is_empty();
            if tenants.delivers(&delivered) && !anew {
                return;
            }
        }
        self.store().publish_tenants(delivered, order);
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
            let refused = refused.map(|RefusedGroup { origin, reason, whole }| match whole {
                true => format!("tenant set aside: {origin}: {reason}"),
                false => format!("tenant in force but for one part: {origin}: {reason}"),
            });
            let pools = tenants.books().pools();
            let idle =
                tenants.groups().filter_map(|(_, group)| without_effect(&group.name, &group.without_effect(pools)));
            (refused.chain(idle).collect(), tenants.groups().count())
        };
        let news = self.say_once_of_tenants(problems);
        for problem in &news {
            tracing::warn!("{problem}");
        }
        tracing::info!(groups, "tenants in force");
    }
}

/// Settings of a tenant that are read but have no effect in this process, if there are any, as a sentence.
pub(crate) fn without_effect(name: &str, settings: &[String]) -> Option<String> {
    (!settings.is_empty()).then(|| format!("tenant {name:?}: no effect: {}", settings.join(", ")))
}

#[cfg(test)]
mod tests {
    use tollgate_proto::tenant::Members;

    use super::*;
    use crate::policy_file::{self, FileResource, PolicyResource};
    use crate::tenant::Pools;

    fn resource(bytes: &[u8]) -> Resource<Tenant> {
        let message = Tenant::decode(bytes).unwrap();
        Resource { name: message.name.clone(), message, partly_read: Some(bytes.to_vec().into()) }
    }

    #[test]
    fn other_encodings_are_no_unknown_fields() {
        // name "d"; members with endpoint_ids 7 and 8 one by one, which we would pack.
        let unpacked = [&[0x0a, 1, b'd'][..], &[0x12, 4, 0x08, 7, 0x08, 8]].concat();
        let read = resource(&unpacked);
        assert_eq!(read.message.members, Some(Members { endpoint_ids: vec![7, 8], ..Members::default() }));
        assert_ne!(read.message.encode_to_vec(), unpacked);
        assert_eq!(unknown_field(&read), None);
        let unknown = [&unpacked[..], &[0x98, 0x06, 1]].concat();
        assert_eq!(unknown_field(&resource(&unknown)).unwrap(), "field 99");
    }

    #[test]
    fn the_tenant_of_the_documentation_is_in_force() {
        let page = include_str!("../../../docs/tenants.md");
        let (_, example) = page.split_once("  ```yaml\n  name: ").expect("an example of a file");
        let text = format!("  name: {}", example.split_once("  ```").expect("its end").0);
        let resources = policy_file::parse(&text, std::path::Path::new("team-a.yaml")).unwrap();
        let [FileResource { resource: PolicyResource::Tenant(tenant), .. }] = &resources[..] else {
            panic!("one tenant, not {resources:?}");
        };
        let (group, mistakes) = Group::of_resource(tenant).unwrap();
        assert_eq!(
            (
                mistakes,
                group.members.len(),
                group.settings.without_effect(Pools { memory: Some(1 << 30), ..Pools::default() })
            ),
            (vec![], 4, vec![])
        );
        let ceilings = &group.settings.ceilings;
        assert_eq!((ceilings.requests.unwrap().per_second.get(), ceilings.cpu_millis.unwrap().get()), (2000, 2000));
    }

    #[test]
    fn a_tenant_that_is_alone_has_no_number() {
        let named = |name: &str, endpoint| {
            let members = Some(Members { endpoint_ids: vec![endpoint], ..Members::default() });
            let message = Tenant { name: "d".into(), members, ..Tenant::default() };
            Resource { name: name.into(), message, partly_read: None }
        };
        let update = |changed, removed: &[&str]| Update {
            version: "1".into(),
            changed,
            removed: removed.iter().map(ToString::to_string).collect(),
            first_on_stream: false,
        };
        let origins = |state: &State<Tenant>| -> Vec<String> {
            delivered_by(state).into_iter().map(|delivered| delivered.origin).collect()
        };
        let both = State::default().after(update(vec![named("d", 1), named("d (2)", 2)], &[]));
        assert_eq!(origins(&both), ["resource d", "resource d (2)"]);
        assert_eq!(origins(&both.after(update(Vec::new(), &["d"]))), ["resource d"]);
        // A name that a control plane gave is its own.
        let given = State::default().after(update(vec![named("x", 1)], &[]));
        assert_eq!(origins(&given), ["resource x"]);
    }
}
