//! Policies of a watched directory: each is in force as soon as it can be, whatever others take.
//!
//! Nobody is told when a file is in force, unlike a control plane, to which an acknowledgement is a promise. So a large policy is
//! compiled beside updates. What its endpoint had before goes on until then; one that had nothing goes on being refused.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Instant;

use prost::Message as _;
use tokio::task::{JoinError, JoinSet};
use tollgate_policy::{EndpointKey, NetworkPolicy};
use tollgate_proto::cilium;

use super::compile::{Failed, Haste, LATE, Prepared, SOON, Terms, run};
use super::directory::{Directory, PolicySet};
use super::policies::{ClaimOrder, CompilingFailed, Control, Received, RefusedResource, Warned};
use crate::policy_file::FilePlace;

/// Bytes of a policy's message beyond which an update of others does not wait for it: a hundred rules, or about a millisecond.
const LARGE: usize = 16 << 10;

impl Control {
    /// Enforces what the files of `directory` hold, now and whenever they change. Never returns.
    pub async fn follow_directory(self: Arc<Self>, mut directory: Directory) {
        let mut files = PolicyFiles::new(Arc::clone(&self));
        let mut first = true;
        let mut warned = Warned::default();
        loop {
            let reading = tokio::select! {
                reading = directory.next() => reading,
                done = files.done() => {
                    files.put(done).await;
                    continue;
                }
            };
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
            self.note_files(failing, contested);
            if first && !reading.set.hosts.is_empty() {
                tracing::warn!("NetworkPolicyHosts in a policy directory have no effect; list them under `identities`");
            }
            let PolicySet { policies, places, tenants, .. } = reading.set;
            if !tenants.is_empty() || !self.store().tenants().delivers(&[]) {
                self.replace_tenants_of_files(tenants.iter().map(|(tenant, place)| (tenant, place)));
            }
            if (reading.changed || first)
                && let Err(error) = files.replace(policies.into_iter().zip(places).collect()).await
            {
                tracing::error!(%error, "the policy directory was not taken over");
            }
            first = false;
        }
    }
}

/// What the files hold, and those of it that are not in force yet.
#[derive(Debug)]
pub(super) struct PolicyFiles {
    control: Arc<Control>,
    /// What was read last, by resource name.
    known: HashMap<String, Arc<cilium::NetworkPolicy>>,
    soon: Beside,
    late: Beside,
    tasks: JoinSet<Done>,
}

/// Policies that are compiled beside updates, one after the other.
#[derive(Debug, Default)]
struct Beside {
    waiting: Vec<Received>,
    /// The resource that is compiled now, and whether that is still wanted.
    under_way: Option<(String, bool)>,
}

/// What became of a policy that was compiled beside updates.
#[derive(Debug)]
pub(super) struct Done {
    haste: Haste,
    outcome: Result<(Received, Outcome), Failed>,
}

#[derive(Debug)]
enum Outcome {
    Compiled(Box<Prepared>),
    /// It takes more than its tenant may use at once.
    Beyond,
    /// There is nothing to compile: it has no effect as it is.
    Nothing,
}

impl PolicyFiles {
    pub(super) fn new(control: Arc<Control>) -> Self {
        let (soon, late) = (Beside::default(), Beside::default());
        Self { control, known: HashMap::new(), soon, late, tasks: JoinSet::new() }
    }

