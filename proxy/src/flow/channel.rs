//! The way of a record from a worker to the flow thread: one single-producer ring per worker, and a doorbell that is
//! rung only when the consumer sleeps.

mod ring;

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

pub(super) use self::ring::{Logged, RingLoad};
use self::ring::{RingReceiver, RingSender, ring};
use super::access_log::{AccessLogs, Entry};
use super::{EntryKind, FlowRecord, json};
use crate::metrics;
use crate::tenant::TenantId;

/// How long a reading of the wall clock is extended by the monotonic one.
const CLOCK_AGE: Duration = Duration::from_secs(1);

/// A record with its place in the stream of its worker.
#[derive(Debug)]
pub struct Sequenced {
    /// Index of the worker.
    pub worker: u16,
    /// Number of the record among all that its worker finished, lost ones included; from 0. A gap is a loss.
    pub seq: u64,
    /// The record.
    pub record: Box<FlowRecord>,
}

impl Logged for Sequenced {
    fn memory(&self) -> usize {
        size_of::<Self>() + self.record.memory()
    }

    fn is_denial(&self) -> bool {
        self.record.is_denial()
    }

    fn tenant(&self) -> TenantId {
        self.record.tenant
    }
}

/// Connects workers to the one consumer of their flow records.
///
/// Each worker's ring holds `capacity` records (raised to 8) and so many bytes, which tenants share, with a quarter reserved for
/// denials; so does another ring for entries of the access log. The senders come in the order of `workers`; each belongs to one worker thread.
pub fn channel(workers: Vec<metrics::Worker>, capacity: usize) -> (Vec<FlowSender>, FlowConsumer) {
    let capacity = capacity.max(8);
    let doorbell = Arc::new(Doorbell::default());
    let access_logs = AccessLogs::new(Arc::clone(&doorbell));
    let mut senders = Vec::with_capacity(workers.len());
    let (mut rings, mut entries) = (Vec::new(), Vec::new());
    for (index, metrics) in workers.into_iter().enumerate() {
        let (records, consumer) = ring(capacity);
        rings.push(consumer);
        let (log, consumer) = ring(capacity);
        entries.push(consumer);
        senders.push(FlowSender {
            records,
            log,
            next_seq: Cell::new(0),
            clock: Cell::new((Instant::now(), SystemTime::now())),
            scratch: Cell::default(),
            worker: u16::try_from(index).unwrap_or(u16::MAX),
            doorbell: Arc::clone(&doorbell),
            metrics,
        });
    }
    (senders, FlowConsumer { rings, entries, access_logs, doorbell })
}

/// A worker's end. It may move to the worker's thread, and then stays there: it is `!Sync`, share it as
/// `Rc<FlowSender>`.
pub struct FlowSender {
    records: RingSender<Sequenced>,
    log: RingSender<Entry>,
    next_seq: Cell<u64>,
    /// The last reading of the wall clock, and when it was taken.
    clock: Cell<(Instant, SystemTime)>,
    /// Room to find out in how long a record is.
    scratch: Cell<Vec<u8>>,
    worker: u16,
    doorbell: Arc<Doorbell>,
    metrics: metrics::Worker,
}

impl FlowSender {
    /// Counts the record in the metrics and hands it over, or loses and counts it when the ring has no room for its
    /// class; returns whether it had. Never blocks. Use [`super::OpenFlow`] rather than this, so that no path can forget it.
    pub fn send(&self, record: Box<FlowRecord>) -> bool {
        let ending = record.ending();
        self.metrics.flow_finished(&record);
        let seq = self.take_seq();
        let sent = self.records.push(Sequenced { worker: self.worker, seq, record });
        if sent {
            self.doorbell.ring();
        } else {
            self.metrics.flow_record_lost(ending);
        }
        sent
    }

    /// Counts the record in the metrics and among those that are lost.
    pub(super) fn lose(&self, record: &FlowRecord) {
        self.metrics.flow_finished(record);
        self.take_seq();
        self.metrics.flow_record_lost(record.ending());
    }

    fn take_seq(&self) -> u64 {
        let seq = self.next_seq.get();
        self.next_seq.set(seq.wrapping_add(1));
        seq
    }

    /// How many bytes of JSON the record would be, but for its tenant's name and the limit that refused it.
    pub(super) fn length(&self, record: &FlowRecord) -> usize {
        let mut scratch = self.scratch.take();
        let length = json::length(&mut scratch, record, (self.worker, self.next_seq.get()));
        self.scratch.set(scratch);
        length
    }

    /// Hands an entry of the access log over, or loses and counts it; returns which. Never blocks.
    pub(super) fn log(&self, entry: Entry) -> bool {
        let kind = entry.kind;
        self.metrics.log_entry_made(kind);
        let sent = self.log.push(entry);
        if sent {
            self.doorbell.ring();
        } else {
            self.metrics.log_entry_lost(kind);
        }
        sent
    }

