//! Policies that took more than an update waits for: compiled one after the other.
//!
//! What its tenant has the budget for comes soon, the small before the large. The rest is done by a thread that everything else
//! goes before: whose tenant owes least is next, so that nobody waits behind one who has it do this all the time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tollgate_policy::EndpointPolicy;

use super::thread;
use super::{Budgets, Compiled, Prepared, Terms};
use crate::control::Control;
use crate::control::world::after_publishing;
use crate::tenant::Table;

/// Nanoseconds of compiling from which on it is put in force, before there is more: a publication is work for every connection.
pub(super) const TOGETHER: u64 = 50_000_000;

/// Between attempts to begin, while there is no thread.
const RETRY: Duration = Duration::from_secs(1);

/// How soon a policy is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum Haste {
    /// Its tenant has the budget, and only the update did not wait.
    Soon,
    /// Its tenant has used its budget.
    Late,
}

/// What waits.
#[derive(Debug, Default)]
pub(in crate::control) struct Background {
    soon: Queue,
    late: Queue,
}

#[derive(Debug, Default)]
struct Queue {
    /// By resource name.
    waiting: BTreeMap<String, Waiting>,
    /// There is a thread.
    running: bool,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    terms: Terms,
    rules: usize,
}

impl Background {
    /// The policy of this resource, which has so many rules, is to be compiled. `true` when somebody has to begin.
    #[must_use]
    pub(super) fn add(&mut self, haste: Haste, resource: &str, terms: Terms, rules: usize) -> bool {
        self.remove(resource);
        let queue = self.queue(haste);
        queue.waiting.insert(resource.to_owned(), Waiting { terms, rules });
        !std::mem::replace(&mut queue.running, true)
    }

    /// Whether something waits and nobody does it. Whoever asks has to begin.
    #[must_use]
    fn is_left(&mut self, haste: Haste) -> bool {
        let queue = self.queue(haste);
        !queue.waiting.is_empty() && !std::mem::replace(&mut queue.running, true)
    }

    fn remove(&mut self, resource: &str) {
        self.soon.waiting.remove(resource);
        self.late.waiting.remove(resource);
    }

    /// Whose turn it is; when it is nobody's, the thread ends.
    fn next(&mut self, haste: Haste, budgets: &mut Budgets, now: Instant) -> Option<(String, Terms)> {
        let queue = self.queue(haste);
        let all = queue.waiting.iter();
        let first = match haste {
            Haste::Soon => all.min_by_key(|(_, waiting)| waiting.rules),
            Haste::Late => all.max_by_key(|(_, Waiting { terms, rules })| {
                (budgets.balance(terms.owner, terms.allowance, now), Reverse(*rules))
            }),
        };
        let Some(name) = first.map(|(name, _)| name.clone()) else {
            queue.running = false;
            return None;
        };
        queue.waiting.remove_entry(&name).map(|(name, waiting)| (name, waiting.terms))
    }

    fn queue(&mut self, haste: Haste) -> &mut Queue {
        match haste {
            Haste::Soon => &mut self.soon,
            Haste::Late => &mut self.late,
        }
    }
}

/// A policy that was compiled in the background.
#[derive(Debug)]
pub(super) struct Ready {
    resource: String,
    prepared: Prepared,
}

impl Control {
    /// Compiles those of `compiled` in the background that are not finished, by resource name, and none of `others` any more.
    pub(in crate::control) fn compile_later<'n>(
        self: &Arc<Self>,
        compiled: &[(&'n str, Compiled)],
        others: impl Iterator<Item = &'n str>,
    ) {
        let policies = Arc::clone(&self.store().load().policy);
        let mut begin = Vec::new();
        {
            let mut background = self.background();
            others.for_each(|name| background.remove(name));
            for (name, Compiled { terms, haste, .. }) in compiled {
                background.remove(name);
                if let Some(policy) =
                    policies.policy(name).filter(|policy| policy.is_unfinished() || policy.limits() != terms.limits)
                    && background.add(*haste, name, *terms, policy.rule_count())
                {
                    begin.push(*haste);
                }
            }
        }
        begin.into_iter().for_each(|haste| self.begin_background(haste));
    }

    /// Compiles policies that deny for want of room, now that there may be some.
    pub(super) fn compile_what_fits<'p>(
        self: &Arc<Self>,
        policies: impl Iterator<Item = &'p EndpointPolicy>,
        tenants: &Table,
    ) {
        let mut begin = false;
        for policy in policies {
            let terms = Terms::in_force(policy, tenants);
            begin |= self.background().add(Haste::Late, policy.resource(), terms, policy.rule_count());
        }
        if begin {
            self.begin_background(Haste::Late);
        }
    }

