//! Finds the rules that apply to a flow or request without looking at each of them.
//!
//! A rule is a conjunction of predicates (identity, proxy id, server name, one per header matcher). Equal predicates
//! are shared. An evaluation decides all predicates at once, one look at each input, and then visits only the rules
//! whose rarest predicate holds.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::bits;
use super::column::{Column, ColumnBuilder, Lowerings};
use super::decided::{Decided, Neighbours};
use super::server_name;
use super::undecided::{Candidates, Undecided};
use super::work::Work;
use crate::limits::{Effort, UNFINISHED};
use crate::model::{HeaderMatcher, ValueMatch};
use crate::weight::{Scale, Weight, weight};
use crate::{Flow, Request, ServerName};

/// What is asked for where something is quarantined. The reason follows.
pub(crate) const ENFORCED_AS_WRITTEN: &str = "enforced as written (quarantined): ";

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Predicate {
    /// The other side's identity is one of these (sorted).
    Remotes(Arc<[u32]>),
    /// The listener's proxy id.
    ProxyId(u16),
    /// One of these patterns accepts the server name.
    ServerNames {
        /// The patterns, which all compile.
        patterns: Arc<[Box<str>]>,
        /// Whether it holds while the server name is not known.
        unless_known: bool,
    },
    /// A header matcher.
    Header(Arc<HeaderMatcher>),
    /// Stands for what is quarantined: never holds.
    Never {
        /// What was tested, or would have been.
        field: Arc<str>,
        /// Why it is quarantined.
        reason: Arc<str>,
    },
}

impl Predicate {
    /// What it tests.
    pub(crate) fn field(&self) -> Arc<str> {
        match self {
            Self::Remotes(_) => "remote_policies".into(),
            Self::ProxyId(_) => "proxy_id".into(),
            Self::ServerNames { .. } => "server_names".into(),
            Self::Header(matcher) => (&*matcher.name).into(),
            Self::Never { field, .. } => field.clone(),
        }
    }
}

/// What the predicate asks for.
impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remotes(remotes) => write!(f, "one of {remotes:?}"),
            Self::ProxyId(id) => id.fmt(f),
            Self::ServerNames { patterns, .. } => write!(f, "one of {patterns:?}"),
            Self::Header(matcher) => {
                f.write_str(if matcher.invert { "anything but " } else { "" })?;
                matcher.value.fmt(f)?;
                f.write_str(if matcher.treat_missing_as_empty { " (missing is empty)" } else { "" })
            }
            Self::Never { reason, .. } => write!(f, "{ENFORCED_AS_WRITTEN}{reason}"),
        }
    }
}

/// What is judged.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) flow: &'a Flow<'a>,
    pub(crate) request: Option<&'a Request<'a>>,
    /// What may still be done to judge it.
    pub(crate) work: &'a Work,
}

/// A rule, or one of its HTTP alternatives.
#[derive(Debug)]
pub(crate) struct Unit {
    /// Index in the rule set.
    pub(crate) rule: u32,
    /// Index in the rule's `http_rules`.
    pub(crate) http_rule: Option<u32>,
    /// Numbers of its predicates, in the order of the policy.
    pub(crate) predicates: Box<[u32]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    ServerName,
    Method,
    Scheme,
    Authority,
    Path,
    Field(Box<str>),
}

impl Source {
    fn of(name: &str) -> Self {
        Self::pseudo_header(name).unwrap_or_else(|| Self::Field(name.into()))
    }

    fn pseudo_header(name: &str) -> Option<Self> {
        match name {
            ":method" => Some(Self::Method),
            ":scheme" => Some(Self::Scheme),
            // Envoy keeps `Host` in `:authority` and finds it under both names.
            ":authority" | "host" => Some(Self::Authority),
            ":path" => Some(Self::Path),
            _ => None,
        }
    }

    /// What it holds of `subject`, in one piece and as it is compared.
    pub(super) fn copy(&self, subject: Subject<'_>) -> Vec<u8> {
        let mut copy = Vec::new();
        match (self, subject.flow.server_name, subject.request) {
            (Self::ServerName, ServerName::Name(name), _) => copy.extend(name.to_ascii_lowercase().bytes()),
            (Self::Field(name), _, Some(request)) => {
                let mut first = true;
                request.headers.each(name, &mut |value| join(&mut copy, &mut first, value));
            }
            (_, _, Some(request)) => copy.extend(self.value(request).unwrap_or_default()),
            _ => {}
        }
        copy
    }

    /// The value of a pseudo-header.
    fn value<'a>(&self, request: &Request<'a>) -> Option<&'a [u8]> {
        match self {
            Self::Method => Some(request.method),
            Self::Scheme => Some(request.scheme),
            Self::Authority => Some(request.authority),
            Self::Path => Some(request.path),
            Self::ServerName | Self::Field(_) => None,
        }
    }
}

