//! Sinks of flow records: one thread each, so that a blocked pipe or a full disk holds up nobody else. What waits for one has an end,
//! and is lost beyond it, line by line: denials last, those of a flood first (`room.rs`).

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use super::FlowError;
use super::portion::give_way;
use super::room::Room;
use crate::overhead;
use crate::tenant::TenantId;

/// Records waiting for one sink, at most. Tenants share these places, of which some are for denials only.
const QUEUE: usize = 8192;
/// Bytes waiting for one sink, at most (one record may exceed it alone).
pub(super) const QUEUE_BYTES: usize = 4 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What happened at one sink.
#[derive(Debug)]
pub struct SinkCounters {
    /// `stdout`, or the path of the file.
    pub name: String,
    /// Records written.
    pub written: AtomicU64,
    /// Records that the sink's queue had no room for.
    pub lost: AtomicU64,
    /// Failed writes; each is tried again.
    pub errors: AtomicU64,
    queued: AtomicUsize,
    queued_bytes: AtomicUsize,
}

impl SinkCounters {
    /// Bytes that wait for it.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.queued_bytes.load(Ordering::Relaxed) as u64
    }

    fn leave(&self, batch: &Batch) {
        self.queued.fetch_sub(batch.records, Ordering::Relaxed);
        self.queued_bytes.fetch_sub(batch.bytes.len(), Ordering::Relaxed);
    }
}

/// JSON lines of some records, for every sink.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) each: Vec<Line>,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Where it ends; it begins where the one before does.
    pub(super) end: usize,
    /// Whose record it is.
    pub(super) tenant: TenantId,
    /// Whether that tells of a denial.
    pub(super) denied: bool,
}

/// Lines that are written at once.
#[derive(Debug)]
struct Batch {
    bytes: Arc<Vec<u8>>,
    records: usize,
}

/// The flow thread's end of a sink.
#[derive(Debug)]
pub(super) struct Sink {
    /// Each batch holds a record, so there is a place for it whenever there is one for the record.
    queue: SyncSender<Batch>,
    /// Of places in it, and of bytes.
    rooms: RefCell<[Room; 2]>,
    counters: Arc<SinkCounters>,
}

impl Sink {
    /// A sink that writes to standard output; see [`Sink::start`].
    pub(super) fn stdout(alive: SyncSender<()>) -> Result<Self, FlowError> {
        Self::open("stdout".to_owned(), stdout(), alive)
    }

    /// A sink that appends to the file; see [`Sink::start`].
    pub(super) fn file(path: &Path, alive: SyncSender<()>) -> Result<Self, FlowError> {
        let target = OpenOptions::new().append(true).create(true).open(path);
        Self::open(path.display().to_string(), target, alive)
    }

    fn open(name: String, target: io::Result<File>, alive: SyncSender<()>) -> Result<Self, FlowError> {
        let target = target.map_err(|error| FlowError::OpenSink { name: name.clone(), error })?;
        Self::start(name, target, alive)
    }

    /// A sink that writes to `target`. Its thread ends after the last batch once this value is gone, and drops `alive`
    /// then.
    pub(super) fn start(
        name: String,
        target: impl Write + Send + 'static,
        alive: SyncSender<()>,
    ) -> Result<Self, FlowError> {
        let counters = Arc::new(SinkCounters {
            name,
            written: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
        });
        let (queue, batches) = sync_channel(QUEUE);
        let shared = Arc::clone(&counters);
        thread::Builder::new()
            .name("flow-sink".to_owned())
            .spawn(move || {
                overhead::count_this_thread(overhead::Kind::Log);
                give_way();
                run(target, &batches, &shared);
                drop(alive);
            })
            .map_err(FlowError::Thread)?;
        let rooms = RefCell::new([Room::new(QUEUE as u64), Room::new(QUEUE_BYTES as u64)]);
        Ok(Self { queue, rooms, counters })
    }

    /// Queues the lines that there is room for; the others are lost, and counted. Never blocks.
    pub(super) fn offer(&self, lines: &Lines) {
        let counters = &self.counters;
        let batch = self.admitted(lines);
        counters.lost.fetch_add((lines.each.len() - batch.records) as u64, Ordering::Relaxed);
        if batch.records == 0 {
            return;
        }
        counters.queued.fetch_add(batch.records, Ordering::Relaxed);
        counters.queued_bytes.fetch_add(batch.bytes.len(), Ordering::Relaxed);
        if let Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) = self.queue.try_send(batch) {
            counters.leave(&batch);
            counters.lost.fetch_add(batch.records as u64, Ordering::Relaxed);
        }
    }

    /// The lines that there is room for. Nothing is copied where that is all of them.
    fn admitted(&self, lines: &Lines) -> Batch {
        let [places, bytes] = &mut *self.rooms.borrow_mut();
        let (queued, held) = (self.counters.queued.load(Ordering::Relaxed), self.counters.queued_bytes());
        let (mut records, mut begin, mut size) = (0, 0, 0);
        let mut some: Option<Vec<u8>> = None;
        for Line { end, tenant, denied } in lines.each.iter().copied() {
            let (line, length) = (begin..end, (end - begin) as u64);
            if places.admits((queued + records) as u64, 1, tenant, denied)
                && bytes.admits(held + size, length, tenant, denied)
            {
                places.take(1, tenant);
                bytes.take(length, tenant);
                (records, size) = (records + 1, size + length);
                some.iter_mut().for_each(|some| some.extend_from_slice(&lines.bytes[line.clone()]));
            } else {
                some.get_or_insert_with(|| lines.bytes[..begin].to_vec());
            }
            begin = end;
        }
        Batch { bytes: some.map_or_else(|| Arc::clone(&lines.bytes), Arc::new), records }
    }

    pub(super) fn counters(&self) -> Arc<SinkCounters> {
        Arc::clone(&self.counters)
    }
}

/// Standard output without the line buffer of [`io::Stdout`], which would write line by line.
fn stdout() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

fn run(mut target: impl Write, batches: &Receiver<Batch>, counters: &SinkCounters) {
    for batch in batches {
        write_all(&mut target, &batch.bytes, counters);
        counters.leave(&batch);
        counters.written.fetch_add(batch.records as u64, Ordering::Relaxed);
    }
}

/// Writes everything, trying again for as long as it takes. It goes on where the last write ended, so that lines
/// stay whole.
fn write_all(target: &mut impl Write, mut rest: &[u8], counters: &SinkCounters) {
    let mut pause = FIRST_PAUSE;
    while !rest.is_empty() {
        let error = match target.write(rest) {
            Ok(0) => io::Error::from(io::ErrorKind::WriteZero),
            Ok(written) => {
                rest = &rest[written..];
                pause = FIRST_PAUSE;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        if counters.errors.fetch_add(1, Ordering::Relaxed) == 0 || pause == FIRST_PAUSE {
            tracing::warn!(sink = counters.name, %error, "cannot write flow records; trying again");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests;
