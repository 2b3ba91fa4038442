//! Settings that are right by themselves and have no effect beside others of the same configuration.

use super::{Config, MemoryLimit};
use crate::tenant::{Pools, Settings};

impl Config {
    /// Each such setting by its path, and why, with what to set. What depends on the machine that the proxy will run on is said there,
    /// when it starts.
    pub fn without_effect(&self) -> Vec<String> {
        let memory = match self.limits.memory {
            MemoryLimit::Bytes(bytes) => Some(bytes),
            // As much as it takes.
            MemoryLimit::OfControlGroup => Some(u64::MAX),
            MemoryLimit::Off => None,
        };
        let pools = Pools::of(self.max_connections, self.workers, &self.limits, memory);
        let pools = Pools { fairness: self.fairness, lanes: self.lanes && self.fairness, ..pools };
        let of = |place: String, settings: &Settings| -> Vec<String> {
            settings.without_effect(pools).into_iter().map(|setting| format!("{place}: {setting}")).collect()
        };
        let default = of("tenants.default".to_owned(), &self.tenants.default);
        let groups = self.tenants.groups.iter();
        let groups = groups.flat_map(|group| of(format!("tenants.groups, \"{}\"", group.name), &group.settings));
        default.into_iter().chain(groups).collect()
    }
}
