//! What the text of a regular expression gives away about its author, whatever field it is for.

use super::condition::Condition;
use super::finding::{Element, Finding, Lint};
use super::probe::{Probe, Probes};
use crate::model::{HeaderMatcher, ValueMatch};

/// One character of a pattern that is not part of a bracket class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Byte offset of the character, or of the backslash before it.
    pub(super) at: usize,
    pub(super) char: char,
    pub(super) escaped: bool,
}

/// The characters outside bracket classes. A class counts as an escaped `[`.
pub(super) fn tokens(pattern: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = pattern.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => {
                if let Some((_, char)) = chars.next() {
                    tokens.push(Token { at, char, escaped: true });
                }
            }
            '[' => {
                tokens.push(Token { at, char, escaped: true });
                let mut first = true;
                while let Some((_, inside)) = chars.next() {
                    match inside {
                        '\\' => drop(chars.next()),
                        '^' if first => continue,
                        ']' if !first => break,
                        _ => {}
                    }
                    first = false;
                }
            }
            char => tokens.push(Token { at, char, escaped: false }),
        }
    }
    tokens
}

/// Where a `.` stands before a letter or digit.
pub(super) fn bare_dots(pattern: &str) -> Vec<usize> {
    let tokens = tokens(pattern);
    let bare = |pair: &&[Token]| {
        pair[0].char == '.' && !pair[0].escaped && !pair[1].escaped && pair[1].char.is_ascii_alphanumeric()
    };
    tokens.windows(2).filter(bare).map(|pair| pair[0].at).collect()
}

pub(super) fn with_dots_escaped(pattern: &str, dots: &[usize]) -> String {
    dots.iter().rev().fold(pattern.to_owned(), |text, dot| format!("{}\\.{}", &text[..*dot], &text[*dot + 1..]))
}

/// An expression that is advised, if it is one and does what it is advised for.
pub(super) fn proven(pattern: &str, does: impl Fn(&Probe) -> bool) -> Option<String> {
    let probe = Probes::default().of(&ValueMatch::Regex(pattern.into()))?;
    does(&probe).then(|| pattern.to_owned())
}

/// Whether the rest of what could be said about the pattern would miss the point.
pub(super) fn check(element: &Element, matcher: &HeaderMatcher, findings: &mut Vec<Finding>) -> bool {
    let ValueMatch::Regex(pattern) = &matcher.value else {
        return false;
    };
    check_anchors(element, pattern, findings);
    // What is excluded is spoken about as such: with any text in the place of the star, what stands before it would be let in.
    !matcher.invert && check_glob(element, without_anchors(pattern).2, &*matcher.name == ":path", findings)
}

/// Whether the pattern begins with `^` and ends with `$`, and the pattern without them. A pattern has to match the whole
/// value, so nothing changes, also where the two bind to the first and last of several alternatives.
pub(super) fn without_anchors(pattern: &str) -> (bool, bool, &str) {
    let tokens = tokens(pattern);
    let first = tokens.first().is_some_and(|t| t.char == '^' && !t.escaped);
    let last = tokens.len() > 1 && tokens.last().is_some_and(|t| t.char == '$' && !t.escaped);
    let bare = pattern.strip_prefix('^').filter(|_| first).unwrap_or(pattern);
    (first, last, bare.strip_suffix('$').filter(|_| last).unwrap_or(bare))
}

fn check_anchors(element: &Element, pattern: &str, findings: &mut Vec<Finding>) {
    let (first, last, bare) = without_anchors(pattern);
    // In `\\Q…$` or before a repetition they are something else.
    let examples =
        |pattern: &str| Probes::default().of(&ValueMatch::Regex(pattern.into())).map(|probe| probe.examples());
    if !first && !last || examples(pattern) != examples(bare) {
        return;
    }
    let which = match (first, last) {
        (true, true) => "`^` and `$` are",
        (true, false) => "`^` is",
        _ => "`$` is",
    };
    findings.push(Finding::new(
        Lint::SuperfluousAnchors,
        element.clone(),
        format!("{which} superfluous in {pattern:?}"),
        format!("{bare:?}"),
    ));
}

