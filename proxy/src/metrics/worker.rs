//! The counters of one worker.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tollgate_policy::Direction;

use crate::flow::{ENDINGS, EntryKind, FlowRecord, Outcome};
use crate::reason::Reason;
use crate::tenant::Ledger;

/// Upper bounds of the request duration histogram, in microseconds; one more bucket is unbounded.
pub(super) const DURATION_BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// Listeners with counters of their own. A control plane names listeners as it likes; the series that they cost are bounded.
pub const MAX_LISTENERS: usize = 62;
/// Those, and one for all others of each direction.
pub(super) const LISTENER_SLOTS: usize = MAX_LISTENERS + 2;

/// Where a listener's connections are counted; see [`super::Metrics::listener`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerIndex(pub(super) usize);

/// Why `accept` failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptErrorKind {
    /// The client had gone before it was accepted (ECONNABORTED and the network errors that `accept` passes on).
    Aborted,
    /// Out of descriptors (EMFILE, ENFILE).
    Descriptors,
    /// Out of memory (ENOBUFS, ENOMEM).
    Memory,
    /// Anything else.
    Other,
}

impl AcceptErrorKind {
    pub(super) const ALL: [(Self, &'static str); 4] = [
        (Self::Aborted, "aborted"),
        (Self::Descriptors, "descriptors"),
        (Self::Memory, "memory"),
        (Self::Other, "other"),
    ];
}

/// A task of a worker beside its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chore {
    /// Accepts from one socket.
    Accept,
    /// Asks about the addresses of open connections.
    Sweep,
    /// Ends the connections of a listener that was taken out of service.
    End,
    /// The worker's own, which all others depend on: the worker ends with it.
    Own,
}

impl Chore {
    pub(super) const ALL: [Self; 4] = [Self::Accept, Self::Sweep, Self::End, Self::Own];

    /// As metrics and log name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Sweep => "identity_sweep",
            Self::End => "listener_end",
            Self::Own => "worker",
        }
    }
}

/// How the search for an upstream connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectResult {
    /// A new connection was made.
    Connected,
    /// An idle one was taken from the pool.
    Reused,
    /// Refused or reset.
    Refused,
    /// No answer in time.
    Timeout,
    /// No route to it.
    Unreachable,
    /// The system refused the mark or the foreign address that the socket needs.
    NotPermitted,
    /// Anything else: out of ports, …
    Failed,
}

impl ConnectResult {
    pub(super) const ALL: [(Self, &'static str); 7] = [
        (Self::Connected, "connected"),
        (Self::Reused, "reused"),
        (Self::Refused, "refused"),
        (Self::Timeout, "timeout"),
        (Self::Unreachable, "unreachable"),
        (Self::NotPermitted, "not_permitted"),
        (Self::Failed, "failed"),
    ];
}

/// A map that identities are looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityMap {
    /// By address.
    Ipcache,
    /// By connection.
    Conntrack,
}

