//! An open stream: hands responses to the lanes of their types, and sends the answers when they are applied.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _, select_all};
use futures_util::stream::FuturesUnordered;
use prost::Message as _;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::StreamError;
use super::topic::{Receipt, Response, Topic};
use crate::handler::{Changed, Incoming};
use crate::wire::{RawDeltaResponse, RawResponse};
use crate::{Backoff, Call, Rejection, Variant};

/// Which types a response must not overtake, by their full names: those that its resources refer to, as Envoy orders them.
/// Policies and identities refer to nothing of these.
const AFTER: [(&str, &str); 3] = [
    ("envoy.config.endpoint.v3.ClusterLoadAssignment", "envoy.config.cluster.v3.Cluster"),
    ("envoy.config.listener.v3.Listener", "envoy.config.cluster.v3.Cluster"),
    ("envoy.config.route.v3.RouteConfiguration", "envoy.config.listener.v3.Listener"),
];

/// How long a peer has to end a stream that we have ended.
const LEAVE: Duration = Duration::from_secs(2);

/// An open stream.
pub(super) struct Conversation {
    variant: Variant,
    call: Call,
    topics: Vec<Topic>,
    backoff: Backoff,
    applying: FuturesUnordered<BoxFuture<'static, Applied>>,
    /// The peer takes no more requests; why comes with the end of its responses.
    deaf: bool,
    /// A response of a type that nobody subscribed to has been told of.
    told_of_strangers: bool,
}

/// A response that was applied or refused, and the topic that it belongs to.
type Applied = (usize, Receipt, Result<Changed, Rejection>);

/// What happens next on the stream.
enum Event {
    Response(Bytes),
    Applied(Applied),
    Interest(usize),
    /// A request may be sent.
    Turn,
    /// The moment of a request has come, or the peer has become deaf.
    Look,
}

impl Conversation {
    pub(super) fn new(variant: Variant, call: Call, mut topics: Vec<Topic>, backoff: Backoff) -> Self {
        topics.iter_mut().for_each(Topic::subscribe);
        let applying = FuturesUnordered::new();
        Self { variant, call, topics, backoff, applying, deaf: false, told_of_strangers: false }
    }

    /// Serves the stream until its first response is there.
    pub(super) async fn first_response(&mut self) -> Result<(), StreamError> {
        while self.topics.iter().all(|topic| topic.received() == 0) && !self.told_of_strangers {
            self.step().await?;
        }
        Ok(())
    }

    /// Serves the stream to its end.
    pub(super) async fn go_on(&mut self) -> Result<Infallible, StreamError> {
        loop {
            self.step().await?;
        }
    }

    /// Ends the stream so that what was said last reaches the peer: our side first, then the peer's. Whatever it still sends comes
    /// again on the next stream.
    pub(super) async fn take_leave(self) {
        let Call { requests, mut responses } = self.call;
        drop(requests);
        let ended = async { while let Some(Ok(_)) = responses.next().await {} };
        if timeout(LEAVE, ended).await.is_err() {
            debug!("the control plane does not end a stream that we have ended; it is cut");
        }
    }

