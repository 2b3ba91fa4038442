//! End-to-end suites: namespaces with real TPROXY, real clients, servers and control planes.

pub mod netns;
pub mod python;
