//! The immutable view of all policies that an evaluation reads, and how the next one is made from it.
//!
//! Building reuses whatever did not change: an endpoint whose policy is equal keeps its compiled form, and directions
//! with equal rules share one, whichever endpoint they belong to.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::compile::CompiledDirection;
use crate::{Direction, EndpointKey, NetworkPolicy, PortPolicy, Quarantine};

/// All policies of one generation.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: u64,
    /// By resource name.
    endpoints: BTreeMap<Arc<str>, Arc<EndpointPolicy>>,
    owners: HashMap<EndpointKey, Owners>,
    conflicts: Vec<Conflict>,
}

/// The compiled policy of one endpoint.
#[derive(Debug)]
pub struct EndpointPolicy {
    resource: Arc<str>,
    endpoint_id: u64,
    claims: Box<[Claim]>,
    ingress: Arc<Side>,
    egress: Arc<Side>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    key: EndpointKey,
    /// Generation in which the resource began to name this key without interruption.
    since: u64,
}

/// One direction with the rules that it was compiled from.
#[derive(Debug)]
pub(crate) struct Side {
    hash: u64,
    source: Vec<PortPolicy>,
    pub(crate) compiled: CompiledDirection,
}

/// Who enforces a key.
#[derive(Debug)]
enum Owners {
    One(Arc<EndpointPolicy>),
    /// Claimed in the same generation: all of them must allow.
    Several(Box<[Arc<EndpointPolicy>]>),
}

/// An address or name that more than one resource claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The address or name.
    pub key: EndpointKey,
    /// Resources that are enforced: the latest to claim it, or all that claimed it in the same response.
    pub enforced: Vec<Arc<str>>,
    /// Resources whose older claim has no effect.
    pub overridden: Vec<Arc<str>>,
}

impl Snapshot {
    /// No policy at all: denies everything. Generation 0.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Counts the snapshots that were built, one from another.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Begins the next generation, which contains everything that this one does.
    pub fn update(&self) -> SnapshotBuilder {
        SnapshotBuilder { generation: self.generation + 1, endpoints: self.endpoints.clone(), sides: None }
    }

    /// The policies that a flow of the endpoint must be allowed by; empty when there is none. More than one only when
    /// resources claimed the key at the same time.
    pub fn endpoint(&self, key: &EndpointKey) -> &[Arc<EndpointPolicy>] {
        match self.owners.get(key) {
            Some(Owners::One(policy)) => std::slice::from_ref(policy),
            Some(Owners::Several(policies)) => policies,
            None => &[],
        }
    }

    /// All policies, by resource name.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = &EndpointPolicy> {
        self.endpoints.values().map(|policy| &**policy)
    }

    /// Everything that is not enforced as written, by resource name.
    pub fn quarantined(&self) -> impl Iterator<Item = Quarantine> {
        self.endpoints().flat_map(EndpointPolicy::quarantined)
    }

    /// Names of the secrets that rules compare with or inject, in order.
    pub fn secret_names(&self) -> BTreeSet<&str> {
        let sides = self.endpoints().flat_map(|policy| [&policy.ingress, &policy.egress]);
        sides.flat_map(|side| &side.compiled.secrets).map(|name| &**name).collect()
    }

    /// Keys that more than one resource claims, in order.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }
}

impl EndpointPolicy {
    /// Name of the xDS resource; the decimal endpoint id unless the control plane chose another.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// Never 0.
    pub const fn endpoint_id(&self) -> u64 {
        self.endpoint_id
    }

    /// Addresses and names under which the policy is found.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &EndpointKey> {
        self.claims.iter().map(|claim| &claim.key)
    }

    /// The rules of one direction, as they were received.
    pub fn rules(&self, direction: Direction) -> &[PortPolicy] {
        &self.side(direction).source
    }

    /// Elements that are not enforced as written.
    pub fn quarantined(&self) -> impl Iterator<Item = Quarantine> {
        [Direction::Ingress, Direction::Egress].into_iter().flat_map(move |direction| {
            let findings = &self.side(direction).compiled.findings;
            findings.iter().map(move |finding| Quarantine::new(self, direction, finding))
        })
    }

    /// Generation in which the claim to `key` began.
    fn since(&self, key: &EndpointKey) -> u64 {
        let claim = self.claims.iter().find(|claim| claim.key == *key);
        claim.map_or(0, |claim| claim.since)
    }

    pub(crate) fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// Makes the next [`Snapshot`].
#[derive(Debug)]
pub struct SnapshotBuilder {
    generation: u64,
    endpoints: BTreeMap<Arc<str>, Arc<EndpointPolicy>>,
    /// Compiled directions by the hash of their source; made when first needed.
    sides: Option<HashMap<u64, Vec<Arc<Side>>>>,
}

