//! `rust-control-plane`, which is modelled after Envoy's go-control-plane: snapshots, watches, state of the world.

use std::collections::HashMap;
use std::sync::Arc;

use data_plane_api::envoy::config::core::v3::TypedExtensionConfig;
use data_plane_api::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use data_plane_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use data_plane_api::google::protobuf::Any;
use futures_util::TryStreamExt as _;
use prost::Message as _;
use rust_control_plane::cache::Cache;
use rust_control_plane::service::common::{Service, StreamResponse};
use rust_control_plane::snapshot::{Resource, Resources, Snapshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic_0_8 as tonic;
use tonic_0_8::{Request, Response, Status, Streaming};

use crate::wire::Wire;

/// Who the proxy says that it is: the server has a snapshot for each client.
const NODE: &str = "host~127.0.0.1~no-id~localdomain";

pub(crate) struct Peer {
    cache: Arc<Cache>,
    snapshot: Snapshot,
}

impl Peer {
    pub(crate) fn new() -> Self {
        // Its check of an aggregated stream's consistency (`true`) withholds every response to a wildcard.
        Self { cache: Arc::new(Cache::new(false)), snapshot: Snapshot::new() }
    }
}

impl crate::Server for Peer {
    async fn set(&mut self, type_url: &str, resources: crate::Resources) {
        let wrap = |(name, value)| {
            let any = Any { type_url: type_url.to_owned(), value };
            let wrapped = TypedExtensionConfig { name: String::clone(&name), typed_config: Some(any) };
            (name, Resource::ExtensionConfig(wrapped))
        };
        let items: HashMap<_, _> = resources.by_name.into_iter().map(wrap).collect();
        self.snapshot.insert(type_url.to_owned(), Resources { version: resources.version, items });
        self.cache.set_snapshot(NODE, self.snapshot.clone()).await;
    }

    fn serve(&self, incoming: UnixListenerStream) {
        let service = AggregatedDiscoveryServiceServer::new(Unwrap(Service::new(Arc::clone(&self.cache))));
        let server = tonic::transport::Server::builder().layer(Wire("Stream")).add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
    }
}

/// The server keeps messages of Envoy's types only. One of them is a name and an `Any`, in which any other travels through
/// it; on the way out the `Any` takes its place.
struct Unwrap(Service);

fn unwrap(mut response: DiscoveryResponse) -> DiscoveryResponse {
    for resource in &mut response.resources {
        let wrapped = TypedExtensionConfig::decode(&resource.value[..]).expect("it was encoded here");
        *resource = wrapped.typed_config.expect("each has one");
    }
    response
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Unwrap {
    type StreamAggregatedResourcesStream = StreamResponse<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = StreamResponse<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let responses = self.0.stream_aggregated_resources(requests).await?;
        Ok(responses.map(|stream| Box::pin(stream.map_ok(unwrap)) as StreamResponse<_>))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}
