//! The policy engine: what a `cilium.NetworkPolicy` means, compiled and evaluated.
//!
//! Pure by construction: no IO, no clock, no logging, no `unsafe`. The same [`Snapshot`], [`Secrets`], [`Flow`] and
//! [`Request`] always give the same verdict, so the data path, `tollgate policy explain` and the tests all run this one code.
//!
//! It must never allow what the policy denies. Whatever it cannot compile takes its most restrictive reading and is
//! listed as a [`Quarantine`] entry; nothing is dropped in silence.

#![forbid(unsafe_code)]

mod compile;
mod edits;
mod evaluate;
mod explain;
mod flow;
mod header_match;
mod limits;
pub mod lint;
pub mod model;
#[cfg(feature = "proto")]
mod proto;
mod quarantine;
mod re2;
pub mod reference;
mod secrets;
mod snapshot;
mod verdict;
mod weight;

pub use edits::{FieldEdit, HeaderEdits, HeaderLog, LoggedHeader, NewValue, REDACTED};
pub use explain::{Explanation, PolicyExplanation, PredicateExplanation, RuleExplanation, RuleOutcome};
pub use flow::{Direction, Flow, Headers, NoHeaders, Request, SecurityId, ServerName};
pub use limits::{Effort, Limits};
pub use model::{EndpointKey, NetworkPolicy, PortPolicy, PortRule, RuleVerdict};
#[cfg(feature = "proto")]
pub use proto::PolicyError;
pub use quarantine::Quarantine;
pub use secrets::Secrets;
pub use snapshot::{Conflict, Draft, EndpointPolicy, Form, Snapshot, SnapshotBuilder};
pub use verdict::{ConnectionVerdict, DenyReason, NearestMiss, Permit, RuleRef, Verdict};
