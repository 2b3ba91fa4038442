//! Questions to one value matcher: does it accept this value, which values does it accept at all, and does it accept
//! everything that another one does.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use regex_automata::meta;
use regex_syntax::hir::{Class, Hir, HirKind, Look};

use super::shape::{self, Open};
use crate::model::{TextPart, ValueMatch};
use crate::re2::{self, Pattern};

/// Alternatives of an expression of which an example is made up.
const EXAMPLES: usize = 16;
/// Bytes of automaton that one probe may use.
const SIZE_LIMIT: usize = 4 << 20;

/// Probes by what they ask about, so that equal matchers are compiled once.
#[derive(Debug, Default)]
pub(super) struct Probes(HashMap<ValueMatch, Option<Rc<Probe>>>);

impl Probes {
    /// `None` for a matcher that is not enforced as written, about which nothing can be said.
    pub(super) fn of(&mut self, value: &ValueMatch) -> Option<Rc<Probe>> {
        if let Some(known) = self.0.get(value) {
            return known.clone();
        }
        let probe = Probe::new(value).map(Rc::new);
        self.0.insert(value.clone(), probe.clone());
        probe
    }
}

/// A value matcher that can be asked.
#[derive(Debug)]
pub(super) struct Probe {
    value: ValueMatch,
    /// The values, when there are only these.
    listed: Option<Vec<Box<[u8]>>>,
    expression: Option<Expression>,
}

struct Expression {
    hir: Hir,
    whole: meta::Regex,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hir.fmt(f)
    }
}

impl Probe {
    fn new(value: &ValueMatch) -> Option<Self> {
        let mut probe = Self { value: value.clone(), listed: None, expression: None };
        match value {
            ValueMatch::Unsupported(_) => return None,
            ValueMatch::Text { part: TextPart::Whole, text, ignore_case: false } => {
                probe.listed = Some(vec![text.as_bytes().into()]);
            }
            ValueMatch::Regex(pattern) => match re2::parse(pattern).ok()? {
                Pattern::Literals(literals) => probe.listed = Some(literals),
                Pattern::Expression(hir) => {
                    let whole = Hir::concat(vec![Hir::look(Look::Start), hir.clone(), Hir::look(Look::End)]);
                    let config = meta::Config::new().utf8_empty(false).nfa_size_limit(Some(SIZE_LIMIT));
                    let whole = meta::Builder::new().configure(config).build_from_hir(&whole).ok()?;
                    probe.expression = Some(Expression { hir, whole });
                }
            },
            _ => {}
        }
        Some(probe)
    }

