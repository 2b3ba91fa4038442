//! What one tenant uses of one worker: plain cells with one writer, as all counters of a worker are.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tollgate_schedule::{Account as Scheduled, DELAY_BOUNDS, WORKS};

use super::commons::Commons;
use super::id::{PLACES, Placed as _};
use super::memory::{Room, UNIT};
use super::{REASONS, Rate, TenantId};
use crate::flow::ENDINGS;
use crate::lane::Cause;
use crate::metrics::Count;
use crate::reason::Reason;

/// Accounts that are made at once.
const PAGE: usize = 32;

const CAUSES: usize = Cause::ALL.len();

/// What may be lost of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogItem {
    /// Of the access log; else it is a flow record.
    pub(crate) is_entry: bool,
    /// It tells of a denial.
    pub(crate) denied: bool,
}

impl LogItem {
    pub(super) const ALL: usize = 4;

    pub(super) fn index(self) -> usize {
        usize::from(self.is_entry) * 2 + usize::from(self.denied)
    }
}

/// Why it is lost.
#[derive(Clone, Copy, Debug)]
pub(super) enum LogLoss {
    /// Its tenant's ceiling.
    Ceiling = 0,
    /// What the workers have made was not taken off them in time.
    Room = 1,
}

impl LogLoss {
    /// What metrics call each.
    const LABELS: [&str; 2] = ["log_bytes", "ring_full"];
}

/// Everything that is counted for one tenant by one worker.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Account {
    pub(crate) accepted: Count,
    /// Connections that began to be this tenant's: accepted, or moved here from another.
    entered: Count,
    left: Count,
    /// Sums of the moments at which they did, in microseconds since the ledger began: what lies between them is the time for
    /// which connections were open, without anybody visiting those that still are.
    entered_at: Count,
    left_at: Count,
    begun: Count,
    ended: Count,
    /// Ended HTTP requests by [`crate::flow::ENDINGS`].
    pub(crate) requests: [Count; ENDINGS.len()],
    pub(crate) bytes_up: Count,
    pub(crate) bytes_down: Count,
    /// Exchanges that the rate of bytes held back, and for how long, in microseconds.
    pub(super) paced: Count,
    pub(super) paced_us: Count,
    /// Records and entries that were lost, by [`LogLoss`] and [`LogItem`], and that would be, were it not for the shadow.
    pub(super) log_lost: [[Count; LogItem::ALL]; 2],
    pub(super) log_shadowed: Count,
    pub(crate) refusals: [Count; REASONS],
    /// What a limit would have refused if it were not in shadow.
    pub(crate) shadowed: [Count; REASONS],
    pub(crate) panics: Count,
    /// Moves to the lane and back, by [`Cause`].
    to_lane: [Count; CAUSES],
    from_lane: [Count; CAUSES],
    /// When it last moved there, in microseconds since the ledger began.
    lane_since: Count,
    /// Bytes held now, and what was taken of the process's room for them.
    memory: Count,
    taken: Count,
    /// Processor time and waiting, which the scheduler writes on the worker's thread.
    scheduled: Arc<Scheduled>,
}

impl Account {
    fn new() -> Self {
        Self {
            accepted: Count::default(),
            entered: Count::default(),
            left: Count::default(),
            entered_at: Count::default(),
            left_at: Count::default(),
            begun: Count::default(),
            ended: Count::default(),
            requests: Default::default(),
            bytes_up: Count::default(),
            bytes_down: Count::default(),
            paced: Count::default(),
            paced_us: Count::default(),
            log_lost: Default::default(),
            log_shadowed: Count::default(),
            refusals: std::array::from_fn(|_| Count::default()),
            shadowed: std::array::from_fn(|_| Count::default()),
            panics: Count::default(),
            to_lane: Default::default(),
            from_lane: Default::default(),
            lane_since: Count::default(),
            memory: Count::default(),
            taken: Count::default(),
            scheduled: Arc::default(),
        }
    }

    /// Where the scheduler counts.
    pub(crate) fn scheduled(&self) -> Arc<Scheduled> {
        Arc::clone(&self.scheduled)
    }

    /// How long the tenant's own tasks keep each other waiting on this worker.
    pub(super) fn standing_delay(&self) -> Duration {
        Duration::from_nanos(self.scheduled.standing_delay())
    }

    /// A connection begins to be this tenant's.
    pub(crate) fn enter(&self, at: u64) {
        self.entered.increment();
        self.entered_at.add(at);
    }

    /// It ends, or goes on as somebody else's.
    pub(crate) fn leave(&self, at: u64) {
        self.left_at.add(at);
        // Last, for whoever reads in between: an open connection that is closed is not one that was never opened.
        self.left.increment();
    }

