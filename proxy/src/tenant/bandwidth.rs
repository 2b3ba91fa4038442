//! Contracts about bytes: so many a second, and so many at once after a pause. GCRA (ITU-T I.371, annex A) as in `gcra`, but for whoever can
//! wait: bytes that may not go yet are given the moment at which they may. Who asks for that is a matter of `line`.
//!
//! What is used is a moment in time, whatever the rate: so one that changes leaves nothing that could be misread.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Rate, Settings};

/// Parts of a nanosecond in which time is counted, so that rounding up matters for nobody. Nine years are no more than 64 bits hold.
const PARTS: u64 = 64;
/// Of a second.
const SECOND: u64 = PARTS * 1_000_000_000;
/// Most bytes that go at once: the largest burst that is not a matter of settings.
pub(super) const PIECE: usize = 16 * 1024;
/// Fewest, however low the rate is: smaller pieces would cost more than they are.
const LEAST: usize = 512;
/// Pieces a second, at low rates.
const SMOOTHNESS: u64 = 16;
/// The least burst of what is logged: any record fits in.
const LOG_BURST: u64 = 64 * 1024;
/// The least burst, as a part of what a second gives: timers are no finer.
const FINENESS: u64 = SECOND / 100;

/// A rate of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bandwidth {
    per_second: NonZeroU64,
    /// How long the burst takes at this rate.
    burst: u64,
}

/// A rate of bytes, and whether it is only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteCeiling {
    pub(super) bandwidth: Bandwidth,
    pub(super) shadow: bool,
}

impl ByteCeiling {
    pub(super) fn of_moving(settings: &Settings) -> Option<Self> {
        Some(Self { bandwidth: Bandwidth::new(settings.ceilings.bytes?), shadow: settings.shadow })
    }

    pub(super) fn of_log(settings: &Settings) -> Option<Self> {
        Some(Self { bandwidth: Bandwidth::of_log(settings.ceilings.log_bytes?), shadow: settings.shadow })
    }
}

impl Bandwidth {
    pub(super) fn new(rate: Rate) -> Self {
        let per_second = rate.per_second;
        let burst = time(rate.burst.get().max(PIECE as u64), per_second).max(FINENESS);
        Self { per_second, burst }
    }

    /// The same for what is logged, where bytes cannot wait.
    pub(super) fn of_log(rate: Rate) -> Self {
        let burst = NonZeroU64::new(rate.burst.get().max(LOG_BURST)).unwrap_or(rate.burst);
        Self::new(Rate { burst, ..rate })
    }

    /// How much goes at once after a pause.
    #[cfg(test)]
    pub(super) fn burst_bytes(self) -> f64 {
        self.burst as f64 / SECOND as f64 * self.per_second.get() as f64
    }

    /// How much goes at once.
    pub(super) fn piece(self) -> usize {
        usize::try_from(self.per_second.get() / SMOOTHNESS).unwrap_or(PIECE).clamp(LEAST, PIECE)
    }
}

/// How long so many bytes take, rounded up.
fn time(bytes: u64, per_second: NonZeroU64) -> u64 {
    let time = (u128::from(bytes) * u128::from(SECOND)).div_ceil(u128::from(per_second.get()));
    u64::try_from(time).unwrap_or(u64::MAX)
}

/// What some bytes use of a bandwidth: all of it from one moment until another. They go a burst before that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reservation {
    from: u64,
    until: u64,
}

impl Reservation {
    /// How long it is until the bytes may go.
    pub(super) fn wait(self, bandwidth: Bandwidth, since: Duration) -> Duration {
        let wait = self.until.saturating_sub(bandwidth.burst).saturating_sub(moment(since));
        Duration::from_nanos(wait.div_ceil(PARTS))
    }

    /// Whether what it uses is partly past. Bytes that go before add up with all others to no more than the burst and what the time
    /// gives.
    pub(super) fn is_over(self, since: Duration) -> bool {
        self.from < moment(since)
    }
}

/// Up to which moment a bandwidth is given away. `Default` is a full burst.
#[derive(Debug, Default)]
pub(super) struct Reserved(AtomicU64);

