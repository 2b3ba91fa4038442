//! Turns what a source of policy delivers into the next world, and remembers what could not be enforced as written.
//!
//! Sources (an xDS stream, a watched directory) call this with what has changed, or with whole states. When a call returns,
//! every worker decides by the new state, so an acknowledgement may go out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tollgate_policy::model::Unsupported;
use tollgate_policy::{EndpointPolicy, NetworkPolicy, PortRule, Snapshot};
use tollgate_proto::cilium;

use super::WorldStore;
use super::directory::{Directory, PolicySet};
use super::secret_sources::SecretSources;
use crate::identity::IdentityTable;
use crate::metrics::{Control as Metrics, PolicyGauges, UpdateResult};
use crate::policy_file::FilePlace;
use crate::policy_file::claims::Contested;
use crate::readiness::Pending;

/// Where accepted states become worlds. Used on the control thread; shared with the views of the admin endpoint.
#[derive(Debug)]
pub struct Control {
    store: Arc<WorldStore>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    pub(super) secrets: SecretSources,
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
    /// What several files of the directory claim.
    contested: Vec<Contested>,
    /// Where policies stand that come out of files, by resource name.
    places: HashMap<String, FilePlace>,
    /// What the log has said of resources.
    warned: Warned,
    /// What it has said of secrets.
    warned_of_secrets: Warned,
    /// What it has said of tenants.
    warned_of_tenants: Warned,
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
    /// Where it stands, when it comes out of a file.
    pub place: Option<FilePlace>,
}

/// What was said already, so that an update that repeats a problem does not repeat the warning.
#[derive(Debug, Default)]
struct Warned(HashMap<String, Vec<String>>);

impl Warned {
    /// Keeps these problems of `subject` and forgets its others, which may come again as news. Returns those that were not
    /// known.
    fn keep(&mut self, subject: &str, mut problems: Vec<String>) -> Vec<String> {
        problems.sort();
        problems.dedup();
        let before = self.0.remove(subject).unwrap_or_default();
        let news = problems.iter().filter(|problem| before.binary_search(problem).is_err()).cloned().collect();
        if !problems.is_empty() {
            self.0.insert(subject.to_owned(), problems);
        }
        news
    }
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
        let (state, secrets, updating) = (Mutex::new(state), SecretSources::default(), tokio::sync::Mutex::new(()));
        Self { store, metrics, state, secrets, updating }
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

    /// What several files of the directory claim.
    pub fn contested(&self) -> Vec<Contested> {
        self.lock().contested.clone()
    }

    /// Where policies stand that come out of files, by resource name.
    pub fn places(&self) -> HashMap<String, FilePlace> {
        self.lock().places.clone()
    }

    /// Gives `read` the policies as they were received, by resource name.
    pub fn with_policies<R>(&self, read: impl FnOnce(&BTreeMap<String, cilium::NetworkPolicy>) -> R) -> R {
        read(&self.lock().policies)
    }

    /// Enforces exactly these policies of files from now on, which are named by their endpoint ids; see
    /// [`update_policies`](Self::update_policies).
    ///
    /// # Errors
    /// A defect of ours; nothing has changed.
    pub async fn replace_policies(
        self: &Arc<Self>,
        policies: Vec<(cilium::NetworkPolicy, FilePlace)>,
    ) -> Result<(), CompilingFailed> {
        let mut names = HashSet::with_capacity(policies.len());
        let mut changed = Vec::with_capacity(policies.len());
        for (policy, place) in policies {
            let mut name = policy.endpoint_id.to_string();
            let mut copies = 1;
            // Of several with the same id each is enforced. A resource name holds no white space, so this is nobody's name.
            while !names.insert(name.clone()) {
                copies += 1;
                name = format!("{} ({copies})", policy.endpoint_id);
            }
            changed.push(Received { name, policy, partly_read: None, place: Some(place) });
        }
        let removed = {
            let (state, world) = (self.lock(), self.store.load());
            let in_force = world.policy.endpoints().map(EndpointPolicy::resource);
            let known: HashSet<&str> = state.policies.keys().map(String::as_str).chain(in_force).collect();
            known.into_iter().filter(|name| !names.contains(*name)).map(ToOwned::to_owned).collect()
        };
        self.update_policies(changed, removed).await
    }

