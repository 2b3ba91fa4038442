//! A control plane that does what a test says, over real gRPC on a Unix socket.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use prost::Name as _;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::cilium::network_policy_discovery_service_server::{
    NetworkPolicyDiscoveryService, NetworkPolicyDiscoveryServiceServer,
};
use tollgate_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tollgate_proto::google::protobuf::Any;
use tonic::{Request, Response, Status, Streaming};

use crate::wait::DEADLINE;

type Responses<T> = BoxStream<'static, Result<T, Status>>;

/// What a client answered to a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is in force.
    Ack,
    /// It was refused: version that stays in force, and why.
    Nack {
        /// Version of the last accepted response.
        version: String,
        /// The client's message.
        message: String,
    },
}

/// Serves NetworkPolicy as one state-of-the-world stream. Dropping it closes the socket and every stream.
#[derive(Debug)]
pub struct ControlPlane {
    newest: watch::Sender<Option<DiscoveryResponse>>,
    requests: Mutex<Receiver<DiscoveryRequest>>,
    version: AtomicU64,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Listens on `socket`.
    ///
    /// # Panics
    /// When it cannot.
    pub fn start(socket: PathBuf) -> Self {
        let (newest, responses) = watch::channel(None);
        let (requests, incoming) = channel();
        let (stop, stopped) = oneshot::channel();
        let (listening, ready) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(&socket).unwrap();
                listening.send(()).unwrap();
                let service = Service { responses, requests: Mutex::new(requests) };
                let service = NetworkPolicyDiscoveryServiceServer::new(service);
                let server =
                    tonic::transport::Server::builder().serve_with_incoming(service, UnixListenerStream::new(listener));
                tokio::select! {
                    served = server => served.unwrap(),
                    _ = stopped => {}
                }
            });
            // A new control plane may take its place; fails only where the directory has gone.
            let _ = std::fs::remove_file(&socket);
        });
        ready.recv_timeout(DEADLINE).expect("the control plane listens");
        Self {
            newest,
            requests: Mutex::new(incoming),
            version: AtomicU64::new(0),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Pushes exactly these policies, and returns once the client has them in force.
    ///
    /// # Panics
    /// When it refuses them or does not answer.
    pub fn push(&self, policies: &[NetworkPolicy]) {
        let values = policies.iter().map(prost::Message::encode_to_vec).collect();
        assert_eq!(self.push_bytes(values), Answer::Ack);
    }

    /// Pushes resources with these bytes, and returns the client's answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn push_bytes(&self, values: Vec<Vec<u8>>) -> Answer {
        let type_url = format!("type.googleapis.com/{}", NetworkPolicy::full_name());
        let version = (self.version.fetch_add(1, Ordering::Relaxed) + 1).to_string();
        self.newest.send_replace(Some(DiscoveryResponse {
            version_info: version.clone(),
            nonce: version.clone(),
            resources: values.into_iter().map(|value| Any { type_url: type_url.clone(), value }).collect(),
            type_url,
            ..DiscoveryResponse::default()
        }));
        let requests = self.requests.lock().unwrap();
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let request = requests.recv_timeout(left).expect("the client answers");
            if request.response_nonce != version {
                continue;
            }
            return match request.error_detail {
                None => Answer::Ack,
                Some(error) => Answer::Nack { version: request.version_info, message: error.message },
            };
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the control plane panicked");
        }
    }
}

struct Service {
    responses: watch::Receiver<Option<DiscoveryResponse>>,
    requests: Mutex<Sender<DiscoveryRequest>>,
}

#[tonic::async_trait]
impl NetworkPolicyDiscoveryService for Service {
    type StreamNetworkPoliciesStream = Responses<DiscoveryResponse>;
    type DeltaNetworkPoliciesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_network_policies(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamNetworkPoliciesStream>, Status> {
        let requests = self.requests.lock().unwrap().clone();
        let incoming = request.into_inner().filter_map(move |request| {
            // A test that has ended listens no more.
            if let Ok(request) = request {
                let _ = requests.send(request);
            }
            std::future::ready(None)
        });
        let mut newest = self.responses.clone();
        newest.mark_changed();
        let responses = futures_util::stream::unfold(newest, |mut newest| async {
            loop {
                newest.changed().await.ok()?;
                let response = newest.borrow_and_update().clone();
                if let Some(response) = response {
                    return Some((Ok(response), newest));
                }
            }
        });
        Ok(Response::new(futures_util::stream::select(incoming, responses).boxed()))
    }

    async fn delta_network_policies(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaNetworkPoliciesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }

    async fn fetch_network_policies(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams only"))
    }
}