/// The units of one rule set, in order.
#[derive(Debug, Default)]
pub(crate) struct Index {
    predicates: Vec<Predicate>,
    units: Vec<Unit>,
    /// Units without predicates.
    unconditional: Vec<u32>,
    /// For each predicate the units that are visited when it holds.
    visits: Vec<Box<[u32]>>,
    /// By identity those sets that select units to visit.
    remotes: HashMap<u32, Vec<u32>>,
    proxy_ids: Vec<(u16, u32)>,
    /// Predicates that hold while the server name is not known.
    unless_server_name_known: Vec<u32>,
    columns: Vec<(Source, Column)>,
    neighbours: Neighbours,
}

impl Index {
    /// `units` are `(rule, http_rule, predicates)` in the order in which they are to win.
    ///
    /// # Errors
    /// Text saying why the matchers cannot be combined.
    pub(crate) fn new(
        units: Vec<(u32, Option<u32>, Vec<&Predicate>)>,
        lowerings: &mut Lowerings,
    ) -> Result<Self, Arc<str>> {
        let predicates: usize = units.iter().map(|(_, _, predicates)| 1 + predicates.len()).sum();
        if !lowerings.effort.spend(predicates as u64 * Effort::RULE) {
            return Err(UNFINISHED.into());
        }
        let mut index = Self::default();
        let mut numbers: HashMap<&Predicate, u32> = HashMap::new();
        let mut uses: Vec<u32> = Vec::new();
        for (rule, http_rule, predicates) in &units {
            let mut own = Vec::with_capacity(predicates.len());
            for predicate in predicates {
                let next = index.predicates.len() as u32;
                let number = *numbers.entry(predicate).or_insert(next);
                if number == next {
                    index.predicates.push((*predicate).clone());
                    uses.push(0);
                }
                uses[number as usize] += 1;
                own.push(number);
            }
            index.units.push(Unit { rule: *rule, http_rule: *http_rule, predicates: own.into() });
        }
        let weights = weights(&index.predicates, &uses);
        let mut visits = vec![Vec::new(); index.predicates.len()];
        for (number, unit) in index.units.iter().enumerate() {
            match unit.predicates.iter().min_by_key(|p| weights[**p as usize]) {
                Some(rarest) => visits[*rarest as usize].push(number as u32),
                None => index.unconditional.push(number as u32),
            }
        }
        index.visits = visits.into_iter().map(Vec::into_boxed_slice).collect();
        index.neighbours = Neighbours::new(&index.predicates, &index.units, |p| weights[p as usize]);
        index.build_inputs(lowerings)?;
        Ok(index)
    }

    fn build_inputs(&mut self, lowerings: &mut Lowerings) -> Result<(), Arc<str>> {
        let mut columns: Vec<(Source, ColumnBuilder)> = Vec::new();
        let mut at: HashMap<Source, usize> = HashMap::new();
        let mut column_of = |source: Source| {
            *at.entry(source.clone()).or_insert_with(|| {
                columns.push((source, ColumnBuilder::default()));
                columns.len() - 1
            })
        };
        let mut parts: Vec<(usize, u32, Arc<HeaderMatcher>)> = Vec::new();
        for (number, predicate) in self.predicates.iter().enumerate() {
            let number = number as u32;
            match predicate {
                Predicate::Remotes(remotes)
                    if !self.visits[number as usize].is_empty() || self.neighbours.selects(number) =>
                {
                    for remote in remotes.iter() {
                        self.remotes.entry(*remote).or_default().push(number);
                    }
                }
                Predicate::ProxyId(id) => self.proxy_ids.push((*id, number)),
                Predicate::ServerNames { patterns, unless_known } => {
                    if *unless_known {
                        self.unless_server_name_known.push(number);
                    }
                    let column = column_of(Source::ServerName);
                    for pattern in patterns.iter() {
                        let matcher = HeaderMatcher::new("server_names", server_name::value(pattern)?);
                        parts.push((column, number, Arc::new(matcher)));
                    }
                }
                Predicate::Header(matcher) => {
                    parts.push((column_of(Source::of(&matcher.name)), number, matcher.clone()));
                }
                Predicate::Remotes(remotes) => self.neighbours.add_other_remotes(number, remotes),
                Predicate::Never { .. } => {}
            }
        }
        for (column, number, matcher) in &parts {
            columns[*column].1.add(*number, matcher, &*lowerings.lower(&matcher.value)?);
        }
        for (source, builder) in columns {
            self.columns.push((source, builder.build(self.predicates.len(), lowerings)?));
        }
        Ok(())
    }

    pub(crate) fn units(&self) -> &[Unit] {
        &self.units
    }

