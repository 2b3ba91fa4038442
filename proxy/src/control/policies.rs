//! Turns what a source of policy delivers into the next world, and remembers what could not be enforced as written.
//!
//! Sources (an xDS stream, a watched directory) call this with what has changed, or with whole states. When a call returns,
//! every worker decides by the new state, so an acknowledgement may go out.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tollgate_policy::model::Unsupported;
use tollgate_policy::{NetworkPolicy, PortRule, Secrets};
use tollgate_proto::cilium;

use super::WorldStore;
use super::directory::Directory;
use super::secrets::SecretFiles;
use crate::identity::IdentityTable;
use crate::metrics::{Control as Metrics, PolicyGauges, UpdateResult};
use crate::readiness::Pending;

/// Where accepted states become worlds. Used on the control thread; shared with the views of the admin endpoint.
#[derive(Debug)]
pub struct Control {
    store: Arc<WorldStore>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// One update at a time: each builds on the one before.
    updating: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The sources as received, by resource name, for dumps.
    policies: BTreeMap<String, cilium::NetworkPolicy>,
    /// Resources that cannot be enforced at all: name and reason.
    refused: BTreeMap<String, RefusedResource>,
    /// Files of the directory that do not load.
    unreadable: Vec<RefusedResource>,
    /// Held until the first policy set is in force.
    first_policy: Option<Pending>,
}

/// A resource without any effect, because it names no endpoint that it could apply to, or a file that does not load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedResource {
    /// Decimal endpoint id, or the file.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A policy as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// Name of the resource.
    pub name: String,
    /// What was understood.
    pub policy: cilium::NetworkPolicy,
    /// Its bytes, when there is more in them than was understood.
    pub partly_read: Option<Bytes>,
}

/// A defect of ours: the last good state stays in force.
#[derive(Debug, thiserror::Error)]
#[error("compiling policies failed; the last good state stays in force: {0}")]
pub struct CompilingFailed(tokio::task::JoinError);

/// Quarantines the rules that hold a field which this version does not know: it could be a condition, and without it
/// the rule would admit more than its author wrote. Outside of rules an unknown field cannot widen what is allowed.
pub(crate) fn set_unknown_fields_aside(model: &mut NetworkPolicy, bytes: &[u8]) {
    for field in tollgate_proto::unknown::network_policy_fields(bytes) {
        let entries = match field.ingress {
            Some(true) => &mut model.ingress,
            Some(false) => &mut model.egress,
            None => {
                let endpoint_id = model.endpoint_id;
                tracing::warn!(
                    endpoint_id,
                    element = field.element,
                    "policy has a field that this version does not know"
                );
                continue;
            }
        };
        let Some(entry) = field.port_entry.and_then(|index| entries.get_mut(index)) else { continue };
        let unsupported = Unsupported {
            element: field.element.as_str().into(),
            reason: "this version does not know the field; it could be a condition".into(),
        };
        if entry.rules.is_empty() {
            entry.rules.push(PortRule::default());
        }
        let rules = match field.rule {
            Some(index) => entry.rules.get_mut(index..=index).unwrap_or_default(),
            None => &mut entry.rules[..],
        };
        for rule in rules {
            rule.unsupported.push(unsupported.clone());
        }
    }
}

impl Control {
    /// `first_policy` is released when the first policy set is in force.
    pub fn new(store: Arc<WorldStore>, metrics: Arc<Metrics>, first_policy: Pending) -> Self {
        let state = State { first_policy: Some(first_policy), ..State::default() };
        Self { store, metrics, state: Mutex::new(state), updating: tokio::sync::Mutex::new(()) }
    }

    /// The world in force.
    pub fn store(&self) -> &WorldStore {
        &self.store
    }

    /// Resources that have no effect, and files that do not load.
    pub fn refused(&self) -> Vec<RefusedResource> {
        let state = self.lock();
        state.refused.values().chain(&state.unreadable).cloned().collect()
    }

