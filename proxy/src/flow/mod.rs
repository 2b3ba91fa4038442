//! Flow records: what is known about each request or connection, and where it goes.
//!
//! ```text
//! worker: OpenFlow ─▶ FlowSender ─ring─▶ flow thread ─▶ FlowLog (last records: /flows, followers)
//!                                             └───────▶ one thread per sink (JSON lines)
//!         └──────────── entries ─ring─▶ flow thread ─▶ one thread per socket of the access log
//! ```
//! A worker never locks, blocks, waits or writes because of a record. What it cannot hand over at once is lost and
//! counted: denials last (a share of the ring is theirs alone; what limits refuse is no denial), those of a flood first
//! (`room.rs`). Every record carries its worker and a number that counts that worker's records including the lost ones, so a gap
//! in the numbers is exactly a loss.

mod access_log;
mod channel;
pub mod json;
mod log;
mod memory;
mod meter;
mod open;
mod portion;
mod record;
mod room;
mod sink;
mod thread;

pub use access_log::{AccessLogs, EntryKind, ListenerLog, LossCause, SinkSet, SocketCounters};
pub(crate) use access_log::{Fields, LogTarget};
pub use channel::{FlowConsumer, FlowSender, Sequenced, channel};
pub use log::{FlowFilter, FlowLog, FlowReader};
pub use memory::LogMemory;
pub(crate) use meter::Meter;
pub use open::OpenFlow;
pub(crate) use record::ENDINGS;
pub use record::{FlowRecord, HttpRecord, Outcome, Protocol};
pub use sink::SinkCounters;
pub(crate) use thread::GATHER;
pub use thread::{FlowError, FlowSettings, FlowThread};
