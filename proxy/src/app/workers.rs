//! Starts the worker threads and ends them.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::LocalSet;

use crate::config;
use crate::control::WorldStore;
use crate::flow::FlowSender;
use crate::http::BufferPool;
use crate::listener::accept;
use crate::listener::connection::ListenerContext;
use crate::metrics::ListenerIndex;
use crate::worker::{ConnectionSlots, Signals, State, Worker};

/// Time for connections to reset their ends when the process stops.
const CUT: Duration = Duration::from_millis(100);

/// What the process asks of its workers; it only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Accept and serve.
    Serve,
    /// Accept nothing, end connections when their exchanges end.
    Drain,
    /// Drop everything.
    Stop,
}

/// What one worker thread is started with.
pub(super) struct Seed {
    pub(super) index: usize,
    pub(super) world: Arc<WorldStore>,
    pub(super) flows: FlowSender,
    pub(super) slots: ConnectionSlots,
    pub(super) own_addresses: Arc<[SocketAddr]>,
    /// Each listener with this worker's sockets for it.
    pub(super) listeners: Vec<(config::Listener, Vec<std::net::TcpListener>)>,
    pub(super) phase: watch::Receiver<Phase>,
    /// Dropped when the thread ends.
    pub(super) ended: mpsc::Sender<Infallible>,
}

/// Starts a worker. The thread ends when the phase says so and its connections are done.
pub(super) fn start(seed: Seed) -> io::Result<thread::JoinHandle<io::Result<()>>> {
    thread::Builder::new().name(format!("worker-{}", seed.index)).spawn(move || run(seed))
}

fn run(seed: Seed) -> io::Result<()> {
    let _ended = seed.ended.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, serve(seed))
    // Dropping the set drops every task that is left: their sockets close and their records are sent.
}

async fn serve(seed: Seed) -> io::Result<()> {
    let Seed { world, flows, slots, own_addresses, listeners, mut phase, .. } = seed;
    let signals = Rc::new(Signals::default());
    let worker = Rc::new(Worker {
        world,
        flows: Rc::new(flows),
        buffers: Rc::new(BufferPool::default()),
        signals: Rc::clone(&signals),
        own_addresses,
        slots,
        held: Cell::default(),
        open: Cell::default(),
        all_closed: Notify::new(),
    });
    let mut accepting = Vec::new();
    for (index, (config, sockets)) in listeners.into_iter().enumerate() {
        // Each worker has its own copy of the name: a shared reference count would bounce between their caches.
        let name = Arc::from(config.name.as_str());
        let listener = Rc::new(ListenerContext { config, name, index: ListenerIndex(index) });
        for socket in sockets {
            let socket = TcpListener::from_std(socket)?;
            let run = accept::run(Rc::clone(&worker), Rc::clone(&listener), socket);
            accepting.push(tokio::task::spawn_local(run));
        }
    }
    let mut generation = worker.world.subscribe();
    loop {
        let phase_now = *phase.borrow_and_update();
        let state = State {
            generation: *generation.borrow_and_update(),
            draining: phase_now >= Phase::Drain,
            stopping: phase_now == Phase::Stop,
        };
        signals.set(state);
        if state.draining && worker.open.get() == 0 {
            return Ok(());
        }
        if state.stopping {
            let all_closed = async {
                while worker.open.get() > 0 {
                    worker.all_closed.notified().await;
                }
            };
            // What has not reset its ends by then is dropped.
            let _ = tokio::time::timeout(CUT, all_closed).await;
            return Ok(());
        }
        tokio::select! {
            changed = generation.changed() => if changed.is_err() { return Ok(()) },
            changed = phase.changed() => if changed.is_err() { return Ok(()) },
            () = worker.all_closed.notified() => {}
        }
    }
}
