//! Settings of a tenant that are read and have no effect: those that this version does not act on, and those that rest on something
//! which the process does without.

use serde_json::Value;

use super::settings::ENFORCED;
use super::{Group, Isolation, Member, PolicyBudget, Pools, Settings};

impl Group {
    /// What of its settings has no effect for these members in a process that has this, as [`Settings::without_effect`] says it.
    pub fn without_effect(&self, pools: Pools) -> Vec<String> {
        // Policies are their endpoints', which have numbers and addresses before anybody looks up an identity.
        let has_no_policies = self.members.iter().all(|member| matches!(member, Member::Identity(_)))
            && self.settings.policy != PolicyBudget::default();
        let of_members = has_no_policies.then(|| {
            "policy: no policies are found by the identities of members; name endpoint_ids or addresses".to_owned()
        });
        self.settings.without_effect(pools).into_iter().chain(of_members).collect()
    }
}

impl Settings {
    /// What of it has no effect in a process that has this: each setting by its name in the configuration, and why.
    pub fn without_effect(&self, pools: Pools) -> Vec<String> {
        let set = self.paths().into_iter().filter(|path| !ENFORCED.contains(&path.as_str()));
        set.map(|path| format!("{path}: not in this version")).chain(self.resting_on_nothing(pools)).collect()
    }

    fn resting_on_nothing(&self, pools: Pools) -> impl Iterator<Item = String> {
        const UNMEASURED: &str = "with fairness: off no processor time is measured; set fairness: on";
        let no_lane = match pools.fairness {
            true => "with lanes: off there are none; set lanes: on",
            false => "lanes need fair shares; set fairness: on",
        };
        const NO_END: &str = "the memory of the process has no end; set limits: { memory }";
        let Self { ceilings, guarantee, .. } = self;
        [
            (!pools.fairness && guarantee.cpu_millis.is_some(), "guarantee.cpu", UNMEASURED),
            (!pools.fairness && ceilings.cpu_millis.is_some(), "ceilings.cpu", UNMEASURED),
            (!pools.fairness && ceilings.queue_delay_millis.is_some(), "ceilings.queue_delay", UNMEASURED),
            (pools.memory.is_none() && guarantee.memory_bytes.is_some(), "guarantee.memory", NO_END),
            (!pools.lanes && self.isolation == Isolation::Lane, "isolation: lane", no_lane),
        ]
        .into_iter()
        .filter(|(applies, ..)| *applies)
        .map(|(_, setting, why)| format!("{setting}: {why}"))
    }

    /// Of everything that is set.
    fn paths(&self) -> Vec<String> {
        let mut set: Vec<String> = Vec::new();
        if self.weight != 1 {
            set.push("weight".to_owned());
        }
        for (name, part) in [
            ("guarantee", serde_json::to_value(&self.guarantee)),
            ("ceilings", serde_json::to_value(&self.ceilings)),
            ("policy", serde_json::to_value(&self.policy)),
        ] {
            let Ok(Value::Object(members)) = part else { continue };
            set.extend(members.keys().map(|key| format!("{name}.{key}")));
        }
        if self.shadow {
            set.push("shadow".to_owned());
        }
        if self.isolation != Isolation::Auto {
            set.push("isolation".to_owned());
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;
    use crate::tenant::{Ceilings, Guarantee};

    #[test]
    fn budgets_of_policies_that_nobody_finds_are_named() {
        let by_identity = Member::Identity(tollgate_policy::SecurityId(9));
        let group = |members: &[Member], rules| Group {
            name: "g".into(),
            members: members.to_vec(),
            settings: Settings { policy: PolicyBudget { rules, ..PolicyBudget::default() }, ..Settings::default() },
        };
        let said = |group: Group| group.without_effect(Pools::default()).len();
        let rules = NonZeroU32::new(2);
        assert_eq!(said(group(&[by_identity], rules)), 1);
        assert_eq!(said(group(&[by_identity], None)), 0);
        assert_eq!(said(group(&[by_identity, Member::Endpoint(7)], rules)), 0);
    }

    #[test]
    fn what_rests_on_something_that_is_off_is_named() {
        let (two, mib) = (NonZeroU32::new(2), NonZeroU64::new(1 << 20));
        let settings = Settings {
            guarantee: Guarantee { cpu_millis: two, memory_bytes: mib, ..Guarantee::default() },
            ceilings: Ceilings { cpu_millis: two, queue_delay_millis: two, in_flight: two, ..Ceilings::default() },
            isolation: Isolation::Lane,
            ..Settings::default()
        };
        let named = |pools: Pools| -> Vec<String> {
            let all = settings.without_effect(pools).into_iter();
            all.map(|said| said.split(": with").next().unwrap_or_default().to_owned()).collect()
        };
        let all = Pools { memory: Some(1 << 30), ..Pools::default() };
        assert_eq!(named(all), Vec::<String>::new());
        assert_eq!(named(Pools { lanes: false, ..all }), ["isolation: lane"]);
        let off = named(Pools { fairness: false, lanes: false, ..all });
        let lane = "isolation: lane: lanes need fair shares; set fairness: on";
        assert_eq!(off, ["guarantee.cpu", "ceilings.cpu", "ceilings.queue_delay", lane]);
        let endless = "guarantee.memory: the memory of the process has no end; set limits: { memory }";
        assert_eq!(named(Pools::default()), [endless]);
        let shared = Settings { isolation: Isolation::Shared, ..Settings::default() };
        let none = Pools { fairness: false, lanes: false, ..all };
        assert_eq!(shared.without_effect(none), Vec::<String>::new(), "so it is");
    }
}
