//! What policies mean, as tables: each module is one part of the semantics.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod demo;
mod explain;
mod headers;
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
