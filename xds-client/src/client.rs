//! Keeps one stream per subscription open for ever, and answers each response once it has been applied.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::accepted::Accepted;
use crate::handler::{Arrival, ErasedHandler, Incoming};
use crate::interest::{Interest, wanted};
use crate::session::Session;
use crate::status::StreamStatusWriter;
use crate::wire::RawResponse;
use crate::{
    ClientConfig, ConfigError, GrpcTransport, Handler, Mode, Rejection, Service, Status, Transport, TransportError,
};

/// An xDS client: subscribe to types, then [`run`](Client::run) it.
pub struct Client<T = GrpcTransport> {
    shared: Arc<Shared<T>>,
    streams: Vec<Stream>,
}

struct Shared<T> {
    config: ClientConfig,
    transport: T,
}

impl Client {
    /// A client that reaches its peer through gRPC.
    ///
    /// # Errors
    /// The configured mode is not supported.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        let transport = GrpcTransport::new(config.address.clone(), config.max_message_bytes);
        Self::with_transport(config, transport)
    }
}

impl<T: Transport> Client<T> {
    /// A client on another transport.
    ///
    /// # Errors
    /// The configured mode is not supported.
    pub fn with_transport(config: ClientConfig, transport: T) -> Result<Self, ConfigError> {
        match config.mode {
            Mode::Auto | Mode::Split => {
                Ok(Self { shared: Arc::new(Shared { config, transport }), streams: Vec::new() })
            }
            mode => Err(ConfigError::UnsupportedMode(mode)),
        }
    }

    /// Wants all resources of `service`; what is accepted goes to `handler`.
    #[must_use]
    pub fn subscribe<H: Handler>(self, service: Service, handler: H) -> Self {
        self.subscribe_to(service, handler, Interest::All)
    }

    /// Wants the resources of `service` that `names` holds, which may change at any time; what is accepted goes to
    /// `handler`. Whatever is not wanted any more is removed at once. No names want nothing: there is no stream then.
    ///
    /// A resource that is missing in a state-of-the-world response is removed.
    #[must_use]
    pub fn subscribe_named<H: Handler>(
        self,
        service: Service,
        handler: H,
        names: watch::Receiver<BTreeSet<String>>,
    ) -> Self {
        self.subscribe_to(service, handler, Interest::Named(names))
    }

    fn subscribe_to<H: Handler>(mut self, service: Service, handler: H, interest: Interest) -> Self {
        let status = StreamStatusWriter::new(service.type_url);
        let (handler, accepted) = (Box::new(handler), Accepted::default());
        self.streams.push(Stream { service, interest, handler, accepted, status });
        self
    }

    /// A view of what the streams do; valid before, during and after [`run`](Client::run).
    #[must_use]
    pub fn status(&self) -> Status {
        Status::new(self.streams.iter().map(|stream| stream.status.subscribe()).collect())
    }

    /// Keeps all subscriptions alive until the future is dropped, which closes the streams.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        for stream in self.streams {
            tasks.spawn(stream.keep_alive(Arc::clone(&self.shared)));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended
                && let Ok(panic) = error.try_into_panic()
            {
                // Going on without a subscription would look healthy while policy ages.
                resume_unwind(panic);
            }
        }
    }
}

/// One subscription.
struct Stream {
    service: Service,
    interest: Interest,
    handler: Box<dyn ErasedHandler>,
    accepted: Accepted,
    status: StreamStatusWriter,
}

/// How a stream, or the attempt to open one, came to its end.
struct Ended {
    /// At least one response was received.
    delivered: bool,
    reason: StreamError,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("no HTTP/2 frame from the control plane within {0:?}; the socket may be bound but not served yet")]
    Silent(Duration),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("no resource of this type is wanted")]
    Unwanted,
    #[error("response is not a DiscoveryResponse: {0}")]
    Undecodable(prost::DecodeError),
}

impl Stream {
    async fn keep_alive<T: Transport>(mut self, shared: Arc<Shared<T>>) {
        let mut attempt = 0;
        loop {
            let ended = self.once(&shared).await;
            if matches!(ended.reason, StreamError::Unwanted) {
                self.status.not_wanted();
                self.interest.changed().await;
                continue;
            }
            self.report_end(&ended.reason);
            if ended.delivered {
                attempt = 0;
            }
            sleep(shared.config.backoff.delay(attempt, fastrand::f64())).await;
            // A silent peer has been waited for already; it may begin to serve any moment.
            if !matches!(ended.reason, StreamError::Silent(_)) {
                attempt = attempt.saturating_add(1);
            }
        }
    }

