//! What policies mean, as tables: each module is one part of the semantics.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../generate/mod.rs"]
mod generate;
#[cfg(feature = "proto")]
#[path = "../generate/message.rs"]
mod message;

#[cfg(feature = "proto")]
mod conformance;
mod demo;
mod explain;
mod header_matches;
mod headers;
mod limits;
mod match_budget;
mod nearest;
mod never_panics;
mod peers;
mod ports;
mod precedence;
mod properties;
mod quarantine;
mod re2;
mod snapshots;
mod support;
#[cfg(feature = "proto")]
mod wire;
