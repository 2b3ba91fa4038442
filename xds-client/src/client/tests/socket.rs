//! The gRPC transport against real servers on real sockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::cilium::network_policy_discovery_service_server::{
    NetworkPolicyDiscoveryService, NetworkPolicyDiscoveryServiceServer,
};
use tonic::{Request, Response, Streaming};

use super::scripted::config;
use crate::{
    Address, Backoff, Client, ClientConfig, GrpcTransport, Handler, NETWORK_POLICY, NETWORK_POLICY_HOSTS, Rejection,
    Status, Transport as _, TransportError, Update,
};

type Responses<T> = BoxStream<'static, Result<T, tonic::Status>>;

/// Sends one response on each stream and reports every request.
struct OneResponse {
    response: DiscoveryResponse,
    requests: mpsc::Sender<DiscoveryRequest>,
    /// Ends all streams when its sender is dropped.
    stop: watch::Receiver<()>,
}

#[tonic::async_trait]
impl NetworkPolicyDiscoveryService for OneResponse {
    type StreamNetworkPoliciesStream = Responses<DiscoveryResponse>;
    type DeltaNetworkPoliciesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_network_policies(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamNetworkPoliciesStream>, tonic::Status> {
        let (requests, response) = (self.requests.clone(), self.response.clone());
        let incoming = request.into_inner().filter_map(move |request| {
            let requests = requests.clone();
            async move {
                requests.send(request.ok()?).await.unwrap();
                None
            }
        });
        let responses = tokio_stream::once(Ok(response)).chain(tokio_stream::pending());
        let mut stop = self.stop.clone();
        let stopped = Box::pin(async move { stop.changed().await.is_err() });
        Ok(Response::new(futures_util::stream::select(incoming, responses).take_until(stopped).boxed()))
    }

    async fn delta_network_policies(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaNetworkPoliciesStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("not implemented"))
    }

    async fn fetch_network_policies(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not implemented"))
    }
}

fn policies(version: &str, names: &[String]) -> DiscoveryResponse {
    let resources = names.iter().map(|name| {
        let policy = NetworkPolicy { endpoint_ips: vec![name.clone()], endpoint_id: 1, ..NetworkPolicy::default() };
        Any { type_url: NETWORK_POLICY.type_url.into(), value: policy.encode_to_vec() }
    });
    DiscoveryResponse {
        version_info: version.into(),
        nonce: version.into(),
        type_url: NETWORK_POLICY.type_url.into(),
        resources: resources.collect(),
        ..DiscoveryResponse::default()
    }
}

/// Remembers the last accepted version and how many bytes its addresses have.
struct Latest(watch::Sender<(String, usize)>);

impl Handler for Latest {
    type Resource = NetworkPolicy;

    fn name(policy: &NetworkPolicy) -> String {
        policy.endpoint_ips.concat()
    }

    async fn apply(&mut self, update: Update<NetworkPolicy>) -> Result<(), Rejection> {
        let addresses = update.changed.iter().flat_map(|resource| &resource.message.endpoint_ips);
        self.0.send_replace((update.version, addresses.map(String::len).sum()));
        Ok(())
    }
}

/// A running server.
struct Served {
    requests: mpsc::Receiver<DiscoveryRequest>,
    task: AbortHandle,
    stop: watch::Sender<()>,
}

impl Served {
    fn stop(self) {
        self.task.abort();
        drop(self.stop);
    }

    async fn request(&mut self) -> DiscoveryRequest {
        self.requests.recv().await.unwrap()
    }
}

struct World {
    directory: tempfile::TempDir,
    tasks: JoinSet<()>,
}

impl World {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), tasks: JoinSet::new() }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("xds.sock")
    }

    fn bind(&self) -> UnixListener {
        let _ = std::fs::remove_file(self.socket());
        UnixListener::bind(self.socket()).unwrap()
    }

    fn serve(&mut self, listener: UnixListener, response: DiscoveryResponse) -> Served {
        let (requests, received) = mpsc::channel(16);
        let (stop, stopped) = watch::channel(());
        let service = NetworkPolicyDiscoveryServiceServer::new(OneResponse { response, requests, stop: stopped });
        let server = tonic::transport::Server::builder();
        let task = self.tasks.spawn(async move {
            server.serve_with_incoming(service, UnixListenerStream::new(listener)).await.unwrap();
        });
        Served { requests: received, task, stop }
    }

    fn connect(&mut self, config: ClientConfig) -> (Status, watch::Receiver<(String, usize)>) {
        let (latest, seen) = watch::channel(Default::default());
        let client = Client::new(config).subscribe(NETWORK_POLICY, Latest(latest));
        let status = client.status();
        self.tasks.spawn(client.run());
        (status, seen)
    }
}

fn unix(path: &Path) -> ClientConfig {
    let backoff = Backoff { initial: Duration::from_millis(5), max: Duration::from_millis(20) };
    ClientConfig { address: Address::Unix(path.into()), backoff, ..config() }
}

