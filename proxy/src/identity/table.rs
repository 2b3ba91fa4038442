//! A table from prefixes to identities: a configured list, or one state of NetworkPolicyHosts.
//!
//! Longest prefix wins, as in NPHDS (`spec/cilium-filter.md` section 2.1).

use std::net::IpAddr;

use ipnet::IpNet;
use tollgate_policy::SecurityId;

use crate::prefixes::Prefixes;

/// Two entries claim the same prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{prefix} belongs to identity {first} and to identity {second}")]
pub struct DuplicatePrefix {
    /// The prefix.
    pub prefix: IpNet,
    /// Identity that claimed it first.
    pub first: SecurityId,
    /// Identity that claimed it again.
    pub second: SecurityId,
}

/// An immutable table from prefixes to identities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityTable(Prefixes<SecurityId>);

impl IdentityTable {
    /// Builds a table. Host bits beyond a prefix are ignored; the same prefix twice under one identity is harmless.
    pub fn new(entries: impl IntoIterator<Item = (IpNet, SecurityId)>) -> Result<Self, DuplicatePrefix> {
        let mut table = Self::default();
        for (prefix, identity) in entries {
            let prefix = prefix.trunc();
            let previous = table.0.insert(prefix, identity);
            if let Some(first) = previous.filter(|first| *first != identity) {
                return Err(DuplicatePrefix { prefix, first, second: identity });
            }
        }
        Ok(table)
    }

    /// The identity of `address`, `None` when no entry covers it; IPv4-mapped IPv6 addresses count as IPv4.
    pub fn lookup(&self, address: IpAddr) -> Option<SecurityId> {
        self.0.lookup(address)
    }

    /// Every entry, for dumps.
    pub fn entries(&self) -> impl Iterator<Item = (IpNet, SecurityId)> {
        self.0.entries()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, u32)]) -> Result<IdentityTable, DuplicatePrefix> {
        IdentityTable::new(entries.iter().map(|(net, id)| (net.parse().unwrap(), SecurityId(*id))))
    }

    #[test]
    fn longest_prefix_wins() {
        let table = table(&[
            ("10.0.0.0/8", 100),
            ("10.1.0.0/16", 101),
            ("10.1.2.3/32", 102),
            ("fd00::/64", 103),
            ("::/0", 104),
        ])
        .unwrap();
        for (address, identity) in [
            ("10.9.9.9", Some(100)),
            ("10.1.9.9", Some(101)),
            ("10.1.2.3", Some(102)),
            ("::ffff:10.1.2.3", Some(102)),
            ("fd00::5", Some(103)),
            ("2001:db8::1", Some(104)),
            ("192.168.0.1", None),
        ] {
            assert_eq!(table.lookup(address.parse().unwrap()), identity.map(SecurityId), "{address}");
        }
        assert_eq!(table.entries().count(), 5);
        assert_eq!(IdentityTable::default().lookup("::1".parse().unwrap()), None);
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(table(&[("10.0.0.1/32", 1), ("10.0.0.1/32", 1)]).is_ok());
        let error = table(&[("10.0.0.1/32", 1), ("10.0.0.1/32", 2)]).unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.1/32 belongs to identity 1 and to identity 2");
        assert!(table(&[("0.0.0.0/0", 7)]).unwrap().lookup("1.2.3.4".parse().unwrap()) == Some(SecurityId(7)));
    }
}
