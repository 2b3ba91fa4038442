//! Places for connections that wait until policy or identities of their endpoint are known. Nobody knows yet who pays for them, so
//! they are shared by address: an endpoint may have as many as are free, and inside what it may have so may each source.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use tollgate_policy::EndpointKey;

use crate::tenant::equal_share;

/// Places of one worker.
const PLACES: u32 = 1024;
/// How often what is free one source may have, over all endpoints: more than one endpoint may, since behind one address can be many
/// clients, and too little for one that goes from address to address to take every place.
const OF_SOURCE: u32 = 3;

/// Who has places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Endpoint(EndpointKey),
    Source(IpAddr),
    SourceAtEndpoint(IpAddr, EndpointKey),
}

/// Connections of one worker that wait, by who has their places.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    taken: RefCell<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    of: HashMap<Holder, u32>,
}

/// The place of a connection that waits; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct WaitingPlace<'a> {
    waiting: &'a Waiting,
    holders: [Holder; 3],
}

/// Why there is no place, as the record of the connection says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    #[error("not held: {0} connections of its endpoint wait already, as many as may")]
    Endpoint(u32),
    #[error("not held: {0} connections from its source wait already, as many as may")]
    Source(u32),
    #[error("not held: {0} connections from its source to its endpoint wait already, as many as may")]
    SourceAtEndpoint(u32),
}

impl Waiting {
    /// A place for a connection from `source` that the policy of `endpoint` is enforced on.
    ///
    /// # Errors
    /// Its endpoint or its source has as many as it may have while others keep theirs.
    pub(crate) fn take(&self, endpoint: &EndpointKey, source: IpAddr) -> Result<WaitingPlace<'_>, NoPlace> {
        let source = source.to_canonical();
        let holders = [
            Holder::Endpoint(endpoint.clone()),
            Holder::Source(source),
            Holder::SourceAtEndpoint(source, endpoint.clone()),
        ];
        let mut taken = self.taken.borrow_mut();
        let [of_endpoint, of_source, of_both] = holders.each_ref().map(|holder| taken.of(holder));
        let most = equal_share(PLACES, taken.all, of_endpoint, 1);
        if of_endpoint >= most {
            return Err(NoPlace::Endpoint(of_endpoint));
        }
        if of_source >= equal_share(PLACES, taken.all, of_source, OF_SOURCE) {
            return Err(NoPlace::Source(of_source));
        }
        // On egress the source is the endpoint, and has nobody to share with.
        if *endpoint != EndpointKey::Address(source) && of_both >= equal_share(most, of_endpoint, of_both, 1) {
            return Err(NoPlace::SourceAtEndpoint(of_both));
        }
        taken.all += 1;
        for holder in &holders {
            *taken.of.entry(holder.clone()).or_default() += 1;
        }
        Ok(WaitingPlace { waiting: self, holders })
    }
}

impl Taken {
    fn of(&self, holder: &Holder) -> u32 {
        self.of.get(holder).copied().unwrap_or_default()
    }
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        let mut taken = self.waiting.taken.borrow_mut();
        taken.all -= 1;
        for holder in &self.holders {
            if let Some(count) = taken.of.get_mut(holder) {
                *count -= 1;
                if *count == 0 {
                    taken.of.remove(holder);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u16) -> IpAddr {
        let [high, low] = last.to_be_bytes();
        IpAddr::from([10, 0, high, low])
    }

    fn endpoint(last: u16) -> EndpointKey {
        EndpointKey::Address(IpAddr::from([192, 0, 2, u8::try_from(last).unwrap()]))
    }

    /// Takes places for `from` at `to` until there is none, and says how many there were.
    fn fill<'a>(waiting: &'a Waiting, held: &mut Vec<WaitingPlace<'a>>, to: &EndpointKey, from: IpAddr) -> usize {
        let before = held.len();
        held.extend(std::iter::from_fn(|| waiting.take(to, from).ok()));
        held.len() - before
    }

    #[test]
    fn an_endpoint_has_half_and_a_source_half_of_that() {
        let waiting = Waiting::default();
        let mut held = Vec::new();
        assert_eq!(fill(&waiting, &mut held, &endpoint(1), address(1)), 256);
        assert_eq!(waiting.take(&endpoint(1), address(1)).unwrap_err(), NoPlace::SourceAtEndpoint(256));
        assert_eq!(fill(&waiting, &mut held, &endpoint(1), address(2)), 128, "the other half is shared by the others");
        for source in 3..300 {
            fill(&waiting, &mut held, &endpoint(1), address(source));
        }
        assert_eq!(held.len(), 512);
        assert_eq!(waiting.take(&endpoint(1), address(300)).unwrap_err(), NoPlace::Endpoint(512));
        held.pop();
        assert!(waiting.take(&endpoint(1), address(1)).is_err(), "what is given back goes to who has none");
        held.push(waiting.take(&endpoint(1), address(300)).unwrap());
        assert_eq!(fill(&waiting, &mut held, &endpoint(2), address(1)), 128, "the next has half of what is free");
        held.clear();
        let taken = waiting.taken.borrow();
        assert!(taken.all == 0 && taken.of.is_empty(), "{taken:?}");
    }

    #[test]
    fn who_leaves_a_node_has_the_whole_part_of_its_endpoint() {
        let waiting = Waiting::default();
        let mut held = Vec::new();
        assert_eq!(fill(&waiting, &mut held, &EndpointKey::Address(address(1)), address(1)), 512);
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(waiting.take(&EndpointKey::from(mapped), mapped).unwrap_err(), NoPlace::Endpoint(512));
    }

    #[test]
    fn who_goes_from_address_to_address_leaves_room_for_others() {
        let waiting = Waiting::default();
        let mut held = Vec::new();
        for other in 0..=u16::MAX {
            held.extend(waiting.take(&EndpointKey::Address(address(other)), "198.51.100.1".parse().unwrap()).ok());
        }
        assert_eq!(held.len(), 768);
        let source = waiting.take(&endpoint(1), "198.51.100.1".parse().unwrap()).unwrap_err();
        assert_eq!(source, NoPlace::Source(768));
        assert_eq!(fill(&waiting, &mut held, &endpoint(1), "198.51.100.2".parse().unwrap()), 64);
    }
}
