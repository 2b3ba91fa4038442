//! The immutable view of all policies that an evaluation reads, and how the next one is made from it.
//!
//! Building costs what changed: an endpoint whose policy is equal keeps its compiled form, directions with equal rules
//! share one, whichever endpoint they belong to, and tables are shared with the generation before.

mod builder;
mod draft;
mod shards;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

pub use self::builder::SnapshotBuilder;
pub use self::draft::Draft;
use self::shards::{Shards, hash_of};
use crate::compile::{self, CompiledDirection};
use crate::weight::{Scale, block, weight};
use crate::{Direction, Effort, EndpointKey, Limits, NetworkPolicy, PortPolicy, Quarantine};

/// All policies of one generation.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    generation: u64,
    /// By resource name.
    resources: Shards<Arc<EndpointPolicy>>,
    /// By endpoint key.
    claimants: Shards<Claimant>,
    /// Claims that are older count as made in this generation, all at once.
    order_since: u64,
    /// What resources claimed that are there and cannot be enforced, by resource name: who is repaired comes back to its place.
    set_aside: Arc<BTreeMap<Box<str>, Box<[Claim]>>>,
    /// What was compiled, by its source. Entries of what nobody uses any more go when their shard is next copied.
    sides: Shards<(u64, Weak<Side>)>,
    conflicts: Arc<BTreeMap<EndpointKey, Conflict>>,
    endpoint_count: usize,
    quarantined_count: usize,
    unfinished_count: usize,
    without_room_count: usize,
    /// How many policies name each secret.
    secrets: Arc<BTreeMap<Box<str>, usize>>,
}

