//! Starts the worker threads and ends them.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use tokio::sync::{Notify, mpsc, watch};

use crate::config::Limits;
use crate::control::WorldStore;
use crate::flow::FlowSender;
use crate::http::BufferPool;
use crate::identity::sweep;
use crate::listener::serving::{CUT, Command, Serving};
use crate::readiness::Pending;
use crate::worker::{Accounts, ConnectionSlots, Groups, State, Worker, run_tasks};

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
    pub(super) limits: Limits,
    /// Whether tenants share the worker's time.
    pub(super) fairness: bool,
    /// Which listeners to serve.
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) phase: watch::Receiver<Phase>,
    /// Dropped when it serves the listeners of the configuration.
    pub(super) starting: Pending,
    /// Dropped when the thread ends.
    pub(super) ended: mpsc::Sender<Infallible>,
}

/// Starts a worker. The thread ends when the phase says so and its connections are done.
pub(super) fn start(seed: Seed) -> io::Result<thread::JoinHandle<io::Result<()>>> {
    thread::Builder::new().name(format!("worker-{}", seed.index)).spawn(move || run(seed))
}

fn run(seed: Seed) -> io::Result<()> {
    let _ended = seed.ended.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.inspect_err(|error| {
        tracing::error!(worker = seed.index, %error, "a worker cannot start; raise the limit of open files");
    })?;
    let fairness = seed.fairness;
    let accounts = Accounts { metrics: seed.flows.metrics().clone(), world: Arc::clone(&seed.world) };
    // Every task that is left is dropped then: their sockets close and their records are sent.
    run_tasks(&runtime, fairness, accounts, |groups| serve(seed, groups))
        .ok_or_else(|| io::Error::other("the worker's own task has panicked, which is a defect of this program"))
}

async fn serve(seed: Seed, groups: Groups) {
    let Seed { world, flows, slots, limits, mut commands, mut phase, starting, .. } = seed;
    let worker = Rc::new(Worker {
        world,
        flows: Rc::new(flows),
        buffers: Rc::new(BufferPool::default()),
        own_addresses: RefCell::default(),
        slots,
        limits,
        groups,
        peers: Rc::default(),
        idle: Rc::default(),
        held: Cell::default(),
        open: Cell::default(),
        all_closed: Notify::new(),
    });
    worker.groups.system.spawn(sweep::run(Rc::clone(&worker))).detach();
    let mut serving = Serving::new(Rc::clone(&worker));
    let mut generation = worker.world.subscribe();
    let mut starting = Some(starting);
    loop {
        let phase_now = *phase.borrow_and_update();
        let state = State {
            generation: *generation.borrow_and_update(),
            draining: phase_now >= Phase::Drain,
            stopping: phase_now == Phase::Stop,
        };
        worker.groups.follow(&worker.world.load().tenants);
        serving.follow(state);
        if state.draining && worker.open.get() == 0 {
            return;
        }
        if state.stopping {
            let all_closed = async {
                while worker.open.get() > 0 {
                    worker.all_closed.notified().await;
                }
            };
            // What has not reset its ends by then is dropped.
            let _ = tokio::time::timeout(CUT, all_closed).await;
            return;
        }
        if commands.is_empty() {
            drop(starting.take());
        }
        tokio::select! {
            changed = generation.changed() => if changed.is_err() { return },
            changed = phase.changed() => if changed.is_err() { return },
            command = commands.recv(), if !commands.is_closed() || !commands.is_empty() => {
                if let Some(command) = command {
                    serving.obey(command).await;
                }
            }
            () = worker.peers.changed() => serving.peers_changed(),
            () = worker.all_closed.notified() => {}
        }
    }
}
