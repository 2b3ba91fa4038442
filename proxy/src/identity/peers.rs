//! The addresses of a worker's open connections, and what the ipcache last said about each.
//!
//! Connections of one address share its entry, so that asking again costs one system call per address and time to live,
//! however many connections and requests there are. There are no more entries than connections have addresses. Everything
//! stays on the worker's thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::Notify;

use super::Answer;

/// The addresses in use.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    entries: RefCell<Slab<Entry>>,
    by_address: RefCell<HashMap<IpAddr, usize>>,
    /// Where the next sweep begins.
    cursor: Cell<usize>,
    /// Told when there is something to sweep.
    added: Notify,
    /// Told when there is another answer than before.
    changed: Notify,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    users: usize,
    /// Counts the times that the answer became another one.
    epoch: u64,
    last: Option<Seen>,
}

/// An answer and how long it counts.
#[derive(Clone, Copy, Debug)]
struct Seen {
    answer: Answer,
    at: Instant,
    /// The opening of the maps that gave it.
    serial: u64,
}

/// How answers are got and kept: the same for all addresses of a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<F> {
    /// How long an answer counts.
    pub(crate) ttl: Duration,
    /// Which opening of the maps is asked; what an earlier one said does not count.
    pub(crate) serial: u64,
    pub(crate) now: Instant,
    pub(crate) ask: F,
}

impl<F> Asking<F> {
    /// Until when an answer of that time counts; no longer than now where that is no time at all.
    fn until(&self, at: Instant) -> Instant {
        at.checked_add(self.ttl).unwrap_or(self.now)
    }
}

/// What a sweep came upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Another answer than before.
    pub(crate) changed: bool,
    /// Addresses that were asked about.
    pub(crate) asked: usize,
}

/// One connection's use of an address, which ends with it.
#[derive(Debug)]
pub(crate) struct InUse {
    peers: Rc<Peers>,
    slot: usize,
}

impl Peers {
    /// Keeps what is said about `address` for as long as the return value lives.
    pub(crate) fn keep(self: &Rc<Self>, address: IpAddr) -> InUse {
        let mut entries = self.entries.borrow_mut();
        let mut by_address = self.by_address.borrow_mut();
        let slot = *by_address
            .entry(address)
            .or_insert_with(|| entries.insert(Entry { address, users: 0, epoch: 0, last: None }));
        if let Some(entry) = entries.get_mut(slot) {
            entry.users += 1;
        }
        self.added.notify_one();
        InUse { peers: Rc::clone(self), slot }
    }

    /// Waits until an address is in use.
    pub(crate) async fn occupied(&self) {
        while self.entries.borrow().is_empty() {
            self.added.notified().await;
        }
    }

    /// Waits until somebody has found an address that carries another identity than before.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Ends the wait for a change.
    pub(crate) fn report_change(&self) {
        self.changed.notify_one();
    }

    /// How many places [`Peers::sweep`] looks at before it has come round.
    pub(crate) fn places(&self) -> usize {
        self.entries.borrow().capacity()
    }

    /// Looks at so many places, beginning where the last call ended, and asks about the addresses there whose answers have become too
    /// old.
    pub(crate) fn sweep(&self, places: usize, asking: &Asking<impl Fn(IpAddr) -> Answer>) -> Swept {
        let mut entries = self.entries.borrow_mut();
        let (end, begin) = (entries.capacity(), self.cursor.get());
        let mut swept = Swept::default();
        let mut at = begin;
        for slot in (begin..end).chain(0..begin.min(end)).take(places) {
            at = slot + 1;
            if let Some(entry) = entries.get_mut(slot) {
                let (epoch, fresh) = (entry.epoch, entry.is_fresh(asking));
                let _ = entry.answer(asking);
                swept.changed |= entry.epoch != epoch;
                swept.asked += usize::from(!fresh);
            }
        }
        self.cursor.set(at);
        swept
    }
}

impl InUse {
    /// What is said about the address, and until when that counts. Another answer than before is news for the other
    /// connections of the address too, some of which may never ask.
    pub(crate) fn answer(&self, asking: &Asking<impl Fn(IpAddr) -> Answer>) -> (Answer, Instant) {
        let mut entries = self.peers.entries.borrow_mut();
        // An entry lives as long as its users.
        let Some(entry) = entries.get_mut(self.slot) else { return (Err(super::Unavailable::Ipcache), asking.now) };
        let epoch = entry.epoch;
        let answer = entry.answer(asking);
        if entry.epoch != epoch {
            self.peers.report_change();
        }
        answer
    }

    /// Another number whenever the answer has become another.
    pub(crate) fn epoch(&self) -> u64 {
        self.peers.entries.borrow().get(self.slot).map_or(0, |entry| entry.epoch)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut entries = self.peers.entries.borrow_mut();
        let Some(entry) = entries.get_mut(self.slot) else { return };
        entry.users -= 1;
        if entry.users == 0 {
            let address = entry.address;
            entries.remove(self.slot);
            self.peers.by_address.borrow_mut().remove(&address);
        }
    }
}

impl Entry {
    fn is_fresh<F>(&self, asking: &Asking<F>) -> bool {
        self.last.is_some_and(|seen| {
            seen.serial == asking.serial && asking.now.saturating_duration_since(seen.at) < asking.ttl
        })
    }