/// The compiled policy of one endpoint.
#[derive(Debug)]
pub struct EndpointPolicy {
    resource: Box<str>,
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

/// A policy that claims the key with that hash.
#[derive(Clone, Debug)]
struct Claimant {
    hash: u64,
    policy: Arc<EndpointPolicy>,
}

/// One direction with the rules that it was compiled from.
#[derive(Debug)]
pub(crate) struct Side {
    /// Tells it from all others that there ever were.
    id: u64,
    source: Vec<PortPolicy>,
    /// That of the source.
    hash: u64,
    /// How many there are.
    rules: usize,
    /// Bytes that it all takes, itself included; 0 of what only stands for it.
    bytes: usize,
    /// Within which they were compiled.
    limits: Limits,
    pub(crate) compiled: CompiledDirection,
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

/// One direction in the form that is enforced. Policies with equal rules share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// Tells it from all others that there ever were.
    pub id: u64,
    /// What it takes of memory, the rules as they were received included, and the states that automata build when they see values not.
    /// 0 of what denies for want of time or room: nothing is in force that somebody asked for.
    pub bytes: usize,
}

/// The number of the next [`Form`].
static NEXT_FORM: AtomicU64 = AtomicU64::new(0);

weight!(Side: source, compiled);

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
        SnapshotBuilder::new(self.clone())
    }

    /// The policies that a flow of the endpoint must be allowed by, by resource name; none when it has none. More than
    /// one only when resources claimed the key at the same time.
    pub fn endpoint(&self, key: &EndpointKey) -> impl Iterator<Item = &Arc<EndpointPolicy>> {
        let claimants = self.claimants(key);
        let latest = match claimants {
            [] | [_] => 0,
            several => {
                several.iter().filter_map(|claimant| self.since(&claimant.policy, key)).max().unwrap_or_default()
            }
        };
        // A claimant of another key with the same hash has no claim to this one.
        let enforced =
            move |claimant: &&Claimant| self.since(&claimant.policy, key).is_some_and(|since| since >= latest);
        claimants.iter().filter(enforced).map(|claimant| &claimant.policy)
    }

    /// Generation in which the claim of `policy` to `key` began, as far as that is remembered; `None` when there is none.
    fn since(&self, policy: &EndpointPolicy, key: &EndpointKey) -> Option<u64> {
        policy.since(key).map(|since| since.max(self.order_since))
    }

    /// Whether anything would change if the order of claims was forgotten; see [`SnapshotBuilder::forget_order`].
    pub fn remembers_order(&self) -> bool {
        !self.set_aside.is_empty() || self.conflicts().any(|conflict| !conflict.overridden.is_empty())
    }

    /// Whoever claims a key with this one's hash, by resource name.
    fn claimants(&self, key: &EndpointKey) -> &[Claimant] {
        let hash = hash_of(key);
        let shard = self.claimants.shard(hash);
        let first = shard.partition_point(|claimant| claimant.hash < hash);
        let count = shard[first..].iter().take_while(|claimant| claimant.hash == hash).count();
        &shard[first..first + count]
    }

    /// The policy of this resource name.
    fn resource(&self, name: &str) -> Option<&Arc<EndpointPolicy>> {
        let shard = self.resources.shard(hash_of(name));
        let at = shard.binary_search_by(|policy| (*policy.resource).cmp(name)).ok()?;
        Some(&shard[at])
    }

    /// All policies, by resource name.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = &EndpointPolicy> {
        let mut all: Vec<&EndpointPolicy> = self.resources.iter().map(|policy| &**policy).collect();
        all.sort_unstable_by(|a, b| a.resource.cmp(&b.resource));
        all.into_iter()
    }

    /// Policies that `before` has and this one has not, and those that this one has and `before` has not; one that was replaced
    /// is among both. Costs what differs, where this snapshot was made from the other.
    pub fn changes_since<'a>(&'a self, before: &'a Self) -> (Vec<&'a EndpointPolicy>, Vec<&'a EndpointPolicy>) {
        let only_in = |one: &'a Self, other: &'a Self| {
            let shards =
                one.resources.each().zip(other.resources.each()).filter(|(one, other)| !Arc::ptr_eq(one, other));
            let elements = shards.flat_map(|(one, _)| one.iter());
            let differs = move |policy: &&'a Arc<EndpointPolicy>| {
                !other.resource(&policy.resource).is_some_and(|same| Arc::ptr_eq(same, policy))
            };
            elements.filter(differs).map(|policy| &**policy).collect()
        };
        (only_in(before, self), only_in(self, before))
    }

    /// What these rules were compiled to, if anybody has them.
    fn known_side(&self, hash: u64, source: &[PortPolicy], limits: &Limits) -> Option<Arc<Side>> {
        let known = self.sides.shard(hash).iter().filter(|(other, _)| *other == hash);
        known.filter_map(|(_, side)| side.upgrade()).find(|side| side.is(source, limits))
    }

    /// The policy of this resource name.
    pub fn policy(&self, resource: &str) -> Option<&EndpointPolicy> {
        self.resource(resource).map(|policy| &**policy)
    }

    /// How many policies there are.
    pub const fn endpoint_count(&self) -> usize {
        self.endpoint_count
    }

    /// Everything that is not enforced as written, by resource name.
    pub fn quarantined(&self) -> impl Iterator<Item = Quarantine> {
        self.endpoints().flat_map(EndpointPolicy::quarantined)
    }

    /// Names of the secrets that rules compare with or inject, in order.
    pub fn secret_names(&self) -> BTreeSet<&str> {
        self.secrets.keys().map(|name| &**name).collect()
    }

    /// How many elements are not enforced as written.
    pub const fn quarantined_count(&self) -> usize {
        self.quarantined_count
    }

    /// How many policies deny in a direction until they are compiled.
    pub const fn unfinished_count(&self) -> usize {
        self.unfinished_count
    }

    /// How many policies deny in a direction for want of room.
    pub const fn without_room_count(&self) -> usize {
        self.without_room_count
    }

    /// Keys that more than one resource claims, in order.
    pub fn conflicts(&self) -> impl ExactSizeIterator<Item = &Conflict> {
        self.conflicts.values()
    }
}

impl Side {
    fn compile(hash: u64, source: Vec<PortPolicy>, limits: &Limits, effort: &mut Effort) -> Self {
        let compiled = CompiledDirection::compile(&source, limits, effort);
        let mut side = Self::of(hash, source, limits, compiled);
        let room = effort.room();
        if side.bytes > room && side.compiled.can_be_smaller() {
            side = side.without_room(room);
        }
        *effort = effort.within(room.saturating_sub(side.bytes));
        side
    }

