//! What policies claim: the addresses and names of their endpoints.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use tollgate_policy::EndpointKey;
use tollgate_proto::cilium;

use super::Received;

/// What the policy claims.
pub(super) fn keys(policy: &cilium::NetworkPolicy) -> impl Iterator<Item = EndpointKey> {
    policy.endpoint_ips.iter().map(|key| EndpointKey::parse(key))
}

/// The addresses among it.
pub(super) fn addresses(policy: &cilium::NetworkPolicy) -> impl Iterator<Item = IpAddr> {
    keys(policy).filter_map(|key| match key {
        EndpointKey::Address(address) => Some(address),
        EndpointKey::Name(_) => None,
    })
}

/// What several of them claim.
pub(super) fn shared(all: &[Received]) -> HashSet<EndpointKey> {
    let mut claimed: HashMap<EndpointKey, &str> = HashMap::new();
    let mut shared = HashSet::new();
    for received in all {
        for key in keys(&received.policy) {
            match claimed.get(&key) {
                Some(name) if **name != *received.name => drop(shared.insert(key)),
                _ => drop(claimed.insert(key, &received.name)),
            }
        }
    }
    shared
}
