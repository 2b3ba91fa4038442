//! Connections of a worker that wait for their client, the longest first: when places run short, they are what can go.
//!
//! Those that never asked for anything go first, then those that do not read what they asked for, then those between two
//! requests. While there is room nobody goes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use slab::Slab;

use super::slots::Crowding;
use crate::config::IdleLimits;
use crate::reason::Reason;
use crate::tenant::{Payer, Placed as _, TenantId};

/// Connections that are told to go for each one that comes: more than one, so that there is room before it is needed.
const AT_ONCE: usize = 2;
/// Connections that are looked at for one of a certain tenant. Who hoards has most of the longest idle.
pub(super) const LOOKED_AT: usize = 256;
/// Of the time that a connection may be idle when places begin to run short, so much (in sixteenths) is taken away by the time
/// that the last is given.
const SHORTENED: f64 = 15.0 / 16.0;

/// The lists, in the order in which they go.
const BEFORE_REQUEST: usize = 0;
const NOT_READING: usize = 1;
const BETWEEN_REQUESTS: usize = 2;

/// The idle connections of a worker. An entry costs no allocation, and no system call.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections(RefCell<Lists>);

#[derive(Debug, Default)]
struct Lists {
    nodes: Slab<Node>,
    /// Each from the longest idle on.
    ends: [Ends; 3],
    /// Told to go, and still there, though nothing keeps them.
    leaving: usize,
}

#[derive(Debug, Default)]
struct Ends {
    first: Option<usize>,
    last: Option<usize>,
}

/// A tenant that is short of memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Short {
    pub(super) place: usize,
    /// Bytes that are to go.
    pub(super) bytes: u64,
    /// Of what it may have above what is thought enough, the share that it has: as [`Crowding::share`].
    pub(super) share: f64,
}

/// Whose connections make room.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whose<'a> {
    Anybody,
    /// Those of the tenant's remote identities that have more than so many. Of all that are not known to have fewer.
    Hoarders {
        tenant: TenantId,
        above: u32,
    },
    /// Those of the same tenant and remote identity.
    Beside(&'a Payer),
}

impl Whose<'_> {
    fn has(&self, node: &Node) -> bool {
        match self {
            Self::Anybody => true,
            Self::Hoarders { tenant, above } => {
                let of_remote = || node.payer.as_ref()?.connections_of_remote();
                node.tenant == *tenant && of_remote().is_none_or(|connections| connections > *above)
            }
            Self::Beside(payer) => node.payer.as_ref().is_some_and(|other| other.is_beside(payer)),
        }
    }
}

#[derive(Debug)]
struct Node {
    /// Whose it is.
    tenant: TenantId,
    /// Which list it is in.
    list: Option<usize>,
    previous: Option<usize>,
    next: Option<usize>,
    /// Milliseconds of [`now`].
    since: u64,
    /// It was told to go, and nothing keeps it.
    leaving: bool,
    /// It was told to go.
    has_to_go: bool,
    /// For a reason that ends what is under way, too.
    stops_work: bool,
    /// No request is under way.
    rests: bool,
    /// How long it was idle when it was told to go, and why, until it hears of it.
    told: Option<(Duration, Reason)>,
    waker: Option<Waker>,
    /// Who is charged for what it holds.
    payer: Option<Rc<Payer>>,
}

impl Node {
    fn new(tenant: TenantId) -> Self {
        let (list, previous, next, told, waker, payer) = (None, None, None, None, None, None);
        Self {
            tenant,
            list,
            previous,
            next,
            since: 0,
            leaving: false,
            has_to_go: false,
            stops_work: false,
            rests: false,
            told,
            waker,
            payer,
        }
    }
}

impl IdleConnections {
    /// Tells connections to go that have been idle for longer than such `crowding` leaves them, and returns the reason of
    /// each. With `shadow` they are only counted, each once in the time that it is idle.
    pub(super) fn make_room(
        &self,
        limits: &IdleLimits,
        crowding: Crowding,
        whose: &Whose<'_>,
        shadow: bool,
    ) -> Vec<Reason> {
        let mut lists = self.0.borrow_mut();
        let mut wanted = crowding.excess.saturating_sub(lists.leaving).min(AT_ONCE);
        let now = if wanted > 0 { now() } else { 0 };
        let mut gone = Vec::new();
        let mut wakers = Vec::new();
        let most = [limits.before_request, limits.while_not_reading, limits.between_requests];
        for (list, most) in most.into_iter().enumerate() {
            let reason = if list == NOT_READING { Reason::SlowReader } else { Reason::IdleReaped };
            let patience = patience(most, crowding.share);
            let (mut next, mut looked_at) = (lists.ends[list].first, 0);
            while wanted > 0
                && looked_at < LOOKED_AT
                && let Some(key) = next
            {
                let node = &lists.nodes[key];
                let idle = Duration::from_millis(now.saturating_sub(node.since));
                if idle < patience {
                    break;
                }
                (next, looked_at) = (node.next, looked_at + 1);
                if !whose.has(node) {
                    continue;
                }
                lists.unlink(key);
                if !shadow {
                    wakers.extend(lists.tell(key, idle, reason));
                }
                wanted -= 1;
                gone.push(reason);
            }
        }
        // Whatever waking does, it finds the lists free.
        drop(lists);
        wakers.into_iter().for_each(Waker::wake);
        gone
    }

