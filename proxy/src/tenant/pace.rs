//! Slowing down what a tenant moves beyond its rate of bytes: whoever is about to write waits for its turn, so that what came before
//! is all that is held and nothing more is read. Nothing is refused and nothing is cut for it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::Payer;

/// How long an exchange was held back, both ways together, while it is under way; or all of a connection.
#[derive(Debug, Default)]
pub(crate) struct Pacing {
    /// Directions that wait now, and since when at least one does.
    waiting: Cell<u32>,
    since: Cell<Option<Instant>>,
    before: Cell<Duration>,
    /// It is among the paced ones, or among those that would be.
    counted: Cell<bool>,
}

impl Pacing {
    /// Of another try of the same exchange.
    pub(crate) fn again(before: &Self) -> Self {
        Self { counted: before.counted.clone(), ..Self::default() }
    }

    /// For how long, so far. While it waits this is more at each look, so that nobody takes it for idle.
    pub(crate) fn held_back(&self) -> Duration {
        self.before.get() + self.since.get().map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn begin(&self) {
        if self.waiting.replace(self.waiting.get() + 1) == 0 {
            self.since.set(Some(Instant::now()));
        }
    }

    fn end(&self) {
        self.waiting.set(self.waiting.get().saturating_sub(1));
        if self.waiting.get() == 0 {
            self.before.set(self.held_back());
            self.since.set(None);
        }
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

/// The turn that one direction waits for.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Boxed, and kept: few need it, and they again and again.
    timer: Option<Pin<Box<Sleep>>>,
    /// What was agreed with the tenant when the timer was set, while it runs.
    agreed: Option<u32>,
}

impl<'a> Pace<'a> {
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
        if let Some(agreed) = turn.agreed {
            if agreed == self.payer.agreed()
                && let Some(timer) = &mut turn.timer
            {
                ready!(timer.as_mut().poll(cx));
                self.over(turn);
                return Poll::Ready(());
            }
            // What it had reserved was of a contract that is gone.
            self.over(turn);
        }
        let Some(ceiling) = self.payer.bandwidth() else { return Poll::Ready(()) };
        if ceiling.shadow {
            if !self.payer.may_move(bytes) && !self.pacing.counted.replace(true) {
                self.payer.would_pace();
            }
            return Poll::Ready(());
        }
        let wait = self.payer.reserve(ceiling.bandwidth, bytes);
        if wait.is_zero() {
            return Poll::Ready(());
        }
        if !self.pacing.counted.replace(true) {
            self.payer.paces();
        }
        self.all().for_each(Pacing::begin);
        turn.agreed = Some(self.payer.agreed());
        let at = tokio::time::Instant::now() + wait.min(LONGEST);
        let timer = turn.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        timer.as_mut().reset(at);
        ready!(timer.as_mut().poll(cx));
        self.over(turn);
        Poll::Ready(())
    }

    /// The same for so many bytes as [`Pace::piece`] allows.
    pub(crate) async fn wait(self, turn: &mut Turn, bytes: usize) {
        if self.is_set() {
            poll_fn(|cx| self.poll(turn, bytes, cx)).await;
        }
    }

    /// Waits for this turn no longer.
    pub(crate) fn give_up(self, turn: &mut Turn) {
        if turn.agreed.is_some() {
            self.over(turn);
        }
    }

    fn over(self, turn: &mut Turn) {
        turn.agreed = None;
        self.all().for_each(Pacing::end);
    }

    fn all(self) -> impl Iterator<Item = &'a Pacing> {
        [self.pacing].into_iter().chain(self.of_all)
    }
}

/// Nobody waits for longer: a moment further ahead cannot be told to a timer.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
