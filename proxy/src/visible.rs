//! Text of others on a line of ours, in a log or on a terminal: nothing in it ends the line, moves the cursor, turns the direction of
//! writing or is not seen. Whoever names a policy could write lines of the log otherwise.

use std::borrow::Cow;

/// The text with every such character escaped as in Rust (`\n`, `\u{202e}`).
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    match text.contains(misleads) {
        true => Cow::Owned(text.chars().flat_map(escaped).collect()),
        false => Cow::Borrowed(text),
    }
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let (escape, plain) = if misleads(c) { (Some(c.escape_default()), None) } else { (None, Some(c)) };
    escape.into_iter().flatten().chain(plain)
}

/// Control characters of both sets, line and paragraph separators, those that set the direction of writing (UAX #9), and those that
/// show nothing.
pub(crate) fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_misleads_is_escaped_and_nothing_else() {
        let plain = "policy \"é\" of 日本 \\ 😀 (naïve)";
        assert_eq!(visible(plain), plain);
        for (text, expected) in [
            ("a\nERROR b\r\t\u{1b}[31m", "a\\nERROR b\\r\\t\\u{1b}[31m"),
            ("\u{9b}31m\u{7f}\u{85}", "\\u{9b}31m\\u{7f}\\u{85}"),
            ("gpj.\u{202e}exe\u{2066}\u{200f}", "gpj.\\u{202e}exe\\u{2066}\\u{200f}"),
            ("\u{2028}a\u{feff}b\u{200b}\u{e0041}", "\\u{2028}a\\u{feff}b\\u{200b}\\u{e0041}"),
        ] {
            assert_eq!(visible(text), expected);
        }
    }
}
