//! One type on one stream: what came and waits to be applied, and what is to be said.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::handler::{Arrival, Changed, Incoming};
use crate::interest::Interest;
use crate::lane::LaneHandle;
use crate::session::Session;
use crate::{Backoff, Node, Rejection, Variant};

/// How many answers in a row may go out at once although nothing has changed. A peer that answers each answer with the
/// same again, good or bad, is slowed from there on; a response that changes something is never held up.
const FRUITLESS: u32 = 10;

/// Longest pause before an answer to such a peer.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Pause before a refusal is said for the second time in a row; each further time it is twice as long. A peer that waits for answers
/// is told of nothing else meanwhile, so this must not become long: what it has for other endpoints waits, too.
const REPEATED: Duration = Duration::from_millis(100);
const LONGEST_REPEATED: Duration = Duration::from_secs(2);

/// One type on one stream.
pub(super) struct Topic {
    pub(super) lane: LaneHandle,
    interest: Interest,
    names: Option<BTreeSet<String>>,
    /// The names of the last request that are wanted since.
    asked: Option<BTreeSet<String>>,
    session: Session,
    /// A request has been made: the peer knows what is wanted.
    subscribed: bool,
    /// A request is to be sent, not before this moment.
    pub(super) due: Option<Instant>,
    pub(super) pending: Option<Pending>,
    pub(super) applying: bool,
    /// Responses received, and number of the last one that was answered or overtaken.
    received: u64,
    settled: u64,
    fruitless: u32,
    /// What was refused last, and how often the same was before.
    refusal: Option<(Rejection, u32)>,
}

/// A response that waits for its turn.
pub(super) struct Pending {
    pub(super) response: Response,
    number: u64,
    /// Not before these topics have settled so many responses.
    after: Vec<(usize, u64)>,
}

/// A response of either protocol.
pub(super) struct Response {
    pub(super) version: String,
    pub(super) nonce: String,
    pub(super) type_url: String,
    pub(super) incoming: Incoming,
}

/// What remains of a response while it is applied.
pub(super) struct Receipt {
    pub(super) number: u64,
    pub(super) version: String,
    pub(super) nonce: String,
    pub(super) first: bool,
}

