//! Connections to upstreams, by who pays for them and where they go: what a tenant has open to one destination is counted apart
//! from what others have there.
//!
//! A table of fixed size that all workers share. An entry is one number, a fingerprint and a count, and is free when the count
//! is 0, so that nothing has to be tidied up.

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::TenantId;

/// Entries beside each other that a key may have.
const WINDOW: usize = 32;
/// Bits of the count.
const COUNT: u32 = 24;
const COUNTS: u64 = (1 << COUNT) - 1;
/// Entries, a power of two.
const ENTRIES: usize = 1 << 17;

/// How many connections each tenant has to each destination.
#[derive(Debug)]
pub(super) struct Destinations {
    entries: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// An open connection; not counted any more when dropped.
#[derive(Debug)]
pub(crate) struct UpstreamPlace {
    /// `None` where the table had no room, so that it is counted nowhere.
    counted: Option<(Arc<Destinations>, usize)>,
}

/// The tenant has as many connections to the destination as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Default for Destinations {
    fn default() -> Self {
        Self { entries: (0..ENTRIES).map(|_| AtomicU64::new(0)).collect(), hasher: RandomState::new() }
    }
}

impl Destinations {
    /// Counts another connection, unless the tenant has `most` to that destination.
    ///
    /// # Errors
    /// It has.
    pub(super) fn take(self: &Arc<Self>, tenant: TenantId, to: SocketAddr, most: u32) -> Result<UpstreamPlace, Full> {
        let hash = self.hasher.hash_one((tenant.raw(), to));
        let fingerprint = hash & !COUNTS;
        let entries = (0..WINDOW).map(|step| (hash as usize).wrapping_add(step) % ENTRIES);
        let is_mine = |value: u64| value & COUNTS > 0 && value & !COUNTS == fingerprint;
        // Added first and looked at then, so that no two who come at once are both the last that may.
        let add = |at: usize, wanted: &dyn Fn(u64) -> bool| {
            let added =
                |value: u64| (wanted(value) && value & COUNTS < COUNTS).then(|| fingerprint | ((value & COUNTS) + 1));
            self.entries[at].fetch_update(Ordering::Relaxed, Ordering::Relaxed, added).is_ok()
        };
        let at = entries.clone().find(|at| add(*at, &is_mine));
        let at = at.or_else(|| entries.clone().find(|at| add(*at, &|value| value & COUNTS == 0)));
        let counted = at.map(|at| (Arc::clone(self), at));
        let place = UpstreamPlace { counted };
        // More than one entry where two workers made them at once.
        let load = |at: usize| self.entries[at].load(Ordering::Relaxed);
        let all: u64 = entries.map(load).filter(|value| is_mine(*value)).map(|value| value & COUNTS).sum();
        // Without room, whoever has a ceiling is refused: nobody knows how many it has.
        let is_over = if place.counted.is_some() { all > u64::from(most) } else { most < u32::MAX };
        if is_over { Err(Full) } else { Ok(place) }
    }
}

impl Drop for UpstreamPlace {
    fn drop(&mut self) {
        if let Some((destinations, at)) = self.counted.take() {
            destinations.entries[at].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TenantId = TenantId::from_raw(100);
    const OTHER: TenantId = TenantId::from_raw(101);

    fn to(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn each_tenant_has_its_own_to_each_destination() {
        let all = Arc::new(Destinations::default());
        let held: Vec<_> = (0..3).map(|_| all.take(ONE, to(1), 3).unwrap()).collect();
        assert!(all.take(ONE, to(1), 3).is_err());
        let others = (all.take(ONE, to(2), 1).unwrap(), all.take(OTHER, to(1), 1).unwrap());
        assert!(all.take(ONE, to(1), 3).is_err(), "whoever is refused is not counted");
        drop(held);
        assert!(all.take(ONE, to(1), 1).is_ok());
        drop(others);
        assert!(all.entries.iter().all(|entry| entry.load(Ordering::Relaxed) & COUNTS == 0));
    }

    #[test]
    fn workers_never_have_more_together() {
        let all = Arc::new(Destinations::default());
        let open = AtomicU64::new(0);
        let run = || {
            for _ in 0..5000 {
                let held: Vec<_> = (0..4).filter_map(|_| all.take(ONE, to(1), 5).ok()).collect();
                let own = held.len() as u64;
                assert!(open.fetch_add(own, Ordering::Relaxed) + own <= 5);
                open.fetch_sub(own, Ordering::Relaxed);
            }
        };
        std::thread::scope(|scope| (0..4).map(|_| scope.spawn(run)).for_each(drop));
        let held: Vec<_> = (0..9).filter_map(|_| all.take(ONE, to(1), 5).ok()).collect();
        assert_eq!(held.len(), 5, "nothing is left over");
    }

    #[test]
    fn where_the_table_has_no_room_only_ceilings_refuse() {
        let all = Arc::new(Destinations::default());
        all.entries.iter().for_each(|entry| entry.store(COUNTS, Ordering::Relaxed));
        assert!(all.take(ONE, to(1), 5).is_err());
        drop(all.take(ONE, to(1), u32::MAX).unwrap());
        assert!(all.entries.iter().all(|entry| entry.load(Ordering::Relaxed) == COUNTS));
    }
}
