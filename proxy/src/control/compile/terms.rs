//! On whose account a policy is compiled, and what it may be.

use tollgate_policy::{EndpointKey, Limits, NetworkPolicy};

use super::budget::{Allowance, Owner};
use crate::tenant::{Settings, Table};

/// The terms of one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct Terms {
    pub(in crate::control) owner: Owner,
    pub(in crate::control) allowance: Allowance,
    pub(in crate::control) limits: Limits,
}

impl Terms {
    /// The terms by what `tenants` says of its endpoint.
    pub(in crate::control) fn of(policy: &NetworkPolicy, tenants: &Table) -> Self {
        let addresses = policy.endpoints.iter().filter_map(|key| match key {
            EndpointKey::Address(address) => Some(*address),
            EndpointKey::Name(_) => None,
        });
        let group = tenants.group(policy.endpoint_id, addresses);
        let settings = group.map_or_else(|| tenants.default_settings(), |group| tenants.settings(group));
        Self {
            owner: group.map_or(Owner::Endpoint(policy.endpoint_id), Owner::Group),
            allowance: Allowance::of(settings),
            limits: limits(settings),
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
