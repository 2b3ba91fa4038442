//! What the control thread counts: policy updates.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// Outcome of an update of the policy set, from xDS or the watched directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateResult {
    /// In force (quarantined elements included).
    Accepted,
    /// Refused as a whole; the last good set stays in force.
    Rejected,
}

impl UpdateResult {
    pub(super) const ALL: [(Self, &'static str); 2] = [(Self::Accepted, "accepted"), (Self::Rejected, "rejected")];
}

/// Size and state of the policy set in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyGauges {
    /// Generation of the snapshot.
    pub generation: u64,
    /// Endpoints that have a policy.
    pub endpoints: u64,
    /// Elements that could not be compiled and take their most restrictive reading.
    pub quarantined_rules: u64,
    /// Addresses that more than one policy claims.
    pub conflicts: u64,
    /// Endpoints of which a direction denies until its policy is compiled.
    pub unfinished: u64,
    /// Endpoints of which a direction denies for want of memory.
    pub without_room: u64,
    /// Bytes that compiled policies take.
    pub bytes: u64,
}

/// Counters and gauges of the control thread.
#[derive(Debug, Default)]
pub struct Control {
    pub(super) generation: AtomicU64,
    pub(super) endpoints: AtomicU64,
    pub(super) quarantined_rules: AtomicU64,
    pub(super) conflicts: AtomicU64,
    pub(super) unfinished: AtomicU64,
    pub(super) without_room: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Unix time in milliseconds; 0 before the first update.
    pub(super) last_update_ms: AtomicU64,
    pub(super) updates: [AtomicU64; UpdateResult::ALL.len()],
}

impl Control {
    /// A new snapshot is in force since `at`.
    pub fn policy_in_force(&self, policy: PolicyGauges, at: SystemTime) {
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.generation.store(policy.generation, Ordering::Relaxed);
        self.endpoints.store(policy.endpoints, Ordering::Relaxed);
        self.quarantined_rules.store(policy.quarantined_rules, Ordering::Relaxed);
        self.conflicts.store(policy.conflicts, Ordering::Relaxed);
        self.unfinished.store(policy.unfinished, Ordering::Relaxed);
        self.without_room.store(policy.without_room, Ordering::Relaxed);
        self.bytes.store(policy.bytes, Ordering::Relaxed);
        self.last_update_ms.store(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts an update.
    pub fn policy_update(&self, result: UpdateResult) {
        self.updates[result as usize].fetch_add(1, Ordering::Relaxed);
    }
}
