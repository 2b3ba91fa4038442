//! What compilation sets aside, as findings.

use std::collections::HashSet;

use super::finding::{Element, Finding, Lint};
use crate::model::{NetworkPolicy, PortPolicy, RuleVerdict, ValueMatch};
use crate::{Direction, Quarantine, RuleRef};

/// Elements that are not enforced as written.
pub(super) struct Bad(Vec<(RuleRef, bool)>);

/// The same for one direction.
pub(super) struct BadRules {
    /// Entry, rule, and HTTP alternative; `None`: all of them.
    rules: HashSet<(usize, Option<usize>, Option<usize>)>,
    /// Entries that say something else than what they were made of.
    pub(super) partial: HashSet<usize>,
    /// Entries that stand for other protocols as well.
    pub(super) all_protocols: HashSet<usize>,
    /// Something else than an allow is among them, so which rules decide cannot be told from what is written.
    pub(super) undecidable: bool,
}

impl Bad {
    pub(super) fn of(&self, direction: Direction, partial: HashSet<usize>, all_protocols: HashSet<usize>) -> BadRules {
        let here = || self.0.iter().filter(|(rule, _)| rule.direction == direction);
        let index = |number: Option<u32>| number.map(|number| number as usize);
        let rules = here().map(|(bad, _)| (bad.port_entry as usize, index(bad.rule), index(bad.http_rule)));
        BadRules { rules: rules.collect(), partial, all_protocols, undecidable: here().any(|(_, allow)| !allow) }
    }
}

impl BadRules {
    /// Whether the alternative, or what holds it, is not enforced as written, or not known as it was written.
    pub(super) fn holds(&self, entry: usize, rule: Option<usize>, alternative: Option<usize>) -> bool {
        let wider = [(entry, None, None), (entry, rule, None), (entry, rule, alternative)];
        self.partial.contains(&entry) || wider.iter().any(|bad| self.rules.contains(bad))
    }
}

pub(super) fn check(
    number: usize,
    policy: &NetworkPolicy,
    quarantined: &[Quarantine],
    findings: &mut Vec<Finding>,
) -> Bad {
    let mut bad = Vec::with_capacity(quarantined.len());
    for quarantine in quarantined {
        let rule = &quarantine.rule;
        let entries = match rule.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let mut element = Element::direction(number, rule.direction).entry(rule.port_entry as usize);
        if let Some(index) = rule.rule {
            element = element.rule(index as usize);
        }
        if let Some(index) = rule.http_rule {
            element = element.http_rule(index as usize);
        }
        let lint = kind(entries, quarantine);
        let what = quarantine.reason.to_string();
        findings.push(Finding::new(lint, element.field(&quarantine.element), what, remedy(lint).to_owned()));
        let written = entries.get(rule.port_entry as usize).and_then(|entry| entry.rules.get(rule.rule? as usize));
        let allow = written.is_some_and(|rule| rule.verdict == RuleVerdict::Allow) && &*quarantine.element != "rules";
        bad.push((*rule, allow));
    }
    Bad(bad)
}

fn kind(entries: &[PortPolicy], quarantine: &Quarantine) -> Lint {
    let element = &*quarantine.element;
    match element.split('[').next().unwrap_or_default() {
        "port" => Lint::InvalidPort,
        "pass_precedence" => Lint::ContradictoryTiers,
        "http_rules" if element == "http_rules" => Lint::EmptyHttpRules,
        "server_names" => Lint::InvalidServerName,
        "headers" => match value(entries, quarantine) {
            _ if quarantine.reason.starts_with("name ") => Lint::InvalidHeaderName,
            Some(ValueMatch::Regex(_)) => Lint::InvalidRegex,
            _ => Lint::NotEnforced,
        },
        _ => Lint::NotEnforced,
    }
}

/// The value of the matcher that an element `headers[2]` names.
fn value<'a>(entries: &'a [PortPolicy], quarantine: &Quarantine) -> Option<&'a ValueMatch> {
    let rule = &quarantine.rule;
    let http = entries.get(rule.port_entry as usize)?.rules.get(rule.rule? as usize)?.http.as_ref()?;
    let index = quarantine.element.strip_prefix("headers[")?.strip_suffix(']')?;
    Some(&http.get(rule.http_rule? as usize)?.headers.get(index.parse::<usize>().ok()?)?.value)
}

const fn remedy(lint: Lint) -> &'static str {
    match lint {
        Lint::InvalidRegex => "an RE2 expression; any text is `.*`, a dot is `\\.`",
        Lint::InvalidHeaderName => "a field name, or :method, :path, :authority or :scheme",
        Lint::InvalidServerName => "labels with dots between them; `*` stands for part of a label, `**` for labels",
        Lint::InvalidPort => "a port from 1 to 65535, and an end_port that is not below it; 0 alone for every port",
        Lint::EmptyHttpRules => "at least one HTTP rule; `{}` allows every request",
        Lint::ContradictoryTiers => "one pass_precedence for all pass rules of a tier, not above their precedence",
        _ => "what this version supports in its place; the rule without it would say something else, an allow more",
    }
}
