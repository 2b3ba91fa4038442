//! Start-time fair queueing (Goyal, Vin and Cheng, 1996) in two levels: tenants share a worker by weight, and inside a
//! tenant its flows share alike. Pure: no clock and no IO; whoever runs a task says afterwards what it cost.
//!
//! Each tenant, and each flow inside one, has a start tag in virtual time. The smallest one runs next and then starts
//! later, by cost over weight. Who comes back after a rest starts where its own last turn ended, and what was used is not forgotten;
//! but of a share that it left to others it gets no more than [`SAVED`] back. Two that both want to run all the time never differ by
//! more than the longest turn of each, over their weights, and that.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use slab::Slab;

use crate::reserve::{AHEAD, Promise, Reserve};
use crate::{GroupKey, Share, TenantId, Weight};

/// While the process has used up its quota of processor time, who has rested may still run for so long, in nanoseconds: more than
/// a request or two take.
const SPARED: u64 = 1_000_000;

/// How much of its share somebody may have later whom others had the use of meanwhile, in nanoseconds: what some requests take, and
/// new connections for them. Without it who asks for little among many who ask for much would wait for all of them again and again:
/// a hundredth of a worker is 0.2 ms in 20 ms. With it the others wait once, for so long, for each who has saved it up.
pub(crate) const SAVED: u64 = 500_000;

/// Cost over weight. Wide enough for ever: with 64 bits a day of work at full precision would wrap.
pub(crate) type Virtual = u128;

/// Who shares on one level, and who of them is next.
#[derive(Debug, Default)]
struct Level {
    runnable: Line,
    /// Of those who can run, the ones that need not wait for the quota of the process.
    spared: Line,
    /// There is such a quota.
    sparing: bool,
    /// Of those who can run, the ones that were promised a part.
    reserve: Reserve,
    /// The largest start tag of those whose turn came by weight; when nobody is left, the end of the last busy period.
    now: Virtual,
    latest_finish: Virtual,
    /// The latest end of the last turn of those who were forgotten. Who is new may be any of them.
    forgotten: Virtual,
    /// Makes equal start tags run in the order of their arrival.
    arrivals: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) start: Virtual,
    arrival: u64,
    pub(crate) slot: usize,
}

/// A heap that keeps its first place beside it: alone nobody pays for a heap, and who goes back into the line moves the others
/// once, not twice.
#[derive(Debug, Default)]
struct Line {
    /// Before all of `rest`. Without it the first one is there, too.
    first: Option<Place>,
    rest: BinaryHeap<Reverse<Place>>,
}

impl Line {
    fn push(&mut self, mut place: Place) {
        if let Some(first) = &mut self.first {
            if place < *first {
                std::mem::swap(&mut place, first);
            }
            self.rest.push(Reverse(place));
            return;
        }
        if let Some(mut top) = self.rest.peek_mut().filter(|top: &PeekMut<'_, _>| top.0 < place) {
            std::mem::swap(&mut place, &mut top.0);
        }
        self.first = Some(place);
    }

    fn pop(&mut self) -> Option<Place> {
        self.first.take().or_else(|| self.rest.pop().map(|Reverse(place)| place))
    }

    fn first(&self) -> Option<&Place> {
        self.first.as_ref().or_else(|| self.rest.peek().map(|Reverse(place)| place))
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.rest.is_empty()
    }
}

/// Where one tenant or flow stands on its level.
#[derive(Debug)]
struct Standing {
    start: Virtual,
    finish: Virtual,
    /// Virtual time of a nanosecond.
    rate: u64,
    promise: Promise,
    /// Up to here it is spared waiting for the quota.
    spared_until: Virtual,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Runnable,
    InService,
}

impl Standing {
    /// One whose last turn ended no later than at `finish`.
    fn new(share: Share, finish: Virtual) -> Self {
        let Share { weight, at_least, .. } = share;
        let promise = Promise::new(at_least);
        Self { start: finish, finish, rate: weight.rate(), promise, spared_until: 0, state: State::Idle }
    }
}

impl Level {
    /// Lets one run again that had nothing to do.
    fn wake(&mut self, who: &mut Standing, slot: usize) {
        if who.state == State::Idle {
            if self.sparing {
                // As much as its share would have been meanwhile; nothing where nobody else was given more.
                let rested = self.now.saturating_sub(who.finish).min(Virtual::from(SPARED) * Virtual::from(who.rate));
                who.spared_until = who.spared_until.max(self.now + rested);
            }
            let saved = Virtual::from(SAVED) * Virtual::from(who.rate);
            self.enter(who, slot, who.finish.max(self.now.saturating_sub(saved)), true);
        }
    }

