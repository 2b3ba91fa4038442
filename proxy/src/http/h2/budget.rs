//! What the frames of one client may cost: those that move no request are held against the work that the connection does,
//! and against a rate.
//!
//! Two buckets. Control frames are all that neither open a stream nor carry DATA; each request, and each piece of an answer,
//! pays for some, since a client that downloads answers with window updates and measures with pings. Resets are the client's
//! RST_STREAM; each answer that an upstream began pays for one, and so does a stream that was open for a while, since only
//! so many can be: a client whose deadlines pass while its upstream is stuck floods nobody. What nothing paid for comes out
//! of a burst that fills up with time. Nothing here is absolute: a connection may live for years.

use std::cell::Cell;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::frames::{DATA, END_STREAM, FrameHead, HEADERS, RST_STREAM};
use crate::config::{Limits, Rate};
use crate::metrics::Worker as Metrics;
use crate::reason::Reason;

/// Control frames that a request pays for: a ping and two window updates, sent and answered twice, with room.
const PER_REQUEST: u32 = 8;
/// Control frames that a piece of an answer pays for: as before, once.
const PER_PIECE: u32 = 4;
/// Bytes of DATA, either way, that pay for a control frame. Clients give windows back in steps of 4 KiB at the least, each
/// on the stream and on the connection.
const PER_BYTES: u32 = 1024;
/// Age from which a request may be given up at no cost.
const PATIENCE: Duration = Duration::from_millis(100);
/// Frame types with a count of their own; all others share the last.
const KINDS: [&str; 11] = [
    "DATA without bytes",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
    "unknown",
];

/// The budget of one connection.
#[derive(Debug)]
pub(super) struct Budget {
    control: Option<Bucket>,
    resets: Option<Bucket>,
    /// Count what is over, and let it pass.
    shadow: bool,
    metrics: Metrics,
    over: Cell<Option<Reason>>,
    /// The newest stream of the client.
    newest: Cell<u32>,
    /// Frames charged, by [`KINDS`].
    charged: [Cell<u32>; KINDS.len()],
}

impl Budget {
    pub(super) fn new(limits: &Limits, metrics: &Metrics) -> Rc<Self> {
        Rc::new(Self {
            control: limits.http2_control_frames.map(Bucket::full),
            resets: limits.http2_resets.map(Bucket::full),
            shadow: limits.shadow,
            metrics: metrics.clone(),
            over: Cell::default(),
            newest: Cell::default(),
            charged: Default::default(),
        })
    }

    /// Why the connection has to end, once it has to.
    pub(super) fn over(&self) -> Option<Reason> {
        self.over.get()
    }

    /// Ends the connection for a reason of others.
    pub(super) fn end(&self, reason: Reason) {
        self.over.set(Some(reason));
    }

    /// The newest stream that the client opened.
    pub(super) fn newest(&self) -> u32 {
        self.newest.get()
    }

    /// Charges a frame of the client. False when it is one too many.
    pub(super) fn take(&self, head: FrameHead) -> bool {
        match head.kind {
            DATA if head.length > 0 => earn(self.control.as_ref(), head.length / PER_BYTES),
            DATA if head.flags & END_STREAM != 0 => {}
            HEADERS if head.stream > self.newest.get() => {
                self.newest.set(head.stream);
                earn(self.control.as_ref(), PER_REQUEST);
            }
            RST_STREAM => self.charge(self.resets.as_ref(), head.kind, Reason::ResetFlood),
            _ => self.charge(self.control.as_ref(), head.kind, Reason::FrameFlood),
        }
        self.over.get().is_none()
    }

    /// Notes that an upstream began to answer a request of the client.
    pub(super) fn answered(&self) {
        earn(self.resets.as_ref(), 1);
    }

    /// Notes that the client gave up a request of that age which nobody had answered.
    pub(super) fn given_up(&self, age: Duration) {
        if age >= PATIENCE {
            earn(self.resets.as_ref(), 1);
        }
    }

    /// Notes a piece of an answer, of so many bytes, as the upstream sent it: how it is cut up for the client is the client's doing.
    pub(super) fn moved(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        earn(self.control.as_ref(), PER_PIECE + bytes / PER_BYTES);
    }

    /// What was charged, in words.
    pub(super) fn detail(&self) -> String {
        let mut text = String::new();
        for (count, name) in self.charged.iter().zip(KINDS).filter(|(count, _)| count.get() > 0) {
            let separator = if text.is_empty() { "frames: " } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{separator}{} {name}", count.get());
        }
        text
    }

    /// What most of the frames that were charged are a flood of.
    pub(super) fn blames(&self) -> Reason {
        let resets = &self.charged[usize::from(RST_STREAM)];
        if resets.get() > 0 && self.charged.iter().all(|count| count <= resets) {
            Reason::ResetFlood
        } else {
            Reason::FrameFlood
        }
    }

