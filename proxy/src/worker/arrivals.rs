//! Who has begun to run on a worker since somebody last looked, and what had been used by then. Whoever looks now and then sees
//! only who is there at that moment: a tenant whose connections all come and go in between would have used nothing.

use std::cell::RefCell;
use std::collections::HashMap;

use tollgate_schedule::{TenantId, Usage};

use crate::tenant::Placed as _;

/// By place, so that there are never more than places, whoever had them and however seldom somebody looks.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(RefCell<HashMap<usize, (TenantId, Usage)>>);

impl Arrivals {
    /// Notes that a tenant begins to run, with what its account says. The first time since the last look counts.
    pub(super) fn note(&self, tenant: TenantId, usage: impl FnOnce() -> Usage) {
        let mut places = self.0.borrow_mut();
        if places.get(&tenant.place()).is_none_or(|(noted, _)| *noted != tenant) {
            places.insert(tenant.place(), (tenant, usage()));
        }
    }

    /// Who has come since this was last asked.
    pub(super) fn take(&self) -> HashMap<TenantId, Usage> {
        self.0.take().into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_arrival_of_the_present_holder_counts() {
        let (arrivals, a) = (Arrivals::default(), TenantId::from_raw(100));
        let with = |polls| Usage { polls, ..Usage::default() };
        arrivals.note(a, || with(1));
        arrivals.note(a, || unreachable!("it is known"));
        assert_eq!(arrivals.take(), HashMap::from([(a, with(1))]));
        assert_eq!(arrivals.take(), HashMap::new());
        arrivals.note(a, || with(2));
        arrivals.note(a.successor(), || with(3));
        assert_eq!(arrivals.take(), HashMap::from([(a.successor(), with(3))]));
    }
}
