//! Matchers on `:authority`, also where it is called `host`: the host as the client sent it, with its port when it sent
//! one.

use std::collections::HashSet;

use super::condition::{Condition, Others};
use super::finding::{Element, Finding, Lint};
use super::path::escape;
use super::probe::{Probe, Probes};
use super::regex_text;
use super::shape::Open;
use crate::model::{HeaderMatcher, TextPart, ValueMatch};

pub(super) fn check(condition: &Condition<'_>, port: u32, findings: &mut Vec<Finding>) {
    let Condition { element, matcher, probe, others } = condition;
    if matcher.invert {
        return check_exclusion(element, matcher, probe, others, port, findings);
    }
    let upper = |host: &String| host.contains(|c: char| c.is_ascii_uppercase()) && !accepts_lower(probe, host);
    if let Some(host) = probe.examples().iter().find(|host| probe.listed().is_some() && upper(host)) {
        let what = format!("{} allows {host:?} and not {:?}", matcher.value, host.to_ascii_lowercase());
        findings.push(Finding::new(Lint::HostUpperCase, element.clone(), what, "write it in lower case".to_owned()));
    }
    check_open(element, matcher, probe, others, findings);
    check_dots(element, matcher, probe, findings);
    check_port(element, matcher, probe, port, findings);
}

fn accepts_lower(probe: &Probe, host: &str) -> bool {
    probe.accepts(host.to_ascii_lowercase().as_bytes())
}

/// "Everything but this host" has to exclude its other spellings as well: back ends ignore case, port and a final dot.
fn check_exclusion(
    element: &Element,
    matcher: &HeaderMatcher,
    probe: &Probe,
    others: &Others,
    port: u32,
    findings: &mut Vec<Finding>,
) {
    let port = if port == 0 { 80 } else { port };
    for host in probe.examples().iter().filter(|host| !host.is_empty()) {
        let bare = host.split(':').next().unwrap_or_default();
        let mut ways = vec![host.to_ascii_uppercase()];
        if !matches!(&matcher.value, ValueMatch::Text { part: TextPart::Prefix | TextPart::Anywhere, .. }) {
            // Of a host that ends in a dot, only when it is all of it.
            let ended = probe.listed().is_some() || !bare.ends_with('.');
            let bare = bare.trim_end_matches('.');
            let whole = probe.listed().map(|_| bare.to_owned());
            ways.extend([format!("{bare}:{port}"), format!("{bare}.")].into_iter().chain(whole).filter(|_| ended));
        }
        let dodges: Vec<String> = ways
            .iter()
            .filter(|way| *way != host && !probe.accepts(way.as_bytes()) && others.accept(way.as_bytes()))
            .map(|way| format!("{way:?}"))
            .collect();
        if dodges.is_empty() {
            continue;
        }
        let text = match &matcher.value {
            ValueMatch::Text { part: TextPart::Prefix, text, .. } => format!("{}.*", escape(text)),
            ValueMatch::Text { part: TextPart::Suffix, text, .. } => format!(".*{}", escape(text)),
            ValueMatch::Text { part: TextPart::Anywhere, text, .. } => format!(".*{}.*", escape(text)),
            ValueMatch::Regex(pattern) => format!("({})", regex_text::without_anchors(pattern).2),
            _ => escape(bare.trim_end_matches('.')),
        };
        let wider = format!("(?i){text}\\.?(:[0-9]+)?");
        let covers = |wider: &Probe| ways.iter().chain([host]).all(|way| wider.accepts(way.as_bytes()));
        let wider = regex_text::proven(&wider, covers).map(|wider| format!("; or invert the regex {wider:?}"));
        findings.push(Finding::new(
            Lint::HostExclusionDodged,
            element.clone(),
            format!("everything but {} is allowed, and so is {}", matcher.value, dodges.join(", ")),
            format!("list the hosts that are fine{}", wider.unwrap_or_default()),
        ));
        return;
    }
}

