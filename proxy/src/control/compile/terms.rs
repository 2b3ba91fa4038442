//! On whose account a policy is compiled, and what it may be.

use std::num::NonZeroU64;

use tollgate_policy::{EndpointKey, EndpointPolicy, Limits, NetworkPolicy};

use super::budget::{Allowance, Owner};
use crate::tenant::{Settings, Table};

/// The terms of one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct Terms {
    pub(in crate::control) owner: Owner,
    pub(in crate::control) allowance: Allowance,
    pub(in crate::control) limits: Limits,
    /// Bytes of memory that all policies of the owner may take.
    pub(in crate::control) memory: usize,
}

/// That of a tenant that has no other setting: 50,000 rules with a path each, or the largest that are known from the field
/// twenty times.
pub(super) const MEMORY: usize = 64 << 20;

impl Terms {
    /// The terms by what `tenants` says of its endpoint.
    pub(in crate::control) fn of(policy: &NetworkPolicy, tenants: &Table) -> Self {
        Self::of_endpoint(policy.endpoint_id, policy.endpoints.iter(), tenants)
    }

    /// The same for a policy in force.
    pub(in crate::control) fn in_force(policy: &EndpointPolicy, tenants: &Table) -> Self {
        Self::of_endpoint(policy.endpoint_id(), policy.keys(), tenants)
    }

    pub(in crate::control) fn of_endpoint<'k>(
        endpoint: u64,
        keys: impl Iterator<Item = &'k EndpointKey>,
        tenants: &Table,
    ) -> Self {
        let addresses = keys.filter_map(|key| match key {
            EndpointKey::Address(address) => Some(*address),
            EndpointKey::Name(_) => None,
        });
        let group = tenants.group(endpoint, addresses);
        let settings = group.map_or_else(|| tenants.default_settings(), |group| tenants.settings(group));
        let memory = settings.policy.memory_bytes.filter(|_| !settings.shadow).map(NonZeroU64::get);
        Self {
            owner: group.map_or(Owner::Endpoint(endpoint), Owner::Group),
            allowance: Allowance::of(settings),
            limits: limits(settings),
            memory: memory.map_or(MEMORY, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        }
    }
}

/// Limits in shadow limit nothing.
fn limits(settings: &Settings) -> Limits {
    let standard = Limits::default();
    let budget = &settings.policy;
    let set = |limit: Option<std::num::NonZeroU32>, standard: usize| match limit {
        Some(limit) if !settings.shadow => limit.get() as usize,
        _ => standard,
    };
    Limits {
        rules: set(budget.rules, standard.rules),
        expression_bytes: set(budget.expression_bytes, standard.expression_bytes),
        program_bytes: set(budget.program_bytes, standard.program_bytes),
    }
}
