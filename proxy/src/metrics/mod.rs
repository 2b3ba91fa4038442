//! Prometheus metrics: counters that cost the data plane an add, and their families at scrape time.
//!
//! Each worker owns its counters alone and adds with a plain load and store; a scrape sums over the workers on the
//! control thread. Names are `tollgate_*`; labels are closed sets (reasons, outcomes, directions) or bounded by the
//! configuration (listeners, sinks). Never an address, a path or a pod name.

mod collector;
mod control;
mod exposition;
mod process;
mod worker;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use prometheus_client::registry::Registry;
use tollgate_policy::Direction;

pub use control::{Control, PolicyGauges, UpdateResult};
pub use exposition::Format;
pub use worker::{AcceptErrorKind, ConnectResult, HeldConnection, ListenerIndex, OpenConnection, Worker};

use crate::config;
use crate::flow::SinkCounters;
use worker::Counters;

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    families: Arc<Families>,
    registry: Registry,
}

/// What a scrape reads.
#[derive(Debug)]
struct Families {
    workers: Vec<Arc<Counters>>,
    listeners: Vec<(String, Direction)>,
    control: Arc<Control>,
    sinks: OnceLock<Arc<[Arc<SinkCounters>]>>,
    streams: OnceLock<tollgate_xds::Status>,
    started: SystemTime,
}

impl Metrics {
    /// Makes the counters of `workers` workers; the handles are in the order of the workers.
    pub fn new(listeners: &[config::Listener], workers: usize) -> (Self, Vec<Worker>) {
        let counters: Vec<_> = (0..workers).map(|_| Arc::new(Counters::new(listeners.len()))).collect();
        let handles = counters.iter().cloned().map(Worker::new).collect();
        let families = Arc::new(Families {
            workers: counters,
            listeners: listeners.iter().map(|listener| (listener.name.clone(), listener.direction)).collect(),
            control: Arc::new(Control::default()),
            sinks: OnceLock::new(),
            streams: OnceLock::new(),
            started: SystemTime::now(),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&families)));
        (Self { families, registry }, handles)
    }

    /// What the control thread sets and counts.
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.families.control)
    }

    /// Adds the sinks of flow records to what is scraped; the first call counts.
    pub fn watch_sinks(&self, sinks: Arc<[Arc<SinkCounters>]>) {
        let _ = self.families.sinks.set(sinks);
    }

    /// Adds the streams of the xDS client to what is scraped; the first call counts.
    pub fn watch_streams(&self, streams: tollgate_xds::Status) {
        let _ = self.families.streams.set(streams);
    }

    /// Open downstream connections, all workers together.
    pub fn connections_open(&self) -> u64 {
        (0..self.families.listeners.len()).map(|index| self.families.connections_open(index)).sum()
    }

    /// Lost flow records by [`crate::flow::Outcome`].
    pub fn flow_records_lost(&self) -> [u64; 3] {
        std::array::from_fn(|outcome| self.families.sum(|worker| worker.records_lost[outcome].value()))
    }

    /// One scrape.
    ///
    /// # Errors
    /// None that a caller could cause: writing to memory does not fail.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        exposition::encode(&self.registry, format)
    }
}

impl Families {
    fn sum(&self, value: impl Fn(&Counters) -> u64) -> u64 {
        self.workers.iter().fold(0, |sum, worker| sum.wrapping_add(value(worker)))
    }

    fn connections_open(&self, listener: usize) -> u64 {
        let closed = self.sum(|worker| worker.listeners[listener].closed.value());
        // Read after `closed`: a connection that opens and closes in between must not make the difference negative.
        self.sum(|worker| worker.listeners[listener].opened.value()).saturating_sub(closed)
    }
}

#[cfg(test)]
mod tests;
