//! Whether a tenant is kept apart because tasks of its connections panic again and again: a defect of ours, but one that its traffic
//! finds. All workers count together; it happens too seldom for that to cost anything.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::gcra::{Bucket, Contract};
use super::{Rate, TenantId};

/// So many panics …
const MANY: usize = 3;
/// … within that time, and a tenant is kept apart. It comes back when there was none for as long.
pub(super) const WITHIN: Duration = Duration::from_secs(60);
/// Connections of it that are accepted meanwhile: enough to go on with, and too few for what each may set off to matter.
const PACE: Rate = Rate { per_second: TEN, burst: TEN };
const TEN: NonZeroU64 = NonZeroU64::MIN.saturating_add(9);

/// What keeps a tenant apart, and how far, for whoever reads a record.
pub(super) fn in_words() -> String {
    let (seconds, pace) = (WITHIN.as_secs(), PACE.per_second);
    format!("{MANY} panics within {seconds} s: {pace} new connections a second until there was none for {seconds} s")
}

/// Panics of one tenant.
#[derive(Debug, Default)]
pub(super) struct Panics {
    /// When the last ones were, in milliseconds since the beginning, and one more; 0 for never. The longest ago is where `next` points.
    before: [AtomicU64; MANY - 1],
    next: AtomicU32,
    /// Until when it is kept apart, in the same way.
    until: AtomicU64,
    /// Whose they are.
    tenant: AtomicU32,
    admissions: Bucket,
}

impl Panics {
    /// Counts one at this moment. Returns whether that is what keeps the tenant apart.
    pub(super) fn note(&self, tenant: TenantId, since: Duration) -> bool {
        self.tenant.store(tenant.raw(), Ordering::Relaxed);
        let now = stamp(since);
        let next = self.next.fetch_add(1, Ordering::Relaxed) as usize % self.before.len();
        let before = self.before[next].swap(now, Ordering::Relaxed);
        let were_many = before > 0 && now.saturating_sub(before) < millis(WITHIN);
        if !were_many && !self.keep_apart(since) {
            return false;
        }
        self.until.fetch_max(now + millis(WITHIN), Ordering::Relaxed) <= now
    }

    /// The tenant, while it is kept apart.
    pub(super) fn kept_apart(&self, since: Duration) -> Option<TenantId> {
        self.keep_apart(since).then(|| TenantId::from_raw(self.tenant.load(Ordering::Relaxed)))
    }

    /// For how long it will be kept apart.
    pub(super) fn left(&self, since: Duration) -> Duration {
        Duration::from_millis(self.until.load(Ordering::Relaxed).saturating_sub(stamp(since)))
    }

    /// Lets a connection in, for which there is no time to ask unless there ever were panics.
    ///
    /// # Errors
    /// The tenant is kept apart, and opens connections too fast for that: so long until the next.
    pub(super) fn admit(&self, since: impl FnOnce() -> Duration) -> Result<(), Duration> {
        if self.until.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let since = since();
        match self.keep_apart(since) {
            true => self.admissions.take(Contract::new(PACE), since, 1),
            false => Ok(()),
        }
    }

    /// Forgets all, for another tenant.
    pub(super) fn forget(&self) {
        self.before.iter().chain([&self.until]).for_each(|moment| moment.store(0, Ordering::Relaxed));
        self.admissions.refill();
    }

    fn keep_apart(&self, since: Duration) -> bool {
        self.until.load(Ordering::Relaxed) > stamp(since)
    }
}

fn stamp(since: Duration) -> u64 {
    millis(since) + 1
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantId = TenantId::from_raw(100);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn three_within_a_minute_keep_a_tenant_apart_for_a_minute() {
        let panics = Panics::default();
        assert!(!panics.note(TENANT, at(0)) && !panics.note(TENANT, at(30)));
        assert!(!panics.note(TENANT, at(60)), "the first is a minute ago");
        assert_eq!(panics.kept_apart(at(60)), None);
        assert!(panics.note(TENANT, at(70)));
        assert_eq!((panics.kept_apart(at(129)), panics.kept_apart(at(130))), (Some(TENANT), None));
        assert_eq!(panics.left(at(100)), at(30));
    }

    #[test]
    fn another_panic_begins_the_minute_anew() {
        let panics = Panics::default();
        assert_eq!([0, 1, 2].map(|second| panics.note(TENANT, at(second))), [false, false, true]);
        assert!(!panics.note(TENANT, at(50)), "it is kept apart already");
        assert_eq!((panics.kept_apart(at(109)), panics.kept_apart(at(110))), (Some(TENANT), None));
        assert!(!panics.note(TENANT, at(111)), "it was let go");
        panics.forget();
        assert!(!panics.note(TENANT, at(112)) && !panics.note(TENANT, at(113)), "somebody else's");
    }

    #[test]
    fn connections_come_in_slowly_meanwhile() {
        let panics = Panics::default();
        let admitted = |since| (0..1000).filter(|_| panics.admit(|| since).is_ok()).count();
        assert_eq!(admitted(at(0)), 1000);
        assert_eq!([(); 3].map(|()| panics.note(TENANT, at(0))), [false, false, true]);
        assert_eq!(admitted(at(0)), 10);
        assert_eq!(panics.admit(|| at(0)), Err(Duration::from_millis(100)));
        assert_eq!(admitted(at(3)), 10, "a burst");
        assert_eq!(admitted(at(60)), 1000, "it is over");
    }
}
