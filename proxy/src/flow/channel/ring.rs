//! A ring from one worker to the flow thread. It has room for so many items and for so many bytes, since long requests make long
//! records; tenants share either, a quarter of which is for denials alone (`room.rs`).

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::flow::room::Room;
use crate::tenant::TenantId;

/// Bytes that a ring holds, at most (one item may exceed it alone): what the places of a ring take if records are as long as
/// most are.
const BYTES: u64 = 4 << 20;

/// What goes through a ring.
pub(in crate::flow) trait Logged {
    /// Bytes that it holds.
    fn memory(&self) -> usize;
    /// Whether it tells of a denial.
    fn is_denial(&self) -> bool;
    /// Whose it is.
    fn tenant(&self) -> TenantId;
}

/// Bytes that went in and out of a ring since it was made. One writer each.
#[derive(Debug, Default)]
struct Passed {
    put_in: AtomicU64,
    taken_out: AtomicU64,
}

/// A ring with so many places.
pub(super) fn ring<T: Logged>(capacity: usize) -> (RingSender<T>, RingReceiver<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let passed = Arc::new(Passed::default());
    let sender = RingSender {
        ring: RefCell::new(producer),
        rooms: RefCell::new([Room::new(capacity as u64), Room::new(BYTES)]),
        capacity,
        free: Cell::new(capacity),
        taken_out: Cell::new(0),
        passed: Arc::clone(&passed),
    };
    (sender, RingReceiver { ring: consumer, passed })
}

/// The producing end.
pub(super) struct RingSender<T> {
    ring: RefCell<rtrb::Producer<T>>,
    /// Of places, and of bytes.
    rooms: RefCell<[Room; 2]>,
    capacity: usize,
    /// Free places at least; refreshed from the consumer's cache line only when it runs low.
    free: Cell<usize>,
    /// Bytes taken out at least; refreshed as `free` is.
    taken_out: Cell<u64>,
    passed: Arc<Passed>,
}

impl<T: Logged> RingSender<T> {
    /// Returns whether there was room.
    pub(super) fn push(&self, item: T) -> bool {
        let (Ok(mut ring), Ok(mut rooms)) = (self.ring.try_borrow_mut(), self.rooms.try_borrow_mut()) else {
            return false;
        };
        let [places, bytes] = &mut *rooms;
        let (tenant, denied, size) = (item.tenant(), item.is_denial(), item.memory() as u64);
        let taken = || (self.capacity - self.free.get()) as u64;
        if places.is_crowded(taken() + 1) {
            self.free.set(ring.slots());
        }
        let put_in = self.passed.put_in.load(Ordering::Relaxed);
        let held = || put_in.wrapping_sub(self.taken_out.get());
        if bytes.is_crowded(held() + size) {
            self.taken_out.set(self.passed.taken_out.load(Ordering::Relaxed));
        }
        if !places.admits(taken(), 1, tenant, denied) || !bytes.admits(held(), size, tenant, denied) {
            return false;
        }
        places.take(1, tenant);
        bytes.take(size, tenant);
        // Before it can be taken out, so that whoever asks never finds less than nothing.
        self.passed.put_in.store(put_in.wrapping_add(size), Ordering::Relaxed);
        let pushed = ring.push(item).is_ok();
        if !pushed {
            self.passed.put_in.store(put_in, Ordering::Relaxed);
        }
        self.free.set(self.free.get().saturating_sub(1));
        pushed
    }
}

/// The consuming end.
#[derive(Debug)]
pub(super) struct RingReceiver<T> {
    ring: rtrb::Consumer<T>,
    passed: Arc<Passed>,
}

impl<T: Logged> RingReceiver<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Moves at most `limit` items to `batch`. Returns whether those were all.
    pub(super) fn take(&mut self, batch: &mut Vec<T>, limit: usize) -> bool {
        let (there, before) = (self.ring.slots(), batch.len());
        if let Ok(chunk) = self.ring.read_chunk(there.min(limit)) {
            batch.extend(chunk);
        }
        let bytes: u64 = batch[before..].iter().map(|item| item.memory() as u64).sum();
        let before = self.passed.taken_out.load(Ordering::Relaxed);
        self.passed.taken_out.store(before.wrapping_add(bytes), Ordering::Relaxed);
        there <= limit
    }

    /// Whether it is full by a quarter, in items or in bytes: the flow thread should hurry then.
    pub(super) fn is_pressed(&self) -> bool {
        self.ring.slots() > self.ring.buffer().capacity() / 4 || self.load().bytes() > BYTES / 4
    }

    pub(super) fn load(&self) -> RingLoad {
        RingLoad(Arc::clone(&self.passed))
    }
}

/// What a ring holds.
#[derive(Clone, Debug)]
pub(in crate::flow) struct RingLoad(Arc<Passed>);

impl RingLoad {
    /// Most bytes that there can be in one.
    pub(in crate::flow) const MOST: u64 = BYTES;

    /// Bytes now.
    pub(in crate::flow) fn bytes(&self) -> u64 {
        let taken_out = self.0.taken_out.load(Ordering::Relaxed);
        self.0.put_in.load(Ordering::Relaxed).saturating_sub(taken_out)
    }
}
