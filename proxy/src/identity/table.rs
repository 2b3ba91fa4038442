//! A table from prefixes to identities: a configured list, or one state of NetworkPolicyHosts.
//!
//! Longest prefix wins, as in NPHDS (`spec/cilium-filter.md` section 2.1).

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tollgate_policy::SecurityId;

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
pub struct IdentityTable {
    v4: Prefixes<Ipv4Addr>,
    v6: Prefixes<Ipv6Addr>,
}

/// Exact maps by prefix length, longest first: as many probes as there are different lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Prefixes<A: Hash + Eq> {
    by_length: Vec<(u8, HashMap<A, SecurityId>)>,
}

impl<A: Hash + Eq> Default for Prefixes<A> {
    fn default() -> Self {
        Self { by_length: Vec::new() }
    }
}

impl<A: Hash + Eq> Prefixes<A> {
    fn insert(&mut self, length: u8, network: A, identity: SecurityId) -> Option<SecurityId> {
        let at = match self.by_length.binary_search_by(|(other, _)| length.cmp(other)) {
            Ok(at) => at,
            Err(at) => {
                self.by_length.insert(at, (length, HashMap::new()));
                at
            }
        };
        self.by_length[at].1.insert(network, identity)
    }

    fn lookup(&self, network_of: impl Fn(u8) -> A) -> Option<SecurityId> {
        self.by_length.iter().find_map(|(length, exact)| exact.get(&network_of(*length)).copied())
    }
}

impl IdentityTable {
    /// Builds a table. Host bits beyond a prefix are ignored; the same prefix twice under one identity is harmless.
    pub fn new(entries: impl IntoIterator<Item = (IpNet, SecurityId)>) -> Result<Self, DuplicatePrefix> {
        let mut table = Self::default();
        for (prefix, identity) in entries {
            let prefix = prefix.trunc();
            let previous = match prefix {
                IpNet::V4(net) => table.v4.insert(net.prefix_len(), net.network(), identity),
                IpNet::V6(net) => table.v6.insert(net.prefix_len(), net.network(), identity),
            };
            if let Some(first) = previous.filter(|first| *first != identity) {
                return Err(DuplicatePrefix { prefix, first, second: identity });
            }
        }
        Ok(table)
    }

    /// The identity of `address`, `None` when no entry covers it; IPv4-mapped IPv6 addresses count as IPv4.
    pub fn lookup(&self, address: IpAddr) -> Option<SecurityId> {
        match address.to_canonical() {
            IpAddr::V4(ip) => self.v4.lookup(|length| mask_v4(ip, length)),
            IpAddr::V6(ip) => self.v6.lookup(|length| mask_v6(ip, length)),
        }
    }

    /// Every entry, for dumps.
    pub fn entries(&self) -> impl Iterator<Item = (IpNet, SecurityId)> {
        let v4 = self.v4.by_length.iter().flat_map(|(length, exact)| {
            exact.iter().filter_map(|(ip, id)| Some((IpNet::new((*ip).into(), *length).ok()?, *id)))
        });
        let v6 = self.v6.by_length.iter().flat_map(|(length, exact)| {
            exact.iter().filter_map(|(ip, id)| Some((IpNet::new((*ip).into(), *length).ok()?, *id)))
        });
        v4.chain(v6)
    }
}

fn mask_v4(ip: Ipv4Addr, length: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    Ipv4Addr::from_bits(ip.to_bits() & mask)
}

fn mask_v6(ip: Ipv6Addr, length: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    Ipv6Addr::from_bits(ip.to_bits() & mask)
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
