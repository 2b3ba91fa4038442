//! A policy on its way into a snapshot: what of it there is already is known before anything is compiled, and what it came to
//! before it is in force. So whoever keeps count of memory can decide in between.

use std::sync::Arc;

use super::shards::hash_of;
use super::{Form, Side, Snapshot};
use crate::{Direction, Effort, EndpointKey, Limits, NetworkPolicy, PortPolicy};

/// A policy that becomes a part of the next snapshot with [`SnapshotBuilder::insert`](super::SnapshotBuilder::insert).
#[derive(Debug)]
pub struct Draft {
    pub(super) endpoint_id: u64,
    pub(super) endpoints: Vec<EndpointKey>,
    limits: Limits,
    /// Ingress, egress.
    pub(super) parts: [Part; 2],
    /// The same rules within the same limits, for which there was no room before.
    denying: [Option<Arc<Side>>; 2],
}

/// One direction.
#[derive(Debug)]
pub(super) enum Part {
    /// There is a form already.
    Known(Arc<Side>),
    /// These rules, which have that hash, are to be compiled.
    Source(u64, Vec<PortPolicy>),
    /// Compiled for this policy.
    New(Arc<Side>),
}

impl Part {
    /// What there is of it.
    pub(super) const fn side(&self) -> Option<&Arc<Side>> {
        match self {
            Self::Known(side) | Self::New(side) => Some(side),
            Self::Source(..) => None,
        }
    }
}

/// Where the direction stands in an array of both.
const fn place(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    }
}

impl Snapshot {
    /// The policy with those of its forms that this snapshot has. What stands in it for want of time or room is compiled.
    pub fn draft(&self, policy: NetworkPolicy, limits: &Limits) -> Draft {
        Draft::new(policy, limits, |_, hash, source| self.known_side(hash, source, limits))
    }
}

impl Draft {
    pub(super) fn new(
        policy: NetworkPolicy,
        limits: &Limits,
        known: impl Fn(usize, u64, &[PortPolicy]) -> Option<Arc<Side>>,
    ) -> Self {
        let part = |direction: usize, source: Vec<PortPolicy>| {
            let hash = hash_of(&source);
            known(direction, hash, &source).map_or(Part::Source(hash, source), Part::Known)
        };
        Self {
            endpoint_id: policy.endpoint_id,
            endpoints: policy.endpoints,
            limits: *limits,
            parts: [part(0, policy.ingress), part(1, policy.egress)],
            denying: [None, None],
        }
    }

    /// The same policy as it is in force: within the limits of then.
    pub(super) fn as_in_force(&self, policy: &super::EndpointPolicy) -> Option<Self> {
        let kept = Self {
            endpoint_id: self.endpoint_id,
            endpoints: self.endpoints.clone(),
            limits: policy.limits(),
            parts: [&policy.ingress, &policy.egress].map(|side| Part::Known(Arc::clone(side))),
            denying: [None, None],
        };
        Some(kept).filter(|kept| kept.is_complete() && self.is(policy))
    }

    /// Remembers what stands for the rules of this policy now, so that nothing changes if there is still no room.
    pub(super) fn after(&mut self, before: [&Arc<Side>; 2]) {
        for ((part, denying), before) in self.parts.iter().zip(&mut self.denying).zip(before) {
            let source = match part {
                Part::Known(side) | Part::New(side) => &side.source,
                Part::Source(_, source) => source,
            };
            if before.compiled.without_room.is_some() && before.has(source, &self.limits) {
                *denying = Some(Arc::clone(before));
            }
        }
    }

    /// Never 0.
    pub const fn endpoint_id(&self) -> u64 {
        self.endpoint_id
    }

    /// Addresses and names that the policy claims.
    pub fn endpoints(&self) -> impl Iterator<Item = &EndpointKey> {
        self.endpoints.iter()
    }

    /// The policy that it is made of.
    pub fn source(&self) -> NetworkPolicy {
        let [ingress, egress] = self.parts.each_ref().map(|part| match part {
            Part::Known(side) | Part::New(side) => side.source.clone(),
            Part::Source(_, source) => source.clone(),
        });
        NetworkPolicy { endpoint_id: self.endpoint_id, endpoints: self.endpoints.clone(), ingress, egress }
    }

    /// The forms that there are: before it is compiled, those that are known already; then both.
    pub fn forms(&self) -> [Option<Form>; 2] {
        self.parts.each_ref().map(|part| part.side().map(|side| side.form()))
    }

    /// Compiles what is not known, within `effort`, of which it leaves what it did not need. A direction for which it does not
    /// suffice denies. Directions with equal rules are compiled once.
    pub fn compile(&mut self, effort: &mut Effort) {
        let limits = self.limits;
        let mut compiled: Option<Arc<Side>> = None;
        for part in &mut self.parts {
            if let Part::Source(hash, source) = part {
                let (hash, source) = (*hash, std::mem::take(source));
                let same = compiled.as_ref().filter(|same| same.hash == hash && same.has(&source, &limits));
                let side = match same {
                    Some(same) => Arc::clone(same),
                    None => Arc::new(Side::compile(hash, source, &limits, effort)),
                };
                compiled = Some(Arc::clone(&side));
                *part = Part::New(side);
            }
        }
    }

    /// The direction denies, since there is only `room` for it: so many bytes.
    pub fn refuse(&mut self, direction: Direction, room: usize) {
        let place = place(direction);
        let Some(side) = self.parts[place].side() else { return };
        if side.compiled.is_complete() {
            let denying = self.denying[place].take();
            let side = denying.unwrap_or_else(|| Arc::new(side.without_room(room)));
            self.parts[place] = Part::New(side);
        }
    }

    /// Whether a direction denies until it is compiled, for want of time.
    pub fn is_unfinished(&self) -> bool {
        self.parts.iter().any(|part| part.side().is_none_or(|side| side.compiled.unfinished))
    }

    /// Whether both directions are as written.
    pub fn is_complete(&self) -> bool {
        self.parts.iter().all(|part| part.side().is_some_and(|side| side.compiled.is_complete()))
    }

    /// Within which it is compiled.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether it is this policy, within whichever limits that was compiled.
    pub fn is(&self, policy: &super::EndpointPolicy) -> bool {
        let source = |part: &Part, side: &Side| part.side().is_some_and(|own| own.source == side.source);
        let [ingress, egress] = &self.parts;
        self.endpoint_id == policy.endpoint_id
            && self.endpoints.iter().eq(policy.keys())
            && source(ingress, &policy.ingress)
            && source(egress, &policy.egress)
    }
}