    /// It moves to the lane of this worker, or back, at a moment of the ledger.
    pub(crate) fn moved(&self, to_lane: bool, cause: Cause, at: u64) {
        if to_lane {
            self.lane_since.set(at);
        }
        let counts = if to_lane { &self.to_lane } else { &self.from_lane };
        counts[cause as usize].increment();
    }

    /// A request begins, or comes from another tenant.
    pub(crate) fn begin(&self) {
        self.begun.increment();
    }

    /// It ends, or goes to another tenant.
    pub(crate) fn end(&self) {
        self.ended.increment();
    }
}

/// All accounts of one worker. Those of a place are made when it is first taken, on the control thread.
#[derive(Debug)]
pub struct Ledger {
    pages: Box<[OnceLock<Box<[Account]>>]>,
    began: Instant,
    /// What limits count, which all ledgers of a process share.
    commons: Arc<Commons>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::beside(Arc::default())
    }
}

impl Ledger {
    /// With nothing on it yet, beside what limits count.
    pub(crate) fn beside(commons: Arc<Commons>) -> Self {
        let pages = (0..PLACES.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Self { pages, began: Instant::now(), commons }
    }

    /// Notes processor time of a tenant, in nanoseconds, and returns for how long it has no more.
    pub(crate) fn pay_for_cpu(&self, tenant: TenantId, rate: Rate, nanoseconds: u64) -> Duration {
        self.commons.pay_for_cpu(tenant, rate, nanoseconds)
    }

    /// Worker threads, of whose time tenants have parts.
    pub(crate) fn workers(&self) -> u32 {
        self.commons.pools().workers
    }

    /// What limits count.
    pub(super) fn commons(&self) -> &Arc<Commons> {
        &self.commons
    }

    /// The memory of the process.
    pub(crate) fn room(&self) -> &Room {
        self.commons.room()
    }

    /// Notes that so many bytes are held for a tenant.
    pub(super) fn hold(&self, tenant: TenantId, bytes: u64) {
        let Some(account) = self.account(tenant) else { return };
        account.memory.add(bytes);
        let (held, taken) = (account.memory.value(), account.taken.value());
        if held > taken {
            let more = (held - taken).next_multiple_of(UNIT);
            account.taken.add(more);
            self.room().take(tenant.place(), more);
        }
    }

    /// Notes that they no longer are, or are somebody else's.
    pub(super) fn let_go(&self, tenant: TenantId, bytes: u64) {
        let Some(account) = self.account(tenant) else { return };
        account.memory.subtract(bytes);
        let (held, taken) = (account.memory.value(), account.taken.value());
        // A unit stays, so that what comes and goes does not come and go here.
        let spare = taken.saturating_sub(held) / UNIT;
        if spare > 1 || held == 0 && spare > 0 {
            let less = if held == 0 { taken } else { (spare - 1) * UNIT };
            account.taken.subtract(less);
            self.room().give_back(tenant.place(), less);
        }
    }

    /// Tenants that are kept apart because their connections panicked.
    pub(crate) fn kept_apart(&self) -> impl Iterator<Item = TenantId> {
        self.commons.kept_apart()
    }

    /// Bytes that this worker has taken for the holder of a place.
    pub(crate) fn taken(&self, place: usize) -> u64 {
        self.at(place).map_or(0, |account| account.taken.value())
    }

    /// Bytes that are held for the holder of a place.
    pub(super) fn held(&self, place: usize) -> u64 {
        self.at(place).map_or(0, |account| account.memory.value())
    }

    /// Makes the account of a place, unless it is there.
    pub(super) fn open(&self, place: usize) {
        self.pages[place / PAGE].get_or_init(|| (0..PAGE).map(|_| Account::new()).collect());
    }

    /// The account of a tenant. `None` only for an id that no table ever had.
    pub(crate) fn account(&self, tenant: TenantId) -> Option<&Account> {
        self.at(tenant.place())
    }

    fn at(&self, place: usize) -> Option<&Account> {
        self.pages.get(place / PAGE)?.get()?.get(place % PAGE)
    }

    /// Microseconds since the ledger began.
    pub(crate) fn moment(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn totals(&self, place: usize, now: Instant) -> Totals {
        let Some(account) = self.at(place) else { return Totals::default() };
        // Ends are read before beginnings: what begins and ends in between must not make a difference negative.
        let (left, ended) = (account.left.value(), account.ended.value());
        let left_at = account.left_at.value();
        let (entered, begun) = (account.entered.value(), account.begun.value());
        let open = entered.saturating_sub(left);
        let until_now = open.wrapping_mul(self.moment(now));
        let connection_us = left_at.wrapping_add(until_now).wrapping_sub(account.entered_at.value());
        let used = account.scheduled.usage();
        let moves = |counts: &[Count; CAUSES]| std::array::from_fn(|cause| counts[cause].value());
        let (from_lane, to_lane): ([u64; CAUSES], [u64; CAUSES]) = (moves(&account.from_lane), moves(&account.to_lane));
        let lanes = to_lane.iter().sum::<u64>().saturating_sub(from_lane.iter().sum());
        Totals {
            connections: account.accepted.value(),
            open,
            // A connection that came or went between two reads is off by its whole age; it is right in the next reading.
            connection_us: if connection_us > u64::MAX / 2 { 0 } else { connection_us },
            in_flight: begun.saturating_sub(ended),
            memory: account.memory.value(),
            requests: std::array::from_fn(|ending| account.requests[ending].value()),
            bytes_up: account.bytes_up.value(),
            bytes_down: account.bytes_down.value(),
            paced: account.paced.value(),
            paced_us: account.paced_us.value(),
            log_lost: std::array::from_fn(|why| std::array::from_fn(|what| account.log_lost[why][what].value())),
            log_shadowed: account.log_shadowed.value(),
            refusals: account.refusals.iter().map(Count::value).collect(),
            shadowed: account.shadowed.iter().map(Count::value).collect(),
            panics: account.panics.value(),
            lanes,
            lane_us: if lanes > 0 { self.moment(now).saturating_sub(account.lane_since.value()) } else { 0 },
            to_lane,
            from_lane,
            cpu_ns: used.cpu,
            cpu_by_kind: used.cpu_by_kind,
            polls: used.polls,
            waited_ns: used.waited,
            held_ns: used.held,
            delays: used.delays,
            // The others are not of one worker.
            ..Totals::default()
        }
    }
}

/// What a tenant has used. All counts but `open`, `in_flight`, `memory`, `paced_now` and those of policies only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Accepted connections.
    pub connections: u64,
    /// Of them, and of those that came from other tenants: open now.
    pub open: u64,
    /// Time for which connections were open, in microseconds.
    pub connection_us: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Bytes held now: buffers, queues, and what a connection and a request are known to take beside them.
    pub memory: u64,
    /// Milliseconds times bytes that were held, as far as it was looked.
    pub memory_byte_ms: u64,
    /// Ended HTTP requests: forwarded, denied, refused by limits, failed.
    pub requests: [u64; ENDINGS.len()],
    /// Bytes of bodies and tunnels towards the upstream.
    pub bytes_up: u64,
    /// The same towards the client.
    pub bytes_down: u64,
    /// Exchanges that the rate of bytes held back.
    pub paced: u64,
    /// For how long they waited for pieces that have gone or were given up, in microseconds.
    pub paced_us: u64,
    /// Directions of exchanges that it holds back now.
    pub paced_now: u64,
    log_lost: [[u64; LogItem::ALL]; 2],
    /// Records and entries that a ceiling in shadow would have lost.
    pub log_shadowed: u64,
    /// Refused requests and connections, by [`Reason`]; empty for none.
    refusals: Vec<u64>,
    /// What limits in shadow would have refused.
    shadowed: Vec<u64>,
    /// Tasks that ended in a panic.
    pub panics: u64,
    /// For how long it will be kept apart because of them.
    pub apart: Duration,
    /// Workers in whose lane it is now.
    pub lanes: u64,
    /// For how long it has been in one of them, in microseconds: the longest.
    pub lane_us: u64,
    /// Moves to lanes and back, by [`Cause`].
    to_lane: [u64; CAUSES],
    from_lane: [u64; CAUSES],
    /// Processor time of its tasks, in nanoseconds.
    pub cpu_ns: u64,
    /// The same by [`tollgate_schedule::Work`]: they add up to it.
    pub cpu_by_kind: [u64; WORKS],
    /// How often one of its tasks ran.
    pub polls: u64,
    /// Time for which tasks could have run and did not, in nanoseconds.
    pub waited_ns: u64,
    /// The same while its ceiling of processor time kept them back.
    pub held_ns: u64,
    /// How often that time was in each class of [`DELAY_BOUNDS`].
    pub delays: [u64; DELAY_BOUNDS.len() + 1],
    /// Processor time of compiling its policies, in nanoseconds; no worker's.
    pub compile_ns: u64,
    /// Bytes that its compiled policies take now.
    pub policy_bytes: u64,
    /// Rules in them.
    pub policy_rules: u64,
    /// When one of them last came into force or went, in Unix milliseconds; 0 for never.
    pub policy_changed_ms: u64,
}

impl Totals {
    /// Refused requests and connections by reason, where there are any.
    pub fn refusals(&self) -> impl Iterator<Item = (Reason, u64)> {
        by_reason(&self.refusals)
    }

