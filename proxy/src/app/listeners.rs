//! The listeners of the process: opened before anything else starts, changed while it runs.
//!
//! Sockets are opened here, so that a failure is known to whoever asked for the listener, and handed to the workers. A
//! change returns when every worker accepts by it.

mod logs;
mod replace;
mod sockets;
#[cfg(test)]
mod tests;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tollgate_net::NetError;
use tollgate_policy::Direction;

use crate::admin::BoundListener;
use crate::config::{self, overlap};
use crate::control::listeners::{Serve as ServeListeners, Unserved};
use crate::flow::{AccessLogs, ListenerLog};
use crate::listener::serving::{Command, Done, Serve};
use crate::metrics::Metrics;
use sockets::Sockets;
pub(super) use sockets::sockets_of_an_address;

/// Why a listener cannot be served as it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListenerError {
    /// A socket cannot be opened.
    #[error(transparent)]
    Open(#[from] NetError),
    /// A worker cannot accept from it.
    #[error("a worker cannot accept connections: {0}; raise the limit of open files")]
    Register(std::io::Error),
    /// Another listener accepts there. The kernel would let both, and split the connections between them: the words are those
    /// of its refusal, which make an agent try another port (`spec/cilium-agent.md`, section 1).
    #[error("cannot listen on {address}: Address already in use by listener {owner} ({held}); choose another port")]
    AddressTaken {
        /// The address asked for.
        address: SocketAddr,
        /// The listener that has it.
        owner: String,
        /// What that one accepts on.
        held: SocketAddr,
    },
    /// It could not be opened with other options, nor as it was.
    #[error("{error}; nor can it be as it was before ({again}), which is tried again and again")]
    Lost {
        /// Why it is not as asked.
        error: Box<Self>,
        /// Why it is not as it was.
        again: Box<Self>,
    },
    /// Somebody else has the name.
    #[error("the configuration has a listener of that name; remove it there or rename it")]
    NameTaken,
}

/// Who asked for a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The configuration file; it stays.
    Configuration,
    /// The control plane.
    ControlPlane,
}

impl Origin {
    /// As `/status` says it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::ControlPlane => "xds",
        }
    }
}

/// A listener in service.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) config: config::Listener,
    pub(super) origin: Origin,
    /// Each address asked for, and the one in use: a port 0 is resolved.
    addresses: Vec<(SocketAddr, SocketAddr)>,
    /// Why it is served without its access log, if it is.
    pub(super) unlogged: Option<String>,
}

impl Open {
    /// The addresses in use.
    pub(super) fn bound(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addresses.iter().map(|(_, bound)| *bound)
    }

    /// Whether it accepts wherever it is to, and logs where it is to.
    fn is_complete(&self) -> bool {
        self.unlogged.is_none()
            && self.config.addresses().all(|address| self.addresses.iter().any(|(asked, _)| *asked == address))
    }

    /// The addresses in use that `next`, which is to take its place, does not want, but one of `all` does.
    fn given_up(&self, next: &config::Listener, all: &[config::Listener]) -> Vec<SocketAddr> {
        let wanted = |held| all.iter().flat_map(config::Listener::addresses).any(|address| overlap(address, held));
        let leaves = |asked: &SocketAddr| !next.addresses().any(|address| address == *asked);
        let given_up = self.addresses.iter().filter(|(asked, bound)| leaves(asked) && wanted(*bound));
        given_up.map(|(_, bound)| *bound).collect()
    }
}

/// A listener that was served and cannot be any more.
#[derive(Clone, Debug)]
struct Lost {
    /// As it was.
    config: config::Listener,
    /// Why it is not as it was asked to be.
    refused: String,
}

/// All listeners. Views read it at any time; one change at a time is made.
#[derive(Debug)]
pub(super) struct Listeners {
    /// First the lanes, which have no sockets but serve what workers hand over: they know a listener before a worker does.
    workers: Vec<mpsc::Sender<Command>>,
    lanes: usize,
    metrics: Arc<Metrics>,
    access_logs: AccessLogs,
    drain_timeout: Duration,
    open: Mutex<Vec<Open>>,
    changing: tokio::sync::Mutex<()>,
    /// Listeners that were served, cannot be any more, and are tried again.
    lost: Mutex<Vec<Lost>>,
    /// Told when there is one.
    loss: Notify,
    /// Told when one is served without its access log.
    unlogged: Notify,
}

impl Listeners {
    /// None yet, for the workers at the other end of `workers`, of which so many, the first, are lanes. `drain_timeout` is what the connections of a listener have
    /// when it is taken out of service.
    pub(super) fn new(
        workers: Vec<mpsc::Sender<Command>>,
        lanes: usize,
        metrics: Arc<Metrics>,
        access_logs: AccessLogs,
        drain_timeout: Duration,
    ) -> Self {
        let (open, changing) = (Mutex::default(), tokio::sync::Mutex::default());
        let (lost, loss, unlogged) = (Mutex::default(), Notify::new(), Notify::new());
        Self { workers, lanes, metrics, access_logs, drain_timeout, open, changing, lost, loss, unlogged }
    }

