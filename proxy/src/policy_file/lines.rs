//! Lines at which the resources of a document begin, counted from 1: of each element when it is a list, else one.

use crate::config::document::{Node, Value};

pub(super) fn of_yaml(document: &Node) -> Vec<u64> {
    match &document.value {
        Value::List(items) => items.iter().map(|item| item.place.line).collect(),
        _ => vec![document.place.line],
    }
}

/// Of a text that was read as JSON: only then do brackets and quotes tell where an element begins.
pub(super) fn of_json(text: &str) -> Vec<u64> {
    let mut lines = Vec::new();
    let (mut line, mut depth) = (1_u64, 0_usize);
    // The depth at which resources stand; known with the first byte that is no blank.
    let mut of_resources: Option<usize> = None;
    let mut expected = true;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\n' {
            line += 1;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        let at = *of_resources.get_or_insert_with(|| usize::from(byte == b'['));
        if depth == at && expected && byte != b']' {
            lines.push(line);
            expected = false;
        }
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == at => expected = true,
            b'"' => skip_text(&mut bytes),
            _ => {}
        }
    }
    lines
}

/// Up to and with the closing quote. A text in JSON goes over no line.
fn skip_text(bytes: &mut std::str::Bytes<'_>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'"' => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::of_json;

    #[test]
    fn elements_are_told_apart() {
        for (text, expected) in [
            ("{}", &[1][..]),
            ("\n\n{\"a\":\n[1,\n2]}", &[3]),
            ("[]", &[]),
            ("[\n{\"a\": [1, {}]},\n\n{}, {}\n,{\"]\\\"[,\": 1}]", &[2, 4, 4, 5]),
            ("[\"a,b\",\n7]", &[1, 2]),
        ] {
            assert_eq!(of_json(text), expected, "{text}");
        }
    }
}
