//! Turns what a source of policy delivers into the next world, and remembers what could not be enforced as written.
//!
//! Sources (an xDS stream, a watched directory) call this with what has changed, or with whole states. When a call returns,
//! every worker decides by the new state, so an acknowledgement may go out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::Notify;
use tollgate_policy::model::Unsupported;
use tollgate_policy::{EndpointPolicy, NetworkPolicy, PortRule, Snapshot};
use tollgate_proto::cilium;

use super::WorldStore;
use super::compile::{Background, Budgets, Compiled, Failed, First, Holdings, Prepared, Update, run_here, run_soon};
use super::secret_sources::SecretSources;
use super::warned::Warned;
use super::world::after_publishing;
use crate::identity::IdentityTable;
use crate::metrics::{Control as Metrics, PolicyGauges, UpdateResult};
use crate::policy_file::FilePlace;
use crate::policy_file::claims::Contested;
use crate::readiness::Pending;
use crate::tenant::Table;

/// Where accepted states become worlds. Used on the control thread; shared with the views of the admin endpoint.
#[derive(Debug)]
pub struct Control {
    store: Arc<WorldStore>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    pub(super) secrets: SecretSources,
    /// One update at a time: each builds on the one before.
    pub(super) updating: tokio::sync::Mutex<()>,
    budgets: Mutex<Budgets>,
    background: Mutex<Background>,
    holdings: Mutex<Holdings>,
    /// Told when the background has to begin and there was no thread for it.
    pub(super) no_thread: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The sources as received, by resource name, for dumps: in the form that takes the least memory.
    policies: BTreeMap<String, Box<[u8]>>,
    /// Resources that cannot be enforced: name and reason.
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

/// A resource that cannot be enforced, so that all that it claims denies, or a file that does not load.
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
    pub policy: Arc<cilium::NetworkPolicy>,
    /// Its bytes, when there is more in them than was understood.
    pub partly_read: Option<Bytes>,
    /// Where it stands, when it comes out of a file.
    pub place: Option<FilePlace>,
    /// What [`Received::bytes`] said.
    size: OnceLock<usize>,
}

impl Received {
    /// A policy of this name.
    pub const fn new(
        name: String,
        policy: Arc<cilium::NetworkPolicy>,
        partly_read: Option<Bytes>,
        place: Option<FilePlace>,
    ) -> Self {
        Self { name, policy, partly_read, place, size: OnceLock::new() }
    }

    /// Bytes of its message. Found out once: of ten thousand rules that takes as long as some hundred requests.
    pub(super) fn bytes(&self) -> usize {
        *self.size.get_or_init(|| self.policy.encoded_len())
    }
}

/// Whose claim to an address counts, when several resources make it: the latest, or all that were made at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOrder {
    /// Claims are as old as they were before.
    Continues,
    /// All claims of this state are made at once: it is the first of a stream, and what counts must not depend on earlier ones.
    BeginsAnew,
}

/// What a source says.
#[derive(Debug)]
struct Change {
    changed: Vec<Received>,
    removed: Vec<String>,
    order: ClaimOrder,
    /// The form of what has changed, which is then a single policy.
    prepared: Option<Prepared>,
}

