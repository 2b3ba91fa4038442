//! Byte buffers of a connection, borrowed from a per-worker pool while they hold something: an idle connection owns none.

use std::cell::RefCell;
use std::rc::Rc;

use crate::tenant::Payer;

/// Size of a pooled buffer, in bytes.
const CHUNK: usize = 16 * 1024;
/// Free buffers kept per worker.
const MAX_FREE: usize = 256;

/// Free buffers of one worker. Not shared between threads.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    free: RefCell<Vec<Vec<u8>>>,
}

impl BufferPool {
    fn take(&self) -> Vec<u8> {
        self.free.borrow_mut().pop().unwrap_or_else(|| vec![0; CHUNK])
    }

    fn give(&self, storage: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        // Grown buffers are given back to the allocator, so that one large head does not stay.
        if storage.len() == CHUNK && free.len() < MAX_FREE {
            free.push(storage);
        }
    }
}

/// A queue of bytes: read into its spare room, consume from its front.
#[derive(Debug)]
pub(crate) struct Buffer {
    pool: Rc<BufferPool>,
    /// Who is charged for the storage.
    payer: Option<Rc<Payer>>,
    storage: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// An empty buffer that takes storage from `pool`, at the expense of `payer`, when it is first written to.
    pub(crate) fn new(pool: &Rc<BufferPool>, payer: &Rc<Payer>) -> Self {
        Self { pool: Rc::clone(pool), payer: Some(Rc::clone(payer)), storage: Vec::new(), start: 0, end: 0 }
    }

    /// The same at nobody's expense.
    #[cfg(test)]
    pub(crate) fn for_test(pool: &Rc<BufferPool>) -> Self {
        Self { pool: Rc::clone(pool), payer: None, storage: Vec::new(), start: 0, end: 0 }
    }

    /// A buffer that holds these bytes.
    pub(crate) fn with(pool: &Rc<BufferPool>, payer: &Rc<Payer>, bytes: &[u8]) -> Self {
        let mut buffer = Self::new(pool, payer);
        if !bytes.is_empty() {
            let mut storage = pool.take();
            storage.resize(bytes.len().max(storage.len()), 0);
            storage[..bytes.len()].copy_from_slice(bytes);
            buffer.charge(storage.len());
            (buffer.storage, buffer.end) = (storage, bytes.len());
        }
        buffer
    }

    /// The bytes in the queue.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    /// The same, to be changed in place.
    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.end]
    }

    /// Whether nothing is queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes queued.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Removes `n` bytes from the front.
    pub(crate) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.start += n;
        if self.start >= self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Room to read into; at least one byte unless the queue holds `limit` bytes or more.
    pub(crate) fn spare(&mut self, limit: usize) -> &mut [u8] {
        if self.storage.is_empty() {
            self.storage = self.pool.take();
            self.charge(self.storage.len());
        }
        if self.end == self.storage.len() {
            if self.start > 0 {
                self.storage.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else if self.storage.len() < limit {
                self.grow((self.storage.len() * 2).min(limit));
            }
        }
        &mut self.storage[self.end..]
    }

    /// Marks `n` bytes of the spare room as read.
    pub(crate) fn filled_more(&mut self, n: usize) {
        self.end = (self.end + n).min(self.storage.len());
    }

    /// Splits off the first `n` bytes into a buffer of their own. What follows, usually nothing, is copied.
    pub(crate) fn split_front(&mut self, n: usize) -> Self {
        let mut rest =
            Self { pool: Rc::clone(&self.pool), payer: self.payer.clone(), storage: Vec::new(), start: 0, end: 0 };
        let tail = self.len().saturating_sub(n);
        if tail > 0 {
            while rest.spare(tail).len() < tail {
                rest.grow(tail);
            }
            rest.storage[..tail].copy_from_slice(&self.storage[self.start + n..self.end]);
            rest.end = tail;
        }
        self.end = self.start + n.min(self.end - self.start);
        std::mem::replace(self, rest)
    }

    /// Gives the storage back while the queue is empty.
    pub(crate) fn release(&mut self) {
        if self.is_empty() && !self.storage.is_empty() {
            self.give_back();
            self.start = 0;
            self.end = 0;
        }
    }

    fn grow(&mut self, length: usize) {
        self.charge(length - self.storage.len());
        self.storage.resize(length, 0);
    }

    fn charge(&self, bytes: usize) {
        if let Some(payer) = &self.payer {
            payer.hold(bytes);
        }
    }

    fn give_back(&mut self) {
        if let Some(payer) = &self.payer {
            payer.let_go(self.storage.len());
        }
        self.pool.give(std::mem::take(&mut self.storage));
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.storage.is_empty() {
            self.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::for_test(&Rc::new(BufferPool::default()));
        for &byte in bytes {
            buffer.spare(usize::MAX)[0] = byte;
            buffer.filled_more(1);
        }
        buffer
    }

    #[test]
    fn queue() {
        let mut buffer = filled(b"hello world");
        buffer.consume(6);
        assert_eq!(buffer.filled(), b"world");
        let front = buffer.split_front(2);
        assert_eq!((front.filled(), buffer.filled()), (&b"wo"[..], &b"rld"[..]));
        buffer.consume(3);
        assert!(buffer.is_empty());
        buffer.release();
        assert!(buffer.filled().is_empty());
    }

    #[test]
    fn grows_to_its_limit_only() {
        let mut buffer = Buffer::for_test(&Rc::new(BufferPool::default()));
        let limit = CHUNK * 3;
        loop {
            let n = buffer.spare(limit).len();
            if n == 0 {
                break;
            }
            buffer.filled_more(n);
        }
        assert_eq!(buffer.len(), limit);
        let front = buffer.split_front(10);
        assert_eq!((front.len(), buffer.len()), (10, limit - 10));
    }

    #[test]
    fn storage_returns_to_the_pool() {
        let pool = Rc::new(BufferPool::default());
        let mut buffer = Buffer::for_test(&pool);
        buffer.spare(CHUNK);
        buffer.release();
        assert_eq!(pool.free.borrow().len(), 1);
        buffer.spare(CHUNK);
        drop(buffer);
        assert_eq!(pool.free.borrow().len(), 1);
    }
}
