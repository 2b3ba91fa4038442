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
use crate::flow::portion::{Portion, give_way};
use crate::flow::room::Room;
use crate::overhead;

/// Entries waiting for one socket, at most. Tenants share these places, of which some are for denials only.
const QUEUE: usize = 8192;
/// Bytes waiting for one socket, at most.
const QUEUE_BYTES: usize = 16 << 20;
/// With more than so much waiting, the thread takes no rests.
const PRESSED: usize = QUEUE / 4;
const PRESSED_BYTES: u64 = QUEUE_BYTES as u64 / 4;
/// How long to wait at a time for a reader that takes nothing. Only this thread waits, and as long as it has to: what
/// comes meanwhile finds its place in the queue, or is lost there, denials last.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a reader that takes nothing is waited for once the last listener that logs to it is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long nobody is looked for again where nobody listened: to find that out for each entry would cost more than to send it.
const ABSENCE: Duration = Duration::from_millis(10);
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

    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            written: AtomicU64::new(0),
            lost: Default::default(),
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            given_back: AtomicBool::new(false),
        }
    }

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

    /// Whether there is no time for rests: much waits, or nothing more will come.
    fn are_pressing(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > PRESSED
            || self.queued_bytes() > PRESSED_BYTES
            || self.given_back.load(Ordering::Relaxed)
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
        let counters = Arc::new(SocketCounters::new(path));
        let (queue, batches) = sync_channel(QUEUE);
        let shared = Arc::clone(&counters);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                overhead::count_this_thread(overhead::Kind::AccessLog);
                give_way();
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

/// Sends what comes, in portions: the reader may be fast, and the core one that a worker serves traffic on.
fn run(batches: &Receiver<Vec<Entry>>, counters: &SocketCounters) {
    let mut reader = Reader::new(counters);
    let mut portion = Portion::begin();
    while let Some(batch) = portion.next(batches) {
        for entry in batch {
            let sent = reader.send(&entry);
            counters.leave(&entry);
            match sent {
                Ok(()) => drop(counters.written.fetch_add(1, Ordering::Relaxed)),
                Err(cause) => counters.count_loss(cause),
            }
            portion.end_of_piece(counters.are_pressing());
        }
    }
}

/// Who listens at a socket, if anybody does.
struct Reader<'counters> {
    counters: &'counters SocketCounters,
    sender: PacketSender,
    packet: Vec<u8>,
    /// How long nobody is looked for where nobody listened, and until when.
    absence: Duration,
    absent_until: Option<Instant>,
    warned: Option<Instant>,
    leaves_at: Option<Instant>,
}

impl<'counters> Reader<'counters> {
    fn new(counters: &'counters SocketCounters) -> Self {
        let (sender, packet) = (PacketSender::new(counters.path.clone()), Vec::with_capacity(message::MAX));
        Self { counters, sender, packet, absence: ABSENCE, absent_until: None, warned: None, leaves_at: None }
    }

    /// Sends one entry, and waits for a reader that is slow.
    fn send(&mut self, entry: &Entry) -> Result<(), LossCause> {
        if self.absent_until.is_some_and(|until| Instant::now() < until) {
            return Err(LossCause::NoReader);
        }
        self.packet.clear();
        message::encode(entry, &mut self.packet);
        let error = loop {
            match self.sender.send(&self.packet) {
                Ok(()) => return Ok(()),
                Err(PacketError::Slow) if is_patient(self.counters, &mut self.leaves_at) => self.sender.wait(PATIENCE),
                Err(error) => break error,
            }
        };
        let now = Instant::now();
        let cause = match error {
            PacketError::NoReader(_) => LossCause::NoReader,
            PacketError::Slow => LossCause::SlowReader,
            PacketError::Failed(_) => LossCause::SendFailed,
        };
        self.absent_until = (cause == LossCause::NoReader).then_some(now + self.absence);
        if self.warned.is_none_or(|at| now - at >= WARNING_INTERVAL) {
            self.warned = Some(now);
            tracing::warn!(socket = %self.counters.path.display(), %error, "access log entries are lost");
        }
        Err(cause)
    }
}

/// Whether a reader that takes nothing is still waited for.
fn is_patient(counters: &SocketCounters, leaves_at: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    !counters.given_back.load(Ordering::Relaxed) || now < *leaves_at.get_or_insert(now + LAST_WORDS)
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, SockAddr, Socket, Type};

    use super::super::SinkSet;
    use super::super::registry::tests::entry;
    use super::*;

    #[test]
    fn where_nobody_listened_nobody_is_looked_for_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.sock");
        let counters = SocketCounters::new(&path);
        let mut reader = Reader { absence: Duration::from_secs(3600), ..Reader::new(&counters) };
        let entry = entry(SinkSet::default());
        assert_eq!(reader.send(&entry), Err(LossCause::NoReader));
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(1).unwrap();
        assert_eq!(reader.send(&entry), Err(LossCause::NoReader), "the hour is not over");
        reader.absent_until = Some(Instant::now());
        assert_eq!(reader.send(&entry), Ok(()));
        assert_eq!(reader.send(&entry), Ok(()), "it is there");
    }
}
