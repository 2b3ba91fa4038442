//! Compiling policies: an update waits for what its tenants may use at once, and the rest goes on in the background, where the
//! endpoint denies until it is done.
//!
//! What is reckoned is the policy, not the time that it takes on the day ([`Effort`](tollgate_policy::Effort)): whether an update
//! is in force when it is acknowledged must not depend on who else keeps the machine busy.

mod background;
mod budget;
mod terms;
mod thread;

use std::sync::Arc;
use std::time::Instant;

use tollgate_policy::{Effort, EndpointKey, EndpointPolicy, NetworkPolicy, SnapshotBuilder};

pub(super) use self::background::Background;
pub(super) use self::budget::Budgets;
pub(super) use self::terms::Terms;
pub(super) use self::thread::Failed;
use self::thread::processor_time;
pub(super) use self::thread::run_soon;
use super::Control;
use super::world::after_publishing;
use crate::tenant::LocalEnd;

impl Control {
    /// Adds a policy to what is in force next: whole, where its tenant has the budget, and else as one that denies. Returns the
    /// nanoseconds that this took.
    pub(super) fn compile_now(
        &self,
        builder: &mut SnapshotBuilder,
        resource: &str,
        policy: NetworkPolicy,
        terms: Terms,
    ) -> u64 {
        let Terms { owner, allowance, limits } = terms;
        let left = self.budgets().left(owner, allowance, Instant::now());
        let (began, mut effort) = (processor_time(), Effort::new(left));
        builder.upsert_within(resource, policy, &limits, &mut effort);
        self.budgets().charge(owner, allowance, left - effort.left(), Instant::now());
        processor_time() - began
    }

    /// Has the tenants pay for what compiling these resources took, in nanoseconds.
    pub(super) fn charge_compiling<'n>(&self, took: impl Iterator<Item = (&'n str, u64)>) {
        let policies = Arc::clone(&self.store().load().policy);
        let tenants = self.store().tenants();
        for (resource, nanoseconds) in took {
            let Some(policy) = policies.policy(resource) else { continue };
            let address = policy.keys().find_map(|key| match key {
                EndpointKey::Address(address) => Some(*address),
                EndpointKey::Name(_) => None,
            });
            let end = LocalEnd { endpoint: Some(policy.endpoint_id()), address };
            let tenant = tenants.table().tenant(end, |_| None);
            tenants.books().charge_compiling(tenant, nanoseconds);
        }
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
            let mut builder = world.policy.update();
            let mut compiled = Vec::new();
            for policy in world.policy.endpoints() {
                let source = policy.source();
                let terms = Terms::of(&source, &world.tenants);
                if terms.limits != policy.limits() {
                    compiled.push((
                        policy.resource(),
                        terms,
                        control.compile_now(&mut builder, policy.resource(), source, terms),
                    ));
                }
            }
            if compiled.is_empty() {
                return;
            }
            let gauges = control.publish(builder.build());
            after_publishing(|| {
                control.charge_compiling(compiled.iter().map(|(resource, _, took)| (*resource, *took)));
                let policies = Arc::clone(&control.store().load().policy);
                let is_unfinished = |resource| policies.policy(resource).is_some_and(EndpointPolicy::is_unfinished);
                let later = compiled.iter().filter(|(resource, ..)| is_unfinished(*resource));
                let later = later.map(|(resource, terms, _)| (*resource, *terms)).collect();
                control.compile_later(later, compiled.iter().map(|(resource, ..)| *resource));
                compiled.iter().for_each(|(resource, ..)| control.note_compiled(resource, gauges));
                tracing::info!(endpoints = compiled.len(), "policies compiled within other limits are in force");
            });
        })
        .await
    }
}

#[cfg(test)]
mod tests;
