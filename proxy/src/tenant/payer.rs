//! On whose account a connection is, and each exchange on it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::account::{LogItem, LogLoss};
use super::bandwidth::{Bandwidth, ByteCeiling};
use super::commons::{Space, Taken};
use super::gate::{Held, WouldLimit};
use super::line::Line;
use super::remotes::Remote;
use super::{
    Account, Charged, Commons, Gate, Head, Ledger, Limited, Lines, MemoryStep, Settings, Table, TenantId, UpstreamPlace,
};
use crate::flow::{FlowRecord, FlowSender, Protocol};
use crate::metrics::Worker as Metrics;
use crate::reason::Reason;

/// Bytes that a connection takes beside its buffers: its task, what it knows, its sockets. Measured
/// (`tests/tests/loopback/memory.rs` holds the sum against what the process grows by), as all constants of this kind.
const CONNECTION: usize = 29 * 512;

/// Most bytes that one record counts as, so that there is a burst for each.
const MAX_LOGGED: usize = 32 * 1024;

/// A connection's place in the accounts. It is the tenant's for as long as it is open, and goes to another when the connection
/// does.
#[derive(Debug)]
pub(crate) struct Payer {
    flows: Rc<FlowSender>,
    lines: Rc<Lines>,
    tenant: Cell<TenantId>,
    /// Its part of what the tenant has: the remote identity, once somebody has asked for it.
    flow: Cell<Option<u32>>,
    /// Where the connection is counted as that identity's.
    remote: Cell<Option<Remote>>,
    /// Whether anything is set for it that limits ask about.
    has_settings: Cell<bool>,
    /// How many bytes it may move, and a number that is another whenever that is or who pays.
    bandwidth: Cell<Option<ByteCeiling>>,
    /// How many bytes of log.
    log: Cell<Option<ByteCeiling>>,
    agreed: Cell<u32>,
    /// It has a place among its tenant's connections.
    placed: Cell<Option<Taken>>,
    /// Bytes that are held for the connection.
    memory: Cell<u64>,
    /// Of them on their way out.
    leaving: Cell<u64>,
}

impl Payer {
    /// Charges an accepted connection to `tenant`.
    pub(crate) fn accept(flows: &Rc<FlowSender>, lines: &Rc<Lines>, tenant: TenantId, settings: &Settings) -> Rc<Self> {
        let payer = Self::resume(flows, lines, tenant, settings);
        payer.with(tenant, |account| account.accepted.increment());
        payer
    }

    /// The same for one that another thread has accepted.
    pub(crate) fn resume(flows: &Rc<FlowSender>, lines: &Rc<Lines>, tenant: TenantId, settings: &Settings) -> Rc<Self> {
        let lines = Rc::clone(lines);
        let (tenant, has_settings) = (Cell::new(tenant), Cell::new(settings.concern_limits()));
        let (bandwidth, agreed) = (Cell::new(ByteCeiling::of_moving(settings)), Cell::default());
        let (flows, log) = (Rc::clone(flows), Cell::new(ByteCeiling::of_log(settings)));
        let (flow, remote, placed) = (Cell::new(None), Cell::new(None), Cell::new(None));
        let (memory, leaving) = (Cell::new(0), Cell::new(0));
        let payer = Rc::new(Self {
            flows,
            lines,
            tenant,
            flow,
            remote,
            has_settings,
            bandwidth,
            log,
            agreed,
            placed,
            memory,
            leaving,
        });
        let at = payer.moment();
        payer.with(payer.tenant(), |account| account.enter(at));
        payer.hold(CONNECTION);
        payer
    }

    /// Charges so many bytes until they are [let go](Self::let_go).
    pub(crate) fn hold(&self, bytes: usize) {
        self.memory.set(self.memory.get() + bytes as u64);
        self.ledger().hold(self.tenant(), bytes as u64);
    }

    /// What was held before no longer is.
    pub(crate) fn let_go(&self, bytes: usize) {
        self.memory.set(self.memory.get().saturating_sub(bytes as u64));
        self.ledger().let_go(self.tenant(), bytes as u64);
        let gone = self.leaving.get().saturating_sub(self.memory.get());
        if gone > 0 {
            self.leaving.set(self.leaving.get() - gone);
            self.ledger().room().left_or_stays(self.tenant(), gone);
        }
    }

    /// Notes that the connection is told to go: others may have what it holds.
    pub(crate) fn leave(&self) {
        let before = self.leaving.replace(self.memory.get());
        self.ledger().room().leave(self.tenant(), self.memory.get().saturating_sub(before));
    }

