//! Where limits decide: once for a connection, before anything is done for it, and once for a request, when its head is
//! there.
//!
//! Places (connections, requests under way) are taken in one step for all workers, so that a ceiling is never exceeded, and a
//! contract is asked when they are there; whoever is refused gives them back. A tenant without limits costs two additions, and
//! more only when places run short.

use std::cell::Cell;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::commons::{Commons, Space, Taken};
use super::destinations::{Full, UpstreamPlace};
use super::gcra::{Bucket, Contract};
use super::share::{self, Pool, Wanting};
use super::{Account, Ceilings, Ledger, OutOfMemory, Rate, Settings, Table, TenantId};
use crate::reason::Reason;

/// How long requests wait for processor time beyond a ceiling, unless `queue_delay` says so.
const MOST_DELAY: Duration = Duration::from_secs(1);

/// A limit that has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// Which.
    pub reason: Reason,
    /// When it is worth to try again; at least a second is said.
    pub retry_after: Option<Duration>,
    /// Whose it is.
    pub scope: Scope,
    /// What was agreed, where it is a rate.
    pub rate: Option<Rate>,
}

/// Whose limit it is that somebody has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The tenant's.
    Tenant,
    /// One remote identity's: the tenant has places left, which are for others of them.
    Flow,
    /// Of what all tenants share.
    Shared,
}

impl Scope {
    /// As clients are told.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Flow => "flow",
            Self::Shared => "shared",
        }
    }
}

impl Limited {
    /// One that passes with what is under way, of the tenant as a whole.
    pub(crate) const fn by(reason: Reason) -> Self {
        let scope = match reason {
            Reason::TenantShare => Scope::Shared,
            _ => Scope::Tenant,
        };
        Self { reason, retry_after: None, scope, rate: None }
    }

    /// Value of `retry-after`, in seconds: never 0, which would ask for a retry at once.
    pub fn retry_after_seconds(self) -> u64 {
        let wait = self.retry_after.unwrap_or_default();
        (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
    }
}

/// The limit that would have refused what was admitted, were it not for the shadow.
pub(crate) type WouldLimit = Option<Limited>;

/// Says how many places the remote identity has that wants another; `None` where nobody knows it.
pub(super) type OfRemote<'a> = &'a dyn Fn() -> Option<u32>;

/// What limits ask about a request.
pub(crate) struct Head<'a> {
    /// It has no end in sight.
    pub(crate) is_long: bool,
    /// How long its head is.
    pub(crate) bytes: &'a dyn Fn() -> usize,
}

/// What a request has been given, and gives back at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) in_flight: Option<Taken>,
    pub(super) long_stream: bool,
}

/// How far a tenant is with its places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) taken: u32,
    /// So many it may have while others keep theirs.
    pub(crate) allowed: u32,
}

impl Places {
    /// The same for a remote identity of the tenant that has `own` of these.
    pub(crate) fn of_remote(self, own: u32) -> Self {
        Self { taken: own, allowed: share::of_remote(self.allowed, self.taken, own) }
    }
}

/// Places that a tenant may have.
#[derive(Clone, Copy, Debug)]
struct Shares {
    now: u32,
    /// Those that its remote identities share.
    of_remotes: u32,
}

/// A decision point's view of one tenant.
pub(crate) struct Gate<'a> {
    tenant: TenantId,
    account: Option<&'a Account>,
    commons: &'a Commons,
    table: &'a Table,
    /// `None` when nothing is set for it.
    settings: Option<&'a Settings>,
    /// See [`Gate::would_limit`].
    would_limit: Cell<WouldLimit>,
}

impl<'a> Gate<'a> {
    /// For `tenant`, by this table and on the worker that has this ledger. Settings are looked for only where there are any.
    pub(crate) fn new(tenant: TenantId, has_settings: bool, table: &'a Table, ledger: &'a Ledger) -> Self {
        let settings = has_settings.then(|| table.settings(tenant));
        let (account, commons, would_limit) = (ledger.account(tenant), ledger.commons(), Cell::new(None));
        Self { tenant, account, commons, table, settings, would_limit }
    }

    /// The first of what was asked for here and admitted.
    pub(super) fn would_limit(&self) -> WouldLimit {
        self.would_limit.get()
    }

