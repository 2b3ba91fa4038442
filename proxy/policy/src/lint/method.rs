//! Matchers on `:method`.

use super::alternatives::{Alternatives, accepts};
use super::finding::{Element, Finding, Lint};
use super::probe::{Probe, Probes};
use crate::model::{HeaderMatcher, HttpRule};

/// Methods that clients send: RFC 9110, PATCH, and WebDAV with its extensions.
/// Source: the IANA HTTP Method Registry.
const KNOWN: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

pub(super) fn check(element: &Element, matcher: &HeaderMatcher, probe: &Probe, findings: &mut Vec<Finding>) {
    if matcher.invert {
        return;
    }
    for method in probe.listed().unwrap_or_default() {
        let method = String::from_utf8_lossy(method);
        let upper = method.to_ascii_uppercase();
        if KNOWN.contains(&&*method) || method.is_empty() {
            continue;
        }
        let (lint, instead) = if !KNOWN.contains(&&*upper) {
            (Lint::UnknownMethod, unknown_method_remedy(&method))
        } else if probe.accepts(upper.as_bytes()) {
            continue;
        } else {
            (Lint::MethodLowerCase, format!("{upper:?}"))
        };
        let what = match lint {
            Lint::UnknownMethod => format!("no client sends the method {method:?}"),
            _ => format!("{} allows {method:?} and not {upper:?}", matcher.value),
        };
        findings.push(Finding::new(lint, element.clone(), what, instead));
    }
}

fn unknown_method_remedy(method: &str) -> String {
    let words: Vec<&str> =
        method.split(|c: char| !c.is_ascii_alphabetic() && c != '-').filter(|w| !w.is_empty()).collect();
    match words.len() {
        0 | 1 => "a method such as \"GET\"".to_owned(),
        _ => format!("the regex {:?}", words.join("|").to_ascii_uppercase()),
    }
}

/// GET is allowed where HEAD is not, by any of the alternatives with the same other conditions.
pub(super) fn check_head(
    element: &Element,
    http: &HttpRule,
    alternatives: &Alternatives<'_>,
    probes: &mut Probes,
    findings: &mut Vec<Finding>,
) {
    let method = http.headers.iter().enumerate().find(|(_, m)| &*m.name == ":method" && !m.invert);
    let Some((index, matcher)) = method else {
        return;
    };
    if !accepts(matcher, b"GET", probes) || accepts(matcher, b"HEAD", probes) || alternatives.admit_head(http, probes) {
        return;
    }
    findings.push(Finding::new(
        Lint::GetWithoutHead,
        element.header(index),
        format!("{} allows \"GET\" and not \"HEAD\"", matcher.value),
        "the regex \"GET|HEAD\", if HEAD is fine".to_owned(),
    ));
}
