//! What compiling policies may take of the time that others wait for: so much a second for each tenant, and some seconds' worth
//! after a pause.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::tenant::{Settings, TenantId};

/// Milliseconds a second of a tenant that has no other setting.
const MILLIS_PER_SECOND: u32 = 50;

/// Seconds whose budget can be saved up: 250 ms of the default, in which 1,000 rules of ten conditions are compiled eight times.
const SAVED_SECONDS: u64 = 5;

/// Longest that a tenant pays for what was compiled in the background.
const DEBT_SECONDS: u64 = 10;

/// What is compiled at once in any case: making something provisional of it would take as long.
const ALWAYS: u64 = 1_000_000;

/// Nanoseconds that an update waits for, whatever its tenants have left together: others wait behind it, and whoever it takes a
/// permission from keeps that meanwhile.
const UPDATE: u64 = 250_000_000;

/// The same of the first one. Before it nothing is refused: connections wait for as long as `policy_wait` says, 5 s by default.
const FIRST_UPDATE: u64 = 1_000_000_000;

/// What is compiled at once of each policy in any case, such as five rules: less than to read it.
pub(super) const OF_EACH: u64 = 50_000;

/// Of what an update waits for the part of one by so much is shared equally, before the rest goes to whoever is next.
const SHARED: u64 = 4;

/// Accounts from which on it is worth looking for those that have saved everything up.
const MANY: usize = 2048;

/// Who pays for compiling a policy: known before it is in force, unlike an endpoint's tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::control) enum Owner {
    /// The group that its endpoint belongs to, by number or address.
    Group(TenantId),
    /// The endpoint itself.
    Endpoint(u64),
}

/// Nanoseconds a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct Allowance(u64);

impl Allowance {
    pub(in crate::control) fn of(settings: &Settings) -> Self {
        let set = settings.policy.compile_millis_per_second.filter(|_| !settings.shadow);
        Self(u64::from(set.map_or(MILLIS_PER_SECOND, std::num::NonZero::get)) * 1_000_000)
    }

    fn saved(self, seconds: u64) -> i64 {
        i64::try_from(self.0.saturating_mul(seconds)).unwrap_or(i64::MAX)
    }

    fn within(self, time: Duration) -> i64 {
        i64::try_from(u128::from(self.0) * time.as_nanos() / 1_000_000_000).unwrap_or(i64::MAX)
    }
}

/// What one update may still take, all tenants together.
#[derive(Debug)]
pub(in crate::control) struct Wait(u64);

impl Wait {
    /// Of an update that begins.
    pub(in crate::control) const fn new(is_first: bool) -> Self {
        Self(if is_first { FIRST_UPDATE } else { UPDATE })
    }

    /// Nanoseconds.
    pub(super) fn left(&self) -> u64 {
        self.0.max(OF_EACH)
    }

    /// What each of so many tenants may use before anybody uses more.
    pub(super) fn share(&self, tenants: usize) -> u64 {
        match u64::try_from(tenants).unwrap_or(u64::MAX) {
            0 | 1 => self.0,
            tenants => self.0 / SHARED / tenants,
        }
    }

    /// So many nanoseconds were used.
    pub(super) fn spend(&mut self, used: u64) {
        self.0 = self.0.saturating_sub(used);
    }
}

/// The accounts of all that have compiled something lately.
#[derive(Debug, Default)]
pub(in crate::control) struct Budgets {
    accounts: HashMap<Owner, Account>,
    /// With so many accounts they are looked through again: twice as many as were left the last time, so that ten thousand
    /// endpoints which change at once cost as many steps, and not the square.
    look_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    /// Nanoseconds; negative is owed.
    left: i64,
    at: Instant,
    allowance: Allowance,
}

impl Budgets {
    /// Nanoseconds that may be compiled at once.
    pub(in crate::control) fn left(&mut self, owner: Owner, allowance: Allowance, now: Instant) -> u64 {
        u64::try_from(self.account(owner, allowance, now).left).unwrap_or(0).max(ALWAYS)
    }

    /// What is left, also where it is owed: who has most goes first.
    pub(in crate::control) fn balance(&mut self, owner: Owner, allowance: Allowance, now: Instant) -> i64 {
        self.account(owner, allowance, now).left
    }

    /// So many nanoseconds were used.
    pub(in crate::control) fn charge(&mut self, owner: Owner, allowance: Allowance, used: u64, now: Instant) {
        let account = self.account(owner, allowance, now);
        let left = account.left.saturating_sub(i64::try_from(used).unwrap_or(i64::MAX));
        account.left = left.max(-allowance.saved(DEBT_SECONDS));
    }