    fn begin_background(self: &Arc<Self>, haste: Haste) {
        let nice = match haste {
            Haste::Soon => thread::SOON,
            Haste::Late => thread::LATE,
        };
        if let Err(error) = thread::begin(nice, self.clone().into_background(haste)) {
            self.background().queue(haste).running = false;
            tracing::error!(
                %error,
                "no thread to compile on: endpoints whose policies are not compiled deny; raise the limit of tasks (pids.max)"
            );
            self.no_thread.notify_one();
        }
    }

    /// Begins the background anew, some time after there was no thread for it. Never returns.
    pub async fn retry_background(self: Arc<Self>) {
        loop {
            self.no_thread.notified().await;
            sleep(RETRY).await;
            for haste in [Haste::Soon, Haste::Late] {
                if self.background().is_left(haste) {
                    self.begin_background(haste);
                }
            }
        }
    }

    /// The work of the thread that does this; it ends when nothing is left.
    pub(super) fn into_background(self: Arc<Self>, haste: Haste) -> impl FnOnce() + Send + 'static {
        move || {
            let mut ready: Vec<Ready> = Vec::new();
            loop {
                let next = self.next_in_background(haste);
                let is_last = next.is_none();
                if let Some(resource) = next {
                    ready.retain(|ready| ready.resource != resource); // it is compiled anew
                    let work = AssertUnwindSafe(|| ready.extend(self.prepare_within_terms(&resource, haste)));
                    if catch_unwind(work).is_err() {
                        self.holdings().give_up(&resource);
                        tracing::error!(resource, "compiling a policy has panicked; its endpoint goes on denying");
                    }
                }
                let took: u64 = ready.iter().map(|ready| ready.prepared.took.nanoseconds()).sum();
                if !ready.is_empty() && (is_last || took >= TOGETHER) {
                    let ready = std::mem::take(&mut ready);
                    let names: Vec<String> = ready.iter().map(|ready| ready.resource.clone()).collect();
                    if catch_unwind(AssertUnwindSafe(|| self.put(ready))).is_err() {
                        names.iter().for_each(|name| self.holdings().give_up(name));
                        tracing::error!(
                            "what was compiled in the background is not in force: putting it there has panicked"
                        );
                    }
                }
                if is_last {
                    // What was compiled and is not wanted any more has given its room back.
                    after_publishing(|| self.use_room());
                    return;
                }
            }
        }
    }

    fn next_in_background(&self, haste: Haste) -> Option<String> {
        let mut budgets = self.budgets();
        self.background().next(haste, &mut budgets, Instant::now()).map(|(resource, _)| resource)
    }

    /// Compiles what the resource holds on the terms of now: those on which it began to wait may have changed.
    fn prepare_within_terms(self: &Arc<Self>, resource: &str, haste: Haste) -> Option<Ready> {
        let terms = {
            let world = self.store().load();
            Terms::in_force(world.policy.policy(resource)?, &world.tenants)
        };
        self.prepare(resource, terms, haste)
    }

    /// Compiles what the resource holds. `None` when there is nothing to do any more, or not with so much haste.
    pub(super) fn prepare(self: &Arc<Self>, resource: &str, terms: Terms, haste: Haste) -> Option<Ready> {
        let base = Arc::clone(&self.store().load().policy);
        let policy = base.policy(resource).filter(|policy| waits(policy) || policy.limits() != terms.limits)?;
        let draft = || base.draft(policy.source(), &terms.limits);
        let Some(prepared) = self.prepare_draft(resource, terms, haste, draft) else {
            // Others of its tenant have used the budget meanwhile.
            let begin = self.background().add(Haste::Late, resource, terms, policy.rule_count());
            if begin {
                self.begin_background(Haste::Late);
            }
            return None;
        };
        // What is in force within other limits is better than what denies for want of room.
        let is_better = waits(policy) || prepared.draft.is_complete();
        is_better.then(|| Ready { resource: resource.to_owned(), prepared })
    }

    /// Puts them in force where the resource still holds what was compiled; else whoever changed it has seen to it.
    pub(super) fn put(self: &Arc<Self>, mut ready: Vec<Ready>) {
        let _turn = self.updating.blocking_lock();
        let world = self.store().load().clone();
        let current = &world.policy;
        ready.retain(|Ready { resource, prepared: Prepared { draft, .. } }| {
            let is_wanted = |policy: &EndpointPolicy| {
                let limits = Terms::in_force(policy, &world.tenants).limits;
                let is_better = waits(policy) || policy.limits() != limits && draft.is_complete();
                is_better && draft.limits() == limits && draft.is(policy)
            };
            current.policy(resource).is_some_and(is_wanted)
        });
        if ready.is_empty() {
            return;
        }
        let mut builder = current.update();
        let mut put = Vec::with_capacity(ready.len());
        let mut in_force = Vec::with_capacity(ready.len());
        for Ready { resource, prepared: Prepared { draft, reserved, took, .. } } in ready {
            builder.insert(&resource, draft);
            put.push((resource, took.charge()));
            in_force.push(reserved);
        }
        let gauges = match world.has_policy {
            true => self.publish(builder.build()),
            // What is in force of the first policies is not the whole of them for that.
            false => self.publish_some(builder.build(), HashSet::clone(&world.coming)),
        };
        drop(in_force);
        self.charge_compiling(put.iter().map(|(resource, took)| (resource.as_str(), *took)));
        for (resource, took) in put {
            self.note_compiled(&resource, gauges);
            if self.store().load().policy.policy(&resource).is_some_and(|policy| policy.without_room().is_none()) {
                let milliseconds = took / 1_000_000;
                tracing::info!(resource, milliseconds, "policy compiled in the background is in force");
            }
        }
    }
}

