//! Whose policy of an update is compiled next: that of the tenant that has had least of the update, its smallest first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

/// Policies that wait for their turn, by whose they are.
#[derive(Debug)]
pub(super) struct Turns<O, P> {
    places: HashMap<O, usize>,
    queues: Vec<Queue<P>>,
    /// Of those with something that waits: what they have had, the size of their smallest, and their place.
    order: BinaryHeap<Reverse<(u64, usize, usize)>>,
}

#[derive(Debug)]
struct Queue<P> {
    used: u64,
    /// With their sizes, the largest first.
    waiting: Vec<(usize, P)>,
}

/// A policy whose turn it is.
#[derive(Debug)]
pub(super) struct Turn<P> {
    /// For [`Turns::spent`].
    pub(super) place: usize,
    /// What its tenant has had.
    pub(super) used: u64,
    pub(super) size: usize,
    pub(super) policy: P,
}

impl<O: Eq + Hash, P> Turns<O, P> {
    pub(super) fn new() -> Self {
        Self { places: HashMap::new(), queues: Vec::new(), order: BinaryHeap::new() }
    }

    /// Has these wait: whose each is, and its size.
    pub(super) fn add(&mut self, policies: impl IntoIterator<Item = (O, usize, P)>) {
        for (owner, size, policy) in policies {
            let new = self.queues.len();
            let place = *self.places.entry(owner).or_insert(new);
            if place == new {
                self.queues.push(Queue { used: 0, waiting: Vec::new() });
            }
            self.queues[place].waiting.push((size, policy));
        }
        self.order.clear();
        for place in 0..self.queues.len() {
            self.queues[place].waiting.sort_by_key(|(size, _)| Reverse(*size));
            self.line_up(place);
        }
    }

    /// How many have or had any that wait.
    pub(super) const fn owners(&self) -> usize {
        self.queues.len()
    }

    /// The next. Its tenant has another turn once it is known what this one [took](Self::spent).
    pub(super) fn next(&mut self) -> Option<Turn<P>> {
        let Reverse((used, _, place)) = self.order.pop()?;
        let (size, policy) = self.queues[place].waiting.pop()?;
        Some(Turn { place, used, size, policy })
    }

    /// The turn of this place took so many nanoseconds.
    pub(super) fn spent(&mut self, place: usize, nanoseconds: u64) {
        self.queues[place].used += nanoseconds;
        self.line_up(place);
    }

    fn line_up(&mut self, place: usize) {
        let queue = &self.queues[place];
        if let Some((size, _)) = queue.waiting.last() {
            self.order.push(Reverse((queue.used, *size, place)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes turns, each of which takes as long as the policy's name says, and lists the names.
    fn order(turns: &mut Turns<char, u64>) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some(Turn { place, policy, .. }) = turns.next() {
            turns.spent(place, policy);
            order.push(policy);
        }
        order
    }

    #[test]
    fn many_of_one_tenant_hold_up_no_other() {
        let mut turns = Turns::new();
        let many = (0..4).map(|i| ('a', 10 + i, 100 + i as u64));
        turns.add(many.chain([('b', 90, 30), ('c', 50, 20), ('b', 91, 31), ('b', 92, 80)]));
        assert_eq!((order(&mut turns), turns.owners()), (vec![100, 20, 30, 31, 80, 101, 102, 103], 3));
    }

    #[test]
    fn what_was_used_counts_on() {
        let mut turns = Turns::new();
        turns.add([('a', 1, 50), ('b', 2, 10)]);
        assert_eq!(order(&mut turns), [50, 10]);
        turns.add([('a', 1, 1), ('b', 9, 2), ('c', 9, 3)]);
        let used: Vec<_> =
            std::iter::from_fn(|| turns.next().map(|turn| (turn.used, turn.size, turn.policy))).collect();
        assert_eq!(used, [(0, 9, 3), (10, 9, 2), (50, 1, 1)]);
    }
}