    /// Counts an entry of the access log, and that it is lost.
    pub(super) fn lose_entry(&self, kind: EntryKind) {
        self.metrics.log_entry_made(kind);
        self.metrics.log_entry_lost(kind);
    }

    /// The wall clock at `now`, for [`FlowRecord::time`]. Saves a clock reading per request: the wall clock itself is
    /// read once a second, so a stamp follows a clock that is set within that time.
    pub fn wall_clock(&self, now: Instant) -> SystemTime {
        let (read_at, time) = self.clock.get();
        // A flow may have begun before the last reading.
        if let Some(before) = read_at.checked_duration_since(now) {
            return time.checked_sub(before).unwrap_or(time);
        }
        let age = now.saturating_duration_since(read_at);
        if age < CLOCK_AGE {
            return time + age;
        }
        let fresh = SystemTime::now();
        self.clock.set((now, fresh));
        fresh
    }

    /// This worker's counters.
    pub fn metrics(&self) -> &metrics::Worker {
        &self.metrics
    }
}

impl fmt::Debug for FlowSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowSender").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// The consuming end of all rings.
#[derive(Debug)]
pub struct FlowConsumer {
    rings: Vec<RingReceiver<Sequenced>>,
    entries: Vec<RingReceiver<Entry>>,
    access_logs: AccessLogs,
    doorbell: Arc<Doorbell>,
}

impl FlowConsumer {
    /// Moves what is there, at most `limit` records, to `batch`; every ring gets its turn. Returns how many came.
    pub fn drain(&mut self, batch: &mut Vec<Sequenced>, limit: usize) -> usize {
        self.drain_records(batch, limit).0
    }

    /// As [`FlowConsumer::drain`]; also whether those were all that had come by then.
    pub(super) fn drain_records(&mut self, batch: &mut Vec<Sequenced>, limit: usize) -> (usize, bool) {
        drain(&mut self.rings, batch, limit)
    }

    /// As [`FlowConsumer::drain_records`], for entries of the access log.
    pub(super) fn drain_entries(&mut self, batch: &mut Vec<Entry>, limit: usize) -> (usize, bool) {
        drain(&mut self.entries, batch, limit)
    }

    /// Whether a ring fills up.
    pub(super) fn is_pressed(&self) -> bool {
        self.rings.iter().any(RingReceiver::is_pressed) || self.entries.iter().any(RingReceiver::is_pressed)
    }

    /// The sockets of the access log.
    pub(crate) fn access_logs(&self) -> AccessLogs {
        self.access_logs.clone()
    }

    /// What each ring holds.
    pub(super) fn loads(&self) -> Vec<RingLoad> {
        let (records, entries) =
            (self.rings.iter().map(RingReceiver::load), self.entries.iter().map(RingReceiver::load));
        records.chain(entries).collect()
    }

    pub(super) fn doorbell(&self) -> Arc<Doorbell> {
        Arc::clone(&self.doorbell)
    }

    /// Sleeps until a record comes or [`Doorbell::stop`] is called; returns at once if either has happened.
    /// To be called from the consumer's own thread, always the same one.
    pub(super) fn sleep(&mut self) {
        let waiting = || {
            self.rings.iter().any(|ring| !ring.is_empty())
                || self.entries.iter().any(|ring| !ring.is_empty())
                || !self.access_logs.unheld().is_empty()
        };
        self.doorbell.sleep(waiting);
    }
}

fn drain<T: Logged>(rings: &mut [RingReceiver<T>], batch: &mut Vec<T>, limit: usize) -> (usize, bool) {
    let before = batch.len();
    let share = (limit / rings.len().max(1)).max(1);
    let mut all = true;
    for ring in rings {
        all &= ring.take(batch, share);
    }
    (batch.len() - before, all)
}

/// Wakes the consumer. Costs a producer one fence and one load of a read-mostly cache line, and a system call only
/// when the consumer sleeps.
#[derive(Debug, Default)]
pub(super) struct Doorbell {
    asleep: AtomicBool,
    stopping: AtomicBool,
    consumer: OnceLock<Thread>,
}

impl Doorbell {
    pub(super) fn ring(&self) {
        // Pairs with the fence in `sleep`: either the consumer sees the record, or we see that it is asleep.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.consumer.get() {
            thread.unpark();
        }
    }

    /// Asks the consumer to take what is left and end.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Names the calling thread as the one to wake.
    pub(super) fn attach(&self) {
        let _ = self.consumer.set(std::thread::current());
    }

    fn sleep(&self, has_work: impl Fn() -> bool) {
        self.attach();
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // A spurious wake-up ends the wait early; the caller finds nothing and comes back.
        if !has_work() && !self.is_stopping() {
            std::thread::park();
        }
        self.asleep.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
