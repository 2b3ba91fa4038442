//! The access log of Cilium's agent: a `cilium.LogEntry` per packet on a local socket (`spec/cilium-filter.md` section 4,
//! `spec/cilium-agent.md` section 4).
//!
//! An HTTP request gives two entries: `Request` or `Denied` when it is judged, and `Response` when the head of the answer goes
//! out. A connection gives one, `Denied`, when it is refused. Workers only copy what an entry needs (`entry`) and hand it
//! over as they do flow records; each socket has a thread (`sink`) that makes the message (`message`) and sends it. Where no
//! listener has such a log, nothing of this is made.
//!
//! A packet is always below the 4,096 bytes that the agent reads at once: what is longer loses its largest header fields first,
//! never `x-request-id`, then the ends of long texts, and says so. Bytes that are no UTF-8 are written as U+FFFD, because
//! a reader of protobuf would refuse the whole entry. Values of fields that policy compares with a secret, or puts a
//! secret into, are `[redacted]`.

mod entry;
mod logged;
mod message;
mod registry;
mod sink;

pub(super) use entry::Entry;
pub use entry::EntryKind;
pub(crate) use entry::Fields;
pub(crate) use logged::LogTarget;
pub(super) use logged::{LogWay, LoggedFlow};
pub use registry::{AccessLogs, ListenerLog, SinkSet};
pub use sink::{LossCause, SocketCounters};
