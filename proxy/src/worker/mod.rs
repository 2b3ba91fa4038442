//! A worker: one thread, one current-thread runtime, its own connections, buffers and counters. Nothing in here is shared
//! with another worker but the world (read by one atomic load) and the process-wide connection count.

mod arrivals;
mod chore;
mod groups;
mod held_back;
mod idle;
mod run;
mod signals;
mod slots;
mod waiting;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

pub(crate) use arrivals::Arrivals;
pub(crate) use chore::keep_doing;
pub(crate) use groups::Groups;
pub(crate) use held_back::HeldBack;
pub(crate) use idle::{Idle, IdleConnections};
use idle::{LOOKED_AT, Short, Whose};
pub(crate) use run::{Accounts, run_tasks};
pub(crate) use signals::{Signals, State, Subscription};
use slots::Crowding;
pub(crate) use slots::{ConnectionSlot, ConnectionSlots};
pub(crate) use waiting::Waiting;

use crate::config::{IdleLimits, Limits};
use crate::control::WorldStore;
use crate::flow::FlowSender;
use crate::http::BufferPool;
use crate::identity::Peers;
use crate::lane::Side;
use crate::metrics::Worker as Metrics;
use crate::tenant::{Lines, Part, Payer, Placed as _, Places, Room, TenantId};

/// Bytes of idle connections that are told to go for each connection that comes, beyond what it needs: so that there is room before it
/// is needed.
const MORE_AT_ONCE: u64 = 32 * 1024;

/// What every connection of a worker shares.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) world: Arc<WorldStore>,
    pub(crate) flows: Rc<FlowSender>,
    pub(crate) buffers: Rc<BufferPool>,
    /// Addresses of our own listeners: a flow that would reach one of them is a loop.
    pub(crate) own_addresses: RefCell<Vec<SocketAddr>>,
    pub(crate) slots: ConnectionSlots,
    pub(crate) limits: Limits,
    /// Who is charged for what it does.
    pub(crate) groups: Groups,
    /// What the ipcache says about the addresses of its connections.
    pub(crate) peers: Rc<Peers>,
    pub(crate) idle: Rc<IdleConnections>,
    /// Tasks that wait for memory of their tenants.
    pub(crate) held_back: HeldBack,
    /// Where those wait whose tenants move as many bytes a second as they may.
    pub(crate) lines: Rc<Lines>,
    /// Connections held for a policy now.
    pub(crate) waiting: Waiting,
    /// Connections of this worker open now.
    pub(crate) open: Cell<usize>,
    /// Told when the last of them closes.
    pub(crate) all_closed: Notify,
    /// Told when there is one again.
    pub(crate) opened: Notify,
    /// The lane of this worker, or the worker of this lane.
    pub(crate) side: Option<Side>,
}

#[cfg(test)]
impl Worker {
    /// One without connections, policies and a lane.
    pub(crate) fn for_test(groups: Groups, flows: FlowSender) -> Self {
        let identities = crate::identity::Sources::of_table(crate::identity::IdentityTable::default());
        let world = Arc::new(WorldStore::new(identities));
        Self::new((world, flows, ConnectionSlots::new(1), Limits::default()), groups, None)
    }
}

impl Worker {
    /// What the connections of a thread share that has none yet.
    pub(crate) fn new(
        (world, flows, slots, limits): (Arc<WorldStore>, FlowSender, ConnectionSlots, Limits),
        groups: Groups,
        side: Option<Side>,
    ) -> Self {
        Self {
            world,
            flows: Rc::new(flows),
            buffers: Rc::default(),
            own_addresses: RefCell::default(),
            slots,
            limits,
            groups,
            peers: Rc::default(),
            idle: Rc::default(),
            held_back: HeldBack::default(),
            lines: Rc::default(),
            waiting: Waiting::default(),
            open: Cell::default(),
            all_closed: Notify::new(),
            opened: Notify::new(),
            side,
        }
    }

    /// Counts a connection of this worker until the guard is dropped.
    pub(crate) fn enter(self: &Rc<Self>) -> Open {
        if self.open.replace(self.open.get() + 1) == 0 {
            self.opened.notify_one();
        }
        Open(Rc::clone(self))
    }

    /// Whether a tenant is in the lane.
    pub(crate) fn is_anybody_in_lane(&self) -> bool {
        self.side.as_ref().is_some_and(Side::is_anybody_in_lane)
    }

    /// The memory that tenants of the process share.
    pub(crate) fn room(&self) -> &Room {
        self.flows.metrics().ledger().room()
    }

    /// Does what the control side found when it looked at memory: the largest holders of those who have too much go, and those
    /// who wait look again.
    pub(crate) fn relieve(&self) {
        let ledger = self.flows.metrics().ledger();
        if let Some(limits) = self.idle_limits_in_force() {
            let short = self.room().parts(|place| ledger.taken(place)).filter_map(|(place, part, own)| {
                let crowding = in_memory(part, limits)?;
                // This worker's share of it.
                let bytes = crowding.excess as u128 * u128::from(own) / u128::from(part.used.max(1));
                Some(Short {
                    place,
                    bytes: u64::try_from(bytes).unwrap_or(u64::MAX).min(crowding.excess as u64),
                    share: crowding.share,
                })
            });
            let mut short: Vec<Short> = short.collect();
            if !short.is_empty() {
                self.idle.make_room_in_memory(limits, &mut short, usize::MAX);
            }
        }
        for (place, bytes) in self.room().excess(|place| ledger.taken(place)) {
            self.idle.send_away(place, bytes);
        }
        self.held_back.wake();
    }

