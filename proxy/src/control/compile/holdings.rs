//! What compiled policies take of memory: whose it is, and how much more there is room for.
//!
//! A form that several policies share is there once. Each tenant that has it answers for all of it, since alone it would take as
//! much; so nobody's account depends on what others do. What was compiled and is not in force yet counts as if it were, beside what
//! it replaces.

use std::collections::{BTreeMap, HashMap};

use tollgate_policy::{Direction, EndpointPolicy, Form};

use super::budget::Owner;
use crate::tenant::{PoliciesChange, TenantId};

/// What the policies of any tenant may take, however little is left.
const LITTLE: usize = 1 << 20;

/// Of the memory of the process policies may take the part of one by so much.
const PART: u64 = 4;

/// All policies in force, and the forms of those that are on their way there.
#[derive(Debug, Default)]
pub(in crate::control) struct Holdings {
    /// Bytes for all together; `None` where memory has no end.
    most: Option<usize>,
    /// By resource name.
    policies: HashMap<String, Holding>,
    all: Held,
    owners: HashMap<Owner, Held>,
    /// Policies that deny for want of room: bytes that each direction needs which does.
    waiting: BTreeMap<String, [Option<usize>; 2]>,
}

/// One policy.
#[derive(Debug)]
struct Holding {
    owner: Owner,
    forms: [Form; 2],
    rules: usize,
    tenant: TenantId,
}

/// What one tenant has, or all have.
#[derive(Debug, Default)]
struct Held {
    in_force: Forms,
    /// Those in force, and those that were admitted and are not in force yet.
    taken: Forms,
}

/// Forms, each of which counts once however often it is used.
#[derive(Debug, Default)]
struct Forms {
    /// By id: how often it is used, and its bytes.
    uses: HashMap<u64, (usize, usize)>,
    bytes: usize,
}

/// What there is room for.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Bytes that the owner may have more.
    own: usize,
    /// Bytes that all together may have more.
    all: usize,
}

/// What was decided about the two forms of a policy.
#[derive(Debug)]
pub(super) struct Admission {
    /// Those that may come into force, until they are given back.
    pub(super) forms: Vec<Form>,
    /// Directions for which there is no room, and how much there is.
    pub(super) refused: Vec<(Direction, usize)>,
}

impl Forms {
    fn has(&self, form: Form) -> bool {
        self.uses.contains_key(&form.id)
    }

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

    /// Bytes that would be free if nobody had these for this one policy, which keeps some of them.
    fn only_for(&self, forms: &[Form; 2], kept: &[Form]) -> usize {
        let [one, other] = forms;
        let of = |form: &Form, uses: usize| {
            let known = self.uses.get(&form.id).filter(|known| known.0 == uses && !kept.contains(form));
            known.map_or(0, |known| known.1)
        };
        if one.id == other.id { of(one, 2) } else { of(one, 1) + of(other, 1) }
    }
}

impl Held {
    fn is_empty(&self) -> bool {
        self.taken.uses.is_empty()
    }
}

impl Room {
    /// Takes what `form` costs. `false`, and nothing is taken, where it does not fit.
    fn take(&mut self, own: usize, all: usize) -> bool {
        let left = self.own.checked_sub(own).zip(self.all.checked_sub(all));
        if let Some((own, all)) = left {
            *self = Self { own, all };
        }
        left.is_some()
    }

    fn least(self) -> usize {
        self.own.min(self.all)
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
        self.all.in_force.bytes
    }

    /// Bytes that the directions of this resource may take which are not among `known`, when its owner may have `most`.
    pub(super) fn room(&self, resource: &str, owner: Owner, most: usize, known: [Option<Form>; 2]) -> usize {
        let known: Vec<Form> = known.into_iter().flatten().collect();
        let mut room = self.room_beside(resource, owner, most, &known);
        for form in self.by_cost(&known) {
            self.take(&mut room, owner, form);
        }
        room.least()
    }