    /// Takes a place for a connection that was just accepted.
    ///
    /// # Errors
    /// The limit that it would exceed.
    pub(super) fn admit_connection(&self, of_remote: OfRemote<'_>) -> Result<Taken, Limited> {
        self.admit_memory()?;
        self.keep_apart()?;
        let ceilings = self.settings.map(|settings| &settings.ceilings);
        let ceiling = ceilings.and_then(|ceilings| ceilings.connections);
        let taken = self.take_place(Space::Connections, ceiling, Reason::TenantConnections, of_remote)?;
        let rate = ceilings.and_then(|ceilings| ceilings.new_connections);
        let bucket = &self.commons.standing(self.tenant).new_connections;
        self.keep_contract(rate, bucket, Reason::TenantConnectionRate)
            .inspect_err(|_| self.commons.leave(Space::Connections, taken, self.tenant))
            .map(|()| taken)
    }

    /// Takes what a request needs whose head is there.
    ///
    /// # Errors
    /// As [`Gate::admit_connection`].
    pub(super) fn admit_request(&self, head: &Head<'_>, of_remote: OfRemote<'_>) -> Result<Held, Limited> {
        self.admit_memory()?;
        let (is_long, ceilings) = (head.is_long, self.settings.map(|settings| &settings.ceilings));
        if let Some(most) = ceilings.and_then(|ceilings| ceilings.header_bytes)
            && (head.bytes)() > most.get() as usize
        {
            self.decide(Limited::by(Reason::TenantHeaders))?;
        }
        self.count_cpu();
        self.keep_to_delay(ceilings)?;
        let in_flight = ceilings.and_then(|ceilings| ceilings.in_flight);
        let taken = self.take_place(Space::InFlight, in_flight, Reason::TenantInFlight, of_remote)?;
        let mut held = Held { in_flight: Some(taken), long_stream: false };
        let admitted = match is_long {
            true => self.take_long_stream(ceilings.and_then(|ceilings| ceilings.long_streams)),
            false => Ok(()),
        };
        held.long_stream = is_long && admitted.is_ok();
        let rate = ceilings.and_then(|ceilings| ceilings.requests);
        let bucket = &self.commons.standing(self.tenant).requests;
        admitted
            .and_then(|()| self.keep_contract(rate, bucket, Reason::TenantRate))
            .map(|()| held)
            .inspect_err(|_| self.commons.give_back(self.tenant, held))
    }

    /// Takes a place for a connection to an upstream.
    ///
    /// # Errors
    /// As [`Gate::admit_connection`].
    pub(super) fn admit_upstream(&self, destination: SocketAddr) -> Result<UpstreamPlace, Limited> {
        let ceiling = self.settings.and_then(|settings| settings.ceilings.upstream_connections);
        let ceiling = ceiling.map_or(u32::MAX, NonZeroU32::get);
        let take = |most| self.commons.destinations.take(self.tenant, destination, most);
        take(ceiling).or_else(|Full| {
            self.decide(Limited::by(Reason::TenantUpstreams))?;
            take(u32::MAX).map_err(|Full| Limited::by(Reason::TenantUpstreams))
        })
    }

    /// How far the tenant is with its connections, once places may run short for it.
    pub(crate) fn connections(&self) -> Option<Places> {
        let space = Space::Connections;
        let taken = self.commons.standing(self.tenant).of(space).load(Ordering::Relaxed);
        let all = self.commons.used(space).load(Ordering::Relaxed);
        let share = (all >= self.commons.total(space) / 4).then(|| self.share(space, taken, all));
        let ceiling = self.settings.and_then(|settings| settings.ceilings.connections).map(NonZeroU32::get);
        let allowed = share.into_iter().chain(ceiling).min()?;
        Some(Places { taken, allowed })
    }