impl Reserved {
    /// Gives these bytes what comes next. `since` is the time since a beginning that is the same for all who ask.
    pub(super) fn reserve(&self, bandwidth: Bandwidth, since: Duration, bytes: usize) -> Reservation {
        let (now, cost) = (moment(since), time(bytes as u64, bandwidth.per_second));
        let after = |used: u64| used.max(now).saturating_add(cost);
        let (Ok(before) | Err(before)) =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(after(used)));
        Reservation { from: before.max(now), until: after(before) }
    }

    /// Takes back a reservation whose bytes do not go, unless something was reserved after it: that was told its moment.
    pub(super) fn take_back(&self, reservation: Reservation) -> bool {
        let Reservation { from, until } = reservation;
        self.0.compare_exchange(until, from, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Takes these bytes if they may go now. What is not `urgent` leaves a quarter of the burst for what is.
    pub(super) fn take(&self, bandwidth: Bandwidth, since: Duration, bytes: usize, urgent: bool) -> bool {
        let (now, cost) = (moment(since), time(bytes as u64, bandwidth.per_second));
        let kept = if urgent { 0 } else { bandwidth.burst / 4 };
        let most = now.saturating_add(bandwidth.burst - kept);
        let taken = |used: u64| Some(used.max(now).saturating_add(cost)).filter(|after| *after <= most);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// A full burst again.
    pub(super) fn refill(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

fn moment(since: Duration) -> u64 {
    u64::try_from(since.as_nanos() * u128::from(PARTS)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bandwidth(per_second: u64, burst: u64) -> Bandwidth {
        let [per_second, burst] = [per_second, burst].map(|n| NonZeroU64::new(n).unwrap());
        Bandwidth::new(Rate { per_second, burst })
    }

    /// In any stretch of time no more goes than the burst and what the time gives, and all of that if it is asked for.
    #[test]
    fn what_goes_is_what_the_rate_and_the_burst_give() {
        for (per_second, burst) in [(1_000, 20_000), (3, 16_384), (100_000_000, 5_000_000), (7_777_777, 1_000_000)] {
            let (bandwidth, reserved) = (bandwidth(per_second, burst), Reserved::default());
            let (mut now, mut waited) = (Duration::from_secs(5), Duration::ZERO);
            let mut gone: Vec<(Duration, u64)> = Vec::new();
            // Asks again as soon as it may go, but for a pause now and then.
            for n in 1..500_usize {
                let bytes = 1 + n * 7919 % bandwidth.piece();
                let wait = reserved.reserve(bandwidth, now, bytes).wait(bandwidth, now);
                (now, waited) = (now + wait, waited + wait);
                gone.push((now, bytes as u64));
                if n % 100 == 0 {
                    now += Duration::from_secs(1);
                }
            }
            for (first, (from, _)) in gone.iter().enumerate().step_by(17) {
                let mut sum = 0;
                for (at, bytes) in &gone[first..] {
                    sum += bytes;
                    let given = (*at - *from).as_secs_f64() * per_second as f64 + burst as f64;
                    assert!(sum as f64 <= given + 1.0, "{sum} of {given} at {per_second}");
                }
            }
            let sum = gone.iter().map(|(_, bytes)| bytes).sum::<u64>();
            let expected = waited.as_secs_f64() * per_second as f64;
            assert!(sum as f64 >= expected - 1.0, "{sum} while {expected} would have gone in {waited:?}");
        }
    }

    #[test]
    fn who_asked_first_goes_first_and_nobody_at_once_with_another() {
        let (bandwidth, reserved) = (bandwidth(16_384, 16_384), Reserved::default());
        let now = Duration::from_secs(1);
        let reserve = || reserved.reserve(bandwidth, now, PIECE);
        let wait = |reservation: Reservation| reservation.wait(bandwidth, now).as_secs();
        let all = [0; 4].map(|_| reserve());
        assert_eq!(all.map(wait), [0, 1, 2, 3]);
        // Only the last can be taken back, and once.
        assert_eq!([2, 3, 3, 2].map(|n: usize| reserved.take_back(all[n])), [false, true, false, true]);
        assert_eq!(wait(reserve()), 2, "as if they had never been");
        reserved.refill();
        assert_eq!(wait(reserve()), 0);
        assert!(!reserved.take_back(all[1]), "of a contract that is gone");
    }

    #[test]
    fn a_quarter_is_kept_for_what_is_urgent() {
        let (bandwidth, reserved) = (bandwidth(1, 100_000), Reserved::default());
        let now = Duration::from_secs(1);
        let take = |urgent| (0..).take_while(|_| reserved.take(bandwidth, now, 1_000, urgent)).count();
        assert_eq!((take(false), take(true), take(false)), (75, 25, 0));
    }

    #[test]
    fn a_burst_is_no_less_than_can_be_kept_to() {
        assert_eq!(bandwidth(1_000_000_000, 1).burst, FINENESS);
        assert_eq!(bandwidth(1, 1).burst, time(PIECE as u64, NonZeroU64::MIN));
        assert_eq!([1, 160_000, u64::MAX].map(|rate| bandwidth(rate, 1).piece()), [512, 10_000, PIECE]);
        let (least, last) = (bandwidth(1, 1), Duration::MAX);
        assert_eq!(Reserved::default().reserve(least, last, PIECE).wait(least, last), Duration::ZERO);
    }
}