    /// Enforces `changed` instead of what these resources held before, and no more what `removed` names. Nothing in them
    /// makes the update fail: what cannot be enforced as written takes its most restrictive reading and is listed.
    ///
    /// Compiling happens off the control thread's runtime, so that a large update delays neither probes nor streams.
    ///
    /// # Errors
    /// A defect of ours; nothing has changed. What is in force is never called an error, whatever goes wrong after it was
    /// published: the control plane would take it for refused.
    pub async fn update_policies(
        self: &Arc<Self>,
        changed: Vec<Received>,
        removed: Vec<String>,
    ) -> Result<(), CompilingFailed> {
        let _turn = self.updating.lock().await;
        if changed.is_empty() && removed.is_empty() && self.store.load().has_policy {
            // A control plane that comes back with what it said before; long flows need not be judged again for that.
            self.metrics.policy_update(UpdateResult::Accepted);
            return Ok(());
        }
        let control = Arc::clone(self);
        let before = self.store.load().policy.generation();
        let compiled = tokio::task::spawn_blocking(move || control.compile_and_publish(changed, removed)).await;
        if let Err(error) = compiled {
            if self.store.load().policy.generation() == before {
                self.metrics.policy_update(UpdateResult::Rejected);
                return Err(CompilingFailed(error));
            }
            tracing::error!(%error, "policy is in force, but what follows has failed: status and metrics may be out of date");
        }
        self.metrics.policy_update(UpdateResult::Accepted);
        self.lock().first_policy = None;
        Ok(())
    }

