//! The last flow records, kept for `/flows`, and readers that follow them.
//!
//! A reader is a position in this log, so a slow one costs nothing: when the log has moved on past its position, it
//! is told how many records it missed. Records become JSON only when a reader asks for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tollgate_policy::LoggedHeader;

use super::json;
use super::{FlowRecord, HttpRecord, Outcome, Sequenced};
use crate::tenant::{Names, NamesNow};

/// Records turned to JSON while the log is locked, at most: the flow thread waits that long.
const PAGE: usize = 128;

/// What a reader wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Flows that policy refused, or that were no proper requests; with `limited`, both.
    pub denied: bool,
    /// Flows that a limit refused.
    pub limited: bool,
    /// Only flows of the tenant of this name.
    pub tenant: Option<String>,
}

impl FlowFilter {
    fn admits(&self, record: &FlowRecord, names: &NamesNow) -> bool {
        let of_tenant = || self.tenant.is_none() || names.of(record.tenant) == self.tenant.as_deref();
        let wanted = match record.is_limited() {
            true => self.limited,
            false => self.denied && record.outcome == Outcome::Denied,
        };
        (wanted || !(self.denied || self.limited)) && of_tenant()
    }
}

/// The last records, bounded in number and bytes.
#[derive(Debug)]
pub struct FlowLog {
    recent: Mutex<Recent>,
    /// Position after the newest record; wakes readers.
    end: watch::Sender<u64>,
    names: Names,
}

#[derive(Debug)]
struct Recent {
    records: VecDeque<Sequenced>,
    /// Position of the oldest record kept: how many were forgotten.
    first: u64,
    bytes: usize,
    max_records: usize,
    max_bytes: usize,
}

impl FlowLog {
    pub(super) fn new(max_records: usize, max_bytes: usize, names: Names) -> Arc<Self> {
        let recent = Recent { records: VecDeque::new(), first: 0, bytes: 0, max_records, max_bytes };
        Arc::new(Self { recent: Mutex::new(recent), end: watch::Sender::new(0), names })
    }

    /// Takes the batch, forgetting the oldest records where the bounds demand it.
    pub(super) fn append(&self, batch: &mut Vec<Sequenced>) {
        let mut recent = self.lock();
        for item in batch.drain(..) {
            recent.bytes += memory(&item.record);
            recent.records.push_back(item);
            while recent.records.len() > recent.max_records || recent.bytes > recent.max_bytes {
                let Some(oldest) = recent.records.pop_front() else {
                    break;
                };
                recent.bytes -= memory(&oldest.record);
                recent.first += 1;
            }
        }
        let end = recent.end();
        drop(recent);
        self.end.send_replace(end);
    }

    /// A reader that starts `last` matching records before the end (all that are kept, if there are fewer).
    pub fn reader(self: &Arc<Self>, filter: FlowFilter, last: usize) -> FlowReader {
        let recent = self.lock();
        let mut next = recent.end();
        let mut wanted = last;
        let names = self.names.load();
        for (back, item) in (1..).zip(recent.records.iter().rev()) {
            if wanted == 0 {
                break;
            }
            if filter.admits(&item.record, &names) {
                wanted -= 1;
                next = recent.end() - back;
            }
        }
        drop(recent);
        FlowReader { log: Arc::clone(self), filter, next, end: self.end.subscribe() }
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }
}

/// Approximate memory of a record, in bytes: what the bound of the log is about.
fn memory(record: &FlowRecord) -> usize {
    let http = record.http.as_ref().map_or(0, HttpRecord::memory);
    // The texts of a nearest miss are shared with the policy snapshot.
    let miss = record.nearest_miss.as_ref().map_or(0, |miss| size_of_val(&**miss) + miss.matched.len() * 16);
    let header = |header: &LoggedHeader| size_of_val(header) + header.name.len() + header.value.len();
    let headers = record.header_log.as_ref().map_or(0, |log| log.missing.iter().chain(&log.rejected).map(header).sum());
    let detail = record.detail.as_deref().map_or(0, str::len);
    size_of::<Sequenced>() + size_of::<FlowRecord>() + http + miss + headers + detail
}

/// A position in the log; see [`FlowLog::reader`].
#[derive(Debug)]
pub struct FlowReader {
    log: Arc<FlowLog>,
    filter: FlowFilter,
    next: u64,
    end: watch::Receiver<u64>,
}

impl FlowReader {
    /// Appends the next matching records to `out`, one JSON line each, in a bounded portion. Returns false when
    /// there was nothing left to read. Records that were forgotten before they could be read are announced in
    /// Hubble's form:
    /// `{"lost_events":{"source":"FOLLOWER","num_events_lost":N}}` (N counts them all, matching or not).
    pub fn read(&mut self, out: &mut Vec<u8>) -> bool {
        let recent = self.log.lock();
        let missed = recent.first.saturating_sub(self.next);
        if missed > 0 {
            json::write_lost(out, missed);
            self.next = recent.first;
        }
        let skip = usize::try_from(self.next - recent.first).unwrap_or(usize::MAX);
        let mut seen = 0;
        let names = self.log.names.load();
        for item in recent.records.iter().skip(skip).take(PAGE) {
            if self.filter.admits(&item.record, &names) {
                json::write_line(out, item, &names);
            }
            seen += 1;
        }
        self.next += seen;
        missed > 0 || seen > 0
    }

    /// Where the reader is: counts all records since the start of the process.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Where the log ends now.
    pub fn end_of_log(&self) -> u64 {
        *self.end.borrow()
    }

    /// Waits until there is something to read. Cancel safe.
    pub async fn wait(&mut self) {
        let next = self.next;
        // The sender lives in `self.log`, so this ends only with a record.
        let _ = self.end.wait_for(|&end| end > next).await;
    }
}

#[cfg(test)]
mod tests;
