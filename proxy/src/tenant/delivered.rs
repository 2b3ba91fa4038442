//! Groups from files and control planes: whose claim to a name or a member counts, and what counts of a group that is not right
//! as a whole.
//!
//! A mistake in one group takes nobody else's limits away, and of its own no more than what is wrong.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::Settings;
use super::group::{Claims, Group, GroupError, Member};

/// Who says that there is a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Name of the resource, or the file and line: where to look for a mistake.
    pub origin: String,
    /// The group, or why there is none.
    pub group: Result<Group, String>,
    /// What was said of the group and makes no sense.
    pub left_out: Vec<String>,
}

/// A group, or a part of one, that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedGroup {
    /// Where it comes from.
    pub origin: String,
    /// What is wrong with it.
    pub reason: String,
    /// All of it is set aside: it groups nobody. Otherwise only what the reason names has no effect.
    pub whole: bool,
}

impl RefusedGroup {
    pub(super) fn whole(origin: String, reason: String) -> Self {
        Self { origin, reason, whole: true }
    }

    pub(super) fn part(origin: String, reason: String) -> Self {
        Self { origin, reason, whole: false }
    }
}

/// Who has claimed what for how long, counted in deliveries. Who has a member keeps it while it claims it. Of claims that began in the same
/// delivery the strictest counts ([`is_stricter`]), or else the first: a mistake must not free anybody of limits.
#[derive(Debug, Default)]
pub(super) struct Seniority {
    deliveries: u64,
    /// Since when the tenant of this name claims this member.
    members: HashMap<(Arc<str>, Member), u64>,
    /// Where the tenant of this name comes from, and since when it is in force.
    names: HashMap<Arc<str>, (String, u64)>,
}

/// A group that makes sense by itself.
#[derive(Clone, Copy)]
struct Candidate<'d> {
    /// In the delivery.
    index: usize,
    origin: &'d str,
    group: &'d Group,
}

impl Seniority {
    /// What counts of `delivered`, beside what `claims` are there already, and what does not.
    pub(super) fn settle(&mut self, delivered: &[Delivered], claims: &mut Claims) -> (Vec<Group>, Vec<RefusedGroup>) {
        self.deliveries += 1;
        let mut refused: Vec<(usize, RefusedGroup)> = Vec::new();
        let mut candidates = Vec::with_capacity(delivered.len());
        for (index, Delivered { origin, group, left_out }) in delivered.iter().enumerate() {
            let part = |reason: &String| RefusedGroup::part(origin.clone(), reason.clone());
            match group {
                Ok(group) if claims.has_name(&group.name) => {
                    let reason = GroupError::NameTaken(Arc::clone(&group.name)).to_string();
                    refused.push((index, RefusedGroup::whole(origin.clone(), reason)));
                }
                Ok(group) => {
                    refused.extend(left_out.iter().map(|reason| (index, part(reason))));
                    candidates.push(Candidate { index, origin, group });
                }
                Err(reason) => refused.push((index, RefusedGroup::whole(origin.clone(), reason.clone()))),
            }
        }
        // Also what guarantees and places for groups there are is for those who have been here longest.
        candidates.sort_by_key(|candidate| (self.in_force_since(candidate), candidate.index));
        self.note_claims(&candidates);
        let named = self.by_name(&candidates, claims);
        let (candidates, unnamed): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .enumerate()
            .partition(|(at, candidate)| named.get(&candidate.group.name) == Some(at));
        let candidates: Vec<Candidate<'_>> = candidates.into_iter().map(|(_, candidate)| candidate).collect();
        for (_, Candidate { index, origin, group }) in unnamed {
            let reason = GroupError::NameTaken(Arc::clone(&group.name)).to_string();
            refused.push((index, RefusedGroup::whole(origin.to_owned(), reason)));
        }
        let mut taken = self.take(&candidates, claims, &mut refused);
        let names = taken.iter().map(|(candidate, group)| {
            let since = self.in_force_since(candidate);
            (Arc::clone(&group.name), (candidate.origin.to_owned(), since))
        });
        self.names = names.collect();
        taken.sort_by_key(|(candidate, _)| candidate.index);
        refused.sort_by_key(|(index, _)| *index);
        (taken.into_iter().map(|(_, group)| group).collect(), refused.into_iter().map(|(_, refused)| refused).collect())
    }

    /// The delivery since which this candidate is in force; the present one where it is not.
    fn in_force_since(&self, candidate: &Candidate<'_>) -> u64 {
        let known = self.names.get(&candidate.group.name).filter(|(origin, _)| origin == candidate.origin);
        known.map_or(self.deliveries, |(_, since)| *since)
    }

