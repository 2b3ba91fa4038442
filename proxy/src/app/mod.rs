//! Composition root: builds every room in order, wires them together, and ends them in the reverse order.
//!
//! Sockets are opened before any worker starts, so that a process that cannot serve says so and exits. The main thread
//! becomes the control thread; each worker has a thread of its own; one more thread writes flow records.

mod descriptors;
mod listeners;
mod tenants;
#[cfg(test)]
mod tests;
mod views;
mod workers;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use crate::admin::{self, AdminState, Surface};
use crate::config::{Bootstrap, Config, ListenAddress, PolicySource};
use crate::control::directory::Directory;
use crate::control::identities::AgentIdentities;
use crate::control::listeners::{Discovered, ListenerHandler, Report};
use crate::control::memory::{self, Memory};
use crate::control::quota::{self, CpuQuota};
use crate::control::secrets::SecretFiles;
use crate::control::tenants::TenantHandler;
use crate::control::{self, Control, WorldStore};
use crate::flow::{self, FlowLog, FlowSettings, FlowThread};
use crate::lane::Crossing;
use crate::listener::serving::Command;
use crate::metrics::Metrics;
use crate::overhead;
use crate::readiness::{Pending, Readiness};
use crate::tenant::{Pools, RefusedGroup, Registry};
use crate::worker::ConnectionSlots;
use listeners::Listeners;
use views::{ProcessActions, ProcessViews};
use workers::{Phase, Role, Seed, roles};

/// Records that one worker may have waiting for the flow thread.
const FLOW_CAPACITY: usize = 8192;
/// Time for the last flow records to reach their sinks.
const FLOW_SHUTDOWN: Duration = Duration::from_secs(2);

/// Changes what is logged; the error says what would be understood.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What an operator or the system asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// End connections, stay.
    Drain,
    /// End connections, then the process.
    Quit,
}

/// Runs the proxy until it is told to end, then drains.
///
/// # Errors
/// Something that it needs cannot be opened: the message names it and the remedy. Nothing was served then.
pub fn run(mut config: Config, set_log_level: SetLogLevel) -> anyhow::Result<()> {
    let started = Instant::now();
    overhead::count_this_thread(overhead::Kind::Control);
    descriptors::prepare(&mut config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::MAX)
        .on_thread_start(|| overhead::count_this_thread(overhead::Kind::Control))
        .build()
        .context("cannot start the control runtime")?;
    runtime.block_on(async {
        // While there is one, work waits for it where the kernel gives no more threads; without one it would end the process.
        drop(tokio::task::spawn_blocking(|| ()));
        let process = Process::start(config, set_log_level, started)?;
        process.until_ended().await
    })
}

/// The signals that end the process. Listened for before anything is served, so that none kills without draining.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// The running process.
struct Process {
    signals: Signals,
    config: Config,
    readiness: Readiness,
    phase: watch::Sender<Phase>,
    requests: mpsc::Receiver<Request>,
    /// Kept so that the channel stays open where there is no admin endpoint that could ask for anything.
    _requests_open: mpsc::Sender<Request>,
    workers: Vec<JoinHandle<std::io::Result<()>>>,
    /// Closes when the last worker has ended.
    workers_ended: mpsc::Receiver<Infallible>,
    flows: FlowThread,
    /// Admin endpoints and the source of policy; dropped last.
    control_tasks: JoinSet<()>,
}

/// What the endpoints and the source of policy are started with.
struct ControlSide {
    readiness: Readiness,
    metrics: Arc<Metrics>,
    log: Arc<FlowLog>,
    store: Arc<WorldStore>,
    listeners: Arc<Listeners>,
    requests: mpsc::Sender<Request>,
    set_log_level: SetLogLevel,
    started: Instant,
    memory: Arc<Memory>,
    /// Tells workers of looks at memory.
    memory_looked_at: watch::Sender<()>,
    quota: Arc<CpuQuota>,
}

