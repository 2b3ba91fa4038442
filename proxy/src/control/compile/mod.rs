//! Compiling policies: an update waits for what its tenants may use at once, and for so much in all; the rest goes on in the
//! background, and the endpoint denies until it is done.
//!
//! What is reckoned is the policy, not the time that it takes on the day ([`Effort`](tollgate_policy::Effort)): whether an update
//! is in force when it is acknowledged must not depend on who else keeps the machine busy.

mod background;
mod budget;
mod holdings;
mod reservation;
mod rounds;
mod terms;
mod thread;
mod turns;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tollgate_policy::{Draft, Effort, EndpointKey, EndpointPolicy, NetworkPolicy, Snapshot, SnapshotBuilder};

pub(super) use self::background::Background;
use self::background::{Haste, TOGETHER};
pub(super) use self::budget::Budgets;
use self::budget::Wait;
pub(super) use self::holdings::Holdings;
pub(super) use self::reservation::{Prepared, Reservation};
pub(super) use self::rounds::First;
pub(super) use self::terms::Terms;
#[cfg(test)]
pub(super) use self::thread::shortage::Shortage;
pub(super) use self::thread::{Failed, SOON, begun, run_here, run_soon};
use super::world::after_publishing;
use super::{ClaimOrder, Control};
use crate::overhead::{self, ForTenant};
use crate::tenant::{LocalEnd, Table, TenantId};

/// Bytes of a policy's message beyond which others do not wait for it: a hundred rules, or about a millisecond.
pub(super) const LARGE: usize = 16 << 10;

/// What became of one policy of an update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compiled {
    pub(super) terms: Terms,
    /// Nanoseconds.
    pub(super) took: u64,
    /// With which it goes on, if it is not finished.
    pub(super) haste: Haste,
}

/// An update while it is compiled.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) builder: SnapshotBuilder,
    wait: Wait,
    /// Kept until it is in force.
    reserved: Vec<Reservation>,
    /// Until the first policies are in force as a whole.
    first: Option<First>,
    order: ClaimOrder,
}

/// A policy of an update that has been compiled, or was too much.
#[derive(Debug)]
struct Attempt {
    draft: Draft,
    terms: Terms,
    /// Nanoseconds of effort.
    used: u64,
    /// Nanoseconds.
    took: u64,
    /// Tenant and update have more left than it was given.
    had_less: bool,
    haste: Haste,
}

impl Update {
    /// Changes `base`; `first` until that is the first policies as a whole.
    pub(super) fn of(base: &Snapshot, order: ClaimOrder, first: Option<First>) -> Self {
        let wait = Wait::new(first.is_some());
        Self { builder: builder(base, order), wait, reserved: Vec::new(), first, order }
    }

    /// Adds a policy that was compiled before; `None`, and nothing is added, if the terms are others by now.
    pub(super) fn insert(&mut self, resource: &str, prepared: Prepared, tenants: &Table) -> Option<Compiled> {
        let Prepared { draft, terms, reserved, took } = prepared;
        if Terms::of_endpoint(draft.endpoint_id(), draft.endpoints(), tenants) != terms {
            return None;
        }
        self.builder.insert(resource, draft);
        self.reserved.push(reserved);
        Some(Compiled { terms, took: took.charge(), haste: Haste::Soon })
    }

    /// What is to come into force, and the room that is taken for it until then.
    pub(super) fn finish(self) -> (Snapshot, Vec<Reservation>) {
        (self.builder.build(), self.reserved)
    }
}

fn builder(base: &Snapshot, order: ClaimOrder) -> SnapshotBuilder {
    let mut builder = base.update();
    if order == ClaimOrder::BeginsAnew {
        builder.forget_order();
    }
    builder
}

impl Control {
    /// Adds a policy to what is in force next: whole, where its tenant has the budget and the update the time; as it is in force,
    /// where it is that within other limits; and else as one that denies.
    pub(super) fn compile_now(
        self: &Arc<Self>,
        update: &mut Update,
        resource: &str,
        policy: NetworkPolicy,
        terms: Terms,
    ) -> Compiled {
        let attempt = self.attempt(update, resource, policy, terms, u64::MAX);
        self.conclude(update, resource, attempt)
    }

    /// Compiles a policy for `update`, within `most` nanoseconds of effort.
    fn attempt(
        self: &Arc<Self>,
        update: &mut Update,
        resource: &str,
        policy: NetworkPolicy,
        terms: Terms,
        most: u64,
    ) -> Attempt {
        let Terms { owner, allowance, limits, memory } = terms;
        let for_tenant = ForTenant::begin();
        let mut draft = update.builder.draft(resource, policy, &limits);
        let room = self.holdings().room(resource, owner, memory, draft.forms());
        let own = self.budgets().left(owner, allowance, Instant::now());
        let left = own.min(update.wait.left());
        let given = left.min(most);
        let mut effort = Effort::new(given).within(room);
        draft.compile(&mut effort);
        let used = given - effort.left();
        update.wait.spend(used);
        self.budgets().charge(owner, allowance, used, Instant::now());
        let haste = if left < own { Haste::Soon } else { Haste::Late };
        Attempt { draft, terms, used, took: for_tenant.end().charge(), had_less: given < left, haste }
    }