    fn account(&mut self, owner: Owner, allowance: Allowance, now: Instant) -> &mut Account {
        if self.accounts.len() >= self.look_at.max(MANY) {
            self.accounts.retain(|_, account| {
                account.advance(account.allowance, now);
                account.left < account.allowance.saved(SAVED_SECONDS)
            });
            self.look_at = 2 * self.accounts.len();
        }
        let full = allowance.saved(SAVED_SECONDS);
        let account = self.accounts.entry(owner).or_insert(Account { left: full, at: now, allowance });
        account.advance(allowance, now);
        account
    }
}

impl Account {
    fn advance(&mut self, allowance: Allowance, now: Instant) {
        let earned = self.allowance.within(now.saturating_duration_since(self.at));
        self.allowance = allowance;
        self.left = self.left.saturating_add(earned).min(allowance.saved(SAVED_SECONDS));
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    #[test]
    fn a_tenant_saves_up_and_pays_back_and_no_other_does() {
        let allowance = Allowance::of(&Settings::default());
        let (mut budgets, start) = (Budgets::default(), Instant::now());
        let (one, other) = (Owner::Endpoint(1), Owner::Endpoint(2));
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        assert_eq!(budgets.left(one, allowance, at(0.0)), 250 * MILLISECOND);
        budgets.charge(one, allowance, 200 * MILLISECOND, at(0.0));
        assert_eq!(budgets.left(one, allowance, at(0.0)), 50 * MILLISECOND);
        assert_eq!(budgets.left(one, allowance, at(1.0)), 100 * MILLISECOND);
        assert_eq!(budgets.left(one, allowance, at(100.0)), 250 * MILLISECOND, "no more than five seconds' worth");
        // What the background took is owed, and not for ever.
        budgets.charge(one, allowance, 60_000 * MILLISECOND, at(100.0));
        assert_eq!(budgets.left(one, allowance, at(100.0)), ALWAYS);
        assert_eq!(budgets.left(one, allowance, at(109.0)), ALWAYS);
        assert_eq!(budgets.left(one, allowance, at(112.0)), 100 * MILLISECOND);
        assert_eq!(budgets.left(other, allowance, at(100.0)), 250 * MILLISECOND);
        assert!(budgets.balance(other, allowance, at(112.0)) > budgets.balance(one, allowance, at(112.0)));
    }

    #[test]
    fn another_setting_counts_from_now_on() {
        let set = |millis| {
            let mut settings = Settings::default();
            settings.policy.compile_millis_per_second = std::num::NonZeroU32::new(millis);
            settings
        };
        let (mut budgets, start) = (Budgets::default(), Instant::now());
        let owner = Owner::Group(TenantId::UNKNOWN);
        let (low, high) = (Allowance::of(&set(10)), Allowance::of(&set(1000)));
        assert_eq!(budgets.left(owner, low, start), 50 * MILLISECOND);
        budgets.charge(owner, low, 50 * MILLISECOND, start);
        assert_eq!(budgets.left(owner, high, start + Duration::from_secs(1)), 10 * MILLISECOND);
        assert_eq!(budgets.left(owner, high, start + Duration::from_secs(2)), 1010 * MILLISECOND);
        assert_eq!(budgets.left(owner, low, start + Duration::from_secs(2)), 50 * MILLISECOND);
        let shadow = Settings { shadow: true, ..set(10) };
        assert_eq!(Allowance::of(&shadow), Allowance::of(&Settings::default()), "limits in shadow limit nothing");
    }

    #[test]
    fn who_has_saved_everything_up_is_forgotten() {
        let allowance = Allowance::of(&Settings::default());
        let (mut budgets, start) = (Budgets::default(), Instant::now());
        for id in 0..10_000 {
            budgets.charge(Owner::Endpoint(id), allowance, MILLISECOND, start + Duration::from_millis(id));
        }
        assert!(budgets.accounts.len() < MANY + 10, "{} accounts", budgets.accounts.len());
        // None of these has saved anything up: they are looked through when there are twice as many.
        let now = start + Duration::from_secs(100);
        for id in 0..10_000 {
            budgets.charge(Owner::Endpoint(id), allowance, MILLISECOND, now);
        }
        assert_eq!(budgets.accounts.len(), 10_000);
        assert!(budgets.look_at > 10_000, "{}", budgets.look_at);
    }
}
