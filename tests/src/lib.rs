//! End-to-end suites: namespaces with real TPROXY, real clients, servers and control planes.
//!
//! Suites without namespaces run on loopback ([`site::Site`]): each test has an address, a directory, a control plane
//! and a proxy of its own, so that all of them may run at once. What a test starts ends with it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

pub mod access_log;
pub mod admin;
pub mod agent;
pub mod bpf;
pub mod canary;
pub mod cgroup;
pub mod control_plane;
pub mod http2;
pub mod mark_counters;
pub mod netns;
pub mod nginx;
pub mod peer;
pub mod policy;
pub mod process;
pub mod proxy;
pub mod public_control_plane;
pub mod python;
pub mod script;
pub mod site;
pub mod steered;
pub mod strict_agent;
pub mod upstream;
pub mod wait;
