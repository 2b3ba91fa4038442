//! The sockets that entries go to. New ones can be added while the process runs: an agent names one per listener.

use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Entry;
use super::sink::{Sink, SocketCounters};
use crate::flow::FlowError;

/// Sockets that some entries go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkSet(u64);

impl SinkSet {
    /// Whether nobody wants the entries.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn of(index: usize) -> Self {
        Self(1 << index)
    }

    fn contains(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The sockets of the process, each with its thread. Clones share them.
#[derive(Clone, Debug)]
pub struct AccessLogs(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Never shorter while the process runs, so that an index stays what it is.
    sinks: Vec<Sink>,
    /// Those that every listener logs to.
    of_all: SinkSet,
    counters: Vec<Arc<SocketCounters>>,
    /// A copy is with each thread until it ends; `None` once no more may start.
    alive: Option<SyncSender<()>>,
}

impl AccessLogs {
    /// Most sockets: a set of them is one word.
    const MAX: usize = u64::BITS as usize;

    /// No sockets yet.
    pub(in crate::flow) fn new() -> Self {
        let state = State { sinks: Vec::new(), of_all: SinkSet::default(), counters: Vec::new(), alive: None };
        Self(Arc::new(Mutex::new(state)))
    }

    /// From here on sockets can be opened; each thread drops its copy of `alive` when it has sent everything.
    pub(in crate::flow) fn start(&self, alive: SyncSender<()>) {
        self.lock().alive = Some(alive);
    }

    /// Has every listener log to the socket at `path`; listeners that exist already do not.
    ///
    /// # Errors
    /// See [`AccessLogs::open`].
    pub(in crate::flow) fn open_for_all(&self, path: &Path) -> Result<(), FlowError> {
        let set = self.open(path)?;
        let mut state = self.lock();
        state.of_all = state.of_all.with(set);
        Ok(())
    }

    /// The sockets that a listener logs to: its own, if it names one, and those of all listeners.
    pub(crate) fn of_listener(&self, own: Option<&Path>) -> SinkSet {
        let own = own.map(|path| self.open(path)).transpose().unwrap_or_else(|error| {
            tracing::error!(%error, "a listener is served without its access log");
            None
        });
        self.lock().of_all.with(own.unwrap_or_default())
    }

    /// The socket at `path`, whose thread is started if there is none yet. Nothing is connected before there is something
    /// to send.
    ///
    /// # Errors
    /// There are too many sockets, the system gives no thread, or the process ends.
    pub fn open(&self, path: &Path) -> Result<SinkSet, FlowError> {
        let mut state = self.lock();
        if let Some(index) = state.counters.iter().position(|counters| counters.path == path) {
            return Ok(SinkSet::of(index));
        }
        let (index, Some(alive)) = (state.sinks.len(), state.alive.clone()) else {
            return Err(FlowError::Ending);
        };
        if index >= Self::MAX {
            return Err(FlowError::TooManySockets { path: path.to_owned(), most: Self::MAX });
        }
        let sink = Sink::start(path, alive)?;
        state.counters.push(sink.counters());
        state.sinks.push(sink);
        Ok(SinkSet::of(index))
    }

    /// What happened at each socket.
    pub fn counters(&self) -> Vec<Arc<SocketCounters>> {
        self.lock().counters.clone()
    }

    /// Hands the entries to the threads of their sockets, or loses and counts them. Never blocks for long.
    pub(in crate::flow) fn offer(&self, entries: &mut Vec<Entry>) {
        let state = self.lock();
        let mut batches: Vec<Vec<Entry>> = state.sinks.iter().map(|_| Vec::new()).collect();
        for entry in entries.drain(..) {
            for (index, sink) in state.sinks.iter().enumerate().filter(|(index, _)| entry.sinks.contains(*index)) {
                if sink.admits(&entry) {
                    batches[index].push(entry.clone());
                }
            }
        }
        for (sink, batch) in state.sinks.iter().zip(batches) {
            sink.offer(batch);
        }
    }

    /// Ends the threads, once each has sent what it has.
    pub(in crate::flow) fn close(&self) {
        let mut state = self.lock();
        state.alive = None;
        state.sinks.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
