//! Sinks of flow records: one thread each, so that a blocked pipe or a full disk holds up nobody else.

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
use crate::overhead;

/// Batches waiting for one sink, at most.
const QUEUE: usize = 64;
/// Bytes waiting for one sink, at most (one batch may exceed it alone).
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
    queued_bytes: AtomicUsize,
}

impl SinkCounters {
    /// Bytes that wait for it.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.queued_bytes.load(Ordering::Relaxed) as u64
    }
}

/// JSON lines for every sink, written at once.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) records: u64,
}

/// The flow thread's end of a sink.
#[derive(Debug)]
pub(super) struct Sink {
    queue: SyncSender<Lines>,
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
        Ok(Self { queue, counters })
    }

    /// Queues the lines, or loses and counts them. Never blocks.
    pub(super) fn offer(&self, lines: Lines) {
        let (size, records) = (lines.bytes.len(), lines.records);
        let queued = self.counters.queued_bytes.fetch_add(size, Ordering::Relaxed);
        let full = queued > 0 && queued + size > QUEUE_BYTES;
        if full || matches!(self.queue.try_send(lines), Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) {
            self.counters.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            self.counters.lost.fetch_add(records, Ordering::Relaxed);
        }
    }

    pub(super) fn counters(&self) -> Arc<SinkCounters> {
        Arc::clone(&self.counters)
    }
}

/// Standard output without the line buffer of [`io::Stdout`], which would write line by line.
fn stdout() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

fn run(mut target: impl Write, batches: &Receiver<Lines>, counters: &SinkCounters) {
    for lines in batches {
        write_all(&mut target, &lines.bytes, counters);
        counters.queued_bytes.fetch_sub(lines.bytes.len(), Ordering::Relaxed);
        counters.written.fetch_add(lines.records, Ordering::Relaxed);
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
