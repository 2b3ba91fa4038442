//! Tenants: who pays for the work of the proxy, what each has used, and what each may use.
//!
//! The tenant of a connection is the owner of the policy that is enforced on it: the local endpoint, or the group that it is
//! configured into. It is found by what the kernel says about the connection, never by anything that a peer sends. Within a
//! tenant, the identity of the other side is the flow.
//!
//! ```text
//! configuration ─┐                        ┌─▶ Table (part of the World) ──▶ Connection: whose am I?
//! files ─────────┼─▶ Registry ──▶ Books ──┤
//! control plane ─┘        ▲               └─▶ Names ──▶ flow records
//! endpoints of policies ──┘     Ledger of each worker ──▶ Tally ──▶ metrics, /tenants
//!                                      └─▶ Room ◀── ladder: who may hold how much memory
//! ```

mod account;
mod bandwidth;
mod books;
mod commons;
mod delivered;
mod destinations;
mod gate;
mod gcra;
mod group;
mod id;
mod ladder;
mod limit;
mod line;
mod memory;
mod pace;
mod panics;
mod payer;
mod registry;
mod remotes;
mod settings;
mod share;
mod table;
mod without_effect;

pub(crate) use account::{Account, LogItem};
pub use account::{Ledger, Totals};
pub(crate) use books::PoliciesChange;
pub use books::{Books, Kind, MAX_SERIES, Names, NamesNow, Tally};
pub(crate) use commons::Commons;
pub use commons::Pools;
pub use delivered::{Delivered, RefusedGroup};
pub(crate) use destinations::UpstreamPlace;
pub(crate) use gate::{Gate, Head, Places, WouldLimit};
pub use gate::{Limited, Scope};
pub use group::{Claims, Group, GroupError, MAX_NAME, Member, check_name};
pub use id::{MAX_ENDPOINTS, MAX_GROUPS};
pub(crate) use id::{PLACES, Placed};
pub(crate) use line::Lines;
pub(crate) use memory::{Charged, OutOfMemory, Part};
pub use memory::{MemoryStep, Room};
pub(crate) use pace::{Pace, Pacing, Turn};
pub(crate) use payer::{Charge, Payer, SentPlace};
pub use registry::{Registry, TenantConfig};
pub use settings::{Ceilings, Guarantee, Isolation, MAX_WEIGHT, PolicyBudget, Rate, Settings};
pub(crate) use share::equal_share;
pub use table::{LocalEnd, Table};
pub use tollgate_schedule::TenantId;

use crate::reason::Reason;

/// Reasons that refusals are counted by.
const REASONS: usize = Reason::ALL.len();

/// What tests of other rooms need.
#[cfg(test)]
pub(crate) mod for_test {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::task::Poll;
    use std::time::{Duration, Instant};

    use tollgate_schedule::{Account as Scheduled, Executor, GroupKey, Ledger, Share, SystemClock, Weight};

    use super::TenantId;
    use crate::lane::Cause;
    use crate::metrics::Worker;

    /// Counts something of everything for one tenant.
    pub(crate) fn use_everything(worker: Worker) {
        let account = worker.ledger().account(TenantId::UNKNOWN).unwrap();
        account.refusals[0].increment();
        account.shadowed[0].increment();
        account.paced.increment();
        account.log_lost[0][0].increment();
        account.moved(true, Cause::SlowPolls, 0);
        let commons = worker.ledger().commons();
        for _ in 0..3 {
            commons.standing(TenantId::UNKNOWN).panics.note(TenantId::UNKNOWN, commons.since(Instant::now()));
        }
        hold(account.scheduled());
    }

    /// Of a tenant that has no turn for a while after each poll, as beyond a ceiling of processor time.
    struct Beyond(Arc<Scheduled>);

    impl Ledger for Beyond {
        fn open(&self, _: TenantId) -> (Arc<Scheduled>, Share) {
            (Arc::clone(&self.0), Share { has_end: true, ..Share::of(Weight::new(1)) })
        }

        fn pay(&self, _: TenantId, _: u64) -> u64 {
            1000
        }
    }

    fn hold(account: Arc<Scheduled>) {
        let executor = Executor::new(SystemClock::default(), Beyond(Arc::clone(&account)));
        let group = executor.handle().group(GroupKey { tenant: TenantId::UNKNOWN, flow: 0 });
        let busy = group.spawn(poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut turns = 0..1000;
            while account.usage().held == 0 && turns.next().is_some() {
                let _ = tokio::time::timeout(Duration::from_millis(1), executor.quantum()).await;
            }
        });
        drop(busy);
    }
}

#[cfg(test)]
mod tests;
