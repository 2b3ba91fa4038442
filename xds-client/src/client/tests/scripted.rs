//! A peer whose every step is taken by the test, and a handler likewise.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as Wrapper,
};
use envoy_types::pb::google::protobuf::Any;
use futures_util::StreamExt as _;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Address, Call, Client, ClientConfig, Handler, Mode, Node, Rejection, Service, Status, Transport, TransportError,
    Update,
};

pub(super) const GREETING: Service = Service {
    type_url: "type.googleapis.com/test.Greeting",
    state_of_the_world: "/test.Greetings/Stream",
    incremental: "/test.Greetings/Delta",
};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Greeting {
    #[prost(string, tag = "1")]
    pub(super) text: String,
}

/// The test's side of the handler: takes each update and decides.
pub(super) struct Updates(mpsc::Receiver<Applying>);

pub(super) struct Applying {
    pub(super) update: Update<Greeting>,
    decision: oneshot::Sender<Result<(), Rejection>>,
}

impl Applying {
    pub(super) fn decide(self, decision: Result<(), Rejection>) {
        self.decision.send(decision).unwrap();
    }

    pub(super) fn texts(&self) -> Vec<&str> {
        self.update.changed.iter().map(|resource| resource.message.text.as_str()).collect()
    }
}

impl Updates {
    pub(super) async fn next(&mut self) -> Applying {
        self.0.recv().await.unwrap()
    }

    /// Accepts the next update and returns it.
    pub(super) async fn accept(&mut self) -> Update<Greeting> {
        let applying = self.next().await;
        let update = applying.update.clone();
        applying.decide(Ok(()));
        update
    }

    pub(super) fn assert_none(&mut self) {
        assert!(self.0.try_recv().is_err(), "an update reached the handler");
    }
}

pub(super) struct AskTest(mpsc::Sender<Applying>);

pub(super) fn handler() -> (AskTest, Updates) {
    let (sender, receiver) = mpsc::channel(1);
    (AskTest(sender), Updates(receiver))
}

impl Handler for AskTest {
    type Resource = Greeting;

    fn name(greeting: &Greeting) -> String {
        greeting.text.clone()
    }

    async fn apply(&mut self, update: Update<Greeting>) -> Result<(), Rejection> {
        let (decision, decided) = oneshot::channel();
        self.0.send(Applying { update, decision }).await.unwrap();
        decided.await.expect("the test dropped the update: panic, as a faulty handler would")
    }
}

pub(super) struct Scripted(mpsc::Sender<Opening>);

/// The test's side of the transport: takes each attempt to open a call.
pub(super) struct Peer(mpsc::Receiver<Opening>);

/// An attempt to open a call; silent until decided, given up when dropped by the client.
pub(super) struct Opening {
    pub(super) path: &'static str,
    first: Bytes,
    pub(super) at: Instant,
    decision: oneshot::Sender<Result<Call, TransportError>>,
}

impl Transport for Scripted {
    async fn open(&self, path: &'static str, first: Bytes) -> Result<Call, TransportError> {
        let (decision, decided) = oneshot::channel();
        self.0.send(Opening { path, first, at: Instant::now(), decision }).await.unwrap();
        decided.await.unwrap()
    }
}

impl Opening {
    /// Whether the client does not wait for it any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.decision.is_closed()
    }

    pub(super) fn refuse(self, error: TransportError) {
        assert!(self.decision.send(Err(error)).is_ok());
    }

    pub(super) fn accept(self) -> Conversation {
        let (requests, from_client) = mpsc::channel(1);
        let (to_client, responses) = mpsc::channel(16);
        let call = Call { requests, responses: ReceiverStream::new(responses).boxed() };
        assert!(self.decision.send(Ok(call)).is_ok());
        // An incremental request is no such message; tests of it read `first_delta`.
        let first = DiscoveryRequest::decode(self.first.clone()).unwrap_or_default();
        Conversation { first, first_bytes: self.first, from_client, to_client }
    }
}

impl Peer {
    pub(super) async fn opening(&mut self) -> Opening {
        self.0.recv().await.unwrap()
    }

    pub(super) async fn accept(&mut self) -> Conversation {
        self.opening().await.accept()
    }

    /// Refuses the next attempt and returns when it was made.
    pub(super) async fn refuse(&mut self) -> Instant {
        let opening = self.opening().await;
        let at = opening.at;
        opening.refuse(no_connection());
        at
    }

    /// Asserts that the client makes no attempt during `time`.
    pub(super) async fn assert_quiet(&mut self, time: Duration) {
        assert!(timeout(time, self.0.recv()).await.is_err(), "another call was opened");
    }
}

