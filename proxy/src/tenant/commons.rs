//! What limits count for each tenant, all workers together: cells by place, beside the table, so that they outlive it and what is
//! set counts for what is open. Adding is atomic; nobody waits.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::bandwidth::Reserved;
use super::destinations::Destinations;
use super::gate::Held;
use super::gcra::{Bucket, Contract};
use super::id::{PLACES, Placed as _};
use super::panics::Panics;
use super::remotes::Remotes;
use super::share::Crowd;
use super::{Rate, Room, TenantId, ladder};
use crate::config::Limits;

/// What there is to give away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Open connections of clients.
    pub connections: u32,
    /// Requests under way.
    pub in_flight: u32,
    /// Worker threads, of whose time tenants have parts.
    pub workers: u32,
    /// Bytes that the process may have; `None` without an end.
    pub memory: Option<u64>,
    /// Workers' time is given away by tenant, and so measured.
    pub fairness: bool,
    /// Workers have lanes.
    pub lanes: bool,
    /// Count what is over a share, and let it pass.
    pub shadow: bool,
}

impl Default for Pools {
    /// No end to it, and one worker.
    fn default() -> Self {
        let (connections, in_flight) = (u32::MAX, u32::MAX);
        Self { connections, in_flight, workers: 1, memory: None, fairness: true, lanes: true, shadow: false }
    }
}

impl Pools {
    /// What this configuration has, with fair shares and lanes, where the memory of the process ends there.
    pub fn of(max_connections: usize, workers: usize, limits: &Limits, memory: Option<u64>) -> Self {
        let connections = u32::try_from(max_connections).unwrap_or(u32::MAX);
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        Self { connections, in_flight: limits.in_flight, workers, memory, shadow: limits.shadow, ..Self::default() }
    }

    /// Thousandths of a processor that may be guaranteed. A tenth of the workers' time is for accepting, chores and those who are
    /// guaranteed nothing.
    pub(super) fn cpu_millis(self) -> u64 {
        u64::from(self.workers) * 900
    }

    /// Bytes that may be guaranteed; `None` without an end.
    pub(crate) fn memory_to_guarantee(self) -> Option<u64> {
        self.memory.map(ladder::most_guaranteed)
    }
}

/// What is given away by places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Connections = 0,
    InFlight = 1,
}

/// A place that somebody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Within,
    /// One of the few beyond its tenant's share, of a remote identity that had none.
    Beyond,
}

/// What one tenant has of everything.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Standing {
    spaces: [AtomicU32; 2],
    /// Those of them that are beyond its share.
    beyond: [AtomicU32; 2],
    /// WebSockets: those of a tenant have a ceiling, those of all are connections.
    pub(super) long_streams: AtomicU32,
    /// 0 is that of any endpoint.
    weight: AtomicU32,
    pub(super) requests: Bucket,
    pub(super) new_connections: Bucket,
    pub(super) cpu: Bucket,
    pub(super) bytes: Reserved,
    /// Those who wait for it now: each direction of an exchange.
    pub(super) waiting: AtomicU32,
    pub(super) log_bytes: Reserved,
    pub(super) panics: Panics,
}

impl Standing {
    /// Places taken.
    pub(super) fn of(&self, space: Space) -> &AtomicU32 {
        &self.spaces[space as usize]
    }

    /// Those of them that are [beyond](Taken::Beyond) its share.
    pub(super) fn beyond(&self, space: Space) -> &AtomicU32 {
        &self.beyond[space as usize]
    }

