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

/// A table from prefixes to identities. Copies share what neither has changed since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityTable(Prefixes<Claimed>);

/// Whom a prefix belongs to, and how many say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claimed {
    identity: SecurityId,
    claims: usize,
}

impl IdentityTable {
    /// Builds a table. Host bits beyond a prefix are ignored; the same prefix twice under one identity is harmless.
    ///
    /// # Errors
    /// A prefix has two identities.
    pub fn new(entries: impl IntoIterator<Item = (IpNet, SecurityId)>) -> Result<Self, DuplicatePrefix> {
        let mut table = Self::default();
        for (prefix, identity) in entries {
            table.claim(prefix, identity)?;
        }
        Ok(table)
    }

    /// Gives `prefix` to `identity`, once more if it has it already.
    ///
    /// # Errors
    /// It belongs to another one; nothing has changed.
    pub fn claim(&mut self, prefix: IpNet, identity: SecurityId) -> Result<(), DuplicatePrefix> {
        let claims = match self.0.get(prefix) {
            Some(known) if known.identity != identity => {
                return Err(DuplicatePrefix { prefix: prefix.trunc(), first: known.identity, second: identity });
            }
            Some(known) => known.claims + 1,
            None => 1,
        };
        self.0.insert(prefix, Claimed { identity, claims });
        Ok(())
    }

    /// Takes one claim of `prefix` back; with the last one it belongs to nobody.
    pub fn release(&mut self, prefix: IpNet) {
        match self.0.get(prefix) {
            Some(known) if known.claims > 1 => {
                self.0.insert(prefix, Claimed { claims: known.claims - 1, ..known });
            }
            Some(_) => self.0.remove(prefix),
            None => {}
        }
    }

    /// The identity of `address`, `None` when no entry covers it; IPv4-mapped IPv6 addresses count as IPv4.
    pub fn lookup(&self, address: IpAddr) -> Option<SecurityId> {
        Some(self.0.lookup(address)?.identity)
    }

    /// Every entry, for dumps.
    pub fn entries(&self) -> impl Iterator<Item = (IpNet, SecurityId)> {
        self.0.entries().map(|(prefix, claimed)| (prefix, claimed.identity))
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

    #[test]
    fn a_prefix_belongs_to_somebody_until_the_last_claim_is_taken_back() {
        let mut table = table(&[("10.0.0.1/32", 1), ("10.0.0.1/32", 1), ("10.0.0.0/8", 2)]).unwrap();
        let (net, address) = ("10.0.0.1/32".parse().unwrap(), "10.0.0.1".parse().unwrap());
        let before = table.clone();
        for identity in [1, 2, 2] {
            table.release(net);
            assert_eq!(table.lookup(address), Some(SecurityId(identity)));
        }
        assert_eq!(before.lookup(address), Some(SecurityId(1)), "a copy does not change");
        assert!(table.claim(net, SecurityId(3)).is_ok() && table.claim(net, SecurityId(1)).is_err());
        assert_eq!(table.lookup(address), Some(SecurityId(3)));
    }
}