/// Whether it denies for want of time or room.
fn waits(policy: &EndpointPolicy) -> bool {
    policy.is_unfinished() || policy.without_room().is_some()
}

#[cfg(test)]
mod tests {
    use super::super::budget::{Allowance, Owner};
    use tollgate_policy::Limits;

    use super::*;
    use crate::tenant::Settings;

    const LATE: Haste = Haste::Late;

    fn terms(endpoint: u64) -> Terms {
        let allowance = Allowance::of(&Settings::default());
        let memory = super::super::terms::MEMORY;
        Terms { owner: Owner::Endpoint(endpoint), allowance, limits: Limits::default(), memory }
    }

    /// One who always has something to compile does not hold up those who seldom have.
    #[test]
    fn who_owes_least_is_next() {
        let (mut background, mut budgets, now) = (Background::default(), Budgets::default(), Instant::now());
        assert!(background.add(LATE, "a", terms(1), 1) && !background.add(LATE, "b", terms(2), 1));
        budgets.charge(Owner::Endpoint(1), terms(1).allowance, 2_000_000_000, now);
        budgets.charge(Owner::Endpoint(2), terms(2).allowance, 300_000_000, now);
        assert_eq!(background.next(LATE, &mut budgets, now), Some(("b".to_owned(), terms(2))));
        assert!(!background.add(LATE, "c", terms(3), 1), "the thread is there");
        assert!(!background.add(LATE, "a2", terms(1), 1));
        let mut order = Vec::new();
        while let Some((name, terms)) = background.next(LATE, &mut budgets, now) {
            budgets.charge(terms.owner, terms.allowance, 1_000_000_000, now);
            order.push(name);
            if order.len() == 2 {
                assert!(!background.add(LATE, "d", self::terms(4), 1));
            }
        }
        assert_eq!(order[0], "c");
        assert_eq!(order[2], "d", "{order:?}");
        assert!(background.add(LATE, "e", terms(1), 1), "the thread has ended");
        background.remove("e");
        assert_eq!(background.next(LATE, &mut budgets, now), None);
    }

    #[test]
    fn the_small_go_before_the_large_and_nothing_waits_twice() {
        let (mut background, mut budgets, now) = (Background::default(), Budgets::default(), Instant::now());
        assert!(background.add(Haste::Soon, "a", terms(1), 900));
        assert!(!background.add(Haste::Soon, "b", terms(2), 10));
        assert!(background.add(Haste::Late, "a", terms(1), 900), "another thread");
        assert!(!background.add(Haste::Late, "c", terms(3), 20));
        let name = |next: Option<(String, Terms)>| next.map(|(name, _)| name);
        assert_eq!(name(background.next(Haste::Soon, &mut budgets, now)).as_deref(), Some("b"));
        assert_eq!(background.next(Haste::Soon, &mut budgets, now), None);
        assert_eq!(name(background.next(Haste::Late, &mut budgets, now)).as_deref(), Some("c"), "both owe nothing");
        assert_eq!(name(background.next(Haste::Late, &mut budgets, now)).as_deref(), Some("a"));
    }
}