    /// What limits in shadow would have refused, by reason.
    pub fn shadowed(&self) -> impl Iterator<Item = (Reason, u64)> {
        by_reason(&self.shadowed)
    }

    /// What was lost of logs, where anything was: why, of which log, of what class, and how often.
    pub fn log_lost(&self) -> impl Iterator<Item = ([&'static str; 3], u64)> {
        let items = [("flows", "other"), ("flows", "denied"), ("access_log", "other"), ("access_log", "denied")];
        let each = LogLoss::LABELS.into_iter().zip(&self.log_lost).flat_map(move |(reason, counts)| {
            items.into_iter().zip(counts).map(move |((log, class), count)| ([reason, log, class], *count))
        });
        each.filter(|(_, count)| *count > 0)
    }

    /// Moves to lanes, or else back, by what for, where there are any.
    pub fn lane_moves(&self, to_lane: bool) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = if to_lane { self.to_lane } else { self.from_lane };
        Cause::ALL.iter().map(|cause| cause.as_str()).zip(counts).filter(|(_, count)| *count > 0)
    }

    /// Ended requests.
    pub fn requests_ended(&self) -> u64 {
        self.requests.iter().sum()
    }

    /// Nothing was ever counted.
    pub(crate) fn is_empty(&self) -> bool {
        let zero = |counts: &[u64]| counts.iter().all(|count| *count == 0);
        let bytes = self.bytes_up + self.bytes_down;
        self.connections == 0
            && self.open == 0
            && self.polls == 0
            && bytes == 0
            && self.requests_ended() == 0
            && zero(&self.refusals)
    }