    /// Enforces exactly these policies from now on, which are named by their endpoint ids, and the large ones of them as soon as they
    /// are compiled; the first time all at once. See [`Control::update_policies`].
    ///
    /// # Errors
    /// A defect of ours; nothing has changed.
    pub(super) async fn replace(
        &mut self,
        policies: Vec<(Arc<cilium::NetworkPolicy>, FilePlace)>,
    ) -> Result<(), CompilingFailed> {
        let all = named(policies);
        let names: HashSet<&str> = all.iter().map(|received| &*received.name).collect();
        let removed = self.control.all_but(&names);
        let is_known = |received: &&Received| {
            let known = self.known.get(&received.name);
            known.is_some_and(|known| Arc::ptr_eq(known, &received.policy) || **known == *received.policy)
        };
        let (same, mut changed): (Vec<_>, Vec<_>) = all.iter().partition(is_known);
        self.control.note_places(same.into_iter().filter_map(|same| Some((&*same.name, same.place.as_ref()?))));
        let shared = shared(&all);
        let is_shared = |received: &Received| keys(&received.policy).any(|key| shared.contains(&key));
        let changed_names: HashSet<&str> = changed.iter().map(|received| &*received.name).collect();
        // What is newer comes instead of what waits, and who claims an address first must not depend on who takes how long.
        let hurried = self.give_up(|waiting| {
            let is_there = names.contains(&*waiting.name);
            (!is_there || changed_names.contains(&*waiting.name) || is_shared(waiting)).then_some(is_there)
        });
        changed.extend(all.iter().filter(|one| hurried.contains(&one.name) && !changed_names.contains(&*one.name)));
        let world = self.control.store().load().clone();
        let may_wait = |received: &&Received| {
            let own = |key: EndpointKey| world.policy.endpoint(&key).all(|policy| policy.resource() == received.name);
            let is_large = received.policy.encoded_len() > LARGE;
            world.has_policy && is_large && !is_shared(received) && keys(&received.policy).all(own)
        };
        let (later, now): (Vec<Received>, Vec<Received>) = {
            let (later, now): (Vec<_>, Vec<_>) = changed.into_iter().partition(may_wait);
            (later.into_iter().cloned().collect(), now.into_iter().cloned().collect())
        };
        let known = all.iter().map(|received| (received.name.clone(), Arc::clone(&received.policy))).collect();
        if !world.has_policy || !now.is_empty() || !removed.is_empty() {
            self.known.clear(); // all are news if this fails
            self.control.update_policies(now, removed, ClaimOrder::Continues).await?;
        }
        self.known = known;
        for received in later {
            let (endpoint_id, bytes) = (received.policy.endpoint_id, received.policy.encoded_len());
            tracing::info!(
                endpoint_id,
                bytes,
                "a large policy is compiled; what its endpoint has now stays until then"
            );
            self.soon.waiting.push(received);
        }
        self.go_on();
        Ok(())
    }

    /// Takes out of what waits, and of what is under way, whatever `is_over` says of: `true` for what has to be done now. Returns the names
    /// of those.
    fn give_up(&mut self, is_over: impl Fn(&Received) -> Option<bool>) -> HashSet<String> {
        let mut hurried = HashSet::new();
        for beside in [&mut self.soon, &mut self.late] {
            beside.waiting.retain(|received| match is_over(received) {
                Some(is_there) => {
                    if is_there {
                        hurried.insert(received.name.clone());
                    }
                    false
                }
                None => true,
            });
            if let Some((name, is_wanted)) = &mut beside.under_way
                && *is_wanted
                && let Some(policy) = self.known.get(name)
            {
                let received =
                    Received { name: name.clone(), policy: Arc::clone(policy), partly_read: None, place: None };
                if let Some(is_there) = is_over(&received) {
                    *is_wanted = false;
                    if is_there {
                        hurried.insert(received.name);
                    }
                }
            }
        }
        hurried
    }

    /// Begins whatever is next.
    fn go_on(&mut self) {
        for haste in [Haste::Soon, Haste::Late] {
            let beside = self.beside(haste);
            if beside.under_way.is_some() || beside.waiting.is_empty() {
                continue;
            }
            let next = self.next(haste);
            let received = self.beside(haste).waiting.swap_remove(next);
            self.beside(haste).under_way = Some((received.name.clone(), true));
            let control = Arc::clone(&self.control);
            self.tasks.spawn(async move {
                let nice = if haste == Haste::Soon { SOON } else { LATE };
                let outcome = run(nice, move || {
                    let outcome = match NetworkPolicy::try_from(&*received.policy) {
                        Ok(model) => control
                            .prepare_policy(&received.name, model, haste)
                            .map_or(Outcome::Beyond, |prepared| Outcome::Compiled(Box::new(prepared))),
                        Err(_) => Outcome::Nothing,
                    };
                    (received, outcome)
                });
                Done { haste, outcome: outcome.await }
            });
        }
    }

