//! Makes the next snapshot out of the one before and what a response changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::shards::{Edits, hash_of};
use super::{Claim, Claimant, Conflict, EndpointPolicy, Side, Snapshot};
use crate::{Effort, EndpointKey, Limits, NetworkPolicy, PortPolicy};

/// Makes the next [`Snapshot`].
#[derive(Debug)]
pub struct SnapshotBuilder {
    base: Snapshot,
    generation: u64,
    /// What differs from the base, by resource name; `None` is a resource that is gone.
    changes: BTreeMap<Box<str>, Option<Arc<EndpointPolicy>>>,
    /// What the base has not compiled, by the hash of its source.
    new_sides: HashMap<u64, Vec<Arc<Side>>>,
    /// Kept for as long as they may be asked for.
    adopted: Vec<Arc<Side>>,
    /// What resources claimed that are set aside now; `None` where they are not any more.
    set_aside: BTreeMap<Box<str>, Option<Box<[Claim]>>>,
    forgets_order: bool,
}

impl SnapshotBuilder {
    pub(super) fn new(base: Snapshot) -> Self {
        Self {
            generation: base.generation + 1,
            base,
            changes: BTreeMap::new(),
            new_sides: HashMap::new(),
            adopted: Vec::new(),
            set_aside: BTreeMap::new(),
            forgets_order: false,
        }
    }

    /// Lets all claims to addresses count as made at once in this generation, also those that are there already. For the first
    /// state of a stream: what is enforced then does not depend on what earlier streams said in which order.
    pub fn forget_order(&mut self) {
        self.forgets_order = true;
    }

    /// State of the world: afterwards there are these policies and no others. Resources are named by their decimal
    /// endpoint id. Of several with the same id each is enforced. Returns the names, in the order of the policies.
    pub fn replace_all(&mut self, policies: impl IntoIterator<Item = NetworkPolicy>) -> Vec<String> {
        let mut named: HashSet<String> = HashSet::new();
        let mut names = Vec::new();
        let mut copies: HashMap<u64, u32> = HashMap::new();
        for policy in policies {
            let copy = copies.entry(policy.endpoint_id).or_default();
            *copy += 1;
            let resource = match *copy {
                1 => policy.endpoint_id.to_string(),
                // A resource name holds no white space, so this is nobody's name.
                copy => format!("{} ({copy})", policy.endpoint_id),
            };
            self.upsert(&resource, policy);
            names.push(resource.clone());
            named.insert(resource);
        }
        let known = self.base.resources.iter().map(|policy| &policy.resource).chain(self.changes.keys());
        let known = known.chain(self.base.set_aside.keys()).chain(self.set_aside.keys());
        let gone: Vec<Box<str>> = known.filter(|name| !named.contains(&***name)).cloned().collect();
        for name in gone {
            self.remove(&name);
        }
        names
    }

    /// Adds or replaces one resource, whatever compiling it takes.
    pub fn upsert(&mut self, resource: &str, policy: NetworkPolicy) {
        self.upsert_within(resource, policy, &Limits::default(), &mut { Effort::UNBOUNDED });
    }

    /// Adds or replaces one resource. A direction for which `effort` does not suffice denies everything: whoever has more
    /// time makes a [`Prepared`] of it, and adds it again with that.
    pub fn upsert_within(&mut self, resource: &str, policy: NetworkPolicy, limits: &Limits, effort: &mut Effort) {
        let old = self.current(resource).cloned();
        if let Some(changed) = self.compile(resource, policy, old.as_deref(), limits, effort) {
            self.changes.insert(resource.into(), Some(Arc::new(changed)));
        }
        self.forget_aside(resource);
    }

    /// Enforces one resource no more, which is still there, but cannot be enforced. When it can again, the claims that it had have
    /// their old place in the order; of a resource that was removed they are new.
    pub fn set_aside(&mut self, resource: &str) {
        let claims = match self.current(resource) {
            Some(policy) => policy.claims.clone(),
            None => self.claims_aside(resource).into(),
        };
        self.remove(resource);
        self.set_aside.insert(resource.into(), Some(claims));
    }

    /// Compiled forms that [`upsert_within`](Self::upsert_within) need not make.
    pub fn adopt(&mut self, prepared: Prepared) {
        for (hash, side) in prepared.0 {
            if self.base.known_side(hash, &side.source, &side.limits).is_none() {
                self.new_sides.entry(hash).or_default().push(side.clone());
            }
            self.adopted.push(side);
        }
    }

    /// Removes one resource; `false` when there was none of this name.
    pub fn remove(&mut self, resource: &str) -> bool {
        self.forget_aside(resource);
        let known = self.current(resource).is_some();
        if known {
            self.changes.insert(resource.into(), None);
        }
        known
    }

