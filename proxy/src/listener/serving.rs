//! The listeners of one worker: taken into service, changed and taken out again while it runs.
//!
//! The control side decides and opens sockets; a worker obeys. A listener that is taken out lets its connections end in
//! order, as a draining process does, and resets what is left when its time is over. One that comes back meanwhile takes
//! up its connections again.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tollgate_schedule::{Group, Task, Work, mark};

use super::accept;
use super::connection::ListenerContext;
use crate::config;
use crate::flow::ListenerLog;
use crate::metrics::{Chore, ListenerSeries};
use crate::worker::{Signals, State, Worker, keep_doing};

/// Time for connections to reset their ends once they are told to stop. They need next to none, but on a node that is busy their tasks
/// may have no turn for long: what has not reset them by then is dropped, and looks like an orderly end.
pub(crate) const CUT: Duration = Duration::from_secs(3);

/// What the control side asks of a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Accept connections on a listener, or go on with other settings.
    Serve(Box<Serve>),
    /// Accept no more, and end what is open.
    Remove {
        /// The listener.
        name: String,
        /// Time for its connections to end.
        drain: Duration,
        done: Done,
    },
}

/// A listener to serve from now on.
#[derive(Debug)]
pub(crate) struct Serve {
    pub(crate) config: Arc<config::Listener>,
    /// Where its connections are counted.
    pub(crate) series: ListenerSeries,
    /// Where its requests are logged.
    pub(crate) access_log: ListenerLog,
    /// Addresses to accept on besides those that stay, each with the sockets of this worker.
    pub(crate) open: Vec<(SocketAddr, Vec<std::net::TcpListener>)>,
    /// Addresses to accept on no longer.
    pub(crate) close: Vec<SocketAddr>,
    pub(crate) done: Done,
}

/// Dropped when a command is carried out; takes the first thing that went wrong with it.
pub(crate) type Done = mpsc::Sender<io::Error>;

/// A listener that a worker serves.
#[derive(Debug)]
pub(crate) struct Served {
    /// What new connections get. Those that are open keep what they were accepted with.
    context: RefCell<Rc<ListenerContext>>,
    signals: Rc<Signals>,
    /// What the process is told.
    process: Cell<State>,
    leaving: Cell<Leaving>,
    /// Until when its accept loops pause.
    paused: Cell<Option<Instant>>,
    /// Tasks of open connections; none in the place of one that was told to end.
    connections: RefCell<Slab<Option<Task<()>>>>,
}

/// How far a listener is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leaving {
    No,
    /// Connections end when their exchanges do.
    Draining,
    /// Connections end now.
    Stopping,
}

impl Served {
    fn new(context: ListenerContext) -> Rc<Self> {
        Rc::new(Self {
            signals: Rc::clone(&context.signals),
            context: RefCell::new(Rc::new(context)),
            process: Cell::default(),
            leaving: Cell::new(Leaving::No),
            paused: Cell::default(),
            connections: RefCell::default(),
        })
    }

    /// What a new connection gets.
    pub(crate) fn context(&self) -> Rc<ListenerContext> {
        Rc::clone(&self.context.borrow())
    }

    /// Notes that an accept loop pauses now. Whether it is the first to: what one of them meets, all do.
    pub(crate) fn begins_pause(&self, pause: Duration) -> bool {
        let now = Instant::now();
        let first = self.paused.get().is_none_or(|until| until <= now);
        if first {
            self.paused.set(Some(now + pause));
        }
        first
    }

    /// For the accept loops.
    pub(crate) fn signals(&self) -> &Rc<Signals> {
        &self.signals
    }

    /// Starts the task of a connection.
    pub(crate) fn spawn(self: &Rc<Self>, group: &Group, task: impl Future<Output = ()> + 'static) {
        // A task begins to run only after this function has returned.
        let key = self.connections.borrow().vacant_key();
        let open = Tracked { served: Rc::clone(self), key };
        let task = group.spawn(async move {
            let _open = open;
            task.await;
        });
        self.connections.borrow_mut().insert(Some(task));
    }

