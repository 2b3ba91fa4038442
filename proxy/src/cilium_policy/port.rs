//! `ports` of a rule: numbers and protocols as the resource's schema wants them.

use serde_json::Value;
use tollgate_proto::nearest::nearest;

use super::object::Object;

/// Source: the `protocol` enum of `PortProtocol` in the schema of `cilium.io/v2`.
const PROTOCOLS: [&str; 8] = ["TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "VRRP", "IGMP", "ANY"];

/// First and last port as in a `PortNetworkPolicy`; `None` for what the proxy does not carry, and what is no port.
pub(super) fn span(port: &Object<'_>) -> Option<(u32, u32)> {
    port.known(&["port", "endPort", "protocol"]);
    let protocol = port.text("protocol").unwrap_or("ANY");
    if !PROTOCOLS.contains(&protocol) {
        // The rest is looked at as if it was for TCP.
        port.invalid("protocol", format!("{protocol:?} is no protocol"), &choices(protocol, &PROTOCOLS));
    } else if !matches!(protocol, "TCP" | "ANY") {
        port.not_translated("protocol", &format!("{protocol} is not carried by the proxy"));
        return None;
    }
    let first = first(port)?;
    let last = match port.get("endPort") {
        None => 0,
        Some(Value::String(text)) => {
            port.invalid("endPort", format!("endPort is the text {text:?}"), "the number without quotes");
            text.parse().unwrap_or(0)
        }
        Some(value) => value.as_u64().unwrap_or_else(|| {
            port.invalid("endPort", "endPort is no number".to_owned(), "a number that is not below port");
            0
        }),
    };
    // Numbers that are too large stay so, and are found when the policy is looked at.
    let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Some((number(first), number(last)))
}

fn first(port: &Object<'_>) -> Option<u64> {
    let text = match port.get("port") {
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) => {
            port.invalid(
                "port",
                format!("port is the number {number}, not a text"),
                &format!("{:?}", number.to_string()),
            );
            return number.as_u64();
        }
        other => {
            let what = if other.is_some() { "port is not a text" } else { "there is no port" };
            port.invalid("port", what.to_owned(), "a number from 0 to 65535, or the name of a port, in quotes");
            return None;
        }
    };
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    if is_name(text) {
        port.not_translated("port", "which number a named port has is known to the agent only");
        return None;
    }
    let numbers = text.split_once('-').map(|(first, last)| (first.trim(), last.trim()));
    let numbers = numbers.filter(|(first, last)| first.parse::<u16>().is_ok() && last.parse::<u16>().is_ok());
    let instead = match numbers {
        Some((first, last)) => format!("port: {first:?}, endPort: {last}"),
        None => "a number from 0 to 65535, or the name of a port, in quotes".to_owned(),
    };
    port.invalid("port", format!("{text:?} is neither a number nor the name of a port"), &instead);
    numbers.and_then(|(first, _)| first.parse().ok())
}

/// Source: RFC 6335 section 5.1.
fn is_name(text: &str) -> bool {
    text.len() <= 15
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

/// What to write instead of a word that is none of these.
pub(super) fn choices(word: &str, known: &[&str]) -> String {
    let meant = nearest(word, known).map(|meant| format!("did you mean {meant}? ")).unwrap_or_default();
    format!("{meant}one of: {}", known.join(", "))
}