    /// Opens a listener of the configuration, before the workers run.
    pub(super) fn open_configured(&self, listener: &config::Listener) -> Result<(), ListenerError> {
        let (done, _) = mpsc::channel(1);
        let (open, commands) = self.prepare(listener, Origin::Configuration, Vec::new(), &done)?;
        for (worker, command) in self.workers.iter().zip(commands) {
            // There is room for every listener of the configuration.
            let _ = worker.try_send(command);
        }
        self.note(open);
        Ok(())
    }

    async fn put_dynamic(&self, listener: &config::Listener) -> Result<(), ListenerError> {
        let before = self.named(&listener.name);
        match &before {
            Some(open) if open.origin == Origin::Configuration => return Err(ListenerError::NameTaken),
            Some(open) if open.config == *listener && open.is_complete() => return Ok(()),
            Some(open) if !open.config.shares_sockets_with(listener) => self.replace(open, listener).await?,
            _ => {
                let (done, failed) = mpsc::channel(1);
                let had = before.as_ref().map(|open| open.addresses.clone()).unwrap_or_default();
                let prepared = self.prepare(listener, Origin::ControlPlane, had, &done)?;
                drop(done);
                self.put(prepared, failed).await?;
            }
        }
        match before {
            None => tracing::info!(listener = listener.name, address = %listener.address, "listener in service"),
            Some(_) => tracing::info!(listener = listener.name, address = %listener.address, "listener changed"),
        }
        Ok(())
    }

    /// Has every worker serve what was prepared. One that cannot takes the listener out of service.
    async fn put(
        &self,
        (open, commands): (Open, Vec<Command>),
        mut failed: mpsc::Receiver<std::io::Error>,
    ) -> Result<(), ListenerError> {
        let name = open.config.name.clone();
        self.send(commands).await;
        self.note(open);
        if let Some(error) = failed.recv().await {
            while failed.recv().await.is_some() {}
            self.remove(&name).await;
            return Err(ListenerError::Register(error));
        }
        Ok(())
    }

    /// Has listeners accept no more where they will not, and others will, by `next`. Otherwise an address could not change
    /// hands in one update. Connections go on.
    async fn give_up_addresses(&self, next: &[config::Listener]) {
        for mut open in self.in_service() {
            let new = next.iter().find(|listener| listener.name == open.config.name);
            let Some(new) = new.filter(|_| open.origin == Origin::ControlPlane) else { continue };
            let close = open.given_up(new, next);
            if close.is_empty() {
                continue;
            }
            let (done, mut failed) = mpsc::channel(1);
            let nothing = (0..self.accepting()).map(|_| Vec::new()).collect();
            let log = self.access_log(&open.config);
            open.unlogged = log.unlogged().map(str::to_owned);
            self.send(self.commands(&open.config, &log, nothing, &close, &done)).await;
            drop(done);
            while failed.recv().await.is_some() {}
            open.addresses.retain(|(_, bound)| !close.contains(bound));
            self.note(open);
        }
    }

    /// Opens what `listener` needs beyond the sockets it has, each address as it was asked for and the one in use. Returns what it will be, and what to tell each worker.
    fn prepare(
        &self,
        listener: &config::Listener,
        origin: Origin,
        had: Vec<(SocketAddr, SocketAddr)>,
        done: &Done,
    ) -> Result<(Open, Vec<Command>), ListenerError> {
        let wanted: Vec<_> = listener.addresses().collect();
        let (stay, leave): (Vec<_>, Vec<_>) = had.into_iter().partition(|(asked, _)| wanted.contains(asked));
        let new = wanted.into_iter().filter(|address| !stay.iter().any(|(asked, _)| asked == address));
        let mut sockets = Sockets::new(self.accepting());
        for address in new {
            self.refuse_taken(&listener.name, address)?;
            sockets.open(listener, address)?;
        }
        let addresses = stay.into_iter().chain(sockets.addresses).collect();
        let close: Vec<_> = leave.into_iter().map(|(_, bound)| bound).collect();
        let log = self.access_log(listener);
        let commands = self.commands(listener, &log, sockets.by_worker, &close, done);
        let unlogged = log.unlogged().map(str::to_owned);
        Ok((Open { config: listener.clone(), origin, addresses, unlogged }, commands))
    }

