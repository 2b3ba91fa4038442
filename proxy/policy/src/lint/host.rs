//! Matchers on `:authority`, also where it is called `host`: the host as the client sent it, with its port when it sent
//! one.

use super::finding::{Element, Finding, Lint};
use super::path::escape;
use super::probe::{Probe, Probes};
use super::regex_text;
use crate::model::{HeaderMatcher, TextPart, ValueMatch};

pub(super) fn check(element: &Element, matcher: &HeaderMatcher, probe: &Probe, port: u32, findings: &mut Vec<Finding>) {
    if matcher.invert {
        return;
    }
    let upper = |host: &String| host.contains(|c: char| c.is_ascii_uppercase()) && !accepts_lower(probe, host);
    if let Some(host) = probe.examples().iter().find(|host| probe.listed().is_some() && upper(host)) {
        let what = format!("{} allows {host:?} and not {:?}", matcher.value, host.to_ascii_lowercase());
        findings.push(Finding::new(Lint::HostUpperCase, element.clone(), what, "write it in lower case".to_owned()));
    }
    check_beginning(element, matcher, probe, findings);
    check_end(element, matcher, probe, findings);
    check_dots(element, matcher, probe, findings);
    check_port(element, matcher, probe, port, findings);
}

fn accepts_lower(probe: &Probe, host: &str) -> bool {
    probe.accepts(host.to_ascii_lowercase().as_bytes())
}

/// `.*example.com` is the host of anybody who registers a name that ends so; `.*[.]example.com` is not.
fn check_beginning(element: &Element, matcher: &HeaderMatcher, probe: &Probe, findings: &mut Vec<Finding>) {
    let end = match &matcher.value {
        ValueMatch::Text { part: TextPart::Suffix, text, .. } => text.to_string(),
        ValueMatch::Regex(pattern) if pattern.starts_with(".*") || pattern.starts_with(".+") => {
            let example = probe.examples().into_iter().next().unwrap_or_default();
            match pattern.starts_with(".+") {
                true => example.get(1..).unwrap_or_default().to_owned(),
                false => example,
            }
        }
        _ => return,
    };
    let tried = format!("evil{end}");
    if end.is_empty() || end.starts_with(['.', ':']) || !probe.accepts(tried.as_bytes()) {
        return;
    }
    findings.push(Finding::new(
        Lint::OpenBeginning,
        element.clone(),
        format!("{} allows {tried:?} too", matcher.value),
        format!("the regex {:?} for it and the names below it", format!("(.*\\.)?{}", end.replace('.', "\\."))),
    ));
}

/// `shop[.]example[.]com.*` is also the host of whoever has a name such as `shop.example.com.evil.example`.
fn check_end(element: &Element, matcher: &HeaderMatcher, probe: &Probe, findings: &mut Vec<Finding>) {
    // A pattern that does not say how a host begins means any host, and is spoken about elsewhere.
    if probe.beginning().is_empty() {
        return;
    }
    let longer = |host: String| (format!("{host}.evil.example"), host);
    let ends = probe.examples().into_iter().filter(|host| !host.contains(':')).map(longer);
    let Some((tried, host)) = ends.into_iter().find(|(tried, _)| probe.accepts(tried.as_bytes())) else {
        return;
    };
    let closed = match &matcher.value {
        ValueMatch::Regex(pattern) => {
            let bare = regex_text::without_anchors(pattern).2;
            let closed = bare.strip_suffix(".*").or_else(|| bare.strip_suffix(".+")).unwrap_or(bare);
            with_dots_escaped(closed, &bare_dots(closed))
        }
        _ => escape(host.trim_end_matches('.')),
    };
    findings.push(Finding::new(
        Lint::HostSuffix,
        element.clone(),
        format!("{} allows {tried:?} too", matcher.value),
        format!("the regex {:?}", format!("{closed}(:[0-9]+)?")),
    ));
}

/// Each bare `.` before a letter or digit is tried with another character in its place.
fn check_dots(element: &Element, matcher: &HeaderMatcher, probe: &Probe, findings: &mut Vec<Finding>) {
    let ValueMatch::Regex(pattern) = &matcher.value else {
        return;
    };
    let dots = bare_dots(pattern);
    let Some(first) = dots.first() else {
        return;
    };
    let with = |dot: usize, text: &str| format!("{}{text}{}", &pattern[..dot], &pattern[dot + 1..]);
    let tried = Probes::default().of(&ValueMatch::Regex(with(*first, "x").into())).map(|other| other.examples());
    let Some(tried) = tried.and_then(|tried| tried.into_iter().find(|host| probe.accepts(host.as_bytes()))) else {
        return;
    };
    let instead = with_dots_escaped(pattern, &dots);
    findings.push(Finding::new(
        Lint::HostUnescapedDot,
        element.clone(),
        format!("{} allows {tried:?} too", matcher.value),
        format!("{instead:?}"),
    ));
}

/// Where a `.` stands before a letter or digit.
fn bare_dots(pattern: &str) -> Vec<usize> {
    let tokens = regex_text::tokens(pattern);
    let bare = |pair: &&[regex_text::Token]| {
        pair[0].char == '.' && !pair[0].escaped && !pair[1].escaped && pair[1].char.is_ascii_alphanumeric()
    };
    tokens.windows(2).filter(bare).map(|pair| pair[0].at).collect()
}

fn with_dots_escaped(pattern: &str, dots: &[usize]) -> String {
    dots.iter().rev().fold(pattern.to_owned(), |text, dot| format!("{}\\.{}", &text[..*dot], &text[*dot + 1..]))
}

fn check_port(element: &Element, matcher: &HeaderMatcher, probe: &Probe, port: u32, findings: &mut Vec<Finding>) {
    if matches!(port, 0 | 80 | 443) || probe.beginning().contains(&b':') {
        return;
    }
    let missed = probe.examples().into_iter().map(|host| (format!("{host}:{port}"), host));
    let missed = missed.filter(|(_, host)| !host.is_empty() && !host.contains(':'));
    if let Some((with_port, host)) = missed.into_iter().find(|(with_port, _)| !probe.accepts(with_port.as_bytes())) {
        findings.push(Finding::new(
            Lint::HostWithoutPort,
            element.clone(),
            format!("{} allows {host:?} and not {with_port:?}", matcher.value),
            match &matcher.value {
                ValueMatch::Regex(pattern) => {
                    let bare = regex_text::without_anchors(pattern).2;
                    let grouped = if bare.contains('|') { format!("({bare})") } else { bare.to_owned() };
                    format!("{:?}, if clients name the port", format!("{grouped}(:[0-9]+)?"))
                }
                _ => format!(
                    "the regex {:?}, if clients name the port",
                    format!("{}(:[0-9]+)?", host.replace('.', "\\."))
                ),
            },
        ));
    }
}