impl IdentityMap {
    pub(super) const ALL: [(Self, &'static str); 2] = [(Self::Ipcache, "ipcache"), (Self::Conntrack, "conntrack")];
}

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupResult {
    /// An identity.
    Found,
    /// No entry.
    NoEntry,
    /// Nothing: the map cannot be read.
    Error,
}

impl LookupResult {
    pub(super) const ALL: [(Self, &'static str); 3] =
        [(Self::Found, "found"), (Self::NoEntry, "no_entry"), (Self::Error, "error")];

    pub(crate) fn of<I, E>(answer: &Result<Option<I>, E>) -> Self {
        match answer {
            Ok(Some(_)) => Self::Found,
            Ok(None) => Self::NoEntry,
            Err(_) => Self::Error,
        }
    }
}

/// A counter with one writer: an add is a load and a store, no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    /// For what is no count.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// For what is a level rather than a count. Nothing is taken away that was not added.
    pub(crate) fn subtract(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Per policy direction.
#[derive(Debug, Default)]
pub(super) struct DirectionCounters {
    /// By [`ENDINGS`].
    pub(super) requests: [Count; ENDINGS.len()],
    pub(super) bytes_up: Count,
    pub(super) bytes_down: Count,
    /// One per bound, then the unbounded one; not cumulative.
    pub(super) duration_buckets: [Count; DURATION_BOUNDS_US.len() + 1],
    pub(super) duration_sum_us: Count,
    /// Answers by the class of their status (1xx first): to what was let through, and to what was denied.
    pub(super) answers: [[Count; 5]; 2],
    /// By [`ConnectResult`].
    pub(super) connects: [Count; ConnectResult::ALL.len()],
}

/// Per listener.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct ListenerCounters {
    pub(super) opened: Count,
    /// Taken over from another thread, which has counted its end.
    pub(super) resumed: Count,
    pub(super) closed: Count,
}

/// Everything one worker counts. Aligned to two cache lines (the adjacent-line prefetcher works in pairs), so that
/// no two workers ever write to the same one.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Counters {
    pub(super) directions: [DirectionCounters; 2],
    pub(super) listeners: Box<[ListenerCounters]>,
    pub(super) refusals: [Count; Reason::ALL.len()],
    pub(super) failures: [Count; Reason::ALL.len()],
    /// What limits in shadow mode let pass.
    pub(super) shadow: [Count; Reason::ALL.len()],
    /// The last upstream socket that needed a privilege did not get it.
    pub(super) upstreams_refused: AtomicBool,
    pub(super) accept_errors: [Count; AcceptErrorKind::ALL.len()],
    /// Panics beside connections.
    pub(super) chores: [Count; Chore::ALL.len()],
    pub(super) source_port_changed: Count,
    pub(super) retries: Count,
    /// By [`IdentityMap`] and [`LookupResult`].
    pub(super) identity_lookups: [[Count; LookupResult::ALL.len()]; IdentityMap::ALL.len()],
    pub(super) identity_changes: Count,
    pub(super) identity_disagreements: Count,
    pub(super) held: Count,
    pub(super) released: Count,
    pub(super) panics: Count,
    /// Finished records, by [`ENDINGS`], lost ones included.
    pub(super) records: [Count; ENDINGS.len()],
    pub(super) records_lost: [Count; ENDINGS.len()],
    /// Entries of the access log, by [`EntryKind`], lost ones included.
    pub(super) log_entries: [Count; 3],
    pub(super) log_entries_lost: [Count; 3],
    /// By tenant.
    pub(super) ledger: Arc<Ledger>,
}

impl Counters {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self {
            directions: Default::default(),
            listeners: (0..LISTENER_SLOTS).map(|_| ListenerCounters::default()).collect(),
            refusals: std::array::from_fn(|_| Count::default()),
            failures: std::array::from_fn(|_| Count::default()),
            shadow: std::array::from_fn(|_| Count::default()),
            upstreams_refused: AtomicBool::new(false),
            accept_errors: Default::default(),
            chores: Default::default(),
            source_port_changed: Count::default(),
            retries: Count::default(),
            identity_lookups: Default::default(),
            identity_changes: Count::default(),
            identity_disagreements: Count::default(),
            held: Count::default(),
            released: Count::default(),
            panics: Count::default(),
            records: Default::default(),
            records_lost: Default::default(),
            log_entries: Default::default(),
            log_entries_lost: Default::default(),
            ledger: Arc::new(ledger),
        }
    }
}

/// A worker's handle on its counters. It may move to the worker's thread once; it is `!Sync`, and all clones must
/// stay on that thread, because an add is not atomic: two writers would lose counts.
#[derive(Clone, Debug)]
pub struct Worker {
    counters: Arc<Counters>,
    one_thread: PhantomData<Cell<()>>,
}

impl Worker {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self { counters, one_thread: PhantomData }
    }

    /// A worker whose counters nobody reads.
    pub fn for_test() -> Self {
        Self::new(Arc::new(Counters::new(Ledger::default())))
    }

    /// Counts a finished flow: one HTTP request, or one connection that was passed as TCP or refused before HTTP.
    /// [`crate::flow::FlowSender::send`] calls it for each record, so that metrics and records always agree.
    pub(crate) fn flow_finished(&self, record: &FlowRecord) {
        let counters = &*self.counters;
        counters.records[record.ending()].increment();
        if let Some(http) = &record.http {
            let direction = self.direction(record.direction);
            direction.requests[record.ending()].increment();
            let bucket = DURATION_BOUNDS_US.partition_point(|&bound| bound < record.duration_us);
            direction.duration_buckets[bucket].increment();
            direction.duration_sum_us.add(record.duration_us);
            let of_denials = usize::from(record.outcome == Outcome::Denied);
            let class = usize::from(http.status / 100).checked_sub(1);
            if let Some(count) = class.and_then(|class| direction.answers[of_denials].get(class)) {
                count.increment();
            }
        }
        if let Some(reason) = record.reason {
            let by_reason = if record.outcome == Outcome::Denied { &counters.refusals } else { &counters.failures };
            by_reason[reason as usize].increment();
        }
    }

    /// Counts what a limit in shadow mode would have refused.
    pub(crate) fn limit_in_shadow(&self, reason: Reason) {
        self.counters.shadow[reason as usize].increment();
    }

    /// Counts a record that is lost, by its [`FlowRecord::ending`].
    pub(crate) fn flow_record_lost(&self, ending: usize) {
        self.counters.records_lost[ending].increment();
    }

    pub(crate) fn log_entry_made(&self, kind: EntryKind) {
        self.counters.log_entries[kind as usize].increment();
    }

    pub(crate) fn log_entry_lost(&self, kind: EntryKind) {
        self.counters.log_entries_lost[kind as usize].increment();
    }

    /// Counts bytes from downstream to upstream.
    pub fn bytes_up(&self, direction: Direction, bytes: u64) {
        self.direction(direction).bytes_up.add(bytes);
    }

    /// Counts bytes from upstream to downstream.
    pub fn bytes_down(&self, direction: Direction, bytes: u64) {
        self.direction(direction).bytes_down.add(bytes);
    }

    /// What tenants use, for whoever else reads it.
    pub(crate) fn shared_ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.counters.ledger)
    }

    /// Counts an accepted connection, and its end when the guard is dropped.
    #[must_use = "the connection counts as open for as long as the guard lives"]
    pub fn connection_opened(&self, listener: ListenerIndex) -> OpenConnection {
        if let Some(counters) = self.counters.listeners.get(listener.0) {
            counters.opened.increment();
        }
        OpenConnection { worker: self.clone(), listener }
    }

    /// Counts a connection that another worker has accepted, until the guard is dropped.
    #[must_use = "the connection counts as open for as long as the guard lives"]
    pub(crate) fn connection_resumed(&self, listener: ListenerIndex) -> OpenConnection {
        if let Some(counters) = self.counters.listeners.get(listener.0) {
            counters.resumed.increment();
        }
        OpenConnection { worker: self.clone(), listener }
    }

    /// Counts a connection that is held for its endpoint's first policy, until the guard is dropped.
    #[must_use = "the connection counts as held for as long as the guard lives"]
    pub fn hold(&self) -> HeldConnection {
        self.counters.held.increment();
        HeldConnection { worker: self.clone() }
    }

    /// Counts the end of a search for an upstream connection.
    pub fn upstream_connect(&self, direction: Direction, result: ConnectResult) {
        self.direction(direction).connects[result as usize].increment();
    }

    /// Notes whether an upstream socket that needed a privilege got it. Returns whether that is news.
    pub fn upstream_permitted(&self, permitted: bool) -> bool {
        // Written only when it changes, since others read it.
        let news = permitted == self.upstreams_are_refused();
        if news {
            self.counters.upstreams_refused.store(!permitted, Ordering::Relaxed);
        }
        news
    }

    fn upstreams_are_refused(&self) -> bool {
        self.counters.upstreams_refused.load(Ordering::Relaxed)
    }

    /// Counts a request that is sent again.
    pub fn upstream_retry(&self) {
        self.counters.retries.increment();
    }

    /// Counts an upstream connection that kept the client's address but not its port.
    pub fn upstream_source_port_changed(&self) {
        self.counters.source_port_changed.increment();
    }

    /// Counts a lookup in a map of the datapath.
    pub fn identity_lookup(&self, map: IdentityMap, result: LookupResult) {
        self.counters.identity_lookups[map as usize][result as usize].increment();
    }

    /// Counts an open connection of which an end is found to carry another identity than before.
    pub fn identity_changed(&self) {
        self.counters.identity_changes.increment();
    }

    /// Counts a connection for which conntrack and the address named different identities at accept.
    pub fn identity_disagreement(&self) {
        self.counters.identity_disagreements.increment();
    }

    /// A task beside connections has panicked.
    pub fn chore_panicked(&self, chore: Chore) {
        self.counters.chores[chore as usize].increment();
    }

    /// Counts a failed `accept`.
    pub fn accept_error(&self, kind: AcceptErrorKind) {
        self.counters.accept_errors[kind as usize].increment();
    }

    /// What is counted by tenant.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.counters.ledger
    }

    /// Counts a connection task that panicked.
    pub fn connection_panicked(&self) {
        self.counters.panics.increment();
    }

    fn direction(&self, direction: Direction) -> &DirectionCounters {
        &self.counters.directions[direction as usize]
    }
}

/// An open downstream connection; see [`Worker::connection_opened`].
#[derive(Debug)]
pub struct OpenConnection {
    worker: Worker,
    listener: ListenerIndex,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(counters) = self.worker.counters.listeners.get(self.listener.0) {
            counters.closed.increment();
        }
    }
}

/// A held connection; see [`Worker::hold`].
#[derive(Debug)]
pub struct HeldConnection {
    worker: Worker,
}

impl Drop for HeldConnection {
    fn drop(&mut self) {
        self.worker.counters.released.increment();
    }
}
