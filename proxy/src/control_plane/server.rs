//! The gRPC services: one conversation per stream, driven by what the proxy sends and what is published.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use tollgate_proto::cilium::network_policy_discovery_service_server::{
    NetworkPolicyDiscoveryService, NetworkPolicyDiscoveryServiceServer,
};
use tollgate_proto::cilium::network_policy_hosts_discovery_service_server::{
    NetworkPolicyHostsDiscoveryService, NetworkPolicyHostsDiscoveryServiceServer, SERVICE_NAME as HOSTS_SERVICE,
};
use tollgate_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tollgate_proto::tenant::tenant_discovery_service_server::{
    SERVICE_NAME as TENANT_SERVICE, TenantDiscoveryService, TenantDiscoveryServiceServer,
};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Request, Response, Status, Streaming};

use super::conversation::Conversation;
use super::event::{Event, Report, ResourceType};
use super::published::{Published, State};

type Responses<T> = BoxStream<'static, Result<T, Status>>;

/// All services behind one function; a method of none is unimplemented.
pub(super) fn service(
    published: Arc<Published>,
    report: Report,
) -> impl Service<
    http::Request<Body>,
    Response = http::Response<Body>,
    Error = Infallible,
    Future: Future<Output = Result<http::Response<Body>, Infallible>> + Send + 'static,
> + Clone
+ Send
+ 'static {
    let discovery = Arc::new(Discovery { published, report });
    let policies = NetworkPolicyDiscoveryServiceServer::from_arc(Arc::clone(&discovery));
    let hosts = NetworkPolicyHostsDiscoveryServiceServer::from_arc(Arc::clone(&discovery));
    let tenants = TenantDiscoveryServiceServer::from_arc(discovery);
    tower::service_fn(move |request: http::Request<Body>| {
        let (mut policies, mut hosts, mut tenants) = (policies.clone(), hosts.clone(), tenants.clone());
        async move {
            match request.uri().path().split('/').nth(1) {
                Some(HOSTS_SERVICE) => hosts.call(request).await,
                Some(TENANT_SERVICE) => tenants.call(request).await,
                _ => policies.call(request).await,
            }
        }
    })
}

struct Discovery {
    published: Arc<Published>,
    report: Report,
}

impl Discovery {
    fn stream(&self, kind: ResourceType, requests: Streaming<DiscoveryRequest>) -> Responses<DiscoveryResponse> {
        let stream = Stream {
            requests,
            published: self.published.subscribe(kind),
            conversation: Conversation::new(kind),
            kind,
            report: Arc::clone(&self.report),
            reason: String::new(),
        };
        // The stream reports its own end by being dropped, whoever ends it.
        futures_util::stream::unfold(Some(stream), |stream| async move {
            let mut stream = stream?;
            match stream.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(stream))),
                Ok(None) => None,
                Err(status) => {
                    stream.reason = status.message().to_owned();
                    Some((Err(status), None))
                }
            }
        })
        .boxed()
    }
}

struct Stream {
    requests: Streaming<DiscoveryRequest>,
    published: watch::Receiver<Arc<State>>,
    conversation: Conversation,
    kind: ResourceType,
    report: Report,
    reason: String,
}

impl Stream {
    /// The next response; `None` when the proxy has ended the stream.
    async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        loop {
            let state = Arc::clone(&self.published.borrow_and_update());
            if let Some((response, event)) = self.conversation.due(&state, Instant::now()) {
                (self.report)(&event);
                return Ok(Some(response));
            }
            tokio::select! {
                request = self.requests.message() => {
                    // A proxy that dies ends its stream with an error; that is its own affair.
                    let Ok(Some(request)) = request else { return Ok(None) };
                    if let Some(event) = self.conversation.hear(request, Instant::now())? {
                        (self.report)(&event);
                    }
                }
                changed = self.published.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the control plane stops"));
                    }
                }
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let node = self.conversation.node().unwrap_or("unknown").to_owned();
        let reason = std::mem::take(&mut self.reason);
        (self.report)(&Event::StreamClosed { r#type: self.kind, node, reason });
    }
}

fn not_served<T>(method: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("{method} is not served; use the state-of-the-world stream")))
}

#[tonic::async_trait]
impl NetworkPolicyDiscoveryService for Discovery {
    type StreamNetworkPoliciesStream = Responses<DiscoveryResponse>;
    type DeltaNetworkPoliciesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_network_policies(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamNetworkPoliciesStream>, Status> {
        Ok(Response::new(self.stream(ResourceType::NetworkPolicy, request.into_inner())))
    }

    async fn delta_network_policies(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaNetworkPoliciesStream>, Status> {
        not_served("DeltaNetworkPolicies")
    }

    async fn fetch_network_policies(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        not_served("FetchNetworkPolicies")
    }
}

#[tonic::async_trait]
impl NetworkPolicyHostsDiscoveryService for Discovery {
    type StreamNetworkPolicyHostsStream = Responses<DiscoveryResponse>;
    type DeltaNetworkPolicyHostsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_network_policy_hosts(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamNetworkPolicyHostsStream>, Status> {
        Ok(Response::new(self.stream(ResourceType::NetworkPolicyHosts, request.into_inner())))
    }

    async fn delta_network_policy_hosts(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaNetworkPolicyHostsStream>, Status> {
        not_served("DeltaNetworkPolicyHosts")
    }

    async fn fetch_network_policy_hosts(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        not_served("FetchNetworkPolicyHosts")
    }
}

#[tonic::async_trait]
impl TenantDiscoveryService for Discovery {
    type StreamTenantsStream = Responses<DiscoveryResponse>;
    type DeltaTenantsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_tenants(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamTenantsStream>, Status> {
        Ok(Response::new(self.stream(ResourceType::Tenant, request.into_inner())))
    }

    async fn delta_tenants(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaTenantsStream>, Status> {
        not_served("DeltaTenants")
    }
}