/// A star that repeats one literal letter or slash, where words end. In the middle of a path any text would include a query.
fn check_glob(element: &Element, pattern: &str, path: bool, findings: &mut Vec<Finding>) -> bool {
    let tokens = tokens(pattern);
    let star = tokens.windows(2).enumerate().find_map(|(index, pair)| {
        let after = tokens.get(index + 2);
        let at_end = after.is_none_or(|t| !t.escaped && matches!(t.char, '/' | '.' | '$' | '|' | ')'));
        let repeats_literal = !pair[0].escaped && (pair[0].char.is_ascii_alphanumeric() || pair[0].char == '/');
        (pair[1].char == '*' && !pair[1].escaped && repeats_literal && at_end).then_some((pair[0].char, pair[1].at))
    });
    let Some((repeated, at)) = star else {
        return false;
    };
    findings.push(Finding::new(
        Lint::GlobInRegex,
        element.clone(),
        format!("in {pattern:?} the `*` repeats `{repeated}`, so nothing else may stand in its place"),
        match path && at + 1 < pattern.len() {
            true => format!("{:?}, if any segment is meant", format!("{}[^/?]*{}", &pattern[..at], &pattern[at + 1..])),
            false => format!("{:?}, if any text is meant", format!("{}.*{}", &pattern[..at], &pattern[at + 1..])),
        },
    ));
    true
}

/// An alternative that says nothing makes the others say nothing.
pub(super) fn check_alternatives(condition: &Condition<'_>, findings: &mut Vec<Finding>) -> bool {
    let Condition { element, matcher, probe, others } = condition;
    let tried = match &*matcher.name {
        ":path" => "/any/other",
        ":authority" | "host" => "any.other.example",
        _ => "anything",
    };
    let before = String::from_utf8_lossy(probe.beginning());
    let tried = [tried.to_owned(), format!("{before}{tried}")];
    let accepted = |tried: &&String| probe.accepts(tried.as_bytes()) && others.accept(tried.as_bytes());
    let Some(tried) = tried.iter().find(accepted).filter(|_| probe.is_swallowed(&*matcher.name == ":path")) else {
        return false;
    };
    if matcher.invert {
        return false; // it excludes more than was meant, which admits nothing
    }
    findings.push(Finding::new(
        Lint::OpenAlternative,
        element.clone(),
        format!("{} allows {tried:?} too, because what may stand for its alternatives is anything", matcher.value),
        "the alternatives alone, without `.*`".to_owned(),
    ));
    true
}

/// A pattern that says nothing. Asked last: where something else is wrong with it, that is the thing to say. `alone`: the HTTP
/// rule has no condition that says anything.
pub(super) fn check_match_all(condition: &Condition<'_>, alone: bool, findings: &mut Vec<Finding>) {
    let Condition { element, matcher, probe, .. } = condition;
    let every_path = &*matcher.name == ":path" && probe.accepts_every_path();
    if !probe.accepts_everything() && !every_path || matcher.invert || matcher.treat_missing_as_empty {
        return;
    }
    let kept = if alone { ", but not the HTTP rule: on a port without any, all bytes pass" } else { "" };
    let (what, instead) = match &*matcher.name {
        ":path" if every_path => {
            ("matches every path; all that it keeps out is `OPTIONS *`", "if that is fine, too, leave it out")
        }
        ":authority" | "host" => {
            ("matches every host; all that it keeps out is HTTP/1.0 without one", "if that is fine, too, leave it out")
        }
        name if name.starts_with(':') => ("matches every request", "leave it out"),
        _ => {
            let what = format!("{} matches whatever `{}` says in UTF-8", matcher.value, matcher.name);
            let instead = "write `present_match: true`, if bytes that are not UTF-8 are fine, too".to_owned();
            return findings.push(Finding::new(Lint::MatchesEverything, element.clone(), what, instead));
        }
    };
    let what = format!("{} {what}", matcher.value);
    findings.push(Finding::new(Lint::MatchesEverything, element.clone(), what, format!("{instead}{kept}")));
}
