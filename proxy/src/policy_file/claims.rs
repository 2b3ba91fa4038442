//! Policies of several files that claim the same: an address, or the number by which a control plane names a policy.

use std::collections::BTreeMap;
use std::fmt;

use tollgate_proto::cilium::NetworkPolicy;

use super::FilePlace;
use super::broken::UNTOLD;

/// What more than one policy claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested {
    /// `endpoint 10.0.0.1` or `endpoint_id 69`.
    pub what: String,
    /// The policies, in the order of their files.
    pub places: Vec<FilePlace>,
    remedy: &'static str,
}

impl fmt::Display for Contested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is claimed by", self.what)?;
        for (index, place) in self.places.iter().enumerate() {
            let between = if index == 0 { "" } else { " and" };
            write!(f, "{between} {place}")?;
        }
        write!(f, "; {}", self.remedy)
    }
}

/// Everything that several of these policies claim.
pub(crate) fn contested<'a>(policies: impl Iterator<Item = (&'a FilePlace, &'a NetworkPolicy)>) -> Vec<Contested> {
    let mut ids: BTreeMap<u64, Vec<FilePlace>> = BTreeMap::new();
    let mut addresses: BTreeMap<&str, Vec<FilePlace>> = BTreeMap::new();
    for (place, policy) in policies {
        if policy.endpoint_id != UNTOLD {
            ids.entry(policy.endpoint_id).or_default().push(place.clone());
        }
        let mut own: Vec<&str> = policy.endpoint_ips.iter().map(String::as_str).collect();
        own.sort_unstable();
        own.dedup();
        for address in own {
            addresses.entry(address).or_default().push(place.clone());
        }
    }
    let ids = ids.into_iter().map(|(id, places)| Contested {
        what: format!("endpoint_id {id}"),
        places,
        remedy: "control planes name policies by it, so give each policy its own",
    });
    let addresses = addresses.into_iter().map(|(address, places)| Contested {
        what: format!("endpoint {address}"),
        places,
        remedy: "each of these policies has to allow what it does, so list it in one",
    });
    addresses.chain(ids).filter(|contested| contested.places.len() > 1).collect()
}
