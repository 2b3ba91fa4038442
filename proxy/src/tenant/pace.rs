//! Slowing down what a tenant moves beyond its rate of bytes: whoever is about to write waits for its turn, so that what came before
//! is all that is held and nothing more is read. Nothing is refused and nothing is cut for it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::line::Place;
use super::{Payer, TenantId};

/// How long an exchange was held back, all its tries and both ways together, while it is under way; or all of a connection.
#[derive(Debug, Default)]
pub(crate) struct Pacing {
    /// Directions that wait now, and since when time is not counted yet while at least one does, and for whom.
    waiting: Cell<u32>,
    since: Cell<Option<(Instant, TenantId)>>,
    before: Cell<Duration>,
    /// Among whose paced ones it is, or among whose that would be.
    counted: Cell<Option<TenantId>>,
    /// It would have waited, were the rate not in shadow.
    would_wait: Cell<bool>,
}

/// Time that an exchange was held back for, in microseconds, and by whose rate.
type Lap = (TenantId, u64);

impl Pacing {
    /// For how long, so far. While it waits this is more at each look, so that nobody takes it for idle.
    pub(crate) fn held_back(&self) -> Duration {
        self.before.get() + self.since.get().map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }

    /// Counts what has passed until `now`.
    fn pass(&self, now: Instant) -> Option<Lap> {
        let (since, tenant) = self.since.get()?;
        let (before, after) = (self.before.get(), self.before.get() + now.saturating_duration_since(since));
        self.before.set(after);
        self.since.set(Some((now, tenant)));
        // Of the sums, so that nothing is lost by rounding.
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Some((tenant, micros(after) - micros(before)))
    }

    fn begin(&self, now: Instant, tenant: TenantId) -> Option<Lap> {
        let lap = self.pass(now);
        self.waiting.set(self.waiting.get() + 1);
        self.since.set(Some((now, tenant)));
        lap
    }

    fn end(&self, now: Instant) -> Option<Lap> {
        let lap = self.pass(now);
        self.waiting.set(self.waiting.get().saturating_sub(1));
        if self.waiting.get() == 0 {
            self.since.set(None);
        }
        lap
    }

    /// Whether `tenant` has not been counted for it before.
    fn is_new_to(&self, tenant: TenantId) -> bool {
        self.counted.replace(Some(tenant)) != Some(tenant)
    }
}

/// The pace of one exchange: who pays, and what is known about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace<'a> {
    pub(crate) payer: &'a Payer,
    pub(crate) pacing: &'a Pacing,
    /// Of the connection, where one exchange that is held back holds up others: they share its windows.
    pub(crate) of_all: Option<&'a Pacing>,
}

/// The turn that one direction waits for. Whoever polls for one goes on to, or drops it: others wait behind.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    waiting: Option<Waiting>,
    /// Boxed, and kept: few need it, and they again and again.
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct Waiting {
    place: Place,
    /// What was agreed with the tenant when it was taken.
    agreed: u32,
    /// It is the first, and the timer says when it may go.
    is_timed: bool,
}

impl Pace<'_> {
    /// Most bytes that may be written at once. Without a ceiling there is no end to it, and nothing to wait for.
    pub(crate) fn piece(self) -> usize {
        self.payer.bandwidth().map_or(usize::MAX, |ceiling| match ceiling.shadow {
            true => usize::MAX,
            false => ceiling.bandwidth.piece(),
        })
    }

    /// Whether bytes may have to wait.
    pub(crate) fn is_set(self) -> bool {
        self.payer.bandwidth().is_some()
    }

    /// Waits until so many bytes may go. To be polled with the same number until then; what is agreed with the tenant meanwhile
    /// counts at once, since whoever moves bytes is woken by each change.
    pub(crate) fn poll(self, turn: &mut Turn, bytes: usize, cx: &mut Context<'_>) -> Poll<()> {
        if turn.waiting.as_ref().is_some_and(|waiting| waiting.agreed != self.payer.agreed()) {
            // What it waits for is of a contract that is gone.
            self.give_up(turn);
        }
        let waiting = match &mut turn.waiting {
            Some(waiting) => waiting,
            none => match self.enter(bytes, cx) {
                Some(waiting) => none.insert(waiting),
                None => return Poll::Ready(()),
            },
        };
        if !waiting.is_timed {
            let Some(wait) = waiting.place.ask(Instant::now(), bytes, cx.waker()) else { return Poll::Pending };
            let at = tokio::time::Instant::now() + wait.min(LONGEST);
            turn.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at))).as_mut().reset(at);
            waiting.is_timed = true;
        }
        if let Some(timer) = &mut turn.timer {
            ready!(timer.as_mut().poll(cx));
        }
        if let Some(waiting) = turn.waiting.take() {
            waiting.place.go();
            self.end();
        }
        Poll::Ready(())
    }

    /// A place where its tenant's bytes wait, if these have to.
    fn enter(self, bytes: usize, cx: &Context<'_>) -> Option<Waiting> {
        let ceiling = self.payer.bandwidth()?;
        if ceiling.shadow {
            if !self.payer.may_move(bytes) && self.pacing.is_new_to(self.payer.tenant()) {
                self.payer.would_pace();
                self.pacing.would_wait.set(true);
            }
            return None;
        }
        let line = self.payer.line(ceiling.bandwidth);
        let place = line.enter(self.payer.flow(), Instant::now(), bytes, cx.waker())?;
        if self.pacing.is_new_to(self.payer.tenant()) {
            self.payer.paces();
        }
        self.begin();
        Some(Waiting { place, agreed: self.payer.agreed(), is_timed: false })
    }

    /// The same for so many bytes as [`Pace::piece`] allows.
    pub(crate) async fn wait(self, turn: &mut Turn, bytes: usize) {
        if self.is_set() {
            poll_fn(|cx| self.poll(turn, bytes, cx)).await;
        }
    }

    /// Waits for this turn no longer.
    pub(crate) fn give_up(self, turn: &mut Turn) {
        if turn.waiting.take().is_some() {
            self.end();
        }
    }

    /// Whether it would have been held back, were the rate not in shadow.
    pub(crate) fn would_wait(self) -> bool {
        self.pacing.would_wait.get()
    }

    /// Takes it that nothing waits any more, and returns for how long the exchange was held back so far: to be asked when a try has
    /// ended, whose turns may be gone without a word.
    pub(crate) fn rest(self) -> Duration {
        self.book(self.pacing.pass(Instant::now()));
        self.pacing.waiting.set(0);
        self.pacing.since.set(None);
        self.pacing.held_back()
    }

    fn begin(self) {
        let (now, tenant) = (Instant::now(), self.payer.tenant());
        self.book(self.pacing.begin(now, tenant));
        if let Some(of_all) = self.of_all {
            of_all.begin(now, tenant);
        }
    }

    fn end(self) {
        let now = Instant::now();
        self.book(self.pacing.end(now));
        if let Some(of_all) = self.of_all {
            of_all.end(now);
        }
    }

    /// Time is on the account of whose rate it was, whoever pays by now.
    fn book(self, lap: Option<Lap>) {
        if let Some((tenant, time)) = lap {
            self.payer.held_back(tenant, time);
        }
    }
}

/// Nobody waits for longer: a moment further ahead cannot be told to a timer.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
