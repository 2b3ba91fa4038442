//! Section 1.3, steps 1 to 5: from port entries to disjoint ranges with the rules of each.

use crate::model::{PortPolicy, PortRule, Protocol, RuleVerdict};
use crate::{Flow, NetworkPolicy, RuleRef};

const FIRST_PORT: u16 = 1;

/// A rule where it stands in its list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed<'p> {
    /// Index of its port entry.
    entry: u32,
    /// Index in the entry's rules.
    number: Option<u32>,
    /// `None`: the default allow rule, which says what an entry without rules means.
    rule: Option<&'p PortRule>,
    /// Its entry is for a protocol that this version does not know.
    unknown_protocol: bool,
}

impl<'p> Placed<'p> {
    /// Step 4: precedence 0, any remote, any proxy id, nothing above TCP.
    const fn default_allow(entry: u32) -> Self {
        Self { entry, number: None, rule: None, unknown_protocol: false }
    }

    pub(super) const fn rule(&self) -> Option<&'p PortRule> {
        self.rule
    }

    pub(super) fn precedence(&self) -> u32 {
        self.rule.map_or(0, |rule| rule.precedence)
    }

    pub(super) fn verdict(&self) -> RuleVerdict {
        self.rule.map_or(RuleVerdict::Allow, |rule| rule.verdict)
    }

    /// Whether the rule, or the entry that holds it, has a part that cannot be honoured.
    pub(super) fn is_unsupported(&self) -> bool {
        self.unknown_protocol || self.rule.is_some_and(|rule| !rule.unsupported.is_empty())
    }

    pub(super) fn in_policy(&self, policy: &NetworkPolicy, flow: &Flow<'_>, http_rule: Option<u32>) -> RuleRef {
        RuleRef {
            endpoint_id: policy.endpoint_id,
            direction: flow.direction,
            port_entry: self.entry,
            rule: self.number,
            http_rule,
        }
    }
}

/// The rules of one range. A list that is empty allows everything.
#[derive(Clone, Debug, Default)]
struct List<'p> {
    initialised: bool,
    rules: Vec<Placed<'p>>,
    /// While there are no rules: the entries that said so, the one to be named first.
    open: Vec<u32>,
}

impl<'p> List<'p> {
    /// Steps 3 and 4: adds what one entry says. `None` rules of an entry and none here stays "everything"; when only one
    /// of the two is empty, what it means is written down as a rule. A single port's rules go to the front one at a time,
    /// a true range's to the end.
    fn contribute(&mut self, entry: u32, incoming: &[Placed<'p>], to_front: bool) {
        let mut incoming = incoming.to_vec();
        if self.initialised && self.rules.is_empty() && !incoming.is_empty() {
            self.rules.extend(self.open.first().copied().map(Placed::default_allow));
        } else if self.initialised && !self.rules.is_empty() && incoming.is_empty() {
            incoming.push(Placed::default_allow(entry));
        } else if incoming.is_empty() {
            self.open.insert(if to_front { 0 } else { self.open.len() }, entry);
        }
        self.initialised = true;
        for rule in incoming {
            self.rules.insert(if to_front { 0 } else { self.rules.len() }, rule);
        }
    }
}

/// Ports `first..=last` and their rules.
#[derive(Clone, Debug)]
struct Part<'p> {
    first: u16,
    last: u16,
    list: List<'p>,
}

/// One direction: disjoint parts in ascending order, and the wildcard, which is a key of its own.
#[derive(Debug, Default)]
pub(super) struct PortMap<'p> {
    parts: Vec<Part<'p>>,
    wildcard: Option<List<'p>>,
    /// An entry that cannot be placed holds a deny or a pass: nobody knows what it was to keep out.
    refused: bool,
}

/// What a port resolves to.
pub(super) enum Covered<'p> {
    /// The whole direction refuses.
    Refused,
    /// No entry covers it.
    Not,
    /// These rules decide; none: everything is allowed, because of this entry.
    By(Vec<Placed<'p>>),
}