    /// What may fail comes before the publication as far as it can.
    fn compile_and_publish(&self, changed: Vec<Received>, removed: Vec<String>) {
        let mut builder = self.store.load().policy.update();
        for name in &removed {
            builder.remove(name);
        }
        let mut received = Vec::with_capacity(changed.len());
        for Received { name, policy, partly_read, place } in changed {
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
                    let reason = place.as_ref().map_or_else(|| error.to_string(), |place| format!("{place}: {error}"));
                    Some(RefusedResource { name: policy.endpoint_id.to_string(), reason })
                }
            };
            received.push(Judged { name, policy, place, refused });
        }
        let snapshot = builder.build();
        let gauges = PolicyGauges {
            generation: snapshot.generation(),
            endpoints: snapshot.endpoint_count() as u64,
            quarantined_rules: snapshot.quarantined_count() as u64,
            conflicts: snapshot.conflicts().len() as u64,
        };
        for judged in &received {
            self.warn_of(judged, &snapshot);
        }
        let counts = (received.len(), removed.len());
        self.lock().remember(received, &removed);
        self.store.publish_policy(snapshot);
        self.secrets.look(&self.store.load().policy);
        self.warn_of_missing_secrets();
        self.metrics.policy_in_force(gauges, SystemTime::now());
        tracing::info!(
            generation = gauges.generation,
            endpoints = gauges.endpoints,
            quarantined = gauges.quarantined_rules,
            changed = counts.0,
            removed = counts.1,
            "policy in force"
        );
    }

    /// Enforces what the files of `directory` hold, now and whenever they change. Never returns.
    pub async fn follow_directory(self: Arc<Self>, mut directory: Directory) {
        let mut first = true;
        let mut warned = Warned::default();
        loop {
            let reading = directory.next().await;
            for error in &reading.errors {
                tracing::warn!(%error, "policy file does not load; what it held before, if anything, stays in force");
            }
            let contested = reading.set.contested();
            for problem in warned.keep("", contested.iter().map(ToString::to_string).collect()) {
                tracing::warn!("{problem}");
            }
            let failing = directory
                .failing()
                .map(|error| RefusedResource {
                    name: error.place.file.display().to_string(),
                    reason: error.to_string(),
                })
                .collect();
            {
                let mut state = self.lock();
                state.unreadable = failing;
                state.contested = contested;
            }
            if first && !reading.set.hosts.is_empty() {
                tracing::warn!("NetworkPolicyHosts in a policy directory have no effect; list them under `identities`");
            }
            let PolicySet { policies, places, tenants, .. } = reading.set;
            if !tenants.is_empty() || !self.store.tenants().delivers(&[]) {
                self.replace_tenants_of_files(tenants.iter().map(|(tenant, place)| (tenant, place)));
            }
            if (reading.changed || first)
                && let Err(error) = self.replace_policies(policies.into_iter().zip(places).collect()).await
            {
                tracing::error!(%error, "the policy directory was not taken over");
            }
            first = false;
        }
    }

    /// Says which secrets rules wait for, unless that was said before.
    pub(super) fn warn_of_missing_secrets(&self) {
        let world = self.store.load();
        let missing = world.missing_secrets().into_iter().map(|(name, reason)| format!("secret {name:?} {reason}"));
        let news = self.lock().warned_of_secrets.keep("", missing.collect());
        for problem in news {
            tracing::warn!("{problem}: rules that need it admit nothing");
        }
    }

    /// What of these problems was not said before, all of which are about tenants.
    pub(super) fn say_once_of_tenants(&self, problems: Vec<String>) -> Vec<String> {
        self.lock().warned_of_tenants.keep("", problems)
    }

    /// Says what of a policy has no effect or not the one that is written, unless that was said before.
    fn warn_of(&self, judged: &Judged, snapshot: &Snapshot) {
        let Judged { name, place, refused, .. } = judged;
        let mut problems: Vec<String> =
            refused.iter().map(|refused| format!("policy {name:?} has no effect: {}", refused.reason)).collect();
        if let Some(policy) = snapshot.policy(name) {
            let place = place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
            let quarantined = policy.quarantined();
            problems.extend(quarantined.map(|quarantine| format!("not enforced as written: {quarantine}{place}")));
        }
        let news = self.lock().warned.keep(name, problems);
        for problem in news {
            tracing::warn!(generation = snapshot.generation(), "{problem}");
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

/// What became of one resource of an update.
#[derive(Debug)]
struct Judged {
    name: String,
    policy: cilium::NetworkPolicy,
    place: Option<FilePlace>,
    refused: Option<RefusedResource>,
}

impl State {
    fn remember(&mut self, received: Vec<Judged>, removed: &[String]) {
        for name in removed {
            self.policies.remove(name);
            self.refused.remove(name);
            self.places.remove(name);
            self.warned.keep(name, Vec::new());
        }
        for Judged { name, policy, place, refused } in received {
            if let Some(place) = place {
                self.places.insert(name.clone(), place);
            }
            match refused {
                Some(refused) => self.refused.insert(name.clone(), refused),
                None => self.refused.remove(&name),
            };
            self.policies.insert(name, policy);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Wake};

    use prost::Message as _;
    use tollgate_policy::{ConnectionVerdict, Direction, EndpointKey, Flow, SecurityId, ServerName};

    use super::*;
    use crate::identity::Sources;
    use crate::readiness::Readiness;

    /// Whoever is told of the new world does not take it well.
    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a defect behind the publication");
        }
    }

    fn received(id: u64) -> Received {
        let policy = cilium::NetworkPolicy {
            endpoint_ips: vec![format!("10.0.0.{id}")],
            endpoint_id: id,
            ..cilium::NetworkPolicy::default()
        };
        Received { name: id.to_string(), policy, partly_read: None, place: None }
    }

    #[tokio::test]
    async fn what_is_in_force_is_never_refused() {
        let store = Arc::new(WorldStore::new(Sources::of_table(IdentityTable::default())));
        let readiness = Readiness::default();
        let control = Control::new(Arc::clone(&store), Arc::default(), readiness.pending("first policy"));
        let control = Arc::new(control);
        let mut worlds = store.subscribe();
        let mut told = pin!(worlds.changed());
        let waker = Arc::new(Panics).into();
        assert!(matches!(told.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending));
        let update = control.update_policies(vec![received(1), received(2)], Vec::new()).await;
        let in_force = || store.load().policy.endpoints().map(|policy| policy.endpoint_id()).collect::<Vec<_>>();
        assert_eq!((update.is_ok(), in_force().len()), (true, 2), "it is in force");
        assert!(control.with_policies(|policies| policies.len() == 2) && readiness.waiting_for().is_empty());
        let place = FilePlace { file: std::path::Path::new("1.yaml").into(), line: None };
        let directory = vec![(received(1).policy, place)];
        control.replace_policies(directory).await.unwrap();
        assert_eq!(in_force(), [1], "and what was in force goes");
    }

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
    fn a_problem_is_news_once_and_again_after_it_was_gone() {
        let mut warned = Warned::default();
        let mut keep = |subject, problems: &[&str]| {
            warned.keep(subject, problems.iter().map(|&problem| problem.to_owned()).collect())
        };
        assert_eq!(keep("1", &["b", "a", "b"]), ["a", "b"]);
        assert_eq!(keep("1", &["c", "b"]), ["c"]);
        assert_eq!(keep("2", &["b"]), ["b"]);
        assert_eq!(keep("1", &["a", "b", "c"]), ["a"]);
    }

    #[test]
    fn a_field_from_the_future_never_widens_a_rule() {
        let unknown = [0x98, 0x06, 0x01];
        assert!(admits_with_unknown_field(&[], &[]));
        assert!(!admits_with_unknown_field(&unknown, &[]));
        assert!(!admits_with_unknown_field(&[], &unknown));
    }
}
