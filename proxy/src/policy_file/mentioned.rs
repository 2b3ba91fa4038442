//! Which endpoints a policy file may be about, at a glance: for who has to know before the file is read.

use std::collections::HashSet;
use std::net::IpAddr;

use memchr::memmem;
use tollgate_policy::EndpointKey;

/// Addresses that stand in a text, whatever they mean there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mentioned {
    /// No others than these.
    Addresses(HashSet<IpAddr>),
    /// Any: some of it is written in another way than it is read.
    Anything,
}

impl Default for Mentioned {
    fn default() -> Self {
        Self::Addresses(HashSet::new())
    }
}

impl Mentioned {
    /// What may stand in a text of JSON or YAML.
    pub fn in_text(text: &[u8]) -> Self {
        if is_disguised(text) {
            return Self::Anything;
        }
        let words = text.split(|byte| !(byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':')));
        let keys = words.filter(|word| word.len() > 1).filter_map(|word| std::str::from_utf8(word).ok());
        let address = |word| match EndpointKey::parse(word) {
            EndpointKey::Address(address) => Some(address),
            EndpointKey::Name(_) => None,
        };
        Self::Addresses(keys.filter_map(address).collect())
    }

    /// What may stand in either.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Addresses(mut all), Self::Addresses(others)) => {
                all.extend(others);
                Self::Addresses(all)
            }
            _ => Self::Anything,
        }
    }

    /// Whether it may be this endpoint. Of names nothing is known.
    pub fn may_be(&self, key: &EndpointKey) -> bool {
        match (self, key) {
            (Self::Addresses(addresses), EndpointKey::Address(address)) => addresses.contains(address),
            _ => true,
        }
    }
}

/// Whether it has escapes that stand for letters and digits, or binary values.
fn is_disguised(text: &[u8]) -> bool {
    let escapes = memchr::memchr_iter(b'\\', text).filter_map(|at| text.get(at + 1));
    escapes.into_iter().any(|escape| b"xuU\r\n".contains(escape)) || memmem::find(text, b"binary").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_be(text: &str, key: &str) -> bool {
        Mentioned::in_text(text.as_bytes()).may_be(&EndpointKey::parse(key))
    }

    #[test]
    fn addresses_are_found_however_they_stand_there() {
        for text in [
            r#"{"endpointIps":["10.0.0.1","f00d::1"]}"#,
            "endpoint_ips: [10.0.0.1,F00D:0:0::1]",
            "endpoint_ips:\n- 10.0.0.1 # one\n- 'f00d::0001'",
            "a: &b [\"::ffff:10.0.0.1\"]\nc: *b\nf00d::1",
        ] {
            assert!(may_be(text, "10.0.0.1") && may_be(text, "f00d::1"), "{text}");
            assert!(!may_be(text, "10.0.0.2") && !may_be(text, "10.0.0.11") && !may_be(text, "f00d::"), "{text}");
            assert!(may_be(text, "some name"), "{text}");
        }
        assert!(!may_be(r#"{"regex": "/a\\.b\\d+ [0-9a-f]:.."}"#, "10.0.0.1"));
        let both = Mentioned::in_text(b"10.0.0.1").and(&Mentioned::in_text(b"10.0.0.2"));
        assert!(["10.0.0.1", "10.0.0.2"].iter().all(|key| both.may_be(&EndpointKey::parse(key))));
        assert!(!both.may_be(&EndpointKey::parse("10.0.0.3")));
    }

    #[test]
    fn what_is_disguised_may_be_anything() {
        for text in [r#"["10.0\u002e0.1"]"#, r#"["10.0\x2e0.1"]"#, "[\"10.0.\\\n  0.1\"]", "[!!binary MTAuMC4wLjE=]"] {
            assert!(may_be(text, "10.0.0.1"), "{text}");
            assert_eq!(Mentioned::in_text(b"10.0.0.1").and(&Mentioned::in_text(text.as_bytes())), Mentioned::Anything);
        }
    }
}
