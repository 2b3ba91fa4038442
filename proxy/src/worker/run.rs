//! Runs the tasks of a worker on its runtime.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use tokio::runtime::Runtime;
use tollgate_schedule::{Account, Executor, Ledger, Part, Quota, Share, SystemClock, TenantId, Weight};

use super::{Arrivals, Groups};
use crate::control::WorldStore;
use crate::metrics::Worker as Metrics;
use crate::tenant;

/// Runs the task that `main` makes until it ends, and meanwhile whatever it starts in the groups that it is given. What is left
/// then is dropped. With a `quota` of the process it keeps to it. Without `fairness` tasks run in the order of their wakes, and
/// nothing is measured. None when the task panicked.
pub(crate) fn run_tasks<F>(
    runtime: &Runtime,
    fairness: bool,
    accounts: Accounts,
    quota: Option<Arc<Quota>>,
    main: impl FnOnce(Groups) -> F,
) -> Option<F::Output>
where
    F: Future<Output: 'static> + 'static,
{
    let arrivals = accounts.arrivals.clone();
    let executor = match quota {
        _ if !fairness => Executor::plain(),
        Some(quota) => Executor::paced(SystemClock::default(), accounts, quota),
        None => Executor::new(SystemClock::default(), accounts),
    };
    let groups = Groups::new(executor.handle(), arrivals);
    let main = groups.system.clone().spawn(main(groups));
    // The runtime's budget of operations would be one for all tenants of a quantum.
    runtime.block_on(tokio::task::unconstrained(async {
        tokio::select! {
            biased;
            never = pump(&executor) => match never {},
            ended = main => ended,
        }
    }))
}

async fn pump(executor: &Executor) -> Infallible {
    loop {
        match executor.next_release() {
            None => executor.quantum().await,
            Some(after) => tokio::select! {
                biased;
                () = executor.quantum() => {}
                () = tokio::time::sleep(after) => {}
            },
        }
        // Sockets and timers have their turn.
        tokio::task::yield_now().await;
    }
}

/// The accounts and weights of tenants, as the scheduler asks for them.
pub(crate) struct Accounts {
    pub(crate) metrics: Metrics,
    pub(crate) world: Arc<WorldStore>,
    /// Where to note who begins to run; [`Groups::arrivals`] has them.
    pub(crate) arrivals: Option<Rc<Arrivals>>,
}

impl Accounts {
    /// Accounts that nobody reads.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        let identities = crate::identity::Sources::of_table(crate::identity::IdentityTable::default());
        Self { metrics: Metrics::for_test(), world: Arc::new(WorldStore::new(identities)), arrivals: None }
    }
}

impl Ledger for Accounts {
    fn open(&self, tenant: TenantId) -> (Arc<Account>, Share) {
        // An id of no table has no account; what it costs is nobody's.
        let account = self.metrics.ledger().account(tenant).map(tenant::Account::scheduled).unwrap_or_default();
        if let Some(arrivals) = &self.arrivals {
            arrivals.note(tenant, || account.usage());
        }
        let share = share(self.world.load().tenants.settings(tenant), self.metrics.ledger().workers());
        match tenant {
            TenantId::SYSTEM | TenantId::ACCEPT => (account, Share { at_least: CHORES, has_end: false, ..share }),
            // Nothing is set for strangers.
            TenantId::UNKNOWN => (account, Share { has_end: false, ..share }),
            _ => (account, share),
        }
    }

    fn pay(&self, tenant: TenantId, nanoseconds: u64) -> u64 {
        let world = self.world.load();
        let settings = world.tenants.settings(tenant);
        let Some(rate) = settings.ceilings.cpu() else { return 0 };
        let wait = self.metrics.ledger().pay_for_cpu(tenant, rate, nanoseconds);
        // In shadow it is only noted, for whoever counts what would have waited. What is to be reset for want of memory is not kept.
        match settings.shadow || self.metrics.ledger().room().has_to_give_back(tenant) {
            true => 0,
            false => u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

/// What a worker's own chores, and accepting, have of its time in any case: they must not wait for what is guaranteed to tenants,
/// which is less than all of it ([`tenant::Pools`]) by this much for each of them.
const CHORES: Part = Part::of_millionths(50_000);

/// The scheduler's share of a tenant with these settings, on each of so many workers.
pub(super) fn share(settings: &tenant::Settings, workers: u32) -> Share {
    // Its unit is finer, so that weights from 1 to the largest keep their proportions.
    const UNIT: u32 = Weight::MAX / tenant::MAX_WEIGHT;
    let (weight, at_least) = (Weight::new(settings.weight * UNIT), settings.guarantee.of_a_worker(workers));
    Share { weight, at_least, has_end: settings.ceilings.cpu_millis.is_some() }
}
