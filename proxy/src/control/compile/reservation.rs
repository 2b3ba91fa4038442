//! Policies that are compiled beside updates, and the room that is taken for what is on its way into force.

use std::sync::Arc;
use std::time::Instant;

use tollgate_policy::{Draft, Effort, Form, NetworkPolicy};

use super::budget::Owner;
use super::{Haste, Terms};
use crate::control::Control;
use crate::overhead::{ForTenant, Unpaid};

/// Gives the room back when it is dropped, whatever has become of it: a panic must not keep any. What has come into force by then
/// is counted as that. Not to be dropped while the holdings are locked.
#[derive(Debug)]
#[must_use]
pub(in crate::control) struct Reservation {
    control: Arc<Control>,
    owner: Owner,
    forms: Vec<Form>,
}

/// A policy that was compiled beside updates, with the room that it has until it is in force.
#[derive(Debug)]
pub(in crate::control) struct Prepared {
    pub(super) draft: Draft,
    /// On which it was compiled.
    pub(super) terms: Terms,
    pub(super) reserved: Reservation,
    pub(super) took: Unpaid,
}

impl Prepared {
    /// Gives its room back. What is left needs to be freed only.
    pub(in crate::control) fn give_up(self) -> Draft {
        self.draft
    }
}

impl Control {
    /// Compiles the policy beside updates, within the budget that its tenant has left. `None` where that does not suffice.
    pub(in crate::control) fn prepare_policy(
        self: &Arc<Self>,
        resource: &str,
        policy: NetworkPolicy,
    ) -> Option<Prepared> {
        let world = self.store().load().clone();
        let terms = Terms::of(&policy, &world.tenants);
        self.prepare_draft(resource, terms, Haste::Soon, || world.policy.draft(policy, &terms.limits))
    }

    /// What stands for the policy until it is compiled: it denies, unless it is known already.
    pub(in crate::control) fn denying_for_now(self: &Arc<Self>, resource: &str, policy: NetworkPolicy) -> Prepared {
        let world = self.store().load().clone();
        let terms = Terms::of(&policy, &world.tenants);
        let mut draft = world.policy.draft(policy, &terms.limits);
        draft.compile(&mut Effort::new(0));
        let reserved = self.admit(resource, &terms, &mut draft);
        Prepared { draft, terms, reserved, took: Unpaid::nothing() }
    }

    /// Compiles it within the budget that its tenant has left, or however long it takes.
    pub(super) fn prepare_draft(
        self: &Arc<Self>,
        resource: &str,
        terms: Terms,
        haste: Haste,
        draft: impl FnOnce() -> Draft,
    ) -> Option<Prepared> {
        let before = match haste {
            Haste::Soon => Effort::new(self.budgets().left(terms.owner, terms.allowance, Instant::now())),
            Haste::Late => Effort::UNBOUNDED,
        };
        let for_tenant = ForTenant::begin();
        let mut draft = draft();
        let room = self.holdings().room(resource, terms.owner, terms.memory, draft.forms());
        let mut effort = before.within(room);
        draft.compile(&mut effort);
        self.budgets().charge(terms.owner, terms.allowance, before.left() - effort.left(), Instant::now());
        if draft.is_unfinished() {
            return None;
        }
        let reserved = self.admit(resource, &terms, &mut draft);
        Some(Prepared { draft, terms, reserved, took: for_tenant.end() })
    }

    /// Takes room for what was compiled of this resource. A direction for which there is none any more denies.
    pub(super) fn admit(self: &Arc<Self>, resource: &str, terms: &Terms, draft: &mut Draft) -> Reservation {
        let admission = self.holdings().admit(resource, terms.owner, terms.memory, draft.forms());
        let (control, owner) = (Arc::clone(self), terms.owner);
        let reservation = Reservation { control, owner, forms: admission.forms };
        for (direction, room) in admission.refused {
            draft.refuse(direction, room);
        }
        reservation
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.control.holdings().give_back(self.owner, &self.forms);
    }
}
