//! Tenants of files: what of one makes no sense, and those that want the same, a name or a member, of several files or of a file
//! and the configuration.

use std::collections::HashMap;

use super::Reported;
use super::input::Place;
use super::rules::FileRule;
use crate::config::TenantsConfigured;
use crate::tenant::{Claims, Group, GroupError, Member};

/// What is wrong with a tenant, or with a part of it.
pub(super) fn mistake(place: &Place, rule: FileRule, error: &GroupError) -> Reported {
    let error = error.to_string();
    let (field, what) = error.split_once(": ").unwrap_or(("members", &error));
    let (what, instead) = what.split_once("; ").unwrap_or((what, "write a value in its range"));
    // Files write times and sizes as numbers, and have other names for them.
    let field = match field {
        "guarantee.memory" => "guarantee.memory_bytes",
        "guarantee.cpu" => "guarantee.cpu_millis",
        field => field,
    };
    place.report(rule, field, what.to_owned(), instead)
}

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
                report(place, "name", other, what, "choose another name, or write one tenant with the members of both");
            }
            None => drop(names.insert(&group.name, place)),
        }
        for member in &group.members {
            let (other, owner) = *members.entry(*member).or_insert((place, group));
            if !std::ptr::eq(owner, &tenants[index].1) {
                let what = format!("{member} is a member of tenant \"{}\", too", owner.name);
                report(place, "members", other, what, "name it in one of them");
            }
        }
    }
    findings
}

/// What the proxy with this configuration would not take of these tenants.
pub(super) fn beside(configured: &TenantsConfigured, tenants: &[(Place, Group)]) -> Vec<Reported> {
    let TenantsConfigured { tenants: config, pools } = configured;
    let (mut claims, mut findings) = (Claims::within(*pools), Vec::new());
    let mut members: HashMap<Member, &str> = HashMap::new();
    for group in &config.groups {
        members.extend(group.members.iter().map(|member| (*member, &*group.name)));
        // What is wrong with the configuration is said by `tollgate run --check`.
        let _ = claims.take(&mut group.clone());
    }
    for (place, group) in tenants {
        if config.groups.iter().any(|configured| configured.name == group.name) {
            let what = format!("the configuration has a tenant \"{}\", which keeps its name", group.name);
            findings.push(place.report(FileRule::UnusableTenant, "name", what, "choose another name"));
            continue;
        }
        for (member, owner) in group.members.iter().filter_map(|member| Some((member, members.get(member)?))) {
            let what = format!("{member} is a member of tenant \"{owner}\" in the configuration, which keeps it");
            findings.push(place.report(FileRule::ContestedTenant, "members", what, "name it in one of them"));
        }
        let mut group = group.clone();
        group.members.retain(|member| claims.owner(member).is_none());
        for error in claims.take(&mut group).unwrap_or_default() {
            findings.push(mistake(place, FileRule::TenantInPart, &error));
        }
        for problem in group.without_effect(*pools) {
            let (what, instead) = problem.split_once("; ").unwrap_or((&problem, "leave it out"));
            findings.push(place.report(FileRule::TenantInPart, "", what.to_owned(), instead));
        }
    }
    findings
}
