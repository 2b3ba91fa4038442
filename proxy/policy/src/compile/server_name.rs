//! Patterns for TLS server names: dot-separated labels with `*` (inside a label) and `**` (whole labels).

use crate::model::{TextPart, ValueMatch};

/// Longest pattern, in bytes: as long as a name can be (RFC 1035 section 2.3.4). What it expands to is below the limit of any other
/// expression then.
pub(crate) const MAX_PATTERN: usize = 255;

/// What a server name, in lower case, is compared with for `pattern`.
///
/// # Errors
/// Text saying what is wrong with the pattern.
pub(super) fn value(pattern: &str) -> Result<ValueMatch, String> {
    Ok(match parse(pattern)? {
        Pattern::Exact(text) => ValueMatch::Text { part: TextPart::Whole, text, ignore_case: false },
        Pattern::Expression(expression) => ValueMatch::Regex(expression),
    })
}

/// What one pattern accepts, for a server name in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// This name.
    Exact(Box<str>),
    /// Names that match this expression in full.
    Expression(Box<str>),
}

/// Reads a pattern.
///
/// # Errors
/// Text saying what is wrong with it.
pub(crate) fn parse(pattern: &str) -> Result<Pattern, String> {
    if pattern.is_empty() {
        return Err("is empty".into());
    }
    if pattern.len() > MAX_PATTERN {
        return Err(format!("has {} bytes, and {MAX_PATTERN} are the most of a name", pattern.len()));
    }
    let lower = pattern.to_ascii_lowercase();
    if let Some(c) = lower.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_*.".contains(*c))) {
        return Err(format!("{c:?} is not allowed in a server name pattern"));
    }
    if lower.split('.').any(str::is_empty) {
        return Err("has an empty label (a leading, trailing or doubled dot)".into());
    }
    if lower.split('.').any(|label| label != "**" && label.contains("**")) {
        return Err("`**` must be a whole label".into());
    }
    if !lower.contains('*') {
        return Ok(Pattern::Exact(lower.into()));
    }
    const LABELS: &str = "[-a-z0-9_]+(?:[.][-a-z0-9_]+)*";
    if lower == "*" {
        return Ok(Pattern::Expression(LABELS.into()));
    }
    let labels: Vec<String> = lower
        .split('.')
        .map(|label| match label {
            "**" => LABELS.to_owned(),
            label => label.replace('*', "[-a-z0-9_]*"),
        })
        .collect();
    Ok(Pattern::Expression(labels.join("[.]").into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        for bad in ["", ".", "a.", ".a", "a..b", "***", "a**", "**a.b", "a.***.b", "a+b", "a b", "[a]", "é.com", "a@b"]
        {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["*", "**", "a", "*.example.com", "a*b*c.d", "**.a.**", "_dmarc.x-y"] {
            assert!(parse(good).is_ok(), "{good:?} was refused");
        }
        // Nothing that is short enough becomes an expression that is too long.
        let longest = format!("{}**", "**.".repeat(84));
        assert_eq!(longest.len(), MAX_PATTERN - 1);
        let Ok(Pattern::Expression(expression)) = parse(&longest) else { panic!("{longest:?} was refused") };
        assert!(expression.len() <= crate::Limits::default().expression_bytes, "{}", expression.len());
        assert!(parse(&"a".repeat(MAX_PATTERN)).is_ok() && parse(&"a".repeat(MAX_PATTERN + 1)).is_err());
        assert_eq!(parse("A.Example"), Ok(Pattern::Exact("a.example".into())));
    }
}