    /// Gives `read` the policies as they were received, by resource name.
    pub fn with_policies<R>(&self, read: impl FnOnce(&BTreeMap<String, cilium::NetworkPolicy>) -> R) -> R {
        read(&self.lock().policies)
    }

    /// Enforces exactly these policies from now on, which are named by their endpoint ids; see
    /// [`update_policies`](Self::update_policies).
    ///
    /// # Errors
    /// A defect of ours; nothing has changed.
    pub async fn replace_policies(
        self: &Arc<Self>,
        policies: Vec<cilium::NetworkPolicy>,
    ) -> Result<(), CompilingFailed> {
        let mut names = HashSet::with_capacity(policies.len());
        let mut changed = Vec::with_capacity(policies.len());
        for policy in policies {
            let mut name = policy.endpoint_id.to_string();
            let mut copies = 1;
            // Of several with the same id each is enforced. A resource name holds no white space, so this is nobody's name.
            while !names.insert(name.clone()) {
                copies += 1;
                name = format!("{} ({copies})", policy.endpoint_id);
            }
            changed.push(Received { name, policy, partly_read: None });
        }
        let removed = self.lock().policies.keys().filter(|name| !names.contains(*name)).cloned().collect();
        self.update_policies(changed, removed).await
    }

    /// Enforces `changed` instead of what these resources held before, and no more what `removed` names. Nothing in them
    /// makes the update fail: what cannot be enforced as written takes its most restrictive reading and is listed.
    ///
    /// Compiling happens off the control thread's runtime, so that a large update delays neither probes nor streams.
    ///
    /// # Errors
    /// A defect of ours; nothing has changed.
    pub async fn update_policies(
        self: &Arc<Self>,
        changed: Vec<Received>,
        removed: Vec<String>,
    ) -> Result<(), CompilingFailed> {
        let _turn = self.updating.lock().await;
        let control = Arc::clone(self);
        let compiled = tokio::task::spawn_blocking(move || control.compile_and_publish(changed, removed)).await;
        compiled.map_err(|error| {
            self.metrics.policy_update(UpdateResult::Rejected);
            CompilingFailed(error)
        })
    }

    fn compile_and_publish(&self, changed: Vec<Received>, removed: Vec<String>) {
        let mut builder = self.store.load().policy.update();
        for name in &removed {
            builder.remove(name);
        }
        let mut received = Vec::with_capacity(changed.len());
        for Received { name, policy, partly_read } in changed {
            let refused = match NetworkPolicy::try_from(&policy) {
                Ok(mut model) => {
                    if let Some(bytes) = &partly_read {
                        set_unknown_fields_aside(&mut model, bytes);
                    }
                    builder.upsert(&name, model);
                    None
                }
                Err(error) => {
                    builder.remove(&name);
                    tracing::warn!(name, reason = %error, "policy has no effect");
                    Some(RefusedResource { name: policy.endpoint_id.to_string(), reason: error.to_string() })
                }
            };
            received.push((name, policy, refused));
        }
        let snapshot = builder.build();
        let gauges = PolicyGauges {
            generation: snapshot.generation(),
            endpoints: snapshot.endpoint_count() as u64,
            quarantined_rules: snapshot.quarantined_count() as u64,
            conflicts: snapshot.conflicts().len() as u64,
        };
        let changed = received.iter().filter_map(|(name, ..)| snapshot.policy(name));
        for quarantine in changed.flat_map(|policy| policy.quarantined()) {
            tracing::warn!(%quarantine, name = quarantine.name.as_deref(), generation = gauges.generation, "not enforced as written");
        }
        self.store.publish_policy(snapshot);
        self.warn_of_missing_secrets();
        self.metrics.policy_in_force(gauges, SystemTime::now());
        self.metrics.policy_update(UpdateResult::Accepted);
        tracing::info!(
            generation = gauges.generation,
            endpoints = gauges.endpoints,
            quarantined = gauges.quarantined_rules,
            changed = received.len(),
            removed = removed.len(),
            "policy in force"
        );
        self.lock().remember(received, &removed);
    }