    /// Tells idle connections to go, if places run short.
    pub(crate) fn make_room(&self) {
        let Some(limits) = &self.limits.idle_connections else { return };
        let Some(crowding) = self.slots.crowding(limits.above_percent) else { return };
        self.send_away(limits, crowding, &Whose::Anybody);
    }

    /// Tells idle connections of a tenant to go, if those that it may have run short: of the payer's remote identity, if that has most of
    /// what it may have; of those that have more than it and than are free; and else of those that do not have less.
    pub(crate) fn make_room_of(&self, payer: &Payer, places: Places) {
        let Some(limits) = &self.limits.idle_connections else { return };
        let crowding = |Places { taken, allowed }| Crowding::of(taken as usize, allowed as usize, limits.above_percent);
        let of_remote = payer.connections_of_remote().filter(|_| places.taken >= places.allowed / 2);
        if let Some(crowding) = of_remote.and_then(|own| crowding(places.of_remote(own))) {
            self.send_away(limits, crowding, &Whose::Beside(payer));
        }
        if let Some(crowding) = crowding(places) {
            let (own, free) = (of_remote.unwrap_or_default(), places.allowed.saturating_sub(places.taken));
            let send_away =
                |above| self.send_away(limits, crowding, &Whose::Hoarders { tenant: payer.tenant(), above });
            if send_away(own.max(free)) == 0 {
                send_away(own.saturating_sub(1));
            }
        }
    }

    /// Tells idle connections of one tenant to go, if it is short of memory: as much as it takes to be below what it may have, and a
    /// little more.
    pub(crate) fn make_room_in_memory_of(&self, tenant: TenantId) {
        let Some(part) = self.room().part(tenant) else { return };
        let Some(limits) = self.idle_limits_in_force() else { return };
        let Some(Crowding { excess, share }) = in_memory(part, limits) else { return };
        let missing = (part.used + 1).saturating_sub(part.most);
        let bytes = (excess as u64).min(missing + MORE_AT_ONCE);
        self.idle.make_room_in_memory(limits, &mut [Short { place: tenant.place(), bytes, share }], LOOKED_AT);
    }

    fn idle_limits_in_force(&self) -> Option<&IdleLimits> {
        self.limits.idle_connections.as_ref().filter(|_| !self.limits.shadow)
    }

    /// Returns how many.
    fn send_away(&self, limits: &IdleLimits, crowding: Crowding, whose: &Whose<'_>) -> usize {
        let shadow = self.limits.shadow;
        let gone = self.idle.make_room(limits, crowding, whose, shadow);
        if shadow {
            gone.iter().for_each(|reason| self.flows.metrics().limit_in_shadow(*reason));
        }
        gone.len()
    }
}

/// How short a tenant is of memory, if it is.
fn in_memory(part: Part, limits: &IdleLimits) -> Option<Crowding> {
    let bytes = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
    Crowding::of(bytes(part.used), bytes(part.most), limits.above_percent)
}

/// An open connection of a worker.
#[derive(Debug)]
pub(crate) struct Open(Rc<Worker>);

impl Drop for Open {
    fn drop(&mut self) {
        let left = self.0.open.get().saturating_sub(1);
        self.0.open.set(left);
        if left == 0 {
            self.0.all_closed.notify_one();
        }
    }
}

/// Counts the panic, if one is what ends the task that owns it. Every task of a connection has one.
#[derive(Debug)]
pub(crate) struct PanicCount {
    metrics: Metrics,
    payer: Rc<Payer>,
}

impl PanicCount {
    pub(crate) fn new(metrics: &Metrics, payer: &Rc<Payer>) -> Self {
        Self { metrics: metrics.clone(), payer: Rc::clone(payer) }
    }
}

impl Drop for PanicCount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.metrics.connection_panicked();
            self.payer.panicked();
        }
    }
}

#[cfg(test)]
mod tests {
    /// A panic poisons what it holds, and a slow tenant holds up who waits for it: so nothing of this kind is on a worker. The
    /// locks of `tokio::sync` that streams of one connection share are no other connection's.
    #[test]
    fn workers_have_no_locks_that_others_wait_for() {
        let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut left: Vec<_> =
            ["detect", "http", "identity", "lane", "listener", "tcp", "worker"].map(|room| source.join(room)).into();
        let of_tenants = ["account", "commons", "destinations", "gate", "gcra", "payer", "share", "table"];
        left.extend(of_tenants.map(|file| source.join(format!("tenant/{file}.rs"))));
        left.push(source.join("flow/open.rs"));
        let mut files = 0;
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let uses = text.lines().filter(|line| line.starts_with("use std::sync::"));
            let lock =
                uses.into_iter().find(|line| ["Mutex", "RwLock", "Condvar"].iter().any(|lock| line.contains(lock)));
            assert!(lock.is_none(), "{}: {lock:?}", path.display());
            files += 1;
        }
        assert!(files > 50, "{files}");
    }
}
