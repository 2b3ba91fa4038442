//! Type URLs: how xDS and `Any` name a message.

/// What stands before the full message name.
pub const PREFIX: &str = "type.googleapis.com/";

/// NPDS resources.
pub const NETWORK_POLICY: &str = "type.googleapis.com/cilium.NetworkPolicy";
/// NPHDS resources.
pub const NETWORK_POLICY_HOSTS: &str = "type.googleapis.com/cilium.NetworkPolicyHosts";
/// Tenants; Tollgate's own.
pub const TENANT: &str = "type.googleapis.com/tollgate.tenant.v1.Tenant";
/// SDS resources.
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// LDS resources.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// RDS resources.
pub const ROUTE_CONFIGURATION: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// CDS resources.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// EDS resources.
pub const CLUSTER_LOAD_ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Configuration of the listener filter.
pub const BPF_METADATA: &str = "type.googleapis.com/cilium.BpfMetadata";
/// Configuration of the network filter.
pub const NETWORK_FILTER: &str = "type.googleapis.com/cilium.NetworkFilter";
/// Configuration of the HTTP filter.
pub const L7_POLICY: &str = "type.googleapis.com/cilium.L7Policy";
/// What `/config_dump` shows of the policies.
pub const NETWORK_POLICIES_CONFIG_DUMP: &str = "type.googleapis.com/cilium.NetworkPoliciesConfigDump";
