//! Matchers on `:path`: the canonical path with its query, compared in full.

use super::alternatives::Alternatives;
use super::below;
use super::condition::{Condition, Others};
use super::finding::{Element, Finding, Lint};
use super::probe::{Probe, Probes};
use super::regex_text::{bare_dots, proven, with_dots_escaped, without_anchors};
use super::shape::Open;
use crate::model::{HeaderMatcher, TextPart, ValueMatch};

pub(super) fn check(
    condition: &Condition<'_>,
    alternatives: &Alternatives<'_>,
    probes: &mut Probes,
    findings: &mut Vec<Finding>,
) {
    let Condition { element, matcher, probe, others } = condition;
    if matcher.invert {
        return check_exclusion(element, matcher, probe, others, findings);
    }
    check_dots(element, matcher, probe, others, findings);
    if check_never(element, matcher, probe, findings)
        || check_open(element, matcher, probe, others, findings)
        || check_prefix_meant(element, matcher, probe, findings)
    {
        return;
    }
    let mut allowed = |path: &str| probe.accepts(path.as_bytes()) || alternatives.admit_path(path.as_bytes(), probes);
    let examples = probe.examples();
    // No path is empty, and `OPTIONS *` has no query.
    let without_query = |path: &&String| path.starts_with('/') && !path.contains('?');
    if let Some(path) = examples.iter().filter(without_query).find(|path| !allowed(&format!("{path}?x=1"))) {
        findings.push(Finding::new(
            Lint::PathWithoutQuery,
            element.clone(),
            format!("{} allows {path:?} and not \"{path}?x=1\"", matcher.value),
            match &matcher.value {
                ValueMatch::Regex(pattern) => {
                    let bare = without_anchors(pattern).2;
                    let grouped = if bare.contains('|') { format!("({bare})") } else { bare.to_owned() };
                    format!("{:?}, if a query is fine", format!("{grouped}(\\?.*)?"))
                }
                _ => format!("the regex {:?}, if a query is fine", format!("{}(\\?.*)?", escape(path))),
            },
        ));
    }
    let Some(listed) = probe.listed() else { return };
    // A last segment with a dot names a file, which has nothing below it.
    let directory = |path: &&String| {
        let file = path.rsplit('/').next().is_some_and(|segment| segment.contains('.'));
        path.starts_with('/') && path.len() > 1 && !path.ends_with('/') && !path.contains(['?', ';']) && !file
    };
    for path in examples.iter().filter(directory) {
        let missed: Vec<String> =
            ["/", ";x"].iter().map(|end| format!("{path}{end}")).filter(|p| !allowed(p)).collect();
        if !missed.is_empty() {
            let missed: Vec<String> = missed.iter().map(|path| format!("{path:?}")).collect();
            findings.push(Finding::new(
                Lint::PathWithoutSlash,
                element.clone(),
                format!("{} allows {path:?} and not {}", matcher.value, missed.join(" or ")),
                match below::allowed(matcher, listed, directory) {
                    Some(pattern) => format!("the regex {pattern:?}, if everything below is meant too"),
                    None => format!("a regex with `{}` behind each path, if everything below is meant too", below::END),
                },
            ));
            return;
        }
    }
}

/// The text as a regular expression that matches it alone.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        if r"\.+*?()|[]{}^$".contains(char) {
            escaped.push('\\');
        }
        escaped.push(char);
    }
    escaped
}

/// "Everything but this path" has to exclude its other spellings as well.
fn check_exclusion(
    element: &Element,
    matcher: &HeaderMatcher,
    probe: &Probe,
    others: &Others,
    findings: &mut Vec<Finding>,
) {
    for path in probe.examples() {
        let bare = path.trim_end_matches('/');
        let ways: Vec<String> = ["/", "?x=1", ";x=1", "/x"]
            .iter()
            .map(|end| format!("{bare}{end}"))
            .filter(|way| !probe.accepts(way.as_bytes()) && others.accept(way.as_bytes()))
            .map(|way| format!("{way:?}"))
            .collect();
        if !ways.is_empty() {
            let inverted = match below::excluded(matcher, probe) {
                Some(pattern) => format!("invert the regex {pattern:?}"),
                None => format!("invert a regex that has `{}` behind each path that is not", below::END),
            };
            findings.push(Finding::new(
                Lint::PathExclusionDodged,
                element.clone(),
                format!("everything but {} is allowed, and so is {}", matcher.value, ways.join(", ")),
                format!("list the paths that are fine; or {inverted}"),
            ));
            return;
        }
    }
}

