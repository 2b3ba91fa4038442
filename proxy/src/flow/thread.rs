//! The flow thread: takes records from all workers in batches, keeps them in the log, and hands their JSON to the
//! sinks.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::channel::Doorbell;
use super::portion::{REST, give_way};
use super::sink::{Line, Lines, Sink, SinkCounters};
use super::{AccessLogs, FlowConsumer, FlowLog, LogMemory, Sequenced, json};
use crate::config::AccessLog;
use crate::overhead;
use crate::tenant::Names;

/// Records taken at once, at most: what takes about 0.2 ms.
const PORTION: usize = 128;
/// How long the thread lets records gather before it takes the next batch. While traffic flows it wakes by this
/// clock and producers never have to wake it; without traffic it sleeps for good.
pub(crate) const GATHER: Duration = Duration::from_millis(10);

/// Why flow records cannot be consumed.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// A sink cannot be opened.
    #[error("access_log: cannot open {name} for appending: {error}; check that its directory exists and is writable")]
    OpenSink {
        /// The sink.
        name: String,
        /// What the system said. Part of the text, so not a source, which would be printed again.
        error: io::Error,
    },
    /// No thread.
    #[error("cannot start a thread for flow records: {0}")]
    Thread(io::Error),
    /// More sockets than a listener's entries can be told to go to.
    #[error("access log {path}: there are {most} sockets of access logs already; let listeners share one")]
    TooManySockets {
        /// The one too many.
        path: PathBuf,
        /// How many there may be.
        most: usize,
    },
    /// Nothing is opened any more.
    #[error("the process ends")]
    Ending,
}

/// Bounds and sinks.
#[derive(Clone, Debug)]
pub struct FlowSettings {
    /// Records kept for `/flows`, at most.
    pub recent_records: usize,
    /// Memory of the records kept, at most, in bytes.
    pub recent_bytes: usize,
    /// Where JSON lines and entries of the access log go.
    pub sinks: Vec<AccessLog>,
    /// What tenants are called.
    pub tenants: Names,
}

impl Default for FlowSettings {
    fn default() -> Self {
        Self { recent_records: 4096, recent_bytes: 8 << 20, sinks: Vec::new(), tenants: Names::default() }
    }
}

/// The running consumer.
#[derive(Debug)]
pub struct FlowThread {
    log: Arc<FlowLog>,
    sinks: Arc<[Arc<SinkCounters>]>,
    access_logs: AccessLogs,
    memory: LogMemory,
    doorbell: Arc<Doorbell>,
    ended: Receiver<()>,
}

impl FlowConsumer {
    /// Opens the sinks and starts the flow thread.
    ///
    /// # Errors
    /// A sink cannot be opened, or the system gives no thread.
    pub fn spawn(self, settings: &FlowSettings) -> Result<FlowThread, FlowError> {
        let (alive, ended) = sync_channel(0);
        self.access_logs().start(alive.clone());
        let mut sinks = Vec::new();
        for sink in &settings.sinks {
            match sink {
                AccessLog::CiliumSocket(path) => self.access_logs().open_for_all(path)?,
                AccessLog::JsonStdout => sinks.push(Sink::stdout(alive.clone())?),
                AccessLog::JsonFile(path) => sinks.push(Sink::file(path, alive.clone())?),
            }
        }
        self.spawn_with(settings, sinks, alive, ended)
    }

    pub(super) fn spawn_with(
        self,
        settings: &FlowSettings,
        sinks: Vec<Sink>,
        alive: SyncSender<()>,
        ended: Receiver<()>,
    ) -> Result<FlowThread, FlowError> {
        let log = FlowLog::new(settings.recent_records, settings.recent_bytes, settings.tenants.clone());
        let names = settings.tenants.clone();
        let counters: Arc<[_]> = sinks.iter().map(Sink::counters).collect();
        let flows = FlowThread {
            log: Arc::clone(&log),
            sinks: Arc::clone(&counters),
            access_logs: self.access_logs(),
            memory: LogMemory {
                rings: self.loads().into(),
                log: Arc::clone(&log),
                sinks: counters,
                access_logs: self.access_logs(),
            },
            doorbell: self.doorbell(),
            ended,
        };
        thread::Builder::new()
            .name("flow".to_owned())
            .spawn(move || {
                overhead::count_this_thread(overhead::Kind::Log);
                give_way();
                let access_logs = self.access_logs();
                run(self, &log, &sinks, &names);
                access_logs.close();
                drop(sinks);
                drop(alive);
            })
            .map_err(FlowError::Thread)?;
        Ok(flows)
    }
}

