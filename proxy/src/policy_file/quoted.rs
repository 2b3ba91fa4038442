//! Values in messages.

/// Most bytes of a quoted value that a message shows.
const MAX_QUOTED: usize = 200;

/// The message with what stands in quotes cut where it is very long: a value of a megabyte hides what is said about it.
pub(crate) fn shortened(message: &str) -> String {
    if message.len() <= MAX_QUOTED {
        return message.to_owned();
    }
    let mut out = String::new();
    let mut rest = message;
    while let Some(open) = rest.find('"') {
        let (before, quoted) = rest.split_at(open + 1);
        out.push_str(before);
        let close = end(quoted);
        let value = &quoted[..close];
        if value.len() > MAX_QUOTED {
            let mut cut = value.floor_char_boundary(MAX_QUOTED);
            // Not within an escape.
            cut -= value[..cut].bytes().rev().take_while(|b| *b == b'\\').count();
            out.push_str(&format!("{}…\" ({} bytes)", &value[..cut], value.len()));
        } else {
            out.push_str(value);
            out.push_str(if close < quoted.len() { "\"" } else { "" });
        }
        rest = quoted.get(close + 1..).unwrap_or_default();
    }
    out + rest
}

/// Where the closing quote is, or the text ends.
fn end(quoted: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in quoted.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return at,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    quoted.len()
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn long_values_are_cut_and_short_ones_are_not() {
        let of = |length: usize| format!("regex {:?} allows {:?} too", "é".repeat(length), "b\"c");
        assert_eq!(shortened(&of(100)), of(100));
        let cut = shortened(&of(500_000));
        assert_eq!(cut, format!("regex \"{}…\" (1000000 bytes) allows \"b\\\"c\" too", "é".repeat(100)));
        let open = format!("at \"{}", "x".repeat(300));
        assert_eq!(shortened(&open), format!("at \"{}…\" (300 bytes)", "x".repeat(200)));
    }
}
