//! What compiled policies take of memory, counted once they are there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Bytes on the heap as an allocator hands them out. What several share is counted once.
#[derive(Debug, Default)]
pub(crate) struct Scale {
    bytes: usize,
    shared: HashSet<*const ()>,
}

impl Scale {
    /// What `thing` holds beside itself.
    pub(crate) fn weigh(thing: &impl Weight) -> usize {
        let mut scale = Self::default();
        thing.weigh(&mut scale);
        scale.bytes
    }

    /// One allocation of so many bytes.
    pub(crate) fn block(&mut self, bytes: usize) {
        self.bytes += block(bytes);
    }

    /// Something shared, at this address. `true` when it is met for the first time, and its content is to be weighed.
    pub(crate) fn share<T: ?Sized>(&mut self, thing: &Arc<T>) -> bool {
        let first = self.shared.insert(Arc::as_ptr(thing).cast());
        if first {
            self.block(COUNTS + size_of_val(&**thing));
        }
        first
    }

    fn table(&mut self, capacity: usize, entry: usize) {
        if capacity > 0 {
            let buckets = (capacity * 8 / 7).next_power_of_two();
            self.block(buckets * (entry + 1) + 16);
        }
    }
}

/// The counts of an [`Arc`].
const COUNTS: usize = 2 * size_of::<usize>();

/// What a request for so many bytes takes of memory: most systems' allocators hand out multiples of 16 and keep a length beside
/// each block.
pub(crate) const fn block(bytes: usize) -> usize {
    const LENGTH: usize = size_of::<usize>();
    match bytes {
        0 => 0,
        1..=24 => 32,
        _ => (bytes + LENGTH).next_multiple_of(16),
    }
}

/// Knows what it holds on the heap, beside its own bytes.
pub(crate) trait Weight {
    fn weigh(&self, scale: &mut Scale);
}

/// Implements [`Weight`] for what holds nothing.
macro_rules! weightless {
    ($($name:ty),* $(,)?) => {
        $(impl Weight for $name {
            fn weigh(&self, _: &mut Scale) {}
        })*
    };
}

/// Implements [`Weight`] for a struct by those of its fields that hold something.
macro_rules! weight {
    ($name:ty: $($field:tt),* $(,)?) => {
        impl $crate::weight::Weight for $name {
            fn weigh(&self, scale: &mut $crate::weight::Scale) {
                $($crate::weight::Weight::weigh(&self.$field, scale);)*
            }
        }
    };
}

pub(crate) use weight;

weightless!(u8, u16, u32, i64, usize);

impl Weight for Box<str> {
    fn weigh(&self, scale: &mut Scale) {
        scale.block(self.len());
    }
}

impl Weight for String {
    fn weigh(&self, scale: &mut Scale) {
        scale.block(self.capacity());
    }
}

impl Weight for Arc<str> {
    fn weigh(&self, scale: &mut Scale) {
        scale.share(self);
    }
}

impl<T: Weight> Weight for Arc<T> {
    fn weigh(&self, scale: &mut Scale) {
        if scale.share(self) {
            T::weigh(self, scale);
        }
    }
}

impl<T: Weight> Weight for Arc<[T]> {
    fn weigh(&self, scale: &mut Scale) {
        if scale.share(self) {
            self.iter().for_each(|element| element.weigh(scale));
        }
    }
}

impl<T: Weight> Weight for Box<[T]> {
    fn weigh(&self, scale: &mut Scale) {
        scale.block(size_of_val(&**self));
        self.iter().for_each(|element| element.weigh(scale));
    }
}

impl<T: Weight> Weight for Vec<T> {
    fn weigh(&self, scale: &mut Scale) {
        scale.block(self.capacity() * size_of::<T>());
        self.iter().for_each(|element| element.weigh(scale));
    }
}

impl<T: Weight> Weight for Option<T> {
    fn weigh(&self, scale: &mut Scale) {
        self.iter().for_each(|content| content.weigh(scale));
    }
}

impl<K: Weight, V: Weight> Weight for HashMap<K, V> {
    fn weigh(&self, scale: &mut Scale) {
        scale.table(self.capacity(), size_of::<(K, V)>());
        self.iter().for_each(|entry| {
            entry.0.weigh(scale);
            entry.1.weigh(scale);
        });
    }
}

impl<A: Weight, B: Weight> Weight for (A, B) {
    fn weigh(&self, scale: &mut Scale) {
        self.0.weigh(scale);
        self.1.weigh(scale);
    }
}

impl<A: Weight, B: Weight, C: Weight> Weight for (A, B, C) {
    fn weigh(&self, scale: &mut Scale) {
        self.0.weigh(scale);
        self.1.weigh(scale);
        self.2.weigh(scale);
    }
}
