//! What the bytes of a message say beyond what was understood of them, told without its definition.
//!
//! Decoding drops fields that the definition here does not have. Where such a field could change what a message means, whoever
//! reads it asks here first. The bytes are compared with the encoding of what was decoded, field by field, so that another
//! order of fields, other lengths or packed numbers are no difference (protobuf's encoding, "Message structure").

use std::collections::{BTreeMap, BTreeSet};

use prost::bytes::Buf as _;
use prost::encoding::{WireType, decode_key, decode_varint};

/// Elements of one field that are looked for in another order. Only maps come in one, and they are small.
const MOST_REORDERED: usize = 1000;

/// A value on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The numbers of the fields in `bytes`, at the top level. Nothing, where they are no message.
pub fn numbers(bytes: &[u8]) -> BTreeSet<u32> {
    fields(bytes).into_iter().flatten().map(|(number, _)| number).collect()
}

/// The first part of `bytes` that is not in `understood`, the encoding of what was decoded from them: the numbers of the
/// fields on the way to it, such as `field 3[0].99`. `None` when there is nothing more in them.
///
/// `passed_over` are the ways, by numbers, to fields whose content matters to nobody. A field of metadata has to be one of them: an
/// entry of a map whose value is empty is encoded without it, and cannot be told from a message of another kind.
pub fn beyond(bytes: &[u8], understood: &[u8], passed_over: &[&[u32]]) -> Option<String> {
    if bytes == understood {
        return None;
    }
    Some(format!("field {}", difference(bytes, understood, passed_over)?))
}

