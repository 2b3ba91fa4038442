//! All predicates on one header, decided together by looking at the value once.

use std::collections::HashMap;
use std::sync::Arc;

use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, Hir, Repetition};

use super::affix::AffixSet;
use super::automata::Automata;
use super::bits;
use super::regex_set::{RegexSet, check_size};
use super::work::Work;
use crate::limits::{Effort, Limits};
use crate::model::{HeaderMatcher, TextPart, ValueMatch};
use crate::re2::{self, Pattern};
use crate::weight::weight;

/// Up to this many literals are compared one by one.
const FEW_LITERALS: usize = 6;

/// Tests on one value and which predicates each of them decides.
#[derive(Debug, Default)]
pub(super) struct Column {
    few: Vec<(Box<[u8]>, u32)>,
    many: HashMap<Box<[u8]>, u32>,
    prefixes: Option<AffixSet>,
    suffixes: Option<AffixSet>,
    ranges: Vec<(i64, i64, u32)>,
    regexes: Option<Arc<RegexSet>>,
    /// For each expression of `regexes` its test.
    regex_tests: Vec<u32>,
    /// `(predicate, expression)` in order: which predicates rest on which expressions.
    askers: Box<[(u32, u32)]>,
    effects: Vec<Effect>,
    /// Predicates that hold when there is a value, unless a test says otherwise.
    present: Vec<u32>,
    /// Predicates that hold when there is none.
    missing: Vec<u32>,
}

/// What a test that succeeds means for predicates.
#[derive(Debug, Default)]
struct Effect {
    hold: Vec<u32>,
    fail: Vec<u32>,
}

/// One test on a value; equal tests are made once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Test {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Range(i64, i64),
}

/// Collects the predicates of a column.
#[derive(Debug, Default)]
pub(super) struct ColumnBuilder {
    tests: HashMap<Test, u32>,
    expressions: Vec<Arc<Hir>>,
    /// By address, since equal ones were read once: the test of each expression.
    expression_tests: HashMap<*const Hir, u32>,
    column: Column,
    /// Predicates that look at the empty value when there is none.
    missing_as_empty: Vec<u32>,
}

impl ColumnBuilder {
    /// Adds predicate `predicate`; `lowered` is what its value is tested for.
    pub(super) fn add(&mut self, predicate: u32, matcher: &HeaderMatcher, lowered: &Lowered) {
        let empty = matcher.treat_missing_as_empty;
        match &matcher.value {
            ValueMatch::Present(wanted) => {
                if *wanted != matcher.invert {
                    self.column.present.push(predicate);
                }
                if (empty == *wanted) != matcher.invert {
                    self.column.missing.push(predicate);
                }
                return;
            }
            ValueMatch::Any => {
                if !matcher.invert {
                    self.column.present.push(predicate);
                }
            }
            _ => {
                if matcher.invert {
                    self.column.present.push(predicate);
                }
                for test in self.tests_of(lowered) {
                    let effect = &mut self.column.effects[test as usize];
                    if matcher.invert {
                        effect.fail.push(predicate);
                    } else {
                        effect.hold.push(predicate);
                    }
                }
            }
        }
        if empty {
            self.missing_as_empty.push(predicate);
        }
    }

    /// The tests of which one must succeed.
    fn tests_of(&mut self, lowered: &Lowered) -> Vec<u32> {
        let test = match lowered {
            Lowered::Presence => return Vec::new(),
            Lowered::Exact(literals) => {
                return literals.iter().map(|literal| self.test(Test::Exact(literal.clone()))).collect();
            }
            Lowered::Prefix(literal) => Test::Prefix(literal.clone()),
            Lowered::Suffix(literal) => Test::Suffix(literal.clone()),
            Lowered::Range(start, end) => Test::Range(*start, *end),
            Lowered::Expression(hir) => return vec![self.expression_test(hir)],
        };
        vec![self.test(test)]
    }

    fn expression_test(&mut self, hir: &Arc<Hir>) -> u32 {
        let next = self.column.effects.len() as u32;
        let number = *self.expression_tests.entry(Arc::as_ptr(hir)).or_insert(next);
        if number == next {
            self.column.effects.push(Effect::default());
            self.column.regex_tests.push(number);
            self.expressions.push(hir.clone());
        }
        number
    }

    fn test(&mut self, test: Test) -> u32 {
        let next = self.column.effects.len() as u32;
        let number = *self.tests.entry(test).or_insert(next);
        if number == next {
            self.column.effects.push(Effect::default());
        }
        number
    }