impl SnapshotBuilder {
    /// State of the world: afterwards there are these policies and no others. Resources are named by their decimal
    /// endpoint id. Of several with the same id each is enforced.
    pub fn replace_all(&mut self, policies: impl IntoIterator<Item = NetworkPolicy>) {
        // Directions of resources that vanish may return under another endpoint.
        self.known_sides();
        let mut previous = std::mem::take(&mut self.endpoints);
        for policy in policies {
            let mut resource: Arc<str> = policy.endpoint_id.to_string().into();
            let mut copies = 1;
            while self.endpoints.contains_key(&resource) {
                copies += 1;
                // A resource name holds no white space, so this is nobody's name.
                resource = format!("{} ({copies})", policy.endpoint_id).into();
            }
            let old = previous.remove(&resource);
            self.insert(resource, policy, old);
        }
    }

    /// Adds or replaces one resource.
    pub fn upsert(&mut self, resource: &str, policy: NetworkPolicy) {
        let old = self.endpoints.remove(resource);
        let name = old.as_ref().map_or_else(|| resource.into(), |old| old.resource.clone());
        self.insert(name, policy, old);
    }

    /// Removes one resource; `false` when there was none of this name.
    pub fn remove(&mut self, resource: &str) -> bool {
        self.known_sides();
        self.endpoints.remove(resource).is_some()
    }

    /// The snapshot. A key belongs to the resource that claimed it last; to all of them when they did at once.
    pub fn build(self) -> Snapshot {
        let mut owners: HashMap<EndpointKey, Owners> = HashMap::with_capacity(self.endpoints.len() * 2);
        let mut contested: BTreeMap<EndpointKey, Vec<Arc<EndpointPolicy>>> = BTreeMap::new();
        for policy in self.endpoints.values() {
            for claim in &policy.claims {
                match owners.entry(claim.key.clone()) {
                    Entry::Vacant(free) => {
                        free.insert(Owners::One(policy.clone()));
                    }
                    Entry::Occupied(taken) => {
                        let claimants = contested.entry(claim.key.clone()).or_default();
                        if claimants.is_empty()
                            && let Owners::One(first) = taken.get()
                        {
                            claimants.push(first.clone());
                        }
                        claimants.push(policy.clone());
                    }
                }
            }
        }
        let mut conflicts = Vec::with_capacity(contested.len());
        for (key, claimants) in contested {
            let latest = claimants.iter().map(|policy| policy.since(&key)).max();
            let (enforced, overridden): (Vec<_>, Vec<_>) =
                claimants.into_iter().partition(|policy| Some(policy.since(&key)) == latest);
            let names = |list: &[Arc<EndpointPolicy>]| list.iter().map(|p| p.resource.clone()).collect();
            conflicts.push(Conflict { key: key.clone(), enforced: names(&enforced), overridden: names(&overridden) });
            owners.insert(key, Owners::Several(enforced.into()));
        }
        Snapshot { generation: self.generation, endpoints: self.endpoints, owners, conflicts }
    }

    fn insert(&mut self, resource: Arc<str>, policy: NetworkPolicy, old: Option<Arc<EndpointPolicy>>) {
        let mut claims: Vec<Claim> = Vec::with_capacity(policy.endpoints.len());
        for key in policy.endpoints {
            if claims.iter().any(|claim| claim.key == key) {
                continue;
            }
            let known = old.iter().flat_map(|old| &old.claims).find(|claim| claim.key == key);
            let since = known.map_or(self.generation, |claim| claim.since);
            claims.push(Claim { key, since });
        }
        let mut side = |rules: Vec<PortPolicy>, before: Option<&Arc<Side>>| match before {
            Some(before) if before.source == rules => before.clone(),
            _ => self.intern(rules),
        };
        let ingress = side(policy.ingress, old.as_ref().map(|old| &old.ingress));
        let egress = side(policy.egress, old.as_ref().map(|old| &old.egress));
        if let Some(old) = old
            && old.endpoint_id == policy.endpoint_id
            && *old.claims == *claims
            && Arc::ptr_eq(&old.ingress, &ingress)
            && Arc::ptr_eq(&old.egress, &egress)
        {
            self.endpoints.insert(resource, old);
            return;
        }
        let compiled = EndpointPolicy {
            resource: resource.clone(),
            endpoint_id: policy.endpoint_id,
            claims: claims.into(),
            ingress,
            egress,
        };
        self.endpoints.insert(resource, Arc::new(compiled));
    }

    fn intern(&mut self, source: Vec<PortPolicy>) -> Arc<Side> {
        let mut hasher = DefaultHasher::new();
        source.hash(&mut hasher);
        let hash = hasher.finish();
        let same = self.known_sides().entry(hash).or_default();
        if let Some(known) = same.iter().find(|side| side.source == source) {
            return known.clone();
        }
        let compiled = CompiledDirection::compile(&source);
        let side = Arc::new(Side { hash, source, compiled });
        same.push(side.clone());
        side
    }

    fn known_sides(&mut self) -> &mut HashMap<u64, Vec<Arc<Side>>> {
        let endpoints = &self.endpoints;
        self.sides.get_or_insert_with(|| {
            let mut known: HashMap<u64, Vec<Arc<Side>>> = HashMap::new();
            for side in endpoints.values().flat_map(|policy| [&policy.ingress, &policy.egress]) {
                let same = known.entry(side.hash).or_default();
                if !same.iter().any(|other| Arc::ptr_eq(other, side)) {
                    same.push(side.clone());
                }
            }
            known
        })
    }
}