    /// Puts one into its line, after a rest (`anew`) or after a turn.
    fn enter(&mut self, who: &mut Standing, slot: usize, start: Virtual, anew: bool) {
        who.start = start;
        who.state = State::Runnable;
        self.arrivals += 1;
        let place = Place { start, arrival: self.arrivals, slot };
        let spared = self.sparing && start < who.spared_until;
        match who.promise.is_any() {
            true => self.reserve.push(place, &mut who.promise, anew, spared),
            false if spared => self.spared.push(place),
            false => self.runnable.push(place),
        }
    }

    /// The slot of who runs next.
    fn pick(&mut self) -> Option<usize> {
        let line =
            match self.spared.first().is_some_and(|first| self.runnable.first().is_none_or(|other| first < other)) {
                true => &mut self.spared,
                false => &mut self.runnable,
            };
        let by_weight = match self.reserve.is_empty() {
            true => line.pop(),
            false => {
                // Out of its turn: the others' time does not go on to where it stands.
                if let Some(place) = self.reserve.pop_behind() {
                    return Some(place.slot);
                }
                self.reserve.pop_before(line.first()).or_else(|| line.pop())
            }
        };
        let Place { start, slot, .. } = by_weight?;
        self.now = self.now.max(start);
        Some(slot)
    }

    /// The slot of who runs next while the quota is used up. Out of its turn, too: else those who are spared would earn each other
    /// more of it.
    fn pick_spared(&mut self) -> Option<usize> {
        let promised = self.reserve.pop_behind().or_else(|| self.reserve.pop_spared());
        promised.or_else(|| self.spared.pop()).map(|place| place.slot)
    }

    fn is_idle(&self) -> bool {
        self.runnable.is_empty() && self.spared.is_empty() && self.reserve.is_empty()
    }

    /// Whether all who can run would still come after the one in service, whose turn goes on.
    fn none_before(&self, who: &Standing) -> bool {
        let after = |line: &Line| line.first().is_none_or(|first| who.start < first.start);
        self.reserve.is_empty() && after(&self.runnable) && after(&self.spared)
    }

    /// Ends the turn of the one in service.
    fn charge(&mut self, who: &mut Standing, slot: usize, cost: u64, again: bool) {
        let of_rate = |time: u64| Virtual::from(time) * Virtual::from(who.rate);
        who.finish = who.start + of_rate(cost);
        self.reserve.pass(cost);
        if who.promise.is_any() {
            self.reserve.pay(&mut who.promise, cost);
            who.finish = who.finish.min(self.now + of_rate(AHEAD + cost));
        }
        self.latest_finish = self.latest_finish.max(who.finish);
        who.state = State::Idle;
        if again {
            self.enter(who, slot, who.finish, false);
        } else if self.is_idle() {
            self.now = self.latest_finish;
        }
    }

    /// What one had by a promise that it has no more is not held against it.
    fn forgive(&mut self, who: &mut Standing, slot: usize) {
        who.start = who.start.min(self.now);
        who.finish = who.finish.min(self.now);
        self.reserve.bring_forward(slot, self.now);
    }

    /// Whether forgetting this one would forgive it nothing.
    fn is_even_with(&self, who: &Standing) -> bool {
        who.state == State::Idle && who.finish <= self.now
    }

    /// Whether it has rested for so long that it would begin as somebody does who was never here.
    fn is_as_new(&self, who: &Standing) -> bool {
        let saved = Virtual::from(SAVED) * Virtual::from(who.rate);
        who.state == State::Idle && who.finish.saturating_add(saved) <= self.now
    }

    /// Nor does it earn anything: who comes next has saved no more than this one.
    fn forget(&mut self, who: &Standing) {
        self.forgotten = self.forgotten.max(who.finish);
    }
}

#[derive(Debug)]
struct Tenant {
    id: TenantId,
    standing: Standing,
    /// What runs next has waited for others only: nothing of its own was in its way, nor what it had used.
    rested: bool,
    /// Its share has an end.
    has_end: bool,
    /// It has no turn before it is released, which it was last at that moment.
    held: bool,
    released: u64,
    flows: Level,
    /// Flows that exist.
    count: usize,
}

#[derive(Debug)]
struct Flow<T> {
    key: GroupKey,
    tenant: usize,
    standing: Standing,
    queue: VecDeque<T>,
    /// Who may still push here.
    members: usize,
}

/// What runs next, and for whom.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Turn<T> {
    pub(crate) item: T,
    /// The tenant's place; stays the same while the tenant has a member.
    pub(crate) tenant: usize,
    /// It is the first one after a rest in which the tenant has used up less than its share.
    pub(crate) rested: bool,
    /// When its tenant was last released; what it waited before that, it was held for.
    pub(crate) released: u64,
}

