//! The numbers by which the data path knows tenants: a place in tables, and which of the successive holders of that place is
//! meant. To the scheduler they are keys.

use tollgate_schedule::TenantId;

/// Bits of the place.
const PLACE_BITS: u32 = 12;

/// The groups that there always are.
pub(super) const BUILT_IN: [(TenantId, &str); 4] = [
    (TenantId::SYSTEM, "_system"),
    (TenantId::ACCEPT, "_accept"),
    (TenantId::UNKNOWN, "_unknown"),
    (TenantId::OVERHEAD, "_overhead"),
];
/// Where the places begin that tenants share for which there is no room; those before it that no built-in group has are kept
/// free.
pub(super) const FIRST_SHARED: usize = 16;
/// How many of them there are.
pub(super) const SHARED: usize = 64;
/// Groups that can be configured.
pub const MAX_GROUPS: usize = 256;
/// Places for them: those that are gone and have something open keep theirs, also where all are called otherwise at once.
pub(super) const GROUP_PLACES: usize = 2 * MAX_GROUPS;
/// Endpoints that are tenants of their own; more share places.
pub const MAX_ENDPOINTS: usize = 768;
/// Where the places of groups and endpoints begin.
pub(super) const FIRST: usize = FIRST_SHARED + SHARED;
/// All places.
pub(crate) const PLACES: usize = FIRST + GROUP_PLACES + MAX_ENDPOINTS;

const _: () = assert!(PLACES <= 1 << PLACE_BITS);

const _: () = assert!(FIRST_SHARED >= TenantId::FIRST as usize);

/// What is in a tenant's number.
pub(crate) trait Placed: Sized {
    /// The place, below [`PLACES`] for every id that is in a table.
    fn place(self) -> usize;
    /// The next holder of the same place.
    fn successor(self) -> Self;
}

impl Placed for TenantId {
    fn place(self) -> usize {
        (self.raw() & ((1 << PLACE_BITS) - 1)) as usize
    }

    fn successor(self) -> Self {
        Self::from_raw(self.raw().wrapping_add(1 << PLACE_BITS))
    }
}

/// The first holder of a place.
#[expect(clippy::cast_possible_truncation, reason = "there are fewer than 4,096 places")]
pub(super) const fn first_holder(place: usize) -> TenantId {
    TenantId::from_raw(place as u32)
}

/// Which of the shared places falls to a tenant of this name.
pub(super) fn shared(name: &str) -> TenantId {
    // FNV-1a: the same in every process, so that a tenant meets the same others on each node and after each start.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    first_holder(FIRST_SHARED + (hash % SHARED as u64) as usize)
}
