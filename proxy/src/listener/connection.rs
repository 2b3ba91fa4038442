//! One downstream connection: what it is, for as long as it lives. What policy says about it is in `judge`.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate_policy::{Direction, EndpointKey, REDACTED, SecurityId};
use tollgate_schedule::{Group, GroupKey, Work, mark};

use super::handover::Leave;
use super::identities::{AcceptedEnds, Barred, Ends, Identities, Remembered};
use super::judge::ANYBODY;
use super::present::Present;
use crate::config;
use crate::control::World;
use crate::flow::{Fields, FlowRecord, FlowSender, ListenerLog, LogTarget, OpenFlow, Outcome, Protocol};
use crate::http::Buffer;
use crate::http::h1::Owed;
use crate::metrics::ListenerSeries;
use crate::reason::Reason;
use crate::tenant::{Limited, Lines, LocalEnd, MemoryStep, Payer, Settings, TenantId, WouldLimit};
use crate::worker::{Idle, Signals, State, Subscription, Worker};

/// A listener as a worker sees it.
#[derive(Debug)]
pub(crate) struct ListenerContext {
    /// Shared by all workers; each counts references only where connections change threads.
    pub(crate) config: Arc<config::Listener>,
    /// The listener's name, in the form that records share.
    pub(crate) name: Arc<str>,
    /// Where its connections are counted.
    pub(crate) series: ListenerSeries,
    /// What its connections react to.
    pub(crate) signals: Rc<Signals>,
    /// Where its requests are logged.
    pub(crate) access_log: ListenerLog,
}

impl ListenerContext {
    /// The same for a listener that is taken out: what it holds for connections to come is given back when those that are open have
    /// ended, which keep it themselves.
    pub(super) fn taken_out(&self) -> Self {
        Self {
            config: Arc::clone(&self.config),
            name: Arc::clone(&self.name),
            series: self.series.let_go(),
            signals: Rc::clone(&self.signals),
            access_log: ListenerLog::default(),
        }
    }
}

/// A downstream connection. Policy and identities are read anew for each decision; nothing of them is kept.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) listener: Rc<ListenerContext>,
    pub(crate) downstream: SocketAddr,
    pub(crate) original_dst: SocketAddr,
    /// For the connection's own task. A task that serves a part of it, an HTTP/2 stream, needs one of its own.
    subscription: Subscription,
    /// Whose policy is enforced.
    endpoint: EndpointKey,
    /// Where its flows are logged.
    log: Option<LogTarget>,
    remembered: Remembered,
    /// Who pays, as of the moment in `charged_at`.
    pub(crate) payer: Rc<Payer>,
    charged_at: Cell<(u64, u64)>,
    /// Requests that have come on it.
    requests: Cell<u32>,
    /// Whether it waits for its client.
    pub(crate) idle: Idle,
    /// Whether its client waits for the answer to a request of HTTP/1.
    pub(crate) owed: Owed,
    /// Until a record says so.
    would_limit: Cell<WouldLimit>,
    /// In which its tasks run: those of the same tenant and remote identity share.
    group: Group,
}

/// What a connection takes along to another thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Carried {
    ends: AcceptedEnds,
    /// Requests that it had so far.
    requests: u32,
    /// What its first record is to say.
    would_limit: WouldLimit,
}

impl Connection {
    pub(crate) fn new(
        worker: &Rc<Worker>,
        listener: &Rc<ListenerContext>,
        downstream: SocketAddr,
        original_dst: SocketAddr,
    ) -> Self {
        Self::on_account(worker, listener, downstream, original_dst, Payer::accept, Carried::default())
    }

    /// One that another thread has accepted.
    pub(crate) fn resume(
        worker: &Rc<Worker>,
        listener: &Rc<ListenerContext>,
        downstream: SocketAddr,
        original_dst: SocketAddr,
        carried: Carried,
    ) -> Self {
        Self::on_account(worker, listener, downstream, original_dst, Payer::resume, carried)
    }

