//! Tollgate: a node-local L7 policy proxy. The crate behind the `tollgate` binary; see ARCHITECTURE.md for the rooms.

pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod flow;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod policy_file;
pub mod readiness;
pub mod reason;
pub mod control;
pub mod identity;
mod listener;
mod tcp;
mod upstream;
mod worker;
mod detect;