fn difference(bytes: &[u8], understood: &[u8], passed_over: &[&[u32]]) -> Option<String> {
    let (Some(came), Some(known)) = (fields(bytes), fields(understood)) else {
        return Some("(of an encoding that is not known)".to_owned());
    };
    let mut by_number: BTreeMap<u32, [Vec<Value<'_>>; 2]> = BTreeMap::new();
    for (side, fields) in [came, known].into_iter().enumerate() {
        for (number, value) in fields {
            by_number.entry(number).or_default()[side].push(value);
        }
    }
    by_number.into_iter().find_map(|(number, [came, known])| {
        let ways = passed_over.iter().filter_map(|way| way.split_first().filter(|(first, _)| **first == number));
        let below: Vec<&[u32]> = ways.map(|(_, rest)| rest).collect();
        if below.iter().any(|way| way.is_empty()) {
            return None;
        }
        let below = difference_of_field(&came, &known, &below)?;
        Some(format!("{number}{below}"))
    })
}

/// How the elements of one field differ; empty text where the whole field does.
fn difference_of_field(came: &[Value<'_>], known: &[Value<'_>], passed_over: &[&[u32]]) -> Option<String> {
    if known.is_empty() {
        return Some(String::new());
    }
    if is_packed_elsewhere(came, known) {
        return None;
    }
    if came.len() != known.len() {
        return (!came.is_empty()).then(String::new);
    }
    let different: Vec<usize> = (0..came.len()).filter(|&index| came[index] != known[index]).collect();
    if different.len() > MOST_REORDERED {
        return Some(String::new());
    }
    let mut left: Vec<usize> = different.clone();
    for index in different {
        match left.iter().position(|&other| known[other] == came[index]) {
            Some(found) => drop(left.swap_remove(found)),
            None => match (came[index], known[index]) {
                (Value::Bytes(came), Value::Bytes(known)) => {
                    if let Some(below) = difference(came, known, passed_over) {
                        return Some(format!("[{index}].{below}"));
                    }
                }
                _ => return Some(format!("[{index}]")),
            },
        }
    }
    None
}

/// Whether these are the numbers of one repeated field, one by one on one side and packed on the other.
fn is_packed_elsewhere(came: &[Value<'_>], known: &[Value<'_>]) -> bool {
    let packed = |values: &[Value<'_>]| values.iter().any(|value| matches!(value, Value::Bytes(_)));
    !came.is_empty() && packed(came) != packed(known)
}

/// Every field of a message with its number, in their order; `None` where the bytes are none, or hold a group.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u32, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (number, kind) = decode_key(&mut bytes).ok()?;
        let value = match kind {
            WireType::Varint => Value::Number(decode_varint(&mut bytes).ok()?),
            WireType::SixtyFourBit => Value::Number(bytes.try_get_u64_le().ok()?),
            WireType::ThirtyTwoBit => Value::Number(bytes.try_get_u32_le().ok()?.into()),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Value::Bytes(value)
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        fields.push((number, value));
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::envoy::config::core::v3::{Metadata, SocketAddress};
    use crate::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};

    /// Field 99, a varint.
    const UNKNOWN: [u8; 3] = [0x98, 0x06, 0x01];

    fn seen<M: Message + Default>(bytes: &[u8]) -> Option<String> {
        seen_but::<M>(bytes, &[])
    }

    fn seen_but<M: Message + Default>(bytes: &[u8], passed_over: &[&[u32]]) -> Option<String> {
        beyond(bytes, &M::decode(bytes).unwrap().encode_to_vec(), passed_over)
    }

    fn nested(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    #[test]
    fn what_was_dropped_is_named_wherever_it_was() {
        let listener = Listener { name: "l".into(), ..Listener::default() }.encode_to_vec();
        assert_eq!(seen::<Listener>(&listener), None);
        assert_eq!(seen::<Listener>(&[&UNKNOWN, &listener[..]].concat()).unwrap(), "field 99");
        let chain = |extra: &[u8]| nested(3, &[&nested(7, b"chain")[..], extra].concat());
        let deep = [&listener[..], &chain(&[]), &chain(&nested(1, &UNKNOWN))].concat();
        assert_eq!(seen::<Listener>(&deep).unwrap(), "field 3[1].1[0].99");
        assert_eq!(numbers(&deep).into_iter().collect::<Vec<_>>(), [1, 3]);
        // Nothing is said by a message that is empty, but that it is there.
        assert_eq!(seen::<Listener>(&[&listener[..], &nested(6, &[])].concat()), None);
        assert_eq!(seen::<Listener>(&[&listener[..], &[0x9a, 0x06, 0]].concat()).unwrap(), "field 99");
    }

    #[test]
    fn other_encodings_of_the_same_hide_nothing_and_are_no_difference() {
        // prefix_ranges before destination_port, application_protocols last; then a length in more bytes than it takes.
        let matched = FilterChainMatch { server_names: vec!["a".into(), "b".into()], ..FilterChainMatch::default() };
        let shuffled = [nested(11, b"a"), nested(9, b"tls"), nested(11, b"b")].concat();
        assert_eq!(seen::<FilterChainMatch>(&shuffled), None);
        assert_eq!(FilterChainMatch::decode(&shuffled[..]).unwrap().server_names, matched.server_names);
        let long = [0x0a, 0x83, 0x00, b'a', b'b', b'c'];
        assert_eq!(seen::<Listener>(&long), None);
        assert_eq!(seen::<FilterChain>(&nested(1, &[&shuffled[..], &UNKNOWN].concat())).unwrap(), "field 1[0].99");
        // source_ports (7) one by one; we would pack them.
        assert_eq!(seen::<FilterChainMatch>(&[0x38, 1, 0x38, 2]), None);
        assert_eq!(seen::<FilterChainMatch>(&[&[0x38, 1, 0x38, 2][..], &UNKNOWN].concat()).unwrap(), "field 99");
        // Maps come in any order.
        let entries: Vec<_> = (b'a'..=b'z').map(|key| nested(1, &nested(1, &[key]))).collect();
        assert_eq!(seen::<Metadata>(&entries.concat()), None);
        let hidden = [&entries.concat()[..], &nested(1, &[&nested(1, b"{")[..], &UNKNOWN].concat())].concat();
        assert!(seen::<Metadata>(&hidden).unwrap().starts_with("field 1["), "in an entry of the map");
    }

    #[test]
    fn what_matters_to_nobody_is_passed_over_and_nothing_else() {
        // metadata.filter_metadata["x"] = {}, of the listener and of a chain
        let empty = nested(1, &[nested(1, b"x"), nested(2, b"")].concat());
        let listener = [nested(6, &empty), nested(3, &[nested(5, &empty), nested(7, b"chain")].concat())].concat();
        assert_eq!(seen::<Listener>(&listener).unwrap(), "field 3[0].5[0].1[0].2");
        let metadata: [&[u32]; 2] = [&[6], &[3, 5]];
        assert_eq!(seen_but::<Listener>(&listener, &metadata), None);
        assert_eq!(seen_but::<Listener>(&listener, &metadata[1..]).unwrap(), "field 6[0].1[0].2");
        let hidden = [&listener[..], &nested(3, &UNKNOWN)].concat();
        assert_eq!(seen_but::<Listener>(&hidden, &metadata).unwrap(), "field 3[1].99");
    }

    #[test]
    fn what_cannot_be_compared_is_a_difference() {
        // The second one wins, whatever the first said.
        let twice = [nested(2, b"127.0.0.1"), nested(2, b"127.0.0.2")].concat();
        assert_eq!(seen::<SocketAddress>(&twice).unwrap(), "field 2");
        assert!(beyond(&[0x0b], &[], &[]).unwrap().contains("encoding"));
        assert_eq!(numbers(&[0x0b]), BTreeSet::new());
    }
}