/// Where a client may choose what stands there, a host of its own may stand: `evilexample.com` for `.*example.com`,
/// `shop.example.com.evil.example` for `shop.example.com.*`. Each is tried.
fn check_open(element: &Element, matcher: &HeaderMatcher, probe: &Probe, others: &Others, findings: &mut Vec<Finding>) {
    let open = match &matcher.value {
        ValueMatch::Text { part: TextPart::Suffix, text, .. } => {
            vec![Open { before: String::new(), after: text.to_string(), dots: true }]
        }
        ValueMatch::Text { part: TextPart::Prefix, text, .. } => {
            vec![Open { before: text.to_string(), after: String::new(), dots: true }]
        }
        ValueMatch::Text { part: TextPart::Anywhere, text, .. } => vec![
            Open { before: String::new(), after: text.to_string(), dots: true },
            Open { before: text.to_string(), after: String::new(), dots: true },
        ],
        _ => probe.open(),
    };
    let mut said = HashSet::new();
    for Open { before, after, dots } in open {
        let lint = match (before.is_empty(), after.is_empty()) {
            (true, true) => continue, // any host is meant, which is spoken about elsewhere
            (true, false) => Lint::OpenBeginning,
            (false, true) => Lint::HostSuffix,
            (false, false) => Lint::OpenMiddle,
        };
        if before.contains(':') || after.starts_with(['.', ':']) || said.contains(&lint) {
            continue;
        }
        // Without a dot it stays below the domain that stands there, unless only the top of one does.
        let below = after.split(':').next().unwrap_or_default().matches('.').count() > 1;
        let own_label = after.starts_with(|c: char| c.is_ascii_alphanumeric()) && !below;
        let tries: &[&str] = match lint {
            Lint::HostSuffix if before.ends_with('.') => &["evil.example"],
            Lint::HostSuffix => &[".evil.example"],
            Lint::OpenBeginning if dots || own_label => &["evil"],
            Lint::OpenMiddle if dots => &["x.evil"],
            Lint::OpenMiddle if own_label => &["evil"],
            _ => &[],
        };
        let tried = tries.iter().map(|inserted| format!("{before}{inserted}{after}"));
        let accepted = |tried: &String| probe.accepts(tried.as_bytes()) && others.accept(tried.as_bytes());
        let Some(tried) = tried.into_iter().find(accepted) else { continue };
        said.insert(lint);
        let instead = match lint {
            Lint::OpenBeginning => closed_beginning(matcher, &tried),
            Lint::HostSuffix => closed_end(matcher, &before, &tried),
            _ => "the domain in full, with `\\.` in front of it where names below it are meant".to_owned(),
        };
        let what = format!("{} allows {tried:?} too", matcher.value);
        findings.push(Finding::new(lint, element.clone(), what, instead));
    }
}

fn closed_beginning(matcher: &HeaderMatcher, tried: &str) -> String {
    let closed = match &matcher.value {
        ValueMatch::Text { text, .. } => Some(format!("(.*\\.)?{}", escape(text))),
        ValueMatch::Regex(pattern) => {
            let bare = regex_text::without_anchors(pattern).2;
            // What asks for one character at least does not take the domain itself.
            let ways = [("(.*)", "(.*\\.)?"), (".*", "(.*\\.)?"), ("(.+)", ".*\\."), (".+", ".*\\.")];
            let closed = ways.iter().find_map(|(open, closed)| Some(format!("{closed}{}", bare.strip_prefix(open)?)));
            closed.map(|closed| regex_text::with_dots_escaped(&closed, &regex_text::bare_dots(&closed)))
        }
        _ => None,
    };
    let proven = closed.and_then(|closed| regex_text::proven(&closed, |closed| !closed.accepts(tried.as_bytes())));
    match proven {
        Some(closed) => format!("the regex {closed:?} for it and the names below it"),
        None => "`(.*\\.)?` in front of the domain, and nothing else".to_owned(),
    }
}

fn closed_end(matcher: &HeaderMatcher, before: &str, tried: &str) -> String {
    let closed = match &matcher.value {
        ValueMatch::Regex(pattern) => {
            let bare = regex_text::without_anchors(pattern).2;
            let ways = [("(.*)", "(:[0-9]+)?"), (".*", "(:[0-9]+)?"), ("(.+)", ":[0-9]+"), (".+", ":[0-9]+")];
            let closed = ways.iter().find_map(|(open, port)| Some((bare.strip_suffix(open)?, port)));
            closed.map(|(closed, port)| {
                format!("{}{port}", regex_text::with_dots_escaped(closed, &regex_text::bare_dots(closed)))
            })
        }
        _ if before.ends_with('.') => None, // no host by itself
        _ => Some(format!("{}(:[0-9]+)?", escape(before))),
    };
    let proven = closed.and_then(|closed| regex_text::proven(&closed, |closed| !closed.accepts(tried.as_bytes())));
    match proven {
        Some(closed) => format!("the regex {closed:?}"),
        None => "the whole host, and at its end nothing but `(:[0-9]+)?`".to_owned(),
    }
}

/// Each bare `.` before a letter or digit is tried with another character in its place.
fn check_dots(element: &Element, matcher: &HeaderMatcher, probe: &Probe, findings: &mut Vec<Finding>) {
    let ValueMatch::Regex(pattern) = &matcher.value else {
        return;
    };
    let dots = regex_text::bare_dots(pattern);
    let Some(first) = dots.first() else {
        return;
    };
    let with = |dot: usize, text: &str| format!("{}{text}{}", &pattern[..dot], &pattern[dot + 1..]);
    let tried = Probes::default().of(&ValueMatch::Regex(with(*first, "x").into())).map(|other| other.examples());
    let Some(tried) = tried.and_then(|tried| tried.into_iter().find(|host| probe.accepts(host.as_bytes()))) else {
        return;
    };
    let instead = regex_text::with_dots_escaped(pattern, &dots);
    findings.push(Finding::new(
        Lint::HostUnescapedDot,
        element.clone(),
        format!("{} allows {tried:?} too", matcher.value),
        format!("{instead:?}"),
    ));
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
