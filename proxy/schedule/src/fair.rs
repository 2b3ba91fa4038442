//! Start-time fair queueing (Goyal, Vin and Cheng, 1996) in two levels: tenants share a worker by weight, and inside a
//! tenant its flows share alike. Pure: no clock and no IO; whoever runs a task says afterwards what it cost.
//!
//! Each tenant, and each flow inside one, has a start tag in virtual time. The smallest one runs next and then starts
//! later, by cost over weight. Who comes back after a rest starts where its own last turn ended, and what was used is not forgotten;
//! but of a share that it left to others it gets no more than [`SAVED`] back. Two that both want to run all the time never differ by
//! more than the longest turn of each, over their weights, and that.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use slab::Slab;

use crate::flows::Flows;
use crate::level::{Level, Standing, State};
use crate::{GroupKey, Share, TenantId};

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
    flows: Flows,
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
                flows: Flows::default(),
                count: 0,
            })
        });
        self.tenants[tenant].count += 1;
        let standing = self.tenants[tenant].flows.join(key);
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
        tenant.flows.wake(flow.key, &mut flow.standing, slot);
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
        let first = self.level.none_before(&tenant.standing) && tenant.flows.none_before(flow.key, &flow.standing);
        first.then(|| flow.queue.pop_front()).flatten()
    }

    /// Ends the turn that [`Fair::next`] began, with its cost in nanoseconds.
    pub(crate) fn charge(&mut self, cost: u64) {
        let Some(slot) = self.in_service.take() else { return };
        let flow = &mut self.flows[slot];
        let tenant = &mut self.tenants[flow.tenant];
        tenant.flows.charge(flow.key, &mut flow.standing, slot, cost, !flow.queue.is_empty());
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
            let even = tenant.flows.may_forget(flow.key, &flow.standing);
            // While others wait, what newcomers have saved is not taken from them because somebody left. Inside a tenant it may be.
            let even_tenant = if self.level.is_idle() { Level::is_even_with } else { Level::is_as_new };
            if !even || last && (tenant.held || !even_tenant(&self.level, &tenant.standing)) {
                self.leaving.push_back(slot);
                continue;
            }
            tenant.count -= 1;
            tenant.flows.forget(flow.key, &flow.standing);
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