    /// A place goes.
    fn leave(&self, space: Space, taken: Taken) {
        self.of(space).fetch_sub(1, Ordering::Relaxed);
        if taken == Taken::Beyond {
            self.beyond(space).fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// One comes that somebody else had.
    fn take_over(&self, space: Space, taken: Taken) {
        self.of(space).fetch_add(1, Ordering::Relaxed);
        if taken == Taken::Beyond {
            self.beyond(space).fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A crowd as it was when it was last counted, which is done for few of those who ask: each would pay for looking at everybody.
#[derive(Debug, Default)]
struct KnownCrowd {
    asked: AtomicU32,
    /// Tenants in the upper half, weight in the lower.
    crowd: AtomicU64,
}

impl KnownCrowd {
    /// For how many a crowd is good.
    const GOOD_FOR: u32 = 32;

    fn look(&self, count: impl FnOnce() -> Crowd) -> Crowd {
        let known = self.crowd.load(Ordering::Relaxed);
        // Who asks while the first still counts does so, too: of nobody, a share is anything.
        if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(Self::GOOD_FOR) || known == 0 {
            let crowd = count();
            self.crowd.store(u64::from(crowd.tenants) << 32 | crowd.weight, Ordering::Relaxed);
            return crowd;
        }
        let (tenants, weight) = (known >> 32, known & u64::from(u32::MAX));
        Crowd { tenants: u32::try_from(tenants).unwrap_or(u32::MAX), weight }
    }

    /// Whoever asks counts, until somebody has.
    fn forget(&self) {
        self.crowd.store(0, Ordering::Relaxed);
        self.asked.store(0, Ordering::Relaxed);
    }
}

/// Everything that limits count in the process.
#[derive(Debug)]
pub(crate) struct Commons {
    standings: Box<[Standing]>,
    used: [AtomicU32; 2],
    default_weight: AtomicU32,
    /// Somebody's weight is another than everybody's.
    has_weights: AtomicBool,
    crowds: [KnownCrowd; 2],
    pub(super) destinations: Arc<Destinations>,
    pub(super) remotes: Remotes,
    pools: OnceLock<Pools>,
    /// What of them may change: bytes that the process may have, [`u64::MAX`] without an end.
    memory_end: AtomicU64,
    room: Room,
    began: Instant,
}

impl Default for Commons {
    fn default() -> Self {
        Self {
            standings: (0..PLACES).map(|_| Standing::default()).collect(),
            used: Default::default(),
            default_weight: AtomicU32::new(1),
            has_weights: AtomicBool::new(false),
            crowds: Default::default(),
            destinations: Arc::default(),
            remotes: Remotes::default(),
            pools: OnceLock::new(),
            memory_end: AtomicU64::new(u64::MAX),
            room: Room::default(),
            began: Instant::now(),
        }
    }
}

impl Commons {
    /// Says what there is; the first call counts. Before, there is no end to it.
    pub(super) fn limit(&self, pools: Pools) {
        if self.pools.set(pools).is_ok() {
            self.limit_memory(pools.memory);
        }
    }

    /// The process may have so much memory from now on.
    pub(super) fn limit_memory(&self, bytes: Option<u64>) {
        self.memory_end.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What counts their memory.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    pub(super) fn pools(&self) -> Pools {
        let memory = Some(self.memory_end.load(Ordering::Relaxed)).filter(|bytes| *bytes != u64::MAX);
        Pools { memory, ..self.pools.get().copied().unwrap_or_default() }
    }

    /// Places that there are.
    pub(super) fn total(&self, space: Space) -> u32 {
        match space {
            Space::Connections => self.pools().connections,
            Space::InFlight => self.pools().in_flight,
        }
    }

    /// Places that are taken, by everybody.
    pub(super) fn used(&self, space: Space) -> &AtomicU32 {
        &self.used[space as usize]
    }

    /// What `tenant` has. An id of no table stands where connections of nobody do.
    pub(super) fn standing(&self, tenant: TenantId) -> &Standing {
        self.standings.get(tenant.place()).unwrap_or_else(|| &self.standings[TenantId::UNKNOWN.place()])
    }

    /// Gives a place back.
    pub(super) fn leave(&self, space: Space, taken: Taken, tenant: TenantId) {
        // In this order, so that what is taken is never more than what all together have taken.
        self.standing(tenant).leave(space, taken);
        self.used(space).fetch_sub(1, Ordering::Relaxed);
    }

    /// The same for everything that a request held.
    pub(super) fn give_back(&self, tenant: TenantId, held: Held) {
        if held.long_stream {
            self.standing(tenant).long_streams.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(taken) = held.in_flight {
            self.leave(Space::InFlight, taken, tenant);
        }
    }

    /// What a request of `from` holds goes on as `to`'s.
    pub(super) fn hand_over_request(&self, held: Held, from: TenantId, to: TenantId) {
        if held.long_stream {
            self.standing(from).long_streams.fetch_sub(1, Ordering::Relaxed);
            self.standing(to).long_streams.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(taken) = held.in_flight {
            self.hand_over(Space::InFlight, taken, from, to);
        }
    }

    /// A place that is `from`'s goes on as `to`'s.
    pub(super) fn hand_over(&self, space: Space, taken: Taken, from: TenantId, to: TenantId) {
        self.standing(from).leave(space, taken);
        self.standing(to).take_over(space, taken);
    }

    /// Who has places, beside the `wanting` one, which counts in any case. Where all weigh the same it is enough to know that one.
    pub(super) fn crowd(&self, space: Space, wanting: TenantId) -> Crowd {
        let standing = self.standing(wanting);
        let own = u64::from(self.weight_of(standing));
        if !self.has_weights.load(Ordering::Relaxed) {
            return Crowd { tenants: 1, weight: own };
        }
        let mut crowd = self.crowds[space as usize].look(|| self.count(space));
        if standing.of(space).load(Ordering::Relaxed) == 0 {
            crowd.tenants += 1;
            crowd.weight += own;
        }
        crowd
    }

    /// Looks at all tenants.
    fn count(&self, space: Space) -> Crowd {
        let there = self.standings.iter().filter(|standing| standing.of(space).load(Ordering::Relaxed) > 0);
        there.fold(Crowd { tenants: 0, weight: 0 }, |crowd, standing| Crowd {
            tenants: crowd.tenants + 1,
            weight: crowd.weight + u64::from(self.weight_of(standing)),
        })
    }

    /// The weight of a tenant.
    pub(super) fn weight(&self, tenant: TenantId) -> u32 {
        self.weight_of(self.standing(tenant))
    }

    fn weight_of(&self, standing: &Standing) -> u32 {
        match standing.weight.load(Ordering::Relaxed) {
            0 => self.default_weight.load(Ordering::Relaxed),
            weight => weight,
        }
    }

    /// Sets weights: of some tenants, and of all others.
    pub(super) fn set_weights(&self, groups: impl Iterator<Item = (TenantId, u32)>, default: u32) {
        self.default_weight.store(default, Ordering::Relaxed);
        let mut weights = vec![0; self.standings.len()];
        groups.for_each(|(tenant, weight)| weights[tenant.place()] = weight);
        let has_weights = weights.iter().any(|weight| ![0, default].contains(weight));
        self.has_weights.store(has_weights, Ordering::Relaxed);
        for (standing, weight) in self.standings.iter().zip(weights) {
            standing.weight.store(weight, Ordering::Relaxed);
        }
        // Last, so that nobody keeps a crowd of weights that are half the old ones.
        self.crowds.iter().for_each(KnownCrowd::forget);
    }

    /// Notes processor time of a tenant, in nanoseconds, and returns for how long it has no more.
    pub(super) fn pay_for_cpu(&self, tenant: TenantId, rate: Rate, nanoseconds: u64) -> Duration {
        self.standing(tenant).cpu.note(Contract::new(rate), self.since(Instant::now()), nanoseconds)
    }

    /// Lets contracts of this tenant begin anew.
    pub(super) fn renew(&self, tenant: TenantId) {
        let Standing { requests, new_connections, cpu, bytes, log_bytes, .. } = self.standing(tenant);
        [requests, new_connections, cpu].into_iter().for_each(Bucket::refill);
        [bytes, log_bytes].into_iter().for_each(Reserved::refill);
    }

    /// A tenant takes a place that another had.
    pub(super) fn welcome(&self, tenant: TenantId) {
        self.renew(tenant);
        self.standing(tenant).panics.forget();
    }

    /// For how long the holder of a place will be kept apart because of panics.
    pub(super) fn kept_apart_for(&self, place: usize, now: Instant) -> Duration {
        self.standings.get(place).map_or(Duration::ZERO, |standing| standing.panics.left(self.since(now)))
    }

    /// Directions of exchanges of the holder of a place that wait for its rate of bytes.
    pub(super) fn waiting(&self, place: usize) -> u64 {
        self.standings.get(place).map_or(0, |standing| standing.waiting.load(Ordering::Relaxed).into())
    }

    /// Tenants that are kept apart because of panics.
    pub(super) fn kept_apart(&self) -> impl Iterator<Item = TenantId> {
        let since = self.since(Instant::now());
        self.standings.iter().filter_map(move |standing| standing.panics.kept_apart(since))
    }

    /// Time since the beginning, for contracts.
    pub(super) fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_that_is_being_counted_is_not_taken_for_nobody() {
        let known = KnownCrowd::default();
        let crowd = |tenants| Crowd { tenants, weight: 10 * u64::from(tenants) };
        let seen = |crowd: Crowd| (crowd.tenants, crowd.weight);
        let of_another = std::cell::Cell::new((0, 0));
        let first = known.look(|| {
            of_another.set(seen(known.look(|| crowd(3))));
            crowd(4)
        });
        assert_eq!((of_another.get(), seen(first)), ((3, 30), (4, 40)));
        assert_eq!(seen(known.look(|| crowd(5))), (4, 40), "counted just now");
        known.forget();
        assert_eq!(seen(known.look(|| crowd(5))), (5, 50));
    }
}