    /// Makes it a part of `update`.
    fn conclude(self: &Arc<Self>, update: &mut Update, resource: &str, attempt: Attempt) -> Compiled {
        let Attempt { mut draft, terms, took, haste, .. } = attempt;
        let mut reserved = self.admit(resource, &terms, &mut draft);
        if !draft.is_complete()
            && let Some(kept) = update.builder.kept(resource, &draft)
        {
            drop(reserved);
            draft = kept;
            reserved = self.admit(resource, &terms, &mut draft);
        }
        update.reserved.push(reserved);
        update.builder.insert(resource, draft);
        Compiled { terms, took, haste }
    }

    /// Has the tenants pay for what compiling these resources took, in nanoseconds.
    pub(super) fn charge_compiling<'n>(&self, took: impl Iterator<Item = (&'n str, u64)>) {
        let policies = Arc::clone(&self.store().load().policy);
        let tenants = self.store().tenants();
        for (resource, nanoseconds) in took {
            let payer = policies.policy(resource).map(|policy| payer(policy, tenants.table()));
            if !payer.is_some_and(|payer| tenants.books().charge_compiling(payer, nanoseconds)) {
                overhead::add(overhead::Kind::Compile, nanoseconds);
            }
        }
    }

    /// Bytes of memory that compiled policies take, and may take where memory has an end.
    pub fn policy_memory(&self) -> (usize, Option<usize>) {
        let holdings = self.holdings();
        (holdings.bytes(), holdings.most())
    }

    /// The process may have so many bytes: policies get a part of that.
    pub fn share_memory(&self, bytes: Option<u64>) {
        self.holdings().share_of(bytes);
    }

    /// The same when that is another amount than before: what had no room may have some now. What is in force stays.
    pub(super) fn memory_changes(self: &Arc<Self>, bytes: Option<u64>) {
        self.share_memory(bytes);
        self.use_room();
    }

    /// Has the tenants answer for the memory of what is in force now, and was not `before`; with a tenant's settings, of everything.
    pub(super) fn answer_for_memory(self: &Arc<Self>, before: Option<&Snapshot>) {
        let world = self.store().load().clone();
        let policies = &world.policy;
        let (gone, come) = match before {
            Some(before) => policies.changes_since(before),
            None => (policies.endpoints().collect(), policies.endpoints().collect()),
        };
        let owned = |policy| (policy, Terms::in_force(policy, &world.tenants).owner, payer(policy, &world.tenants));
        let changes = self.holdings().follow(gone, come.into_iter().map(owned));
        self.store().tenants().books().hold_policies(&changes, before.map(|_| SystemTime::now()));
    }

    /// Has what denies for want of room compiled, where there is some by now: to be called whenever there may be.
    pub(super) fn use_room(self: &Arc<Self>) {
        let world = self.store().load().clone();
        let policies = &world.policy;
        let most = |name: &str| Some(Terms::in_force(policies.policy(name)?, &world.tenants).memory);
        let fitting = self.holdings().fitting(most);
        self.compile_what_fits(fitting.iter().filter_map(|name| policies.policy(name)), &world.tenants);
    }

    /// Compiles again what was compiled within other limits than those that its tenant has now.
    ///
    /// # Errors
    /// A defect of ours; nothing has changed.
    pub(super) async fn compile_within_new_limits(self: &Arc<Self>) -> Result<(), Failed> {
        let _turn = self.updating.lock().await;
        let control = Arc::clone(self);
        run_soon(move || {
            let world = control.store().load().clone();
            let mut update = Update::of(&world.policy, ClaimOrder::Continues, None);
            let mut compiled = Vec::new();
            for policy in world.policy.endpoints() {
                let (resource, source) = (policy.resource(), policy.source());
                let terms = Terms::of(&source, &world.tenants);
                if terms.limits != policy.limits() {
                    compiled.push((resource, control.compile_now(&mut update, resource, source, terms)));
                }
            }
            if compiled.is_empty() {
                after_publishing(|| {
                    control.answer_for_memory(None);
                    control.use_room();
                });
                return;
            }
            let (snapshot, reserved) = update.finish();
            let gauges = control.publish(snapshot);
            drop(reserved);
            after_publishing(|| {
                control.answer_for_memory(None);
                control.charge_compiling(compiled.iter().map(|(resource, compiled)| (*resource, compiled.took)));
                control.compile_later(&compiled, std::iter::empty());
                compiled.iter().for_each(|(resource, _)| control.note_compiled(resource, gauges));
                control.use_room();
                tracing::info!(endpoints = compiled.len(), "policies are compiled within other limits");
            });
        })
        .await
    }
}

/// Who pays for compiling a policy that is in force, and for what it takes.
pub(crate) fn payer(policy: &EndpointPolicy, tenants: &Table) -> TenantId {
    let address = policy.keys().find_map(|key| match key {
        EndpointKey::Address(address) => Some(*address),
        EndpointKey::Name(_) => None,
    });
    tenants.tenant(LocalEnd { endpoint: Some(policy.endpoint_id()), address }, |_| None)
}

#[cfg(test)]
mod tests;
