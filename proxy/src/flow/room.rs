//! Whose records and entries find room where they wait. Space is shared by dynamic thresholds, as places are (`tenant/share.rs`): idle
//! room is lent, and whoever comes next finds some.

use crate::tenant::{Placed as _, TenantId};

/// Room for so many things, or so many bytes of them.
///
/// Anybody may have the first quarter. Of the two behind it a tenant has as much as is left of them for others, so that one alone gets half.
/// The last one is for denials, which find no room before it or whose tenant has had its part there: of that, too, a tenant has as
/// much as is left. What tenants have is counted until no more than the first quarter is taken: whoever counts sees what comes, not what goes.
#[derive(Debug)]
pub(super) struct Room {
    size: u64,
    /// More than the first quarter is taken.
    crowded: bool,
    /// How often it was. What was counted before is void.
    times: u32,
    /// What denials have had of their own part since then.
    reserved: u64,
    /// Where the one that was admitted last goes.
    part: Part,
    /// By place of the tenant.
    had: Vec<Had>,
}

/// What a tenant has had.
#[derive(Clone, Copy, Debug, Default)]
struct Had {
    /// When it was counted.
    times: u32,
    common: u64,
    reserved: u64,
}

/// Parts of the room.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Nobody counts.
    Free,
    /// Tenants share it.
    Common,
    /// Tenants share it, for denials alone.
    Reserved,
}

impl Room {
    pub(super) const fn new(size: u64) -> Self {
        Self { size, crowded: false, times: 0, reserved: 0, part: Part::Free, had: Vec::new() }
    }

    /// Whether so much is taken that tenants share what is left.
    pub(super) const fn is_crowded(&self, taken: u64) -> bool {
        taken > self.size / 4
    }

    /// Whether a tenant may have so much more, where so much is `taken`. What is larger than all of it may be there alone.
    pub(super) fn admits(&mut self, taken: u64, more: u64, tenant: TenantId, denied: bool) -> bool {
        if !self.is_crowded(taken) && std::mem::take(&mut self.crowded) {
            self.times = self.times.wrapping_add(1);
            self.reserved = 0;
        }
        self.part = Part::Free;
        if taken == 0 || !self.is_crowded(taken.saturating_add(more)) {
            return true;
        }
        self.crowded = true;
        let (had, reserve) = (self.had(tenant), self.size / 4);
        let common = self.size - reserve;
        if had.common.saturating_add(more) <= common.saturating_sub(taken) {
            self.part = Part::Common;
            return true;
        }
        // Who has used up its part of the common room leaves the rest of it to others.
        let left = if taken < common { reserve.saturating_sub(self.reserved) } else { self.size.saturating_sub(taken) };
        self.part = Part::Reserved;
        denied && had.reserved.saturating_add(more) <= left
    }

    /// Notes that the tenant has what was admitted last.
    pub(super) fn take(&mut self, more: u64, tenant: TenantId) {
        let mut had = self.had(tenant);
        match self.part {
            Part::Free => return,
            Part::Common => had.common += more,
            Part::Reserved => {
                had.reserved += more;
                self.reserved += more;
            }
        }
        let place = tenant.place();
        if self.had.len() <= place {
            self.had.resize(place + 1, Had::default());
        }
        self.had[place] = had;
    }

    fn had(&self, tenant: TenantId) -> Had {
        let had = self.had.get(tenant.place()).filter(|had| had.times == self.times);
        had.copied().unwrap_or_else(|| Had { times: self.times, ..Had::default() })
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
        assert_eq!(fill(&mut room, &mut taken, A, false), 400);
        assert_eq!(fill(&mut room, &mut taken, B, false), 100);
        assert_eq!(fill(&mut room, &mut taken, C, true), 175, "of the common room, and of that for denials");
        assert_eq!(fill(&mut room, &mut taken, A, true), 63, "its own are lost last, too");
        assert_eq!(fill(&mut room, &mut taken, A, false), 0);
    }

    #[test]
    fn denials_take_no_room_from_others() {
        let (mut room, mut taken) = (Room::new(800), 0);
        assert_eq!(fill(&mut room, &mut taken, A, true), 500);
        assert_eq!(fill(&mut room, &mut taken, B, false), 50);
        assert_eq!(fill(&mut room, &mut taken, C, false), 25);
        assert_eq!(fill(&mut room, &mut taken, B, true), 113);
    }

    #[test]
    fn the_last_quarter_is_for_denials() {
        let (mut room, mut taken) = (Room::new(800), 0);
        let tenants = || (100..).map(TenantId::from_raw);
        let others: u64 =
            tenants().map(|tenant| fill(&mut room, &mut taken, tenant, false)).take_while(|taken| *taken > 0).sum();
        assert_eq!(others, 600);
        assert_eq!(fill(&mut room, &mut taken, A, true), 100);
        let others: u64 =
            tenants().map(|tenant| fill(&mut room, &mut taken, tenant, true)).take_while(|taken| *taken > 0).sum();
        assert_eq!(others, 100);
    }

    #[test]
    fn it_is_lent_again_when_it_is_free() {
        let (mut room, mut taken) = (Room::new(800), 0);
        assert_eq!(fill(&mut room, &mut taken, A, false), 400);
        taken = 390;
        assert_eq!(fill(&mut room, &mut taken, A, false), 5, "more is left than it had");
        taken = 201;
        assert_eq!(fill(&mut room, &mut taken, A, false), 97);
        taken = 200;
        assert_eq!(fill(&mut room, &mut taken, A, false), 200);
        assert_eq!(fill(&mut room, &mut taken, B, true), 250);
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
