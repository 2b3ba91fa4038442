//! Prometheus metrics: counters that cost the data plane an add, and their families at scrape time.
//!
//! Each worker owns its counters alone and adds with a plain load and store; a scrape sums over the workers on the control
//! thread. Names are `tollgate_*`; labels are closed sets (reasons, outcomes, directions) or bounded by the configuration
//! (listeners, sinks). Never an address, a path or a pod name.

mod worker;

pub use worker::{
    AcceptErrorKind, ConnectResult, HeldConnection, ListenerIndex, OpenConnection, Worker,
};
