//! How much memory each tenant holds, all workers together, and how much it may.
//!
//! A worker takes what its tenants hold in units of [`UNIT`], so that it writes here rarely and reads here cheaply; what is
//! shown is exact. Each tenant may have what its ceiling says and, where memory has an end, what its guarantee says or as much
//! as is left for all, by weight, whichever is more: alone it gets half, two get a third each, and there is always room for who comes.
//! Whoever has no more than an equal part is not refused because others have more than theirs, while the process has memory for it.

use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::id::{FIRST, PLACES, Placed as _};
use super::ladder::{Holding, Measures};
use super::{Payer, Settings, TenantId};

/// Bytes that a worker takes or gives back at once.
pub(super) const UNIT: u64 = 64 * 1024;
/// What every tenant may have, however little is left.
const LITTLE: u64 = 1024 * 1024;
/// What is left, once.
const ONCE: u64 = 1024;

/// What is done about a tenant's memory, each with all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryStep {
    /// Nothing.
    #[default]
    Free,
    /// Nothing more is read for peers that do not take what there is.
    HoldBack,
    /// New connections get little, and answers close theirs.
    Shrink,
    /// New connections and requests are refused.
    Refuse,
}

impl MemoryStep {
    /// Where somebody stands who holds so much and may hold so much.
    pub(super) const fn of(used: u64, most: u64) -> Self {
        if used >= most {
            Self::Refuse
        } else if used >= most / 8 * 7 {
            Self::Shrink
        } else if used >= most / 4 * 3 {
            Self::HoldBack
        } else {
            Self::Free
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Free,
            1 => Self::HoldBack,
            2 => Self::Shrink,
            _ => Self::Refuse,
        }
    }
}

/// Why a tenant gets nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutOfMemory {
    /// Its ceiling.
    Ceiling,
    /// What it may have of what is left for all, which its `shadow` has no say in.
    Left,
}

/// Bytes that a tenant has, and that it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) used: u64,
    pub(crate) most: u64,
}

/// The memory of the process, as tenants share it.
#[derive(Debug)]
pub struct Room {
    /// Bytes for all tenants together.
    limit: AtomicU64,
    /// Bytes taken.
    used: AtomicU64,
    /// What is left is only counted with.
    shadow: AtomicBool,
    /// Bytes taken by all up to which everybody may have an equal part.
    parts_until: AtomicU64,
    /// A task of a worker waits for memory.
    waiting: AtomicBool,
    places: Box<[Place]>,
}

#[derive(Debug)]
struct Place {
    used: AtomicU64,
    /// Bytes of connections that are told to go.
    leaving: AtomicU64,
    ceiling: AtomicU64,
    /// What it is promised,
    guarantee: AtomicU64,
    /// and what of that is in force: what the process has for guarantees.
    kept: AtomicU64,
    /// What everybody is promised, while the process has memory for it.
    floor: AtomicU64,
    /// What it may have in any case while the process has memory for it: an equal part, by weight.
    part: AtomicU64,
    /// How many times what is left it may have, by weight: in units of 1 / [`ONCE`].
    times: AtomicU64,
    /// The ceiling only counts.
    shadow: AtomicBool,
    /// A [`MemoryStep`] that the state of the process asks for.
    pressure: AtomicU8,
    /// Bytes that its largest holders have to give back.
    excess: AtomicU64,
    /// Milliseconds times bytes that were held.
    byte_ms: AtomicU64,
}

impl Default for Room {
    fn default() -> Self {
        let place = || Place {
            used: AtomicU64::new(0),
            leaving: AtomicU64::new(0),
            ceiling: AtomicU64::new(u64::MAX),
            guarantee: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            part: AtomicU64::new(0),
            times: AtomicU64::new(ONCE),
            shadow: AtomicBool::new(false),
            pressure: AtomicU8::new(0),
            excess: AtomicU64::new(0),
            byte_ms: AtomicU64::new(0),
        };
        Self {
            limit: AtomicU64::new(u64::MAX),
            used: AtomicU64::new(0),
            shadow: AtomicBool::new(false),
            parts_until: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            places: (0..PLACES).map(|_| place()).collect(),
        }
    }
}