    fn note_claims(&mut self, candidates: &[Candidate<'_>]) {
        let claims = candidates.iter().flat_map(|Candidate { group, .. }| {
            group.members.iter().map(move |member| (Arc::clone(&group.name), *member))
        });
        let (before, now) = (&self.members, self.deliveries);
        let members = claims.map(|claim| {
            let since = before.get(&claim).copied().unwrap_or(now);
            (claim, since)
        });
        self.members = members.collect();
    }

    /// Which candidate has each member that the configuration leaves to them.
    fn by_member(&self, candidates: &[Candidate<'_>], claims: &Claims) -> HashMap<Member, usize> {
        let mut owners: HashMap<Member, usize> = HashMap::new();
        let since = |at: usize, member: Member| {
            self.members.get(&(Arc::clone(&candidates[at].group.name), member)).copied().unwrap_or(self.deliveries)
        };
        for (at, Candidate { group, .. }) in candidates.iter().enumerate() {
            for member in group.members.iter().filter(|member| claims.owner(member).is_none()) {
                let owner = owners.entry(*member).or_insert(at);
                let (challenger, holder) = (since(at, *member), since(*owner, *member));
                let stricter = || is_stricter(&group.settings, &candidates[*owner].group.settings);
                if *owner != at && (challenger < holder || (challenger == holder && stricter())) {
                    *owner = at;
                }
            }
        }
        owners
    }

    /// Which candidate has each name: the first that has any member.
    fn by_name(&self, candidates: &[Candidate<'_>], claims: &Claims) -> HashMap<Arc<str>, usize> {
        let owners = self.by_member(candidates, claims);
        let mut names = HashMap::new();
        for with_members in [true, false] {
            for (at, Candidate { group, .. }) in candidates.iter().enumerate() {
                if !with_members || group.members.iter().any(|member| owners.get(member) == Some(&at)) {
                    names.entry(Arc::clone(&group.name)).or_insert(at);
                }
            }
        }
        names
    }

    /// The groups that candidates of different names come to.
    fn take<'d>(
        &self,
        candidates: &[Candidate<'d>],
        claims: &mut Claims,
        refused: &mut Vec<(usize, RefusedGroup)>,
    ) -> Vec<(Candidate<'d>, Group)> {
        let owners = self.by_member(candidates, claims);
        let mut groups = Vec::with_capacity(candidates.len());
        for (at, candidate) in candidates.iter().enumerate() {
            let mut refuse = |reason: String, whole| {
                refused.push((candidate.index, RefusedGroup { origin: candidate.origin.to_owned(), reason, whole }));
            };
            let (members, lost): (Vec<Member>, Vec<Member>) =
                candidate.group.members.iter().partition(|member| owners.get(member) == Some(&at));
            if let Some(&member) = lost.first() {
                let owner =
                    owners.get(&member).map(|&owner| &candidates[owner].group.name).or_else(|| claims.owner(&member));
                let owner = Arc::clone(owner.unwrap_or(&candidate.group.name));
                let others = match lost.len() {
                    1 => String::new(),
                    count => format!(" (and {} more members)", count - 1),
                };
                refuse(format!("{}{others}", GroupError::MemberTaken { member, owner }), members.is_empty());
            }
            if members.is_empty() {
                continue;
            }
            let mut group = Group { members, ..candidate.group.clone() };
            match claims.take(&mut group) {
                Ok(left_out) => {
                    left_out.iter().for_each(|error| refuse(error.to_string(), false));
                    groups.push((*candidate, group));
                }
                Err(error) => refuse(error.to_string(), true),
            }
        }
        groups
    }
}

/// Whether `one` allows less: it is lower in more ceilings than `other` is. Who is in shadow has none.
fn is_stricter(one: &Settings, other: &Settings) -> bool {
    let ceilings = |settings: &Settings| match settings.shadow {
        true => Value::Null,
        false => serde_json::to_value(&settings.ceilings).unwrap_or_default(),
    };
    let (one, other) = (ceilings(one), ceilings(other));
    let names: BTreeSet<&String> =
        [&one, &other].into_iter().filter_map(Value::as_object).flat_map(|all| all.keys()).collect();
    let of = |ceilings: &Value, name: &str| {
        let ceiling = ceilings.get(name)?;
        ceiling.as_u64().or_else(|| ceiling.get("per_second")?.as_u64())
    };
    let lower = |one: &Value, other: &Value| {
        let lower = |name: &&&String| of(one, name).unwrap_or(u64::MAX) < of(other, name).unwrap_or(u64::MAX);
        names.iter().filter(lower).count()
    };
    lower(&one, &other) > lower(&other, &one)
}