    /// Fails where a listener other than `name` accepts what comes to `address`.
    fn refuse_taken(&self, name: &str, address: SocketAddr) -> Result<(), ListenerError> {
        for open in self.lock().iter().filter(|open| open.config.name != name) {
            if let Some(held) = open.bound().find(|held| overlap(*held, address)) {
                return Err(ListenerError::AddressTaken { address, owner: open.config.name.clone(), held });
            }
        }
        Ok(())
    }

    /// Workers that have sockets.
    fn accepting(&self) -> usize {
        self.workers.len() - self.lanes
    }

    /// What tells each worker to serve `listener` from now on, with its own sockets of `open`.
    fn commands(
        &self,
        listener: &config::Listener,
        access_log: &ListenerLog,
        open: Vec<Vec<(SocketAddr, Vec<TcpListener>)>>,
        close: &[SocketAddr],
        done: &Done,
    ) -> Vec<Command> {
        let series = self.metrics.listener(&listener.name, listener.direction);
        let config = Arc::new(listener.clone());
        let addresses = open.first().map(|of_one| of_one.iter().map(|(address, _)| *address).collect::<Vec<_>>());
        let none = || addresses.iter().flatten().map(|address| (*address, Vec::new())).collect();
        let of_lanes: Vec<_> = (0..self.lanes).map(|_| none()).collect();
        let command = |open| {
            let (config, close, done) = (Arc::clone(&config), close.to_vec(), done.clone());
            let (series, access_log) = (series.clone(), access_log.clone());
            Command::Serve(Box::new(Serve { config, series, access_log, open, close, done }))
        };
        of_lanes.into_iter().chain(open).map(command).collect()
    }

    /// Tells each worker its own. One that has ended serves nothing anyhow.
    async fn send(&self, commands: Vec<Command>) {
        for (worker, command) in self.workers.iter().zip(commands) {
            let _ = worker.send(command).await;
        }
    }

    fn note(&self, open: Open) {
        let mut list = self.lock();
        match list.iter_mut().find(|known| known.config.name == open.config.name) {
            Some(place) => *place = open,
            None => list.push(open),
        }
        self.count_unlogged(&list);
    }

    /// Takes a listener out of service; returns when its sockets are closed.
    async fn remove(&self, name: &str) {
        let (done, mut failed) = mpsc::channel(1);
        for worker in &self.workers {
            let remove = Command::Remove { name: name.to_owned(), drain: self.drain_timeout, done: done.clone() };
            let _ = worker.send(remove).await;
        }
        drop(done);
        while failed.recv().await.is_some() {}
        let mut list = self.lock();
        list.retain(|open| open.config.name != name);
        self.count_unlogged(&list);
    }

    fn named(&self, name: &str) -> Option<Open> {
        self.lock().iter().find(|open| open.config.name == name).cloned()
    }

    /// The listeners in service.
    pub(super) fn in_service(&self) -> Vec<Open> {
        self.lock().clone()
    }

    /// The first listener of that direction, which stands for all of them where one has to be chosen.
    pub(super) fn of_direction(&self, direction: Direction) -> Option<config::Listener> {
        self.lock().iter().find(|open| open.config.direction == direction).map(|open| open.config.clone())
    }

    /// As the admin endpoint shows them.
    pub(super) fn bound(&self) -> Vec<BoundListener> {
        let view = |open: &Open| BoundListener { name: open.config.name.clone(), addresses: open.bound().collect() };
        self.lock().iter().map(view).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServeListeners for Listeners {
    /// A listener that is the same as before is not touched. One with other settings keeps the sockets of addresses that
    /// stay; open connections keep the settings that they were accepted with. An address has one listener: whoever accepts
    /// there keeps it, unless the same update moves it away. One that cannot be served as asked does not get back an address
    /// that another one wanted.
    async fn serve(&self, listeners: &[config::Listener]) -> Vec<Unserved> {
        let _turn = self.changing.lock().await;
        // Whatever was to come back counts no more.
        self.lost().clear();
        let is_gone = |open: &Open| {
            open.origin == Origin::ControlPlane && !listeners.iter().any(|listener| listener.name == open.config.name)
        };
        let gone: Vec<String> =
            self.lock().iter().filter(|open| is_gone(open)).map(|open| open.config.name.clone()).collect();
        for name in gone {
            self.remove(&name).await;
            tracing::info!(listener = name, "listener taken out of service; its connections drain");
        }
        self.give_up_addresses(listeners).await;
        let mut unserved = Vec::new();
        for listener in listeners {
            if let Err(error) = self.put_dynamic(listener).await {
                tracing::error!(listener = listener.name, %error, "listener cannot be served as asked");
                let as_before = self.named(&listener.name).is_some_and(|open| open.origin == Origin::ControlPlane);
                unserved.push(Unserved { name: listener.name.clone(), reason: error.to_string(), as_before });
            }
        }
        unserved
    }
}