    /// The snapshot. A key belongs to the resource that claimed it last; to all of them when they did at once.
    pub fn build(self) -> Snapshot {
        let Self { base, generation, changes, new_sides, adopted: _, set_aside, forgets_order } = self;
        let mut next = base;
        next.generation = generation;
        if forgets_order {
            next.order_since = generation;
            next.set_aside = Arc::default();
            let shared: Vec<EndpointKey> = next.conflicts.keys().cloned().collect();
            next.note_conflicts(shared.iter());
        } else if !set_aside.is_empty() {
            let aside = Arc::make_mut(&mut next.set_aside);
            for (name, claims) in set_aside {
                match claims {
                    Some(claims) => aside.insert(name, claims),
                    None => aside.remove(&name),
                };
            }
        }
        let mut gone = Vec::new();
        let mut come = Vec::new();
        for (name, change) in changes {
            gone.extend(next.resource(&name).cloned());
            come.extend(change);
        }
        if !gone.is_empty() || !come.is_empty() {
            next.exchange(&gone, &come);
            next.count_secrets(&gone, &come);
            next.note_conflicts(gone.iter().chain(&come).flat_map(|policy| policy.keys()));
        }
        let mut edits = Edits::default();
        for (hash, sides) in &new_sides {
            sides.iter().for_each(|side| edits.add(*hash, (*hash, Arc::downgrade(side))));
        }
        next.sides.apply(edits, |(_, side)| side.strong_count() > 0, |(a, _), (b, _)| a.cmp(b));
        next
    }

    /// The resource of this name, as far as the update has come.
    fn current(&self, resource: &str) -> Option<&Arc<EndpointPolicy>> {
        match self.changes.get(resource) {
            Some(change) => change.as_ref(),
            None => self.base.resource(resource),
        }
    }

    /// What the resource of this name claimed, if it is set aside.
    fn claims_aside(&self, resource: &str) -> &[Claim] {
        match self.set_aside.get(resource) {
            Some(aside) => aside.as_deref(),
            None => self.base.set_aside.get(resource).map(|claims| &**claims),
        }
        .unwrap_or_default()
    }

    fn forget_aside(&mut self, resource: &str) {
        if self.set_aside.contains_key(resource) || self.base.set_aside.contains_key(resource) {
            self.set_aside.insert(resource.into(), None);
        }
    }

    /// The policy in the form that is enforced; `None` when it is what the resource had before.
    fn compile(
        &mut self,
        resource: &str,
        policy: NetworkPolicy,
        old: Option<&EndpointPolicy>,
        limits: &Limits,
        effort: &mut Effort,
    ) -> Option<EndpointPolicy> {
        let mut claims: Vec<Claim> = Vec::with_capacity(policy.endpoints.len());
        for key in policy.endpoints {
            if claims.iter().any(|claim| claim.key == key) {
                continue;
            }
            let before = old.map_or_else(|| self.claims_aside(resource), |old| &old.claims);
            let since = before.iter().find(|claim| claim.key == key).map_or(self.generation, |claim| claim.since);
            claims.push(Claim { key, since });
        }
        let mut side = |rules: Vec<PortPolicy>, before: Option<&Arc<Side>>| match before {
            Some(before) if before.is(&rules, limits) => before.clone(),
            before => self.intern(rules, limits, effort, before),
        };
        let ingress = side(policy.ingress, old.map(|old| &old.ingress));
        let egress = side(policy.egress, old.map(|old| &old.egress));
        let same = old.is_some_and(|old| {
            old.endpoint_id == policy.endpoint_id
                && *old.claims == *claims
                && Arc::ptr_eq(&old.ingress, &ingress)
                && Arc::ptr_eq(&old.egress, &egress)
        });
        let endpoint_id = policy.endpoint_id;
        (!same).then(|| EndpointPolicy {
            resource: resource.into(),
            endpoint_id,
            claims: claims.into(),
            ingress,
            egress,
        })
    }

    /// The compiled form of `source`, which endpoints with equal rules share.
    fn intern(
        &mut self,
        source: Vec<PortPolicy>,
        limits: &Limits,
        effort: &mut Effort,
        before: Option<&Arc<Side>>,
    ) -> Arc<Side> {
        let hash = hash_of(&source);
        if let Some(known) = self.base.known_side(hash, &source, limits) {
            return known;
        }
        let same = self.new_sides.entry(hash).or_default();
        if let Some(known) = same.iter().find(|side| side.is(&source, limits)) {
            return known.clone();
        }
        let is_it = |side: &&Arc<Side>| side.source == source && side.limits == *limits;
        // Whatever has become of it: there is nobody who would find out more.
        if let Some(adopted) = self.adopted.iter().find(is_it) {
            return adopted.clone();
        }
        // Once it was too much, whoever makes it ready does so elsewhere.
        if let Some(before) = before.filter(is_it) {
            return before.clone();
        }
        let side = Arc::new(Side::compile(source, limits, effort));
        same.push(side.clone());
        side
    }
}