/// A defect of ours: the last good state stays in force.
#[derive(Debug, thiserror::Error)]
#[error("compiling policies failed; the last good state stays in force: {0}")]
pub struct CompilingFailed(Failed);

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
        let (budgets, background, holdings) = (Mutex::default(), Mutex::default(), Mutex::default());
        let no_thread = Notify::new();
        Self { store, metrics, state, secrets, updating, budgets, background, holdings, no_thread }
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

    /// The policies as they were received, by resource name.
    pub fn received(&self) -> Vec<cilium::NetworkPolicy> {
        let state = self.lock();
        state.policies.values().filter_map(|policy| cilium::NetworkPolicy::decode(&**policy).ok()).collect()
    }

    /// What is known or in force of which there is nothing in `names`.
    pub(super) fn all_but(&self, names: &HashSet<&str>) -> Vec<String> {
        let (state, world) = (self.lock(), self.store.load());
        let in_force = world.policy.endpoints().map(EndpointPolicy::resource);
        let known: HashSet<&str> = state.policies.keys().map(String::as_str).chain(in_force).collect();
        known.into_iter().filter(|name| !names.contains(name)).map(ToOwned::to_owned).collect()
    }

    /// Remembers which files do not load, and what several claim.
    pub(super) fn note_files(&self, unreadable: Vec<RefusedResource>, contested: Vec<Contested>) {
        let mut state = self.lock();
        (state.unreadable, state.contested) = (unreadable, contested);
    }

    /// Remembers where the policies of files stand, whether they have changed or not.
    pub(super) fn note_places<'n>(&self, places: impl Iterator<Item = (&'n str, &'n FilePlace)>) {
        let mut state = self.lock();
        for (name, place) in places {
            match state.places.get_mut(name) {
                Some(known) => known.clone_from(place),
                None => drop(state.places.insert(name.to_owned(), place.clone())),
            }
        }
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
        order: ClaimOrder,
    ) -> Result<(), CompilingFailed> {
        self.update(Change { changed, removed, order, prepared: None }).await
    }

    /// Enforces a policy that was compiled beside updates; see [`update_policies`](Self::update_policies).
    ///
    /// # Errors
    /// As there.
    pub(super) async fn put_policy(
        self: &Arc<Self>,
        received: Received,
        prepared: Prepared,
    ) -> Result<(), CompilingFailed> {
        let (changed, prepared) = (vec![received], Some(prepared));
        let order = ClaimOrder::Continues;
        self.update(Change { changed, removed: Vec::new(), order, prepared }).await
    }

    async fn update(self: &Arc<Self>, change: Change) -> Result<(), CompilingFailed> {
        let _turn = self.updating.lock().await;
        if change.changed.is_empty() && change.removed.is_empty() && self.stays_the_same(change.order) {
            // A control plane that comes back with what it said before; long flows need not be judged again for that.
            self.metrics.policy_update(UpdateResult::Accepted);
            return Ok(());
        }
        let is_first = !self.store.load().has_policy;
        let names: Vec<String> = match is_first {
            true => change.changed.iter().map(|received| received.name.clone()).collect(),
            false => Vec::new(),
        };
        let control = Arc::clone(self);
        let compiled = match change.prepared {
            // There is next to nothing to do, and what denies must not depend on whether the kernel gives another thread.
            Some(_) => run_here(|| control.compile_and_publish(change)),
            None => run_soon(move || control.compile_and_publish(change)).await,
        };
        if let Err(error) = compiled {
            self.take_back(&names);
            self.metrics.policy_update(UpdateResult::Rejected);
            return Err(CompilingFailed(error));
        }
        self.metrics.policy_update(UpdateResult::Accepted);
        self.lock().first_policy = None;
        Ok(())
    }

    /// Nothing of first policies that are called refused stays in force.
    fn take_back(self: &Arc<Self>, names: &[String]) {
        let world = self.store.load().clone();
        let mut builder = world.policy.update();
        let is_there = names.iter().fold(false, |is_there, name| builder.remove(name) | is_there);
        if is_there && !world.has_policy {
            self.publish_some(builder.build(), HashSet::clone(&world.coming));
        }
    }

    /// Whether an update without changes makes none.
    fn stays_the_same(&self, order: ClaimOrder) -> bool {
        let world = self.store.load();
        world.has_policy && !(order == ClaimOrder::BeginsAnew && world.policy.remembers_order())
    }

    /// Panics only before the publication: nothing has changed then, here or in the world, but for some of the first policies.
    fn compile_and_publish(self: &Arc<Self>, change: Change) {
        let Change { changed, removed, order, prepared } = change;
        let world = self.store.load().clone();
        let first = (!world.has_policy).then(|| First::of(&changed));
        let mut update = Update::of(&world.policy, order, first);
        for name in &removed {
            update.builder.remove(name);
        }
        let judged = self.judge_all(&mut update, changed, prepared, &world.tenants);
        let (snapshot, reserved) = update.finish();
        let gauges = self.publish(snapshot);
        drop(reserved);
        after_publishing(|| self.note_in_force(judged, &removed, gauges));
        after_publishing(|| self.use_room());
    }

    /// Makes policies a part of `update`, the one that was prepared as it is.
    fn judge_all(
        self: &Arc<Self>,
        update: &mut Update,
        mut changed: Vec<Received>,
        prepared: Option<Prepared>,
        tenants: &Table,
    ) -> Vec<Judged> {
        if let Some(prepared) = prepared
            && let Some(received) = changed.pop()
        {
            if let Some(compiled) = update.insert(&received.name, prepared, tenants) {
                let Received { name, policy, place, .. } = received;
                return vec![Judged { name, policy, place, refused: None, compiled: Some(compiled) }];
            }
            changed.push(received);
        }
        self.compile_all(update, changed, tenants)
    }

    /// Puts the policies in force.
    pub(super) fn publish(self: &Arc<Self>, snapshot: Snapshot) -> PolicyGauges {
        self.put_in_force(snapshot, None)
    }

    /// Puts some of the first policies in force; `coming` are addresses of the others.
    pub(super) fn publish_some(self: &Arc<Self>, snapshot: Snapshot, coming: HashSet<IpAddr>) -> PolicyGauges {
        let addresses_without = coming.len();
        let gauges = self.put_in_force(snapshot, Some(coming));
        self.metrics.policy_in_force(gauges, SystemTime::now());
        tracing::info!(endpoints = gauges.endpoints, addresses_without, "some of the first policies are in force");
        gauges
    }

    fn put_in_force(self: &Arc<Self>, snapshot: Snapshot, coming: Option<HashSet<IpAddr>>) -> PolicyGauges {
        let before = Arc::clone(&self.store.load().policy);
        let mut gauges = PolicyGauges {
            generation: snapshot.generation(),
            endpoints: snapshot.endpoint_count() as u64,
            quarantined_rules: snapshot.quarantined_count() as u64,
            conflicts: snapshot.conflicts().len() as u64,
            unfinished: snapshot.unfinished_count() as u64,
            without_room: snapshot.without_room_count() as u64,
            bytes: 0,
        };
        self.store.publish_policy(snapshot, coming);
        after_publishing(|| self.answer_for_memory(Some(&before)));
        gauges.bytes = self.holdings().bytes() as u64;
        gauges
    }

    /// Remembers and tells what has been published.
    fn note_in_force(self: &Arc<Self>, received: Vec<Judged>, removed: &[String], gauges: PolicyGauges) {
        let policy = Arc::clone(&self.store.load().policy);
        self.secrets.look(&policy);
        for judged in &received {
            self.warn_of(&judged.name, judged.place.as_ref(), judged.refused.as_ref(), &policy);
        }
        let compiled = received.iter().filter_map(|judged| Some((judged.name.as_str(), judged.compiled?)));
        let compiled: Vec<(&str, Compiled)> = compiled.collect();
        self.charge_compiling(compiled.iter().map(|(name, compiled)| (*name, compiled.took)));
        let refused = received.iter().filter(|judged| judged.compiled.is_none()).map(|judged| &judged.name);
        self.compile_later(&compiled, refused.chain(removed).map(String::as_str));
        let changed = received.len();
        self.lock().remember(received, removed);
        self.warn_of_missing_secrets();
        self.metrics.policy_in_force(gauges, SystemTime::now());
        tracing::info!(
            generation = gauges.generation,
            endpoints = gauges.endpoints,
            quarantined = gauges.quarantined_rules,
            unfinished = gauges.unfinished,
            changed,
            removed = removed.len(),
            "policy in force"
        );
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

    /// Remembers and tells that a policy has been compiled in the background.
    pub(super) fn note_compiled(&self, resource: &str, gauges: PolicyGauges) {
        let place = self.lock().places.get(resource).cloned();
        self.warn_of(resource, place.as_ref(), None, &self.store.load().policy);
        self.metrics.policy_in_force(gauges, SystemTime::now());
    }

    /// Says what of a policy has no effect or not the one that is written, unless that was said before.
    fn warn_of(&self, name: &str, place: Option<&FilePlace>, refused: Option<&RefusedResource>, snapshot: &Snapshot) {
        let in_force = snapshot.policy(name);
        let what = if in_force.is_some() { "allows nothing, and denies for what it claims" } else { "has no effect" };
        let mut problems: Vec<String> =
            refused.iter().map(|refused| format!("policy {name:?} {what}: {}", refused.reason)).collect();
        if let Some(policy) = in_force {
            let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
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

    /// Accounts of compiling. Not to be kept while anything is compiled.
    pub(super) fn budgets(&self) -> MutexGuard<'_, Budgets> {
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is compiled in the background.
    pub(super) fn background(&self) -> MutexGuard<'_, Background> {
        self.background.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What policies take of memory. Not to be kept while anything is compiled.
    pub(super) fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of one resource of an update.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) name: String,
    pub(super) policy: Arc<cilium::NetworkPolicy>,
    pub(super) place: Option<FilePlace>,
    pub(super) refused: Option<RefusedResource>,
    pub(super) compiled: Option<Compiled>,
}

impl State {
    fn remember(&mut self, received: Vec<Judged>, removed: &[String]) {
        for name in removed {
            self.policies.remove(name);
            self.refused.remove(name);
            self.places.remove(name);
            self.warned.keep(name, Vec::new());
        }
        for Judged { name, policy, place, refused, .. } in received {
            if let Some(place) = place {
                self.places.insert(name.clone(), place);
            }
            match refused {
                Some(refused) => self.refused.insert(name.clone(), refused),
                None => self.refused.remove(&name),
            };
            self.policies.insert(name, policy.encode_to_vec().into());
        }
    }
}

#[cfg(test)]
mod tests;