    fn of(hash: u64, source: Vec<PortPolicy>, limits: &Limits, compiled: CompiledDirection) -> Self {
        let (id, rules) = (NEXT_FORM.fetch_add(1, Ordering::Relaxed), compile::rules(&source));
        let mut side = Self { id, source, hash, rules, bytes: 0, limits: *limits, compiled };
        if side.compiled.is_complete() {
            side.bytes = Scale::weigh(&side) + block(size_of::<Self>() + 16);
        }
        side
    }

    /// What stands for it where there is only so much room.
    fn without_room(&self, room: usize) -> Self {
        let denying = CompiledDirection::without_room(&self.source, self.bytes, room);
        Self::of(self.hash, self.source.clone(), &self.limits, denying)
    }

    /// Whether it is these rules, compiled within these limits to the end.
    fn is(&self, source: &[PortPolicy], limits: &Limits) -> bool {
        self.compiled.is_complete() && self.has(source, limits)
    }

    /// Whether it is these rules within these limits, or what stands for them.
    fn has(&self, source: &[PortPolicy], limits: &Limits) -> bool {
        self.source == source && self.limits == *limits
    }

    const fn form(&self) -> Form {
        Form { id: self.id, bytes: self.bytes }
    }

    /// How many of its rules are enforced.
    fn rules_in_force(&self) -> usize {
        if self.compiled.is_complete() { self.rules } else { 0 }
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

    /// What its directions are compiled to.
    pub fn forms(&self) -> [Form; 2] {
        [&self.ingress, &self.egress].map(|side| side.form())
    }

    /// How many rules it has in both directions: those of ports, and the HTTP rules in them.
    pub fn rule_count(&self) -> usize {
        self.ingress.rules + self.egress.rules
    }

    /// How many of them are in force: none of a direction that denies for want of time or room.
    pub fn rules_in_force(&self) -> usize {
        self.ingress.rules_in_force() + self.egress.rules_in_force()
    }

    /// Elements that are not enforced as written.
    pub fn quarantined(&self) -> impl Iterator<Item = Quarantine> {
        [Direction::Ingress, Direction::Egress].into_iter().flat_map(move |direction| {
            let findings = &self.side(direction).compiled.findings;
            findings.iter().map(move |finding| Quarantine::new(self, direction, finding))
        })
    }

    /// Whether a direction denies until it is compiled, for want of effort.
    pub fn is_unfinished(&self) -> bool {
        self.ingress.compiled.unfinished || self.egress.compiled.unfinished
    }

    /// Bytes that the directions would take of memory that deny for want of room; `None` when none does.
    pub fn without_room(&self) -> Option<usize> {
        self.lacking().into_iter().flatten().reduce(usize::saturating_add)
    }

    /// Bytes that ingress and egress would take of memory, each if it denies for want of room.
    pub fn lacking(&self) -> [Option<usize>; 2] {
        [&self.ingress, &self.egress].map(|side| side.compiled.without_room)
    }

    /// The limits within which it was compiled.
    pub fn limits(&self) -> Limits {
        self.ingress.limits
    }

    /// What it was compiled from.
    pub fn source(&self) -> NetworkPolicy {
        NetworkPolicy {
            endpoint_id: self.endpoint_id,
            endpoints: self.keys().cloned().collect(),
            ingress: self.ingress.source.clone(),
            egress: self.egress.source.clone(),
        }
    }

    /// Names of the secrets that its rules need; twice when both directions do.
    fn secrets(&self) -> impl Iterator<Item = &Box<str>> {
        self.ingress.compiled.secrets.iter().chain(&self.egress.compiled.secrets)
    }

    fn quarantined_count(&self) -> usize {
        self.ingress.compiled.findings.len() + self.egress.compiled.findings.len()
    }

    /// Generation in which the claim to `key` began; `None` when there is none.
    fn since(&self, key: &EndpointKey) -> Option<u64> {
        self.claims.iter().find(|claim| claim.key == *key).map(|claim| claim.since)
    }

    pub(crate) fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

#[cfg(test)]
mod tests;
