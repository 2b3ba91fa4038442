//! Tollgate: a node-local L7 policy proxy. The crate behind the `tollgate` binary; see ARCHITECTURE.md for the rooms.

pub mod admin;
pub mod app;
mod bootstrap;
mod cilium_policy;
pub mod cli;
pub mod config;
pub mod control;
pub mod control_plane;
pub mod demo;
mod detect;
pub mod explanation;
pub mod flow;
pub mod http;
pub mod identity;
mod lane;
mod listener;
pub mod logging;
pub mod metrics;
mod overhead;
pub mod policy_file;
mod prefixes;
pub mod readiness;
pub mod reason;
mod tcp;
pub mod tenant;
mod upstream;
mod worker;
