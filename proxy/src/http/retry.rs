//! Whether a request is sent again whose upstream failed, where an agent asks for it as it does of Envoy
//! (`spec/cilium-agent.md` section 2.3): on any 5xx, on none at all, when a try takes too long, and when connecting failed.
//!
//! Only the decision, for both protocols. It is done only while nothing was sent to the client, and with a request that is
//! here as a whole, which each protocol knows by itself.

use std::time::Duration;

use crate::config::RouteLimits;

/// Envoy's back-off: a random part of so much, twice as much each time.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How a try ended without an answer that the client should get if another try may bring a better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing of the request was sent: there is no upstream connection.
    Unsent,
    /// The upstream closed or reset before it had answered.
    NoResponse,
    /// The status of an answer that the client knows nothing of yet.
    Status(u16),
    /// No answer within `per_try_timeout`.
    TimedOut,
}

/// The tries of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tries {
    left: u32,
    made: u32,
}

impl Tries {
    /// Those that the limits of a request grant beside the first.
    pub(crate) fn of(limits: &RouteLimits) -> Self {
        Self { left: limits.retries, made: 0 }
    }

    /// Whether there can be another at all.
    pub(crate) fn are_left(self) -> bool {
        self.left > 0
    }

    /// Whether another follows one that failed so, where the request can be sent again. `told` is true once the client got
    /// anything of an answer, be it an interim one.
    pub(crate) fn may_follow(self, failure: Failure, told: bool) -> bool {
        let failed = match failure {
            Failure::Status(status) => status >= 500,
            Failure::Unsent | Failure::NoResponse | Failure::TimedOut => true,
        };
        failed && !told && self.are_left()
    }

    /// Takes the next one. Returns how long to wait before it.
    pub(crate) fn take(&mut self) -> Duration {
        let most = FIRST_PAUSE.saturating_mul(1 << self.made.min(10)).min(LONGEST_PAUSE);
        self.left = self.left.saturating_sub(1);
        self.made += 1;
        most.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Tries = Tries { left: 3, made: 0 };

    #[test]
    fn what_is_met_with_another_try() {
        for (failure, expected) in [
            (Failure::Unsent, true),
            (Failure::NoResponse, true),
            (Failure::TimedOut, true),
            (Failure::Status(500), true),
            (Failure::Status(599), true),
            (Failure::Status(499), false),
            (Failure::Status(200), false),
        ] {
            assert_eq!(THREE.may_follow(failure, false), expected, "{failure:?}");
            assert!(!THREE.may_follow(failure, true), "{failure:?}: the client has been told something");
            assert!(!Tries::default().may_follow(failure, false), "{failure:?}: unasked");
        }
    }

    #[test]
    fn tries_end_and_pauses_are_bounded() {
        let mut tries = THREE;
        for most in [25, 50, 100] {
            assert!(tries.are_left());
            assert!(tries.take() <= Duration::from_millis(most));
        }
        assert!(!tries.are_left());
        let mut many = Tries { left: u32::MAX, made: 0 };
        assert!((0..100).all(|_| many.take() <= LONGEST_PAUSE));
    }
}