    /// # Errors
    /// Text saying why the expressions cannot be combined.
    pub(super) fn build(self, predicates: usize, lowerings: &mut Lowerings) -> Result<Column, String> {
        let mut column = self.column;
        let mut literals = Vec::new();
        let (mut prefixes, mut suffixes) = (Vec::new(), Vec::new());
        for (test, number) in &self.tests {
            match test {
                Test::Exact(literal) => literals.push((literal.clone(), *number)),
                Test::Prefix(literal) => prefixes.push((&literal[..], *number)),
                Test::Suffix(literal) => suffixes.push((&literal[..], *number)),
                Test::Range(start, end) => column.ranges.push((*start, *end, *number)),
            }
        }
        if literals.len() <= FEW_LITERALS {
            column.few = literals;
        } else {
            column.many = literals.into_iter().collect();
        }
        column.prefixes = (!prefixes.is_empty()).then(|| AffixSet::prefixes(prefixes));
        column.suffixes = (!suffixes.is_empty()).then(|| AffixSet::suffixes(suffixes));
        if !self.expressions.is_empty() {
            column.regexes = Some(lowerings.automata.of(&self.expressions, &mut lowerings.effort)?);
            column.askers = column.askers();
        }
        if !self.missing_as_empty.is_empty() {
            let mut on_empty = vec![0; bits::words(predicates)];
            if !column.decide(Some(b""), &mut on_empty, &Work::default()) {
                return Err("deciding about an empty value takes too much work".to_owned());
            }
            let hold = self.missing_as_empty.iter().filter(|p| bits::contains(&on_empty, **p));
            column.missing.extend(hold);
        }
        Ok(column)
    }
}

impl Column {
    fn askers(&self) -> Box<[(u32, u32)]> {
        let effects = self.regex_tests.iter().map(|test| &self.effects[*test as usize]).zip(0..);
        let asking = effects.flat_map(|(effect, i)| effect.hold.iter().chain(&effect.fail).map(move |p| (*p, i)));
        let mut askers: Vec<_> = asking.collect();
        askers.sort_unstable();
        askers.into()
    }

    /// Predicates that rest on expressions, those expressions with each; in order.
    pub(super) fn asking(&self) -> &[(u32, u32)] {
        &self.askers
    }

    /// The expressions that this predicate rests on.
    pub(super) fn expressions_of(&self, predicate: u32) -> impl Iterator<Item = u32> {
        let first = self.askers.partition_point(|(asking, _)| *asking < predicate);
        self.askers[first..].iter().take_while(move |(asking, _)| *asking == predicate).map(|(_, i)| *i)
    }

    /// Whether one expression matches `value`; as [`RegexSet::matches`].
    pub(super) fn matches(&self, expression: u32, value: &[u8], work: &Work) -> Option<bool> {
        self.regexes.as_ref()?.matches(expression as usize, value, work)
    }

    /// Sets the bits of the predicates that hold for `value` (`None`: the header is absent). `false` when about those that
    /// rest on expressions nothing is known: their bits are set only where another test says so.
    #[must_use]
    pub(super) fn decide(&self, value: Option<&[u8]>, matched: &mut [u64], work: &Work) -> bool {
        let Some(value) = value else {
            self.missing.iter().for_each(|p| bits::insert(matched, *p));
            return true;
        };
        self.present.iter().for_each(|p| bits::insert(matched, *p));
        for (literal, test) in &self.few {
            if literal[..] == *value {
                self.apply(*test, matched);
            }
        }
        if !self.many.is_empty()
            && let Some(test) = self.many.get(value)
        {
            self.apply(*test, matched);
        }
        if let Some(prefixes) = &self.prefixes {
            prefixes.each_match(value, |test| self.apply(test, matched));
        }
        if let Some(suffixes) = &self.suffixes {
            suffixes.each_match(value, |test| self.apply(test, matched));
        }
        if !self.ranges.is_empty()
            && let Some(number) = integer(value)
        {
            for (start, end, test) in &self.ranges {
                if (*start..*end).contains(&number) {
                    self.apply(*test, matched);
                }
            }
        }
        if let Some(regexes) = &self.regexes
            && !regexes.each_match(value, work, |i| self.apply(self.regex_tests[i], matched))
        {
            // Nothing is known about these: neither they nor their inversions may hold.
            for test in &self.regex_tests {
                let effect = &self.effects[*test as usize];
                effect.fail.iter().for_each(|p| bits::remove(matched, *p));
            }
            return false;
        }
        true
    }

    fn apply(&self, test: u32, matched: &mut [u64]) {
        let effect = &self.effects[test as usize];
        effect.hold.iter().for_each(|p| bits::insert(matched, *p));
        effect.fail.iter().for_each(|p| bits::remove(matched, *p));
    }
}

/// Reads a base-10 integer as Envoy does: surrounding white space and one sign are allowed.
fn integer(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b').parse().ok()
}

