//! Who is at the two ends of one connection, now.
//!
//! Nothing is kept that could be another by now: a change of the world, or the end of an answer's time to live, asks again.
//! What is kept from accept is what a change is told by.

use std::cell::{Cell, OnceCell};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tollgate_net::ConntrackFlow;
use tollgate_policy::{Direction, EndpointKey, SecurityId};

use crate::config::IdentityMode;
use crate::control::{Owner, World};
use crate::identity::{Accepted, Answer, InUse, Unavailable};
use crate::reason::Reason;
use crate::worker::Worker;

/// Identities of the two ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identities {
    pub(crate) source: SecurityId,
    /// 0 for ingress: it is the local endpoint.
    pub(crate) destination: SecurityId,
    /// Another identity of the source that policy has to admit too.
    pub(super) also: Option<SecurityId>,
}

/// Why nobody on a connection is judged by policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Barred {
    pub(crate) reason: Reason,
    /// What cannot be asked.
    pub(crate) detail: Option<Unavailable>,
}

impl From<Reason> for Barred {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: None }
    }
}

impl From<Unavailable> for Barred {
    fn from(unavailable: Unavailable) -> Self {
        Self { reason: Reason::IdentityUnknown, detail: Some(unavailable) }
    }
}

/// The connection whose ends are asked about, and where.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    pub(super) worker: &'a Worker,
    pub(super) world: &'a World,
    pub(super) direction: Direction,
    pub(super) downstream: SocketAddr,
    pub(super) original_dst: SocketAddr,
    pub(super) endpoint: &'a EndpointKey,
}

/// What a connection remembers about its ends.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// As they were when they could first be looked up.
    accepted: Cell<Option<AtAccept>>,
    /// Whom the endpoint's address belonged to when it first belonged to anybody.
    owner: Cell<Option<Owner>>,
    last: Cell<Option<Last>>,
    in_use: OnceCell<(InUse, Option<InUse>)>,
}

/// What the ends were when the connection was accepted, by which a change is told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AcceptedEnds {
    accepted: Option<AtAccept>,
    owner: Option<Owner>,
}

#[derive(Clone, Copy, Debug)]
struct AtAccept {
    source: Accepted,
    destination: SecurityId,
}

/// The last answer, and what it is good for.
#[derive(Clone, Copy, Debug)]
struct Last {
    generation: u64,
    until: Option<Instant>,
    answer: Result<Identities, Barred>,
}

impl Remembered {
    /// For a connection that goes to another thread.
    pub(super) fn carried(&self) -> AcceptedEnds {
        AcceptedEnds { accepted: self.accepted.get(), owner: self.owner.get() }
    }

    /// Of one that came from there. Who its ends are now is looked up again.
    pub(super) fn resume(AcceptedEnds { accepted, owner }: AcceptedEnds) -> Self {
        Self { accepted: Cell::new(accepted), owner: Cell::new(owner), ..Self::default() }
    }

    /// The identities in this world and at this moment.
    ///
    /// # Errors
    /// Nobody may be let through: an end cannot be looked up, or is another than the connection was accepted with where
    /// that ends it.
    pub(super) fn identities(&self, ends: &Ends<'_>) -> Result<Identities, Barred> {
        let last = self.last.get();
        if let Some(last) = last
            && last.generation == ends.world.generation
            && last.until.is_none_or(|until| Instant::now() < until)
        {
            return last.answer;
        }
        let (answer, until) = self.look_up(ends);
        if let (Some(Last { answer: Ok(before), .. }), Ok(now)) = (last, answer)
            && before != now
        {
            ends.worker.flows.metrics().identity_changed();
        }
        self.last.set(Some(Last { generation: ends.world.generation, until, answer }));
        answer
    }

    /// A number that is another whenever what the ipcache says about an end has become another.
    pub(super) fn epoch(&self) -> u64 {
        self.in_use
            .get()
            .map_or(0, |(source, destination)| source.epoch() + destination.as_ref().map_or(0, InUse::epoch))
    }

    /// What the address of the remote end carries, for who shares with whom. Nobody is let in by it: conntrack may know better.
    pub(super) fn remote(&self, ends: &Ends<'_>) -> Option<SecurityId> {
        let (sources, metrics) = (&ends.world.identities, ends.worker.flows.metrics());
        let answer = match (sources.asking(Instant::now(), metrics), ends.direction) {
            (None, Direction::Ingress) => sources.address(ends.downstream.ip()),
            (None, Direction::Egress) => sources.address(ends.original_dst.ip()),
            (Some(asking), _) => {
                let (source, destination) = self.in_use(ends);
                destination.as_ref().unwrap_or(source).answer(&asking).0
            }
        };
        Some(answer.ok()?.unwrap_or(SecurityId::WORLD))
    }