    /// Enforces what the files of `directory` hold, now and whenever they change. Never returns.
    pub async fn follow_directory(self: Arc<Self>, mut directory: Directory) {
        let mut first = true;
        loop {
            let reading = directory.next().await;
            for error in &reading.errors {
                tracing::warn!(%error, "policy file does not load; what it held before, if anything, stays in force");
            }
            let failing = directory
                .failing()
                .map(|error| RefusedResource { name: error.file.display().to_string(), reason: error.to_string() });
            self.lock().unreadable = failing.collect();
            if first && !reading.set.hosts.is_empty() {
                tracing::warn!("NetworkPolicyHosts in a policy directory have no effect; list them under `identities`");
            }
            if (reading.changed || first)
                && let Err(error) = self.replace_policies(reading.set.policies).await
            {
                tracing::error!(%error, "the policy directory was not taken over");
            }
            first = false;
        }
    }

    /// Compares and injects these secrets from now on.
    pub fn replace_secrets(&self, secrets: Secrets) {
        self.store.publish_secrets(secrets);
        self.warn_of_missing_secrets();
    }

    /// Takes over what the files hold, now and whenever they change. Never returns.
    pub async fn follow_secrets(self: Arc<Self>, mut files: SecretFiles) {
        loop {
            let secrets = files.changed().await.clone();
            tracing::info!("a secret has changed");
            self.replace_secrets(secrets);
        }
    }

    fn warn_of_missing_secrets(&self) {
        for (name, reason) in self.store.load().missing_secrets() {
            tracing::warn!(name, reason, "rules name a secret that nothing can be compared with");
        }
    }

    /// Looks peers up in `table` from now on.
    pub fn replace_identities(&self, table: IdentityTable) {
        self.store.publish_identities(table);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remember(
        &mut self,
        received: Vec<(String, cilium::NetworkPolicy, Option<RefusedResource>)>,
        removed: &[String],
    ) {
        for name in removed {
            self.policies.remove(name);
            self.refused.remove(name);
        }
        for (name, policy, refused) in received {
            match refused {
                Some(refused) => self.refused.insert(name.clone(), refused),
                None => self.refused.remove(&name),
            };
            self.policies.insert(name, policy);
        }
        self.first_policy = None;
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tollgate_policy::{ConnectionVerdict, Direction, EndpointKey, Flow, SecurityId, ServerName, Snapshot};

    use super::*;

    /// A rule on port 80 that would admit everybody, with bytes of a field from the future in it.
    fn admits_with_unknown_field(rule_suffix: &[u8], entry_suffix: &[u8]) -> bool {
        let nested = |tag: u8, bytes: &[u8]| [&[tag, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let rule = nested(0x1a, &[&nested(0x2a, b"r")[..], rule_suffix].concat());
        let entry = nested(0x1a, &[&[0x08, 80][..], &rule, entry_suffix].concat());
        let bytes = [&nested(0x0a, b"10.0.0.1")[..], &[0x10, 69], &entry].concat();
        let policy = cilium::NetworkPolicy::decode(&bytes[..]).unwrap();
        let mut model = NetworkPolicy::try_from(&policy).unwrap();
        set_unknown_fields_aside(&mut model, &bytes);
        let mut builder = Snapshot::empty().update();
        builder.replace_all([model]);
        let endpoint = EndpointKey::parse("10.0.0.1");
        let flow = Flow {
            direction: Direction::Ingress,
            endpoint: &endpoint,
            remote: SecurityId(7),
            port: 80,
            proxy_id: 0,
            server_name: ServerName::Unknown,
        };
        !matches!(builder.build().evaluate_connection(&flow), ConnectionVerdict::Deny { .. })
    }

    #[test]
    fn a_field_from_the_future_never_widens_a_rule() {
        let unknown = [0x98, 0x06, 0x01];
        assert!(admits_with_unknown_field(&[], &[]));
        assert!(!admits_with_unknown_field(&unknown, &[]));
        assert!(!admits_with_unknown_field(&[], &unknown));
    }
}
