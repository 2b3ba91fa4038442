//! Groups from files and control planes: whose claim to a name or a member counts, and what counts of a group that is not right
//! as a whole.
//!
//! A mistake in one group takes nobody else's limits away, and of its own no more than what is wrong.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::group::{Claims, Group, GroupError, Member};
use super::{Ceilings, Settings};

/// Of entries with the same members, so many are looked at to find out what one that is new was called before.
const SAME_MEMBERS: usize = 16;

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

/// Who has claimed what for how long, counted in deliveries. Who has a member keeps it while it claims it, also under another name.
/// Of claims that began in the same delivery the strictest counts ([`is_stricter`]), or else the first, and takes over the lower
/// ceilings of the others: a mistake must not free anybody of limits.
#[derive(Debug, Default)]
pub(super) struct Seniority {
    deliveries: u64,
    /// What made sense by itself in the last delivery, with where it came from.
    entries: Vec<(String, Group)>,
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
        self.follow_names(&candidates);
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

    /// Has claims of entries that are called otherwise now count as theirs: the old name is gone, and an entry with the same members is
    /// there under a new one, in the same place or with the same settings.
    fn follow_names(&mut self, candidates: &[Candidate<'_>]) {
        let present: HashSet<&str> = candidates.iter().map(|candidate| &*candidate.group.name).collect();
        let known: HashSet<&str> = self.entries.iter().map(|(_, group)| &*group.name).collect();
        // By their members: a control plane may call thousands otherwise at once.
        let mut gone: HashMap<BTreeSet<Member>, Vec<&(String, Group)>> = HashMap::new();
        for entry in self.entries.iter().filter(|(_, group)| !present.contains(&*group.name)) {
            gone.entry(members_of(&entry.1)).or_default().push(entry);
        }
        for Candidate { origin, group, .. } in candidates.iter().filter(|new| !known.contains(&*new.group.name)) {
            let same_members = gone.get(&members_of(group)).into_iter().flatten().take(SAME_MEMBERS);
            let is_former = |(place, former): &&&(String, Group)| place == origin || former.settings == group.settings;
            let Some((_, former)) = same_members.copied().find(|entry| is_former(&entry)) else { continue };
            for member in &group.members {
                if let Some(since) = self.members.get(&(Arc::clone(&former.name), *member)).copied() {
                    self.members.insert((Arc::clone(&group.name), *member), since);
                }
            }
            if let Some(since) = self.names.get(&former.name).map(|(_, since)| *since) {
                self.names.insert(Arc::clone(&group.name), ((*origin).to_owned(), since));
            }
        }
        self.entries = candidates.iter().map(|new| (new.origin.to_owned(), new.group.clone())).collect();
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
    fn by_member(&self, candidates: &[Candidate<'_>], claims: &Claims) -> Owners {
        let mut claimants: HashMap<Member, Vec<usize>> = HashMap::new();
        for (at, Candidate { group, .. }) in candidates.iter().enumerate() {
            for member in group.members.iter().filter(|member| claims.owner(member).is_none()) {
                claimants.entry(*member).or_default().push(at);
            }
        }
        let mut owners = Owners::default();
        for (member, claimants) in claimants {
            let since = |at: usize| {
                self.members.get(&(Arc::clone(&candidates[at].group.name), member)).copied().unwrap_or(self.deliveries)
            };
            let settings = |at: usize| &candidates[at].group.settings;
            let owner = claimants.iter().copied().reduce(|holder, challenger| {
                let (began, before) = (since(challenger), since(holder));
                let wins = began < before || (began == before && is_stricter(settings(challenger), settings(holder)));
                if wins { challenger } else { holder }
            });
            let Some(owner) = owner else { continue };
            owners.of.insert(member, owner);
            let rivals = claimants.into_iter().filter(|at| *at != owner && since(*at) == since(owner));
            owners.rivals.extend(rivals.map(|rival| (owner, member, rival)));
        }
        owners.rivals.sort_unstable();
        owners
    }

    /// Which candidate has each name: the first that has any member.
    fn by_name(&self, candidates: &[Candidate<'_>], claims: &Claims) -> HashMap<Arc<str>, usize> {
        let owners = self.by_member(candidates, claims);
        let mut names = HashMap::new();
        for with_members in [true, false] {
            for (at, Candidate { group, .. }) in candidates.iter().enumerate() {
                if !with_members || group.members.iter().any(|member| owners.of.get(member) == Some(&at)) {
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
                candidate.group.members.iter().partition(|member| owners.of.get(member) == Some(&at));
            if let Some(&member) = lost.first() {
                let owner = owners
                    .of
                    .get(&member)
                    .map(|&owner| &candidates[owner].group.name)
                    .or_else(|| claims.owner(&member));
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
            for (_, member, rival) in owners.rivals.iter().filter(|(owner, ..)| *owner == at) {
                let rival = candidates[*rival].group;
                let lower = lower_of(&group.settings, &rival.settings);
                if lower != group.settings.ceilings {
                    group.settings.ceilings = lower;
                    let (member, rival) = (*member, Arc::clone(&rival.name));
                    refuse(GroupError::Lowered { member, rival }.to_string(), false);
                }
            }
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

/// Who has the members that candidates name; all by their places among these.
#[derive(Debug, Default)]
struct Owners {
    of: HashMap<Member, usize>,
    /// An owner, a member of it, and another that began to claim that in the same delivery.
    rivals: Vec<(usize, Member, usize)>,
}

fn members_of(group: &Group) -> BTreeSet<Member> {
    group.members.iter().copied().collect()
}

/// The ceilings of `owner`, no higher than those of a rival. Who is in shadow has none.
fn lower_of(owner: &Settings, rival: &Settings) -> Ceilings {
    match rival.shadow {
        true => owner.ceilings.clone(),
        false => owner.ceilings.lower_of(&rival.ceilings),
    }
}

/// Whether `one` allows less: it is not in shadow as `other` is, or it is lower in more ceilings than `other` is.
fn is_stricter(one: &Settings, other: &Settings) -> bool {
    if one.shadow || other.shadow {
        return !one.shadow;
    }
    let ceilings = |settings: &Settings| serde_json::to_value(&settings.ceilings).unwrap_or_default();
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
