//! The last flow records, kept for `/flows`, and readers that follow them.
//!
//! A reader is a position in this log, so a slow one costs nothing: when the log has moved on past its position, it
//! is told how many records it missed. Records become JSON only when a reader asks for them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::channel::Logged as _;
use super::{FlowRecord, Sequenced, json};
use crate::tenant::{Names, NamesNow, Placed as _};

/// Records turned to JSON while the log is locked, at most: the flow thread waits that long.
const PAGE: usize = 128;

/// What a reader wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Flows that policy refused, or that were no proper requests. With others of these, all that any of them admits.
    pub denied: bool,
    /// Flows that a limit refused.
    pub limited: bool,
    /// Flows that a limit in shadow would have refused, or held back.
    pub would_limit: bool,
    /// Only flows of the tenant of this name.
    pub tenant: Option<String>,
}

impl FlowFilter {
    fn admits(&self, record: &FlowRecord, names: &NamesNow) -> bool {
        let of_tenant = || self.tenant.is_none() || names.of(record.tenant) == self.tenant.as_deref();
        let wanted = self.limited && record.is_limited()
            || self.denied && record.is_denial()
            || self.would_limit && record.would_limit.is_some();
        (wanted || !(self.denied || self.limited || self.would_limit)) && of_tenant()
    }
}

/// The last records, bounded in number and bytes.
///
/// Who makes room is who has most: each tenant has a part for denials and one for everything else, and a record is forgotten
/// where its part is the largest. So a loud tenant forgets its own, and a quiet one's denials are still there.
#[derive(Debug)]
pub struct FlowLog {
    recent: Mutex<Recent>,
    /// Position after the newest record; wakes readers.
    end: watch::Sender<u64>,
    names: Names,
}

/// The place of a tenant, which has one holder after the other, and whether it is about denials.
type Part = (usize, bool);

#[derive(Debug)]
struct Recent {
    /// By position: how many came before it.
    records: BTreeMap<u64, Sequenced>,
    /// Those that have any.
    parts: BTreeMap<Part, Contents>,
    end: u64,
    bytes: usize,
    max_records: usize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Contents {
    /// Of its records, the oldest first.
    positions: VecDeque<u64>,
    bytes: usize,
}

impl FlowLog {
    pub(super) fn new(max_records: usize, max_bytes: usize, names: Names) -> Arc<Self> {
        let (records, parts) = (BTreeMap::new(), BTreeMap::new());
        let recent = Recent { records, parts, end: 0, bytes: 0, max_records, max_bytes };
        Arc::new(Self { recent: Mutex::new(recent), end: watch::Sender::new(0), names })
    }

    /// Takes the batch, forgetting records where the bounds demand it.
    pub(super) fn append(&self, batch: &mut Vec<Sequenced>) {
        let mut recent = self.lock();
        batch.drain(..).for_each(|item| recent.remember(item));
        recent.forget(|recent| recent.records.len() > recent.max_records, |part| part.positions.len());
        recent.forget(|recent| recent.bytes > recent.max_bytes, |part| part.bytes);
        let end = recent.end;
        drop(recent);
        self.end.send_replace(end);
    }

    /// Bytes of the records that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes as u64
    }

    /// Bytes that they have at most.
    pub(super) fn most_bytes(&self) -> u64 {
        self.lock().max_bytes as u64
    }

    /// A reader that starts `last` matching records before the end (all that are kept, if there are fewer).
    pub fn reader(self: &Arc<Self>, filter: FlowFilter, last: usize) -> FlowReader {
        let recent = self.lock();
        let began = recent.end;
        let (mut next, mut due, mut wanted) = (began, 0, last);
        let names = self.names.load();
        for (back, (position, item)) in (1..).zip(recent.records.iter().rev()) {
            if wanted == 0 {
                break;
            }
            if filter.admits(&item.record, &names) {
                wanted -= 1;
                (next, due) = (*position, back);
            }
        }
        drop(recent);
        FlowReader { log: Arc::clone(self), filter, next, began, due, end: self.end.subscribe() }
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn remember(&mut self, item: Sequenced) {
        let (position, bytes) = (self.end, memory(&item));
        let part = self.parts.entry(part_of(&item.record)).or_default();
        part.positions.push_back(position);
        part.bytes += bytes;
        self.bytes += bytes;
        self.records.insert(position, item);
        self.end += 1;
    }

    /// Forgets the oldest record of whichever part is the largest, of equal ones that with the oldest, while there are too many.
    fn forget(&mut self, too_many: impl Fn(&Self) -> bool, size: impl Fn(&Contents) -> usize) {
        if !too_many(self) {
            return;
        }
        let rank =
            |part: Part, contents: &Contents| Some((size(contents), Reverse(*contents.positions.front()?), part));
        let mut parts: BinaryHeap<_> = self.parts.iter().filter_map(|(part, contents)| rank(*part, contents)).collect();
        while too_many(self)
            && let Some((_, Reverse(oldest), part)) = parts.pop()
        {
            let bytes = self.records.remove(&oldest).map_or(0, |item| memory(&item));
            self.bytes -= bytes;
            let Some(contents) = self.parts.get_mut(&part) else { continue };
            contents.positions.pop_front();
            contents.bytes -= bytes;
            match rank(part, contents) {
                Some(ranked) => parts.push(ranked),
                None => drop(self.parts.remove(&part)),
            }
        }
    }
}

fn part_of(record: &FlowRecord) -> Part {
    (record.tenant.place(), record.is_denial())
}

/// Memory of a record that is kept, in bytes, with its places in [`Recent`].
fn memory(item: &Sequenced) -> usize {
    item.memory() + 64
}

/// A position in the log; see [`FlowLog::reader`].
#[derive(Debug)]
pub struct FlowReader {
    log: Arc<FlowLog>,
    filter: FlowFilter,
    next: u64,
    /// Where the log ended when the reader began.
    began: u64,
    /// How many of the records before that are still to come.
    due: u64,
    end: watch::Receiver<u64>,
}

impl FlowReader {
    /// Appends the next matching records to `out`, one JSON line each, in a bounded portion. Returns false when
    /// there was nothing left to read. Records that were forgotten before they could be read are announced in
    /// Hubble's form:
    /// `{"lost_events":{"source":"FOLLOWER","num_events_lost":N}}` (N counts them all, matching or not; not those that were
    /// forgotten before the reader began).
    pub fn read(&mut self, out: &mut Vec<u8>) -> bool {
        let log = Arc::clone(&self.log);
        let (recent, before) = (log.lock(), self.next);
        let page: Vec<(u64, &Sequenced)> =
            recent.records.range(self.next..).take(PAGE).map(|(position, item)| (*position, item)).collect();
        let mut missed = 0;
        for (position, _) in &page {
            missed += self.pass(*position);
            self.due = self.due.saturating_sub(u64::from(*position < self.began));
            self.next = position + 1;
        }
        if page.len() < PAGE {
            missed += self.pass(recent.end);
        }
        if missed > 0 {
            json::write_lost(out, missed);
        }
        let names = log.names.load();
        for (_, item) in page.iter().filter(|(_, item)| self.filter.admits(&item.record, &names)) {
            json::write_line(out, item, &names);
        }
        self.next > before
    }

    /// Goes on to `position`. Returns how many records were forgotten on the way since the reader began.
    fn pass(&mut self, position: u64) -> u64 {
        let forgotten = position.saturating_sub(self.next.max(self.began));
        self.next = self.next.max(position);
        let due = if position >= self.began { std::mem::take(&mut self.due) } else { 0 };
        due + forgotten
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
