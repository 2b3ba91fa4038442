//! The current state of each type, with the version that a change gives it.

use std::sync::Arc;

use prost::Message as _;
use tokio::sync::watch;
use tollgate_proto::google::protobuf::Any;

use super::event::{Event, ResourceType};
use crate::control::directory::PolicySet;
use crate::policy_file::broken::UNTOLD;

/// All resources of one type at one version.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Counts changes, from 1; 0 before the first state.
    pub(super) version: u64,
    /// Name and encoded resource: `endpoint_id` or identity in decimal, or the tenant's name, as the protocol names them.
    pub(super) resources: Vec<(String, Any)>,
}

/// What proxies can subscribe to.
#[derive(Debug)]
pub struct Published {
    policies: watch::Sender<Arc<State>>,
    hosts: watch::Sender<Arc<State>>,
    tenants: watch::Sender<Arc<State>>,
}

impl Default for Published {
    fn default() -> Self {
        Self::new()
    }
}

impl Published {
    /// Nothing at version 0, which is not sent to anyone.
    #[must_use]
    pub fn new() -> Self {
        Self { policies: watch::Sender::default(), hosts: watch::Sender::default(), tenants: watch::Sender::default() }
    }

    /// Makes `set` the state that everyone gets. Types that differ from before get the next version; the first set
    /// gives policies and hosts a version, also when it is empty, because no answer at all would leave proxies waiting.
    /// Nobody waits for tenants.
    pub fn replace(&self, set: &PolicySet) -> Vec<Event> {
        let any = |kind: ResourceType, value| Any { type_url: kind.type_url().to_owned(), value };
        // Without an endpoint id there is no name by which it could be sent.
        let policies =
            set.policies.iter().filter(|policy| policy.endpoint_id != UNTOLD).map(|policy| {
                (policy.endpoint_id.to_string(), any(ResourceType::NetworkPolicy, policy.encode_to_vec()))
            });
        let hosts = set
            .hosts
            .iter()
            .map(|hosts| (hosts.policy.to_string(), any(ResourceType::NetworkPolicyHosts, hosts.encode_to_vec())));
        let tenants = set
            .tenants
            .iter()
            .map(|(tenant, _)| (tenant.name.clone(), any(ResourceType::Tenant, tenant.encode_to_vec())));
        let tenants: Vec<_> = tenants.collect();
        let has_tenants = !tenants.is_empty() || self.tenants.borrow().version > 0;
        let changes = [
            (ResourceType::NetworkPolicy, advance(&self.policies, policies.collect())),
            (ResourceType::NetworkPolicyHosts, advance(&self.hosts, hosts.collect())),
            (ResourceType::Tenant, has_tenants.then(|| advance(&self.tenants, tenants)).flatten()),
        ];
        let changes = changes.into_iter().filter_map(|(kind, changed)| Some((kind, changed?)));
        changes
            .map(|(r#type, state)| Event::State { r#type, version: state.version, resources: state.resources.len() })
            .collect()
    }

    pub(super) fn subscribe(&self, kind: ResourceType) -> watch::Receiver<Arc<State>> {
        match kind {
            ResourceType::NetworkPolicy => self.policies.subscribe(),
            ResourceType::NetworkPolicyHosts => self.hosts.subscribe(),
            ResourceType::Tenant => self.tenants.subscribe(),
        }
    }
}

fn advance(state: &watch::Sender<Arc<State>>, resources: Vec<(String, Any)>) -> Option<Arc<State>> {
    let before = Arc::clone(&state.borrow());
    if before.version > 0 && before.resources == resources {
        return None;
    }
    let next = Arc::new(State { version: before.version + 1, resources });
    state.send_replace(Arc::clone(&next));
    Some(next)
}
