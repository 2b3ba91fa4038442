//! How long to wait before the next attempt to open a stream.

use std::time::Duration;

/// Exponential backoff with jitter: attempt `n` waits between half and all of `initial * 2^n`, capped at `max`.
///
/// The lower half is never jittered away, so that a peer that ends every stream at once is still paced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Longest wait before the first retry.
    pub initial: Duration,
    /// Longest wait before any retry.
    pub max: Duration,
}

impl Default for Backoff {
    /// 200 ms to 5 s: a pod cannot start while the agent misses our acknowledgement, so the cap stays well under
    /// Envoy's 30 s.
    fn default() -> Self {
        Self { initial: Duration::from_millis(200), max: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// The wait before retry number `attempt` (0 is the first). `jitter` is uniform in `0.0..=1.0`.
    #[must_use]
    pub fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        let factor = 2_u32.checked_pow(attempt).unwrap_or(u32::MAX);
        let ceiling = self.initial.checked_mul(factor).unwrap_or(self.max).min(self.max);
        ceiling.mul_f64(jitter.clamp(0.0, 1.0).mul_add(0.5, 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_within_the_jitter_bounds() {
        let backoff = Backoff::default();
        let table =
            [(0, 100, 200), (1, 200, 400), (2, 400, 800), (4, 1600, 3200), (5, 2500, 5000), (u32::MAX, 2500, 5000)];
        for (attempt, least, most) in table {
            assert_eq!(backoff.delay(attempt, 0.0), Duration::from_millis(least), "attempt {attempt}");
            assert_eq!(backoff.delay(attempt, 1.0), Duration::from_millis(most), "attempt {attempt}");
        }
    }

    #[test]
    fn a_jitter_outside_its_range_changes_nothing() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(0, -3.0), backoff.delay(0, 0.0));
        assert_eq!(backoff.delay(0, 3.0), backoff.delay(0, 1.0));
    }
}
