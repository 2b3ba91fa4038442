//! Starts the worker threads and ends them.

use std::convert::Infallible;
use std::io;
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tollgate_schedule::Quota;

use crate::config::Limits;
use crate::control::WorldStore;
use crate::flow::FlowSender;
use crate::identity::sweep;
use crate::lane::{Crossing, Handover, NICER, Watch, crossing};
use crate::listener::serving::{CUT, Command, Serving};
use crate::metrics::Chore;
use crate::readiness::Pending;
use crate::tenant::Names;
use crate::worker::{Accounts, ConnectionSlots, Groups, State, Worker, keep_doing, run_tasks};

/// How long a worker's turns on the processor are to be: the shortest that the kernel gives, and what one poll may take.
const TURN: Duration = Duration::from_micros(100);

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

/// What a thread is.
pub(super) enum Role {
    /// Accepts and serves; with this number. Watches over its lane, if it has one.
    Worker(usize, Option<Watch>),
    /// Serves what the worker of this number hands over.
    Lane(usize),
}

/// What each thread is, the lanes first. There are so many workers; where there are more senders, each has a lane.
pub(super) fn roles(
    workers: usize,
    mut senders: Vec<FlowSender>,
    names: &Names,
) -> Vec<(Role, Option<Crossing>, FlowSender)> {
    let (mut threads, mut to_lanes) = (Vec::new(), Vec::new());
    for (index, flows) in senders.split_off(workers).into_iter().enumerate() {
        let (worker, lane) = crossing();
        to_lanes.push((Watch::new(flows.metrics().shared_ledger(), names.clone()), worker));
        threads.push((Role::Lane(index), Some(lane), flows));
    }
    let mut to_lanes = to_lanes.into_iter();
    threads.extend(senders.into_iter().enumerate().map(|(index, flows)| {
        let (watch, crossing) = to_lanes.next().unzip();
        (Role::Worker(index, watch), crossing, flows)
    }));
    threads
}

/// What one worker thread is started with.
pub(super) struct Seed {
    pub(super) role: Role,
    /// The way between a worker and its lane.
    pub(super) crossing: Option<Crossing>,
    pub(super) world: Arc<WorldStore>,
    pub(super) flows: FlowSender,
    pub(super) slots: ConnectionSlots,
    pub(super) limits: Limits,
    /// Whether tenants share the worker's time.
    pub(super) fairness: bool,
    /// The processor time that it keeps to, together with all others.
    pub(super) quota: Option<Arc<Quota>>,
    /// Which listeners to serve.
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) phase: watch::Receiver<Phase>,
    /// Told after each look at memory that a worker has something to do for.
    pub(super) memory: watch::Receiver<()>,
    /// Dropped when it serves the listeners of the configuration.
    pub(super) starting: Pending,
    /// Dropped when the thread ends.
    pub(super) ended: mpsc::Sender<Infallible>,
}

/// Starts a worker. The thread ends when the phase says so and its connections are done.
pub(super) fn start(seed: Seed) -> io::Result<thread::JoinHandle<io::Result<()>>> {
    let name = match seed.role {
        Role::Worker(index, _) => format!("worker-{index}"),
        Role::Lane(index) => format!("lane-{index}"),
    };
    let readiness = seed.starting.readiness();
    thread::Builder::new().name(name.clone()).spawn(move || {
        let panicked = |_| Err(io::Error::other("it has panicked, which is a defect of this program"));
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(panicked);
        if let Err(error) = &outcome {
            tracing::error!(worker = name, %error, "a worker has ended; the process is not ready any more");
            // For good: nobody begins it anew.
            forget(readiness.pending(format!("{name} (it has ended: {error})")));
        }
        outcome
    })
}

