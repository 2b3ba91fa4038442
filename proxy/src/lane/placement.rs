//! Which tenants are in the lane, as both sides see it, and the ways between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::mpsc::{self, Permit, Receiver, Sender};

use super::Handover;
use crate::tenant::{PLACES, Placed as _, TenantId};

/// Connections on their way at a time; further ones stay where they are.
const WAY: usize = 1024;

/// Who is in the lane of one worker. The worker writes, both sides read.
#[derive(Debug)]
pub(super) struct Placement {
    /// By the tenant's place; 0 for nobody, else one more than the number of the tenant that is in the lane.
    places: Box<[AtomicU32]>,
    count: AtomicUsize,
    /// Told when somebody has moved. For the lane: the worker is who moves them.
    pub(super) changed: Notify,
}

impl Placement {
    fn new() -> Self {
        let places = (0..PLACES).map(|_| AtomicU32::new(0)).collect();
        Self { places, count: AtomicUsize::new(0), changed: Notify::new() }
    }

    fn is_in_lane(&self, tenant: TenantId) -> bool {
        let of = self.places.get(tenant.place());
        of.is_some_and(|place| place.load(Ordering::Relaxed) == tenant.raw().wrapping_add(1))
    }

    /// Moves a tenant. For the worker.
    pub(super) fn put(&self, tenant: TenantId, in_lane: bool) {
        let Some(place) = self.places.get(tenant.place()) else { return };
        let own = tenant.raw().wrapping_add(1);
        if in_lane {
            if place.swap(own, Ordering::Relaxed) == 0 {
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        } else if place.compare_exchange(own, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            // Else the place has another holder by now, who is in the lane.
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn is_anybody_in_lane(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }
}

/// How one side sees the other.
#[derive(Debug)]
pub(crate) struct Side {
    /// This is the lane.
    is_lane: bool,
    pub(super) placement: Arc<Placement>,
    other: Sender<Handover>,
}

impl Side {
    /// Whether a connection of this tenant belongs to the other side. Not to one that takes nothing any more.
    pub(crate) fn is_misplaced(&self, tenant: TenantId) -> bool {
        // One shared load while nobody is in the lane.
        (self.is_lane || self.placement.is_anybody_in_lane())
            && self.placement.is_in_lane(tenant) != self.is_lane
            && !self.other.is_closed()
    }

    /// Whether a tenant is in the lane.
    pub(crate) fn is_anybody_in_lane(&self) -> bool {
        self.placement.is_anybody_in_lane()
    }

    /// A place on the way to the other side, which takes up whatever is sent by it; none when the way is full, or the other side
    /// is ending.
    pub(crate) fn way(&self) -> Option<Permit<'_, Handover>> {
        self.other.try_reserve().ok()
    }

    /// Waits until somebody has moved. For the lane.
    pub(crate) async fn changed(&self) {
        self.placement.changed.notified().await;
    }
}

/// One side, and what comes from the other.
#[derive(Debug)]
pub(crate) struct Crossing {
    pub(crate) side: Side,
    pub(crate) incoming: Receiver<Handover>,
}

/// Connects a worker, which comes first, with its lane.
pub(crate) fn crossing() -> (Crossing, Crossing) {
    let placement = Arc::new(Placement::new());
    let (to_lane, in_lane) = mpsc::channel(WAY);
    let (to_worker, on_worker) = mpsc::channel(WAY);
    let side = |is_lane, other, incoming| Crossing {
        side: Side { is_lane, placement: Arc::clone(&placement), other },
        incoming,
    };
    (side(false, to_lane, on_worker), side(true, to_worker, in_lane))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_know_where_a_tenant_belongs() {
        let (worker, lane) = crossing();
        let (a, other) = (TenantId::from_raw(100), TenantId::from_raw(101));
        let misplaced = |tenant| (worker.side.is_misplaced(tenant), lane.side.is_misplaced(tenant));
        assert_eq!((misplaced(a), misplaced(other)), ((false, true), (false, true)));
        let placement = &worker.side.placement;
        placement.put(a, true);
        placement.put(a, true);
        assert_eq!((misplaced(a), misplaced(other)), ((true, false), (false, true)));
        // The next holder of a place is somebody else.
        assert_eq!(misplaced(a.successor()), (false, true));
        placement.put(a.successor(), true);
        placement.put(a, false);
        assert_eq!((misplaced(a), misplaced(a.successor())), ((false, true), (true, false)));
        placement.put(a.successor(), false);
        assert_eq!(misplaced(a.successor()), (false, true));
        assert!(!placement.is_anybody_in_lane());
    }

    #[test]
    fn nothing_is_sent_to_a_side_that_ends() {
        let (worker, mut lane) = crossing();
        worker.side.placement.put(TenantId::from_raw(100), true);
        assert!(worker.side.way().is_some() && worker.side.is_misplaced(TenantId::from_raw(100)));
        lane.incoming.close();
        assert!(worker.side.way().is_none() && !worker.side.is_misplaced(TenantId::from_raw(100)));
    }
}