/// The run queue of a worker.
#[derive(Debug)]
pub(crate) struct Fair<T> {
    tenants: Slab<Tenant>,
    flows: Slab<Flow<T>>,
    tenant_slots: HashMap<TenantId, usize>,
    flow_slots: HashMap<GroupKey, usize>,
    level: Level,
    /// Tenants that are held, and until when.
    held: BinaryHeap<Reverse<(u64, usize)>>,
    /// Slot of the flow in service.
    in_service: Option<usize>,
    /// Flows that had no member when last looked at.
    leaving: VecDeque<usize>,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self {
            tenants: Slab::new(),
            flows: Slab::new(),
            tenant_slots: HashMap::new(),
            flow_slots: HashMap::new(),
            level: Level::default(),
            held: BinaryHeap::new(),
            in_service: None,
            leaving: VecDeque::new(),
        }
    }
}

impl<T> Fair<T> {
    /// Adds a member to a group, which begins to exist with its first one. A tenant that is new gets this share. Returns
    /// where to push, and the tenant's place.
    pub(crate) fn join(&mut self, key: GroupKey, share: impl FnOnce() -> Share) -> (usize, usize) {
        self.forget_some();
        if let Some(&slot) = self.flow_slots.get(&key) {
            self.flows[slot].members += 1;
            return (slot, self.flows[slot].tenant);
        }
        let tenant = *self.tenant_slots.entry(key.tenant).or_insert_with(|| {
            let share = share();
            self.tenants.insert(Tenant {
                id: key.tenant,
                standing: Standing::new(share, self.level.forgotten),
                rested: false,
                has_end: share.has_end,
                held: false,
                released: 0,
                flows: Level::default(),
                count: 0,
            })
        });
        self.tenants[tenant].count += 1;
        let standing = Standing::new(Share::of(Weight::DEFAULT), self.tenants[tenant].flows.forgotten);
        let slot = self.flows.insert(Flow { key, tenant, standing, queue: VecDeque::new(), members: 1 });
        self.flow_slots.insert(key, slot);
        (slot, tenant)
    }

    /// Takes a member away. The group is forgotten once it has none, is idle, and nobody waits for what it used.
    pub(crate) fn leave(&mut self, slot: usize) {
        let flow = &mut self.flows[slot];
        flow.members = flow.members.saturating_sub(1);
        if flow.members == 0 {
            self.leaving.push_back(slot);
            self.forget_some();
        }
    }

    /// Changes a tenant's share from its next turn on. One that is not here gets it when it comes.
    pub(crate) fn set_share(&mut self, tenant: TenantId, Share { weight, at_least, has_end }: Share) {
        if let Some(&slot) = self.tenant_slots.get(&tenant) {
            self.tenants[slot].has_end = has_end;
            let standing = &mut self.tenants[slot].standing;
            standing.rate = weight.rate();
            if standing.promise.part > at_least {
                self.level.forgive(standing, slot);
            }
            standing.promise.part = at_least;
        }
    }

    /// Says whether the process has a quota, so that tenants who have rested are told from the others.
    pub(crate) const fn set_sparing(&mut self, sparing: bool) {
        self.level.sparing = sparing;
    }

    /// The worker did something else for so long.
    pub(crate) fn pass(&mut self, nanoseconds: u64) {
        self.level.reserve.pass(nanoseconds);
    }

    /// Queues an item behind the others of its group.
    pub(crate) fn push(&mut self, slot: usize, item: T) {
        let flow = &mut self.flows[slot];
        flow.queue.push_back(item);
        if flow.standing.state != State::Idle {
            return; // Its tenant is not idle either, or is held.
        }
        let tenant = &mut self.tenants[flow.tenant];
        tenant.flows.wake(&mut flow.standing, slot);
        if tenant.held {
            return;
        }
        tenant.rested |= self.level.is_even_with(&tenant.standing);
        self.level.wake(&mut tenant.standing, flow.tenant);
    }

    /// What runs next. To be followed by [`Fair::charge`] when it has run, and whatever [`Fair::more`] there was.
    pub(crate) fn next(&mut self) -> Option<Turn<T>> {
        self.charge(0);
        let tenant = self.level.pick()?;
        self.begin(tenant)
    }

    /// The same of those who need not wait for the quota of the process.
    pub(crate) fn next_spared(&mut self) -> Option<Turn<T>> {
        self.charge(0);
        let tenant = self.level.pick_spared()?;
        self.begin(tenant)
    }