    /// Takes that back: it has something to do yet.
    pub(crate) fn stay(&self) {
        self.ledger().room().left_or_stays(self.tenant(), self.leaving.replace(0));
    }

    /// Bytes that are held for the connection.
    pub(crate) fn memory(&self) -> u64 {
        self.memory.get()
    }

    /// What is to be done about the memory of its tenant.
    pub(crate) fn memory_step(&self) -> MemoryStep {
        self.ledger().room().step(self.tenant())
    }

    /// Charges so many bytes until the guard is dropped.
    pub(crate) fn hold_for_a_while(self: &Rc<Self>, bytes: usize) -> Charged {
        Charged::new(self, bytes)
    }

    /// Who pays now.
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant.get()
    }

    /// It is of this flow of its tenant.
    pub(crate) fn set_flow(&self, flow: u32) {
        if self.flow.replace(Some(flow)) != Some(flow) {
            self.count_as_remote();
        }
    }

    pub(super) fn flow(&self) -> u32 {
        self.flow.get().unwrap_or_default()
    }

    /// Counts the connection for its remote identity, as long as it has a place.
    fn count_as_remote(&self) {
        let remotes = &self.commons().remotes;
        let flow = self.flow.get().filter(|_| self.placed.get().is_some());
        let now = flow.and_then(|flow| remotes.enter(self.tenant(), flow, Space::Connections));
        if let Some(before) = self.remote.replace(now) {
            remotes.leave(before, Space::Connections);
        }
    }

    /// Connections of the tenant that are its remote identity's.
    pub(crate) fn connections_of_remote(&self) -> Option<u32> {
        let remotes = &self.commons().remotes;
        match self.remote.get() {
            Some(remote) => Some(remotes.count(remote, Space::Connections)),
            None => Some(remotes.of(self.tenant(), self.flow.get()?, Space::Connections)),
        }
    }

    /// Whether both are of one remote identity.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        self.tenant() == other.tenant() && self.flow.get() == other.flow.get()
    }

    /// Takes a place for the connection, which has it for as long as it is open. To be asked once. `identity` tells the remote one, and is
    /// asked when places run short.
    ///
    /// # Errors
    /// The limit of its tenant that it would exceed.
    pub(crate) fn admit(&self, table: &Table, identity: impl Fn() -> Option<u32>) -> Result<WouldLimit, Limited> {
        let of_remote = || {
            self.set_flow(identity()?);
            self.connections_of_remote()
        };
        let gate = self.gate(table);
        self.placed.set(Some(gate.admit_connection(&of_remote)?));
        self.count_as_remote();
        Ok(gate.would_limit())
    }

    /// Lets the place go along with a connection that goes to another thread.
    pub(crate) fn send_place(&self) -> Option<SentPlace> {
        let placed = self.placed.take();
        self.count_as_remote();
        let place = placed.map(|taken| (self.tenant(), taken));
        place.is_some().then(|| SentPlace { commons: Arc::clone(self.metrics().ledger().commons()), place })
    }

    /// Takes over a place that came along.
    pub(crate) fn take_place(&self, mut place: SentPlace) {
        if let Some((tenant, taken)) = place.place.take() {
            self.commons().hand_over(Space::Connections, taken, tenant, self.tenant());
            self.placed.set(Some(taken));
            self.count_as_remote();
        }
    }

    /// Takes a place for a connection to an upstream. It stays this tenant's, also when the connection goes to another.
    ///
    /// # Errors
    /// As [`Payer::admit`].
    pub(crate) fn admit_upstream(
        &self,
        table: &Table,
        destination: SocketAddr,
    ) -> Result<(UpstreamPlace, WouldLimit), Limited> {
        let gate = self.gate(table);
        let place = gate.admit_upstream(destination)?;
        Ok((place, gate.would_limit()))
    }

    /// What limits its tenant.
    pub(crate) fn gate<'a>(&'a self, table: &'a Table) -> Gate<'a> {
        Gate::new(self.tenant(), self.has_settings.get(), table, self.metrics().ledger())
    }

    /// From now on `tenant` pays, with these settings. Exchanges under way follow with their next byte, or their end: what they moved
    /// before stays on the account that it went to.
    pub(crate) fn follow(&self, tenant: TenantId, settings: &Settings) {
        self.has_settings.set(settings.concern_limits());
        let (before, bandwidth) = (self.tenant.replace(tenant), ByteCeiling::of_moving(settings));
        self.log.set(ByteCeiling::of_log(settings));
        if self.bandwidth.replace(bandwidth) != bandwidth || before != tenant {
            self.agreed.set(self.agreed.get().wrapping_add(1));
        }
        if before != tenant {
            if let Some(taken) = self.placed.get() {
                self.commons().hand_over(Space::Connections, taken, before, tenant);
            }
            self.count_as_remote();
            let at = self.moment();
            self.with(before, |account| account.leave(at));
            self.with(tenant, |account| account.enter(at));
            self.ledger().let_go(before, self.memory.get());
            self.ledger().hold(tenant, self.memory.get());
            self.ledger().room().left_or_stays(before, self.leaving.get());
            self.ledger().room().leave(tenant, self.leaving.get());
        }
    }

    /// How many bytes its tenant may move.
    pub(super) fn bandwidth(&self) -> Option<ByteCeiling> {
        self.bandwidth.get()
    }

    /// Another number whenever that has changed, or who pays.
    pub(super) fn agreed(&self) -> u32 {
        self.agreed.get()
    }

    /// Where those wait who move more than this.
    pub(super) fn line(&self, bandwidth: Bandwidth) -> Rc<Line> {
        self.lines.of(self.ledger().commons(), self.tenant(), bandwidth)
    }

    /// Whether so many bytes may go now, which then have gone.
    pub(super) fn may_move(&self, bytes: usize) -> bool {
        let (commons, now) = (self.commons(), Instant::now());
        let may_move = |ceiling: ByteCeiling| {
            commons.standing(self.tenant()).bytes.take(ceiling.bandwidth, commons.since(now), bytes, true)
        };
        self.bandwidth().is_none_or(may_move)
    }

    /// Counts an exchange that is held back.
    pub(super) fn paces(&self) {
        self.with(self.tenant(), |account| account.paced.increment());
    }

    /// Counts, for who paid at the time, for how long one was held back, in microseconds.
    pub(super) fn held_back(&self, tenant: TenantId, time: u64) {
        self.with(tenant, |account| account.paced_us.add(time));
    }

    /// Counts one that would be, were it not for the shadow.
    pub(super) fn would_pace(&self) {
        self.with(self.tenant(), |account| account.shadowed[Reason::TenantBandwidth as usize].increment());
    }

    /// Counts a task of the connection that panicked.
    pub(crate) fn panicked(&self) {
        let tenant = self.tenant();
        self.with(tenant, |account| account.panics.increment());
        let commons = self.commons();
        commons.standing(tenant).panics.note(tenant, commons.since(Instant::now()));
    }

    /// Whether its tenant is kept apart because of panics.
    pub(crate) fn is_kept_apart(&self) -> bool {
        let commons = self.commons();
        commons.standing(self.tenant()).panics.kept_apart(commons.since(Instant::now())).is_some()
    }

    /// A new exchange on the connection.
    pub(crate) fn charge(self: &Rc<Self>, protocol: Protocol) -> Charge {
        let (tenant, is_request) = (self.tenant(), protocol != Protocol::Tcp);
        let (tenant, held, remote) = (Cell::new(tenant), Held::default(), Cell::new(None));
        let charge = Charge { payer: Rc::clone(self), tenant, is_request, held, remote };
        charge.account(|account| charge.begin(account));
        charge
    }

    fn metrics(&self) -> &Metrics {
        self.flows.metrics()
    }

    fn commons(&self) -> &Commons {
        self.metrics().ledger().commons()
    }

    fn ledger(&self) -> &Ledger {
        self.metrics().ledger()
    }

    fn moment(&self) -> u64 {
        self.ledger().moment(Instant::now())
    }

    fn with(&self, tenant: TenantId, count: impl FnOnce(&Account)) {
        if let Some(account) = self.metrics().ledger().account(tenant) {
            count(account);
        }
    }
}