    /// Decides which forms of this resource may come into force, and reserves their bytes until they are
    /// [given back](Self::give_back).
    pub(super) fn admit(
        &mut self,
        resource: &str,
        owner: Owner,
        most: usize,
        [ingress, egress]: [Option<Form>; 2],
    ) -> Admission {
        let forms: Vec<Form> = [ingress, egress].into_iter().flatten().collect();
        let mut room = self.room_beside(resource, owner, most, &forms);
        let mut admission = Admission { forms: Vec::new(), refused: Vec::new() };
        for form in self.by_cost(&forms) {
            if self.take(&mut room, owner, form) {
                admission.forms.push(form);
                continue;
            }
            for (direction, own) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
                if own == Some(form) {
                    admission.refused.push((direction, room.least()));
                }
            }
        }
        for form in &admission.forms {
            self.all.taken.add(*form);
            self.owners.entry(owner).or_default().taken.add(*form);
        }
        admission
    }

    /// These forms, which were admitted, are in force, or will never be.
    pub(super) fn give_back(&mut self, owner: Owner, forms: &[Form]) {
        for form in forms {
            self.all.taken.remove(*form);
            self.owners.entry(owner).or_default().taken.remove(*form);
        }
        self.forget(owner);
    }

    /// What there is room for, once the forms of this resource are gone that are not among `kept`. Alone a tenant may have half of
    /// what there is for all, and who comes next half of what is left; what is replaced by no more is never refused.
    fn room_beside(&self, resource: &str, owner: Owner, most: usize, kept: &[Form]) -> Room {
        let before = self.policies.get(resource);
        let replaced = before.map_or(0, |before| self.all.taken.only_for(&before.forms, kept));
        let held = self.owners.get(&owner);
        let before = before.filter(|before| before.owner == owner);
        let own_replaced = before.and_then(|before| Some(held?.taken.only_for(&before.forms, kept))).unwrap_or(0);
        let own = held.map_or(0, |held| held.taken.bytes) - own_replaced;
        let all = self.all.taken.bytes - replaced;
        let of_all = self.most.map_or(usize::MAX, |most| {
            (most.saturating_sub(all).saturating_sub(own) / 2).max(LITTLE.saturating_sub(own))
        });
        Room { own: most.saturating_sub(own).max(own_replaced), all: of_all.max(replaced) }
    }

    /// Takes what the form would cost its owner, and all, beside what they have. `false` where it does not fit.
    fn take(&self, room: &mut Room, owner: Owner, form: Form) -> bool {
        let cost = |held: Option<&Held>| match held {
            Some(held) if held.taken.has(form) => 0,
            _ => form.bytes,
        };
        room.take(cost(self.owners.get(&owner)), cost(Some(&self.all)))
    }

    /// Each form once, those first that there are already.
    fn by_cost(&self, forms: &[Form]) -> Vec<Form> {
        let mut forms = forms.to_vec();
        forms.dedup();
        forms.sort_by_key(|form| !self.all.taken.has(*form));
        forms
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
            let held = self.owners.entry(owner).or_default();
            let before = held.in_force.bytes;
            let (forms, rules) = (policy.forms(), policy.rules_in_force());
            for held in [&mut *held, &mut self.all] {
                for form in forms {
                    held.in_force.add(form);
                    held.taken.add(form);
                }
            }
            changes.push(PoliciesChange {
                tenant,
                bytes: signed(held.in_force.bytes) - signed(before),
                rules: signed(rules),
            });
            if policy.without_room().is_some() {
                self.waiting.insert(policy.resource().to_owned(), policy.lacking());
            }
            self.policies.insert(policy.resource().to_owned(), Holding { owner, forms, rules, tenant });
        }
        changes
    }

    fn take_out(&mut self, resource: &str, changes: &mut Vec<PoliciesChange>) {
        self.waiting.remove(resource);
        let Some(Holding { owner, forms, rules, tenant }) = self.policies.remove(resource) else { return };
        let held = self.owners.entry(owner).or_default();
        let before = held.in_force.bytes;
        for held in [&mut *held, &mut self.all] {
            for form in forms {
                held.in_force.remove(form);
                held.taken.remove(form);
            }
        }
        changes.push(PoliciesChange {
            tenant,
            bytes: signed(held.in_force.bytes) - signed(before),
            rules: -signed(rules),
        });
        self.forget(owner);
    }

    fn forget(&mut self, owner: Owner) {
        if self.owners.get(&owner).is_some_and(Held::is_empty) {
            self.owners.remove(&owner);
        }
    }

    /// This policy goes on denying until it is another one, whatever room there is: compiling it is a defect's work.
    pub(super) fn give_up(&mut self, resource: &str) {
        self.waiting.remove(resource);
    }

    /// Policies that there may be room for by now, in one direction at least; `most` is what an owner may have.
    pub(super) fn fitting(&self, most: impl Fn(&str) -> Option<usize>) -> Vec<String> {
        let fits = |name: &str, needed: &[Option<usize>; 2]| {
            let (holding, most) = self.policies.get(name).zip(most(name))?;
            let kept = holding.forms.iter().zip(needed).filter(|(_, needed)| needed.is_none());
            let kept: Vec<Form> = kept.map(|(form, _)| *form).collect();
            let room = self.room_beside(name, holding.owner, most, &kept).least();
            needed.iter().flatten().any(|needed| *needed <= room).then_some(())
        };
        let names = self.waiting.iter().filter(|(name, needed)| fits(name, needed).is_some());
        names.map(|(name, _)| name.clone()).collect()
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