impl<'p> PortMap<'p> {
    pub(super) fn of(entries: &'p [PortPolicy]) -> Self {
        let mut map = Self::default();
        for (entry, number) in entries.iter().zip(0..) {
            // Step 1. A protocol that is known not to be TCP is none of our business; an unknown one may be anything.
            if entry.protocol == Protocol::Udp {
                continue;
            }
            match range(entry) {
                Some((first, last)) => map.place(number, first, last, &rules_of(number, entry)),
                None => map.refused |= entry.rules.iter().any(|rule| rule.verdict != RuleVerdict::Allow),
            }
        }
        map.append_wildcard();
        map
    }

    /// Steps 2 and 3.
    fn place(&mut self, entry: u32, first: u16, last: u16, rules: &[Placed<'p>]) {
        if first == 0 {
            self.wildcard.get_or_insert_default().contribute(entry, rules, true);
            return;
        }
        self.split_before(first);
        if let Some(after) = last.checked_add(1) {
            self.split_before(after);
        }
        self.fill_gaps(first, last);
        for part in self.parts.iter_mut().filter(|part| first <= part.first && part.last <= last) {
            part.list.contribute(entry, rules, first == last);
        }
    }

    /// Makes `port` the first of its part, if a part holds it. Both halves keep the rules.
    fn split_before(&mut self, port: u16) {
        let holds = |part: &Part<'_>| part.first < port && port <= part.last;
        if let Some(at) = self.parts.iter().position(holds) {
            let upper = Part { first: port, ..self.parts[at].clone() };
            self.parts[at].last = port - 1;
            self.parts.insert(at + 1, upper);
        }
    }

    /// Adds parts without rules where `first..=last` has none.
    fn fill_gaps(&mut self, first: u16, last: u16) {
        let mut next = Some(first);
        let mut gaps = Vec::new();
        for part in self.parts.iter().filter(|part| first <= part.first && part.last <= last) {
            if let Some(start) = next.filter(|start| *start < part.first) {
                gaps.push(Part { first: start, last: part.first - 1, list: List::default() });
            }
            next = part.last.checked_add(1);
        }
        if let Some(start) = next.filter(|start| *start <= last) {
            gaps.push(Part { first: start, last, list: List::default() });
        }
        self.parts.extend(gaps);
        self.parts.sort_by_key(|part| part.first);
    }

    /// Step 5.
    fn append_wildcard(&mut self) {
        let Some(wildcard) = &self.wildcard else { return };
        let entry = wildcard.open.first().copied().unwrap_or_default();
        for part in &mut self.parts {
            part.list.contribute(entry, &wildcard.rules, false);
        }
    }

    /// The range that holds the port, else the wildcard, else nothing.
    pub(super) fn lookup(&self, port: u16) -> Covered<'p> {
        if self.refused {
            return Covered::Refused;
        }
        let hit = self.parts.iter().find(|part| (part.first..=part.last).contains(&port)).map(|part| &part.list);
        match hit.or(self.wildcard.as_ref()) {
            None => Covered::Not,
            // "Empty means everything" as the rule that it stands for, so that it has a place to be named by.
            Some(list) if list.rules.is_empty() => {
                Covered::By(list.open.first().copied().map(Placed::default_allow).into_iter().collect())
            }
            Some(list) => Covered::By(list.rules.clone()),
        }
    }
}

/// Step 1: first and last port; (0, 0) is the wildcard. `None`: the entry cannot be placed.
fn range(entry: &PortPolicy) -> Option<(u16, u16)> {
    let first = u16::try_from(entry.port).ok()?;
    let end = u16::try_from(entry.end_port).ok()?;
    let last = if end == 0 { first } else { end };
    let placeable = first <= last && (first >= FIRST_PORT || last == 0);
    placeable.then_some((first, last))
}

fn rules_of(number: u32, entry: &PortPolicy) -> Vec<Placed<'_>> {
    let unknown_protocol = matches!(entry.protocol, Protocol::Unknown(_));
    if unknown_protocol && entry.rules.is_empty() {
        // Not empty, which would mean everything: one rule that cannot be honoured.
        return vec![Placed { unknown_protocol, ..Placed::default_allow(number) }];
    }
    let place = |(rule, i)| Placed { entry: number, number: Some(i), rule: Some(rule), unknown_protocol };
    entry.rules.iter().zip(0..).map(place).collect()
}
