//! What the structure of an expression gives away: where a client chooses what stands there, and which alternatives there are.

use regex_syntax::hir::{Class, Hir, HirKind};

/// Most places of one expression that are looked at.
const PLACES: usize = 64;
/// Longest example that is made up.
const MAX_EXAMPLE: usize = 1 << 12;
/// How many characters a place has to take: one and a `?`.
const TAKES: u32 = 2;

/// A place in an expression at which several characters of some class may stand, with what stands around it at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) before: String,
    pub(super) after: String,
    /// There may be dots.
    pub(super) dots: bool,
}

/// The places of an expression, in their order.
pub(super) fn open(hir: &Hir) -> Vec<Open> {
    let mut found = places(hir);
    found.truncate(PLACES);
    found
        .into_iter()
        .filter_map(|(before, after, dots)| {
            Some(Open { before: String::from_utf8(before).ok()?, after: String::from_utf8(after).ok()?, dots })
        })
        .collect()
}

type Place = (Vec<u8>, Vec<u8>, bool);

fn places(hir: &Hir) -> Vec<Place> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Literal(_) | HirKind::Class(_) => Vec::new(),
        HirKind::Repetition(repetition) => {
            let long = repetition.max.is_none_or(|max| max >= TAKES);
            match is_character(&repetition.sub) && long {
                true => vec![(Vec::new(), Vec::new(), takes(&repetition.sub, '.'))],
                false => places(&repetition.sub),
            }
        }
        HirKind::Capture(capture) => places(&capture.sub),
        HirKind::Alternation(parts) => parts.iter().flat_map(places).take(PLACES).collect(),
        HirKind::Concat(parts) => {
            let texts: Option<Vec<Vec<u8>>> = parts.iter().map(example).collect();
            let Some(texts) = texts else { return Vec::new() };
            let mut found = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                for (before, after, dots) in places(part) {
                    let before = [texts[..index].concat(), before].concat();
                    let after = [after, texts[index + 1..].concat()].concat();
                    found.push((before, after, dots));
                }
                if found.len() > PLACES {
                    break;
                }
            }
            found
        }
    }
}

/// Without groups around it.
fn bare(hir: &Hir) -> &Hir {
    match hir.kind() {
        HirKind::Capture(capture) => bare(&capture.sub),
        _ => hir,
    }
}

/// Whether it is one character of some class. Beyond ASCII that is an alternative of sequences of bytes.
fn is_character(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Class(_) => true,
        HirKind::Literal(literal) => literal.0.len() == 1,
        HirKind::Capture(capture) => is_character(&capture.sub),
        HirKind::Concat(parts) => parts.iter().all(|part| matches!(part.kind(), HirKind::Class(_))),
        HirKind::Alternation(parts) => parts.iter().all(is_character),
        HirKind::Empty | HirKind::Look(_) | HirKind::Repetition(_) => false,
    }
}

/// Whether this ASCII character is one of them.
fn takes(hir: &Hir, char: char) -> bool {
    match hir.kind() {
        HirKind::Class(class) => holds(class, char),
        HirKind::Literal(literal) => *literal.0 == [char as u8],
        HirKind::Capture(capture) => takes(&capture.sub, char),
        HirKind::Alternation(parts) => parts.iter().any(|part| takes(part, char)),
        _ => false,
    }
}

fn holds(class: &Class, char: char) -> bool {
    match class {
        Class::Bytes(class) => {
            class.iter().any(|r| (u32::from(r.start())..=u32::from(r.end())).contains(&(char as u32)))
        }
        Class::Unicode(class) => class.iter().any(|r| (r.start()..=r.end()).contains(&char)),
    }
}

/// The alternatives of a whole expression; itself when it has none.
pub(super) fn alternatives(hir: &Hir) -> Vec<&Hir> {
    match bare(hir).kind() {
        HirKind::Alternation(parts) if !is_character(hir) => parts.iter().flat_map(alternatives).collect(),
        _ => vec![hir],
    }
}

/// Whether one of several alternatives, here or inside, `takes_all` that the others do. `whole`: those of the whole expression.
pub(super) fn is_swallowed(hir: &Hir, whole: bool, takes_all: &dyn Fn(&Hir, bool) -> bool) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Literal(_) | HirKind::Class(_) => false,
        HirKind::Repetition(repetition) => is_swallowed(&repetition.sub, false, takes_all),
        HirKind::Capture(capture) => is_swallowed(&capture.sub, whole, takes_all),
        HirKind::Concat(parts) => {
            // Alternatives that may be left out, before anything.
            let optional = |part: &Hir| match part.kind() {
                HirKind::Repetition(repetition) if repetition.min == 0 => alternatives(&repetition.sub).len() > 1,
                _ => false,
            };
            parts.windows(2).any(|pair| optional(&pair[0]) && takes_all(bare(&pair[1]), false))
                || parts.iter().any(|part| is_swallowed(part, false, takes_all))
        }
        HirKind::Alternation(parts) => {
            parts.iter().any(|part| takes_all(bare(part), whole))
                && !parts.iter().all(|part| takes_all(bare(part), whole))
                || parts.iter().any(|part| is_swallowed(part, whole, takes_all))
        }
    }
}

/// A value that the expression accepts, as short as it comes; `None` when there is none or it is too long.
pub(super) fn example(hir: &Hir) -> Option<Vec<u8>> {
    let mut example = Vec::new();
    write_example(hir, &mut example).then_some(example)
}

fn write_example(hir: &Hir, out: &mut Vec<u8>) -> bool {
    if out.len() > MAX_EXAMPLE {
        return false;
    }
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => true,
        HirKind::Literal(literal) => {
            out.extend_from_slice(&literal.0);
            true
        }
        HirKind::Class(class) => {
            let familiar = "xa1A0-_/".chars().find(|char| holds(class, *char));
            let familiar = familiar.or_else(|| ('a'..='z').find(|char| holds(class, *char)));
            match (familiar, class) {
                (Some(char), _) => out.extend(char.to_string().bytes()),
                (None, Class::Bytes(class)) => out.extend(class.iter().next().map(|range| range.start())),
                (None, Class::Unicode(class)) => {
                    out.extend(class.iter().next().map(|range| range.start().to_string()).unwrap_or_default().bytes());
                }
            }
            !class.is_empty()
        }
        HirKind::Repetition(repetition) => (0..repetition.min).all(|_| write_example(&repetition.sub, out)),
        HirKind::Capture(capture) => write_example(&capture.sub, out),
        HirKind::Concat(parts) => parts.iter().all(|part| write_example(part, out)),
        HirKind::Alternation(parts) => {
            let length = out.len();
            parts.iter().any(|part| {
                out.truncate(length);
                write_example(part, out)
            })
        }
    }
}