/// What values are tested for, in the form in which it is tested; equal ones are read once.
#[derive(Debug)]
pub(crate) struct Lowerings {
    values: HashMap<ValueMatch, Result<Arc<Lowered>, Arc<str>>>,
    /// What the expressions among them were combined to.
    pub(super) automata: Automata,
    /// What an expression may be.
    pub(super) limits: Limits,
    /// What compiling may still take. Once it does not suffice, what was compiled is of no use.
    pub(crate) effort: Effort,
}

impl Default for Lowerings {
    fn default() -> Self {
        Self::within(Limits::default(), Effort::UNBOUNDED)
    }
}

impl Lowerings {
    pub(super) fn within(limits: Limits, effort: Effort) -> Self {
        Self { values: HashMap::new(), automata: Automata::default(), limits, effort }
    }

    /// Reads `value`.
    ///
    /// # Errors
    /// Text that names what is wrong with it.
    pub(super) fn lower(&mut self, value: &ValueMatch) -> Result<Arc<Lowered>, Arc<str>> {
        if let Some(known) = self.values.get(value) {
            return known.clone();
        }
        let lowered = lower(value, &self.limits, &mut self.effort).map(Arc::new).map_err(Arc::from);
        self.values.insert(value.clone(), lowered.clone());
        lowered
    }
}

/// A value test in the form in which it is made.
#[derive(Debug)]
pub(super) enum Lowered {
    /// Nothing about the value: the field is there or not.
    Presence,
    /// One of these.
    Exact(Vec<Box<[u8]>>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Range(i64, i64),
    Expression(Arc<Hir>),
}

fn lower(value: &ValueMatch, limits: &Limits, effort: &mut Effort) -> Result<Lowered, String> {
    match value {
        ValueMatch::Text { part, text, .. } if text.is_empty() && *part != TextPart::Whole => {
            Err(format!("{value}: an empty literal would match every value"))
        }
        ValueMatch::Text { part, text, ignore_case } => Ok(match (part, ignore_case) {
            (TextPart::Whole, false) => Lowered::Exact(vec![text.as_bytes().into()]),
            (TextPart::Prefix, false) => Lowered::Prefix(text.as_bytes().into()),
            (TextPart::Suffix, false) => Lowered::Suffix(text.as_bytes().into()),
            (part, ignore_case) => {
                effort.read(text.len())?;
                expression(text_expression(*part, text, *ignore_case), limits, effort)?
            }
        }),
        ValueMatch::Regex(pattern) if pattern.is_empty() => Err("the regex is empty".into()),
        ValueMatch::Regex(pattern) if pattern.len() > limits.expression_bytes => Err(format!(
            "regex of {} bytes, and {} are the most; write it shorter, as several rules, or have `policy.expression` of its \
             tenant raised",
            pattern.len(),
            limits.expression_bytes
        )),
        ValueMatch::Regex(pattern) => {
            effort.read(pattern.len())?;
            match re2::parse(pattern) {
                Ok(Pattern::Literals(literals)) => Ok(Lowered::Exact(literals)),
                Ok(Pattern::Expression(hir)) => expression(hir, limits, effort),
                Err(reason) => Err(format!("regex {pattern:?}: {reason}")),
            }
        }
        ValueMatch::Range { start, end } => Ok(Lowered::Range(*start, *end)),
        ValueMatch::Unsupported(what) => Err(what.to_string()),
        ValueMatch::Present(_) | ValueMatch::Any => Ok(Lowered::Presence),
    }
}

fn expression(hir: Hir, limits: &Limits, effort: &mut Effort) -> Result<Lowered, String> {
    check_size(&hir, limits.program_bytes, effort)?;
    Ok(Lowered::Expression(Arc::new(hir)))
}

fn text_expression(part: TextPart, text: &str, ignore_case: bool) -> Hir {
    let either_case = |b: u8| {
        let (lower, upper) = (b.to_ascii_lowercase(), b.to_ascii_uppercase());
        let ranges = [ClassBytesRange::new(lower, lower), ClassBytesRange::new(upper, upper)];
        if lower == upper { Hir::literal([b]) } else { Hir::class(Class::Bytes(ClassBytes::new(ranges))) }
    };
    let anything = || {
        Hir::repetition(Repetition {
            min: 0,
            max: None,
            greedy: true,
            sub: Box::new(Hir::class(Class::Bytes(ClassBytes::new([ClassBytesRange::new(0, 255)])))),
        })
    };
    let mut whole: Vec<Hir> = match ignore_case {
        true => text.bytes().map(either_case).collect(),
        false => vec![Hir::literal(text.as_bytes())],
    };
    if matches!(part, TextPart::Suffix | TextPart::Anywhere) {
        whole.insert(0, anything());
    }
    if matches!(part, TextPart::Prefix | TextPart::Anywhere) {
        whole.push(anything());
    }
    Hir::concat(whole)
}

weight!(Column: few, many, prefixes, suffixes, ranges, regexes, regex_tests, askers, effects, present, missing);
weight!(Effect: hold, fail);