    /// Whether the time for its connections is over, so that none may begin any more: what there is was told, and is cut once.
    pub(super) fn is_stopping(&self) -> bool {
        self.leaving.get() == Leaving::Stopping
    }

    fn follow(&self, process: State) {
        self.process.set(process);
        self.tell();
    }

    fn leave(&self, leaving: Leaving) {
        self.leaving.set(leaving);
        self.tell();
    }

    fn tell(&self) {
        let (process, leaving) = (self.process.get(), self.leaving.get());
        self.signals.set(State {
            generation: process.generation,
            draining: process.draining || leaving >= Leaving::Draining,
            stopping: process.stopping || leaving == Leaving::Stopping,
        });
    }

    /// Ends the connections that did not end themselves.
    fn cut(&self) {
        // They end at their next turn, and leave the list then.
        self.connections.borrow_mut().iter_mut().for_each(|(_, task)| drop(task.take()));
    }
}

/// Takes a connection's task off the list when it ends.
struct Tracked {
    served: Rc<Served>,
    key: usize,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let task = self.served.connections.borrow_mut().try_remove(self.key).flatten();
        // It is ending.
        if let Some(task) = task {
            task.detach();
        }
    }
}

/// All listeners of one worker.
pub(crate) struct Serving {
    worker: Rc<Worker>,
    process: State,
    listeners: HashMap<String, Entry>,
    /// Taken out, and replaced by something that cannot take up their connections.
    replaced: Vec<Entry>,
}

struct Entry {
    served: Rc<Served>,
    /// The accept loops of each address, one for each of its sockets.
    accepting: BTreeMap<SocketAddr, Vec<Task<()>>>,
    /// Ends the connections of a listener that was taken out.
    ending: Option<Task<()>>,
}

impl Serving {
    pub(crate) fn new(worker: Rc<Worker>) -> Self {
        Self { worker, process: State::default(), listeners: HashMap::new(), replaced: Vec::new() }
    }

    /// Tells every connection what the process is told.
    pub(crate) fn follow(&mut self, process: State) {
        let _work = mark(Work::Config);
        self.process = process;
        self.replaced.retain(|entry| !entry.is_over());
        self.listeners.retain(|_, entry| !entry.is_over());
        self.listeners.values().chain(&self.replaced).for_each(|entry| entry.served.follow(process));
    }

    /// What its connections share.
    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// The listener that a connection was accepted by which had these settings, with its present ones.
    pub(super) fn listener_of(&self, config: &Arc<config::Listener>) -> Option<(Rc<Served>, Rc<ListenerContext>)> {
        let mut entries = self.listeners.values().chain(&self.replaced);
        let same = entries.find(|entry| Arc::ptr_eq(&entry.served.context().config, config));
        let entry = same.or_else(|| {
            // It has changed meanwhile, as it may under open connections.
            self.listeners.get(&config.name).filter(|entry| entry.served.context().config.shares_sockets_with(config))
        })?;
        Some((Rc::clone(&entry.served), entry.served.context()))
    }

    /// Wakes the connections that changes of few concern: whose peers' addresses carry other identities than before, or whose
    /// tenant belongs to another thread.
    pub(crate) fn peers_changed(&self) {
        self.listeners.values().chain(&self.replaced).for_each(|entry| entry.served.signals.peers_changed());
    }

    /// Carries out a command. When it returns, new connections are accepted as it says.
    pub(crate) async fn obey(&mut self, command: Command) {
        match command {
            Command::Serve(serve) => self.serve(*serve).await,
            Command::Remove { name, drain, done } => {
                if let Some(entry) = self.listeners.get_mut(&name) {
                    entry.remove(drain, &self.worker).await;
                }
                self.note_own_addresses();
                drop(done);
            }
        }
    }

