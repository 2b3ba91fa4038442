//! A map in shards, so that a copy of it costs what changes and shares the rest.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// With a hundred thousand entries a shard holds four hundred: a change copies those, and one pointer for each other shard.
const SHARDS: usize = 256;

/// A map whose copies share shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shards<K: Hash + Eq, V> {
    shards: Arc<[Arc<HashMap<K, V>>]>,
    entries: usize,
}

impl<K: Hash + Eq, V> Default for Shards<K, V> {
    fn default() -> Self {
        let none: Arc<HashMap<K, V>> = Arc::default();
        Self { shards: vec![none; SHARDS].into(), entries: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.shards[place(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let before = self.shard_of(&key).insert(key, value);
        self.entries += usize::from(before.is_none());
        before
    }

    pub(super) fn remove(&mut self, key: &K) {
        if self.shard_of(key).remove(key).is_some() {
            self.entries -= 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// All entries, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// How many shards these do not share.
    #[cfg(test)]
    pub(super) fn differing(&self, other: &Self) -> usize {
        self.shards.iter().zip(&*other.shards).filter(|(a, b)| !Arc::ptr_eq(a, b)).count()
    }

    /// The shard of `key`, copied if others have it.
    fn shard_of(&mut self, key: &K) -> &mut HashMap<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[place(key)])
    }
}

/// The same for each key in every copy.
fn place(key: &impl Hash) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    (hasher.finish() >> 56) as usize
}