    fn answer(&mut self, asking: &Asking<impl Fn(IpAddr) -> Answer>) -> (Answer, Instant) {
        if let Some(seen) = self.last.filter(|_| self.is_fresh(asking)) {
            return (seen.answer, asking.until(seen.at));
        }
        let answer = (asking.ask)(self.address);
        if self.last.is_some_and(|seen| seen.answer != answer) {
            self.epoch += 1;
        }
        self.last = Some(Seen { answer, at: asking.now, serial: asking.serial });
        (answer, asking.until(asking.now))
    }
}

#[cfg(test)]
mod tests {
    use tollgate_policy::SecurityId;

    use super::*;

    const TTL: Duration = Duration::from_millis(3);

    fn asking<'a>(
        asked: &'a RefCell<Vec<IpAddr>>,
        identity: u32,
        now: Instant,
    ) -> Asking<impl Fn(IpAddr) -> Answer + 'a> {
        let ask = move |address| {
            asked.borrow_mut().push(address);
            Ok(Some(SecurityId(identity)))
        };
        Asking { ttl: TTL, serial: 1, now, ask }
    }

    #[test]
    fn an_address_is_asked_about_once_per_time_to_live() {
        let (asked, start) = (RefCell::default(), Instant::now());
        let peers = Rc::new(Peers::default());
        let address = IpAddr::from([10, 0, 0, 1]);
        let (one, other) = (peers.keep(address), peers.keep(address));
        for connection in [&one, &other, &one] {
            let (answer, until) = connection.answer(&asking(&asked, 7, start));
            assert_eq!((answer, until), (Ok(Some(SecurityId(7))), start + TTL));
        }
        assert_eq!(asked.borrow().len(), 1);
        assert_eq!(one.answer(&asking(&asked, 8, start + TTL / 2)).0, Ok(Some(SecurityId(7))));
        assert_eq!(one.epoch(), 0);
        assert_eq!(one.answer(&asking(&asked, 8, start + TTL)).0, Ok(Some(SecurityId(8))));
        assert_eq!((asked.borrow().len(), one.epoch(), other.epoch()), (2, 1, 1));
        // Maps that were opened again, and no time to live.
        let _ = one.answer(&Asking { serial: 2, ..asking(&asked, 8, start + TTL) });
        let _ = one.answer(&Asking { serial: 2, ttl: Duration::ZERO, ..asking(&asked, 8, start + TTL) });
        assert_eq!((asked.borrow().len(), one.epoch()), (4, 1));
        drop((one, other));
        assert!(peers.entries.borrow().is_empty() && peers.by_address.borrow().is_empty());
    }

    /// A sweep would find nothing new any more, so whoever found it has to tell.
    #[tokio::test]
    async fn what_one_connection_finds_is_news_for_all() {
        let (asked, start) = (RefCell::default(), Instant::now());
        let peers = Rc::new(Peers::default());
        let one = peers.keep(IpAddr::from([10, 0, 0, 1]));
        let is_reported = || async { tokio::time::timeout(Duration::ZERO, peers.changed()).await.is_ok() };
        let _ = one.answer(&asking(&asked, 7, start));
        let _ = one.answer(&asking(&asked, 7, start + TTL));
        assert!(!is_reported().await, "the same as before");
        let _ = one.answer(&asking(&asked, 8, start + 2 * TTL));
        assert!(!peers.sweep(100, &asking(&asked, 8, start + 3 * TTL)).changed);
        assert!(is_reported().await);
    }

    #[test]
    fn an_endless_time_to_live_has_the_address_looked_at_again() {
        let (asked, start) = (RefCell::default(), Instant::now());
        let user = Rc::new(Peers::default()).keep(IpAddr::from([10, 0, 0, 1]));
        for now in [start, start + TTL] {
            let asking = Asking { ttl: Duration::MAX, ..asking(&asked, 7, now) };
            assert_eq!(user.answer(&asking), (Ok(Some(SecurityId(7))), now));
        }
    }

    #[test]
    fn a_sweep_is_bounded_and_comes_round() {
        let (asked, start) = (RefCell::default(), Instant::now());
        let peers = Rc::new(Peers::default());
        let mut users: Vec<_> = (0..10).map(|i| peers.keep(IpAddr::from([10, 0, 0, i]))).collect();
        assert!(!peers.sweep(4, &asking(&asked, 7, start)).changed, "what nobody knew has not changed");
        assert_eq!(asked.borrow().len(), 4);
        peers.sweep(4, &asking(&asked, 7, start));
        peers.sweep(4, &asking(&asked, 7, start));
        let mut seen = asked.borrow().clone();
        seen.sort();
        seen.dedup();
        assert_eq!((asked.borrow().len(), seen.len()), (10, 10), "each once, and fresh ones not again");
        users.remove(3);
        let epoch = users[0].epoch();
        assert_eq!(peers.sweep(100, &asking(&asked, 8, start + TTL)), Swept { changed: true, asked: 9 });
        assert_eq!((asked.borrow().len(), users[0].epoch()), (19, epoch + 1));
        assert_eq!(peers.sweep(100, &asking(&asked, 8, start + 2 * TTL)), Swept { changed: false, asked: 9 });
        // Those that are fresh count, too: looking at them takes time.
        let looks = peers.places().div_ceil(4);
        let now = start + 2 * TTL;
        assert!((0..looks).all(|_| peers.sweep(4, &asking(&asked, 8, now)).asked == 0));
        let asked_in_turn: Vec<_> = (0..looks).map(|_| peers.sweep(4, &asking(&asked, 8, now + TTL)).asked).collect();
        assert!(asked_in_turn.iter().sum::<usize>() == 9 && asked_in_turn.iter().all(|asked| *asked <= 4));
    }
}