    fn carried(&self) -> Carried {
        let (requests, would_limit) = (self.requests.get(), self.would_limit.get());
        Carried { ends: self.remembered.carried(), requests, would_limit }
    }

    fn on_account(
        worker: &Rc<Worker>,
        listener: &Rc<ListenerContext>,
        downstream: SocketAddr,
        original_dst: SocketAddr,
        charge: fn(&Rc<FlowSender>, &Rc<Lines>, TenantId, &Settings) -> Rc<Payer>,
        carried: Carried,
    ) -> Self {
        let config = &listener.config;
        let endpoint = local_end(config, downstream, original_dst);
        let endpoint_key = EndpointKey::from(endpoint);
        let world = worker.world.load();
        let tenant = tenant_of(&world, &endpoint_key);
        let payer = charge(&worker.flows, &worker.lines, tenant, world.tenants.settings(tenant));
        Self {
            group: worker.groups.of_connection(tenant, remote_end(config, downstream, original_dst)),
            worker: Rc::clone(worker),
            listener: Rc::clone(listener),
            downstream,
            original_dst,
            subscription: listener.signals.subscribe(),
            idle: Idle::of(&worker.idle, &payer),
            payer,
            charged_at: Cell::new((world.generation, 0)),
            endpoint: endpoint_key,
            log: (!listener.access_log.sinks().is_empty()).then_some(LogTarget {
                sinks: listener.access_log.sinks(),
                endpoint,
                proxy_id: config.proxy_id,
            }),
            remembered: Remembered::resume(carried.ends),
            requests: Cell::new(carried.requests),
            would_limit: Cell::new(carried.would_limit),
            owed: Owed::default(),
        }
    }

    /// Counts a request that has come.
    pub(crate) fn count_request(&self) {
        self.requests.set(self.requests.get().saturating_add(1));
    }

    /// Whether it takes no request after those that have come: its listener drains, or it has had as many as it may.
    pub(crate) fn is_ending(&self) -> bool {
        let most = self.listener.config.http.max_requests_per_connection;
        self.listener.signals.state().draining || (most > 0 && self.requests.get() >= most)
    }

