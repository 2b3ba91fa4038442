//! How long an exchange may take, where an agent asks for limits as it does of Envoy. By default there are none.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::RouteLimits;
use crate::flow::OpenFlow;
use crate::reason::Reason;
use crate::tenant::Pacing;

/// The limits of one exchange.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TimeLimits {
    /// Longest time in which nothing moves.
    idle: Option<Duration>,
    /// From the end of the request to that of the response.
    response: Option<Duration>,
    /// The same to its beginning, of one try.
    per_try: Option<Duration>,
    /// For the whole exchange; the client's own deadline.
    deadline: Option<Instant>,
}

/// How far an exchange has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Another number whenever a byte has moved.
    pub(crate) bytes: u64,
    /// For how long we have held it back, which is nobody's fault: more at each look while we do.
    pub(crate) held_back: Duration,
}

impl Moved {
    /// What is known of an exchange that is held back by nobody else.
    pub(crate) fn of(flow: &OpenFlow, pacing: &Pacing) -> Self {
        Self { bytes: flow.moved(), held_back: pacing.held_back() }
    }
}

/// When a request was sent to its end, for the first time if there are several tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestEnd {
    at: Instant,
    /// For how long the exchange had been held back by then; see [`Moved`].
    held_back: Duration,
}

impl RequestEnd {
    /// It was sent now, after being held back for so long.
    pub(crate) fn now(held_back: Duration) -> Self {
        Self { at: Instant::now(), held_back }
    }
}

/// A limit that was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// One of the whole exchange, and whose fault that is.
    Exchange(Reason),
    /// That of one try: another may follow.
    Try,
}

impl TimeLimits {
    /// The limits of an exchange that begins now; `grpc_timeout` is the client's `grpc-timeout`.
    pub(crate) fn of(settings: &RouteLimits, grpc_timeout: Option<&[u8]>) -> Self {
        let grpc = grpc_timeout.filter(|_| settings.grpc_timeout).and_then(parse_grpc_timeout);
        let grpc = grpc.map(|asked| settings.grpc_timeout_max.map_or(asked, |most| asked.min(most)));
        Self {
            idle: settings.stream_idle_timeout,
            response: settings.timeout,
            per_try: settings.per_try_timeout,
            deadline: grpc.and_then(|timeout| Instant::now().checked_add(timeout)),
        }
    }

    /// The limit of bytes that nobody reads: only that something moves.
    pub(crate) fn of_bytes(idle: Option<Duration>) -> Self {
        Self { idle, ..Self::default() }
    }

    /// Waits until a limit is exceeded. `moved` is how far it has come, `request_ended` is when the request was complete, and
    /// once `answered` a try is over. Idleness is noticed within a quarter of its limit. The time for which we hold an answer
    /// back is not the upstream's, nor is that for which we hold back a request that is sent again.
    ///
    /// To be called for each try, when its upstream is there: as in Envoy, a try's time is counted from then, or from the end of
    /// the request where that comes later.
    pub(crate) async fn exceeded(
        self,
        moved: impl Fn() -> Moved,
        request_ended: impl Fn() -> Option<RequestEnd>,
        answered: impl Fn() -> bool,
    ) -> Exceeded {
        let Self { idle, response, per_try, deadline } = self;
        if idle.is_none() && response.is_none() && per_try.is_none() && deadline.is_none() {
            return std::future::pending().await;
        }
        let began = Instant::now();
        let (mut seen, mut since) = (moved(), began);
        let held_back_before = seen.held_back;
        loop {
            let now = Instant::now();
            let moves = moved();
            if moves != seen {
                (seen, since) = (moves, now);
            }
            let ended = request_ended();
            let since_request = ended.map_or(Duration::ZERO, |ended| seen.held_back.saturating_sub(ended.held_back));
            let response = response.map(|limit| limit.saturating_add(since_request));
            let answer_by = response.and_then(|limit| ended?.at.checked_add(limit));
            let idle_from = idle.and_then(|limit| since.checked_add(limit));
            if [deadline, answer_by, idle_from].into_iter().flatten().any(|limit| limit <= now) {
                // Envoy answers 504 to a complete request and 408 to one whose rest did not come.
                let reason = if ended.is_some() { Reason::UpstreamTimeout } else { Reason::DownstreamTimeout };
                return Exceeded::Exchange(reason);
            }
            let since_try = since_request.min(seen.held_back.saturating_sub(held_back_before));
            let per_try = per_try.filter(|_| !answered()).map(|limit| limit.saturating_add(since_try));
            let try_by = per_try.and_then(|limit| ended?.at.max(began).checked_add(limit));
            if try_by.is_some_and(|limit| limit <= now) {
                return Exceeded::Try;
            }
            let look_again = idle.map(|limit| now + (limit / 4).max(Duration::from_millis(1)));
            let answer_by = answer_by.or_else(|| now.checked_add(response?));
            let try_by = try_by.or_else(|| now.checked_add(per_try?));
            let next = [deadline, answer_by, try_by, idle_from, look_again].into_iter().flatten().min();
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => return std::future::pending().await,
            }
        }
    }

    /// The same for what has no tries, such as a tunnel: whose fault it is.
    pub(crate) async fn exceeded_as_a_whole(
        self,
        moved: impl Fn() -> Moved,
        request_ended: impl Fn() -> Option<RequestEnd>,
    ) -> Reason {
        match self.exceeded(moved, request_ended, || true).await {
            Exceeded::Exchange(reason) => reason,
            Exceeded::Try => Reason::UpstreamTimeout,
        }
    }
}