/// The compiled forms of a policy's directions, made without a builder, and so for as long as it takes.
#[derive(Debug)]
pub struct Prepared(Vec<(u64, Arc<Side>)>);

impl Prepared {
    /// Compiles `policy`, but for what `base` has, within `effort`, of which it leaves what it did not need.
    pub fn new(policy: NetworkPolicy, limits: &Limits, base: &Snapshot, effort: &mut Effort) -> Self {
        let mut side = |source: Vec<PortPolicy>| {
            let hash = hash_of(&source);
            let known = base.known_side(hash, &source, limits);
            (hash, known.unwrap_or_else(|| Arc::new(Side::compile(source, limits, effort))))
        };
        Self(vec![side(policy.ingress), side(policy.egress)])
    }

    /// Whether the time did not suffice.
    pub fn is_unfinished(&self) -> bool {
        self.0.iter().any(|(_, side)| side.compiled.unfinished)
    }
}

impl Snapshot {
    /// Replaces the policies `gone` by those that have `come`.
    fn exchange(&mut self, gone: &[Arc<EndpointPolicy>], come: &[Arc<EndpointPolicy>]) {
        let mut resources = Edits::default();
        let mut claimants = Edits::default();
        for policy in gone {
            resources.touch(hash_of(&*policy.resource));
            policy.claims.iter().for_each(|claim| claimants.touch(hash_of(&claim.key)));
            self.endpoint_count -= 1;
            self.quarantined_count -= policy.quarantined_count();
            self.unfinished_count -= usize::from(policy.is_unfinished());
            self.without_room_count -= usize::from(policy.without_room().is_some());
        }
        for policy in come {
            resources.add(hash_of(&*policy.resource), policy.clone());
            for claim in &policy.claims {
                let hash = hash_of(&claim.key);
                claimants.add(hash, Claimant { hash, policy: policy.clone() });
            }
            self.endpoint_count += 1;
            self.quarantined_count += policy.quarantined_count();
            self.unfinished_count += usize::from(policy.is_unfinished());
            self.without_room_count += usize::from(policy.without_room().is_some());
        }
        let gone: HashSet<*const EndpointPolicy> = gone.iter().map(Arc::as_ptr).collect();
        let stays = |policy: &Arc<EndpointPolicy>| !gone.contains(&Arc::as_ptr(policy));
        self.resources.apply(resources, stays, |a, b| a.resource.cmp(&b.resource));
        self.claimants.apply(
            claimants,
            |claimant| stays(&claimant.policy),
            |a, b| (a.hash, &a.policy.resource).cmp(&(b.hash, &b.policy.resource)),
        );
    }

    /// Keeps count of who names which secret.
    fn count_secrets(&mut self, gone: &[Arc<EndpointPolicy>], come: &[Arc<EndpointPolicy>]) {
        for name in come.iter().flat_map(|policy| policy.secrets()) {
            *Arc::make_mut(&mut self.secrets).entry(name.clone()).or_default() += 1;
        }
        for name in gone.iter().flat_map(|policy| policy.secrets()) {
            let secrets = Arc::make_mut(&mut self.secrets);
            if let Some(count) = secrets.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    secrets.remove(name);
                }
            }
        }
    }

    /// Finds out again who shares a key, for every key that may have changed hands.
    fn note_conflicts<'k>(&mut self, changed: impl Iterator<Item = &'k EndpointKey>) {
        let changed: BTreeSet<_> = changed.collect();
        let mut conflicts = BTreeMap::clone(&self.conflicts);
        for key in changed {
            match self.conflict(key) {
                Some(conflict) => conflicts.insert(key.clone(), conflict),
                None => conflicts.remove(key),
            };
        }
        self.conflicts = Arc::new(conflicts);
    }

    fn conflict(&self, key: &EndpointKey) -> Option<Conflict> {
        let claims = self.claimants(key).iter().map(|claimant| &claimant.policy);
        let claims: Vec<_> = claims.filter_map(|policy| Some((self.since(policy, key)?, &policy.resource))).collect();
        let latest = claims.iter().map(|(since, _)| *since).max().filter(|_| claims.len() > 1)?;
        let names = |wanted: bool| {
            claims
                .iter()
                .filter(|(since, _)| (*since == latest) == wanted)
                .map(|(_, name)| Arc::from(&***name))
                .collect()
        };
        Some(Conflict { key: key.clone(), enforced: names(true), overridden: names(false) })
    }
}
