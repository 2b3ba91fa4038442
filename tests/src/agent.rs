//! An agent that speaks one aggregated stream for all types, over real gRPC on a Unix socket, and pushes what a test says.

mod listeners;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use prost::{Message, Name};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tollgate_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tollgate_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tollgate_proto::google::protobuf::Any;
use tonic::{Request, Response, Status, Streaming};

pub use listeners::{http_egress, http_ingress, logging_to, with_bpf_root};

use crate::control_plane::Answer;
use crate::wait::DEADLINE;

/// The newest response of each type.
type World = BTreeMap<String, DiscoveryResponse>;

/// Serves every type that was pushed. Dropping it closes the socket and every stream.
#[derive(Debug)]
pub struct Agent {
    world: watch::Sender<World>,
    requests: Mutex<Receiver<DiscoveryRequest>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Listens on `socket`.
    ///
    /// # Panics
    /// When it cannot.
    pub fn start(socket: PathBuf) -> Self {
        let (world, responses) = watch::channel(World::new());
        let (requests, incoming) = channel();
        let (stop, stopped) = oneshot::channel();
        let (listening, ready) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(&socket).unwrap();
                listening.send(()).unwrap();
                let service =
                    AggregatedDiscoveryServiceServer::new(Service { responses, requests: Mutex::new(requests) });
                let server =
                    tonic::transport::Server::builder().serve_with_incoming(service, UnixListenerStream::new(listener));
                tokio::select! {
                    served = server => served.unwrap(),
                    _ = stopped => {}
                }
            });
            let _ = std::fs::remove_file(&socket);
        });
        ready.recv_timeout(DEADLINE).expect("the agent listens");
        Self { world, requests: Mutex::new(incoming), stop: Some(stop), thread: Some(thread) }
    }

    /// Makes these all resources of their type, without waiting.
    pub fn set<M: Message + Name>(&self, resources: &[M]) -> String {
        let type_url = format!("type.googleapis.com/{}", M::full_name());
        let any = |message: &M| Any { type_url: type_url.clone(), value: message.encode_to_vec() };
        let resources = resources.iter().map(any).collect();
        let mut version = String::new();
        self.world.send_modify(|world| {
            version = format!("v{}", world.values().map(|response| number(&response.nonce)).max().unwrap_or(0) + 1);
            let response = DiscoveryResponse {
                version_info: version.clone(),
                nonce: version.clone(),
                type_url: type_url.clone(),
                resources,
                ..DiscoveryResponse::default()
            };
            world.insert(type_url.clone(), response);
        });
        version
    }

    /// Makes these all resources of their type, and returns the client's answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn push<M: Message + Name>(&self, resources: &[M]) -> Answer {
        let nonce = self.set(resources);
        self.answer(&nonce)
    }

    /// The client's answer to what was set with that version.
    ///
    /// # Panics
    /// When there is none.
    pub fn answer(&self, nonce: &str) -> Answer {
        let requests = self.requests.lock().unwrap();
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let request = requests.recv_timeout(left).expect("the client answers");
            if request.response_nonce != nonce {
                continue;
            }
            return match request.error_detail {
                None => Answer::Ack,
                Some(error) => Answer::Nack { version: request.version_info, message: error.message },
            };
        }
    }
}

fn number(version: &str) -> u64 {
    version.trim_start_matches('v').parse().unwrap_or(0)
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the agent panicked");
        }
    }
}

struct Service {
    responses: watch::Receiver<World>,
    requests: Mutex<Sender<DiscoveryRequest>>,
}

/// Sends each type that was asked for whenever it has changed.
async fn converse(
    mut world: watch::Receiver<World>,
    mut incoming: Streaming<DiscoveryRequest>,
    told: Sender<DiscoveryRequest>,
    outgoing: mpsc::Sender<Result<DiscoveryResponse, Status>>,
) {
    let mut sent: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let due: Vec<_> = {
            let world = world.borrow_and_update();
            let is_due =
                |(type_url, nonce): (&String, &String)| world.get(type_url).filter(|r| r.nonce != *nonce).cloned();
            sent.iter().filter_map(is_due).collect()
        };
        for response in due {
            sent.insert(response.type_url.clone(), response.nonce.clone());
            if outgoing.send(Ok(response)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = world.changed() => if changed.is_err() { return },
            request = incoming.next() => match request {
                Some(Ok(request)) => {
                    sent.entry(request.type_url.clone()).or_default();
                    // A test that has ended listens no more.
                    let _ = told.send(request);
                }
                _ => return,
            },
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (outgoing, responses) = mpsc::channel(16);
        let told = self.requests.lock().unwrap().clone();
        tokio::spawn(converse(self.responses.clone(), request.into_inner(), told, outgoing));
        Ok(Response::new(ReceiverStream::new(responses).boxed()))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}
