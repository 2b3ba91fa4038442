//! Flow records: what is known about each request or connection, and the sinks they go to.

mod record;

pub use record::{FlowRecord, HttpRecord, Outcome, Protocol};
