//! What compiled policies take of memory: whose it is, and how much more there is room for.
//!
//! A form that several policies share is there once. Each tenant that has it answers for all of it, since alone it would take as
//! much; so nobody's account depends on what others do.

use std::collections::{BTreeMap, HashMap};

use tollgate_policy::{EndpointPolicy, Form};

use super::budget::Owner;
use crate::tenant::{PoliciesChange, TenantId};

/// What the policies of any tenant may take, however little is left.
const LITTLE: usize = 1 << 20;

/// Of the memory of the process policies may take the part of one by so much.
const PART: u64 = 4;

/// All policies in force.
#[derive(Debug, Default)]
pub(in crate::control) struct Holdings {
    /// Bytes for all together; `None` where memory has no end.
    most: Option<usize>,
    /// By resource name.
    policies: HashMap<String, Holding>,
    forms: Forms,
    owners: HashMap<Owner, Held>,
    /// Compiled and not in force yet, by resource name.
    reserved: HashMap<String, (Owner, usize)>,
    reserved_bytes: usize,
    /// Policies that deny for want of room, and what they need.
    waiting: BTreeMap<String, (Owner, usize)>,
}

/// One policy.
#[derive(Debug)]
struct Holding {
    owner: Owner,
    forms: [Form; 2],
    rules: usize,
    tenant: TenantId,
}

/// What one tenant has.
#[derive(Debug, Default)]
struct Held {
    forms: Forms,
    rules: usize,
    reserved: usize,
}

/// Forms, each of which counts once however often it is used.
#[derive(Debug, Default)]
struct Forms {
    /// By id: how often it is used, and its bytes.
    uses: HashMap<usize, (usize, usize)>,
    bytes: usize,
}

impl Forms {
    fn add(&mut self, form: Form) {
        let known = self.uses.entry(form.id).or_insert((0, form.bytes));
        known.0 += 1;
        if known.0 == 1 {
            self.bytes += form.bytes;
        }
    }

    fn remove(&mut self, form: Form) {
        if let Some(known) = self.uses.get_mut(&form.id) {
            known.0 -= 1;
            if known.0 == 0 {
                self.uses.remove(&form.id);
                self.bytes -= form.bytes;
            }
        }
    }

    /// Bytes that would be free if nobody had these for this one policy.
    fn only_for(&self, forms: &[Form; 2]) -> usize {
        let [one, other] = forms;
        let of = |form: &Form, uses: usize| {
            self.uses.get(&form.id).filter(|known| known.0 == uses).map_or(0, |known| known.1)
        };
        if one.id == other.id { of(one, 2) } else { of(one, 1) + of(other, 1) }
    }
}

impl Holdings {
    /// The process may have so many bytes.
    pub(in crate::control) fn share_of(&mut self, memory: Option<u64>) {
        self.most = memory.map(|bytes| usize::try_from(bytes / PART).unwrap_or(usize::MAX));
    }

    /// Bytes for all together, if there is an end.
    pub(in crate::control) const fn most(&self) -> Option<usize> {
        self.most
    }

    /// Bytes that all take together.
    pub(in crate::control) const fn bytes(&self) -> usize {
        self.forms.bytes
    }

    /// Bytes that the policy of this resource may take, when its owner may have `most`. Alone a tenant may have half of what there
    /// is for all, and who comes next half of what is left; what is replaced by no more is never refused.
    pub(super) fn room(&self, resource: &str, owner: Owner, most: usize) -> usize {
        let before = self.policies.get(resource);
        let replaced = before.map_or(0, |before| self.forms.only_for(&before.forms));
        let held = self.owners.get(&owner);
        let own = held.map_or(0, |held| held.forms.bytes + held.reserved);
        let before = before.filter(|before| before.owner == owner);
        let own_replaced = before.and_then(|before| Some(held?.forms.only_for(&before.forms))).unwrap_or(0);
        let own = own - own_replaced;
        let all = (self.forms.bytes + self.reserved_bytes).saturating_sub(replaced);
        let of_all = self.most.map_or(usize::MAX, |most| {
            (most.saturating_sub(all).saturating_sub(own) / 2).max(LITTLE.saturating_sub(own))
        });
        most.saturating_sub(own).min(of_all).max(own_replaced)
    }

