//! Fields of a received `cilium.NetworkPolicy` that this version does not know.
//!
//! Decoding drops them. In a rule that would widen it: a header matcher of a kind unknown here would read as "the header
//! is present". So whoever enforces a policy looks here first, and sets the rules aside that hold such a field.

use prost_reflect::{DynamicMessage, Value};

use crate::json;

/// One unknown field and the element that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownField {
    /// In `ingress_per_port_policies` (true), in `egress_per_port_policies` (false), or in neither.
    pub ingress: Option<bool>,
    /// Index in that list.
    pub port_entry: Option<usize>,
    /// Index in `rules`; `None`: the field belongs to the entry.
    pub rule: Option<usize>,
    /// Path below that element, ending in the field's number: `http_rules.http_rules[0].headers[1].field 99`.
    pub element: String,
}

/// Every unknown field in `bytes`, which must decode. Bytes that do not decode give nothing.
pub fn network_policy_fields(bytes: &[u8]) -> Vec<UnknownField> {
    let mut found = Vec::new();
    if let Ok(policy) = json::decode_network_policy(bytes) {
        walk(&policy, &mut Vec::new(), &mut found);
    }
    found
}

/// A field by its name, and its index if it is a list.
type Step = (String, Option<usize>);

fn walk(message: &DynamicMessage, path: &mut Vec<Step>, found: &mut Vec<UnknownField>) {
    found.extend(message.unknown_fields().map(|field| place(path, field.number())));
    for (descriptor, value) in message.fields() {
        let name = descriptor.name();
        match value {
            Value::Message(inner) => {
                path.push((name.to_owned(), None));
                walk(inner, path, found);
                path.pop();
            }
            Value::List(list) => {
                for (index, inner) in list.iter().enumerate().filter_map(|(i, v)| Some((i, v.as_message()?))) {
                    path.push((name.to_owned(), Some(index)));
                    walk(inner, path, found);
                    path.pop();
                }
            }
            Value::Map(map) => {
                for inner in map.values().filter_map(Value::as_message) {
                    path.push((name.to_owned(), None));
                    walk(inner, path, found);
                    path.pop();
                }
            }
            _ => {}
        }
    }
}

fn place(path: &[Step], number: u32) -> UnknownField {
    let ingress = match path.first().map(|(name, _)| name.as_str()) {
        Some("ingress_per_port_policies") => Some(true),
        Some("egress_per_port_policies") => Some(false),
        _ => None,
    };
    let port_entry = ingress.and_then(|_| path[0].1);
    let rule = port_entry.and_then(|_| path.get(1)).filter(|(name, _)| name == "rules").and_then(|(_, index)| *index);
    let below = usize::from(port_entry.is_some()) + usize::from(rule.is_some());
    let mut element = String::new();
    for (name, index) in &path[below..] {
        element.push_str(name);
        if let Some(index) = index {
            element.push_str(&format!("[{index}]"));
        }
        element.push('.');
    }
    element.push_str(&format!("field {number}"));
    UnknownField { ingress, port_entry, rule, element }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::cilium::{HttpNetworkPolicyRule, HttpNetworkPolicyRules, NetworkPolicy, PortNetworkPolicy};
    use crate::cilium::{PortNetworkPolicyRule, port_network_policy_rule::L7};
    use crate::envoy::config::route::v3::HeaderMatcher;

    /// Field 99, a varint.
    const UNKNOWN: [u8; 3] = [0x98, 0x06, 0x01];

    fn nested(field: u8, bytes: &[u8]) -> Vec<u8> {
        assert!(bytes.len() < 128);
        [&[field << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn shown(bytes: &[u8]) -> Vec<String> {
        let fields = network_policy_fields(bytes);
        fields.iter().map(|f| format!("{:?} {:?} {:?} {}", f.ingress, f.port_entry, f.rule, f.element)).collect()
    }

    #[test]
    fn each_level_is_named() {
        let policy = NetworkPolicy { endpoint_id: 1, ..NetworkPolicy::default() }.encode_to_vec();
        assert_eq!(shown(&[&policy[..], &UNKNOWN].concat()), ["None None None field 99"]);
        let entry = nested(4, &UNKNOWN);
        assert_eq!(shown(&[&policy[..], &entry].concat()), ["Some(false) Some(0) None field 99"]);
        let rule = nested(3, &nested(3, &UNKNOWN));
        assert_eq!(shown(&[&policy[..], &rule].concat()), ["Some(true) Some(0) Some(0) field 99"]);
        // rules[0].http_rules (100) .http_rules[0].headers[0]
        let http = nested(1, &nested(1, &UNKNOWN));
        let l7 = [&[0xa2, 0x06, u8::try_from(http.len()).unwrap()], &http[..]].concat();
        let deep = nested(3, &nested(3, &l7));
        assert_eq!(
            shown(&[&policy[..], &deep].concat()),
            ["Some(true) Some(0) Some(0) http_rules.http_rules[0].headers[0].field 99"]
        );
    }

    #[test]
    fn what_we_know_is_not_unknown() {
        let matcher = HeaderMatcher { name: ":path".into(), ..HeaderMatcher::default() };
        let rules = HttpNetworkPolicyRules {
            http_rules: vec![HttpNetworkPolicyRule { headers: vec![matcher], header_matches: Vec::new() }],
        };
        let rule = PortNetworkPolicyRule { l7: Some(L7::HttpRules(rules)), ..PortNetworkPolicyRule::default() };
        let entry = PortNetworkPolicy { port: 80, rules: vec![rule], ..PortNetworkPolicy::default() };
        let policy = NetworkPolicy { ingress_per_port_policies: vec![entry], ..NetworkPolicy::default() };
        assert_eq!(shown(&policy.encode_to_vec()), Vec::<String>::new());
        assert_eq!(shown(b"\xff"), Vec::<String>::new());
    }
}