    async fn step(&mut self) -> Result<(), StreamError> {
        // On a stream of one type no request can say that nothing is wanted: an empty list means everything.
        if !self.topics.iter().any(|topic| topic.is_wanted() || topic.is_subscribed() && self.variant == Variant::Ads) {
            return Err(StreamError::Unwanted);
        }
        self.start_what_can_be();
        match self.next().await? {
            Event::Response(bytes) => {
                let response = decode(self.variant, bytes).map_err(StreamError::Undecodable)?;
                self.receive(response);
            }
            Event::Applied((topic, receipt, outcome)) => self.topics[topic].settle(receipt, outcome, self.backoff),
            Event::Interest(topic) => self.topics[topic].take_interest(),
            Event::Turn => self.send()?,
            Event::Look => {}
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Event, StreamError> {
        let now = Instant::now();
        let due = self.topics.iter().filter_map(|topic| topic.due).min();
        let may_send = !self.deaf && due.is_some_and(|due| due <= now);
        let later = due.filter(|_| !self.deaf && !may_send);
        // A stream of one type is read again when its response has been answered: the peer then waits, not our memory. On
        // a shared one no type may hold up the others, and a newer response overtakes one that waits.
        let may_read = self.variant == Variant::Ads
            || self.deaf
            || self.topics.iter().all(|topic| topic.due.is_none() && topic.pending.is_none() && !topic.applying);
        let interests = self.topics.iter_mut().map(|topic| topic.interest_changed().boxed());
        tokio::select! {
            Some(applied) = self.applying.next() => Ok(Event::Applied(applied)),
            response = self.call.responses.next(), if may_read => {
                Ok(Event::Response(response.ok_or(StreamError::Closed)??))
            }
            ((), topic, _) = select_all(interests) => Ok(Event::Interest(topic)),
            permit = self.call.requests.reserve(), if may_send => {
                self.deaf = permit.is_err();
                Ok(if self.deaf { Event::Look } else { Event::Turn })
            }
            () = sleep_until(later.unwrap_or(now)), if later.is_some() => Ok(Event::Look),
        }
    }

    fn receive(&mut self, response: Response) {
        let known = match self.variant {
            Variant::Ads => {
                let of_type = |topic: &Topic| topic.lane.service.type_url == response.type_url && topic.is_subscribed();
                self.topics.iter().position(of_type)
            }
            Variant::Split | Variant::DeltaSplit => Some(0),
        };
        let Some(topic) = known else {
            // Any answer would subscribe to the type.
            if !std::mem::replace(&mut self.told_of_strangers, true) {
                debug!(xds.type_url = response.type_url, "the control plane sends a type that was not asked for");
            }
            return;
        };
        let own = self.topics[topic].lane.service.name();
        let others = AFTER.iter().filter(|(name, _)| *name == own).flat_map(|(_, other)| {
            self.topics.iter().enumerate().filter(move |(_, topic)| topic.lane.service.name() == *other)
        });
        let after = others.map(|(number, other)| (number, other.received())).collect();
        self.topics[topic].receive(response, after);
    }

    fn start_what_can_be(&mut self) {
        let settled: Vec<u64> = self.topics.iter().map(Topic::settled).collect();
        for (number, topic) in self.topics.iter_mut().enumerate() {
            let Some((receipt, arrival)) = topic.start(&settled) else { continue };
            let (lane, variant) = (topic.lane.clone(), self.variant);
            self.applying.push(
                async move {
                    let outcome = match arrival {
                        Ok(arrival) => lane.apply(variant, arrival).await,
                        Err(rejection) => {
                            lane.status.refused(&receipt.version, rejection.to_string());
                            Err(rejection)
                        }
                    };
                    (number, receipt, outcome)
                }
                .boxed(),
            );
        }
    }

    /// Sends the request that has been due for longest.
    fn send(&mut self) -> Result<(), StreamError> {
        let due = self.topics.iter_mut().filter(|topic| topic.due.is_some()).min_by_key(|topic| topic.due);
        let Some(topic) = due else { return Ok(()) };
        // Agents up to 1.20 answer nothing to a longer list while no resource is newer than the version that comes with it
        // (`spec/cilium-agent.md` section 1.4). A new stream has no version. What is not answered yet comes again there.
        if self.variant == Variant::Split && topic.lacks_names() {
            return Err(StreamError::MoreWanted);
        }
        self.deaf = self.call.requests.try_send(topic.request()).is_err();
        if self.variant == Variant::DeltaSplit && topic.may_lack() {
            return Err(StreamError::StartOver);
        }
        Ok(())
    }
}

fn decode(variant: Variant, bytes: Bytes) -> Result<Response, prost::DecodeError> {
    Ok(match variant {
        Variant::Split | Variant::Ads => {
            let RawResponse { version_info: version, nonce, type_url, resources } = RawResponse::decode(bytes)?;
            Response { version, nonce, type_url, incoming: Incoming::State(resources) }
        }
        Variant::DeltaSplit => {
            let RawDeltaResponse { system_version_info, nonce, type_url, resources, removed_resources } =
                RawDeltaResponse::decode(bytes)?;
            let incoming = Incoming::Increment { resources, removed: removed_resources, replaces_all: false };
            Response { version: system_version_info, nonce, type_url, incoming }
        }
    })
}
