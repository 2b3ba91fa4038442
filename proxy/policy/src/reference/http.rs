//! Section 1.5: what an HTTP rule asks of a request.

use super::Truth;
use super::header_match;
use super::regex;
use crate::Request;
use crate::model::{HeaderMatcher, HttpRule, TextPart, ValueMatch};

/// Whether every matcher of the rule holds, so that its header matches are run; none: any request.
pub(super) fn matches(rule: &HttpRule, request: &Request<'_>) -> Truth {
    let supported = if rule.unsupported.is_empty() { Truth::Holds } else { Truth::Unenforceable };
    let matches = rule.header_matches.iter().map(header_match::enforceable);
    let conditions = rule.headers.iter().map(|matcher| header(matcher, request));
    matches.chain(conditions).fold(supported, Truth::and)
}

fn header(matcher: &HeaderMatcher, request: &Request<'_>) -> Truth {
    if !is_header_name(&matcher.name) {
        return Truth::Unenforceable;
    }
    let value = value_of(&matcher.name, request);
    if let ValueMatch::Present(wanted) = matcher.value {
        // A field that counts as an empty one when it is missing is always there.
        let there = value.is_some() || matcher.treat_missing_as_empty;
        // Presence is the one test that sees a missing field, and so the one that is inverted on it.
        return Truth::of((there == wanted) != matcher.invert);
    }
    // Even for a request that does not have the field: a matcher that makes no sense makes none for any request.
    let empty: &[u8] = b"";
    let Some(matched) = value_matches(&matcher.value, value.as_deref().unwrap_or(empty)) else {
        return Truth::Unenforceable;
    };
    if value.is_none() && !matcher.treat_missing_as_empty {
        return Truth::Fails;
    }
    Truth::of(matched != matcher.invert)
}

pub(super) fn is_header_name(name: &str) -> bool {
    match name.strip_prefix(':') {
        Some(pseudo) => ["method", "path", "authority", "scheme"].contains(&pseudo),
        None => {
            let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            !name.is_empty() && name.chars().all(token)
        }
    }
}

/// Several instances are one value with a bare comma between them. `Host` is `:authority`. A pseudo-header without a
/// value is one that the request does not have.
pub(super) fn value_of(name: &str, request: &Request<'_>) -> Option<Vec<u8>> {
    let pseudo = match name {
        ":method" => request.method,
        ":scheme" => request.scheme,
        ":authority" | "host" => request.authority,
        ":path" => request.path,
        _ => {
            let mut instances: Vec<Vec<u8>> = Vec::new();
            request.headers.each(name, &mut |value| instances.push(value.to_vec()));
            return (!instances.is_empty()).then(|| instances.join(&b','));
        }
    };
    (!pseudo.is_empty()).then(|| pseudo.to_vec())
}

/// `None`: the test itself makes no sense or cannot be honoured.
fn value_matches(wanted: &ValueMatch, value: &[u8]) -> Option<bool> {
    match wanted {
        ValueMatch::Present(_) | ValueMatch::Any => Some(true),
        ValueMatch::Text { part, text, .. } if text.is_empty() && *part != TextPart::Whole => None,
        ValueMatch::Text { part, text, ignore_case } => Some(text_matches(*part, text.as_bytes(), *ignore_case, value)),
        ValueMatch::Regex(pattern) => regex::matches_in_full(pattern, value),
        ValueMatch::Range { start, end } => {
            let number = integer(value);
            Some(number.is_some_and(|number| *start <= number && number < *end))
        }
        ValueMatch::Unsupported(_) => None,
    }
}

fn text_matches(part: TextPart, text: &[u8], ignore_case: bool, value: &[u8]) -> bool {
    let equal = |some: &[u8]| if ignore_case { some.eq_ignore_ascii_case(text) } else { some == text };
    let length = text.len();
    match part {
        TextPart::Whole => equal(value),
        TextPart::Prefix => value.len() >= length && equal(&value[..length]),
        TextPart::Suffix => value.len() >= length && equal(&value[value.len() - length..]),
        TextPart::Anywhere => value.windows(length).any(equal),
    }
}

/// A base-10 integer of 64 bits, one sign and white space around it allowed.
fn integer(value: &[u8]) -> Option<i64> {
    let white = |b: &&u8| matches!(b, b' ' | b'\t' | b'\n' | b'\x0b' | b'\x0c' | b'\r');
    let start = value.iter().take_while(white).count();
    let end = value.len() - value[start..].iter().rev().take_while(white).count();
    let (sign, digits) = match &value[start..end] {
        [b'-', digits @ ..] => (-1, digits),
        [b'+', digits @ ..] => (1, digits),
        digits => (1, digits),
    };
    if digits.is_empty() {
        return None;
    }
    let mut number: i128 = 0;
    for digit in digits {
        let digit = digit.is_ascii_digit().then(|| i128::from(digit - b'0'))?;
        number = (number * 10 + sign * digit).clamp(i128::from(i64::MIN) - 1, i128::from(i64::MAX) + 1);
    }
    i64::try_from(number).ok()
}