    /// Who pays for the connection. Looked up again when anything has changed that it depends on, for all accounts: those of
    /// an idle connection, too, whose task is woken for it.
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant_in(&self.worker.world.load())
    }

    /// Takes a place for the connection; to be asked once, where it is accepted. Others of its tenant that wait for their clients
    /// make room for it.
    ///
    /// # Errors
    /// The limit of its tenant that it would exceed.
    pub(super) fn admit(&self) -> Result<(), Limited> {
        let world = self.worker.world.load();
        let tenant = self.tenant_in(&world);
        self.worker.make_room_in_memory_of(tenant);
        let admitted = self.payer.admit(&world.tenants, || self.remote_identity(&world));
        if let Some(places) = self.payer.gate(&world.tenants).connections() {
            self.worker.make_room_of(&self.payer, places);
        }
        admitted.map(|would_limit| self.would_limit.set(would_limit))
    }

    /// The remote identity, as far as its address tells.
    fn remote_identity(&self, world: &World) -> Option<u32> {
        Some(self.remembered.remote(&self.ends(world))?.0)
    }

    fn tenant_in(&self, world: &World) -> TenantId {
        let moment = self.moment_in(world);
        if self.charged_at.replace(moment) != moment {
            let _work = mark(Work::Config);
            let tenant = tenant_of(world, &self.endpoint);
            self.payer.follow(tenant, world.tenants.settings(tenant));
            self.idle.follow(tenant);
            self.group.set_key(GroupKey { tenant, ..self.group.key() });
        }
        self.payer.tenant()
    }

    /// Waits until it is told to make room for others, and leaves a record of that. It has to end then.
    pub(crate) async fn reaped(&self, protocol: Protocol) -> Reason {
        self.record_end(protocol, self.idle.told().await)
    }

    /// The same for one that is at work; see [`Idle::told_at_work`].
    pub(crate) async fn reaped_at_work(&self, protocol: Protocol) -> Reason {
        self.record_end(protocol, self.idle.told_at_work().await)
    }

    fn record_end(&self, protocol: Protocol, (idle, reason): (Duration, Reason)) -> Reason {
        let began = Instant::now().checked_sub(idle).unwrap_or_else(Instant::now);
        self.open_flow(protocol, began).finish(Outcome::Denied, Some(reason));
        reason
    }

    /// Whether its tenant is short of memory.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        self.payer.memory_step() >= MemoryStep::Shrink
    }

    /// A number that is another once anything has changed that decisions about this connection depend on: the world, or
    /// what an end's address carries.
    pub(crate) fn moment(&self) -> (u64, u64) {
        self.moment_in(&self.worker.world.load())
    }

    pub(super) fn moment_in(&self, world: &World) -> (u64, u64) {
        (world.generation, self.remembered.epoch())
    }

    /// Waits until something has changed that decisions about this connection depend on, or the process is to end. For the
    /// connection's own task.
    pub(crate) async fn changed(&self) -> State {
        self.changed_since(&self.subscription).await
    }

    /// A subscription for a task that serves a part of the connection.
    pub(crate) fn subscribe(&self) -> Subscription {
        self.listener.signals.subscribe_for(self.concerns())
    }

    /// A number that is another once something has changed that concerns this connection among few: who its ends are, or on
    /// which thread it belongs.
    fn concerns(&self) -> u64 {
        self.remembered.epoch().wrapping_mul(2) + u64::from(self.is_misplaced())
    }

    /// Whether its tenant is on the other side: the lane, or the worker.
    pub(crate) fn is_misplaced(&self) -> bool {
        self.worker.side.as_ref().is_some_and(|side| side.is_misplaced(self.payer.tenant()))
    }

    /// The way to the thread where it belongs, if that is another one and it may go there. What drains stays.
    pub(crate) fn way(&self) -> Option<Leave<'_>> {
        let side = self.worker.side.as_ref()?;
        let leaves = self.is_misplaced() && !self.listener.signals.state().draining;
        Some(Leave { way: leaves.then(|| side.way()).flatten()?, carried: self.carried() })
    }

    /// As [`Connection::changed`], for the task whose subscription it is.
    pub(crate) async fn changed_since(&self, subscription: &Subscription) -> State {
        let state = subscription.changed_for(|| self.concerns()).await;
        self.tenant();
        state
    }

    /// Who is at both ends now.
    ///
    /// # Errors
    /// That cannot be told, or it ends the connection.
    pub(super) fn identities(&self, world: &World) -> Result<Identities, Barred> {
        let identities = self.remembered.identities(&self.ends(world));
        let remote = identities.map_or(SecurityId(0), |identities| match self.listener.config.direction {
            Direction::Ingress => identities.source,
            Direction::Egress => identities.destination,
        });
        // A list may give a number that large to an identity.
        self.group.set_key(GroupKey { tenant: self.tenant_in(world), flow: remote.0 & !GroupKey::NEWCOMER });
        self.payer.set_flow(remote.0);
        identities
    }

    fn ends<'a>(&'a self, world: &'a World) -> Ends<'a> {
        Ends {
            worker: &self.worker,
            world,
            direction: self.listener.config.direction,
            downstream: self.downstream,
            original_dst: self.original_dst,
            endpoint: &self.endpoint,
        }
    }

    /// An empty buffer, at its tenant's expense.
    pub(crate) fn buffer(&self) -> Buffer {
        Buffer::new(&self.worker.buffers, &self.payer)
    }

    /// Starts a task that serves a part of the connection, at its tenant's expense.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.group.spawn(task).detach();
    }

    /// The same, and begins to serve it at once: only from a task of the connection.
    pub(crate) fn spawn_polled(&self, task: impl Future<Output = ()> + 'static) {
        self.group.spawn_polled(task).detach();
    }

    /// In which its tasks run.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// Whose policy is enforced.
    pub(super) fn endpoint(&self) -> &EndpointKey {
        &self.endpoint
    }

    /// The world of this moment, and who is at both ends in it: for one decision, all parts of which agree.
    pub(crate) fn present(&self) -> Present<'_> {
        Present::new(self)
    }

    /// A record that begins at `started`, with what is known about every flow of this connection.
    pub(crate) fn open_flow(&self, protocol: Protocol, started: Instant) -> OpenFlow {
        self.present().open_flow(protocol, started)
    }

    /// Opens the flow of this record, on the account of whoever pays for the connection.
    pub(super) fn begin(&self, record: FlowRecord, started: Instant) -> OpenFlow {
        let protocol = record.protocol;
        let mut flow = OpenFlow::started_at(Rc::clone(&self.worker.flows), record, started);
        flow.charge_to(&self.payer, protocol);
        flow.measure(&self.group);
        flow.note_would_limit(self.would_limit.take());
        if let Some(log) = self.log {
            flow.log_to(log);
        }
        flow
    }

    /// Fields of a request's head as an access log may show them: without values of fields that may hold a secret.
    pub(crate) fn loggable(&self, each: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]))) -> Fields {
        let world = self.worker.world.load();
        let secret = world.policy.secret_fields(&self.flow(ANYBODY));
        let may_be_secret = |name: &[u8]| {
            let name = name.to_ascii_lowercase();
            secret.iter().any(|names| names.binary_search_by(|known| known.as_bytes().cmp(&name)).is_ok())
        };
        let mut fields = Fields::default();
        each(&mut |name, value| {
            let redacted = !secret.is_empty() && may_be_secret(name);
            fields.push(name, if redacted { REDACTED } else { value });
        });
        fields
    }

    /// Whether the flow would come back to one of our own listeners. Behind a wildcard address every destination with the
    /// listener's port could be our own, so all of them count.
    pub(crate) fn is_loop(&self) -> bool {
        let own = |address: &SocketAddr| {
            address.port() == self.original_dst.port()
                && (address.ip().is_unspecified() || address.ip() == self.original_dst.ip())
        };
        self.listener.config.upstream == config::Upstream::OriginalDst
            && self.worker.own_addresses.borrow().iter().any(own)
    }
}