    /// Opens a stream and serves it to its end.
    async fn once<T: Transport>(&mut self, shared: &Shared<T>) -> Ended {
        let mut session = Session::new(self.service.type_url);
        let mut delivered = false;
        let reason = self.serve(shared, &mut session, &mut delivered).await;
        Ended { delivered, reason: reason.err().unwrap_or(StreamError::Unwanted) }
    }

    /// Returns when nothing is wanted.
    async fn serve<T: Transport>(
        &mut self,
        shared: &Shared<T>,
        session: &mut Session,
        delivered: &mut bool,
    ) -> Result<(), StreamError> {
        let mut names = self.narrow(session).await;
        let Some(list) = list(&names) else { return Ok(()) };
        let first = encode(&session.subscribe(&shared.config.node, list));
        let wait = shared.config.handshake_timeout;
        let opening = timeout(wait, shared.transport.open(self.service.state_of_the_world, first));
        let mut call = opening.await.map_err(|_| StreamError::Silent(wait))??;
        self.status.opened();
        debug!(xds.type_url = self.service.type_url, "xDS stream opened");
        loop {
            let request = tokio::select! {
                response = call.responses.next() => {
                    let response = RawResponse::decode(response.ok_or(StreamError::Closed)??);
                    let response = response.map_err(StreamError::Undecodable)?;
                    *delivered = true;
                    self.status.received();
                    self.answer(session, response, &names).await
                }
                () = self.interest.changed() => {
                    names = self.narrow(session).await;
                    let Some(list) = crate::client::list(&names) else { return Ok(()) };
                    session.request(list)
                }
            };
            // A closed request side is no error of its own: the reason comes with the end of the responses.
            let _ = call.requests.send(encode(&request)).await;
        }
    }

    /// The names wanted from now on, after whatever is not wanted any more was taken away.
    async fn narrow(&mut self, session: &Session) -> Option<BTreeSet<String>> {
        let names = self.interest.names();
        let version = session.accepted_version().to_owned();
        let type_url = self.service.type_url;
        let arrival = Arrival { version, first_on_stream: false, incoming: Incoming::Less };
        let less = self.handler.apply(&mut self.accepted, type_url, wanted(&names), arrival);
        if let Err(rejection) = less.await {
            warn!(xds.type_url = type_url, %rejection, "cannot take away what is not wanted any more");
        }
        names
    }

    /// Applies one response and says what to answer.
    async fn answer(
        &mut self,
        session: &mut Session,
        response: RawResponse,
        names: &Option<BTreeSet<String>>,
    ) -> DiscoveryRequest {
        let RawResponse { version_info: version, nonce, type_url, resources } = response;
        let count = resources.len();
        // An empty type cannot be mistaken on a stream of one type, and every resource carries its own.
        let applied = if type_url.is_empty() || type_url == self.service.type_url {
            let first_on_stream = !session.has_accepted();
            let arrival = Arrival { version: version.clone(), first_on_stream, incoming: Incoming::State(resources) };
            self.handler.apply(&mut self.accepted, self.service.type_url, wanted(names), arrival).await
        } else {
            let wanted = self.service.type_url;
            Err(Rejection::new(format!("response of type {type_url} on a stream of type {wanted}")))
        };
        let list = list(names).unwrap_or_default();
        match applied {
            Ok(changes) => {
                self.status.accepted(&version, self.accepted.len());
                info!(
                    xds.type_url = self.service.type_url,
                    xds.version = version,
                    resources = count,
                    changed = changes.changed,
                    removed = changes.removed,
                    "xDS update accepted"
                );
                session.acknowledge(version, nonce, list)
            }
            Err(rejection) => {
                self.status.refused(rejection.to_string());
                warn!(xds.type_url = self.service.type_url, xds.version = version, %rejection,
                    "xDS update refused; the last accepted state stays in force");
                session.refuse(nonce, &rejection, list)
            }
        }
    }

    fn report_end(&self, reason: &StreamError) {
        let type_url = self.service.type_url;
        let text = reason.to_string();
        if self.status.closed(text.clone()) {
            warn!(
                xds.type_url = type_url,
                reason = text,
                "xDS stream is down; the last accepted state stays in force, retrying"
            );
        } else {
            debug!(xds.type_url = type_url, reason = text, "xDS stream is still down");
        }
    }
}

fn encode(request: &DiscoveryRequest) -> Bytes {
    request.encode_to_vec().into()
}

/// Names as requests list them: none for everything. `None` when nothing is wanted, which no list can say.
fn list(names: &Option<BTreeSet<String>>) -> Option<Vec<String>> {
    match names {
        None => Some(Vec::new()),
        Some(names) if names.is_empty() => None,
        Some(names) => Some(names.iter().cloned().collect()),
    }
}

#[cfg(test)]
mod tests;
