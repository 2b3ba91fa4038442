//! Tenants of several files that want the same: a name, or a member.

use std::collections::HashMap;

use super::Reported;
use super::input::Place;
use super::rules::FileRule;
use crate::tenant::{Group, Member};

/// What more than one of these tenants claims, at the place of the later one.
pub(super) fn contested(tenants: &[(Place, Group)]) -> Vec<Reported> {
    let mut names: HashMap<&str, &Place> = HashMap::new();
    let mut members: HashMap<Member, (&Place, &Group)> = HashMap::new();
    let mut findings = Vec::new();
    let mut report = |place: &Place, path: &str, other: &Place, what: String, instead: &str| {
        let because_of = Some(other.locate(path));
        findings.push(Reported { because_of, ..place.report(FileRule::ContestedTenant, path, what, instead) });
    };
    for (index, (place, group)) in tenants.iter().enumerate() {
        match names.get(&*group.name) {
            Some(other) => {
                let what = format!("another tenant is called \"{}\", too", group.name);
                report(place, "name", other, what, "another name, or one tenant with the members of both");
            }
            None => drop(names.insert(&group.name, place)),
        }
        for member in &group.members {
            let (other, owner) = *members.entry(*member).or_insert((place, group));
            if !std::ptr::eq(owner, &tenants[index].1) {
                let what = format!("{member} is a member of tenant \"{}\", too", owner.name);
                report(place, "members", other, what, "it in one of them");
            }
        }
    }
    findings
}