fn check_never(element: &Element, matcher: &HeaderMatcher, probe: &Probe, findings: &mut Vec<Finding>) -> bool {
    let beginnings = match (probe.listed(), probe.beginnings()) {
        (Some(listed), _) => listed.iter().map(|text| &**text).collect(),
        (None, Some(beginnings)) => beginnings,
        (None, None) => vec![probe.beginning()],
    };
    let whole = probe.listed().is_some();
    let never = beginnings.iter().filter_map(|text| Some((*text, never(text, whole)?)));
    let never: Vec<(&[u8], &str)> = never.collect();
    let Some((text, why)) = never.first() else {
        return false;
    };
    let all = never.len() == beginnings.len();
    let (what, instead) = match all {
        true => (
            format!("no path is {}: it {why}", matcher.value),
            "write the path as a server sees it, beginning with `/`".to_owned(),
        ),
        false => {
            let text = String::from_utf8_lossy(text);
            let begins = if whole { "is" } else { "begins with" };
            (
                format!("in {} the alternative that {begins} {text:?} is no path: it {why}", matcher.value),
                "`|` separates whole paths: put what is alternative in parentheses, such as `/api/(v1|v2)`".to_owned(),
            )
        }
    };
    findings.push(Finding::new(Lint::PathNeverMatches, element.clone(), what, instead));
    all
}

/// Why no path is the text, or begins with it.
fn never(text: &[u8], whole: bool) -> Option<&'static str> {
    let text = String::from_utf8_lossy(text);
    let path = text.split('?').next().unwrap_or_default();
    if text.is_empty() || &*text == "*" {
        None
    } else if !text.starts_with('/') {
        Some("does not begin with `/`")
    } else if text.contains('#') {
        Some("has `#`, which is never sent")
    } else if path.contains("//") {
        Some("has `//`, which becomes one slash unless the listener is told to leave it")
    } else if path.contains("/./") || path.contains("/../") || whole && (path.ends_with("/.") || path.ends_with("/.."))
    {
        // A beginning that ends so may go on as a longer segment.
        Some("has `.` or `..` as a segment, which is resolved unless the listener is told to leave it")
    } else {
        None
    }
}

/// Where a client may choose what stands there, it may choose a query, and in it whatever has to follow. It is tried.
fn check_open(
    element: &Element,
    matcher: &HeaderMatcher,
    probe: &Probe,
    others: &Others,
    findings: &mut Vec<Finding>,
) -> bool {
    let open = match &matcher.value {
        ValueMatch::Text { part: TextPart::Suffix | TextPart::Anywhere, text, .. } if !text.is_empty() => {
            vec![Open { before: String::new(), after: text.to_string(), dots: true }]
        }
        _ => probe.open(),
    };
    let accepts = |path: &str| probe.accepts(path.as_bytes()) && others.accept(path.as_bytes());
    for Open { before, after, .. } in open {
        if after.is_empty() || after.starts_with('?') || before.contains('?') {
            continue;
        }
        let from = if before.is_empty() { "/" } else { &before };
        // Without what has to follow it is fine by itself.
        let open = |text: &&str| {
            let alone = [text.split('?').next().unwrap_or_default(), *text];
            let fine = alone.iter().any(|text| accepts(&format!("{from}{text}")));
            !fine && accepts(&format!("{from}{text}{after}"))
        };
        let Some(text) = ["anything?or=this", "x?"].into_iter().find(open) else { continue };
        let tried = format!("{from}{text}{after}");
        let what = format!("{} allows {tried:?} too", matcher.value);
        let (lint, instead) = match before.is_empty() {
            true => (Lint::OpenBeginning, named_beginning(matcher)),
            false => (Lint::OpenMiddle, closed_middle(matcher, &tried)),
        };
        findings.push(Finding::new(lint, element.clone(), what, instead));
        return true;
    }
    false
}

