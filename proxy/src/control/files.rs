//! Policies of a watched directory: each is in force as soon as it can be, whatever others take.
//!
//! Nobody is told when a file is in force, unlike a control plane, to which an acknowledgement is a promise. So a large policy is
//! compiled beside updates. What its endpoint had before goes on until then, but not for long: it may allow what is forbidden now.
//! One that had nothing goes on being refused.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tollgate_policy::{EndpointKey, NetworkPolicy};
use tollgate_proto::cilium;

use super::claims::{keys, shared};
use super::compile::{Failed, LARGE, Prepared, run_soon};
use super::directory::{Directory, PolicySet};
use super::policies::{ClaimOrder, CompilingFailed, Control, Received, RefusedResource};
use super::warned::Warned;
use crate::policy_file::FilePlace;

/// How long what an endpoint had before goes on while its large policy is compiled. On a node that is not busy none waits as long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Before what was not taken over is taken over again: the first time, and at most.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Control {
    /// Enforces what the files of `directory` hold, now and whenever they change. Never returns.
    pub async fn follow_directory(self: Arc<Self>, mut directory: Directory) {
        let mut files = PolicyFiles::new(Arc::clone(&self));
        let mut first = true;
        let mut warned = Warned::default();
        loop {
            let reading = tokio::select! {
                reading = directory.next() => reading,
                event = files.next() => {
                    files.follow(event).await;
                    continue;
                }
            };
            for error in &reading.errors {
                tracing::warn!(%error, "policy file does not load; unless it says otherwise, what it held before stays in force, or its endpoints deny if that is not known");
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
            if !reading.is_known {
                continue;
            }
            if first && !reading.set.hosts.is_empty() {
                tracing::warn!("NetworkPolicyHosts in a policy directory have no effect; list them under `identities`");
            }
            let PolicySet { policies, places, tenants, .. } = reading.set;
            if !tenants.is_empty() || !self.store().tenants().delivers(&[]) {
                self.replace_tenants_of_files(tenants.iter().map(|(tenant, place)| (tenant, place)));
            }
            if reading.changed || first {
                files.replace(policies.into_iter().zip(places).collect()).await;
            }
            first = false;
        }
    }
}

/// What the files hold, and those of it that are not in force yet.
#[derive(Debug)]
pub(super) struct PolicyFiles {
    control: Arc<Control>,
    /// What was read last.
    read: Vec<Received>,
    /// What of it has been taken over, by resource name.
    known: HashMap<String, Arc<cilium::NetworkPolicy>>,
    /// When what was read is taken over again, since something of it was not.
    again: Option<Instant>,
    /// For how long that waits the next time.
    pause: Duration,
    waiting: Vec<Waiting>,
    under_way: Option<UnderWay>,
    tasks: JoinSet<Done>,
    patience: Duration,
}

/// A policy that is to be compiled beside updates.
#[derive(Debug)]
struct Waiting {
    received: Received,
    since: Instant,
}

/// The policy that is compiled now.
#[derive(Debug)]
struct UnderWay {
    received: Received,
    since: Instant,
    /// There is nothing newer, or what is newer waits for this one.
    is_wanted: bool,
    /// Its endpoint denies until it is compiled.
    is_overdue: bool,
}

/// What became of a policy that was compiled beside updates.
type Done = Result<Outcome, Failed>;

#[derive(Debug)]
pub(super) enum Outcome {
    Compiled(Box<Prepared>),
    /// It takes more than its tenant may use at once.
    Beyond,
    /// There is nothing to compile: it has no effect as it is.
    Nothing,
}

/// What happens beside updates.
#[derive(Debug)]
pub(super) enum Event {
    Compiled(Result<Done, JoinError>),
    /// What was there before has been in force for long enough.
    Overdue,
    /// It is time for another attempt.
    Again,
}

impl PolicyFiles {
    pub(super) fn new(control: Arc<Control>) -> Self {
        Self {
            control,
            read: Vec::new(),
            known: HashMap::new(),
            again: None,
            pause: PAUSE,
            waiting: Vec::new(),
            under_way: None,
            tasks: JoinSet::new(),
            patience: PATIENCE,
        }
    }

    /// Enforces exactly these policies from now on, which are named by their endpoint ids, and the large ones of them as soon as they
    /// are compiled. It waits for the first ones. See [`Control::update_policies`]. Whatever fails is tried again: nobody else would,
    /// before a file changes.
    pub(super) async fn replace(&mut self, policies: Vec<(Arc<cilium::NetworkPolicy>, FilePlace)>) {
        self.read = named(policies);
        self.pause = PAUSE;
        self.take_over().await;
    }

    /// Takes over what was read, or what has not been of it.
    async fn take_over(&mut self) {
        self.again = None;
        let read = std::mem::take(&mut self.read);
        let taken = self.attempt(&read).await;
        self.read = read;
        if let Err(error) = taken {
            self.try_again(&error);
        }
    }

