//! Prometheus metrics: counters that cost the data plane an add, and their families at scrape time.
//!
//! Each worker owns its counters alone and adds with a plain load and store; a scrape sums over the workers on the
//! control thread. Names are `tollgate_*`, and Envoy's for what dashboards of Envoy know; labels are closed sets (reasons, outcomes, directions) or bounded by the
//! configuration (listeners, sinks). Never an address, a path or a pod name.

mod attribution;
mod collector;
mod control;
mod envoy;
mod exposition;
mod listeners;
mod process;
mod tenants;
mod worker;

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use prometheus_client::registry::Registry;
use tollgate_policy::Direction;

pub use attribution::Attribution;
pub use control::{Control, PolicyGauges, UpdateResult};
pub use envoy::Stat;
pub use exposition::Format;
pub use listeners::ListenerSeries;
pub(crate) use process::resident_bytes;
pub(crate) use worker::Count;
pub use worker::{
    AcceptErrorKind, Chore, ConnectResult, HeldConnection, IdentityMap, ListenerIndex, LookupResult, MAX_LISTENERS,
    OpenConnection, Worker,
};

use crate::control::listeners::Report;
use crate::control::quota::CpuQuota;
use crate::flow::{AccessLogs, ENDINGS, LogMemory, SinkCounters};
use crate::readiness::Readiness;
use crate::tenant::{Books, Commons, Ledger};
use attribution::RunDelay;
use listeners::ListenerSlot;
use worker::{Counters, LISTENER_SLOTS};

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
    listeners: Mutex<Vec<ListenerSlot>>,
    control: Arc<Control>,
    sinks: OnceLock<Arc<[Arc<SinkCounters>]>>,
    access_logs: OnceLock<AccessLogs>,
    log_memory: OnceLock<LogMemory>,
    streams: OnceLock<tollgate_xds::Status>,
    discovered_listeners: OnceLock<Report>,
    tenants: Arc<Books>,
    readiness: OnceLock<Readiness>,
    cpu_quota: OnceLock<Arc<CpuQuota>>,
    run_delay: RunDelay,
    started: SystemTime,
}

impl Metrics {
    /// Makes the counters of `workers` workers; the handles are in the order of the workers.
    pub fn new(workers: usize) -> (Self, Vec<Worker>) {
        let commons: Arc<Commons> = Arc::default();
        let counters: Vec<_> =
            (0..workers).map(|_| Arc::new(Counters::new(Ledger::beside(Arc::clone(&commons))))).collect();
        let handles = counters.iter().cloned().map(Worker::new).collect();
        let tenants = Books::new(counters.iter().map(|counters| Arc::clone(&counters.ledger)).collect(), commons);
        let families = Arc::new(Families {
            workers: counters,
            listeners: Mutex::default(),
            control: Arc::new(Control::default()),
            sinks: OnceLock::new(),
            access_logs: OnceLock::new(),
            log_memory: OnceLock::new(),
            streams: OnceLock::new(),
            discovered_listeners: OnceLock::new(),
            tenants: Arc::new(tenants),
            readiness: OnceLock::new(),
            cpu_quota: OnceLock::new(),
            run_delay: RunDelay::default(),
            started: SystemTime::now(),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&families)));
        (Self { families, registry }, handles)
    }

    /// Where the connections of a listener are counted; the same for the same name and direction, also when it comes back, as long as
    /// no other listener needed the place. Listeners beyond [`MAX_LISTENERS`] are counted together, as `(other)`.
    pub fn listener(&self, name: &str, direction: Direction) -> ListenerSeries {
        self.families.listener_series(name, direction)
    }

    /// What the control thread sets and counts.
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.families.control)
    }

    /// What each tenant has used.
    pub fn tenants(&self) -> Arc<Books> {
        Arc::clone(&self.families.tenants)
    }

    /// Adds the sinks of flow records to what is scraped; the first call counts.
    pub fn watch_sinks(&self, sinks: Arc<[Arc<SinkCounters>]>) {
        let _ = self.families.sinks.set(sinks);
    }

    /// Adds the sockets of the access log, also those to come, to what is scraped; the first call counts.
    pub fn watch_access_logs(&self, access_logs: AccessLogs) {
        let _ = self.families.access_logs.set(access_logs);
    }

    /// Adds what logs hold of memory to what is scraped; the first call counts.
    pub fn watch_log_memory(&self, memory: LogMemory) {
        let _ = self.families.log_memory.set(memory);
    }

    /// What logs hold of memory, once they are watched.
    pub fn log_memory(&self) -> Option<&LogMemory> {
        self.families.log_memory.get()
    }

    /// Adds the streams of the xDS client to what is scraped; the first call counts.
    pub fn watch_streams(&self, streams: tollgate_xds::Status) {
        let _ = self.families.streams.set(streams);
    }

    /// Adds what became of the control plane's listeners to what is scraped; the first call counts.
    pub fn watch_discovered_listeners(&self, report: Report) {
        let _ = self.families.discovered_listeners.set(report);
    }

    /// Adds whether the process drains to what is scraped; the first call counts.
    pub fn watch_readiness(&self, readiness: Readiness) {
        let _ = self.families.readiness.set(readiness);
    }

    /// Adds the quota of processor time to what is scraped; the first call counts.
    pub fn watch_cpu_quota(&self, quota: Arc<CpuQuota>) {
        let _ = self.families.cpu_quota.set(quota);
    }

    /// How much of the processor's time stands on nobody's account, and what came from outside.
    pub fn attribution(&self) -> Attribution {
        self.families.attribution()
    }

    /// What is counted, under Envoy's names.
    pub fn envoy_stats(&self) -> Vec<Stat> {
        self.families.envoy_stats()
    }

    /// Open downstream connections, all workers together.
    pub fn connections_open(&self) -> u64 {
        (0..LISTENER_SLOTS).map(|index| self.families.connections_open(index)).sum()
    }

    /// Lost flow records: forwarded, denied, refused by limits, failed.
    pub fn flow_records_lost(&self) -> [u64; ENDINGS.len()] {
        std::array::from_fn(|ending| self.families.sum(|worker| worker.records_lost[ending].value()))
    }

    /// Whether a worker's upstream sockets are refused the mark or the foreign address that they need: then nothing gets
    /// through.
    pub fn upstreams_are_refused(&self) -> bool {
        self.families.workers.iter().any(|worker| worker.upstreams_refused.load(Ordering::Relaxed))
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
}

#[cfg(test)]
mod tests;