    /// Notes that so much was compiled for this resource, which is not in force yet.
    pub(super) fn reserve(&mut self, resource: &str, owner: Owner, bytes: usize) {
        self.release(resource);
        self.reserved.insert(resource.to_owned(), (owner, bytes));
        self.reserved_bytes += bytes;
        self.owners.entry(owner).or_default().reserved += bytes;
    }

    /// It is in force, or will never be.
    pub(super) fn release(&mut self, resource: &str) {
        if let Some((owner, bytes)) = self.reserved.remove(resource) {
            self.reserved_bytes -= bytes;
            self.owners.entry(owner).or_default().reserved -= bytes;
            self.forget(owner);
        }
    }

    /// Takes over what has changed: `gone` policies, and those that have `come`, with whose they are. Returns what that is for
    /// tenants.
    pub(super) fn follow<'p>(
        &mut self,
        gone: impl IntoIterator<Item = &'p EndpointPolicy>,
        come: impl IntoIterator<Item = (&'p EndpointPolicy, Owner, TenantId)>,
    ) -> Vec<PoliciesChange> {
        let mut changes = Vec::new();
        for policy in gone {
            self.take_out(policy.resource(), &mut changes);
        }
        for (policy, owner, tenant) in come {
            self.take_out(policy.resource(), &mut changes);
            self.release(policy.resource());
            let held = self.owners.entry(owner).or_default();
            let before = held.forms.bytes;
            let (forms, rules) = (policy.forms(), policy.rule_count());
            for form in forms {
                held.forms.add(form);
                self.forms.add(form);
            }
            held.rules += rules;
            changes.push(PoliciesChange {
                tenant,
                bytes: signed(held.forms.bytes) - signed(before),
                rules: signed(rules),
            });
            if let Some(needed) = policy.without_room() {
                self.waiting.insert(policy.resource().to_owned(), (owner, needed));
            }
            self.policies.insert(policy.resource().to_owned(), Holding { owner, forms, rules, tenant });
        }
        changes
    }

    fn take_out(&mut self, resource: &str, changes: &mut Vec<PoliciesChange>) {
        self.waiting.remove(resource);
        let Some(Holding { owner, forms, rules, tenant }) = self.policies.remove(resource) else { return };
        let held = self.owners.entry(owner).or_default();
        let before = held.forms.bytes;
        for form in forms {
            held.forms.remove(form);
            self.forms.remove(form);
        }
        held.rules -= rules;
        changes.push(PoliciesChange {
            tenant,
            bytes: signed(held.forms.bytes) - signed(before),
            rules: -signed(rules),
        });
        self.forget(owner);
    }

    fn forget(&mut self, owner: Owner) {
        if self.owners.get(&owner).is_some_and(|held| held.forms.uses.is_empty() && held.reserved == 0) {
            self.owners.remove(&owner);
        }
    }