impl Topic {
    pub(super) fn new(variant: Variant, lane: LaneHandle) -> Self {
        let mut interest = lane.interest.clone();
        Self {
            names: interest.names(),
            interest,
            asked: None,
            session: Session::new(variant, &lane.service),
            lane,
            subscribed: false,
            due: None,
            pending: None,
            applying: false,
            received: 0,
            settled: 0,
            fruitless: 0,
            refusal: None,
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.names.as_ref().is_none_or(|names| !names.is_empty())
    }

    /// The request that opens the stream.
    pub(super) fn first_request(&mut self, node: &Node) -> Bytes {
        self.subscribed = true;
        self.asked.clone_from(&self.names);
        self.session.request(Some(node), self.names.as_ref())
    }

    /// The request that is due.
    pub(super) fn request(&mut self) -> Bytes {
        if !std::mem::replace(&mut self.subscribed, true) {
            self.lane.status.opened();
        }
        self.due = None;
        self.asked.clone_from(&self.names);
        self.session.request(None, self.names.as_ref())
    }

    /// Asks for what is wanted, unless the peer knows.
    pub(super) fn subscribe(&mut self) {
        if !self.subscribed && self.is_wanted() {
            self.due = Some(Instant::now());
        }
    }

    pub(super) const fn is_subscribed(&self) -> bool {
        self.subscribed
    }

    /// Waits until other names are wanted.
    pub(super) async fn interest_changed(&mut self) {
        self.interest.changed().await;
    }

    /// Takes over the names of the moment.
    pub(super) fn take_interest(&mut self) {
        self.names = self.interest.names();
        // What was not wanted for a moment has been taken away by the lane, so that it must be asked for again.
        if let (Some(asked), Some(names)) = (&mut self.asked, &self.names) {
            asked.retain(|name| names.contains(name));
        }
        if self.subscribed {
            self.lane.status.set_wanted(self.is_wanted());
        }
        if self.subscribed || self.is_wanted() {
            self.due = Some(Instant::now());
        }
    }

    /// Whether names are wanted that were not asked for when the last response came.
    pub(super) fn lacks_names(&self) -> bool {
        let asked_for = |name| self.asked.as_ref().is_none_or(|asked| asked.contains(name));
        self.received > 0 && !self.names.iter().flatten().all(asked_for)
    }

    pub(super) const fn received(&self) -> u64 {
        self.received
    }

    /// Queues a response. One that still waits is overtaken: a state of the world stands for those before it.
    pub(super) fn receive(&mut self, response: Response, after: Vec<(usize, u64)>) {
        self.lane.status.received();
        self.received += 1;
        self.pending = Some(Pending { response, number: self.received, after });
    }

    /// The response whose turn has come, ready to be applied.
    pub(super) fn start(&mut self, settled: &[u64]) -> Option<(Receipt, Result<Arrival, Rejection>)> {
        if self.applying || self.pending.as_ref()?.after.iter().any(|&(topic, number)| settled[topic] < number) {
            return None;
        }
        let Pending { response, number, .. } = self.pending.take()?;
        let Response { version, nonce, type_url, mut incoming } = response;
        self.applying = true;
        let first = !self.session.has_accepted();
        if let Incoming::Increment { replaces_all, .. } = &mut incoming {
            // After a refusal a response may build on what was refused: nothing may be taken for gone.
            *replaces_all = first && !self.session.has_refused();
        }
        let wanted = self.lane.service.type_url;
        // An empty type cannot be mistaken on a stream of one type, and every resource carries its own.
        let arrival = if type_url.is_empty() || type_url == wanted {
            Ok(Arrival { version: version.clone(), first_on_stream: first, incoming })
        } else {
            Err(Rejection::new(format!("response of type {type_url} on a stream of type {wanted}")))
        };
        Some((Receipt { number, version, nonce, first }, arrival))
    }

    pub(super) const fn settled(&self) -> u64 {
        self.settled
    }

    /// A response was applied or refused: the answer is due.
    pub(super) fn settle(&mut self, receipt: Receipt, outcome: Result<Changed, Rejection>, backoff: Backoff) {
        let Receipt { number, version, nonce, first } = receipt;
        self.applying = false;
        self.settled = number;
        let mut pause = Duration::ZERO;
        let fruitful = match outcome {
            Ok(changed) => {
                self.session.accept(version, nonce);
                self.refusal = None;
                first || !changed.is_none()
            }
            Err(rejection) => {
                self.session.refuse(nonce, &rejection);
                let news = rejection.brings_news;
                pause = self.pause_before_refusal(rejection);
                news
            }
        };
        self.fruitless = if fruitful { 0 } else { self.fruitless.saturating_add(1) };
        if let Some(attempt) = self.fruitless.checked_sub(FRUITLESS + 1) {
            pause = pause.max(backoff.delay(attempt, fastrand::f64()).min(LONGEST_PAUSE));
        }
        self.due = Some(Instant::now() + pause);
    }

    /// The same again that nothing comes of is said more and more slowly; whatever is new, at once.
    fn pause_before_refusal(&mut self, rejection: Rejection) -> Duration {
        let before = self.refusal.take().filter(|(before, _)| !rejection.brings_news && before.says_what(&rejection));
        let times = before.map_or(0, |(_, times)| times + 1);
        self.refusal = Some((rejection, times));
        match times.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => REPEATED.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_REPEATED),
        }
    }

    /// Whether what was accepted may lack what a refused response held before it. Only an incremental peer does not send
    /// everything again by itself.
    pub(super) const fn may_lack(&self) -> bool {
        self.session.has_accepted_after_refusal()
    }
}
