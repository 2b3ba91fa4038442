//! Runs the tasks of a worker on its runtime.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::runtime::Runtime;
use tollgate_schedule::{Account, Executor, Ledger, SystemClock, TenantId, Weight};

use super::Groups;

/// Runs the task that `main` makes until it ends, and meanwhile whatever it starts in the groups that it is given. What is left
/// then is dropped. None when the task panicked.
pub(crate) fn run_tasks<F>(runtime: &Runtime, fairness: bool, main: impl FnOnce(Groups) -> F) -> Option<F::Output>
where
    F: Future<Output: 'static> + 'static,
{
    let executor = Executor::new(SystemClock::default(), Unread);
    let groups = Groups::new(executor.handle(), fairness);
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
        executor.quantum().await;
        // Sockets and timers have their turn.
        tokio::task::yield_now().await;
    }
}

/// Accounts that nobody reads.
struct Unread;

impl Ledger for Unread {
    fn open(&self, _: TenantId) -> (Arc<Account>, Weight) {
        (Arc::default(), Weight::DEFAULT)
    }
}
