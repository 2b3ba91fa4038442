//! The sockets that entries go to. They come and go while the process runs: an agent names one per listener. A socket and its
//! thread are there for as long as a listener, or a connection that came by it, may log to it.

use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Entry;
use super::sink::{Sink, SocketCounters};
use crate::flow::FlowError;
use crate::flow::channel::Doorbell;

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

/// Where the requests of a listener are logged. Whoever logs there keeps a copy: when the last one is gone, the listener's own socket
/// is given back.
#[derive(Clone, Debug, Default)]
pub struct ListenerLog {
    sinks: SinkSet,
    /// Of its own socket.
    _held: Option<Arc<Held>>,
    /// Why it has no socket of its own, though it asks for one.
    unlogged: Option<Arc<str>>,
}

impl ListenerLog {
    /// The sockets.
    pub(crate) const fn sinks(&self) -> SinkSet {
        self.sinks
    }

    /// Why it has no socket of its own, though it asks for one.
    pub(crate) fn unlogged(&self) -> Option<&str> {
        self.unlogged.as_deref()
    }
}

/// Keeps a socket. The flow thread takes it away once this is gone; it may be asleep then.
#[derive(Debug)]
struct Held(Arc<Doorbell>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// The sockets of the process, each with its thread. Clones share them.
#[derive(Clone, Debug)]
pub struct AccessLogs(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// By the index that entries carry; none where a socket was given back.
    sockets: Vec<Option<Socket>>,
    /// Those that every listener logs to.
    of_all: SinkSet,
    doorbell: Arc<Doorbell>,
    /// A copy is with each thread until it ends; `None` once no more may start.
    alive: Option<SyncSender<()>>,
    /// Listeners that ask for a socket and have none.
    unlogged: usize,
}

#[derive(Debug)]
struct Socket {
    /// None when the process ends.
    sink: Option<Sink>,
    counters: Arc<SocketCounters>,
    /// Who may log to it.
    held: Weak<Held>,
    of_all: bool,
}

impl Socket {
    fn is_held(&self) -> bool {
        self.of_all || self.held.strong_count() > 0
    }
}

impl AccessLogs {
    /// Most sockets: a set of them is one word.
    const MAX: usize = u64::BITS as usize;

    /// No sockets yet.
    pub(in crate::flow) fn new(doorbell: Arc<Doorbell>) -> Self {
        let (sockets, of_all) = (Vec::new(), SinkSet::default());
        Self(Arc::new(Mutex::new(State { sockets, of_all, doorbell, alive: None, unlogged: 0 })))
    }

    /// From here on sockets can be opened; each thread drops its copy of `alive` when it has sent everything.
    pub(in crate::flow) fn start(&self, alive: SyncSender<()>) {
        self.lock().alive = Some(alive);
    }

    /// Has every listener log to the socket at `path` until the process ends; listeners that exist already do not.
    ///
    /// # Errors
    /// There are too many sockets, the system gives no thread, or the process ends.
    pub(in crate::flow) fn open_for_all(&self, path: &Path) -> Result<(), FlowError> {
        let mut state = self.lock();
        let index = state.open(path)?;
        if let Some(socket) = &mut state.sockets[index] {
            socket.of_all = true;
        }
        state.of_all = state.of_all.with(SinkSet::of(index));
        Ok(())
    }

    /// Where a listener logs: to its own socket, if it names one, and to those of all listeners. Nothing is connected before there
    /// is something to send.
    pub(crate) fn of_listener(&self, own: Option<&Path>) -> ListenerLog {
        let mut state = self.lock();
        let all = ListenerLog { sinks: state.of_all, ..ListenerLog::default() };
        let Some(path) = own else { return all };
        match state.open(path).map(|index| (index, state.hold(index))) {
            Ok((index, held)) => ListenerLog { sinks: all.sinks.with(SinkSet::of(index)), _held: held, unlogged: None },
            Err(error) => ListenerLog { unlogged: Some(error.to_string().into()), ..all },
        }
    }

    /// Whether a listener with a socket of its own at `path` would get it.
    pub(crate) fn has_place(&self, path: &Path) -> bool {
        let state = self.lock();
        state.alive.is_some() && (state.at(path).is_some() || state.free().is_some())
    }

    /// Notes how many listeners ask for a socket and have none.
    pub(crate) fn set_unlogged(&self, listeners: usize) {
        self.lock().unlogged = listeners;
    }

    /// How many listeners ask for a socket and have none.
    pub fn unlogged(&self) -> usize {
        self.lock().unlogged
    }

    /// What happened at each socket.
    pub fn counters(&self) -> Vec<Arc<SocketCounters>> {
        self.lock().sockets.iter().flatten().map(|socket| Arc::clone(&socket.counters)).collect()
    }

    /// Hands the entries to the threads of their sockets, or loses and counts them. Never blocks for long.
    pub(in crate::flow) fn offer(&self, entries: &mut Vec<Entry>) {
        let state = self.lock();
        let sinks: Vec<_> =
            state.sockets.iter().map(|socket| socket.as_ref().and_then(|socket| socket.sink.as_ref())).collect();
        let mut batches: Vec<Vec<Entry>> = sinks.iter().map(|_| Vec::new()).collect();
        for entry in entries.drain(..) {
            for (index, sink) in sinks.iter().enumerate().filter(|(index, _)| entry.sinks.contains(*index)) {
                if sink.is_some_and(|sink| sink.admits(&entry)) {
                    batches[index].push(entry.clone());
                }
            }
        }
        for (sink, batch) in sinks.into_iter().zip(batches) {
            if let Some(sink) = sink {
                sink.offer(batch);
            }
        }
    }

    /// The sockets that nobody logs to any more. What was logged to them before is in the rings of the workers now.
    pub(in crate::flow) fn unheld(&self) -> SinkSet {
        let state = self.lock();
        let sockets = state.sockets.iter().enumerate().filter_map(|(index, socket)| Some((index, socket.as_ref()?)));
        let unheld = sockets.filter(|(_, socket)| !socket.is_held());
        let set = unheld.fold(SinkSet::default(), |set, (index, _)| set.with(SinkSet::of(index)));
        // Pairs with the release of the last copy: what its holder sent before is seen from here on.
        fence(Ordering::Acquire);
        set
    }

    /// Gives back those of `sockets` that nobody holds; to be called once everything that was logged to them has been offered.
    pub(in crate::flow) fn give_back(&self, sockets: SinkSet) {
        if sockets.is_empty() {
            return;
        }
        let mut state = self.lock();
        for (index, place) in state.sockets.iter_mut().enumerate().filter(|(index, _)| sockets.contains(*index)) {
            let given_back = place.take_if(|socket| !socket.is_held()).and_then(|socket| socket.sink);
            if let Some(sink) = given_back {
                tracing::debug!(place = index, "the socket of an access log is given back");
                sink.end();
            }
        }
    }

    /// Ends the threads, once each has sent what it has.
    pub(in crate::flow) fn close(&self) {
        let mut state = self.lock();
        state.alive = None;
        state.sockets.iter_mut().flatten().for_each(|socket| drop(socket.sink.take()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn at(&self, path: &Path) -> Option<usize> {
        self.sockets.iter().position(|socket| socket.as_ref().is_some_and(|socket| socket.counters.path == path))
    }

    /// The first index without a socket.
    fn free(&self) -> Option<usize> {
        let first = self.sockets.iter().position(Option::is_none).unwrap_or(self.sockets.len());
        (first < AccessLogs::MAX).then_some(first)
    }

    /// The index of the socket at `path`, whose thread is started if there is none yet.
    fn open(&mut self, path: &Path) -> Result<usize, FlowError> {
        if let Some(index) = self.at(path) {
            return Ok(index);
        }
        let alive = self.alive.clone().ok_or(FlowError::Ending)?;
        let too_many = || FlowError::TooManySockets { path: path.to_owned(), most: AccessLogs::MAX };
        let index = self.free().ok_or_else(too_many)?;
        let sink = Sink::start(path, alive)?;
        let socket = Socket { counters: sink.counters(), sink: Some(sink), held: Weak::new(), of_all: false };
        match self.sockets.get_mut(index) {
            Some(place) => *place = Some(socket),
            None => self.sockets.push(Some(socket)),
        }
        Ok(index)
    }

    /// Keeps a socket, also one that was about to be given back.
    fn hold(&mut self, index: usize) -> Option<Arc<Held>> {
        let doorbell = Arc::clone(&self.doorbell);
        let socket = self.sockets.get_mut(index)?.as_mut()?;
        let held = socket.held.upgrade().unwrap_or_else(|| Arc::new(Held(doorbell)));
        socket.held = Arc::downgrade(&held);
        Some(held)
    }
}

#[cfg(test)]
pub(super) mod tests;