impl FlowThread {
    /// The last records.
    pub fn log(&self) -> Arc<FlowLog> {
        Arc::clone(&self.log)
    }

    /// The counters of each sink, in the order of the settings.
    pub fn sinks(&self) -> Arc<[Arc<SinkCounters>]> {
        Arc::clone(&self.sinks)
    }

    /// The sockets of the access log.
    pub fn access_logs(&self) -> AccessLogs {
        self.access_logs.clone()
    }

    /// What all of it holds.
    pub fn memory(&self) -> LogMemory {
        self.memory.clone()
    }

    /// Writes out what the workers have sent so far and ends; to be called after the workers are done. Blocks for
    /// `limit` at most. Returns whether everything was written.
    pub fn shutdown(self, limit: Duration) -> bool {
        self.doorbell.stop();
        self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }
}

fn run(mut consumer: FlowConsumer, log: &FlowLog, sinks: &[Sink], names: &Names) {
    let doorbell = consumer.doorbell();
    doorbell.attach();
    let access_logs = consumer.access_logs();
    let (mut batch, mut entries) = (Vec::new(), Vec::new());
    let (mut last_size, mut hurries) = (0, false);
    loop {
        // Read before draining: what was sent before the stop is then still found below.
        let stopping = doorbell.is_stopping();
        let unheld = access_logs.unheld();
        let (logged, all_entries) = consumer.drain_entries(&mut entries, PORTION);
        if logged > 0 {
            access_logs.offer(&mut entries);
        }
        if all_entries {
            access_logs.give_back(unheld);
        }
        let (taken, all_records) = consumer.drain_records(&mut batch, PORTION);
        if taken == 0 && logged == 0 {
            if stopping {
                return;
            }
            consumer.sleep();
            continue;
        }
        explain(&mut batch, names);
        if !sinks.is_empty() && taken > 0 {
            last_size = offer(&batch, sinks, last_size, names);
        }
        log.append(&mut batch);
        let all = all_entries && all_records;
        hurries = stopping || hurry(hurries, all, consumer.is_pressed());
        if !hurries {
            thread::park_timeout(if all { GATHER } else { REST });
        }
    }
}

/// Whether to go on without a rest: from when a ring fills up until `all` rings were found empty, so that there is all of their room
/// again should the thread itself be kept waiting.
fn hurry(hurries: bool, all: bool, pressed: bool) -> bool {
    pressed || hurries && !all
}

/// Says in records of what a limit refused, or one in shadow would have, which limit it was. Not done where it is refused: whoever floods
/// is refused fast.
fn explain(batch: &mut [Sequenced], names: &Names) {
    let mut limited = batch
        .iter_mut()
        .filter(|item| item.record.detail.is_none() && item.record.limit_to_explain().is_some())
        .peekable();
    if limited.peek().is_none() {
        return;
    }
    let names = names.load();
    for Sequenced { record, .. } in limited {
        let limit =
            record.limit_to_explain().and_then(|reason| names.limit(record.tenant, reason, record.http.is_some()));
        let of_remote = |limit| format!("one remote identity's part of {limit}");
        record.detail = limit.map(|limit| if record.of_remote { of_remote(limit) } else { limit }.into());
    }
}

/// Returns the size of the lines, a good first size for the next batch.
fn offer(batch: &[Sequenced], sinks: &[Sink], capacity: usize, names: &Names) -> usize {
    let names = names.load();
    let (mut bytes, mut each) = (Vec::with_capacity(capacity), Vec::with_capacity(batch.len()));
    for item in batch {
        json::write_line(&mut bytes, item, &names);
        each.push(Line { end: bytes.len(), tenant: item.record.tenant, denied: item.record.is_denial() });
    }
    let size = bytes.len();
    let lines = Lines { bytes: Arc::new(bytes), each };
    sinks.iter().for_each(|sink| sink.offer(&lines));
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_rest_from_when_a_ring_fills_up_until_all_are_empty() {
        assert!(!hurry(false, false, false));
        assert!(hurry(false, true, true), "a ring fills up");
        assert!(hurry(true, false, false), "there is more");
        assert!(!hurry(true, true, false), "all were taken");
    }
}
