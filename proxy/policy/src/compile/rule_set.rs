//! The rules of one port range, in deciding order.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::index::{Index, Predicate, Subject, Unit};
use super::rule::{Alternative, CompiledRule, Finding, Findings};
use crate::header_match::Trial;
use crate::model::{HeaderMatch, RuleVerdict};
use crate::weight::weight;
use crate::{Flow, ServerName};

/// Rules of one port range, with the indexes that find the deciding one.
#[derive(Debug)]
pub(crate) struct RuleSet {
    rules: Vec<Arc<CompiledRule>>,
    /// For each rule the rule at which a pass goes on.
    continuations: Vec<u32>,
    /// Why the range denies everything.
    denied: Option<Finding>,
    /// Judges connections: what the peer must be.
    connections: Index,
    /// Judges requests: the peer and the request. `None` when no rule has an HTTP part, so that connections decide.
    requests: Option<Index>,
    /// Whether requests are tried: some rule has header matches.
    has_header_matches: bool,
    /// Lower-case names of the fields that decide or are edited, in order.
    fields: Box<[Box<str>]>,
    /// Of these the ones that are compared with a secret or get one.
    secret_fields: Box<[Box<str>]>,
}

/// Outcome of walking the rules.
#[derive(Clone, Copy)]
pub(crate) enum Walk<'a> {
    /// This one admits.
    Allow(&'a Unit),
    /// This one refuses.
    Deny(&'a Unit),
    /// None decides, which refuses.
    Undecided,
    /// Whether this one decides takes too much work to find out, which refuses.
    OverBudget(&'a Unit),
    /// This one would change more than one request may be changed, which refuses whatever others say.
    TooManyEdits(&'a Unit),
    /// The range denies everything, for this reason.
    Contradiction(&'a Finding),
}

impl RuleSet {
    /// `rules` are sorted.
    pub(crate) fn new(rules: Vec<Arc<CompiledRule>>, findings: &mut Findings) -> Self {
        let mut denied = contradiction(&rules, findings);
        let continuations = rules
            .iter()
            .enumerate()
            .map(|(i, rule)| match rule.verdict {
                RuleVerdict::Pass(below) => {
                    let next = rules.partition_point(|later| later.precedence >= below);
                    next.max(i + 1) as u32
                }
                _ => i as u32 + 1,
            })
            .collect();
        let mut units = Vec::new();
        for (rule, i) in rules.iter().zip(0..) {
            units.push((i, None, rule.peer.iter().collect()));
        }
        let mut index = |units| {
            Index::new(units, &mut findings.lowerings).unwrap_or_else(|reason| {
                // Every matcher was checked on its own before, so this is a limit of their combination.
                if let Some(rule) = rules.first() {
                    denied = Some(findings.add(rule.origin, None, "rules", &reason));
                }
                Index::default()
            })
        };
        let connections = index(units);
        let has_http = rules.iter().any(|rule| rule.http.is_some());
        let requests = has_http.then(|| index(request_units(&rules)));
        let alternatives = || rules.iter().filter_map(|rule| rule.http.as_ref()).flatten();
        let has_header_matches = alternatives().any(|alternative| !alternative.matches.is_empty());
        let fields = fields(alternatives());
        let secret_fields = secret_fields(alternatives());
        Self { rules, continuations, denied, connections, requests, has_header_matches, fields, secret_fields }
    }

    pub(crate) fn rule(&self, unit: &Unit) -> &CompiledRule {
        &self.rules[unit.rule as usize]
    }

    /// Why the range denies everything, when it does.
    pub(crate) const fn denied(&self) -> Option<&Finding> {
        self.denied.as_ref()
    }

    /// The rule at which the walk goes on when this one passes.
    pub(crate) fn continuation(&self, unit: &Unit) -> u32 {
        self.continuations[unit.rule as usize]
    }

    /// What the rule does to a flow that it applies to. A pass that rests on a server name which is not known refuses:
    /// what it would skip may be an allow as well as a deny.
    pub(crate) fn effect(&self, unit: &Unit, flow: &Flow<'_>) -> RuleVerdict {
        let rule = self.rule(unit);
        match rule.verdict {
            RuleVerdict::Pass(_) if flow.server_name == ServerName::Unknown && rule.asks_server_name() => {
                RuleVerdict::Deny
            }
            verdict => verdict,
        }
    }

    pub(crate) fn has_http(&self) -> bool {
        self.requests.is_some()
    }

    /// Whether requests have to be tried, instead of only looked at.
    pub(crate) const fn has_header_matches(&self) -> bool {
        self.has_header_matches
    }

    /// Whether a rule looks at or edits fields of that name (lower case).
    pub(crate) fn reads(&self, field: &str) -> bool {
        self.fields.binary_search_by(|known| (**known).cmp(field)).is_ok()
    }

    /// Names of fields (lower case, in order) whose values may be secrets.
    pub(crate) fn secret_fields(&self) -> &[Box<str>] {
        &self.secret_fields
    }

    pub(crate) const fn connections(&self) -> &Index {
        &self.connections
    }

    /// The index that judges requests.
    pub(crate) const fn requests(&self) -> &Index {
        match &self.requests {
            Some(requests) => requests,
            None => &self.connections,
        }
    }

    /// Judges what the connection is, whatever is sent on it.
    pub(crate) fn walk_connection(&self, subject: Subject<'_>) -> Walk<'_> {
        self.walk(&self.connections, subject)
    }

    /// Judges a request. Includes the connection: the rule that admits a request also admits the peer.
    pub(crate) fn walk_request(&self, subject: Subject<'_>) -> Walk<'_> {
        self.walk(self.requests(), subject)
    }

    /// As [`Self::walk_request`], for rules with header matches: every rule that applies runs its own, down to the
    /// precedence at which one has admitted.
    pub(crate) fn walk_trial(&self, subject: Subject<'_>, trial: &mut Trial<'_>) -> Walk<'_> {
        if let Some(finding) = &self.denied {
            return Walk::Contradiction(finding);
        }
        let index = self.requests();
        index.candidates(subject, |candidates| {
            let mut from = 0;
            let mut admitted: Option<&Unit> = None;
            // The first allow that may apply, and is not known to.
            let mut doubt: Option<&Unit> = None;
            while let Some((number, known)) = candidates.first_from(from) {
                let unit = &index.units()[number as usize];
                let rule = self.rule(unit);
                if admitted.is_some_and(|first| rule.precedence < self.rule(first).precedence) {
                    break;
                }
                from = number + 1;
                match self.effect(unit, subject.flow) {
                    RuleVerdict::Allow => {
                        let matches = rule.matches(unit.http_rule);
                        // What the one in doubt admits, rules of lower precedence do not edit.
                        let before = doubt.filter(|doubt| rule.precedence < self.rule(doubt).precedence);
                        let in_doubt = if known { before } else { Some(unit) };
                        if let Some(unit) = in_doubt.filter(|_| matches.iter().any(HeaderMatch::edits)) {
                            return Walk::OverBudget(unit);
                        }
                        match known {
                            false => doubt = doubt.or(Some(unit)),
                            true if trial.run(number, matches) => admitted = admitted.or(Some(unit)),
                            true if trial.too_many_edits().is_some() => return Walk::TooManyEdits(unit),
                            true => {}
                        }
                    }
                    // Rules of one precedence stand in the order deny, allow, pass.
                    _ if admitted.is_some() => break,
                    _ if !known => return Walk::OverBudget(unit),
                    RuleVerdict::Deny => return doubt.map_or(Walk::Deny(unit), Walk::OverBudget),
                    RuleVerdict::Pass(_) => from = self.behind(index, unit),
                }
            }
            admitted.map_or_else(|| doubt.map_or(Walk::Undecided, Walk::OverBudget), Walk::Allow)
        })
    }

    /// Steps from one applicable rule to the next: an allow or a deny decides, a pass goes on at its continuation.
    fn walk<'a>(&'a self, index: &'a Index, subject: Subject<'_>) -> Walk<'a> {
        if let Some(finding) = &self.denied {
            return Walk::Contradiction(finding);
        }
        index.candidates(subject, |candidates| {
            let mut from = 0;
            // The first allow that may apply, and is not known to. It admits nothing; what another one behind it admits is
            // right in either case.
            let mut doubt: Option<&Unit> = None;
            while let Some((number, known)) = candidates.first_from(from) {
                let unit = &index.units()[number as usize];
                from = number + 1;
                match self.effect(unit, subject.flow) {
                    RuleVerdict::Allow if known => return Walk::Allow(unit),
                    RuleVerdict::Allow => doubt = doubt.or(Some(unit)),
                    // It may deny, or skip what denies.
                    _ if !known => return Walk::OverBudget(unit),
                    RuleVerdict::Deny => return doubt.map_or(Walk::Deny(unit), Walk::OverBudget),
                    RuleVerdict::Pass(_) => from = self.behind(index, unit),
                }
            }
            doubt.map_or(Walk::Undecided, Walk::OverBudget)
        })
    }

    /// The unit at which the walk goes on when this one passes.
    fn behind(&self, index: &Index, unit: &Unit) -> u32 {
        let next = self.continuation(unit);
        index.units().partition_point(|unit| unit.rule < next) as u32
    }
}

/// Names of ordinary fields in conditions and header matches.
fn fields<'a>(alternatives: impl Iterator<Item = &'a Alternative>) -> Box<[Box<str>]> {
    let mut names = BTreeSet::new();
    for alternative in alternatives {
        names.extend(alternative.matches.iter().map(|header_match| &*header_match.name));
        names.extend(alternative.conditions.iter().filter_map(|predicate| match predicate {
            Predicate::Header(matcher) => Some(&*matcher.name),
            _ => None,
        }));
    }
    names.into_iter().filter(|name| !name.starts_with(':')).map(Box::from).collect()
}

fn secret_fields<'a>(alternatives: impl Iterator<Item = &'a Alternative>) -> Box<[Box<str>]> {
    let matches = alternatives.flat_map(|alternative| alternative.matches.iter());
    let names: BTreeSet<&str> =
        matches.filter(|header_match| header_match.secret.is_some()).map(|header_match| &*header_match.name).collect();
    names.into_iter().map(Box::from).collect()
}

fn request_units(rules: &[Arc<CompiledRule>]) -> Vec<(u32, Option<u32>, Vec<&Predicate>)> {
    let mut units = Vec::new();
    for (rule, i) in rules.iter().zip(0..) {
        match &rule.http {
            Some(alternatives) if rule.verdict == RuleVerdict::Allow && !alternatives.is_empty() => {
                for (alternative, k) in alternatives.iter().zip(0..) {
                    units.push((i, Some(k), rule.peer.iter().chain(&alternative.conditions).collect()));
                }
            }
            _ => units.push((i, None, rule.peer.iter().collect())),
        }
    }
    units
}

/// Looks for pass rules that contradict each other or themselves. All pass rules of a tier must skip to the same
/// precedence; a tier ends where a pass rule's precedence falls below it.
fn contradiction(rules: &[Arc<CompiledRule>], findings: &mut Findings) -> Option<Finding> {
    let mut tier: Option<u32> = None;
    let mut found = None;
    for rule in rules {
        let RuleVerdict::Pass(below) = rule.verdict else {
            continue;
        };
        let reason = match (&rule.unusable, tier) {
            (Some(unusable), _) => {
                found = found.or_else(|| Some(unusable.clone()));
                continue;
            }
            (None, _) if below > rule.precedence => {
                format!("{below} is above the rule's own precedence {}", rule.precedence)
            }
            (None, Some(other)) if rule.precedence >= other && below != other => {
                format!("{below} disagrees with {other} of another pass rule in the same tier")
            }
            _ => {
                tier = Some(below);
                continue;
            }
        };
        let finding = findings.add_once(rule.origin, "pass_precedence", &reason);
        found = found.or(Some(finding));
    }
    found
}

weight!(RuleSet: rules, continuations, denied, connections, requests, fields, secret_fields);
