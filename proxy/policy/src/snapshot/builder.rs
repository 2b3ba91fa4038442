//! Makes the next snapshot out of the one before and what a response changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::draft::{Draft, Part};
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
    /// time makes a [`Draft`] of it, and inserts that.
    pub fn upsert_within(&mut self, resource: &str, policy: NetworkPolicy, limits: &Limits, effort: &mut Effort) {
        let mut draft = self.draft(resource, policy, limits);
        draft.compile(effort);
        self.insert(resource, draft);
    }

    /// The policy with those of its forms that there are. What stands for its rules by now is one of them: once it was too much,
    /// whoever makes it ready does so elsewhere.
    pub fn draft(&self, resource: &str, policy: NetworkPolicy, limits: &Limits) -> Draft {
        let before = self.current(resource).map(|old| [&old.ingress, &old.egress]);
        let known = |direction: usize, hash: u64, source: &[PortPolicy]| {
            let before = before.map(|before| before[direction]);
            let same = before.filter(|before| before.is(source, limits)).cloned();
            same.or_else(|| self.known_side(hash, source, limits))
                .or_else(|| before.filter(|before| before.has(source, limits)).cloned())
        };
        let mut draft = Draft::new(policy, limits, known);
        before.into_iter().for_each(|before| draft.after(before));
        draft
    }

    /// The form of these rules that the base or an earlier policy of this update has.
    fn known_side(&self, hash: u64, source: &[PortPolicy], limits: &Limits) -> Option<Arc<Side>> {
        let new = self.new_sides.get(&hash).into_iter().flatten().find(|side| side.is(source, limits));
        self.base.known_side(hash, source, limits).or_else(|| new.cloned())
    }

    /// Adds or replaces one resource by what was compiled of it. A direction that was not compiled denies.
    pub fn insert(&mut self, resource: &str, mut draft: Draft) {
        draft.compile(&mut Effort::new(0));
        let old = self.current(resource).cloned();
        if let Some(changed) = self.policy(resource, draft, old.as_deref()) {
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
        let Self { base, generation, changes, new_sides, set_aside, forgets_order } = self;
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
    /// What this resource holds, if that is the policy of `draft`, whole: to go on with where only the limits are others, and
    /// compiling takes longer than anybody waits or needs more room than there is.
    pub fn kept(&self, resource: &str, draft: &Draft) -> Option<Draft> {
        draft.as_in_force(self.current(resource)?)
    }

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
    fn policy(&mut self, resource: &str, draft: Draft, old: Option<&EndpointPolicy>) -> Option<EndpointPolicy> {
        let Draft { endpoint_id, endpoints, parts, .. } = draft;
        let mut claims: Vec<Claim> = Vec::with_capacity(endpoints.len());
        for key in endpoints {
            if claims.iter().any(|claim| claim.key == key) {
                continue;
            }
            let before = old.map_or_else(|| self.claims_aside(resource), |old| &old.claims);
            let since = before.iter().find(|claim| claim.key == key).map_or(self.generation, |claim| claim.since);
            claims.push(Claim { key, since });
        }
        let [ingress, egress] = parts.map(|part| self.intern(part));
        let (ingress, egress) = (ingress?, egress?);
        let same = old.is_some_and(|old| {
            old.endpoint_id == endpoint_id
                && *old.claims == *claims
                && Arc::ptr_eq(&old.ingress, &ingress)
                && Arc::ptr_eq(&old.egress, &egress)
        });
        (!same).then(|| EndpointPolicy {
            resource: resource.into(),
            endpoint_id,
            claims: claims.into(),
            ingress,
            egress,
        })
    }

    /// The form that is enforced: endpoints with equal rules share it.
    fn intern(&mut self, part: Part) -> Option<Arc<Side>> {
        let side = match part {
            Part::Known(side) => return Some(side),
            Part::Source(..) => return None,
            Part::New(side) => side,
        };
        if side.compiled.is_complete() {
            if let Some(known) = self.known_side(side.hash, &side.source, &side.limits) {
                return Some(known);
            }
            self.new_sides.entry(side.hash).or_default().push(Arc::clone(&side));
        }
        Some(side)
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