    /// Takes a place below the ceiling, below the tenant's share once half of all places are taken, and below the part of its remote
    /// identity once half of what the tenant may have is.
    fn take_place(
        &self,
        space: Space,
        ceiling: Option<NonZeroU32>,
        reason: Reason,
        of_remote: OfRemote<'_>,
    ) -> Result<Taken, Limited> {
        let mine = self.commons.standing(self.tenant).of(space);
        // First that of all, so that no two who come at once both find the last place free.
        let all = self.commons.used(space).fetch_add(1, Ordering::Relaxed);
        if all < self.commons.total(space) / 4 && ceiling.is_none() {
            mine.fetch_add(1, Ordering::Relaxed);
            return Ok(Taken::Within);
        }
        let ceiling = ceiling.map_or(u32::MAX, NonZeroU32::get);
        let used = mine.load(Ordering::Relaxed);
        let share = self.in_sight(space, used, all);
        let why = |used| if used >= ceiling { reason } else { Reason::TenantShare };
        let by_remote = exceeds_part(share.of_remotes.min(ceiling), used, of_remote)
            .then(|| Limited { scope: Scope::Flow, ..Limited::by(why(share.of_remotes)) });
        let taken = match by_remote.filter(|limited| !self.is_in_shadow(limited.reason)) {
            Some(limited) => Err(limited),
            None => match take(mine, share.now.min(ceiling)) {
                Ok(_) => {
                    by_remote.into_iter().for_each(|limited| self.shadowed(limited));
                    Ok(Taken::Within)
                }
                Err(_) if self.take_beyond(space, ceiling, all, of_remote) => Ok(Taken::Beyond),
                Err(used) => self.decide(Limited::by(why(used))).map(|()| {
                    mine.fetch_add(1, Ordering::Relaxed);
                    Taken::Within
                }),
            },
        };
        taken.inspect_err(|_| {
            self.commons.used(space).fetch_sub(1, Ordering::Relaxed);
        })
    }

    /// Takes one of the few places beyond the tenant's share for a remote identity that has none. A share shrinks when other tenants come,
    /// and who is there keeps what it has: whoever comes next would have to wait for those to end.
    fn take_beyond(&self, space: Space, ceiling: u32, all: u32, of_remote: OfRemote<'_>) -> bool {
        if of_remote() != Some(0) {
            return false;
        }
        let standing = self.commons.standing(self.tenant);
        let (mine, beyond) = (standing.of(space), standing.beyond(space));
        let free = self.commons.total(space).saturating_sub(all).saturating_sub(self.reserved(space));
        let give_back = |_: &u32| {
            beyond.fetch_sub(1, Ordering::Relaxed);
        };
        take(beyond, share::beyond(free)).is_ok() && take(mine, ceiling).inspect_err(give_back).is_ok()
    }

    /// What the tenant may have, now and when half of all places are taken. Without an end while less than a quarter are.
    fn in_sight(&self, space: Space, used: u32, all: u32) -> Shares {
        let (half, quarter) = (self.commons.total(space) / 2, self.commons.total(space) / 4);
        if all < quarter {
            return Shares { now: u32::MAX, of_remotes: u32::MAX };
        }
        let share = self.share(space, used, all);
        if all >= half {
            return Shares { now: share, of_remotes: share };
        }
        // What is idle is lent.
        let lent = half.saturating_sub(all.saturating_sub(used));
        Shares { now: u32::MAX, of_remotes: share.max(lent) }
    }

    /// The tenant's part of the places, of which it has taken some.
    fn share(&self, space: Space, used: u32, all: u32) -> u32 {
        let pool = Pool { total: self.commons.total(space), used: all, reserved: self.reserved(space) };
        let guarantee = self.settings.and_then(|settings| settings.guarantee.of(space)).map_or(0, NonZeroU32::get);
        let wanting = Wanting { used, guarantee, weight: self.commons.weight(self.tenant) };
        share::places(pool, wanting, self.commons.crowd(space, self.tenant))
    }

    /// Places that others are guaranteed and do not use.
    fn reserved(&self, space: Space) -> u32 {
        let unused = |(tenant, guarantee): (TenantId, u32)| {
            guarantee.saturating_sub(self.commons.standing(tenant).of(space).load(Ordering::Relaxed))
        };
        self.table.guarantees(space).filter(|(tenant, _)| *tenant != self.tenant).map(unused).sum()
    }

