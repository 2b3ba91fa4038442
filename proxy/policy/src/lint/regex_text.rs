//! What the text of a regular expression gives away about its author, whatever field it is for.

use super::finding::{Element, Finding, Lint};
use super::probe::Probes;
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

/// Whether the rest of what could be said about the pattern would miss the point.
pub(super) fn check(element: &Element, matcher: &HeaderMatcher, findings: &mut Vec<Finding>) -> bool {
    let ValueMatch::Regex(pattern) = &matcher.value else {
        return false;
    };
    check_anchors(element, pattern, findings);
    check_glob(element, without_anchors(pattern).2, findings)
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
    if !first && !last {
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

/// A star that repeats one literal letter or slash, where words end.
fn check_glob(element: &Element, pattern: &str, findings: &mut Vec<Finding>) -> bool {
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
        format!("{:?}, if any text is meant", format!("{}.*{}", &pattern[..at], &pattern[at + 1..])),
    ));
    true
}

/// A pattern that says nothing. Asked last: where something else is wrong with it, that is the thing to say.
pub(super) fn check_match_all(element: &Element, matcher: &HeaderMatcher, findings: &mut Vec<Finding>) {
    let everything =
        Probes::default().of(&matcher.value).is_some_and(|p| p.accepts_everything(&*matcher.name == ":path"));
    if everything && !matcher.invert && !matcher.treat_missing_as_empty {
        let field = &matcher.name;
        let (what, instead) = if field.starts_with(':') {
            (format!("{} matches every request", matcher.value), "leave the matcher out".to_owned())
        } else {
            (format!("{} matches whatever `{field}` says", matcher.value), "write `present_match: true`".to_owned())
        };
        findings.push(Finding::new(Lint::MatchesEverything, element.clone(), what, instead));
    }
}
