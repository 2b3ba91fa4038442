//! What logs hold of memory. It is on no tenant's account: a record is made when the tenant has let everything else of the request
//! go, and what is kept of it is kept for operators. So it has an end of its own, which does not depend on who sends what.

use std::sync::Arc;

use super::channel::RingLoad;
use super::sink::{self, SinkCounters};
use super::{AccessLogs, FlowLog, SocketCounters};

/// Everything in which records and entries wait or are kept.
#[derive(Clone, Debug)]
pub struct LogMemory {
    pub(super) rings: Arc<[RingLoad]>,
    pub(super) log: Arc<FlowLog>,
    pub(super) sinks: Arc<[Arc<SinkCounters>]>,
    pub(super) access_logs: AccessLogs,
}

impl LogMemory {
    /// Bytes now, as they are reckoned.
    pub fn bytes(&self) -> u64 {
        let rings: u64 = self.rings.iter().map(RingLoad::bytes).sum();
        let sinks: u64 = self.sinks.iter().map(|sink| sink.queued_bytes()).sum();
        let sockets: u64 = self.access_logs.counters().iter().map(|socket| socket.queued_bytes()).sum();
        rings + self.log.bytes() + sinks + sockets
    }

    /// Bytes that there can be, but for one record or batch beyond each of its bounds.
    pub fn limit(&self) -> u64 {
        let sockets = self.access_logs.counters().len();
        self.rings.len() as u64 * RingLoad::MOST
            + self.log.most_bytes()
            + (self.sinks.len() * sink::QUEUE_BYTES) as u64
            + sockets as u64 * SocketCounters::MOST_QUEUED
    }
}