#[tokio::test]
async fn a_response_far_beyond_four_mebibytes_is_accepted() {
    let mut world = World::new();
    let names: Vec<_> = (0..100_000).map(|index| format!("{index:0>200}")).collect();
    let response = policies("8", &names);
    assert!(response.encoded_len() > 20 << 20);
    let listener = world.bind();
    let mut server = world.serve(listener, response);
    let config = unix(&world.socket());
    let (_, latest) = world.connect(config);

    assert_eq!(server.request().await.version_info, "");
    let ack = server.request().await;
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("8", "8"));
    assert_eq!(*latest.borrow(), ("8".to_owned(), 100_000 * 200));
}

#[tokio::test]
async fn a_response_beyond_the_configured_limit_is_an_error_by_name() {
    let mut world = World::new();
    let listener = world.bind();
    let _server = world.serve(listener, policies("1", &["x".repeat(2000)]));
    let config = ClientConfig { max_message_bytes: 1000, ..unix(&world.socket()) };
    let (status, _) = world.connect(config);
    let state = status.wait_for(NETWORK_POLICY.type_url, |state| state.failed_attempts > 1).await.unwrap();
    assert!(state.last_error.unwrap().contains("the limit is: 1000 bytes"));
}

#[tokio::test]
async fn a_restarted_server_is_found_again_by_the_path_of_its_socket() {
    let mut world = World::new();
    let config = unix(&world.socket());
    let (status, _) = world.connect(config);
    status.wait_for(NETWORK_POLICY.type_url, |state| state.failed_attempts > 0).await.unwrap();
    for version in ["7", "1"] {
        let listener = world.bind();
        let mut server = world.serve(listener, policies(version, &[]));
        let first = server.request().await;
        assert!(first.node.is_some() && first.version_info.is_empty() && first.response_nonce.is_empty());
        assert_eq!(server.request().await.version_info, version);
        server.stop();
        let state = status.wait_for(NETWORK_POLICY.type_url, |state| !state.connected).await.unwrap();
        assert_eq!(state.version.as_deref(), Some(version));
    }
}

#[tokio::test]
async fn a_socket_that_is_bound_but_not_served_is_abandoned_and_used_once_it_is_served() {
    let mut world = World::new();
    let listener = world.bind();
    let config = ClientConfig { handshake_timeout: Duration::from_millis(20), ..unix(&world.socket()) };
    let (status, _) = world.connect(config);
    let state = status.wait_for(NETWORK_POLICY.type_url, |state| state.failed_attempts >= 3).await.unwrap();
    assert!(!state.connected && state.last_error.unwrap().contains("no HTTP/2 frame"));
    let mut server = world.serve(listener, policies("1", &[]));
    while server.request().await.version_info != "1" {}
    assert_eq!(status.streams()[0].version.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_method_that_is_not_served_has_an_error_of_its_own() {
    let mut world = World::new();
    let listener = world.bind();
    let _server = world.serve(listener, policies("1", &[]));
    let transport = GrpcTransport::new(Address::Unix(world.socket()), 1 << 20);
    let mut call = transport.open(NETWORK_POLICY_HOSTS.state_of_the_world, Bytes::new()).await.unwrap();
    let answer = call.responses.next().await.unwrap();
    assert!(matches!(answer, Err(TransportError::Unimplemented { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_peer_that_is_not_there_or_speaks_something_else_is_told_apart() {
    let mut world = World::new();
    let transport = GrpcTransport::new(Address::Unix(world.socket()), 1 << 20);
    let error = transport.open(NETWORK_POLICY.state_of_the_world, Bytes::new()).await.err().unwrap();
    assert!(matches!(error, TransportError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("xds.sock: No such file or directory"), "{error}");

    let listener = world.bind();
    world.tasks.spawn(async move {
        let (hangs_up, _) = listener.accept().await.unwrap();
        drop(hangs_up);
        let (mut web_server, _) = listener.accept().await.unwrap();
        let _ = web_server.read(&mut [0; 24]).await;
        web_server.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = web_server.read_to_end(&mut Vec::new()).await;
    });
    let error = transport.open(NETWORK_POLICY.state_of_the_world, Bytes::new()).await.err().unwrap();
    assert!(matches!(error, TransportError::Handshake { .. }), "{error}");
    let error = transport.open(NETWORK_POLICY.state_of_the_world, Bytes::new()).await.err().unwrap();
    assert!(matches!(error, TransportError::Handshake { .. }), "{error}");
    assert!(error.to_string().contains("frame"), "{error}");
}

#[tokio::test]
async fn tcp_works_the_same() {
    let mut world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (requests, mut received) = mpsc::channel(16);
    let (_stop, stopped) = watch::channel(());
    let service =
        NetworkPolicyDiscoveryServiceServer::new(OneResponse { response: policies("3", &[]), requests, stop: stopped });
    let server = tonic::transport::Server::builder();
    world.tasks.spawn(async move {
        server.serve_with_incoming(service, TcpListenerStream::new(listener)).await.unwrap();
    });
    let config = ClientConfig { address: Address::Tcp(address), ..unix(Path::new("/unused")) };
    let (status, _) = world.connect(config);
    assert_eq!(received.recv().await.unwrap().version_info, "");
    assert_eq!(received.recv().await.unwrap().version_info, "3");
    assert!(status.streams()[0].connected);
}
