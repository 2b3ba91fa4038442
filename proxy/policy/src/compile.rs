//! Turns one direction of a policy into disjoint port ranges, each with its rules in the order in which they decide.
//!
//! Nothing here fails: what cannot be honoured becomes a [`Finding`](rule::Finding) and its most restrictive reading.

mod affix;
mod automata;
mod bits;
mod column;
pub(crate) mod decided;
pub(crate) mod index;
mod reckon;
mod regex_set;
pub(crate) mod rule;
mod rule_set;
pub(crate) mod server_name;
mod undecided;
mod work;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use self::rule::{CompiledRule, Finding, Findings, Origin};
pub(crate) use self::rule_set::{RuleSet, Walk};
pub(crate) use self::work::Work;
use crate::limits::{Effort, Limits, UNFINISHED};
use crate::model::{PortPolicy, PortRule, Protocol, RuleVerdict, Unsupported};
use crate::weight::weight;

/// One direction of a policy, ready to evaluate. Knows no endpoint, so that endpoints with equal rules share it.
#[derive(Debug)]
pub(crate) struct CompiledDirection {
    /// Disjoint, ascending.
    ranges: Vec<PortRange>,
    wildcard: Option<Arc<RuleSet>>,
    /// Why nothing at all is allowed, when a port entry that cannot be placed holds a deny or a pass.
    denied: Option<Finding>,
    /// It stands for what would take more time than there was.
    pub(crate) unfinished: bool,
    /// It stands for what would take so many bytes, for which there was no room.
    pub(crate) without_room: Option<usize>,
    pub(crate) findings: Vec<Finding>,
    /// Names of the secrets that its rules compare with or inject.
    pub(crate) secrets: Box<[Box<str>]>,
}

#[derive(Debug)]
struct PortRange {
    first: u16,
    last: u16,
    rules: Arc<RuleSet>,
}

/// What a port resolves to.
pub(crate) enum PortLookup<'a> {
    /// The whole direction denies, for this reason.
    Denied(&'a Finding),
    /// No entry covers the port.
    Nothing,
    /// These rules decide.
    Rules(&'a RuleSet),
}

impl CompiledDirection {
    /// Exact or range hit, else the wildcard, else nothing.
    pub(crate) fn lookup(&self, port: u16) -> PortLookup<'_> {
        if let Some(finding) = &self.denied {
            return PortLookup::Denied(finding);
        }
        let after = self.ranges.partition_point(|range| range.first <= port);
        let hit = after.checked_sub(1).map(|i| &self.ranges[i]);
        match (hit.filter(|range| port <= range.last), &self.wildcard) {
            (Some(range), _) => PortLookup::Rules(&range.rules),
            (None, Some(wildcard)) => PortLookup::Rules(wildcard),
            (None, None) => PortLookup::Nothing,
        }
    }

    /// Whether it is what the rules say, and not what stands for it.
    pub(crate) fn is_complete(&self) -> bool {
        !self.unfinished && self.without_room.is_none()
    }

    /// Whether it holds more than the reason why nothing is allowed.
    pub(crate) fn can_be_smaller(&self) -> bool {
        !self.ranges.is_empty() || self.wildcard.is_some()
    }

    /// Compiles the entries of one direction, in message order. Denies everything, for the time being, where `effort` does not
    /// suffice.
    pub(crate) fn compile(entries: &[PortPolicy], limits: &Limits, effort: &mut Effort) -> Self {
        let rules = rules(entries);
        if rules > limits.rules {
            let most = limits.rules;
            let reason = format!(
                "{rules} rules, and {most} are the most; write fewer, or have `policy.rules` of its tenant raised"
            );
            return Self::denying(entries, &reason);
        }
        let unfinished = || Self { unfinished: true, ..Self::denying(entries, UNFINISHED) };
        let least = reckon::least_room(entries, limits);
        if least > effort.room() {
            return Self::without_room(entries, least, effort.room());
        }
        if effort.left() < Effort::UNBOUNDED.left() && effort.left() < reckon::least_effort(entries, limits) {
            return unfinished();
        }
        // What is left of too little may be enough for another direction, such as one without rules.
        let part = Effort::new(effort.left()).within(effort.room());
        let mut findings = Findings::within(*limits, part);
        let compiled = Self::compile_rules(entries, &mut findings);
        if let Some(lacking) = findings.lowerings.effort.lacking() {
            effort.follow(findings.lowerings.effort);
            return Self::without_room(entries, effort.room() + lacking, effort.room());
        }
        match effort.follow(findings.lowerings.effort) {
            true => Self { findings: findings.list, ..compiled },
            false => unfinished(),
        }
    }

    /// Stands for what takes more bytes than there are.
    pub(crate) fn without_room(entries: &[PortPolicy], bytes: usize, room: usize) -> Self {
        let reason = format!(
            "compiling it takes about {bytes} bytes of memory, and of what its tenant may have for policies {room} are left, so \
             nothing is allowed; write fewer or simpler rules, or have `policy.memory` of its tenant raised, or the memory of the \
             process where that has an end. Waiting does not help"
        );
        Self { without_room: Some(bytes), ..Self::denying(entries, &reason) }
    }

    /// Allows nothing, for this reason.
    fn denying(entries: &[PortPolicy], reason: &str) -> Self {
        let mut findings = Findings::default();
        let denied = findings.add(Origin { port_entry: 0, rule: None }, None, "rules", reason);
        Self { denied: Some(denied), findings: findings.list, secrets: secrets(entries), ..Self::empty() }
    }

    fn empty() -> Self {
        Self {
            ranges: Vec::new(),
            wildcard: None,
            denied: None,
            unfinished: false,
            without_room: None,
            findings: Vec::new(),
            secrets: Box::default(),
        }
    }

    fn compile_rules(entries: &[PortPolicy], findings: &mut Findings) -> Self {
        let mut denied = None;
        let mut placed = Vec::new();
        for (entry, number) in entries.iter().zip(0..) {
            let problem = match entry.protocol {
                Protocol::Tcp => None,
                Protocol::Udp => continue,
                Protocol::Unknown(value) => Some(Unsupported {
                    element: "protocol".into(),
                    reason: format!("{value} is not a protocol that this version knows").into(),
                }),
            };
            match Span::of(entry) {
                Ok(span) => {
                    placed.push(Placed { span, rules: compile_rules(number, entry, problem.as_ref(), findings) });
                    if findings.lowerings.effort.is_exhausted() {
                        return Self::empty();
                    }
                }
                Err(reason) => {
                    let origin = Origin { port_entry: number, rule: None };
                    findings.add(origin, None, "port", &reason);
                    if entry.rules.iter().any(|rule| rule.verdict != RuleVerdict::Allow) {
                        denied = denied.or_else(|| findings.list.last().cloned());
                    }
                }
            }
        }
        let starts = boundaries(&placed);
        let copies = copies(&placed, &starts);
        if copies > MAX_COPIES {
            let reason = format!(
                "splitting the overlapping port ranges takes {copies} copies of rules and conditions, and {MAX_COPIES} \
                 are the most; write fewer ranges, let them overlap less, or give long rules ports of their own"
            );
            denied = Some(findings.add(Origin { port_entry: 0, rule: None }, None, "port", &reason));
            placed.clear();
        } else if !findings.lowerings.effort.reserve(copies * reckon::COPY) {
            return Self::empty();
        }
        let (ranges, wildcard) = arrange(&placed, &starts, findings);
        Self { ranges, wildcard, denied, secrets: secrets(entries), ..Self::empty() }
    }
}

