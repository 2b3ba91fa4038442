//! Wire types: cilium.* written here, Envoy's from envoy-types; no logic.