    fn begin(&mut self, tenant_slot: usize) -> Option<Turn<T>> {
        let tenant = &mut self.tenants[tenant_slot];
        tenant.standing.state = State::InService;
        let slot = tenant.flows.pick()?;
        let flow = &mut self.flows[slot];
        flow.standing.state = State::InService;
        self.in_service = Some(slot);
        let (rested, released) = (std::mem::take(&mut tenant.rested), tenant.released);
        Some(Turn { item: flow.queue.pop_front()?, tenant: tenant_slot, rested, released })
    }

    /// What the flow in service has to run yet, if nobody has come before whom its turn would not have begun.
    pub(crate) fn more(&mut self) -> Option<T> {
        let flow = &mut self.flows[self.in_service?];
        let tenant = &self.tenants[flow.tenant];
        let first = self.level.none_before(&tenant.standing) && tenant.flows.none_before(&flow.standing);
        first.then(|| flow.queue.pop_front()).flatten()
    }

    /// Ends the turn that [`Fair::next`] began, with its cost in nanoseconds.
    pub(crate) fn charge(&mut self, cost: u64) {
        let Some(slot) = self.in_service.take() else { return };
        let flow = &mut self.flows[slot];
        let tenant = &mut self.tenants[flow.tenant];
        tenant.flows.charge(&mut flow.standing, slot, cost, !flow.queue.is_empty());
        let again = !tenant.held && !tenant.flows.is_idle();
        self.level.charge(&mut tenant.standing, flow.tenant, cost, again);
    }

    /// Whose place this is, if its share has an end.
    pub(crate) fn with_end(&self, slot: usize) -> Option<TenantId> {
        self.tenants.get(slot).filter(|tenant| tenant.has_end).map(|tenant| tenant.id)
    }

    /// Gives the tenant in service no further turn before that moment; what it queues meanwhile stays.
    pub(crate) fn hold(&mut self, until: u64) {
        let Some(slot) = self.in_service.map(|flow| self.flows[flow].tenant) else { return };
        if !std::mem::replace(&mut self.tenants[slot].held, true) {
            self.held.push(Reverse((until, slot)));
        }
    }

    /// Lets those go on whose moment has come.
    pub(crate) fn release(&mut self, now: u64) {
        while self.held.peek().is_some_and(|Reverse((until, _))| *until <= now) {
            let Some(Reverse((_, slot))) = self.held.pop() else { return };
            let tenant = &mut self.tenants[slot];
            (tenant.held, tenant.released) = (false, now);
            if !tenant.flows.is_idle() {
                self.level.wake(&mut tenant.standing, slot);
            }
        }
    }

    /// When the next one can be released.
    pub(crate) fn next_release(&self) -> Option<u64> {
        self.held.peek().map(|Reverse((until, _))| *until)
    }

    /// Whether nothing is queued of anybody who may have a turn.
    pub(crate) fn is_idle(&self) -> bool {
        self.level.is_idle() && self.in_service.is_none_or(|slot| self.flows[slot].queue.is_empty())
    }

    /// Who is here, by place.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = (usize, TenantId)> + '_ {
        self.tenants.iter().map(|(place, tenant)| (place, tenant.id))
    }

    /// Whose place this is.
    pub(crate) fn tenant(&self, slot: usize) -> TenantId {
        self.tenants[slot].id
    }

    /// Looks at two groups that were left. Each arrival does so, and each is left once for each time that it was joined:
    /// there are never many.
    fn forget_some(&mut self) {
        for _ in 0..self.leaving.len().min(2) {
            let Some(slot) = self.leaving.pop_front() else { return };
            let Some(flow) = self.flows.get(slot).filter(|flow| flow.members == 0) else { continue };
            let tenant = &mut self.tenants[flow.tenant];
            let last = tenant.count == 1;
            let even = tenant.flows.is_even_with(&flow.standing);
            // While others wait, what newcomers have saved is not taken from them because somebody left. Inside a tenant it may be.
            let even_tenant = if self.level.is_idle() { Level::is_even_with } else { Level::is_as_new };
            if !even || last && (tenant.held || !even_tenant(&self.level, &tenant.standing)) {
                self.leaving.push_back(slot);
                continue;
            }
            tenant.count -= 1;
            tenant.flows.forget(&flow.standing);
            self.flow_slots.remove(&flow.key);
            if last {
                self.level.forget(&tenant.standing);
                self.tenant_slots.remove(&tenant.id);
                self.tenants.remove(flow.tenant);
            }
            self.flows.remove(slot);
        }
    }
}

#[cfg(test)]
impl<T> Fair<T> {
    /// Tenants and flows that are known.
    pub(crate) fn known(&self) -> (usize, usize) {
        (self.tenants.len(), self.flows.len())
    }
}
