//! Regular expressions with RE2's meaning, for RE2's default options over UTF-8 text, matched against whole values.
//!
//! The parser is our own because the syntax that Rust's regex crates accept differs from RE2's in places where both
//! are valid and mean different things: `\s` with or without `\v`, `[a[b]]`, `&&` in classes, `\b{start}`, `(?x)`. What
//! RE2 refuses is refused here; what it accepts either means the same or is refused by name, never something else.
//!
//! Refused although RE2 accepts it, and nothing else is:
//! - Unicode classes (`\pN`, `\p{Greek}`) and ignoring the case of letters beyond ASCII: both depend on the version of the
//!   Unicode tables.
//! - `\x{d800}` to `\x{dfff}`: surrogates, which are no characters.
//! - A repetition behind a group that only sets flags, and group names beyond ASCII.
//! - Groups nested deeper than [`MAX_DEPTH`], and what needs a larger automaton than one expression may.
//! - The empty expression, as Envoy refuses it.
//!
//! Source: <https://github.com/google/re2/wiki/Syntax>, and the behaviour of the library itself.

mod class;
mod parser;

use regex_syntax::hir::literal::Extractor;
use regex_syntax::hir::{Hir, HirKind};

/// Deepest nesting of groups.
const MAX_DEPTH: u32 = 250;
/// RE2's limit of a counted repetition, also of nested ones multiplied.
const MAX_REPEAT: u32 = 1000;

/// A parsed expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Matches exactly these values, so that no automaton is needed.
    Literals(Vec<Box<[u8]>>),
    /// Everything else.
    Expression(Hir),
}

/// Reads one expression, on its own: what is not valid alone must not become valid by being anchored or combined.
///
/// # Errors
/// Text that names the construct that is invalid or cannot be given its meaning.
pub(crate) fn parse(pattern: &str) -> Result<Pattern, String> {
    if !pattern.contains(|c: char| r"\.+*?()|[]{}^$".contains(c)) {
        return Ok(Pattern::Literals(vec![pattern.as_bytes().into()]));
    }
    let hir = parser::parse(pattern)?;
    match hir.kind() {
        HirKind::Empty => return Ok(Pattern::Literals(vec![Box::default()])),
        HirKind::Literal(literal) => return Ok(Pattern::Literals(vec![literal.0.clone()])),
        _ => {}
    }
    // Only what has a longest match can be a list of values.
    if hir.properties().look_set().is_empty() && hir.properties().maximum_len().is_some() {
        let all = Extractor::new().extract(&hir);
        if let Some(literals) = all.literals()
            && all.is_exact()
            && !literals.is_empty()
        {
            return Ok(Pattern::Literals(literals.iter().map(|l| l.as_bytes().into()).collect()));
        }
    }
    Ok(Pattern::Expression(hir))
}

#[cfg(test)]
mod tests;
