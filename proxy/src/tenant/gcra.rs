//! Contracts: so much a second, and so much at once after a pause. GCRA (ITU-T I.371, annex A): one number per contract, the
//! moment up to which what was admitted has used it, which all workers share without a lock.
//!
//! Time is counted in units of which one admission takes a whole number, a power of two, so that nothing is rounded but the
//! clock: a unit is about a nanosecond.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Rate;

/// Nanoseconds of a second.
const SECOND: u128 = 1_000_000_000;

/// A rate, in units of its own time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contract {
    /// Of a second.
    units: u64,
    /// One admission takes two to the power of this.
    shift: u32,
    burst: u64,
}

/// What of a contract is used. `Default` is a full burst.
#[derive(Debug, Default)]
pub(super) struct Bucket(AtomicU64);

impl Contract {
    pub(super) fn new(rate: Rate) -> Self {
        let (per_second, burst) = (rate.per_second.get(), rate.burst.get());
        let shift = (per_second.leading_zeros().saturating_sub(33)).min(burst.leading_zeros().saturating_sub(2));
        Self { units: per_second << shift, shift, burst: burst << shift }
    }

    /// The moment that is `since` after the beginning.
    fn moment(self, since: Duration) -> u64 {
        u64::try_from(since.as_nanos() * u128::from(self.units) / SECOND).unwrap_or(u64::MAX)
    }

    /// So many units, rounded up.
    fn time(self, units: u64) -> Duration {
        let nanoseconds = (u128::from(units) * SECOND).div_ceil(u128::from(self.units));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

impl Bucket {
    /// Takes `amount` at the moment `since` the beginning, which is the same for all who ask.
    ///
    /// # Errors
    /// The contract does not allow it before so long. Nothing is taken.
    pub(super) fn take(&self, contract: Contract, since: Duration, amount: u64) -> Result<(), Duration> {
        self.take_at(contract, contract.moment(since), amount).map_err(|units| contract.time(units))
    }

    /// In units: the error is how many are missing.
    fn take_at(&self, contract: Contract, now: u64, amount: u64) -> Result<(), u64> {
        let full = now.saturating_add(contract.burst);
        let amount = amount.saturating_mul(1 << contract.shift);
        let after = |used: u64| used.clamp(now, full).saturating_add(amount);
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| match after(used) {
            after if after <= full => Some(after),
            // Further ahead than it can be: written under another contract. That counts as used up, no more.
            _ if used > full => Some(full),
            _ => None,
        });
        let (Ok(before) | Err(before)) = before;
        match after(before).checked_sub(full) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(missing),
        }
    }

    /// Notes that `amount` was used since the last note, evenly, and returns how long it is until the contract allows more. What
    /// is owed is never more than a second gives.
    pub(super) fn note(&self, contract: Contract, since: Duration, amount: u64) -> Duration {
        let now = contract.moment(since);
        let full = now.saturating_add(contract.burst);
        let amount = amount.saturating_mul(1 << contract.shift);
        let after = |used: u64| used.saturating_add(amount).clamp(now, full.saturating_add(contract.units));
        let (Ok(before) | Err(before)) =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(after(used)));
        contract.time(after(before).saturating_sub(full))
    }

    /// A full burst again.
    pub(super) fn refill(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