    /// Something is open or under way.
    pub(super) fn is_in_use(&self) -> bool {
        self.open > 0 || self.in_flight > 0 || self.memory > 0
    }

    /// Adds what another has used.
    pub(crate) fn add(&mut self, other: &Self) {
        self.combine(other, u64::wrapping_add);
        self.open += other.open;
        self.in_flight += other.in_flight;
        self.lanes += other.lanes;
        self.lane_us = self.lane_us.max(other.lane_us);
        self.memory += other.memory;
        self.paced_now += other.paced_now;
        self.apart = self.apart.max(other.apart);
    }

    /// What was used after `before`.
    pub(super) fn since(mut self, before: &Self) -> Self {
        self.combine(before, u64::wrapping_sub);
        self
    }

    /// Counts that only grow.
    fn combine(&mut self, other: &Self, combine: fn(u64, u64) -> u64) {
        let each = |mine: &mut u64, others: u64| *mine = combine(*mine, others);
        each(&mut self.connections, other.connections);
        each(&mut self.connection_us, other.connection_us);
        each(&mut self.bytes_up, other.bytes_up);
        each(&mut self.bytes_down, other.bytes_down);
        each(&mut self.paced, other.paced);
        each(&mut self.paced_us, other.paced_us);
        each(&mut self.log_shadowed, other.log_shadowed);
        for (mine, others) in self.log_lost.iter_mut().flatten().zip(other.log_lost.iter().flatten()) {
            each(mine, *others);
        }
        each(&mut self.panics, other.panics);
        each(&mut self.memory_byte_ms, other.memory_byte_ms);
        each(&mut self.cpu_ns, other.cpu_ns);
        each(&mut self.polls, other.polls);
        each(&mut self.waited_ns, other.waited_ns);
        each(&mut self.held_ns, other.held_ns);
        each(&mut self.compile_ns, other.compile_ns);
        each(&mut self.policy_bytes, other.policy_bytes);
        each(&mut self.policy_rules, other.policy_rules);
        self.policy_changed_ms = self.policy_changed_ms.max(other.policy_changed_ms);
        for (mine, others) in self.cpu_by_kind.iter_mut().zip(other.cpu_by_kind) {
            each(mine, others);
        }
        for (mine, others) in self.delays.iter_mut().zip(other.delays) {
            each(mine, others);
        }
        let (lanes, of_others) = ([&mut self.to_lane, &mut self.from_lane], [&other.to_lane, &other.from_lane]);
        for (mine, others) in lanes.into_iter().flatten().zip(of_others.into_iter().flatten()) {
            each(mine, *others);
        }
        for (mine, others) in self.requests.iter_mut().zip(other.requests) {
            each(mine, others);
        }
        for (mine, others) in [(&mut self.refusals, &other.refusals), (&mut self.shadowed, &other.shadowed)] {
            if mine.len() < others.len() {
                mine.resize(others.len(), 0);
            }
            for (mine, others) in mine.iter_mut().zip(others) {
                each(mine, *others);
            }
        }
    }
}

fn by_reason(counts: &[u64]) -> impl Iterator<Item = (Reason, u64)> {
    Reason::ALL.iter().copied().zip(counts.iter().copied()).filter(|(_, count)| *count > 0)
}
