//! Policies that took more than their tenants may use at once: compiled one after the other, by the thread that everything else
//! goes before. Whose tenant owes least is next, so that nobody waits behind one who has it do this all the time.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tollgate_policy::{Effort, EndpointPolicy, Limits, NetworkPolicy, Prepared};

use super::thread::{self, LATE, processor_time};
use super::{Budgets, Terms};
use crate::control::Control;

/// What waits.
#[derive(Debug, Default)]
pub(in crate::control) struct Background {
    /// By resource name.
    waiting: BTreeMap<String, Terms>,
    /// There is a thread.
    running: bool,
}

impl Background {
    /// The policy of this resource is to be compiled. `true` when somebody has to begin.
    #[must_use]
    pub(super) fn add(&mut self, resource: &str, terms: Terms) -> bool {
        self.waiting.insert(resource.to_owned(), terms);
        !std::mem::replace(&mut self.running, true)
    }

    fn remove(&mut self, resource: &str) {
        self.waiting.remove(resource);
    }

    /// Whose turn it is; when it is nobody's, the thread ends.
    fn next(&mut self, budgets: &mut Budgets, now: Instant) -> Option<(String, Terms)> {
        let balance = |terms: &Terms, budgets: &mut Budgets| budgets.balance(terms.owner, terms.allowance, now);
        let first = self.waiting.iter().max_by_key(|(_, terms)| balance(terms, budgets));
        let Some(name) = first.map(|(name, _)| name.clone()) else {
            self.running = false;
            return None;
        };
        self.waiting.remove_entry(&name)
    }
}

/// A policy that was compiled in the background.
#[derive(Debug)]
pub(super) struct Ready {
    source: NetworkPolicy,
    limits: Limits,
    prepared: Prepared,
    /// Nanoseconds.
    took: u64,
}

impl Control {
    /// Compiles these in the background, by resource name, and none of `others` any more.
    pub(in crate::control) fn compile_later<'n>(
        self: &Arc<Self>,
        unfinished: Vec<(&'n str, Terms)>,
        others: impl Iterator<Item = &'n str>,
    ) {
        let mut begin = false;
        {
            let mut background = self.background();
            others.for_each(|name| background.remove(name));
            for (name, terms) in unfinished {
                begin |= background.add(name, terms);
            }
        }
        if begin && let Err(error) = thread::begin(LATE, self.clone().into_background()) {
            self.background().running = false;
            tracing::error!(%error, "no thread to compile on: endpoints whose policies are not compiled deny until the next update");
        }
    }

    /// The work of the thread that does this; it ends when nothing is left.
    pub(super) fn into_background(self: Arc<Self>) -> impl FnOnce() + Send + 'static {
        move || {
            while let Some((resource, terms)) = self.next_in_background() {
                let work = AssertUnwindSafe(|| {
                    if let Some(ready) = self.prepare(&resource, terms) {
                        self.put(&resource, ready);
                    }
                });
                if catch_unwind(work).is_err() {
                    tracing::error!(resource, "compiling a policy has panicked; its endpoint goes on denying");
                }
            }
        }
    }

    fn next_in_background(&self) -> Option<(String, Terms)> {
        let mut budgets = self.budgets();
        self.background().next(&mut budgets, Instant::now())
    }

    /// Compiles what the resource holds, to the end. `None` when there is nothing to do any more.
    pub(super) fn prepare(&self, resource: &str, terms: Terms) -> Option<Ready> {
        let base = Arc::clone(&self.store().load().policy);
        let policy = base.policy(resource).filter(|policy| policy.is_unfinished())?;
        let (source, limits) = (policy.source(), policy.limits());
        let (began, mut effort) = (processor_time(), Effort::UNBOUNDED);
        let prepared = Prepared::new(source.clone(), &limits, &base, &mut effort);
        let used = Effort::UNBOUNDED.left() - effort.left();
        self.budgets().charge(terms.owner, terms.allowance, used, Instant::now());
        Some(Ready { source, limits, prepared, took: processor_time() - began })
    }

    /// Puts it in force, if the resource still holds what was compiled; else whoever changed it has seen to it.
    pub(super) fn put(&self, resource: &str, ready: Ready) {
        let Ready { source, limits, prepared, took } = ready;
        let _turn = self.updating.blocking_lock();
        let current = Arc::clone(&self.store().load().policy);
        let wanted =
            |policy: &EndpointPolicy| policy.is_unfinished() && policy.limits() == limits && policy.source() == source;
        if !current.policy(resource).is_some_and(wanted) {
            return;
        }
        let mut builder = current.update();
        builder.adopt(prepared);
        builder.upsert_within(resource, source, &limits, &mut Effort::new(0));
        let gauges = self.publish(builder.build());
        self.note_compiled(resource, gauges);
        self.charge_compiling(std::iter::once((resource, took)));
        tracing::info!(resource, milliseconds = took / 1_000_000, "policy compiled in the background is in force");
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::{Allowance, Owner};
    use super::*;
    use crate::tenant::Settings;

    fn terms(endpoint: u64) -> Terms {
        let allowance = Allowance::of(&Settings::default());
        Terms { owner: Owner::Endpoint(endpoint), allowance, limits: Limits::default() }
    }

    /// One who always has something to compile does not hold up those who seldom have.
    #[test]
    fn who_owes_least_is_next() {
        let (mut background, mut budgets, now) = (Background::default(), Budgets::default(), Instant::now());
        assert!(background.add("a", terms(1)) && !background.add("b", terms(2)));
        budgets.charge(Owner::Endpoint(1), terms(1).allowance, 2_000_000_000, now);
        budgets.charge(Owner::Endpoint(2), terms(2).allowance, 300_000_000, now);
        assert_eq!(background.next(&mut budgets, now), Some(("b".to_owned(), terms(2))));
        assert!(!background.add("c", terms(3)), "the thread is there");
        assert!(!background.add("a2", terms(1)));
        let mut order = Vec::new();
        while let Some((name, terms)) = background.next(&mut budgets, now) {
            budgets.charge(terms.owner, terms.allowance, 1_000_000_000, now);
            order.push(name);
            if order.len() == 2 {
                assert!(!background.add("d", self::terms(4)));
            }
        }
        assert_eq!(order[0], "c");
        assert_eq!(order[2], "d", "{order:?}");
        assert!(background.add("e", terms(1)), "the thread has ended");
        background.remove("e");
        assert_eq!(background.next(&mut budgets, now), None);
    }
}