pub(super) fn no_connection() -> TransportError {
    TransportError::Connect { address: "unix:/xds.sock".into(), reason: "No such file or directory".into() }
}

/// An open call, seen from the peer.
pub(super) struct Conversation {
    pub(super) first: DiscoveryRequest,
    first_bytes: Bytes,
    from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<Result<Bytes, TransportError>>,
}

impl Conversation {
    pub(super) async fn push(&self, response: &DiscoveryResponse) {
        self.push_bytes(response.encode_to_vec()).await;
    }

    pub(super) async fn push_bytes(&self, bytes: Vec<u8>) {
        self.to_client.send(Ok(bytes.into())).await.unwrap();
    }

    pub(super) async fn end(self, error: TransportError) {
        self.to_client.send(Err(error)).await.unwrap();
    }

    pub(super) fn first_delta(&self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest::decode(self.first_bytes.clone()).unwrap()
    }

    pub(super) async fn delta_request(&mut self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest::decode(self.from_client.recv().await.unwrap()).unwrap()
    }

    pub(super) async fn request(&mut self) -> DiscoveryRequest {
        self.next_request().await.unwrap()
    }

    /// `None` when the client has given the call up.
    pub(super) async fn next_request(&mut self) -> Option<DiscoveryRequest> {
        Some(DiscoveryRequest::decode(self.from_client.recv().await?).unwrap())
    }

    pub(super) fn assert_no_request(&mut self) {
        assert!(self.from_client.try_recv().is_err(), "a request came too early");
    }

    /// Ends the call after the client, as a server does. Returns what the client said last.
    pub(super) async fn hear_out(mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut said = Vec::new();
        while let Some(bytes) = self.from_client.recv().await {
            said.push(DeltaDiscoveryRequest::decode(bytes).unwrap());
        }
        assert!(!self.to_client.is_closed(), "the client has cut the call");
        said
    }

    /// Resolves when the client has given the call up.
    pub(super) async fn closed(&self) {
        self.to_client.closed().await;
    }
}

pub(super) fn greetings(version: &str, texts: &[&str]) -> DiscoveryResponse {
    let resources = texts.iter().map(|text| any(&Greeting { text: (*text).to_owned() }.encode_to_vec())).collect();
    DiscoveryResponse {
        version_info: version.into(),
        nonce: version.into(),
        type_url: GREETING.type_url.into(),
        resources,
        ..DiscoveryResponse::default()
    }
}

/// An incremental response; its nonce is the version.
pub(super) fn increment(version: &str, changed: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    let wrap = |(name, text): &(&str, &str)| Wrapper {
        name: (*name).to_owned(),
        version: version.into(),
        resource: Some(any(&Greeting { text: (*text).to_owned() }.encode_to_vec())),
        ..Wrapper::default()
    };
    DeltaDiscoveryResponse {
        system_version_info: version.into(),
        nonce: version.into(),
        type_url: GREETING.type_url.into(),
        resources: changed.iter().map(wrap).collect(),
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

pub(super) fn any(value: &[u8]) -> Any {
    Any { type_url: GREETING.type_url.into(), value: value.to_vec() }
}

pub(super) fn config() -> ClientConfig {
    let node = Node {
        id: "host~127.0.0.1~no-id~localdomain".into(),
        cluster: "ingress-cluster".into(),
        user_agent: "tollgate".into(),
        user_agent_version: "1.2.3".into(),
    };
    ClientConfig::new(node, Address::Unix("/unused".into()))
}

/// A running client with one subscription, its peer and its handler.
pub(super) struct World {
    pub(super) peer: Peer,
    pub(super) updates: Updates,
    pub(super) status: Status,
    pub(super) running: JoinHandle<()>,
}

pub(super) fn transport() -> (Scripted, Peer) {
    let (sender, receiver) = mpsc::channel(1);
    (Scripted(sender), Peer(receiver))
}

pub(super) fn start() -> World {
    start_with(Mode::default())
}

pub(super) fn start_with(mode: Mode) -> World {
    let (transport, peer) = transport();
    let (handler, updates) = handler();
    let client = Client::with_transport(ClientConfig { mode, ..config() }, transport).subscribe(GREETING, handler);
    let status = client.status();
    World { peer, updates, status, running: tokio::spawn(client.run()) }
}

impl World {
    pub(super) fn stream(&self) -> crate::StreamStatus {
        self.status.stream(GREETING.type_url).unwrap()
    }
}