    fn take_long_stream(&self, ceiling: Option<NonZeroU32>) -> Result<(), Limited> {
        let mine = &self.commons.standing(self.tenant).long_streams;
        if take(mine, ceiling.map_or(u32::MAX, NonZeroU32::get)).is_err() {
            self.decide(Limited::by(Reason::TenantLongStreams))?;
            mine.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn keep_contract(&self, rate: Option<Rate>, bucket: &Bucket, reason: Reason) -> Result<(), Limited> {
        let Some(rate) = rate else { return Ok(()) };
        let since = self.commons.since(Instant::now());
        match bucket.take(Contract::new(rate), since, 1) {
            Ok(()) => Ok(()),
            Err(wait) => self.decide(Limited { retry_after: Some(wait), rate: Some(rate), ..Limited::by(reason) }),
        }
    }

    /// Who has used up its processor time waits for more (`worker/run.rs`). In shadow nobody does, and each request counts that would
    /// have.
    fn count_cpu(&self) {
        let rate = self.settings.filter(|settings| settings.shadow).and_then(|settings| settings.ceilings.cpu());
        if rate.is_some_and(|rate| !self.commons.pay_for_cpu(self.tenant, rate, 0).is_zero()) {
            self.shadowed(Limited::by(Reason::TenantCpu));
        }
    }

    /// Lets few connections in while the tenant is kept apart.
    fn keep_apart(&self) -> Result<(), Limited> {
        let admitted = self.commons.standing(self.tenant).panics.admit(|| self.commons.since(Instant::now()));
        let limited = |wait| Limited { retry_after: Some(wait), ..Limited::by(Reason::TenantIsolated) };
        admitted.or_else(|wait| self.decide(limited(wait)))
    }

    /// Refuses while requests of the tenant would only wait behind each other: what is refused makes the queue shorter.
    fn keep_to_delay(&self, ceilings: Option<&Ceilings>) -> Result<(), Limited> {
        let (Some(ceilings), Some(account)) = (ceilings, self.account) else { return Ok(()) };
        let Some(most) = most_delay(ceilings) else { return Ok(()) };
        let reason = if ceilings.cpu_millis.is_some() { Reason::TenantCpu } else { Reason::TenantQueueDelay };
        match account.standing_delay() > most {
            true => self.decide(Limited::by(reason)),
            false => Ok(()),
        }
    }

    /// Whether there is memory for anything. A tenant's shadow is about its ceiling; what is left for all is the process's
    /// matter, and its own shadow's.
    fn admit_memory(&self) -> Result<(), Limited> {
        let room = self.commons.room();
        let Some(why) = room.refusal(self.tenant) else { return Ok(()) };
        let limited = Limited::by(Reason::TenantMemory);
        match why {
            OutOfMemory::Ceiling => self.decide(limited),
            OutOfMemory::Left if room.is_in_shadow() => {
                self.shadowed(limited);
                Ok(())
            }
            OutOfMemory::Left => Err(Limited { scope: Scope::Shared, ..limited }),
        }
    }

    /// In shadow, a limit only counts what it would have refused. What is refused is counted with its flow.
    fn decide(&self, limited: Limited) -> Result<(), Limited> {
        if !self.is_in_shadow(limited.reason) {
            return Err(limited);
        }
        self.shadowed(limited);
        Ok(())
    }

    fn is_in_shadow(&self, reason: Reason) -> bool {
        self.settings.is_some_and(|settings| settings.shadow)
            || (reason == Reason::TenantShare && self.commons.pools().shadow)
    }

    fn shadowed(&self, limited: Limited) {
        self.would_limit.set(self.would_limit.get().or(Some(limited)));
        if let Some(account) = self.account {
            account.shadowed[limited.reason as usize].increment();
        }
    }
}

/// Whether a remote identity has all that it may out of `most` places of its tenant, of which some are left. While less than half are taken
/// nobody asks.
fn exceeds_part(most: u32, used: u32, of_remote: OfRemote<'_>) -> bool {
    (most / 2..most).contains(&used) && of_remote().is_some_and(|own| own >= share::of_remote(most, used, own))
}

/// How long requests may wait behind each other. Those that wait for processor time beyond a ceiling have no end else.
fn most_delay(ceilings: &Ceilings) -> Option<Duration> {
    let said = ceilings.queue_delay_millis.map(|millis| Duration::from_millis(millis.get().into()));
    said.or_else(|| ceilings.cpu_millis.map(|_| MOST_DELAY))
}

/// Takes one more, unless there are so many already.
///
/// # Errors
/// How many there are.
fn take(count: &AtomicU32, most: u32) -> Result<u32, u32> {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < most).then(|| used + 1))
}

#[cfg(test)]
mod tests;