impl Process {
    fn start(config: Config, set_log_level: SetLogLevel, started: Instant) -> anyhow::Result<Self> {
        let signals = Signals {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        };
        let readiness = Readiness::default();
        let lanes = if config.lanes { config.workers } else { 0 };
        let threads = config.workers + lanes;
        let (metrics, worker_metrics) = Metrics::new(threads);
        let metrics = Arc::new(metrics);
        let (commands, received): (Vec<_>, Vec<_>) =
            (0..threads).map(|_| mpsc::channel(config.listeners.len() + 16)).unzip();
        // Before anybody can ask.
        let received = received.into_iter().map(|commands| (commands, readiness.pending("workers"))).collect();
        let (senders, consumer) = flow::channel(worker_metrics, FLOW_CAPACITY);
        let flows = consumer
            .spawn(&FlowSettings {
                sinks: config.access_log.clone(),
                tenants: metrics.tenants().names(),
                ..FlowSettings::default()
            })
            .context("flow records")?;
        metrics.watch_sinks(flows.sinks());
        metrics.watch_access_logs(flows.access_logs());
        metrics.watch_log_memory(flows.memory());
        metrics.watch_readiness(readiness.clone());
        let listeners =
            Listeners::new(commands, lanes, Arc::clone(&metrics), flows.access_logs(), config.drain_timeout);
        let listeners = Arc::new(listeners);
        for listener in &config.listeners {
            listeners.open_configured(listener).with_context(|| format!("listener {}", listener.name))?;
        }

        let sources = control::identities::sources(&config.identities).context("identities")?;
        let memory = Memory::new(config.limits.memory);
        let pools = Pools::of(config.max_connections, config.workers, &config.limits, memory.end().bytes);
        metrics.tenants().limit(Pools { fairness: config.fairness, lanes: config.lanes, ..pools });
        let names = metrics.tenants().names();
        let tenants = Registry::new(metrics.tenants(), config.tenants.clone());
        let store = Arc::new(WorldStore::with_tenants(sources, tenants));
        let ignored = !config.limits.cpu_quota || config.limits.shadow || !config.fairness;
        let quota = CpuQuota::new(ignored, config.workers);
        let quota = Arc::new(quota);
        metrics.watch_cpu_quota(Arc::clone(&quota));
        let (requests, incoming) = mpsc::channel(4);
        let side = ControlSide {
            readiness: readiness.clone(),
            metrics,
            log: flows.log(),
            store: Arc::clone(&store),
            listeners: Arc::clone(&listeners),
            requests: requests.clone(),
            set_log_level,
            started,
            memory,
            memory_looked_at: watch::Sender::new(()),
            quota: Arc::clone(&quota),
        };
        let memory = side.memory_looked_at.subscribe();
        let control_tasks = start_control(&config, side)?;
        let phase = watch::Sender::new(Phase::Serve);
        let (ended, workers_ended) = mpsc::channel(1);
        let threads = roles(config.workers, senders, &names);
        let workers = start_workers(&config, received, threads, (&store, &quota), (&phase, &memory), &ended)?;
        if let Some(Bootstrap { ignored, .. }) = &config.bootstrap {
            tracing::info!(settings = ignored.join(", "), "settings of the bootstrap without effect");
        }
        crate::fault::announce();
        tracing::info!(workers = config.workers, listeners = config.listeners.len(), "serving");
        Ok(Self {
            signals,
            config,
            readiness,
            phase,
            requests: incoming,
            _requests_open: requests,
            workers,
            workers_ended,
            flows,
            control_tasks,
        })
    }