/// The address of the local endpoint.
fn local_end(config: &config::Listener, downstream: SocketAddr, original_dst: SocketAddr) -> IpAddr {
    config.endpoint.unwrap_or_else(|| match config.direction {
        Direction::Ingress => original_dst.ip(),
        Direction::Egress => downstream.ip(),
    })
}

/// The address at the other end.
const fn remote_end(config: &config::Listener, downstream: SocketAddr, original_dst: SocketAddr) -> IpAddr {
    match config.direction {
        Direction::Ingress => downstream.ip(),
        Direction::Egress => original_dst.ip(),
    }
}

/// Who would pay for a connection with these addresses.
pub(super) fn tenant_of_accepted(
    worker: &Worker,
    config: &config::Listener,
    downstream: SocketAddr,
    original_dst: SocketAddr,
) -> TenantId {
    tenant_of(&worker.world.load(), &EndpointKey::from(local_end(config, downstream, original_dst)))
}

/// Who pays for what comes to or from a local endpoint. Only the kernel's addresses have a say.
pub(crate) fn tenant_of(world: &World, endpoint: &EndpointKey) -> TenantId {
    let address = match endpoint {
        EndpointKey::Address(address) => Some(*address),
        EndpointKey::Name(_) => None,
    };
    let number = world.policy.endpoint(endpoint).next().map(|policy| policy.endpoint_id());
    let end = LocalEnd { endpoint: number, address };
    // An identity that cannot be looked up puts nobody into a group.
    world.tenants.tenant(end, |address| world.identities.address(address).ok().flatten())
}
