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