fn run(seed: Seed) -> io::Result<()> {
    let _ended = seed.ended.clone();
    match seed.role {
        Role::Worker(..) => ask_for_short_turns(),
        Role::Lane(_) => {
            if let Err(error) = rustix::process::nice(NICER) {
                tracing::warn!(%error, "a lane cannot step back behind its worker");
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.inspect_err(|error| {
        tracing::error!(%error, "a worker cannot start; raise the limit of open files");
    })?;
    let (fairness, quota) = (seed.fairness, seed.quota.clone());
    let is_watched = matches!(seed.role, Role::Worker(_, Some(_)));
    let accounts = Accounts {
        metrics: seed.flows.metrics().clone(),
        world: Arc::clone(&seed.world),
        arrivals: is_watched.then(Rc::default),
    };
    // Every task that is left is dropped then: their sockets close and their records are sent.
    let metrics = seed.flows.metrics().clone();
    run_tasks(&runtime, fairness, accounts, quota, |groups| serve(seed, groups)).ok_or_else(|| {
        metrics.chore_panicked(Chore::Own);
        io::Error::other("its own task has panicked, which is a defect of this program")
    })
}

/// A worker is due soon after it was woken then, also while its lane or others of the node are busy. It costs them nothing: the worker
/// gets as much as before. A lane asks for nothing, so that it goes last.
fn ask_for_short_turns() {
    match tollgate_net::ask_for_turns_of(TURN) {
        Ok(Some(turn)) => tracing::debug!(?turn, "the kernel gives this worker short turns"),
        Ok(None) => tracing::debug!("this kernel knows no short turns to ask for (Linux 6.12 and later do)"),
        Err(error) => tracing::debug!(%error, "the kernel was not asked for short turns"),
    }
}

async fn serve(seed: Seed, groups: Groups) {
    let Seed { role, crossing, world, flows, slots, limits, mut commands, mut phase, mut memory, starting, .. } = seed;
    let (side, mut incoming) = crossing.map(|crossing| (crossing.side, crossing.incoming)).unzip();
    let mut watch = match role {
        Role::Worker(_, watch) => watch,
        Role::Lane(_) => None,
    };
    let worker = Rc::new(Worker::new((world, flows, slots, limits), groups, side));
    let (metrics, of) = (worker.flows.metrics().clone(), Rc::clone(&worker));
    worker.groups.system.spawn(keep_doing(Chore::Sweep, metrics, move || sweep::run(Rc::clone(&of)))).detach();
    let mut serving = Serving::new(Rc::clone(&worker));
    let mut generation = worker.world.subscribe();
    let (mut starting, mut followed) = (Some(starting), None);
    loop {
        let phase_now = *phase.borrow_and_update();
        let state = State {
            generation: *generation.borrow_and_update(),
            draining: phase_now >= Phase::Drain,
            stopping: phase_now == Phase::Stop,
        };
        serving.follow(state);
        if followed.replace(state.generation) != Some(state.generation) {
            let workers = worker.flows.metrics().ledger().workers();
            worker.groups.follow(&worker.world.load().tenants, workers);
            if watch.as_mut().is_some_and(|watch| watch.look(&worker)) {
                serving.peers_changed();
            }
        }
        if state.draining && worker.open.get() == 0 {
            take_up_the_last(&mut incoming, &serving).await;
            if worker.open.get() == 0 {
                return;
            }
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
            // Nobody looks any more when the process ends.
            Ok(()) = memory.changed() => worker.relieve(),
            () = worker.peers.changed() => serving.peers_changed(),
            handover = arrived(&mut incoming) => {
                // A lane was told of the listener before the worker was, and may not have heard yet.
                while let Ok(command) = commands.try_recv() {
                    serving.obey(command).await;
                }
                serving.take_up(handover);
            }
            () = due(watch.as_ref(), &worker) => if watch.as_mut().is_some_and(|watch| watch.look(&worker)) {
                serving.peers_changed();
            },
            () = placement_changed(&worker), if watch.is_none() => serving.peers_changed(),
            () = worker.all_closed.notified() => {}
        }
    }
}

/// Takes up what is on its way here; from now on the other side keeps what it has.
async fn take_up_the_last(incoming: &mut Option<mpsc::Receiver<Handover>>, serving: &Serving) {
    if let Some(incoming) = incoming {
        incoming.close();
        while let Some(handover) = incoming.recv().await {
            serving.take_up(handover);
        }
    }
}

/// What comes from the other side, if there is one.
async fn arrived(incoming: &mut Option<mpsc::Receiver<Handover>>) -> Handover {
    let handover = match incoming {
        Some(incoming) => incoming.recv().await,
        None => None,
    };
    match handover {
        Some(handover) => handover,
        None => std::future::pending().await,
    }
}

/// When a worker that has a lane has to look at its tenants.
async fn due(watch: Option<&Watch>, worker: &Worker) {
    match watch {
        Some(watch) => watch.due(worker).await,
        None => std::future::pending().await,
    }
}

/// When a lane's tenants have changed.
async fn placement_changed(worker: &Worker) {
    match &worker.side {
        Some(side) => side.changed().await,
        None => std::future::pending().await,
    }
}
