//! Regular expressions with RE2's meaning.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Hir, HirKind};

/// A parsed expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Matches exactly these bytes, so that no automaton is needed.
    Literal(Box<[u8]>),
    /// Everything else.
    Expression(Hir),
}

/// Reads one expression, on its own: what is not valid alone must not become valid by being anchored or combined.
///
/// # Errors
/// Text that names the construct that is invalid or cannot be given its meaning.
pub(crate) fn parse(pattern: &str) -> Result<Pattern, String> {
    if !pattern.contains(|c: char| r"\.+*?()|[]{}^$".contains(c)) {
        return Ok(Pattern::Literal(pattern.as_bytes().into()));
    }
    let hir = ParserBuilder::new()
        .unicode(false)
        .utf8(false)
        .build()
        .parse(pattern)
        .map_err(|error| error.to_string())?;
    Ok(match hir.kind() {
        HirKind::Empty => Pattern::Literal(Box::default()),
        HirKind::Literal(literal) => Pattern::Literal(literal.0.clone()),
        _ => Pattern::Expression(hir),
    })
}