/// Whether its rules are compiled.
fn is_placed(entry: &PortPolicy) -> bool {
    entry.protocol != Protocol::Udp && Span::of(entry).is_ok()
}

/// How many rules there are, those counted that an HTTP part consists of.
pub(crate) fn rules(entries: &[PortPolicy]) -> usize {
    let rules = entries.iter().flat_map(|entry| &entry.rules);
    rules.map(|rule| 1 + rule.http.as_ref().map_or(0, Vec::len)).sum()
}

fn secrets(entries: &[PortPolicy]) -> Box<[Box<str>]> {
    let rules = entries.iter().flat_map(|entry| &entry.rules).filter(|rule| rule.verdict == RuleVerdict::Allow);
    let http_rules = rules.filter_map(|rule| rule.http.as_ref()).flatten();
    let names: BTreeSet<_> =
        http_rules.flat_map(|rule| &rule.header_matches).filter_map(|m| m.secret.clone()).collect();
    names.into_iter().collect()
}

/// The ports of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Wildcard,
    Ports(u16, u16),
}

impl Span {
    fn of(entry: &PortPolicy) -> Result<Self, String> {
        let (port, end) = (entry.port, entry.end_port);
        let (Ok(first), Ok(last)) = (u16::try_from(port), u16::try_from(end)) else {
            return Err(format!("{port}-{end}: a port is at most 65535"));
        };
        match (first, last) {
            (0, 0) => Ok(Self::Wildcard),
            (0, _) => Err(format!("0-{end}: a range cannot begin at the wildcard port 0; begin it at 1")),
            (_, 0) => Ok(Self::Ports(first, first)),
            _ if last < first => Err(format!("{port}-{end}: the range ends before it begins")),
            _ => Ok(Self::Ports(first, last)),
        }
    }
}

struct Placed {
    span: Span,
    rules: Vec<Arc<CompiledRule>>,
}

fn compile_rules(
    port_entry: u32,
    entry: &PortPolicy,
    problem: Option<&Unsupported>,
    findings: &mut Findings,
) -> Vec<Arc<CompiledRule>> {
    if entry.rules.is_empty() {
        // "No rules" means "allow everything" wherever it is merged, which an explicit rule says without exceptions.
        return vec![Arc::new(CompiledRule::default_allow(port_entry, problem, findings))];
    }
    let numbered = entry.rules.iter().zip(0..);
    let mut compiled = Vec::with_capacity(entry.rules.len());
    for (rule, i) in numbered {
        if !findings.lowerings.effort.spend(effort(rule)) {
            break;
        }
        let origin = Origin { port_entry, rule: Some(i) };
        compiled.push(Arc::new(rule::compile(origin, rule, problem, findings)));
    }
    compiled
}