    /// Policies that there may be room for by now; `most` is what an owner may have.
    pub(super) fn fitting(&self, most: impl Fn(&str) -> Option<usize>) -> Vec<String> {
        let fits = |name: &str, owner: Owner, needed: usize| {
            most(name).is_some_and(|most| needed <= self.room(name, owner, most))
        };
        let names = self.waiting.iter().filter(|(name, (owner, needed))| fits(name, *owner, *needed));
        names.map(|(name, _)| name.clone()).collect()
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use tollgate_policy::{EndpointKey, NetworkPolicy, PortPolicy, PortRule, Snapshot};

    use super::*;

    const MIB: usize = 1 << 20;

    fn owner(endpoint: u64) -> Owner {
        Owner::Endpoint(endpoint)
    }

    /// Policies of endpoints, each with as many rules as its second number says.
    fn snapshot(policies: &[(u64, u32)]) -> Snapshot {
        let mut builder = Snapshot::empty().update();
        for (endpoint, rules) in policies {
            let rule = |i| PortRule { remotes: vec![i], ..PortRule::default() };
            let ingress =
                vec![PortPolicy { port: 80, rules: (1..=*rules).map(rule).collect(), ..PortPolicy::default() }];
            let endpoints = vec![EndpointKey::parse(&format!("10.0.0.{endpoint}"))];
            builder.upsert(
                &endpoint.to_string(),
                NetworkPolicy { endpoint_id: *endpoint, endpoints, ingress, egress: Vec::new() },
            );
        }
        builder.build()
    }

    fn follow(holdings: &mut Holdings, before: &Snapshot, after: &Snapshot) -> Vec<PoliciesChange> {
        let (gone, come) = after.changes_since(before);
        holdings.follow(gone, come.into_iter().map(|p| (p, owner(p.endpoint_id()), TenantId::UNKNOWN)))
    }

    #[test]
    fn what_is_shared_is_there_once_and_on_the_account_of_each() {
        let mut holdings = Holdings::default();
        let (one, both) = (snapshot(&[(1, 500)]), snapshot(&[(1, 500), (2, 500), (3, 10)]));
        let none = Snapshot::empty();
        let changes = follow(&mut holdings, &none, &one);
        let alone = holdings.bytes();
        assert_eq!(changes, [PoliciesChange { tenant: TenantId::UNKNOWN, bytes: signed(alone), rules: 500 }]);
        holdings = Holdings::default();
        follow(&mut holdings, &none, &both);
        let held = |endpoint| holdings.owners[&owner(endpoint)].forms.bytes;
        assert_eq!((held(1), held(2)), (alone, alone));
        assert!(holdings.bytes() < alone + held(3), "the direction without rules is shared, too");
        let changes = follow(&mut holdings, &both, &none);
        assert_eq!(changes.iter().map(|change| change.rules).sum::<i64>(), -1010);
        assert!(holdings.bytes() == 0 && holdings.owners.is_empty() && holdings.policies.is_empty());
    }

    #[test]
    fn alone_half_and_there_is_room_for_who_comes() {
        let mut holdings = Holdings::default();
        assert_eq!(holdings.room("1", owner(1), 64 * MIB), 64 * MIB);
        holdings.share_of(Some(256 * MIB as u64));
        assert_eq!(holdings.room("1", owner(1), 64 * MIB), 32 * MIB);
        assert_eq!(holdings.room("1", owner(1), 5 * MIB), 5 * MIB);
        holdings.reserve("1", owner(1), 32 * MIB);
        assert_eq!(holdings.room("1b", owner(1), 64 * MIB), 0);
        assert_eq!(holdings.room("2", owner(2), 64 * MIB), 16 * MIB);
        holdings.reserve("2", owner(2), 32 * MIB);
        assert_eq!(holdings.room("3", owner(3), 64 * MIB), LITTLE, "a little is everybody's");
        holdings.release("1");
        assert_eq!(holdings.room("3", owner(3), 64 * MIB), 16 * MIB);
    }

    #[test]
    fn what_is_replaced_by_no_more_fits() {
        let mut holdings = Holdings::default();
        let (none, one) = (Snapshot::empty(), snapshot(&[(1, 5000)]));
        follow(&mut holdings, &none, &one);
        let bytes = holdings.bytes();
        holdings.share_of(Some(4));
        assert!(bytes > LITTLE / 4, "{bytes}");
        assert!(holdings.room("1", owner(1), 0) >= bytes - 1000, "{bytes}");
        assert_eq!(holdings.room("1b", owner(1), 0), 0);
    }
}
