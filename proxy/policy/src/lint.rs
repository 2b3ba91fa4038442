//! What is probably not meant the way it is written: rules that never decide, patterns that match other values than
//! their author had in mind, and everything that will not be enforced as written.
//!
//! Works on [`crate::model`] alone and knows no files: a finding names its element by path. It claims only what it can
//! show. That a rule never decides is said when another rule provably decides everything first; that a pattern misses or
//! catches a value is said with a value that was tried.

mod address;
mod alternatives;
mod below;
mod cells;
mod condition;
mod cover;
mod finding;
mod host;
mod lookup;
mod method;
mod path;
mod probe;
mod quarantined;
mod reach;
mod regex_text;
mod secret;
mod server_name;
mod set;
mod shape;
#[cfg(test)]
mod tests;
mod text;

pub use finding::{Element, Finding, Lint, Severity};

use self::alternatives::Alternatives;
use self::condition::Condition;
use self::probe::Probes;
use crate::model::{HeaderMatcher, HttpRule, NetworkPolicy, PortPolicy, PortRule, Protocol, RuleVerdict};
use crate::{Direction, Snapshot};

/// What is known beside the policies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// SDS names of the secrets that will be there.
    pub secrets: &'a [String],
    /// Entries that say something else than what they were made of. They neither decide before others nor go for others.
    pub partial: &'a [EntryRef],
    /// Entries that stand for other protocols as well. They go only for others that do, too.
    pub all_protocols: &'a [EntryRef],
}

/// An entry of a policy by its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryRef {
    /// Index in the list that is looked at.
    pub policy: usize,
    /// Which of the policy's lists.
    pub direction: Direction,
    /// Index in that list.
    pub entry: usize,
}

/// Looks at policies that are in force together, each compiled as the proxy compiles it. Findings come in the order of
/// their policies and elements. The `policy` of an [`Element`] is an index into `policies`.
pub fn lint(policies: &[NetworkPolicy], known: &Known<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    set::check(policies, &mut findings);
    for (number, policy) in policies.iter().enumerate() {
        address::check(number, policy, &mut findings);
        let mut builder = Snapshot::empty().update();
        builder.replace_all([policy.clone()]);
        let quarantined: Vec<_> = builder.build().quarantined().collect();
        let bad = quarantined::check(number, policy, &quarantined, &mut findings);
        let mut probes = Probes::default();
        for (direction, entries) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
            let element = Element::direction(number, direction);
            for (index, entry) in entries.iter().enumerate() {
                check_entry(&element.entry(index), entry, &mut probes, &mut findings);
                secret::check(&element.entry(index), entry, known.secrets, &mut findings);
            }
            let here = |list: &[EntryRef]| {
                let here = list.iter().filter(|at| (at.policy, at.direction) == (number, direction));
                here.map(|at| at.entry).collect()
            };
            let bad = bad.of(direction, here(known.partial), here(known.all_protocols));
            reach::check(&element, entries, &bad, &mut probes, &mut findings);
        }
    }
    findings.sort_by(|a, b| a.element.cmp(&b.element));
    findings
}

fn check_entry(element: &Element, entry: &PortPolicy, probes: &mut Probes, findings: &mut Vec<Finding>) {
    if entry.protocol == Protocol::Udp {
        findings.push(Finding::new(
            Lint::OtherProtocol,
            element.field("protocol"),
            "the entry is for UDP, and this proxy carries TCP only".to_owned(),
            "leave the entry out; TCP, if that was meant".to_owned(),
        ));
        return;
    }
    for (index, rule) in entry.rules.iter().enumerate() {
        check_rule(&element.rule(index), entry.port, rule, probes, findings);
    }
}

fn check_rule(element: &Element, port: u32, rule: &PortRule, probes: &mut Probes, findings: &mut Vec<Finding>) {
    server_name::check(element, rule, findings);
    let Some(alternatives) = &rule.http else {
        return;
    };
    if rule.verdict != RuleVerdict::Allow {
        findings.push(Finding::new(
            Lint::DenyIgnoresHttp,
            element.field("http_rules"),
            "only an allow rule looks at requests; this rule refuses or passes on whatever is requested".to_owned(),
            "say in HTTP rules of allow rules which requests are fine, and only then leave these out: on a port without HTTP \
             rules any bytes pass"
                .to_owned(),
        ));
        return;
    }
    let alternatives = Alternatives::of(alternatives);
    for (index, http) in alternatives.rules.iter().enumerate() {
        let element = element.http_rule(index);
        method::check_head(&element, http, &alternatives, probes, findings);
        check_http_rule(&element, port, http, &alternatives, probes, findings);
    }
}

fn check_http_rule(
    element: &Element,
    port: u32,
    http: &HttpRule,
    alternatives: &Alternatives<'_>,
    probes: &mut Probes,
    findings: &mut Vec<Finding>,
) {
    let mut says_nothing = |matcher: &HeaderMatcher| {
        let path = &*matcher.name == ":path";
        !matcher.invert
            && probes.of(&matcher.value).is_some_and(|p| p.accepts_everything() || path && p.accepts_every_path())
    };
    let alone = http.headers.iter().all(&mut says_nothing);
    for index in 0..http.headers.len() {
        let Some(condition) = Condition::of(element, http, index, probes) else {
            continue; // it is quarantined, which is said
        };
        let Condition { element, matcher, .. } = &condition;
        text::check_name(element, matcher, findings);
        if regex_text::check(element, matcher, findings)
            || text::check(element, matcher, findings)
            || regex_text::check_alternatives(&condition, findings)
        {
            continue;
        }
        let before = findings.len();
        match &*matcher.name {
            ":path" => path::check(&condition, alternatives, probes, findings),
            ":authority" | "host" => host::check(&condition, port, findings),
            ":method" => method::check(element, matcher, &condition.probe, findings),
            _ => {}
        }
        if findings.len() == before {
            regex_text::check_match_all(&condition, alone, findings);
        }
    }
    cover::check_unmatchable(element, http, probes, findings);
}