/// A bare `.` takes `?` as well, which begins the query: `/v1.0/users` is also `/v1` with one.
fn check_dots(element: &Element, matcher: &HeaderMatcher, probe: &Probe, others: &Others, findings: &mut Vec<Finding>) {
    let ValueMatch::Regex(pattern) = &matcher.value else {
        return;
    };
    let dots = bare_dots(pattern);
    let tried = dots.iter().find_map(|dot| {
        let cut = format!("{}\\?{}", &pattern[..*dot], &pattern[dot + 1..]);
        let examples = Probes::default().of(&ValueMatch::Regex(cut.into()))?.examples();
        let accepted =
            |path: &String| path.starts_with('/') && probe.accepts(path.as_bytes()) && others.accept(path.as_bytes());
        examples.into_iter().find(accepted)
    });
    if let Some(tried) = tried {
        findings.push(Finding::new(
            Lint::PathUnescapedDot,
            element.clone(),
            format!("{} allows {tried:?} too", matcher.value),
            format!("{:?}, if a dot is meant", with_dots_escaped(pattern, &dots)),
        ));
    }
}

fn named_beginning(matcher: &HeaderMatcher) -> String {
    let end = match &matcher.value {
        ValueMatch::Regex(pattern) => {
            let pattern = without_anchors(pattern).2;
            ["(.*)", ".*", "(.+)", ".+"].iter().find_map(|open| pattern.strip_prefix(open)).map(str::to_owned)
        }
        ValueMatch::Text { text, .. } => Some(escape(text)),
        _ => None,
    };
    let closed = end.and_then(|end| proven(&format!("/[^/?]*{end}"), |closed| !closed.open().iter().any(is_open)));
    match closed {
        Some(closed) => format!("name the beginning, such as the regex {closed:?}"),
        None => "name the beginning, and `[^/?]*` for what may be anything".to_owned(),
    }
}

fn is_open(open: &Open) -> bool {
    open.before.is_empty() && !open.after.is_empty()
}

/// The expression with its `.*` as single segments.
fn closed_middle(matcher: &HeaderMatcher, tried: &str) -> String {
    let ValueMatch::Regex(pattern) = &matcher.value else {
        return "`[^/?]*` for what may be anything".to_owned();
    };
    let mut bare = without_anchors(pattern).2;
    let end =
        [".*", ".+"].iter().find(|end| bare.ends_with(**end) && !bare.ends_with("\\.*") && !bare.ends_with("\\.+"));
    bare = end.map_or(bare, |end| &bare[..bare.len() - end.len()]);
    let closed = bare.replace("[^/]", "[^/?]").replace(".*", "[^/?]*").replace(".+", "[^/?]+");
    let closed = format!("{closed}{}", end.unwrap_or(&""));
    let tried = |closed: &Probe| !closed.accepts(tried.as_bytes());
    match proven(&closed, tried) {
        Some(closed) => format!("{closed:?}, where `?` cannot stand; `[^?]*` for more than one segment"),
        None => "a class without `?` for what may be anything, such as `[^/?]*`".to_owned(),
    }
}

fn check_prefix_meant(element: &Element, matcher: &HeaderMatcher, probe: &Probe, findings: &mut Vec<Finding>) -> bool {
    let ValueMatch::Regex(pattern) = &matcher.value else {
        return false;
    };
    let Some([only]) = probe.listed() else {
        return false;
    };
    if only.len() < 2 || !only.ends_with(b"/") {
        return false;
    }
    let only = String::from_utf8_lossy(only);
    findings.push(Finding::new(
        Lint::PrefixMeant,
        element.clone(),
        format!("{} allows {only:?} and not \"{only}x\"", matcher.value),
        format!("{:?}, if everything below is meant", format!("{}.*", without_anchors(pattern).2)),
    ));
    true
}
