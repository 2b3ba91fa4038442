//! Whose records and entries find room where they wait. Space is shared by dynamic thresholds, as places are (`tenant/share.rs`): idle
//! room is lent, and whoever comes next finds some.

use crate::tenant::{Placed as _, TenantId};

/// Room for so many things, or so many bytes of them.
///
/// Anybody may have the first three quarters. The last one is for denials: a tenant has as much of it as is left for others, so that
/// one alone gets half. What tenants have of it is counted until all of it is free again: whoever counts sees what comes, not what
/// goes.
#[derive(Debug)]
pub(super) struct Room {
    size: u64,
    /// The first three quarters are taken.
    crowded: bool,
    /// How often it was. What was counted before is void.
    times: u32,
    /// By place of the tenant: when it was counted, and how much.
    had: Vec<(u32, u64)>,
}

impl Room {
    pub(super) const fn new(size: u64) -> Self {
        Self { size, crowded: false, times: 0, had: Vec::new() }
    }

    /// Whether so much is taken that it is not anybody's any more.
    pub(super) const fn is_crowded(&self, taken: u64) -> bool {
        taken > self.size - self.size / 4
    }

    /// Whether a tenant may have so much more, where so much is `taken`. What is larger than all of it may be there alone.
    pub(super) fn admits(&mut self, taken: u64, more: u64, tenant: TenantId, denied: bool) -> bool {
        if !self.is_crowded(taken) && std::mem::take(&mut self.crowded) {
            self.times = self.times.wrapping_add(1);
        }
        if taken == 0 || !self.is_crowded(taken.saturating_add(more)) {
            return true;
        }
        self.crowded = true;
        denied && self.had(tenant).saturating_add(more) <= self.size.saturating_sub(taken)
    }

    /// Notes that it has it.
    pub(super) fn take(&mut self, more: u64, tenant: TenantId) {
        if !self.crowded {
            return;
        }
        let had = self.had(tenant);
        let place = tenant.place();
        if self.had.len() <= place {
            self.had.resize(place + 1, (0, 0));
        }
        self.had[place] = (self.times, had + more);
    }

    fn had(&self, tenant: TenantId) -> u64 {
        self.had.get(tenant.place()).filter(|(times, _)| *times == self.times).map_or(0, |(_, had)| *had)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId::from_raw(80);
    const B: TenantId = TenantId::from_raw(90);
    const C: TenantId = TenantId::from_raw(1000);

    /// So much of it as it gets, one by one.
    fn fill(room: &mut Room, taken: &mut u64, tenant: TenantId, denied: bool) -> u64 {
        let before = *taken;
        while room.admits(*taken, 1, tenant, denied) {
            room.take(1, tenant);
            *taken += 1;
        }
        *taken - before
    }

    #[test]
    fn there_is_room_for_whoever_comes_next() {
        let (mut room, mut taken) = (Room::new(800), 0);
        assert_eq!(fill(&mut room, &mut taken, A, false), 600);
        assert_eq!(fill(&mut room, &mut taken, C, false), 0, "the last quarter is for denials");
        assert_eq!(fill(&mut room, &mut taken, A, true), 100);
        assert_eq!(fill(&mut room, &mut taken, B, true), 50);
        assert_eq!(fill(&mut room, &mut taken, C, true), 25);
    }

    #[test]
    fn it_is_lent_again_when_it_is_free() {
        let (mut room, mut taken) = (Room::new(800), 0);
        assert_eq!(fill(&mut room, &mut taken, A, true), 700);
        taken = 601;
        assert_eq!(fill(&mut room, &mut taken, A, true), 50, "more is left than it had");
        taken = 500;
        assert_eq!(fill(&mut room, &mut taken, A, true), 200);
        assert_eq!(fill(&mut room, &mut taken, B, true), 50);
        // Also where what comes next is large.
        assert!(room.admits(590, 150, A, true));
    }

    #[test]
    fn what_is_too_large_for_it_has_it_alone() {
        let mut room = Room::new(800);
        assert!(room.admits(0, 900, A, false));
        room.take(900, A);
        assert!(!room.admits(900, 1, B, true));
        assert!(!room.admits(1, 900, B, true));
        assert!(room.admits(0, 900, A, false), "and again");
    }
}
