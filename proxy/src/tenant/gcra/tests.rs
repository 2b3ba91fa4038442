use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;

fn contract(per_second: u64, burst: u64) -> Contract {
    Contract::new(Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::new(burst).unwrap() })
}

/// A token bucket as it is told: a level that rises with time, and never above the burst. In fractions of a token.
struct Reference {
    level: u128,
    at: u64,
}

impl Reference {
    fn take(&mut self, contract: Contract, burst: u64, now: u64) -> bool {
        let one = 1_u128 << contract.shift;
        self.level = (self.level + u128::from(now - self.at)).min(u128::from(burst) * one);
        self.at = now;
        let taken = self.level >= one;
        self.level -= if taken { one } else { 0 };
        taken
    }
}

proptest! {
    /// Never more than the burst and what the rate gives, in any stretch of time; and nothing is refused that a bucket
    /// with these numbers has a token for.
    #[test]
    fn exactly_what_is_allowed(
        per_second in prop_oneof![1_u64..50, 1_u64..5_000_000_000],
        burst in 1_u64..20,
        steps in prop::collection::vec((0_u64..4, 0.0_f64..1.5), 1..150),
    ) {
        let contract = contract(per_second, burst);
        let one = 1_u64 << contract.shift;
        let (bucket, mut now) = (Bucket::default(), 5 * contract.units);
        let mut reference = Reference { level: u128::from(burst) << contract.shift, at: now };
        let mut admitted: Vec<u64> = Vec::new();
        for (kind, part) in steps {
            // At once, to the very unit, shortly before it, or any time.
            now += match kind {
                0 => 0,
                1 => one,
                2 => one.saturating_sub(1),
                _ => (part * one as f64) as u64,
            };
            let taken = bucket.take_at(contract, now, 1);
            prop_assert_eq!(taken.is_ok(), reference.take(contract, burst, now));
            match taken {
                Ok(()) => admitted.push(now),
                Err(missing) => {
                    let waiting = Bucket(AtomicU64::new(bucket.0.load(Ordering::Relaxed)));
                    prop_assert!(waiting.take_at(contract, now + missing - 1, 1).is_err());
                    prop_assert!(waiting.take_at(contract, now + missing, 1).is_ok());
                }
            }
        }
        for (first, begun) in admitted.iter().enumerate() {
            for (last, ended) in admitted.iter().enumerate().skip(first) {
                let count = (last - first + 1) as u128;
                prop_assert!((count - u128::from(burst).min(count)) * u128::from(one) <= u128::from(ended - begun));
            }
        }
    }
}

#[test]
fn a_second_gives_what_it_says() {
    for per_second in [1, 3, 7, 1_000_000, 3_000_000_000, 1 << 36] {
        let (contract, bucket) = (contract(per_second, 1), Bucket::default());
        assert_eq!(contract.moment(Duration::from_secs(1)) >> contract.shift, per_second);
        // A year on: nothing has overflowed or drifted.
        let year = Duration::from_secs(365 * 24 * 3600);
        assert_eq!(bucket.take(contract, year, 1), Ok(()));
        let wait = bucket.take(contract, year, 1).unwrap_err();
        assert!(
            wait.abs_diff(Duration::from_secs(1) / u32::try_from(per_second).unwrap_or(u32::MAX))
                < Duration::from_nanos(3)
        );
        assert_eq!(bucket.take(contract, year + wait, 1), Ok(()));
    }
}

#[test]
fn workers_share_one_burst() {
    let (contract, bucket) = (contract(1, 10_000), Bucket::default());
    let taken = || (0..10_000).filter(|_| bucket.take(contract, Duration::ZERO, 1).is_ok()).count();
    let all: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(taken)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(all, 10_000);
}

#[test]
fn another_contract_finds_the_bucket_empty_at_worst() {
    let (slow, fast, bucket) = (contract(1, 1), contract(2_000_000_000, 1000), Bucket::default());
    let at = Duration::from_secs(1_000_000);
    assert_eq!(bucket.take(fast, at, 1000), Ok(()));
    let wait = bucket.take(slow, at, 1).unwrap_err();
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    assert_eq!(bucket.take(slow, at + wait, 1), Ok(()));
}

#[test]
fn what_was_used_is_paid_back_in_time() {
    let (contract, bucket) = (contract(1000, 100), Bucket::default());
    let at = |millis| Duration::from_secs(100) + Duration::from_millis(millis);
    let note = |millis, amount| bucket.note(contract, at(millis), amount).as_millis();
    assert_eq!(note(0, 0), 0);
    // As much as the time gives, over whatever time, owes nothing.
    assert_eq!((note(500, 500), note(501, 1), note(9_000, 8_499)), (0, 0, 0));
    // A burst, and beyond it.
    assert_eq!((note(9_000, 100), note(9_000, 30)), (0, 30));
    assert_eq!((note(9_010, 0), note(9_030, 0)), (20, 0));
    assert_eq!(note(9_030, 1_000_000), 1_000, "no more than a second is owed");
    assert_eq!(note(10_030, 0), 0);
}
