//! The real binary between real peers on loopback, without privileges. One module per subject.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod access_log;
mod agent_admin;
mod as_envoy;
mod bandwidth;
mod bandwidth_given_up;
mod bandwidth_retries;
mod big;
mod bytes_moved;
mod conformance;
mod connecting;
mod descriptors;
mod fairness;
mod first_policy;
mod forwarded_proto;
mod h1_memory;
mod h2_floods;
mod h2_limits;
mod h2_memory;
mod header_matches;
mod http1;
mod http2;
mod identity;
mod idle;
mod lanes;
mod limits;
mod log_ceiling;
mod malformed;
mod memory;
mod policy_check;
mod policy_life;
mod quota;
mod real_peers;
mod recent_flows;
mod request_id;
mod requests_per_connection;
mod resets;
mod retries;
mod tcp;
mod tenant_limits;
mod tenants;
mod threads;
mod trailers;
mod underscores;
mod websocket;
