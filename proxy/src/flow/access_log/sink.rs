//! The thread of one socket: makes messages of entries and sends them, one after the other.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tollgate_net::{PacketError, PacketSender};

use super::{Entry, message};
use crate::flow::FlowError;
use crate::flow::channel::Logged as _;
use crate::flow::room::Room;
use crate::overhead;

/// Entries waiting for one socket, at most. Tenants share these places, of which some are for denials only.
const QUEUE: usize = 8192;
/// Bytes waiting for one socket, at most.
const QUEUE_BYTES: usize = 16 << 20;
/// How long to wait at a time for a reader that takes nothing. Only this thread waits, and as long as it has to: what
/// comes meanwhile finds its place in the queue, or is lost there, denials last.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a reader that takes nothing is waited for once the last listener that logs to it is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Warnings about one socket are at least so far apart.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// Why an entry did not get to its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// Too many were waiting for the reader to take them.
    SlowReader,
    /// Nobody listened.
    NoReader,
    /// The system refused it.
    SendFailed,
}

impl LossCause {
    /// Each cause with its name in metrics.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::SlowReader, "slow_reader"), (Self::NoReader, "no_reader"), (Self::SendFailed, "send_failed")];
}

/// What happened at one socket. Every entry that was meant for it is in exactly one of the counters, or waits.
#[derive(Debug)]
pub struct SocketCounters {
    /// The socket.
    pub path: PathBuf,
    /// Entries sent.
    pub written: AtomicU64,
    lost: [AtomicU64; LossCause::ALL.len()],
    queued: AtomicUsize,
    queued_bytes: AtomicUsize,
    /// Nothing more will come.
    given_back: AtomicBool,
}

impl SocketCounters {
    /// Bytes that wait for it, at most.
    pub(in crate::flow) const MOST_QUEUED: u64 = QUEUE_BYTES as u64;

    /// Bytes that wait for it.
    pub(in crate::flow) fn queued_bytes(&self) -> u64 {
        self.queued_bytes.load(Ordering::Relaxed) as u64
    }

    /// Entries lost for that cause.
    pub fn lost(&self, cause: LossCause) -> u64 {
        self.lost[cause as usize].load(Ordering::Relaxed)
    }

    fn count_loss(&self, cause: LossCause) {
        self.lost[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a place in the queue, if there is one for such an entry of such a tenant.
    fn enter(&self, [places, bytes]: &mut [Room; 2], entry: &Entry) -> bool {
        let (tenant, denied, size) = (entry.tenant, entry.is_denial(), entry.size() as u64);
        let (queued, held) = (self.queued.load(Ordering::Relaxed) as u64, self.queued_bytes());
        let free = places.admits(queued, 1, tenant, denied) && bytes.admits(held, size, tenant, denied);
        if free {
            places.take(1, tenant);
            bytes.take(size, tenant);
            self.queued.fetch_add(1, Ordering::Relaxed);
            self.queued_bytes.fetch_add(entry.size(), Ordering::Relaxed);
        }
        free
    }

    fn leave(&self, entry: &Entry) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.queued_bytes.fetch_sub(entry.size(), Ordering::Relaxed);
    }
}

/// The flow thread's end of a socket.
#[derive(Debug)]
pub(super) struct Sink {
    /// Each batch holds an entry, so there is a place for it whenever there is one for the entry.
    queue: SyncSender<Vec<Entry>>,
    /// Of places in it, and of bytes.
    rooms: RefCell<[Room; 2]>,
    counters: Arc<SocketCounters>,
}

impl Sink {
    /// Starts the thread. It ends after the last entry once this value is gone, and drops `alive` then.
    pub(super) fn start(path: &Path, alive: SyncSender<()>) -> Result<Self, FlowError> {
        let counters = Arc::new(SocketCounters {
            path: path.to_owned(),
            written: AtomicU64::new(0),
            lost: Default::default(),
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            given_back: AtomicBool::new(false),
        });
        let (queue, batches) = sync_channel(QUEUE);
        let shared = Arc::clone(&counters);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                overhead::count_this_thread(overhead::Kind::AccessLog);
                run(&batches, &shared);
                drop(alive);
            })
            .map_err(FlowError::Thread)?;
        let rooms = RefCell::new([Room::new(QUEUE as u64), Room::new(QUEUE_BYTES as u64)]);
        Ok(Self { queue, rooms, counters })
    }

    pub(super) fn counters(&self) -> Arc<SocketCounters> {
        Arc::clone(&self.counters)
    }

    /// Nobody logs to the socket any more. What is queued is sent, as far as the reader takes it before long.
    pub(super) fn end(self) {
        self.counters.given_back.store(true, Ordering::Relaxed);
    }

    /// Takes a place for the entry in the queue; without one it is lost, and counted.
    pub(super) fn admits(&self, entry: &Entry) -> bool {
        let admitted = self.counters.enter(&mut self.rooms.borrow_mut(), entry);
        if !admitted {
            self.counters.count_loss(LossCause::SlowReader);
        }
        admitted
    }

    /// Queues entries that [`Sink::admits`]. Never blocks.
    pub(super) fn offer(&self, batch: Vec<Entry>) {
        if batch.is_empty() {
            return;
        }
        if let Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) = self.queue.try_send(batch) {
            for entry in &batch {
                self.counters.leave(entry);
                self.counters.count_loss(LossCause::SlowReader);
            }
        }
    }
}

fn run(batches: &Receiver<Vec<Entry>>, counters: &SocketCounters) {
    let mut sender = PacketSender::new(counters.path.clone());
    let mut warned = None;
    let mut leaves_at = None;
    let mut packet = Vec::with_capacity(message::MAX);
    for entry in batches.iter().flatten() {
        packet.clear();
        message::encode(&entry, &mut packet);
        let sent = loop {
            match sender.send(&packet) {
                Err(PacketError::Slow) if is_patient(counters, &mut leaves_at) => sender.wait(PATIENCE),
                sent => break sent,
            }
        };
        counters.leave(&entry);
        let Err(error) = sent else {
            counters.written.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        counters.count_loss(match error {
            PacketError::NoReader(_) => LossCause::NoReader,
            PacketError::Slow => LossCause::SlowReader,
            PacketError::Failed(_) => LossCause::SendFailed,
        });
        if warned.is_none_or(|at: Instant| at.elapsed() >= WARNING_INTERVAL) {
            warned = Some(Instant::now());
            tracing::warn!(socket = %counters.path.display(), %error, "access log entries are lost");
        }
    }
}

/// Whether a reader that takes nothing is still waited for.
fn is_patient(counters: &SocketCounters, leaves_at: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    !counters.given_back.load(Ordering::Relaxed) || now < *leaves_at.get_or_insert(now + LAST_WORDS)
}