    pub(crate) fn predicate(&self, number: u32) -> &Predicate {
        &self.predicates[number as usize]
    }

    /// Gives `walk` the units whose predicates all hold. Allocates nothing up to 32,768 predicates and units, as long as no
    /// value takes too much work.
    pub(crate) fn candidates<R>(&self, subject: Subject<'_>, walk: impl FnOnce(&mut Candidates<'_>) -> R) -> R {
        self.evaluate(subject, |matched, units, given_up| {
            let undecided = match given_up.is_empty() {
                true => None,
                false => Some(Box::new(Undecided::new(self, subject, matched, units, given_up))),
            };
            walk(&mut Candidates { units, undecided })
        })
    }

    /// As [`Self::candidates`], with all that explaining needs. What takes too much work does not hold here.
    pub(crate) fn inspect<R>(&self, subject: Subject<'_>, look: impl FnOnce(&Decided<'_>) -> R) -> R {
        self.evaluate(subject, |matched, applicable, given_up| {
            if !given_up.is_empty() {
                let mut undecided = Undecided::new(self, subject, matched, applicable, given_up);
                undecided.settle(applicable);
            }
            look(&Decided { index: self, neighbours: &self.neighbours, subject, matched, applicable })
        })
    }

    /// Gives `walk` the predicates that hold, the units that apply, and the columns that gave up: nothing is known of what
    /// rests on their expressions.
    fn evaluate<R>(&self, subject: Subject<'_>, walk: impl FnOnce(&mut [u64], &mut [u64], Vec<u32>) -> R) -> R {
        let words = bits::words(self.predicates.len().max(self.units.len()));
        // Zeroing is the cost of a large set, so a small one gets a small one.
        match words {
            0..=2 => self.evaluate_in(subject, (&mut [0; 2], &mut [0; 2]), walk),
            3..=32 => self.evaluate_in(subject, (&mut [0; 32], &mut [0; 32]), walk),
            33..=512 => self.evaluate_in(subject, (&mut [0; 512], &mut [0; 512]), walk),
            _ => self.evaluate_in(subject, (&mut vec![0; words], &mut vec![0; words]), walk),
        }
    }

    fn evaluate_in<R>(
        &self,
        subject: Subject<'_>,
        (matched, units): (&mut [u64], &mut [u64]),
        walk: impl FnOnce(&mut [u64], &mut [u64], Vec<u32>) -> R,
    ) -> R {
        let given_up = self.decide(subject, matched);
        self.unconditional.iter().for_each(|unit| bits::insert(units, *unit));
        bits::for_each(matched, |predicate| {
            for &unit in &self.visits[predicate as usize] {
                let rest = &self.units[unit as usize].predicates;
                if rest.iter().all(|p| self.holds(*p, subject, matched)) {
                    bits::insert(units, unit);
                }
            }
        });
        walk(matched, units, given_up)
    }

    /// For each predicate whether it holds; `None` where finding out takes too much work.
    pub(crate) fn decisions(&self, subject: Subject<'_>) -> Vec<Option<bool>> {
        let all: Vec<u32> = (0..self.predicates.len() as u32).collect();
        self.decisions_on(&all, subject)
    }

    /// The same for some predicates.
    pub(crate) fn decisions_on(&self, predicates: &[u32], subject: Subject<'_>) -> Vec<Option<bool>> {
        self.evaluate(subject, |matched, units, given_up| {
            let mut undecided = Undecided::new(self, subject, matched, units, given_up);
            predicates.iter().map(|p| undecided.holds(*p)).collect()
        })
    }

    pub(super) fn column(&self, number: u32) -> (&Source, &Column) {
        let (source, column) = &self.columns[number as usize];
        (source, column)
    }

    pub(super) fn holds(&self, predicate: u32, subject: Subject<'_>, matched: &[u64]) -> bool {
        match &self.predicates[predicate as usize] {
            // Only those that select units to visit are among the decided ones.
            Predicate::Remotes(remotes) => remotes.binary_search(&subject.flow.remote.0).is_ok(),
            _ => bits::contains(matched, predicate),
        }
    }

    /// The columns whose expressions take too much work together, so that nothing is known of them; nearly always none.
    fn decide(&self, subject: Subject<'_>, matched: &mut [u64]) -> Vec<u32> {
        if !self.remotes.is_empty()
            && let Some(predicates) = self.remotes.get(&subject.flow.remote.0)
        {
            predicates.iter().for_each(|p| bits::insert(matched, *p));
        }
        for (id, predicate) in &self.proxy_ids {
            if *id == subject.flow.proxy_id {
                bits::insert(matched, *predicate);
            }
        }
        if subject.flow.server_name == ServerName::Unknown {
            self.unless_server_name_known.iter().for_each(|p| bits::insert(matched, *p));
        }
        let mut given_up = Vec::new();
        for ((source, column), number) in self.columns.iter().zip(0..) {
            if !decide_column(source, column, subject, matched) {
                given_up.push(number);
            }
        }
        given_up
    }
}