/// `grpc-timeout`: up to eight digits and a unit (the gRPC over HTTP/2 protocol).
fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.trim_ascii().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts() {
        for (value, expected) in [
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("123456789S", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("5s", None),
            ("", None),
        ] {
            assert_eq!(parse_grpc_timeout(value.as_bytes()), expected, "{value}");
        }
    }

    /// Held back all the time until then, and not after that.
    fn held_until(began: Instant, until: Duration) -> impl Fn() -> Moved {
        move || Moved { bytes: 0, held_back: (Instant::now() - began).min(until) }
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_but_a_deadline_runs_while_we_hold_back() {
        const LIMIT: Duration = Duration::from_secs(2);
        const HELD: Duration = Duration::from_secs(60);
        let none = TimeLimits::default();
        for (limits, expected) in [
            (TimeLimits { response: Some(LIMIT), ..none }, Exceeded::Exchange(Reason::UpstreamTimeout)),
            (TimeLimits { per_try: Some(LIMIT), ..none }, Exceeded::Try),
        ] {
            // A try of a request that had ended before, after being held back for as long.
            let ended = RequestEnd::now(Duration::ZERO);
            tokio::time::advance(HELD).await;
            let began = Instant::now();
            let moved = || Moved { bytes: 0, held_back: HELD + held_until(began, HELD)().held_back };
            assert_eq!(limits.exceeded(moved, || Some(ended), || false).await, expected);
            // Another look may come a little later than the moment.
            let took = Instant::now() - began;
            assert!((HELD + LIMIT..HELD + LIMIT + Duration::from_millis(10)).contains(&took), "{took:?}");
        }
        let began = Instant::now();
        let limits = TimeLimits { deadline: Some(began + LIMIT), ..none };
        limits.exceeded_as_a_whole(held_until(began, HELD), || None).await;
        assert!(Instant::now() - began < HELD, "the client's own");
    }

    #[test]
    fn only_what_is_asked_for_is_limited() {
        let settings = RouteLimits::default();
        let limits = TimeLimits::of(&settings, Some(b"1S"));
        assert!(limits.idle.is_none() && limits.response.is_none() && limits.deadline.is_none());
        assert!(limits.per_try.is_none());
        let heeding = RouteLimits { grpc_timeout: true, grpc_timeout_max: Some(Duration::ZERO), ..settings };
        let limits = TimeLimits::of(&heeding, Some(b"1H"));
        assert!(limits.deadline.is_some_and(|deadline| deadline <= Instant::now()), "cut to what is allowed");
        assert!(TimeLimits::of(&heeding, None).deadline.is_none());
    }
}