    async fn serve(&mut self, serve: Serve) {
        let Serve { config, series, access_log, open, close, done } = serve;
        let name = config.name.clone();
        if let Some(entry) = self.listeners.remove(&name) {
            if entry.ending.is_some() && !entry.served.context().config.shares_sockets_with(&config) {
                self.replaced.push(entry);
            } else {
                self.listeners.insert(name.clone(), entry);
            }
        }
        // Each worker has its own copy of the name: a shared reference count would bounce between their caches.
        let name_of_records = Arc::from(config.name.as_str());
        let context = |signals| ListenerContext { name: name_of_records, config, series, signals, access_log };
        let entry = match self.listeners.entry(name) {
            std::collections::hash_map::Entry::Occupied(entry) => {
                let entry = entry.into_mut();
                entry.resume(context).await;
                entry
            }
            std::collections::hash_map::Entry::Vacant(vacant) => {
                let served = Served::new(context(Rc::default()));
                served.follow(self.process);
                vacant.insert(Entry { served, accepting: BTreeMap::new(), ending: None })
            }
        };
        for address in close {
            entry.close(address).await;
        }
        for (address, sockets) in open {
            // Tasks that lost their place here would accept for ever.
            entry.close(address).await;
            // Also without a socket: a lane has none, and has to know a loop when it sees one.
            entry.accepting.entry(address).or_default();
            for socket in sockets {
                match TcpListener::from_std(socket) {
                    Ok(socket) => entry.accept(&self.worker, address, socket),
                    Err(error) => {
                        tracing::error!(%address, %error, "a worker cannot accept from a socket");
                        // Fails only when nobody waits for the outcome, or has the first error already.
                        let _ = done.try_send(error);
                    }
                }
            }
        }
        self.note_own_addresses();
    }

    /// A flow to one of our own listeners is a loop.
    fn note_own_addresses(&self) {
        let addresses = self.listeners.values().flat_map(|entry| entry.accepting.keys().copied());
        *self.worker.own_addresses.borrow_mut() = addresses.collect();
    }
}

impl Entry {
    /// Whether the listener was taken out, and its last connection has ended.
    fn is_over(&self) -> bool {
        self.ending.is_some() && self.served.connections.borrow().is_empty()
    }

    /// Goes on with other settings, for connections to come.
    async fn resume(&mut self, context: impl FnOnce(Rc<Signals>) -> ListenerContext) {
        if let Some(ending) = self.ending.take() {
            ending.cancel().await;
        }
        self.served.context.replace(Rc::new(context(Rc::clone(&self.served.signals))));
        self.served.leave(Leaving::No);
    }

    /// Starts accepting from `socket`.
    fn accept(&mut self, worker: &Rc<Worker>, address: SocketAddr, socket: TcpListener) {
        let metrics = worker.flows.metrics().clone();
        let (of, served, socket) = (Rc::clone(worker), Rc::clone(&self.served), Rc::new(socket));
        let run = move || accept::run(Rc::clone(&of), Rc::clone(&served), Rc::clone(&socket));
        let task = worker.groups.accept.spawn(keep_doing(Chore::Accept, metrics, run));
        self.accepting.entry(address).or_default().push(task);
    }

    /// Closes the sockets of `address`.
    async fn close(&mut self, address: SocketAddr) {
        for task in self.accepting.remove(&address).unwrap_or_default() {
            // A socket is closed when its task is gone, not before.
            task.cancel().await;
        }
    }

    async fn remove(&mut self, drain: Duration, worker: &Worker) {
        while let Some(&address) = self.accepting.keys().next() {
            self.close(address).await;
        }
        self.served.leave(Leaving::Draining);
        let taken_out = self.served.context().taken_out();
        self.served.context.replace(Rc::new(taken_out));
        drop(self.ending.take());
        let (served, metrics) = (Rc::clone(&self.served), worker.flows.metrics().clone());
        let end = move || {
            let served = Rc::clone(&served);
            async move {
                tokio::time::sleep(drain).await;
                served.leave(Leaving::Stopping);
                tokio::time::sleep(CUT).await;
                served.cut();
            }
        };
        self.ending = Some(worker.groups.system.spawn(keep_doing(Chore::End, metrics, end)));
    }
}
