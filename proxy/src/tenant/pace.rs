//! Slowing down what a tenant moves beyond its rate of bytes: whoever is about to write waits for its turn, so that what came before
//! is all that is held and nothing more is read. Nothing is refused and nothing is cut for it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::Payer;
use super::line::Place;

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
            self.all().for_each(Pacing::end);
        }
        Poll::Ready(())
    }

    /// A place where its tenant's bytes wait, if these have to.
    fn enter(self, bytes: usize, cx: &Context<'_>) -> Option<Waiting> {
        let ceiling = self.payer.bandwidth()?;
        if ceiling.shadow {
            if !self.payer.may_move(bytes) && !self.pacing.counted.replace(true) {
                self.payer.would_pace();
            }
            return None;
        }
        let line = self.payer.line(ceiling.bandwidth);
        let place = line.enter(self.payer.flow(), Instant::now(), bytes, cx.waker())?;
        if !self.pacing.counted.replace(true) {
            self.payer.paces();
        }
        self.all().for_each(Pacing::begin);
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
            self.all().for_each(Pacing::end);
        }
    }

    fn all(self) -> impl Iterator<Item = &'a Pacing> {
        [self.pacing].into_iter().chain(self.of_all)
    }
}

/// Nobody waits for longer: a moment further ahead cannot be told to a timer.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