    /// Where the next one waits: the smallest, of what is beyond its tenant's budget whose tenant owes least.
    fn next(&mut self, haste: Haste) -> usize {
        let control = Arc::clone(&self.control);
        let world = control.store().load().clone();
        let mut budgets = control.budgets();
        let order = |received: &Received| {
            let size = Reverse(received.policy.encoded_len());
            if haste == Haste::Soon {
                return (0, size);
            }
            let keys: Vec<EndpointKey> = keys(&received.policy).collect();
            let terms = Terms::of_endpoint(received.policy.endpoint_id, keys.iter(), &world.tenants);
            (budgets.balance(terms.owner, terms.allowance, Instant::now()), size)
        };
        let first = self.beside(haste).waiting.iter().map(order).enumerate().max_by_key(|(_, order)| *order);
        first.map_or(0, |(index, _)| index)
    }

    fn beside(&mut self, haste: Haste) -> &mut Beside {
        match haste {
            Haste::Soon => &mut self.soon,
            Haste::Late => &mut self.late,
        }
    }

    /// The next that has been compiled. May be dropped and called again.
    pub(super) async fn done(&mut self) -> Result<Done, JoinError> {
        match self.tasks.join_next().await {
            Some(done) => done,
            None => pending().await,
        }
    }

    /// Puts it in force, unless there is something newer.
    pub(super) async fn put(&mut self, done: Result<Done, JoinError>) {
        let Ok(Done { haste, outcome }) = done else { return };
        let wanted = self.beside(haste).under_way.take();
        match (wanted, outcome) {
            (Some((_, true)), Ok((received, outcome))) => self.put_wanted(received, outcome).await,
            (Some((name, true)), Err(error)) => {
                tracing::error!(%error, policy = name, "what its endpoint had before stays in force");
            }
            _ => {}
        }
        self.go_on();
    }

    async fn put_wanted(&mut self, received: Received, outcome: Outcome) {
        let put = match outcome {
            Outcome::Compiled(prepared) => self.control.put_policy(received, *prepared).await,
            // How long that takes has no end on a busy node, and what was there may allow what is forbidden now: it denies meanwhile.
            Outcome::Beyond | Outcome::Nothing => {
                self.control.update_policies(vec![received], Vec::new(), ClaimOrder::Continues).await
            }
        };
        if let Err(error) = put {
            tracing::error!(%error, "a policy of the directory was not taken over");
        }
    }
}

/// The policies by the names of their resources.
fn named(policies: Vec<(Arc<cilium::NetworkPolicy>, FilePlace)>) -> Vec<Received> {
    let mut names = HashSet::with_capacity(policies.len());
    let mut all = Vec::with_capacity(policies.len());
    for (policy, place) in policies {
        let mut name = policy.endpoint_id.to_string();
        let mut copies = 1;
        // Of several with the same id each is enforced. A resource name holds no white space, so this is nobody's name.
        while !names.insert(name.clone()) {
            copies += 1;
            name = format!("{} ({copies})", policy.endpoint_id);
        }
        all.push(Received { name, policy, partly_read: None, place: Some(place) });
    }
    all
}

fn keys(policy: &cilium::NetworkPolicy) -> impl Iterator<Item = EndpointKey> {
    policy.endpoint_ips.iter().map(|key| EndpointKey::parse(key))
}

/// Addresses that several of them claim.
fn shared(all: &[Received]) -> HashSet<EndpointKey> {
    let mut claimed: HashMap<EndpointKey, &str> = HashMap::new();
    let mut shared = HashSet::new();
    for received in all {
        for key in keys(&received.policy) {
            match claimed.get(&key) {
                Some(name) if **name != *received.name => drop(shared.insert(key)),
                _ => drop(claimed.insert(key, &received.name)),
            }
        }
    }
    shared
}

#[cfg(test)]
mod tests;
