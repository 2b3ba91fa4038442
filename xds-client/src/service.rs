//! The wire names of the resource types that can be subscribed to.

/// One resource type and the gRPC methods that deliver it on a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// `type.googleapis.com/` and the full message name.
    pub type_url: &'static str,
    /// Path of the state-of-the-world method: `/package.Service/Method`.
    pub state_of_the_world: &'static str,
    /// Path of the incremental method.
    pub incremental: &'static str,
}

impl Service {
    /// Full name of the message.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.type_url.rsplit('/').next().unwrap_or(self.type_url)
    }
}

/// NPDS: one `cilium.NetworkPolicy` per local endpoint.
pub const NETWORK_POLICY: Service = Service {
    type_url: "type.googleapis.com/cilium.NetworkPolicy",
    state_of_the_world: "/cilium.NetworkPolicyDiscoveryService/StreamNetworkPolicies",
    incremental: "/cilium.NetworkPolicyDiscoveryService/DeltaNetworkPolicies",
};

/// NPHDS: one `cilium.NetworkPolicyHosts` per security identity.
pub const NETWORK_POLICY_HOSTS: Service = Service {
    type_url: "type.googleapis.com/cilium.NetworkPolicyHosts",
    state_of_the_world: "/cilium.NetworkPolicyHostsDiscoveryService/StreamNetworkPolicyHosts",
    incremental: "/cilium.NetworkPolicyHostsDiscoveryService/DeltaNetworkPolicyHosts",
};

/// LDS: where to listen, and what to do with what connects there.
pub const LISTENER: Service = Service {
    type_url: "type.googleapis.com/envoy.config.listener.v3.Listener",
    state_of_the_world: "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
    incremental: "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
};

/// CDS: groups of upstreams.
pub const CLUSTER: Service = Service {
    type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    state_of_the_world: "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
    incremental: "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
};

/// RDS: the routes that listeners name.
pub const ROUTE_CONFIGURATION: Service = Service {
    type_url: "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
    state_of_the_world: "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
    incremental: "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
};

/// EDS: the addresses of the clusters that name them.
pub const CLUSTER_LOAD_ASSIGNMENT: Service = Service {
    type_url: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
    state_of_the_world: "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
    incremental: "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
};

/// Who pays for what: one `tollgate.tenant.v1.Tenant` per group of local endpoints. Only control planes that are made for
/// it know the type.
pub const TENANT: Service = Service {
    type_url: "type.googleapis.com/tollgate.tenant.v1.Tenant",
    state_of_the_world: "/tollgate.tenant.v1.TenantDiscoveryService/StreamTenants",
    incremental: "/tollgate.tenant.v1.TenantDiscoveryService/DeltaTenants",
};

/// SDS: the secrets that policies and listeners name.
pub const SECRET: Service = Service {
    type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
    state_of_the_world: "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
    incremental: "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
};

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use envoy_types::pb::envoy::config::listener::v3::Listener;
    use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
    use envoy_types::pb::envoy::service::cluster::v3::cluster_discovery_service_server as cds;
    use envoy_types::pb::envoy::service::endpoint::v3::endpoint_discovery_service_server as eds;
    use envoy_types::pb::envoy::service::listener::v3::listener_discovery_service_server as lds;
    use envoy_types::pb::envoy::service::route::v3::route_discovery_service_server as rds;
    use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server as sds;
    use prost::Name as _;
    use tollgate_proto::cilium::{
        NetworkPolicy, NetworkPolicyHosts, network_policy_discovery_service_server as npds,
        network_policy_hosts_discovery_service_server as nphds,
    };

    use tollgate_proto::tenant::{Tenant, tenant_discovery_service_server as tenants};

    use super::*;

    #[test]
    fn names_are_those_of_the_messages_and_services() {
        for (service, message, name, methods) in [
            (NETWORK_POLICY, NetworkPolicy::full_name(), npds::SERVICE_NAME, "NetworkPolicies"),
            (NETWORK_POLICY_HOSTS, NetworkPolicyHosts::full_name(), nphds::SERVICE_NAME, "NetworkPolicyHosts"),
            (LISTENER, Listener::full_name(), lds::SERVICE_NAME, "Listeners"),
            (CLUSTER, Cluster::full_name(), cds::SERVICE_NAME, "Clusters"),
            (ROUTE_CONFIGURATION, RouteConfiguration::full_name(), rds::SERVICE_NAME, "Routes"),
            (CLUSTER_LOAD_ASSIGNMENT, ClusterLoadAssignment::full_name(), eds::SERVICE_NAME, "Endpoints"),
            (SECRET, Secret::full_name(), sds::SERVICE_NAME, "Secrets"),
            (TENANT, Tenant::full_name(), tenants::SERVICE_NAME, "Tenants"),
        ] {
            assert_eq!(service.type_url, format!("type.googleapis.com/{message}"));
            assert_eq!(service.state_of_the_world, format!("/{name}/Stream{methods}"));
            assert_eq!(service.incremental, format!("/{name}/Delta{methods}"));
        }
    }
}
