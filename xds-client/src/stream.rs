//! Keeps one stream open for ever: opens it, paces the attempts, and tells how each one went.

mod conversation;
mod topic;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use self::conversation::Conversation;
use self::topic::Topic;
use crate::interest::Interest;
use crate::lane::LaneHandle;
use crate::{ClientConfig, Transport, TransportError, Variant};

/// The aggregated method; those of single types are in [`crate::Service`].
const AGGREGATED: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// A stream that has lasted so long before it has to be begun anew was worth it.
const HELD: Duration = Duration::from_secs(30);

/// What all streams of a client share.
pub(crate) struct Shared<T> {
    pub(crate) config: ClientConfig,
    pub(crate) transport: T,
}

/// One stream: of one type, or of all of them.
pub(crate) struct Stream {
    pub(crate) variant: Variant,
    pub(crate) lanes: Vec<LaneHandle>,
    /// Its number among the streams that report to `progress`.
    pub(crate) number: usize,
    pub(crate) progress: mpsc::Sender<(usize, Progress)>,
}

/// What is known of a stream's variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A response came.
    Served,
    /// The control plane does not serve the method.
    NotServed,
    /// The stream ended, or could not be opened, for another reason.
    Ended,
    /// There is no stream, because nothing is wanted.
    Unwanted,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("no HTTP/2 frame from the control plane within {0:?}; the socket may be bound but not served yet")]
    Silent(Duration),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("no resource of these types is wanted")]
    Unwanted,
    #[error("other resources are wanted than the stream was opened for; opening it anew")]
    MoreWanted,
    #[error("an incremental response was refused before, so what came since may build on it; starting over")]
    StartOver,
    #[error("response is not a DiscoveryResponse: {0}")]
    Undecodable(prost::DecodeError),
}

impl StreamError {
    /// Whether the peer does not serve the method, as far as can be told; `delivered`: it sent a response before this. A
    /// Cilium agent registers incremental methods that it does not implement, which end with a plain Go error: UNKNOWN
    /// (`spec/cilium-agent.md` section 1.2). Other plain errors are no surer sign that the variant is served.
    fn denies_the_method(&self, delivered: bool) -> bool {
        match self {
            Self::Transport(TransportError::Unimplemented { .. }) => true,
            Self::Transport(TransportError::Status { code, message }) => {
                !delivered && (code == "Unknown" || message.to_ascii_lowercase().contains("not implemented"))
            }
            _ => false,
        }
    }
}

impl Stream {
    pub(crate) async fn keep_alive<T: Transport>(self, shared: Arc<Shared<T>>) -> Infallible {
        let mut attempt = 0;
        loop {
            let mut delivered = None;
            let reason = match self.serve(&shared, &mut delivered).await {
                Ok(never) => match never {},
                Err(reason) => reason,
            };
            if matches!(reason, StreamError::Unwanted) {
                self.report(Progress::Unwanted).await;
                self.wait_for_interest().await;
                continue;
            }
            if matches!(reason, StreamError::MoreWanted) {
                // Not a failure: the control plane has answered on this stream, and is asked at once.
                debug!(%reason, "xDS stream is given up");
                attempt = 0;
                continue;
            }
            let not_served = reason.denies_the_method(delivered.is_some());
            let told_elsewhere = matches!(reason, StreamError::Transport(TransportError::Unimplemented { .. }));
            self.report_end(&reason, told_elsewhere && !shared.config.is_fixed());
            self.report(if not_served { Progress::NotServed } else { Progress::Ended }).await;
            // A peer that goes on sending what is refused makes us start over and over.
            let fruitless = |served: &Instant| matches!(reason, StreamError::StartOver) && served.elapsed() < HELD;
            if delivered.is_some_and(|served| !fruitless(&served)) {
                attempt = 0;
            }
            sleep(shared.config.backoff.delay(attempt, fastrand::f64())).await;
            // A silent peer has been waited for already; it may begin to serve any moment.
            if !matches!(reason, StreamError::Silent(_)) {
                attempt = attempt.saturating_add(1);
            }
        }
    }

    /// Opens the stream and serves it to its end. `delivered` is set when its first response comes.
    async fn serve<T: Transport>(
        &self,
        shared: &Shared<T>,
        delivered: &mut Option<Instant>,
    ) -> Result<Infallible, StreamError> {
        let mut topics: Vec<_> = self.lanes.iter().map(|lane| Topic::new(self.variant, lane.clone())).collect();
        let Some(opener) = topics.iter_mut().find(|topic| topic.is_wanted()) else {
            return Err(StreamError::Unwanted);
        };
        let first = opener.first_request(&shared.config.node);
        let service = opener.lane.service;
        let path = match self.variant {
            Variant::Split => service.state_of_the_world,
            Variant::Ads => AGGREGATED,
            Variant::DeltaSplit => service.incremental,
        };
        let wait = shared.config.handshake_timeout;
        let opening = timeout(wait, shared.transport.open(path, first));
        let call = opening.await.map_err(|_| StreamError::Silent(wait))??;
        topics.iter().filter(|topic| topic.is_subscribed()).for_each(|topic| topic.lane.status.opened());
        debug!(path, "xDS stream opened");
        let mut conversation = Conversation::new(self.variant, call, topics, shared.config.backoff);
        conversation.first_response().await?;
        *delivered = Some(Instant::now());
        self.report(Progress::Served).await;
        let ended = conversation.go_on().await;
        if matches!(ended, Err(StreamError::StartOver)) {
            conversation.take_leave().await;
        }
        ended
    }

    async fn report(&self, progress: Progress) {
        let _ = self.progress.send((self.number, progress)).await; // nobody asks any more: the variant is being changed
    }

    /// Waits until other resources are wanted.
    async fn wait_for_interest(&self) {
        let mut interests: Vec<Interest> = self.lanes.iter().map(|lane| lane.interest.clone()).collect();
        for (lane, interest) in self.lanes.iter().zip(&mut interests) {
            lane.status.set_wanted(false);
            // What was wanted before this point was looked at by the attempt to open the stream, or is seen here.
            if interest.names().is_none_or(|names| !names.is_empty()) {
                return;
            }
        }
        select_all(interests.iter_mut().map(|interest| Box::pin(interest.changed()))).await;
    }

    /// `expected`: another variant is tried next, which is told in its own words.
    fn report_end(&self, reason: &StreamError, expected: bool) {
        let text = reason.to_string();
        let mut news = false;
        for lane in self.lanes.iter().filter(|lane| lane.interest.is_wanted()) {
            news |= lane.status.closed(text.clone());
        }
        let types: Vec<_> = self.lanes.iter().map(|lane| lane.service.name()).collect();
        let (types, variant) = (types.join(","), self.variant.as_str());
        if news && !expected {
            warn!(
                xds.types = types,
                xds.mode = variant,
                reason = text,
                "xDS stream is down; the last accepted state stays in force, retrying"
            );
        } else {
            debug!(xds.types = types, xds.mode = variant, reason = text, "xDS stream is down");
        }
    }
}
