//! A table from address prefixes to values: the longest prefix that holds an address wins.

mod shards;

use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use shards::Shards;

/// Values by prefix, for both families. Looking an address up takes as many probes as there are different lengths. Copies share what
/// neither has changed since: to copy a hundred thousand entries and change one costs a few hundred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefixes<V> {
    v4: ByLength<Ipv4Addr, V>,
    v6: ByLength<Ipv6Addr, V>,
}

impl<V> Default for Prefixes<V> {
    fn default() -> Self {
        Self { v4: ByLength::default(), v6: ByLength::default() }
    }
}

impl<V: Copy> Prefixes<V> {
    /// Gives `prefix` a value, and returns the one that it had. Host bits are ignored.
    pub(crate) fn insert(&mut self, prefix: IpNet, value: V) -> Option<V> {
        match prefix.trunc() {
            IpNet::V4(net) => self.v4.insert(net.prefix_len(), net.network(), value),
            IpNet::V6(net) => self.v6.insert(net.prefix_len(), net.network(), value),
        }
    }

    /// The value of exactly that prefix.
    pub(crate) fn get(&self, prefix: IpNet) -> Option<V> {
        match prefix.trunc() {
            IpNet::V4(net) => self.v4.get(net.prefix_len(), &net.network()),
            IpNet::V6(net) => self.v6.get(net.prefix_len(), &net.network()),
        }
    }

    /// Takes the value of exactly that prefix away.
    pub(crate) fn remove(&mut self, prefix: IpNet) {
        match prefix.trunc() {
            IpNet::V4(net) => self.v4.remove(net.prefix_len(), &net.network()),
            IpNet::V6(net) => self.v6.remove(net.prefix_len(), &net.network()),
        }
    }

    /// The value of the longest prefix that holds `address`; IPv4-mapped IPv6 addresses count as IPv4.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<V> {
        match address.to_canonical() {
            IpAddr::V4(ip) => self.v4.lookup(|length| mask_v4(ip, length)),
            IpAddr::V6(ip) => self.v6.lookup(|length| mask_v6(ip, length)),
        }
    }

    /// Every entry, for dumps.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (IpNet, V)> {
        let v4 = self.v4.0.iter().flat_map(|(length, exact)| {
            exact.iter().filter_map(|(ip, value)| Some((IpNet::new((*ip).into(), *length).ok()?, *value)))
        });
        let v6 = self.v6.0.iter().flat_map(|(length, exact)| {
            exact.iter().filter_map(|(ip, value)| Some((IpNet::new((*ip).into(), *length).ok()?, *value)))
        });
        v4.chain(v6)
    }
}

/// Exact maps by prefix length, longest first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ByLength<A: Hash + Eq, V>(Vec<(u8, Shards<A, V>)>);

impl<A: Hash + Eq, V> Default for ByLength<A, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<A: Hash + Eq + Copy, V: Copy> ByLength<A, V> {
    fn place(&self, length: u8) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| length.cmp(other))
    }

    fn insert(&mut self, length: u8, network: A, value: V) -> Option<V> {
        let at = self.place(length).unwrap_or_else(|at| {
            self.0.insert(at, (length, Shards::default()));
            at
        });
        self.0[at].1.insert(network, value)
    }

    fn get(&self, length: u8, network: &A) -> Option<V> {
        self.0[self.place(length).ok()?].1.get(network).copied()
    }

    fn remove(&mut self, length: u8, network: &A) {
        let Ok(at) = self.place(length) else { return };
        let exact = &mut self.0[at].1;
        exact.remove(network);
        // A length that nobody has is not looked for.
        if exact.is_empty() {
            self.0.remove(at);
        }
    }

    fn lookup(&self, network_of: impl Fn(u8) -> A) -> Option<V> {
        self.0.iter().find_map(|(length, exact)| exact.get(&network_of(*length)).copied())
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

    fn net(index: u32) -> IpNet {
        IpNet::from(IpAddr::from(Ipv4Addr::from_bits(index)))
    }

    #[test]
    fn a_copy_shares_what_has_not_changed() {
        let mut before = Prefixes::default();
        for index in 0..20_000 {
            before.insert(net(index), index);
        }
        let mut after = before.clone();
        after.remove(net(7));
        assert_eq!((before.lookup(net(7).addr()), after.lookup(net(7).addr())), (Some(7), None));
        assert_eq!(after.insert(net(7), 8), None);
        assert_eq!((before.get(net(7)), after.get(net(7))), (Some(7), Some(8)));
        assert_eq!(before.v4.0[0].1.differing(&after.v4.0[0].1), 1, "shards");
    }

    #[test]
    fn a_length_that_nobody_has_is_not_looked_for() {
        let mut prefixes = Prefixes::default();
        prefixes.insert("10.0.0.0/8".parse().unwrap(), 1);
        prefixes.insert(net(0x0a00_0001), 2);
        prefixes.remove(net(0x0a00_0001));
        prefixes.remove("fd00::/8".parse().unwrap());
        assert_eq!((prefixes.v4.0.len(), prefixes.lookup(net(0x0a00_0001).addr())), (1, Some(1)));
    }
}