impl Drop for Payer {
    fn drop(&mut self) {
        if let Some(taken) = self.placed.take() {
            self.commons().leave(Space::Connections, taken, self.tenant());
        }
        self.count_as_remote();
        let at = self.moment();
        self.with(self.tenant(), |account| account.leave(at));
        self.ledger().let_go(self.tenant(), self.memory.get());
        self.ledger().room().left_or_stays(self.tenant(), self.leaving.get());
    }
}

/// The place of a connection on its way to another thread; given back if it does not arrive.
#[derive(Debug)]
pub(crate) struct SentPlace {
    commons: Arc<Commons>,
    /// Whose it is, until it has arrived.
    place: Option<(TenantId, Taken)>,
}

impl Drop for SentPlace {
    fn drop(&mut self) {
        if let Some((tenant, taken)) = self.place {
            self.commons.leave(Space::Connections, taken, tenant);
        }
    }
}

/// One exchange, or one connection that is passed as bytes or refused.
#[derive(Debug)]
pub(crate) struct Charge {
    payer: Rc<Payer>,
    /// Whose account it stands on.
    tenant: Cell<TenantId>,
    is_request: bool,
    held: Held,
    /// Where it is counted as its remote identity's.
    remote: Cell<Option<Remote>>,
}

impl Charge {
    /// Takes what its tenant has to have for a request, until the charge ends.
    ///
    /// # Errors
    /// The limit that it would exceed.
    pub(crate) fn admit(&mut self, table: &Table, head: &Head<'_>) -> Result<WouldLimit, Limited> {
        self.follow();
        let remotes = &self.payer.commons().remotes;
        let of_remote = || Some(remotes.count(self.payer.remote.get()?, Space::InFlight));
        let gate = self.payer.gate(table);
        self.held = gate.admit_request(head, &of_remote)?;
        self.count_as_remote();
        Ok(gate.would_limit())
    }

