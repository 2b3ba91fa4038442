//! A table from address prefixes to values: the longest prefix that holds an address wins.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Values by prefix, for both families. Looking an address up takes as many probes as there are different lengths.
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
struct ByLength<A: Hash + Eq, V>(Vec<(u8, HashMap<A, V>)>);

impl<A: Hash + Eq, V> Default for ByLength<A, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<A: Hash + Eq, V: Copy> ByLength<A, V> {
    fn insert(&mut self, length: u8, network: A, value: V) -> Option<V> {
        let at = match self.0.binary_search_by(|(other, _)| length.cmp(other)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (length, HashMap::new()));
                at
            }
        };
        self.0[at].1.insert(network, value)
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
