//! Matchers on `:path`: the canonical path with its query, compared in full.

use super::alternatives::Alternatives;
use super::finding::{Element, Finding, Lint};
use super::probe::{Probe, Probes};
use super::regex_text::without_anchors;
use crate::model::{HeaderMatcher, TextPart, ValueMatch};

pub(super) fn check(
    element: &Element,
    matcher: &HeaderMatcher,
    probe: &Probe,
    alternatives: &Alternatives<'_>,
    probes: &mut Probes,
    findings: &mut Vec<Finding>,
) {
    if matcher.invert {
        check_exclusion(element, matcher, probe, findings);
        return;
    }
    if check_never(element, matcher, probe, findings)
        || check_open_beginning(element, matcher, probe, findings)
        || check_prefix_meant(element, matcher, probe, findings)
    {
        return;
    }
    let mut allowed = |path: &str| probe.accepts(path.as_bytes()) || alternatives.admit_path(path.as_bytes(), probes);
    let examples = probe.examples();
    if let Some(path) = examples.iter().find(|path| !path.contains('?') && !allowed(&format!("{path}?x=1"))) {
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
    if probe.listed().is_none() {
        return;
    }
    // A last segment with a dot names a file, which has nothing below it.
    let directory = |path: &&String| {
        let file = path.rsplit('/').next().is_some_and(|segment| segment.contains('.'));
        path.len() > 1 && !path.ends_with('/') && !path.contains(['?', ';']) && !file
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
                format!("the regex {:?}, if everything below is meant too", format!("{}([/;?].*)?", escape(path))),
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
fn check_exclusion(element: &Element, matcher: &HeaderMatcher, probe: &Probe, findings: &mut Vec<Finding>) {
    for path in probe.examples() {
        let bare = path.trim_end_matches('/');
        let ways: Vec<String> = ["/", "?x=1", ";x=1", "/x"]
            .iter()
            .map(|end| format!("{bare}{end}"))
            .filter(|way| !probe.accepts(way.as_bytes()))
            .map(|way| format!("{way:?}"))
            .collect();
        if !ways.is_empty() {
            let pattern = format!("{}([/;?].*)?", escape(bare));
            findings.push(Finding::new(
                Lint::PathExclusionDodged,
                element.clone(),
                format!("everything but {} is allowed, and so is {}", matcher.value, ways.join(", ")),
                format!("list the paths that are fine; or invert the regex {pattern:?}"),
            ));
            return;
        }
    }
}

fn check_never(element: &Element, matcher: &HeaderMatcher, probe: &Probe, findings: &mut Vec<Finding>) -> bool {
    let problem = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        let path = text.split('?').next().unwrap_or_default();
        if text.is_empty() || &*text == "*" {
            None
        } else if !text.starts_with('/') {
            Some("does not begin with `/`")
        } else if path.contains("//") {
            Some("has `//`, which becomes one slash")
        } else if path.contains("/./") || path.contains("/../") || path.ends_with("/.") || path.ends_with("/..") {
            Some("has `.` or `..` as a segment, which is resolved")
        } else if text.contains('#') {
            Some("has `#`, which is never sent")
        } else {
            None
        }
    };
    let beginning = [Box::from(probe.beginning())];
    let texts = probe.listed().unwrap_or(&beginning);
    let found = texts.iter().map(|text| problem(text)).collect::<Option<Vec<_>>>();
    // A beginning that ends early may still become a slash.
    let Some(why) = found.and_then(|problems| problems.first().copied()) else {
        return false;
    };
    let whole = probe.listed().is_some();
    if !whole
        && why != "does not begin with `/`"
        && why != "has `#`, which is never sent"
        && !why.starts_with("has `//`")
    {
        return false;
    }
    findings.push(Finding::new(
        Lint::PathNeverMatches,
        element.clone(),
        format!("no path is {}: it {why}", matcher.value),
        "write the path as a server sees it, beginning with `/`".to_owned(),
    ));
    true
}

fn check_open_beginning(
    element: &Element,
    matcher: &HeaderMatcher,
    probe: &Probe,
    findings: &mut Vec<Finding>,
) -> bool {
    let (end, instead) = match &matcher.value {
        ValueMatch::Regex(pattern) => {
            let pattern = without_anchors(pattern).2;
            let open = [".*", ".+"].iter().find_map(|open| pattern.strip_prefix(open));
            let Some(end) = open.filter(|rest| !rest.is_empty()) else {
                return false;
            };
            (probe.examples().into_iter().next().unwrap_or_default(), format!("/[^/?]*{end}"))
        }
        ValueMatch::Text { part: TextPart::Suffix | TextPart::Anywhere, text, .. } if !text.is_empty() => {
            (text.to_string(), format!("/[^/?]*{}", escape(text)))
        }
        _ => return false,
    };
    let tried = format!("/anything?or=this{end}");
    if !probe.accepts(tried.as_bytes()) {
        return false;
    }
    findings.push(Finding::new(
        Lint::OpenBeginning,
        element.clone(),
        format!("{} allows {tried:?} too", matcher.value),
        format!("name the beginning, such as the regex {instead:?}"),
    ));
    true
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