    /// Counts the request for its remote identity, as long as it has a place.
    fn count_as_remote(&self) {
        let remotes = &self.payer.commons().remotes;
        let remote = self.payer.remote.get().filter(|_| self.held.in_flight.is_some());
        let now = remote.and_then(|remote| remotes.add(remote, Space::InFlight));
        if let Some(before) = self.remote.replace(now) {
            remotes.leave(before, Space::InFlight);
        }
    }

    /// Whose account it stands on.
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant.get()
    }

    /// Counts bytes towards the upstream.
    pub(crate) fn add_up(&self, bytes: u64) {
        self.follow();
        self.account(|account| account.bytes_up.add(bytes));
    }

    /// Counts bytes towards the client.
    pub(crate) fn add_down(&self, bytes: u64) {
        self.follow();
        self.account(|account| account.bytes_down.add(bytes));
    }

    /// Counts how it ended, and names who pays in the record.
    pub(crate) fn end(&mut self, record: &mut FlowRecord) {
        self.follow();
        record.tenant = self.tenant.get();
        self.account(|account| {
            if record.http.is_some() {
                account.requests[record.ending()].increment();
            }
            if let Some(reason) = record.reason.filter(|_| record.outcome == crate::flow::Outcome::Denied) {
                account.refusals[reason as usize].increment();
            }
        });
        // Before anybody can see the record.
        self.let_go();
    }

    /// Whether its tenant may log so many bytes; they are on its account then, and else counted as lost. Denials may use a
    /// quarter of the burst that others may not.
    pub(crate) fn may_log(&self, item: LogItem, bytes: impl FnOnce() -> usize) -> bool {
        let Some(ceiling) = self.payer.log.get() else { return true };
        let commons = self.payer.commons();
        let (since, bytes) = (commons.since(Instant::now()), bytes().min(MAX_LOGGED));
        let may = commons.standing(self.tenant.get()).log_bytes.take(ceiling.bandwidth, since, bytes, item.denied);
        if !may {
            self.account(|account| match ceiling.shadow {
                true => account.log_shadowed.increment(),
                false => account.log_lost[LogLoss::Ceiling as usize][item.index()].increment(),
            });
        }
        may || ceiling.shadow
    }

    /// Counts that there was no room for it.
    pub(crate) fn lost_for_room(&self, item: LogItem) {
        self.account(|account| account.log_lost[LogLoss::Room as usize][item.index()].increment());
    }

    fn let_go(&mut self) {
        self.payer.commons().give_back(self.tenant.get(), std::mem::take(&mut self.held));
        self.count_as_remote();
        self.account(|account| self.finish(account));
        self.is_request = false;
    }

    /// Goes where the connection has gone.
    fn follow(&self) {
        let (tenant, before) = (self.payer.tenant(), self.tenant.get());
        if tenant != before {
            self.account(|account| self.finish(account));
            self.payer.commons().hand_over_request(self.held, before, tenant);
            self.count_as_remote();
            self.tenant.set(tenant);
            self.account(|account| self.begin(account));
        }
    }

    fn begin(&self, account: &Account) {
        if self.is_request {
            account.begin();
        }
    }

    fn finish(&self, account: &Account) {
        if self.is_request {
            account.end();
        }
    }

    fn account(&self, count: impl FnOnce(&Account)) {
        self.payer.with(self.tenant.get(), count);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.let_go();
    }
}
