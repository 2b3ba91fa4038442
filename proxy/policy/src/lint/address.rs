//! Names in `endpoint_ips` that are addresses but for a mistake. What does not parse as an address is a name, such as
//! `ingress:shop`, and policies are found by the addresses of connections.

use std::net::{IpAddr, SocketAddr};

use super::finding::{Element, Finding, Lint};
use crate::model::{EndpointKey, NetworkPolicy};

pub(super) fn check(number: usize, policy: &NetworkPolicy, findings: &mut Vec<Finding>) {
    for (index, key) in policy.endpoints.iter().enumerate() {
        let EndpointKey::Name(name) = key else {
            continue;
        };
        let Some(instead) = meant(name) else {
            continue;
        };
        let element = Element::policy(number).field(&format!("endpoint_ips[{index}]"));
        let what = format!("{name:?} looks like an address and is none");
        findings.push(Finding::new(Lint::NotAnAddress, element, what, instead));
    }
}

/// What to write instead of a name that looks like an address; `None` for any other name.
fn meant(name: &str) -> Option<String> {
    let bare = name.trim();
    let bare = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(bare);
    let address = |text: &str| text.parse::<IpAddr>().ok().or_else(|| without_zeros(text)?.parse().ok());
    if let Some(address) = address(bare) {
        return Some(format!("{:?}", address.to_canonical().to_string()));
    }
    if let Ok(with_port) = bare.parse::<SocketAddr>() {
        return Some(format!("{:?}; ports are named in the entries", with_port.ip().to_canonical().to_string()));
    }
    if let Some((network, _)) = bare.split_once('/').filter(|(network, _)| address(network).is_some()) {
        return Some(format!("each address of the endpoint by itself, such as {network:?}"));
    }
    if let Some(address) = bare.split_once('%').and_then(|(address, _)| address.parse::<IpAddr>().ok()) {
        return Some(format!("{:?}, without the zone", address.to_string()));
    }
    let dotted = bare.matches('.').count() >= 2 && bare.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let colons = bare.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') && bare.matches(':').count() >= 2;
    let begins = bare.split_once("::").is_some_and(|(begin, _)| {
        begin.split(':').all(|group| group.len() <= 4 && group.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    (dotted || colons || begins).then(|| "an address such as \"10.0.0.1\" or \"fd00::1\"".to_owned())
}

/// `010.0.0.1` as `10.0.0.1`.
fn without_zeros(text: &str) -> Option<String> {
    let numbers: Result<Vec<u8>, _> = text.split('.').map(str::parse::<u8>).collect();
    let numbers = numbers.ok().filter(|numbers| numbers.len() == 4)?;
    Some(numbers.iter().map(u8::to_string).collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use super::meant;

    #[test]
    fn what_looks_like_an_address_is_told_from_names() {
        for (name, expected) in [
            ("10.0.0.1 ", "\"10.0.0.1\""),
            ("010.0.0.1", "\"10.0.0.1\""),
            ("[fd00::1]", "\"fd00::1\""),
            ("10.0.0.0/24", "each address of the endpoint by itself, such as \"10.0.0.0\""),
            ("fd00::/64", "each address of the endpoint by itself, such as \"fd00::\""),
            ("10.0.0.1:80", "\"10.0.0.1\"; ports are named in the entries"),
            ("fe80::1%eth0", "\"fe80::1\", without the zone"),
        ] {
            assert_eq!(meant(name).as_deref(), Some(expected), "{name}");
        }
        for name in ["10.0.0.300", "10.0.0", "fd00::g", "fd00:0:0:0:0:0:0:0:1", "::x"] {
            assert!(meant(name).is_some_and(|instead| instead.starts_with("an address such as")), "{name}");
        }
        for name in ["ingress:shop", "shop/api", "a", "web.shop.svc", "node-1", "cluster::ingress", "v1.2", "a:b"] {
            assert_eq!(meant(name), None, "{name}");
        }
    }
}