    /// Waits for a reason to end, then drains: not ready, accept nothing, let exchanges end, and cut what is left when
    /// the time is over or a second signal comes.
    async fn until_ended(mut self) -> anyhow::Result<()> {
        let Signals { terminate, interrupt } = &mut self.signals;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                request = self.requests.recv() => match request {
                    Some(Request::Drain) => drain(&self.readiness, &self.phase),
                    Some(Request::Quit) | None => break,
                },
                _ = self.workers_ended.recv(), if *self.phase.borrow() == Phase::Serve => {
                    anyhow::bail!("all workers have ended; see the log for why");
                }
                // Not drained first: what is enforced would be out of date meanwhile, and look healthy.
                panic = panicked(&mut self.control_tasks) => {
                    anyhow::bail!("a control task has panicked, which is a defect of this program: {panic}");
                }
            }
        }
        drain(&self.readiness, &self.phase);
        let deadline = tokio::time::sleep(self.config.drain_timeout);
        tokio::select! {
            _ = self.workers_ended.recv() => {}
            () = deadline => tracing::warn!("connections were still open when the drain time was over"),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        self.phase.send_replace(Phase::Stop);
        let workers = std::mem::take(&mut self.workers);
        let failed =
            tokio::task::spawn_blocking(move || workers.into_iter().any(|worker| !matches!(worker.join(), Ok(Ok(())))));
        let failed = failed.await.unwrap_or(true);
        self.flows.shutdown(FLOW_SHUTDOWN);
        anyhow::ensure!(!failed, "a worker ended with an error; see the log");
        tracing::info!("ended");
        Ok(())
    }
}

/// Waits for a task that panics. Those that only end are not missed.
async fn panicked(tasks: &mut JoinSet<()>) -> JoinError {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            return error;
        }
    }
    std::future::pending().await
}

/// Begins to drain; once is enough.
fn drain(readiness: &Readiness, phase: &watch::Sender<Phase>) {
    if *phase.borrow() == Phase::Serve {
        tracing::info!("draining");
        readiness.start_draining();
        phase.send_replace(Phase::Drain);
    }
}

/// Says what of the configured tenants does not count.
fn warn_of_tenants(tenants: &Registry) {
    for RefusedGroup { origin, reason, .. } in tenants.refused() {
        tracing::warn!("tenant {origin:?}: {reason}");
    }
    let pools = tenants.books().pools();
    let groups = tenants.groups().map(|(_, group)| (&*group.name, group.without_effect(pools)));
    let of_any = ("default", tenants.table().default_settings().without_effect(pools));
    let all = std::iter::once(of_any).chain(groups);
    for problem in all.filter_map(|(name, settings)| control::tenants::without_effect(name, &settings)) {
        tracing::warn!("{problem}");
    }
}