/// What reading the rule takes, but for its expressions.
fn effort(rule: &PortRule) -> u64 {
    let http = rule.http.iter().flatten().map(|http| 1 + http.headers.len() + http.header_matches.len());
    let parts = 1 + rule.server_names.len() + http.sum::<usize>();
    parts as u64 * Effort::RULE + rule.remotes.len() as u64 * Effort::IDENTITY
}

/// Conditions that splitting the ranges of one direction may add, as [`CompiledRule::weight`] counts them: a few thousand
/// entries that all overlap, or a long rule for ports that many others divide, would otherwise take gigabytes.
const MAX_COPIES: usize = 1 << 18;

/// Ports at which a part of the port space begins.
fn boundaries(placed: &[Placed]) -> Vec<u32> {
    let mut starts: Vec<u32> = Vec::new();
    for entry in placed {
        if let Span::Ports(first, last) = entry.span {
            starts.extend([u32::from(first), u32::from(last) + 1]);
        }
    }
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// The parts that ports from `first` to `last` take up.
fn parts_of(starts: &[u32], first: u16, last: u16) -> std::ops::Range<usize> {
    let from = starts.partition_point(|start| *start < u32::from(first));
    from..starts.partition_point(|start| *start <= u32::from(last))
}

/// How many conditions there are more, once each part has its own, than in the rules as they are written.
fn copies(placed: &[Placed], starts: &[u32]) -> usize {
    let of_entry = |entry: &Placed| {
        let parts = match entry.span {
            Span::Wildcard => starts.len() + 1,
            Span::Ports(first, last) => parts_of(starts, first, last).len(),
        };
        let weight = entry.rules.iter().map(|rule| rule.weight()).fold(0, usize::saturating_add);
        parts.saturating_sub(1).saturating_mul(weight)
    };
    placed.iter().map(of_entry).fold(0, usize::saturating_add)
}

/// Splits the port space at every boundary, gives each part the rules of all entries that cover it, and adds the
/// wildcard's rules to all of them.
fn arrange(placed: &[Placed], starts: &[u32], findings: &mut Findings) -> (Vec<PortRange>, Option<Arc<RuleSet>>) {
    let mut parts: Vec<Option<Vec<Arc<CompiledRule>>>> = vec![None; starts.len()];
    let mut wildcard: Option<Vec<Arc<CompiledRule>>> = None;
    for entry in placed {
        match entry.span {
            Span::Wildcard => contribute(wildcard.get_or_insert_default(), entry),
            Span::Ports(first, last) => {
                for part in &mut parts[parts_of(starts, first, last)] {
                    contribute(part.get_or_insert_default(), entry);
                }
            }
        }
    }
    let mut interned = Interned::default();
    let mut ranges = Vec::new();
    for (i, part) in parts.into_iter().enumerate() {
        let (Some(mut rules), Some(next)) = (part, starts.get(i + 1)) else {
            continue;
        };
        rules.extend(wildcard.iter().flatten().cloned());
        ranges.push(PortRange {
            first: starts[i] as u16,
            last: (*next - 1) as u16,
            rules: interned.rule_set(rules, findings),
        });
    }
    (ranges, wildcard.map(|rules| interned.rule_set(rules, findings)))
}

/// Single ports (and the wildcard) go in front one by one, ranges behind: this decides which of several equal rules is
/// reported, as it does in Cilium's filter.
fn contribute(rules: &mut Vec<Arc<CompiledRule>>, entry: &Placed) {
    match entry.span {
        Span::Ports(first, last) if first != last => rules.extend(entry.rules.iter().cloned()),
        _ => {
            rules.splice(0..0, entry.rules.iter().rev().cloned());
        }
    }
}

/// Rule sets by the identity of their rules, so that ranges with the same rules share one.
#[derive(Default)]
struct Interned(HashMap<Vec<*const CompiledRule>, Arc<RuleSet>>);

impl Interned {
    fn rule_set(&mut self, mut rules: Vec<Arc<CompiledRule>>, findings: &mut Findings) -> Arc<RuleSet> {
        rules.sort_by_key(|rule| (std::cmp::Reverse(rule.precedence), order(rule)));
        let key = rules.iter().map(Arc::as_ptr).collect();
        self.0.entry(key).or_insert_with(|| Arc::new(RuleSet::new(rules, findings))).clone()
    }
}

/// A pass that asks for the server name comes after those that do not: when the name is not known it refuses, and must not
/// where another one passes whatever the name is.
fn order(rule: &CompiledRule) -> (u8, bool) {
    match rule.verdict {
        RuleVerdict::Deny => (0, false),
        RuleVerdict::Allow => (1, false),
        RuleVerdict::Pass(_) => (2, rule.asks_server_name()),
    }
}

weight!(CompiledDirection: ranges, wildcard, denied, findings, secrets);
weight!(PortRange: rules);
