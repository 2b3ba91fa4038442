//! In which order the policies of an update are compiled: first what is cheap, whosesoever it is, then for one tenant after the
//! other. So neither how many policies a tenant has in an update nor how much work is in a small one pushes others out of it.
//!
//! Until the first policies of a process are in force, connections wait for them. So what is compiled of these comes into force
//! bit by bit, and an endpoint waits for its own.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use tollgate_policy::{EndpointKey, NetworkPolicy};

use super::budget::{OF_EACH, Owner};
use super::turns::{Turn, Turns};
use super::{LARGE, TOGETHER, Terms, Update, builder};
use crate::control::Control;
use crate::control::claims::{addresses, keys, shared};
use crate::control::policies::{Judged, Received, RefusedResource, set_unknown_fields_aside};
use crate::tenant::Table;

/// What has come of the first policies, and has not.
#[derive(Debug, Default)]
pub(in crate::control) struct First {
    /// Addresses of endpoints whose policy is not in force yet.
    coming: HashSet<IpAddr>,
    /// What has been compiled since something came into force, and how long that took in nanoseconds.
    compiled: usize,
    took: u64,
}

/// A policy of an update.
#[derive(Debug)]
struct Item {
    received: Received,
    terms: Terms,
    /// Once it was read.
    model: Option<NetworkPolicy>,
    /// Why that allows nothing, where it is unusable.
    refused: Option<RefusedResource>,
    /// Nanoseconds until now.
    took: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Cheap,
    All,
}

impl First {
    pub(in crate::control) fn of(changed: &[Received]) -> Self {
        let coming = changed.iter().flat_map(|received| addresses(&received.policy)).collect();
        Self { coming, compiled: 0, took: 0 }
    }
}

impl Control {
    /// Compiles the policies of an update. Returns what became of each.
    pub(in crate::control) fn compile_all(
        self: &Arc<Self>,
        update: &mut Update,
        changed: Vec<Received>,
        tenants: &Table,
    ) -> Vec<Judged> {
        let mut judged = Vec::with_capacity(changed.len());
        // All who claim an address have to allow: so none of them comes into force before the others.
        let shared = if update.first.is_some() { shared(&changed) } else { HashSet::new() };
        let is_shared = |item: &Item| keys(&item.received.policy).any(|key| shared.contains(&key));
        let (mut together, alone): (Vec<Item>, Vec<Item>) =
            changed.into_iter().map(|received| Item::new(received, tenants)).partition(is_shared);
        let mut turns = Turns::new();
        turns.add(alone.into_iter().map(Item::in_line));
        for round in [Round::Cheap, Round::All] {
            let share = update.wait.share(turns.owners());
            let mut left_over = Vec::new();
            while let Some(Turn { place, used, size, policy: item }) = turns.next() {
                let most = match round {
                    Round::Cheap if size > LARGE => None,
                    Round::Cheap => Some(share.saturating_sub(used).max(OF_EACH)),
                    Round::All => Some(u64::MAX),
                };
                let (spent, done) = match most {
                    Some(most) => self.compile_item(update, item, most),
                    None => (0, Err(item)),
                };
                turns.spent(place, spent);
                match done {
                    Ok(one) => judged.push(one),
                    Err(item) => left_over.push(item),
                }
                if update.first.as_ref().is_some_and(|first| first.took >= TOGETHER) {
                    self.put_what_there_is(update);
                }
            }
            if !left_over.is_empty() || !together.is_empty() {
                self.put_what_there_is(update);
            }
            turns.add(left_over.into_iter().map(Item::in_line));
        }
        together.sort_by_cached_key(|item| item.received.bytes());
        judged.extend(together.into_iter().filter_map(|item| self.compile_item(update, item, u64::MAX).1.ok()));
        judged
    }

    /// Compiles one within `most` nanoseconds of effort. Returns what that took of it, and what came of it: the policy where there is
    /// more to be had.
    fn compile_item(self: &Arc<Self>, update: &mut Update, mut item: Item, most: u64) -> (u64, Result<Judged, Item>) {
        let (mut spent, mut compiled) = (0, None);
        match item.model.take().or_else(|| item.read()) {
            Some(model) => {
                let mut attempt = self.attempt(update, &item.received.name, model, item.terms, most);
                spent = attempt.used;
                if let Some(first) = &mut update.first {
                    first.took += attempt.took;
                }
                if attempt.draft.is_unfinished() && attempt.had_less {
                    item.took += attempt.took;
                    item.model = Some(attempt.draft.source());
                    return (spent, Err(item));
                }
                attempt.took += item.took;
                compiled = Some(self.conclude(update, &item.received.name, attempt));
            }
            None => update.builder.set_aside(&item.received.name),
        }
        if let Some(first) = &mut update.first {
            first.compiled += 1;
            addresses(&item.received.policy).for_each(|address| _ = first.coming.remove(&address));
        }
        let Item { received: Received { name, policy, place, .. }, refused, .. } = item;
        (spent, Ok(Judged { name, policy, place, refused, compiled }))
    }

    /// Puts in force what there is of the first policies of the process.
    fn put_what_there_is(self: &Arc<Self>, update: &mut Update) {
        let Some(first) = update.first.as_mut().filter(|first| first.compiled > 0) else { return };
        (first.compiled, first.took) = (0, 0);
        let next = self.store().load().policy.update();
        let snapshot = std::mem::replace(&mut update.builder, next).build();
        self.publish_some(snapshot, first.coming.clone());
        update.reserved.clear();
        update.builder = builder(&self.store().load().policy, update.order);
    }
}

impl Item {
    fn new(received: Received, tenants: &Table) -> Self {
        let keys: Vec<EndpointKey> = keys(&received.policy).collect();
        let terms = Terms::of_endpoint(received.policy.endpoint_id, keys.iter(), tenants);
        Self { received, terms, model: None, refused: None, took: 0 }
    }

    fn in_line(self) -> (Owner, usize, Self) {
        (self.terms.owner, self.received.bytes(), self)
    }

    /// The policy as it is to be enforced: one that is unusable denies for what it claims. `None` when there is nothing to enforce it on.
    fn read(&mut self) -> Option<NetworkPolicy> {
        let Received { policy, partly_read, place, .. } = &self.received;
        match NetworkPolicy::try_from(&**policy) {
            Ok(mut model) => {
                if let Some(bytes) = partly_read {
                    set_unknown_fields_aside(&mut model, bytes);
                }
                Some(model)
            }
            Err(error) => {
                let reason = place.as_ref().map_or_else(|| error.to_string(), |place| format!("{place}: {error}"));
                self.refused = Some(RefusedResource { name: policy.endpoint_id.to_string(), reason });
                NetworkPolicy::denying(policy)
            }
        }
    }
}