    /// Whether a field with this value matches, without regard to inversion.
    pub(super) fn accepts(&self, value: &[u8]) -> bool {
        if let Some(listed) = &self.listed {
            return listed.iter().any(|literal| **literal == *value);
        }
        match &self.value {
            ValueMatch::Present(wanted) => *wanted,
            ValueMatch::Any => true,
            ValueMatch::Text { part, text, ignore_case } => {
                let fold = |bytes: &[u8]| if *ignore_case { bytes.to_ascii_lowercase() } else { bytes.to_vec() };
                let (value, text) = (fold(value), fold(text.as_bytes()));
                match part {
                    TextPart::Whole => value == text,
                    TextPart::Prefix => value.starts_with(&text),
                    TextPart::Suffix => value.ends_with(&text),
                    TextPart::Anywhere => contains(&value, &text),
                }
            }
            ValueMatch::Range { start, end } => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok());
                number.is_some_and(|number| (*start..*end).contains(&number))
            }
            ValueMatch::Regex(_) => self.expression.as_ref().is_some_and(|e| e.whole.is_match(value)),
            ValueMatch::Unsupported(_) => false,
        }
    }

    /// All values that it accepts, when they are a list.
    pub(super) fn listed(&self) -> Option<&[Box<[u8]>]> {
        self.listed.as_deref()
    }

    /// Some values that it accepts: all that are listed, or one for each alternative that is made up.
    pub(super) fn examples(&self) -> Vec<String> {
        let made_up: Vec<Vec<u8>> = match (&self.listed, &self.expression, &self.value) {
            (Some(listed), ..) => listed.iter().map(|literal| literal.to_vec()).collect(),
            (_, Some(expression), _) => {
                shape::alternatives(&expression.hir).into_iter().take(EXAMPLES).filter_map(shape::example).collect()
            }
            (.., ValueMatch::Text { text, .. }) => vec![text.as_bytes().to_vec()],
            _ => Vec::new(),
        };
        let accepted = made_up.into_iter().filter(|example| self.accepts(example));
        accepted.filter_map(|example| String::from_utf8(example).ok()).collect()
    }

    /// What every accepted value begins with; empty when that is not known.
    pub(super) fn beginning(&self) -> &[u8] {
        match (&self.listed, &self.expression, &self.value) {
            (Some(listed), ..) if listed.len() == 1 => &listed[0],
            (_, Some(expression), _) => leading_literal(&expression.hir),
            (None, None, ValueMatch::Text { part: TextPart::Prefix, text, ignore_case: false }) => text.as_bytes(),
            _ => b"",
        }
    }

    /// What values have to begin with, where nothing else is asked of them (but that a `.*` takes it).
    pub(super) fn prefix(&self) -> Option<&[u8]> {
        match (&self.value, &self.expression) {
            (ValueMatch::Text { part: TextPart::Prefix, text, ignore_case: false }, _) => Some(text.as_bytes()),
            (_, Some(expression)) => prefix_before_anything(&expression.hir),
            _ => None,
        }
    }

    /// Whether every value that `other` accepts is accepted here. `false` when that cannot be shown.
    pub(super) fn covers(&self, other: &Self) -> bool {
        if self.value == other.value {
            return true;
        }
        if matches!(other.value, ValueMatch::Present(false)) || matches!(self.value, ValueMatch::Present(false)) {
            return false;
        }
        if matches!(self.value, ValueMatch::Present(true) | ValueMatch::Any) {
            return true;
        }
        if let Some(listed) = &other.listed {
            return listed.iter().all(|literal| self.accepts(literal));
        }
        match &self.value {
            ValueMatch::Text { part: TextPart::Prefix, text, ignore_case: false } => {
                other.beginning().starts_with(text.as_bytes())
            }
            ValueMatch::Text { part, text, ignore_case: false } => match &other.value {
                ValueMatch::Text { part: other_part, text: other_text, ignore_case: false } => {
                    let inside = contains(other_text.as_bytes(), text.as_bytes());
                    let at_end = *other_part == TextPart::Suffix && other_text.ends_with(&**text);
                    (*part == TextPart::Anywhere && inside) || (*part == TextPart::Suffix && at_end)
                }
                _ => false,
            },
            ValueMatch::Range { start, end } => match other.value {
                ValueMatch::Range { start: first, end: after } => *start <= first && after <= *end,
                _ => false,
            },
            ValueMatch::Regex(_) => self.covers_as_prefix(other),
            _ => false,
        }
    }

    /// For `text.*` against an expression that begins with the text: `.*` takes any UTF-8 without a line feed.
    fn covers_as_prefix(&self, other: &Self) -> bool {
        let (Some(mine), Some(theirs)) = (&self.expression, &other.expression) else {
            return false;
        };
        let Some(prefix) = prefix_before_anything(&mine.hir) else {
            return false;
        };
        leading_literal(&theirs.hir).starts_with(prefix)
            && theirs.hir.properties().is_utf8()
            && !may_hold_line_feed(&theirs.hir)
    }

    /// Whether it is an expression that accepts any text at all.
    pub(super) fn accepts_everything(&self) -> bool {
        self.hir().and_then(prefix_before_anything) == Some(b"")
    }

    /// Whether it is an expression that accepts every path: `/.*`.
    pub(super) fn accepts_every_path(&self) -> bool {
        self.hir().and_then(prefix_before_anything) == Some(b"/")
    }

    /// Whether one of its alternatives accepts whatever the others do, `/.*` among the alternatives for a `path` as well.
    pub(super) fn is_swallowed(&self, path: bool) -> bool {
        let takes_all = |hir: &Hir, whole: bool| match prefix_before_anything(hir) {
            Some(b"") => true,
            Some(b"/") => path && whole,
            _ => false,
        };
        self.hir().is_some_and(|hir| shape::is_swallowed(hir, true, &takes_all))
    }

    /// What each of its alternatives begins with, for an expression.
    pub(super) fn beginnings(&self) -> Option<Vec<&[u8]>> {
        Some(shape::alternatives(self.hir()?).into_iter().map(leading_literal).collect())
    }

    /// Where a client chooses what stands there, for an expression.
    pub(super) fn open(&self) -> Vec<Open> {
        self.hir().map(shape::open).unwrap_or_default()
    }

    fn hir(&self) -> Option<&Hir> {
        self.expression.as_ref().map(|expression| &expression.hir)
    }
}

fn contains(value: &[u8], part: &[u8]) -> bool {
    part.is_empty() || value.windows(part.len()).any(|window| window == part)
}

/// The `text` of an expression `text.*`.
fn prefix_before_anything(hir: &Hir) -> Option<&[u8]> {
    let Ok(Pattern::Expression(anything)) = re2::parse(".*") else {
        return None;
    };
    if *hir == anything {
        return Some(b"");
    }
    match hir.kind() {
        HirKind::Concat(parts) => match &parts[..] {
            [first, rest] if *rest == anything => match first.kind() {
                HirKind::Literal(literal) => Some(&literal.0),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

fn leading_literal(hir: &Hir) -> &[u8] {
    match hir.kind() {
        HirKind::Literal(literal) => &literal.0,
        // What is looked for takes nothing.
        HirKind::Concat(parts) => {
            parts.iter().find(|part| !matches!(part.kind(), HirKind::Look(_))).map_or(b"", leading_literal)
        }
        HirKind::Capture(capture) => leading_literal(&capture.sub),
        _ => b"",
    }
}

fn may_hold_line_feed(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => literal.0.contains(&b'\n'),
        HirKind::Class(Class::Bytes(class)) => class.iter().any(|r| (r.start()..=r.end()).contains(&b'\n')),
        HirKind::Class(Class::Unicode(class)) => class.iter().any(|r| (r.start()..=r.end()).contains(&'\n')),
        HirKind::Repetition(repetition) => may_hold_line_feed(&repetition.sub),
        HirKind::Capture(capture) => may_hold_line_feed(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(may_hold_line_feed),
    }
}