impl Room {
    /// What is to be done about the memory of a tenant.
    pub(crate) fn step(&self, tenant: TenantId) -> MemoryStep {
        let Some(place) = self.places.get(tenant.place()) else { return MemoryStep::Free };
        let used = place.used.load(Ordering::Relaxed);
        let ceiling = match place.shadow.load(Ordering::Relaxed) {
            true => MemoryStep::Free,
            false => place.step(used, place.ceiling()),
        };
        let left = match self.shadow.load(Ordering::Relaxed) {
            true => MemoryStep::Free,
            false => place.step(used, self.left(place)).max(place.pressure()),
        };
        ceiling.max(left)
    }

    /// Why a tenant gets no further connection or request, if it gets none; what is in shadow included.
    pub(crate) fn refusal(&self, tenant: TenantId) -> Option<OutOfMemory> {
        let place = self.places.get(tenant.place())?;
        let used = place.used.load(Ordering::Relaxed);
        let left = place.step(used, self.left(place)).max(place.pressure()) == MemoryStep::Refuse;
        let ceiling = || place.step(used, place.ceiling()) == MemoryStep::Refuse;
        left.then_some(OutOfMemory::Left).or_else(|| ceiling().then_some(OutOfMemory::Ceiling))
    }

    /// Whether what is left is only counted with.
    pub(crate) fn is_in_shadow(&self) -> bool {
        self.shadow.load(Ordering::Relaxed)
    }

    /// How much a tenant has, without what is on its way out, and how much it may have; `None` where nothing says so but in shadow.
    pub(crate) fn part(&self, tenant: TenantId) -> Option<Part> {
        self.part_of(self.places.get(tenant.place())?)
    }

    fn part_of(&self, place: &Place) -> Option<Part> {
        let in_force = |most: u64, shadow: &AtomicBool| if shadow.load(Ordering::Relaxed) { u64::MAX } else { most };
        let most = in_force(place.ceiling(), &place.shadow).min(in_force(self.left(place), &self.shadow));
        let (used, leaving) = (place.used.load(Ordering::Relaxed), place.leaving.load(Ordering::Relaxed));
        (most != u64::MAX).then(|| Part { used: used.saturating_sub(leaving), most })
    }

    /// The same for the holders of all places of which a worker has taken `own` bytes. What that worker has to do about it is its
    /// share.
    pub(crate) fn parts(&self, own: impl Fn(usize) -> u64) -> impl Iterator<Item = (usize, Part, u64)> {
        self.places.iter().enumerate().filter_map(move |(index, place)| {
            let own = own(index);
            Some((index, if own > 0 { self.part_of(place) } else { None }?, own))
        })
    }

    /// What the holder of a place may have of what is left, or what its guarantee says if that is more.
    fn left(&self, place: &Place) -> u64 {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == u64::MAX {
            return u64::MAX;
        }
        let used = self.used.load(Ordering::Relaxed);
        let left = limit.saturating_sub(used).saturating_mul(place.times.load(Ordering::Relaxed)) / ONCE;
        let part = match used < self.parts_until.load(Ordering::Relaxed) {
            // Others have the other half, however many are promised as much.
            true => place.part.load(Ordering::Relaxed).max(place.floor.load(Ordering::Relaxed).min(limit / 2)),
            false => 0,
        };
        left.max(part).max(place.kept.load(Ordering::Relaxed)).max(LITTLE)
    }