/// For each predicate an estimate of how many units are visited in the worst case when it selects them; smaller is
/// rarer, and on equal terms a look at a header beats one at the peer.
fn weights(predicates: &[Predicate], uses: &[u32]) -> Vec<(u32, bool)> {
    let mut by_identity: HashMap<u32, u32> = HashMap::new();
    for (predicate, uses) in predicates.iter().zip(uses) {
        if let Predicate::Remotes(remotes) = predicate {
            for remote in remotes.iter() {
                *by_identity.entry(*remote).or_default() += uses;
            }
        }
    }
    let weight = |(predicate, uses): (&Predicate, &u32)| match predicate {
        Predicate::Remotes(remotes) => {
            let visits = remotes.iter().filter_map(|remote| by_identity.get(remote));
            (visits.max().copied().unwrap_or_default(), true)
        }
        // Holds for nearly every value.
        Predicate::Header(matcher)
            if matcher.invert || matches!(matcher.value, ValueMatch::Present(_) | ValueMatch::Any) =>
        {
            (u32::MAX, true)
        }
        Predicate::ProxyId(_) => (*uses, true),
        Predicate::Header(_) | Predicate::ServerNames { .. } | Predicate::Never { .. } => (*uses, false),
    };
    predicates.iter().zip(uses).map(weight).collect()
}

fn decide_column(source: &Source, column: &Column, subject: Subject<'_>, matched: &mut [u64]) -> bool {
    if *source == Source::ServerName {
        return decide_server_name(subject, column, matched);
    }
    let Some(request) = subject.request else {
        return true;
    };
    if let Source::Field(name) = source {
        return decide_field(name, column, (request, subject.work), matched);
    }
    // An empty pseudo-header is one that the request does not have.
    source.value(request).is_none_or(|value| column.decide((!value.is_empty()).then_some(value), matched, subject.work))
}

/// The value of a field that is no ordinary one; `None` for those that are.
pub(crate) fn pseudo_header<'a>(name: &str, request: &Request<'a>) -> Option<&'a [u8]> {
    Source::pseudo_header(name)?.value(request)
}

/// Server names compare in lower case. A DNS name has at most 253 bytes; a longer one costs an allocation, but a deny
/// must not be dodged with it.
fn decide_server_name(subject: Subject<'_>, column: &Column, matched: &mut [u64]) -> bool {
    let ServerName::Name(name) = subject.flow.server_name else { return true };
    if name.is_empty() {
        return true;
    }
    let mut buffer = [0; 255];
    match buffer.get_mut(..name.len()) {
        Some(lower) => {
            lower.copy_from_slice(name.as_bytes());
            lower.make_ascii_lowercase();
            column.decide(Some(lower), matched, subject.work)
        }
        None => column.decide(Some(name.to_ascii_lowercase().as_bytes()), matched, subject.work),
    }
}

fn decide_field(name: &str, column: &Column, (request, work): (&Request<'_>, &Work), matched: &mut [u64]) -> bool {
    let mut count = 0;
    request.headers.each(name, &mut |_| count += 1);
    match count {
        0 => column.decide(None, matched, work),
        1 => {
            let mut complete = true;
            request.headers.each(name, &mut |value| complete &= column.decide(Some(value), matched, work));
            complete
        }
        _ => {
            let mut joined = Vec::new();
            let mut first = true;
            request.headers.each(name, &mut |value| join(&mut joined, &mut first, value));
            column.decide(Some(&joined), matched, work)
        }
    }
}

/// Several instances are one value with a bare comma between them.
fn join(joined: &mut Vec<u8>, first: &mut bool, value: &[u8]) {
    if !std::mem::take(first) {
        joined.push(b',');
    }
    joined.extend_from_slice(value);
}

weight!(Index: predicates, units, unconditional, visits, remotes, proxy_ids, unless_server_name_known, columns, neighbours);
weight!(Unit: predicates);

impl Weight for Predicate {
    fn weigh(&self, scale: &mut Scale) {
        match self {
            Self::Remotes(remotes) => remotes.weigh(scale),
            Self::ServerNames { patterns, .. } => patterns.weigh(scale),
            Self::Header(matcher) => matcher.weigh(scale),
            Self::Never { field, reason } => {
                field.weigh(scale);
                reason.weigh(scale);
            }
            Self::ProxyId(_) => {}
        }
    }
}

impl Weight for Source {
    fn weigh(&self, scale: &mut Scale) {
        if let Self::Field(name) = self {
            name.weigh(scale);
        }
    }
}