    fn charge(&self, bucket: Option<&Bucket>, kind: u8, reason: Reason) {
        let count = &self.charged[usize::from(kind).min(KINDS.len() - 1)];
        count.set(count.get().saturating_add(1));
        let Some(bucket) = bucket else { return };
        if bucket.spend(Instant::now) {
            return;
        }
        if self.shadow {
            // As if the connection had ended, and its client had come back.
            bucket.refill();
            self.metrics.limit_in_shadow(reason);
        } else if self.over.get().is_none() {
            self.over.set(Some(reason));
        }
    }
}

fn earn(bucket: Option<&Bucket>, n: u32) {
    if let Some(bucket) = bucket {
        bucket.left.set(bucket.left.get().saturating_add(n).min(bucket.rate.burst));
    }
}

/// A token bucket that asks for the time only when it is empty.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    left: Cell<u32>,
    /// When it was last filled by time.
    since: Cell<Instant>,
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self { rate, left: Cell::new(rate.burst), since: Cell::new(Instant::now()) }
    }

    fn refill(&self) {
        self.left.set(self.rate.burst);
    }

    /// Takes one out; false when there is none.
    fn spend(&self, now: impl FnOnce() -> Instant) -> bool {
        if self.left.get() == 0 {
            let now = now();
            let passed = now.saturating_duration_since(self.since.get());
            let came = passed.as_micros() * u128::from(self.rate.per_second) / 1_000_000;
            let came = u32::try_from(came).unwrap_or(u32::MAX);
            if came >= self.rate.burst {
                self.since.set(now);
            } else {
                let worth = u64::from(came) * 1_000_000 / u64::from(self.rate.per_second.max(1));
                self.since.set(self.since.get() + Duration::from_micros(worth));
            }
            self.left.set(came.min(self.rate.burst));
        }
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: FrameHead = FrameHead { length: 8, kind: 6, flags: 0, stream: 0 };

    fn budget(shadow: bool) -> Rc<Budget> {
        // A second is longer than the test.
        let rate = Rate { per_second: 1, burst: 10 };
        let limits = Limits { shadow, http2_control_frames: Some(rate), http2_resets: Some(rate), ..Limits::default() };
        Budget::new(&limits, &Metrics::for_test())
    }

    fn request(stream: u32) -> FrameHead {
        FrameHead { length: 15, kind: HEADERS, flags: 5, stream }
    }

    #[test]
    fn control_frames_need_work() {
        let idle = budget(false);
        let taken = (0..100).take_while(|_| idle.take(PING)).count();
        assert!((10..13).contains(&taken), "{taken}");
        assert_eq!(idle.over(), Some(Reason::FrameFlood));
        assert!(idle.detail().starts_with("frames: 1") && idle.detail().ends_with(" PING"), "{}", idle.detail());

        let busy = budget(false);
        for n in 0..1000 {
            assert!(busy.take(request(2 * n + 1)));
            assert!((0..PER_REQUEST).all(|_| busy.take(PING)));
            busy.moved(3 * PER_BYTES as usize);
            assert!((0..PER_PIECE + 3).all(|_| busy.take(PING)));
        }
        assert_eq!(busy.newest(), 1999);
        // Trailers, or another request on an old stream, are no work.
        assert!(!(0..20).all(|_| busy.take(request(1999))));
    }

    #[test]
    fn resets_need_answers() {
        let cancel = |stream| FrameHead { length: 4, kind: RST_STREAM, flags: 0, stream };
        let rapid = budget(false);
        let taken = (0..100).take_while(|&n| rapid.take(request(2 * n + 1)) && rapid.take(cancel(2 * n + 1))).count();
        assert!((10..13).contains(&taken), "{taken}");
        assert_eq!(rapid.over(), Some(Reason::ResetFlood));

        let answered = budget(false);
        for n in 0..1000 {
            assert!(answered.take(request(2 * n + 1)));
            assert!(answered.take(cancel(2 * n + 1)));
            match n % 2 {
                0 => answered.answered(),
                _ => answered.given_up(PATIENCE),
            }
        }
        answered.given_up(PATIENCE / 2);
    }

    #[test]
    fn shadow_lets_pass() {
        let shadow = budget(true);
        assert!((0..1000).all(|_| shadow.take(PING)));
        assert_eq!(shadow.over(), None);
    }

    #[test]
    fn time_fills_a_bucket_up_to_its_burst() {
        let bucket = Bucket::full(Rate { per_second: 10, burst: 5 });
        let start = bucket.since.get();
        let after = |ms| move || start + Duration::from_millis(ms);
        assert_eq!((0..10).filter(|_| bucket.spend(after(0))).count(), 5);
        assert!(!bucket.spend(after(99)));
        assert!(bucket.spend(after(150)) && !bucket.spend(after(199)));
        assert!(bucket.spend(after(200)), "what is left of a step is not lost");
        assert_eq!((0..10).filter(|_| bucket.spend(after(60_000))).count(), 5);
    }
}
