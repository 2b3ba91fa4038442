//! What the control thread counts: policy updates and xDS streams.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// An xDS resource type that we subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceType {
    /// `cilium.NetworkPolicy`.
    NetworkPolicy,
    /// `cilium.NetworkPolicyHosts`.
    NetworkPolicyHosts,
}

impl ResourceType {
    pub(super) const ALL: [(Self, &'static str); 2] =
        [(Self::NetworkPolicy, "network_policy"), (Self::NetworkPolicyHosts, "network_policy_hosts")];
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
}

/// Counters and gauges of the control thread.
#[derive(Debug, Default)]
pub struct Control {
    pub(super) generation: AtomicU64,
    pub(super) endpoints: AtomicU64,
    pub(super) quarantined_rules: AtomicU64,
    pub(super) conflicts: AtomicU64,
    /// Unix time in milliseconds; 0 before the first update.
    pub(super) last_update_ms: AtomicU64,
    pub(super) updates: [AtomicU64; UpdateResult::ALL.len()],
    pub(super) streams: [Stream; ResourceType::ALL.len()],
}

/// One xDS resource type.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) connected: AtomicBool,
    pub(super) acks: AtomicU64,
    pub(super) nacks: AtomicU64,
    pub(super) reconnects: AtomicU64,
}

impl Control {
    /// A new snapshot is in force since `at`.
    pub fn policy_in_force(&self, policy: PolicyGauges, at: SystemTime) {
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.generation.store(policy.generation, Ordering::Relaxed);
        self.endpoints.store(policy.endpoints, Ordering::Relaxed);
        self.quarantined_rules.store(policy.quarantined_rules, Ordering::Relaxed);
        self.conflicts.store(policy.conflicts, Ordering::Relaxed);
        self.last_update_ms.store(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts an update.
    pub fn policy_update(&self, result: UpdateResult) {
        self.updates[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Says whether the type's stream is up.
    pub fn xds_connected(&self, resource: ResourceType, connected: bool) {
        self.streams[resource as usize].connected.store(connected, Ordering::Relaxed);
    }

    /// Counts an ACK that was sent.
    pub fn xds_ack(&self, resource: ResourceType) {
        self.streams[resource as usize].acks.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a NACK that was sent.
    pub fn xds_nack(&self, resource: ResourceType) {
        self.streams[resource as usize].nacks.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an attempt to connect again after a stream was lost.
    pub fn xds_reconnect(&self, resource: ResourceType) {
        self.streams[resource as usize].reconnects.fetch_add(1, Ordering::Relaxed);
    }
}