    /// Notes that so many bytes of a tenant are on their way out, and no longer when they are gone, or stay.
    pub(super) fn leave(&self, tenant: TenantId, bytes: u64) {
        if let Some(place) = self.places.get(tenant.place()) {
            place.leaving.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// See [`Room::leave`].
    pub(super) fn left_or_stays(&self, tenant: TenantId, bytes: u64) {
        if let Some(place) = self.places.get(tenant.place()) {
            place.leaving.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Notes that a task waits until the next look.
    pub(crate) fn wait(&self) {
        self.waiting.store(true, Ordering::Relaxed);
    }

    /// Whether another look is due soon: somebody waits, gets nothing more, or memory goes fast.
    pub(super) fn is_pressed(&self) -> bool {
        let waits = self.waiting.swap(false, Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        let many = limit != u64::MAX && self.used.load(Ordering::Relaxed) > limit / 4;
        let held_back = |place: &Place| {
            let used = place.used.load(Ordering::Relaxed);
            let step = place.step(used, place.ceiling().min(self.left(place))).max(place.pressure());
            place.excess.load(Ordering::Relaxed) > 0 || step > MemoryStep::Free
        };
        waits || many || self.places.iter().any(held_back)
    }

    /// Takes so many bytes for the tenant in this place.
    pub(super) fn take(&self, place: usize, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.places[place].used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives them back.
    pub(super) fn give_back(&self, place: usize, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.places[place].used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that the largest holders of each tenant have to give back: the share of a worker that has taken `own` of them.
    pub(crate) fn excess(&self, own: impl Fn(usize) -> u64) -> Vec<(usize, u64)> {
        let places = self.places.iter().enumerate();
        let excess = places.filter_map(|(index, place)| {
            let excess = place.excess.load(Ordering::Relaxed);
            let used = place.used.load(Ordering::Relaxed);
            (excess > 0 && used > 0).then(|| {
                let share = u128::from(excess) * u128::from(own(index)) / u128::from(used);
                (index, u64::try_from(share).unwrap_or(excess))
            })
        });
        excess.filter(|(_, share)| *share > 0).collect()
    }

    /// Whether the largest holders of a tenant are to be reset.
    pub(crate) fn has_to_give_back(&self, tenant: TenantId) -> bool {
        self.places.get(tenant.place()).is_some_and(|place| place.excess.load(Ordering::Relaxed) > 0)
    }

    /// Notes what the group in a place may have.
    pub(super) fn agree(&self, tenant: TenantId, settings: &Settings) {
        let guarantee = settings.guarantee.memory_bytes.map_or(0, NonZeroU64::get);
        self.agree_on(tenant, settings, guarantee, 0);
    }

    /// The same for a tenant that has what any has. Nobody knows how many there are, so nothing is kept for them.
    pub(super) fn agree_as_any(&self, tenant: TenantId, settings: &Settings) {
        let floor = settings.guarantee.memory_bytes.map_or(0, NonZeroU64::get);
        self.agree_on(tenant, settings, 0, floor);
    }

    fn agree_on(&self, tenant: TenantId, settings: &Settings, guarantee: u64, floor: u64) {
        let Some(place) = self.places.get(tenant.place()) else { return };
        let ceiling = settings.ceilings.memory_bytes.map_or(u64::MAX, NonZeroU64::get);
        place.ceiling.store(ceiling, Ordering::Relaxed);
        if place.guarantee.swap(guarantee, Ordering::Relaxed) != guarantee {
            // Until the next look.
            place.kept.store(guarantee, Ordering::Relaxed);
        }
        place.floor.store(floor, Ordering::Relaxed);
        place.shadow.store(settings.shadow, Ordering::Relaxed);
    }

    /// The same for all that there always are: those whom every endpoint without a place shares have what any endpoint has.
    pub(super) fn agree_for_all(&self, settings: &Settings) {
        (0..FIRST).for_each(|place| self.agree_as_any(super::id::first_holder(place), settings));
    }

    /// What everybody holds.
    pub(super) fn holdings(&self) -> Vec<Holding> {
        let holding = |place: &Place| Holding {
            used: place.used.load(Ordering::Relaxed),
            guarantee: place.guarantee.load(Ordering::Relaxed),
            ceiling: match place.shadow.load(Ordering::Relaxed) {
                true => u64::MAX,
                false => place.ceiling.load(Ordering::Relaxed),
            },
        };
        self.places.iter().map(holding).collect()
    }

    /// Puts guarantees in force as far as they go.
    pub(super) fn keep(&self, holdings: &[Holding]) {
        for (place, holding) in self.places.iter().zip(holdings) {
            place.kept.store(holding.guarantee, Ordering::Relaxed);
        }
    }

    /// Puts measures in force, for tenants of these weights.
    pub(super) fn act(&self, measures: &Measures, shadow: bool, weight: impl Fn(usize) -> u32) {
        self.share_out(measures.limit, weight);
        self.parts_until.store(measures.parts_until, Ordering::Relaxed);
        // Before the limit, so that none is enforced that is not to be.
        self.shadow.store(shadow, Ordering::Relaxed);
        self.limit.store(measures.limit, Ordering::Relaxed);
        for (index, place) in self.places.iter().enumerate() {
            let of_process = measures.worst.filter(|worst| worst.place == index && !shadow);
            let step = of_process.map_or(MemoryStep::Free, |worst| worst.step);
            let by_ceiling = measures.over_ceiling.iter().find(|over| over.0 == index).map_or(0, |over| over.1);
            place.pressure.store(step as u8, Ordering::Relaxed);
            place.excess.store(of_process.map_or(0, |worst| worst.excess).max(by_ceiling), Ordering::Relaxed);
        }
    }

    /// Gives everybody a part by weight, of as many as have anything; whoever has nothing as if it came next.
    fn share_out(&self, limit: u64, weight: impl Fn(usize) -> u32) {
        let has_any = |place: &Place| place.used.load(Ordering::Relaxed) > 0;
        let holders = self.places.iter().enumerate().filter(|(_, place)| has_any(place));
        let add = |(count, sum), (index, _)| (count + 1, sum + u128::from(weight(index)));
        let (count, sum) = holders.fold((0, 0), add);
        for (index, place) in self.places.iter().enumerate() {
            let own = u128::from(weight(index)).max(1);
            let (count, sum) = if has_any(place) { (count, sum) } else { (count + 1, sum + own) };
            let (times, all) = (own * count, sum.max(1));
            // One part more than there are: that is left for who comes.
            let part = u128::from(limit) * times / (all * (count + 1)).max(1);
            place.times.store(u64::try_from(u128::from(ONCE) * times / all).unwrap_or(ONCE), Ordering::Relaxed);
            place.part.store(u64::try_from(part).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Adds what was held for so long.
    pub(super) fn pass_time(&self, place: usize, held: u64, milliseconds: u64) {
        let sum = &self.places[place].byte_ms;
        sum.store(sum.load(Ordering::Relaxed).wrapping_add(held.saturating_mul(milliseconds)), Ordering::Relaxed);
    }

    /// Milliseconds times bytes that were held.
    pub(super) fn byte_ms(&self, place: usize) -> u64 {
        self.places[place].byte_ms.load(Ordering::Relaxed)
    }

    /// Bytes for all tenants together; `None` without an end.
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
    }

    /// Bytes that all tenants have taken.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Place {
    /// Where its holder stands who may have so much.
    fn step(&self, used: u64, most: u64) -> MemoryStep {
        MemoryStep::of(self.staying(used, most), most)
    }

    /// Without what is on its way out, a quarter of what it may have at the most: so much more than that is there for a moment, which
    /// is what those who are told to go take to do so.
    fn staying(&self, used: u64, most: u64) -> u64 {
        used.saturating_sub(self.leaving.load(Ordering::Relaxed).min(most / 4))
    }

    fn ceiling(&self) -> u64 {
        self.ceiling.load(Ordering::Relaxed)
    }

    fn pressure(&self) -> MemoryStep {
        MemoryStep::from_number(self.pressure.load(Ordering::Relaxed))
    }
}

/// Bytes of a connection that are charged for as long as this is there.
#[derive(Debug)]
pub(crate) struct Charged {
    payer: Rc<Payer>,
    bytes: usize,
}

impl Charged {
    pub(super) fn new(payer: &Rc<Payer>, bytes: usize) -> Self {
        payer.hold(bytes);
        Self { payer: Rc::clone(payer), bytes }
    }

    /// So many from now on.
    pub(crate) fn set(&mut self, bytes: usize) {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.payer.hold(more),
            None => self.payer.let_go(self.bytes - bytes),
        }
        self.bytes = bytes;
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.payer.let_go(self.bytes);
    }
}

#[cfg(test)]
mod tests;