    /// Has what was read taken over again, ever later while that fails.
    fn try_again(&mut self, error: &CompilingFailed) {
        let pause = self.pause;
        tracing::error!(%error, ?pause, "the policy directory was not taken over, which is tried again");
        self.again = Some(Instant::now() + pause);
        self.pause = (2 * pause).min(LONGEST_PAUSE);
    }

    async fn attempt(&mut self, all: &[Received]) -> Result<(), CompilingFailed> {
        let names: HashSet<&str> = all.iter().map(|received| &*received.name).collect();
        let removed = self.control.all_but(&names);
        let is_known = |received: &&Received| {
            let known = self.known.get(&received.name);
            known.is_some_and(|known| Arc::ptr_eq(known, &received.policy) || **known == *received.policy)
        };
        let (same, mut changed): (Vec<_>, Vec<_>) = all.iter().partition(is_known);
        self.control.note_places(same.into_iter().filter_map(|same| Some((&*same.name, same.place.as_ref()?))));
        let shared = shared(all);
        let is_shared = |received: &Received| keys(&received.policy).any(|key| shared.contains(&key));
        let changed_names: HashSet<&str> = changed.iter().map(|received| &*received.name).collect();
        let world = self.control.store().load().clone();
        let may_wait = |received: &&Received| {
            let own = |key: EndpointKey| world.policy.endpoint(&key).all(|policy| policy.resource() == received.name);
            let is_large = received.bytes() > LARGE;
            world.has_policy && is_large && !is_shared(received) && keys(&received.policy).all(own)
        };
        // Else whoever changes a file all the time would keep in force what it said at first.
        let is_a_step = |under_way: &Received| {
            let newer = changed.iter().find(|newer| newer.name == under_way.name);
            newer.is_some_and(|newer| newer.policy.endpoint_ips == under_way.policy.endpoint_ips && may_wait(newer))
        };
        // What is newer comes instead of what waits, and who claims an address first must not depend on who takes how long.
        let given_up = self.give_up(is_a_step, |waiting| {
            let is_there = names.contains(&*waiting.name);
            !is_there || changed_names.contains(&*waiting.name) || is_shared(waiting)
        });
        let is_hurried = |one: &&Received| given_up.contains_key(&one.name) && !changed_names.contains(&*one.name);
        changed.extend(all.iter().filter(is_hurried));
        let (later, now): (Vec<Received>, Vec<Received>) = {
            let (later, now): (Vec<_>, Vec<_>) = changed.into_iter().partition(may_wait);
            (later.into_iter().cloned().collect(), now.into_iter().cloned().collect())
        };
        let known = all.iter().map(|received| (received.name.clone(), Arc::clone(&received.policy))).collect();
        // They wait whatever becomes of the others, or each failure would leave what they replace in force for as long again.
        self.wait(later, &given_up);
        // All are news if this fails.
        let before = std::mem::take(&mut self.known);
        let mut taken = Ok(());
        if !world.has_policy || !now.is_empty() || !removed.is_empty() {
            let order = if world.has_policy { ClaimOrder::Continues } else { ClaimOrder::BeginsAnew };
            taken = self.control.update_policies(now, removed, order).await;
        }
        if taken.is_ok() {
            self.known = known;
        }
        self.control.store().retired.free(before);
        self.go_on();
        taken
    }

    /// Has these compiled beside updates. What is in force now has been out of date since the first change of it that still waits.
    fn wait(&mut self, later: Vec<Received>, given_up: &HashMap<String, Instant>) {
        for received in later {
            let (endpoint_id, bytes) = (received.policy.endpoint_id, received.bytes());
            tracing::info!(
                endpoint_id,
                bytes,
                "a large policy is compiled; what its endpoint has now stays until then"
            );
            let since = given_up.get(&received.name).copied().unwrap_or_else(Instant::now);
            self.waiting.push(Waiting { received, since });
        }
    }

    /// Takes out of what waits, and of what is under way, whatever `is_over` says of. Returns by name since when it waited. What is under
    /// way goes on if it `is_a_step` to what is newer, and what is in force has been out of date for half of the time that it may be: not
    /// before, so that a mistake which is corrected at once comes into force no more.
    fn give_up(
        &mut self,
        is_a_step: impl Fn(&Received) -> bool,
        is_over: impl Fn(&Received) -> bool,
    ) -> HashMap<String, Instant> {
        let over = self.waiting.extract_if(.., |waiting| is_over(&waiting.received));
        let mut given_up: HashMap<_, _> = over.map(|waiting| (waiting.received.name, waiting.since)).collect();
        let half = self.patience / 2;
        if let Some(under_way) = self.under_way.as_mut().filter(|under_way| under_way.is_wanted)
            && is_over(&under_way.received)
            && !(under_way.since.elapsed() >= half && is_a_step(&under_way.received))
        {
            under_way.is_wanted = false;
            given_up.insert(under_way.received.name.clone(), under_way.since);
        }
        given_up
    }