    fn in_use(&self, ends: &Ends<'_>) -> &(InUse, Option<InUse>) {
        self.in_use.get_or_init(|| {
            let keep = |address: IpAddr| ends.worker.peers.keep(address.to_canonical());
            let destination = (ends.direction == Direction::Egress).then(|| keep(ends.original_dst.ip()));
            (keep(ends.downstream.ip()), destination)
        })
    }

    fn look_up(&self, ends: &Ends<'_>) -> (Result<Identities, Barred>, Option<Instant>) {
        if self.owner_changed(ends) {
            return (Err(Reason::EndpointChanged.into()), None);
        }
        let sources = &ends.world.identities;
        let Some(asking) = sources.asking(Instant::now(), ends.worker.flows.metrics()) else {
            let destination = match ends.direction {
                Direction::Ingress => Ok(None),
                Direction::Egress => sources.address(ends.original_dst.ip()),
            };
            return self.resolve(ends, sources.address(ends.downstream.ip()), destination, None);
        };
        let (source, destination) = self.in_use(ends);
        let (source, mut until) = source.answer(&asking);
        let destination = match destination {
            Some(destination) => {
                let (answer, until_then) = destination.answer(&asking);
                until = until.min(until_then);
                answer
            }
            None => Ok(None),
        };
        self.resolve(ends, source, destination, Some(until))
    }

    /// Whose word counts, out of what the addresses carry now and what was known at accept.
    fn resolve(
        &self,
        ends: &Ends<'_>,
        source: Answer,
        destination: Answer,
        until: Option<Instant>,
    ) -> (Result<Identities, Barred>, Option<Instant>) {
        let (source, destination) = match (source, destination) {
            (Ok(source), Ok(destination)) => (source, destination),
            (Err(unavailable), _) | (_, Err(unavailable)) => return (Err(unavailable.into()), until),
        };
        let destination_now = match ends.direction {
            Direction::Ingress => SecurityId(0),
            Direction::Egress => destination.unwrap_or(SecurityId::WORLD),
        };
        let accepted = match self.accepted.get() {
            Some(accepted) => accepted,
            None => match Self::accept(ends, source, destination_now) {
                Ok(accepted) => accepted,
                // Asked again at once: nothing announces that the map can be read.
                Err(unavailable) => return (Err(unavailable.into()), Some(Instant::now())),
            },
        };
        let mode = ends.world.identities.mode();
        let peer = accepted.source.peer(mode, source);
        // For good: an address that is given back has changed hands twice.
        let conntrack = accepted.source.conntrack.filter(|_| !peer.changed);
        self.accepted.set(Some(AtAccept { source: Accepted { conntrack, ..accepted.source }, ..accepted }));
        let changed = peer.changed || destination_now != accepted.destination;
        if changed && mode == IdentityMode::Strict {
            return (Err(Reason::IdentityChanged.into()), until);
        }
        (Ok(Identities { source: peer.identity, destination: destination_now, also: peer.also }), until)
    }

    fn accept(ends: &Ends<'_>, source: Option<SecurityId>, destination: SecurityId) -> Result<AtAccept, Unavailable> {
        let flow = ConntrackFlow {
            source: ends.downstream,
            destination: ends.original_dst,
            ingress: ends.direction == Direction::Ingress,
        };
        let metrics = ends.worker.flows.metrics();
        let conntrack = ends.world.identities.conntrack(&flow, metrics)?;
        let source = Accepted { conntrack, address: source.unwrap_or(SecurityId::WORLD) };
        if source.disagrees() {
            metrics.identity_disagreement();
        }
        Ok(AtAccept { source, destination })
    }

    /// Whether the local address belongs to another endpoint than it did. One without a policy belongs to nobody, and denies.
    fn owner_changed(&self, ends: &Ends<'_>) -> bool {
        match (self.owner.get(), ends.world.owner(ends.endpoint)) {
            (Some(before), Some(now)) => before != now,
            (None, now) => {
                self.owner.set(now);
                false
            }
            (Some(_), None) => false,
        }
    }
}
