//! What each remote identity has of its tenant's places, so that one that floods takes none that the others need.
//!
//! A table of fixed size that all workers share. An entry is one number, a fingerprint and two counts, and is free when both are 0, so
//! that nothing has to be tidied up. Whoever has a place knows its entry, so a request costs one addition.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use super::TenantId;
use super::commons::Space;

/// Entries beside each other that a key may have.
const WINDOW: usize = 32;
/// Bits of each count.
const COUNT: u32 = 22;
const MOST: u64 = (1 << COUNT) - 1;
const COUNTS: u64 = (1 << (2 * COUNT)) - 1;
/// Entries, a power of two.
const ENTRIES: usize = 1 << 16;

/// How many places of each kind remote identities have.
#[derive(Debug)]
pub(super) struct Remotes {
    entries: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// The entry of a remote identity of a tenant. It is that as long as whoever entered it has not left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remote(usize);

impl Default for Remotes {
    fn default() -> Self {
        Self { entries: (0..ENTRIES).map(|_| AtomicU64::new(0)).collect(), hasher: RandomState::new() }
    }
}

impl Remotes {
    /// Counts another place of this identity. `None` where the table has no room, so that it is counted nowhere.
    pub(super) fn enter(&self, tenant: TenantId, identity: u32, space: Space) -> Option<Remote> {
        let (fingerprint, window) = self.window(tenant, identity);
        let add = |at: usize, wanted: &dyn Fn(u64) -> bool| {
            let added =
                |value| wanted(value).then_some(fingerprint | (value & COUNTS)).and_then(|value| more(value, space));
            self.entries[at].fetch_update(Ordering::Relaxed, Ordering::Relaxed, added).is_ok()
        };
        // Where two workers enter one at once it may have two entries, until one of them is empty.
        let at = window.clone().find(|at| add(*at, &|value| is_of(value, fingerprint)));
        at.or_else(|| window.clone().find(|at| add(*at, &|value| value & COUNTS == 0))).map(Remote)
    }

    /// Counts another place of one that has one already.
    pub(super) fn add(&self, remote: Remote, space: Space) -> Option<Remote> {
        let added = |value| more(value, space);
        self.entries[remote.0].fetch_update(Ordering::Relaxed, Ordering::Relaxed, added).is_ok().then_some(remote)
    }

    /// A place is given back.
    pub(super) fn leave(&self, remote: Remote, space: Space) {
        self.entries[remote.0].fetch_sub(one(space), Ordering::Relaxed);
    }

    /// Places that this identity has.
    pub(super) fn of(&self, tenant: TenantId, identity: u32, space: Space) -> u32 {
        let (fingerprint, window) = self.window(tenant, identity);
        let values = window.map(|at| self.entries[at].load(Ordering::Relaxed));
        values.filter(|value| is_of(*value, fingerprint)).map(|value| count(value, space)).sum()
    }

    /// The same for one that has a place.
    pub(super) fn count(&self, remote: Remote, space: Space) -> u32 {
        count(self.entries[remote.0].load(Ordering::Relaxed), space)
    }

    fn window(&self, tenant: TenantId, identity: u32) -> (u64, impl Iterator<Item = usize> + Clone) {
        let hash = self.hasher.hash_one((tenant.raw(), identity));
        (hash & !COUNTS, (0..WINDOW).map(move |step| (hash as usize).wrapping_add(step) % ENTRIES))
    }
}

fn is_of(value: u64, fingerprint: u64) -> bool {
    value & COUNTS > 0 && value & !COUNTS == fingerprint
}

const fn shift(space: Space) -> u32 {
    space as u32 * COUNT
}

const fn one(space: Space) -> u64 {
    1 << shift(space)
}

const fn count(value: u64, space: Space) -> u32 {
    ((value >> shift(space)) & MOST) as u32
}

/// With one place more, unless the count is full.
fn more(value: u64, space: Space) -> Option<u64> {
    (u64::from(count(value, space)) < MOST).then(|| value + one(space))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TenantId = TenantId::from_raw(100);
    const OTHER: TenantId = TenantId::from_raw(101);

    #[test]
    fn each_identity_of_each_tenant_is_counted_apart() {
        let all = Remotes::default();
        let (connections, requests) = (Space::Connections, Space::InFlight);
        let first = all.enter(ONE, 7, connections).unwrap();
        assert_eq!(all.enter(ONE, 7, connections), Some(first));
        assert_eq!(all.add(first, requests), Some(first));
        let others = [all.enter(ONE, 8, connections).unwrap(), all.enter(OTHER, 7, connections).unwrap()];
        assert_eq!((all.of(ONE, 7, connections), all.of(ONE, 7, requests)), (2, 1));
        assert_eq!((all.count(first, connections), all.count(first, requests)), (2, 1));
        assert_eq!(
            (all.of(ONE, 8, connections), all.of(OTHER, 7, connections), all.of(OTHER, 8, connections)),
            (1, 1, 0)
        );
        // A request that outlives the connections keeps the entry.
        (0..2).for_each(|_| all.leave(first, connections));
        assert_eq!((all.of(ONE, 7, connections), all.of(ONE, 7, requests)), (0, 1));
        assert_eq!(all.enter(ONE, 7, connections), Some(first));
        all.leave(first, connections);
        all.leave(first, requests);
        others.iter().for_each(|other| all.leave(*other, connections));
        assert!(all.entries.iter().all(|entry| entry.load(Ordering::Relaxed) & COUNTS == 0));
    }

    #[test]
    fn workers_leave_nothing_behind() {
        let all = Remotes::default();
        let run = || {
            for identity in (0..20_000).map(|step| step % 7) {
                let remote = all.enter(ONE, identity, Space::Connections).unwrap();
                let request = all.add(remote, Space::InFlight).unwrap();
                assert!(all.count(remote, Space::Connections) > 0);
                all.leave(request, Space::InFlight);
                all.leave(remote, Space::Connections);
            }
        };
        std::thread::scope(|scope| (0..4).map(|_| scope.spawn(run)).for_each(drop));
        assert!(all.entries.iter().all(|entry| entry.load(Ordering::Relaxed) & COUNTS == 0));
    }

    #[test]
    fn what_has_no_room_is_counted_nowhere() {
        let all = Remotes::default();
        let full = MOST | MOST << COUNT;
        all.entries.iter().for_each(|entry| entry.store(full, Ordering::Relaxed));
        assert_eq!(all.enter(ONE, 7, Space::Connections), None);
        assert_eq!(all.add(Remote(0), Space::InFlight), None);
        assert!(all.entries.iter().all(|entry| entry.load(Ordering::Relaxed) == full));
    }
}
