//! Composes subscriptions, and chooses the variant of the protocol that they speak.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::interest::Interest;
use crate::lane::{Lane, LaneHandle};
use crate::stream::{Progress, Shared, Stream};
use crate::variant::Choice;
use crate::{ClientConfig, GrpcTransport, Handler, Service, Status, Transport, Variant};

/// In which order an aggregated stream asks for types: what others refer to comes first, and policy before the listeners
/// that need it.
const ORDER: [&str; 8] = [
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "cilium.NetworkPolicyHosts",
    "cilium.NetworkPolicy",
    "tollgate.tenant.v1.Tenant",
    "envoy.extensions.transport_sockets.tls.v3.Secret",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
];

/// An xDS client: subscribe to types, then [`run`](Client::run) it.
pub struct Client<T = GrpcTransport> {
    shared: Arc<Shared<T>>,
    lanes: Vec<Lane>,
    handles: Vec<LaneHandle>,
    /// The variant that the control plane served last.
    spoken: watch::Sender<Option<Variant>>,
}

impl Client {
    /// A client that reaches its peer through gRPC.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        let transport = GrpcTransport::new(config.address.clone(), config.max_message_bytes);
        Self::with_transport(config, transport)
    }
}

impl<T: Transport> Client<T> {
    /// A client on another transport.
    #[must_use]
    pub fn with_transport(config: ClientConfig, transport: T) -> Self {
        let shared = Arc::new(Shared { config, transport });
        Self { shared, lanes: Vec::new(), handles: Vec::new(), spoken: watch::Sender::new(None) }
    }

    /// Wants all resources of `service`; what is accepted goes to `handler`.
    ///
    /// The type that is subscribed to first decides in [`crate::Mode::Auto`] whether the control plane serves a variant: it
    /// should be the one that matters most.
    #[must_use]
    pub fn subscribe<H: Handler>(self, service: Service, handler: H) -> Self {
        self.subscribe_to(service, handler, Interest::All)
    }

    /// Wants the resources of `service` that `names` holds, which may change at any time; what is accepted goes to
    /// `handler`. Whatever is not wanted any more is removed at once. No names want nothing.
    ///
    /// A resource that is missing in a state-of-the-world response is removed, on a stream of its own and on an aggregated one. The
    /// xDS protocol demands whole states of listeners and clusters only, and lets a server leave out what has not changed of other
    /// types; but it has no other way to take one of those back while its name is asked for. A Cilium agent sends all that it has of
    /// the names, and withdraws by leaving out (`spec/cilium-agent.md` section 1.4). For secrets the safe mistake is to miss one: what
    /// was withdrawn must not go on opening doors. It is back with the next response that holds it.
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
        let (lane, handle) = Lane::new(service, interest, Box::new(handler));
        self.lanes.push(lane);
        self.handles.push(handle);
        self
    }

    /// A view of what the streams do; valid before, during and after [`run`](Client::run).
    #[must_use]
    pub fn status(&self) -> Status {
        let streams = self.handles.iter().map(|lane| lane.status.subscribe()).collect();
        Status::new(streams, self.spoken.subscribe())
    }

    /// Keeps all subscriptions alive until the future is dropped, which closes the streams.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        for lane in self.lanes {
            tasks.spawn(lane.run());
        }
        let conductor = Conductor {
            choice: Choice::new(self.shared.config.mode),
            shared: self.shared,
            lanes: self.handles,
            spoken: self.spoken,
        };
        tasks.spawn(conductor.run());
        while let Some(ended) = tasks.join_next().await {
            go_on_without(ended);
        }
    }
}

/// Goes on when a task has ended, unless it panicked: without a subscription all would look healthy while policy ages.
fn go_on_without(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        resume_unwind(panic);
    }
}

/// Runs the streams of one variant after another.
struct Conductor<T> {
    shared: Arc<Shared<T>>,
    lanes: Vec<LaneHandle>,
    choice: Choice,
    spoken: watch::Sender<Option<Variant>>,
}

impl<T: Transport> Conductor<T> {
    async fn run(mut self) {
        loop {
            if let Some(rounds) = self.choice.fruitless_rounds() {
                sleep(self.shared.config.backoff.delay(rounds - 1, fastrand::f64())).await;
            }
            self.speak(self.choice.current()).await;
            let variant = self.choice.current();
            let news = self.choice.not_served();
            let next = self.choice.current();
            if news {
                warn!(
                    xds.mode = variant.as_str(),
                    next = next.as_str(),
                    "the control plane does not serve this xDS mode; trying the others, the last accepted state stays in \
                     force"
                );
            } else {
                debug!(
                    xds.mode = variant.as_str(),
                    next = next.as_str(),
                    "the control plane does not serve this xDS mode"
                );
            }
        }
    }

    /// Keeps the streams of a variant alive; returns when the control plane does not serve it and others may be tried.
    async fn speak(&mut self, variant: Variant) {
        let groups = self.groups(variant);
        let mut known = vec![None; groups.len()];
        let (progress, mut reports) = mpsc::channel(16);
        let mut streams = JoinSet::new();
        for (number, lanes) in groups.into_iter().enumerate() {
            let stream = Stream { variant, lanes, number, progress: progress.clone() };
            let shared = Arc::clone(&self.shared);
            streams.spawn(async move { match stream.keep_alive(shared).await {} });
        }
        loop {
            tokio::select! {
                Some(ended) = streams.join_next() => go_on_without(ended),
                Some((number, progress)) = reports.recv() => {
                    known[number] = Some(progress);
                }
            }
            match judge(&known) {
                Some(Progress::Served) => self.served(variant),
                Some(Progress::NotServed) if !self.choice.is_fixed() => return,
                _ => {}
            }
        }
    }

    fn served(&mut self, variant: Variant) {
        self.choice.served();
        let changed = self.spoken.send_if_modified(|spoken| spoken.replace(variant) != Some(variant));
        if changed {
            info!(xds.mode = variant.as_str(), "the control plane serves this xDS mode");
        }
    }

    /// Which lanes share a stream.
    fn groups(&self, variant: Variant) -> Vec<Vec<LaneHandle>> {
        let mut lanes = self.lanes.clone();
        match variant {
            Variant::Ads => {
                lanes.sort_by_key(|lane| ORDER.iter().position(|name| *name == lane.service.name()));
                if lanes.is_empty() { Vec::new() } else { vec![lanes] }
            }
            Variant::Split | Variant::DeltaSplit => lanes.into_iter().map(|lane| vec![lane]).collect(),
        }
    }
}

/// What the streams say together of their variant, by the first that is wanted. The others prove nothing: an agent may not
/// know their types, and may end them in any way.
fn judge(known: &[Option<Progress>]) -> Option<Progress> {
    known.iter().copied().find(|stream| *stream != Some(Progress::Unwanted)).flatten()
}

#[cfg(test)]
mod tests;
