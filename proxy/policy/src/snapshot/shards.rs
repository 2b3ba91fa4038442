//! A table in shards, so that the next generation of a snapshot copies what changed and shares the rest.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// With ten thousand endpoints a shard holds forty: a change copies those, and one pointer for each other shard.
const SHARDS: usize = 256;

/// The hash that places an element. The same in every generation.
pub(super) fn hash_of(key: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Elements by the upper bits of their hash, in sorted shards that generations share.
#[derive(Debug)]
pub(super) struct Shards<T>(Box<[Arc<[T]>]>);

impl<T> Clone for Shards<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Shards<T> {
    fn default() -> Self {
        let none: Arc<[T]> = Arc::new([]);
        Self(vec![none; SHARDS].into())
    }
}

impl<T> Shards<T> {
    /// The elements among which those of `hash` are.
    pub(super) fn shard(&self, hash: u64) -> &[T] {
        &self.0[place(hash)]
    }

    /// The shards themselves.
    pub(super) fn each(&self) -> impl Iterator<Item = &Arc<[T]>> {
        self.0.iter()
    }

    /// All elements, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|shard| shard.iter())
    }
}

impl<T: Clone> Shards<T> {
    /// Copies the shards that `edits` name, without what is not to be kept and with what is added, in `order`.
    pub(super) fn apply(&mut self, edits: Edits<T>, keep: impl Fn(&T) -> bool, order: impl Fn(&T, &T) -> Ordering) {
        for (index, added) in edits.0 {
            let kept = self.0[index].iter().filter(|element| keep(element)).cloned();
            let mut shard: Vec<T> = kept.chain(added).collect();
            shard.sort_by(&order);
            self.0[index] = shard.into();
        }
    }
}

/// Which shards change, and what comes into each.
#[derive(Debug)]
pub(super) struct Edits<T>(BTreeMap<usize, Vec<T>>);

impl<T> Default for Edits<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Edits<T> {
    /// The shard of `hash` may hold elements that are not kept.
    pub(super) fn touch(&mut self, hash: u64) {
        self.0.entry(place(hash)).or_default();
    }

    /// `element`, whose hash is `hash`, comes into its shard.
    pub(super) fn add(&mut self, hash: u64, element: T) {
        self.0.entry(place(hash)).or_default().push(element);
    }
}

const fn place(hash: u64) -> usize {
    (hash >> 56) as usize
}