    /// Begins with the smallest of what waits, unless one is under way.
    fn go_on(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        let sizes = self.waiting.iter().map(|waiting| waiting.received.bytes());
        let Some((smallest, _)) = sizes.enumerate().min_by_key(|(_, size)| *size) else { return };
        let Waiting { received, since } = self.waiting.swap_remove(smallest);
        let (control, name, policy) = (Arc::clone(&self.control), received.name.clone(), Arc::clone(&received.policy));
        self.under_way = Some(UnderWay { received, since, is_wanted: true, is_overdue: false });
        self.tasks.spawn(run_soon(move || match NetworkPolicy::try_from(&*policy) {
            Ok(model) => {
                let prepared = control.prepare_policy(&name, model);
                prepared.map_or(Outcome::Beyond, |prepared| Outcome::Compiled(Box::new(prepared)))
            }
            Err(_) => Outcome::Nothing,
        }));
    }

    /// What happens next. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Event {
        let under_way = self.under_way.iter().filter(|under_way| under_way.is_wanted && !under_way.is_overdue);
        let under_way = under_way.map(|under_way| under_way.since);
        let oldest = self.waiting.iter().map(|waiting| waiting.since).chain(under_way).min();
        tokio::select! {
            biased;
            Some(done) = self.tasks.join_next() => Event::Compiled(done),
            () = at(oldest.map(|since| since + self.patience)) => Event::Overdue,
            () = at(self.again) => Event::Again,
        }
    }

    pub(super) async fn follow(&mut self, event: Event) {
        match event {
            Event::Compiled(done) => self.put(done).await,
            Event::Overdue => self.deny_overdue().await,
            Event::Again => self.take_over().await,
        }
    }

    /// Puts in force what was compiled, unless there is something newer.
    async fn put(&mut self, done: Result<Done, JoinError>) {
        let Some(UnderWay { received, is_wanted, .. }) = self.under_way.take() else { return };
        let (name, policy) = (received.name.clone(), Arc::clone(&received.policy));
        let put = match done {
            Ok(Ok(Outcome::Compiled(prepared))) if !is_wanted => {
                drop(received);
                self.control.store().retired.free(prepared.give_up());
                Ok(())
            }
            _ if !is_wanted => {
                drop(received);
                Ok(())
            }
            Ok(Ok(Outcome::Compiled(prepared))) => self.control.put_policy(received, *prepared).await,
            // How long that takes has no end on a busy node, and what was there may allow what is forbidden now: it denies meanwhile.
            Ok(Ok(Outcome::Beyond | Outcome::Nothing)) => {
                self.control.update_policies(vec![received], Vec::new(), ClaimOrder::Continues).await
            }
            Ok(Err(error)) => {
                tracing::error!(%error, policy = received.name, "a large policy was not compiled");
                self.deny(received).await
            }
            Err(_) => Ok(()), // the process ends
        };
        // Nobody else may have it any more.
        self.control.store().retired.free(policy);
        self.note(&name, put);
        self.go_on();
    }

    /// Has whoever waits for too long deny until it is compiled. What is under way comes into force all the same, unless what is newer
    /// denies: else a file that changes all the time would have its endpoint deny nearly all the time.
    async fn deny_overdue(&mut self) {
        let now = Instant::now();
        let is_overdue = |since: Instant| since + self.patience <= now;
        let mut overdue: Vec<Received> =
            self.waiting.extract_if(.., |waiting| is_overdue(waiting.since)).map(|waiting| waiting.received).collect();
        if let Some(under_way) = self.under_way.as_mut().filter(|under_way| under_way.is_wanted) {
            if overdue.iter().any(|newer| newer.name == under_way.received.name) {
                under_way.is_wanted = false;
            } else if !under_way.is_overdue && is_overdue(under_way.since) {
                under_way.is_overdue = true;
                overdue.push(under_way.received.clone());
            }
        }
        for received in overdue {
            let (name, endpoint_id) = (received.name.clone(), received.policy.endpoint_id);
            tracing::warn!(endpoint_id, "compiling a large policy takes long: its endpoint denies until that is done");
            let denied = self.deny(received).await;
            self.note(&name, denied);
        }
    }

    /// Has a policy taken over again that was not.
    fn note(&mut self, name: &str, put: Result<(), CompilingFailed>) {
        if let Err(error) = put {
            self.known.remove(name);
            self.try_again(&error);
        }
    }

    /// Has its endpoint deny until the background has compiled it.
    async fn deny(&self, received: Received) -> Result<(), CompilingFailed> {
        match NetworkPolicy::try_from(&*received.policy) {
            Ok(model) => {
                let denying = self.control.denying_for_now(&received.name, model);
                self.control.put_policy(received, denying).await
            }
            Err(_) => self.control.update_policies(vec![received], Vec::new(), ClaimOrder::Continues).await,
        }
    }
}

/// Waits until that moment; without one for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
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
        all.push(Received::new(name, policy, None, Some(place)));
    }
    all
}

#[cfg(test)]
mod tests;