/// Starts the endpoints and the source of policy on the control runtime.
fn start_control(config: &Config, side: ControlSide) -> anyhow::Result<JoinSet<()>> {
    warn_of_tenants(&side.store.tenants());
    let first_policy = side.readiness.pending("first policy");
    let control = Arc::new(Control::new(side.store, side.metrics.control(), first_policy));
    let mut tasks = JoinSet::new();
    if !config.secrets.is_empty() {
        let files = SecretFiles::open(&config.secrets).context("secrets")?;
        control.take_secrets_from(&files);
        tasks.spawn(Arc::clone(&control).follow_secrets(files));
    }
    tasks.spawn(Arc::clone(&control).follow_identity_maps(side.readiness.clone()));
    tasks.spawn(Arc::clone(&control).retry_background());
    let (memory, shadow) = (side.memory, config.limits.shadow);
    control.share_memory(memory.end().bytes.filter(|_| !shadow));
    tasks.spawn(memory::follow(Arc::clone(&control), Arc::clone(&memory), shadow, side.memory_looked_at));
    tasks.spawn(quota::Following::new(Arc::clone(&side.quota)).run());
    let mut streams = None;
    let (report, discovered) = (Report::new(side.readiness.clone()), Discovered::default());
    match &config.policy_source {
        PolicySource::Xds { address, mode } => {
            let first = config.bootstrap.as_ref().map(|bootstrap| bootstrap.mode);
            let client = control::xds::client(&config.node, address, *mode, first, &config.identities.source, &control);
            let client = match config.dynamic_listeners {
                true => {
                    let handler = ListenerHandler::new(Arc::clone(&side.listeners), report.clone(), config.upstream)
                        .with_identities(AgentIdentities::new(&control, &config.identities.source));
                    tasks.spawn(Arc::clone(&side.listeners).retry_lost(report.clone()));
                    side.metrics.watch_discovered_listeners(report.clone());
                    tasks.spawn(Arc::clone(&side.listeners).retry_logs());
                    discovered.subscribe(client, handler)
                }
                false => client,
            };
            let client = match config.tenants_from_xds {
                true => client.subscribe(tollgate_xds::TENANT, TenantHandler::new(&control)),
                false => client,
            };
            side.metrics.watch_streams(client.status());
            streams = Some(client.status());
            tasks.spawn(client.run());
        }
        PolicySource::Directory(path) => {
            let directory = Directory::open(path).context("policies")?;
            tasks.spawn(Arc::clone(&control).follow_directory(directory));
        }
    }
    let views = ProcessViews {
        config: config.clone(),
        control,
        streams,
        listeners: side.listeners,
        report,
        discovered,
        readiness: side.readiness.clone(),
        metrics: Arc::clone(&side.metrics),
        memory,
        quota: side.quota,
    };
    let state = Arc::new(AdminState {
        node: config.node.clone(),
        reported_version: config.reported_version.clone(),
        started: side.started,
        readiness: side.readiness,
        metrics: side.metrics,
        flows: side.log,
        views: Box::new(views),
        actions: Box::new(ProcessActions { requests: side.requests, set_log_level: side.set_log_level }),
        followers: AdminState::follower_slots(),
    });
    serve_endpoints(config, &state, &mut tasks)?;
    Ok(tasks)
}

/// Begins to serve operators.
fn serve_endpoints(config: &Config, state: &Arc<AdminState>, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let tcp = |addresses: &[SocketAddr]| addresses.iter().copied().map(ListenAddress::Tcp).collect();
    let surfaces: [(_, _, Vec<_>); 3] = [
        ("admin", Surface::Admin, config.admin.clone()),
        ("metrics", Surface::Metrics, tcp(&config.metrics)),
        ("health", Surface::Health, tcp(&config.health)),
    ];
    for (name, surface, address) in surfaces
        .into_iter()
        .flat_map(|(name, surface, addresses)| addresses.into_iter().map(move |address| (name, surface, address)))
    {
        let socket = admin::bind(&address).context(name)?;
        tasks.spawn(admin::serve(socket, surface, Arc::clone(state)));
    }
    Ok(())
}

fn start_workers(
    config: &Config,
    // Those of the lanes come first.
    commands: Vec<(mpsc::Receiver<Command>, Pending)>,
    threads: Vec<(Role, Option<Crossing>, flow::FlowSender)>,
    (store, quota): (&Arc<WorldStore>, &CpuQuota),
    (phase, memory): (&watch::Sender<Phase>, &watch::Receiver<()>),
    ended: &mpsc::Sender<Infallible>,
) -> anyhow::Result<Vec<JoinHandle<std::io::Result<()>>>> {
    let slots = ConnectionSlots::new(config.max_connections);
    let mut handles = Vec::new();
    for ((role, crossing, flows), (commands, starting)) in threads.into_iter().zip(commands) {
        let seed = Seed {
            role,
            crossing,
            world: Arc::clone(store),
            flows,
            slots: slots.clone(),
            limits: config.limits,
            fairness: config.fairness,
            quota: quota.of_workers(),
            commands,
            phase: phase.subscribe(),
            memory: memory.clone(),
            starting,
            ended: ended.clone(),
        };
        handles.push(workers::start(seed).context("cannot start a worker thread")?);
    }
    Ok(handles)
}
