//! Where limits decide: once for a connection, before anything is done for it, and once for a request, when its head is
//! there.
//!
//! In this version no limit refuses anything: `over` finds nothing, and all that is done is counting. What a client would
//! see is there already (`reason.rs`, and `LocalReply::limited`), as is the treatment of `shadow`.

use std::time::Duration;

use super::{Account, Settings, TenantId};
use crate::control::World;
use crate::metrics::Worker as Metrics;
use crate::reason::Reason;

/// A limit that has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// Which.
    pub reason: Reason,
    /// When it is worth to try again; at least a second is said.
    pub retry_after: Option<Duration>,
}

impl Limited {
    /// Value of `retry-after`, in seconds: never 0, which would ask for a retry at once.
    pub fn retry_after_seconds(self) -> u64 {
        let wait = self.retry_after.unwrap_or_default();
        (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
    }
}

/// What somebody wants of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Connection,
    Request,
}

/// A decision point's view of one tenant.
pub(crate) struct Gate<'a> {
    account: Option<&'a Account>,
    settings: &'a Settings,
}

impl<'a> Gate<'a> {
    /// For `tenant`, in this world and on this worker.
    pub(crate) fn new(tenant: TenantId, world: &'a World, metrics: &'a Metrics) -> Self {
        Self { account: metrics.ledger().account(tenant), settings: world.tenants.settings(tenant) }
    }

    /// Whether a connection that was just accepted may stay.
    ///
    /// # Errors
    /// The limit that it would exceed.
    pub(crate) fn admit_connection(&self) -> Result<(), Limited> {
        self.decide(self.over(Wish::Connection))
    }

    /// Whether a request whose head is there may go on.
    ///
    /// # Errors
    /// As [`Gate::admit_connection`].
    pub(crate) fn admit_request(&self) -> Result<(), Limited> {
        self.decide(self.over(Wish::Request))
    }

    /// The limit that granting the wish would exceed.
    fn over(&self, _wish: Wish) -> Option<Limited> {
        None
    }

    /// In shadow, a limit only counts what it would have refused. What is refused is counted with its flow.
    fn decide(&self, limited: Option<Limited>) -> Result<(), Limited> {
        match limited {
            Some(limited) if self.settings.shadow => {
                if let Some(account) = self.account {
                    account.shadowed[limited.reason as usize].increment();
                }
                Ok(())
            }
            Some(limited) => Err(limited),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadow_counts_and_refuses_nothing() {
        let metrics = Metrics::for_test();
        let account = metrics.ledger();
        crate::tenant::Books::open_for_test(account);
        let account = account.account(TenantId::UNKNOWN).unwrap();
        let limited = Limited { reason: Reason::TenantRate, retry_after: None };
        let enforced = Settings::default();
        let shadow = Settings { shadow: true, ..Settings::default() };
        let gate = |settings| Gate { account: Some(account), settings };
        assert_eq!(gate(&enforced).decide(Some(limited)), Err(limited));
        assert_eq!(account.shadowed[Reason::TenantRate as usize].value(), 0);
        assert_eq!(gate(&shadow).decide(Some(limited)), Ok(()));
        assert_eq!(account.shadowed[Reason::TenantRate as usize].value(), 1);
        assert_eq!(gate(&enforced).admit_request(), Ok(()));
    }

    #[test]
    fn nobody_is_told_to_come_back_at_once() {
        let seconds = |retry_after| Limited { reason: Reason::TenantRate, retry_after }.retry_after_seconds();
        assert_eq!(seconds(None), 1);
        assert_eq!(seconds(Some(Duration::ZERO)), 1);
        assert_eq!(seconds(Some(Duration::from_millis(2001))), 3);
        assert_eq!(seconds(Some(Duration::from_secs(2))), 2);
    }
}
