//! Bytes of `cilium.NetworkPolicy` messages: mostly well formed, with any field in any number, and then damaged.

use crate::generate::Choices;

/// Field number and what it holds.
type Field = (u32, Kind);

#[derive(Clone, Copy)]
enum Kind {
    Number,
    Text(&'static [&'static str]),
    Message(&'static [Field]),
}

const ANY_TEXT: &[&str] = &["a", "", "/a.*", "a.b", "(", "*", "é", "x"];
const POLICY: &[Field] = &[
    (1, Kind::Text(&["10.0.0.1", "10.0.0.2", "fd00::1", "name", ""])),
    (2, Kind::Number),
    (3, Kind::Message(ENTRY)),
    (3, Kind::Message(ENTRY)),
    (3, Kind::Message(ENTRY)),
    (4, Kind::Message(ENTRY)),
    (5, Kind::Text(ANY_TEXT)),
];
const ENTRY: &[Field] = &[
    (1, Kind::Number),
    (2, Kind::Number),
    (3, Kind::Message(RULE)),
    (3, Kind::Message(RULE)),
    (3, Kind::Message(RULE)),
    (4, Kind::Number),
];
const RULE: &[Field] = &[
    (1, Kind::Number),
    (2, Kind::Text(&["", "r2d2"])),
    (3, Kind::Message(&[(1, Kind::Text(ANY_TEXT))])),
    (5, Kind::Text(ANY_TEXT)),
    (6, Kind::Text(&["a.b", "*", "**.b", "a..b", "", "a*.b"])),
    (7, Kind::Number),
    (8, Kind::Number),
    (9, Kind::Number),
    (10, Kind::Number),
    (100, Kind::Message(&[(1, Kind::Message(HTTP_RULE)), (1, Kind::Message(HTTP_RULE))])),
    (100, Kind::Message(&[(1, Kind::Message(HTTP_RULE)), (1, Kind::Message(HTTP_RULE))])),
    (101, Kind::Message(&[(1, Kind::Message(&[(4, Kind::Text(ANY_TEXT))]))])),
    (102, Kind::Message(&[(1, Kind::Message(&[(3, Kind::Text(ANY_TEXT))]))])),
];
const HTTP_RULE: &[Field] =
    &[(1, Kind::Message(MATCHER)), (1, Kind::Message(MATCHER)), (2, Kind::Message(HEADER_MATCH))];
const NAME: Field = (1, Kind::Text(&[":path", ":method", "x", "Host", "", ":uri", "a b"]));
const MATCHER: &[Field] = &[
    NAME,
    (4, Kind::Text(ANY_TEXT)),
    (6, Kind::Message(&[(1, Kind::Number), (2, Kind::Number)])),
    (7, Kind::Number),
    (8, Kind::Number),
    (9, Kind::Text(ANY_TEXT)),
    (10, Kind::Text(ANY_TEXT)),
    (11, Kind::Message(REGEX)),
    (12, Kind::Text(ANY_TEXT)),
    (13, Kind::Message(STRING_MATCH)),
    (14, Kind::Number),
];
const REGEX: &[Field] = &[(2, Kind::Text(&["/a.*", "a|b", "(", "", "(?i)[^a]", "a{2}{3}", r"\C*", "é"]))];
const STRING_MATCH: &[Field] = &[
    (1, Kind::Text(ANY_TEXT)),
    (2, Kind::Text(ANY_TEXT)),
    (3, Kind::Text(ANY_TEXT)),
    (5, Kind::Message(REGEX)),
    (6, Kind::Number),
    (7, Kind::Text(ANY_TEXT)),
    (8, Kind::Message(&[(1, Kind::Text(ANY_TEXT))])),
];
const HEADER_MATCH: &[Field] =
    &[NAME, (2, Kind::Text(ANY_TEXT)), (3, Kind::Number), (4, Kind::Number), (5, Kind::Text(ANY_TEXT))];

/// One message: an endpoint and its address, so that it is usable, and then whatever is chosen.
pub(crate) fn network_policy(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = b"\x0a\x0810.0.0.1\x10\x07".to_vec();
    bytes.extend(message(POLICY, choices));
    if choices.once_in(2) {
        damage(&mut bytes, choices);
    }
    bytes
}

fn message(fields: &[Field], choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let chosen = choices.list(6, |choices| choices.one(fields));
    for (number, kind) in chosen {
        // Now and then a number or a wire type that is not in the schema.
        let number = if choices.once_in(48) { u32::from(choices.byte()) + 1 } else { number };
        let odd = choices.once_in(48);
        match kind {
            Kind::Number if !odd => {
                varint(&mut bytes, u64::from(number) << 3);
                let number = choices.one(&[0, 1, 80, 2, 3, 9, 81, 65_535, 65_536, u64::from(u32::MAX), u64::MAX]);
                varint(&mut bytes, number);
            }
            Kind::Text(texts) if !odd => delimited(&mut bytes, number, choices.one(texts).as_bytes()),
            Kind::Message(fields) if !odd => delimited(&mut bytes, number, &message(fields, choices)),
            _ => {
                varint(&mut bytes, u64::from(number) << 3 | u64::from(choices.byte() % 8));
                bytes.extend([0; 8]);
            }
        }
    }
    bytes
}

fn delimited(bytes: &mut Vec<u8>, number: u32, inside: &[u8]) {
    varint(bytes, u64::from(number) << 3 | 2);
    varint(bytes, inside.len() as u64);
    bytes.extend(inside);
}

fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A few bytes changed, taken out or put in.
fn damage(bytes: &mut Vec<u8>, choices: &mut Choices<'_>) {
    for _ in 0..=choices.below(3) {
        let at = (choices.below(256) * 256 + choices.below(256)) % bytes.len().max(1);
        match choices.below(3) {
            0 if at < bytes.len() => bytes[at] ^= choices.byte(),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            _ => bytes.insert(at.min(bytes.len()), choices.byte()),
        }
    }
}