    /// Tells connections of tenants to go that are short of memory, the longest idle first, until so many bytes of each are on their
    /// way. Looks at so many of each list.
    pub(super) fn make_room_in_memory(&self, limits: &IdleLimits, short: &mut [Short], look_at: usize) {
        let mut lists = self.0.borrow_mut();
        let now = now();
        let mut wakers = Vec::new();
        let most = [limits.before_request, limits.while_not_reading, limits.between_requests];
        for (list, most) in most.into_iter().enumerate() {
            let reason = if list == NOT_READING { Reason::SlowReader } else { Reason::IdleReaped };
            let (mut next, mut looked_at) = (lists.ends[list].first, 0);
            while looked_at < look_at
                && let Some(key) = next
            {
                let node = &lists.nodes[key];
                (next, looked_at) = (node.next, looked_at + 1);
                let idle = Duration::from_millis(now.saturating_sub(node.since));
                let wanted = short.iter_mut().find(|short| short.place == node.tenant.place() && short.bytes > 0);
                let Some(wanted) = wanted.filter(|short| idle >= patience(most, short.share)) else { continue };
                let memory = node.payer.as_ref().map_or(0, |payer| payer.memory());
                wanted.bytes = wanted.bytes.saturating_sub(memory);
                lists.unlink(key);
                wakers.extend(lists.tell(key, idle, reason));
            }
        }
        drop(lists);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Tells those connections of a tenant to go that hold the most memory, until so many bytes are on their way, with those of
    /// connections that were told before.
    pub(super) fn send_away(&self, place: usize, bytes: u64) {
        let mut lists = self.0.borrow_mut();
        let mut left = bytes;
        let mut holders = Vec::new();
        for (key, node) in &lists.nodes {
            match node.payer.as_ref().filter(|payer| payer.tenant().place() == place) {
                Some(payer) if node.leaving => left = left.saturating_sub(payer.memory()),
                Some(payer) => holders.push((payer.memory(), key)),
                None => {}
            }
        }
        holders.sort_unstable_by(|a, b| b.cmp(a));
        let mut wakers = Vec::new();
        for (memory, key) in holders {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(memory);
            lists.unlink(key);
            wakers.extend(lists.tell(key, Duration::ZERO, Reason::TenantMemory));
        }
        drop(lists);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Lists {
    fn link(&mut self, key: usize, list: usize) {
        self.unlink(key);
        let last = self.ends[list].last.replace(key);
        match last {
            Some(last) => self.nodes[last].next = Some(key),
            None => self.ends[list].first = Some(key),
        }
        let node = &mut self.nodes[key];
        (node.list, node.previous, node.next, node.since) = (Some(list), last, None, now());
    }

    fn unlink(&mut self, key: usize) {
        let node = &mut self.nodes[key];
        let (Some(list), previous, next) = (node.list.take(), node.previous.take(), node.next.take()) else { return };
        match previous {
            Some(previous) => self.nodes[previous].next = next,
            None => self.ends[list].first = next,
        }
        match next {
            Some(next) => self.nodes[next].previous = previous,
            None => self.ends[list].last = previous,
        }
    }

    fn tell(&mut self, key: usize, idle: Duration, reason: Reason) -> Option<Waker> {
        let node = &mut self.nodes[key];
        node.told = Some((idle, reason));
        node.has_to_go = true;
        node.stops_work |= reason.ends_at_work();
        let waker = node.waker.take();
        self.leaves_or_stays(key);
        waker
    }

    /// Counts a connection that was told to go as on its way, unless it is at work: that may last for ever, and what is not free soon
    /// is no room for anybody.
    fn leaves_or_stays(&mut self, key: usize) {
        let node = &mut self.nodes[key];
        let leaves = node.has_to_go && (node.rests || node.stops_work);
        match (std::mem::replace(&mut node.leaving, leaves), leaves) {
            (false, true) => self.leaving += 1,
            (true, false) => self.leaving -= 1,
            _ => {}
        }
        match &node.payer {
            Some(payer) if leaves => payer.leave(),
            Some(payer) if node.has_to_go => payer.stay(),
            _ => {}
        }
    }
}

/// How long a connection may be idle of which a list says `most`, when that share of the scarce places is taken.
fn patience(most: Duration, share: f64) -> Duration {
    most.mul_f64(1.0 - share * SHORTENED)
}

/// Milliseconds, as exact as the kernel's tick, and much cheaper than an exact time.
fn now() -> u64 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    let (seconds, nanoseconds) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    seconds * 1000 + nanoseconds / 1_000_000
}

/// One connection, which at first is at work: nothing is known of it yet.
#[derive(Debug)]
pub(crate) struct Idle {
    all: Rc<IdleConnections>,
    key: usize,
    asked: Cell<bool>,
    work: Cell<u32>,
    /// The client takes nothing.
    blocked: Cell<bool>,
}

impl Idle {
    #[cfg(test)]
    pub(crate) fn new(all: &Rc<IdleConnections>, tenant: TenantId) -> Self {
        Self::with(all, Node::new(tenant))
    }

    /// A connection that this payer is charged for.
    pub(crate) fn of(all: &Rc<IdleConnections>, payer: &Rc<Payer>) -> Self {
        Self::with(all, Node { payer: Some(Rc::clone(payer)), ..Node::new(payer.tenant()) })
    }

    fn with(all: &Rc<IdleConnections>, node: Node) -> Self {
        let key = all.0.borrow_mut().nodes.insert(node);
        Self { all: Rc::clone(all), key, asked: Cell::default(), work: Cell::new(1), blocked: Cell::default() }
    }

    /// It is that tenant's now.
    pub(crate) fn follow(&self, tenant: TenantId) {
        self.all.0.borrow_mut().nodes[self.key].tenant = tenant;
    }

    /// From now on it waits for its first request.
    pub(crate) fn wait(&self) {
        self.rest();
    }

    /// Begins a request; while any is under way it does not wait.
    pub(crate) fn work(&self) -> Work<'_> {
        if self.work.replace(self.work.get() + 1) == 0 {
            let mut lists = self.all.0.borrow_mut();
            lists.unlink(self.key);
            lists.nodes[self.key].rests = false;
            lists.leaves_or_stays(self.key);
        }
        self.asked.set(true);
        Work(self)
    }

    /// Whether a request is under way.
    pub(crate) fn is_working(&self) -> bool {
        self.work.get() > 0
    }

    /// Notes whether a write to the client got through.
    pub(crate) fn wrote<T>(&self, written: Poll<T>) -> Poll<T> {
        if self.blocked.replace(written.is_pending()) != written.is_pending() {
            let mut lists = self.all.0.borrow_mut();
            match (written.is_pending(), lists.nodes[self.key].list) {
                (true, None) => lists.link(self.key, NOT_READING),
                (false, Some(NOT_READING)) => lists.unlink(self.key),
                _ => {}
            }
        }
        written
    }

    /// Waits until it is told to go, and returns how long it had been idle, and the reason.
    pub(crate) async fn told(&self) -> (Duration, Reason) {
        self.told_for(|_| true).await
    }

    /// The same for one that is at work, which only goes if its client does not read, or its tenant holds too much: what came
    /// since it was told for another reason is served first.
    pub(crate) async fn told_at_work(&self) -> (Duration, Reason) {
        self.told_for(Reason::ends_at_work).await
    }

    async fn told_for(&self, counts: impl Fn(Reason) -> bool) -> (Duration, Reason) {
        poll_fn(|cx| {
            let mut lists = self.all.0.borrow_mut();
            let node = &mut lists.nodes[self.key];
            if let Some(told) = node.told.take_if(|(_, reason)| counts(*reason)) {
                return Poll::Ready(told);
            }
            if !node.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                node.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn rest(&self) {
        let left = self.work.get().saturating_sub(1);
        self.work.set(left);
        if left == 0 {
            let mut lists = self.all.0.borrow_mut();
            lists.link(self.key, if self.asked.get() { BETWEEN_REQUESTS } else { BEFORE_REQUEST });
            lists.nodes[self.key].rests = true;
            lists.leaves_or_stays(self.key);
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let mut lists = self.all.0.borrow_mut();
        lists.unlink(self.key);
        if lists.nodes.remove(self.key).leaving {
            lists.leaving -= 1;
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Work<'a>(&'a Idle);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.rest();
    }
}

#[cfg(test)]
mod tests;
