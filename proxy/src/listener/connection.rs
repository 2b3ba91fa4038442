//! One downstream connection: who it is, and what policy says about it at this moment.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tollgate_policy::{
    ConnectionVerdict, Direction, EndpointKey, Flow, NearestMiss, REDACTED, Request, RuleRef, SecurityId, ServerName,
    Verdict,
};

use crate::config;
use crate::control::World;
use crate::flow::{Fields, FlowRecord, LogTarget, OpenFlow, Outcome, Protocol, SinkSet};
use crate::reason::Reason;
use crate::worker::{Signals, Subscription, Worker};

/// A listener as a worker sees it.
#[derive(Debug)]
pub(crate) struct ListenerContext {
    pub(crate) config: config::Listener,
    /// The listener's name, in the form that records share.
    pub(crate) name: Arc<str>,
    pub(crate) index: crate::metrics::ListenerIndex,
    /// What its connections react to.
    pub(crate) signals: Rc<Signals>,
    /// Sockets that its requests are logged to.
    pub(crate) access_log: SinkSet,
}

/// A downstream connection. Policy and identities are read anew for each decision; nothing of them is kept.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) listener: Rc<ListenerContext>,
    pub(crate) downstream: SocketAddr,
    pub(crate) original_dst: SocketAddr,
    /// For the connection's own task. A task that serves a part of it, an HTTP/2 stream, needs one of its own.
    pub(crate) subscription: Subscription,
    /// Whose policy is enforced.
    endpoint: EndpointKey,
    /// Where its flows are logged.
    log: Option<LogTarget>,
    /// Identities of both ends, valid for the world generation they were looked up in.
    identities: Cell<Option<(u64, Identities)>>,
}

/// Identities of the two ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identities {
    pub(crate) source: SecurityId,
    pub(crate) destination: SecurityId,
}

/// A decision with what a flow record needs to say about it.
#[derive(Debug)]
pub(crate) struct Judged<V> {
    pub(crate) verdict: V,
    pub(crate) generation: u64,
    pub(crate) identities: Identities,
}

impl Connection {
    pub(crate) fn new(
        worker: &Rc<Worker>,
        listener: &Rc<ListenerContext>,
        downstream: SocketAddr,
        original_dst: SocketAddr,
    ) -> Self {
        let config = &listener.config;
        let endpoint = config.endpoint.unwrap_or_else(|| match config.direction {
            Direction::Ingress => original_dst.ip(),
            Direction::Egress => downstream.ip(),
        });
        Self {
            worker: Rc::clone(worker),
            listener: Rc::clone(listener),
            downstream,
            original_dst,
            subscription: listener.signals.subscribe(),
            endpoint: endpoint.into(),
            log: (!listener.access_log.is_empty()).then_some(LogTarget {
                sinks: listener.access_log,
                endpoint,
                proxy_id: config.proxy_id,
            }),
            identities: Cell::new(None),
        }
    }

    /// Generation of the newest world: whether time has passed it by since a decision.
    pub(crate) fn world_generation(&self) -> u64 {
        self.worker.world.load().generation
    }

    /// Looks both ends up again whenever the world has changed: an address may have changed hands.
    fn identities(&self, world: &World) -> Identities {
        if let Some((generation, identities)) = self.identities.get()
            && generation == world.generation
        {
            return identities;
        }
        let identities = Identities {
            source: world.identity(self.downstream.ip()),
            destination: world.identity(self.original_dst.ip()),
        };
        self.identities.set(Some((world.generation, identities)));
        identities
    }

    fn flow(&self, identities: Identities) -> Flow<'_> {
        let direction = self.listener.config.direction;
        Flow {
            direction,
            endpoint: &self.endpoint,
            remote: match direction {
                Direction::Ingress => identities.source,
                Direction::Egress => identities.destination,
            },
            port: self.original_dst.port(),
            proxy_id: self.listener.config.proxy_id,
            // TLS is not inspected.
            server_name: ServerName::Unknown,
        }
    }

    /// Judges the connection by the newest policy.
    pub(crate) fn judge(&self) -> Judged<ConnectionVerdict> {
        let world = self.worker.world.load();
        let identities = self.identities(&world);
        let verdict = world.policy.evaluate_connection(&self.flow(identities));
        Judged { verdict, generation: world.policy.generation(), identities }
    }

    /// Judges one request by the newest policy.
    pub(crate) fn judge_request(&self, request: &Request<'_>) -> Judged<Verdict> {
        let world = self.worker.world.load();
        let identities = self.identities(&world);
        let verdict = world.policy.evaluate_request(&self.flow(identities), request, &world.secrets);
        Judged { verdict, generation: world.policy.generation(), identities }
    }

    /// Whether a rule that requests of this connection are judged by reads header fields of that name (lower case).
    pub(crate) fn rules_read(&self, field: &str) -> bool {
        let world = self.worker.world.load();
        world.policy.reads_field(&self.flow(self.identities(&world)), field)
    }

    /// Whether the connection itself would be refused by now, not only a request on it: then it ends with the refusal.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.judge().verdict, ConnectionVerdict::Deny { .. })
    }

    /// A record that begins now, with what is known about every flow of this connection.
    pub(crate) fn open_flow(&self, protocol: Protocol, started: Instant) -> OpenFlow {
        let identities = self.identities(&self.worker.world.load());
        let direction = self.listener.config.direction;
        let record = FlowRecord {
            time: self.worker.flows.wall_clock(started),
            duration_us: 0,
            listener: Arc::clone(&self.listener.name),
            direction,
            downstream: self.downstream,
            original_dst: self.original_dst,
            upstream: None,
            upstream_source: None,
            source: identities.source,
            destination: match direction {
                Direction::Ingress => SecurityId(0),
                Direction::Egress => identities.destination,
            },
            protocol,
            http: None,
            outcome: Outcome::Failed,
            reason: None,
            detail: None,
            rule: None,
            rule_name: None,
            header_log: None,
            nearest_miss: None,
            generation: 0,
            bytes_up: 0,
            bytes_down: 0,
        };
        let mut flow = OpenFlow::started_at(Rc::clone(&self.worker.flows), record, started);
        if let Some(log) = self.log {
            flow.log_to(log);
        }
        flow
    }

    /// Fields of a request's head as an access log may show them: without values of fields that may hold a secret.
    pub(crate) fn loggable(&self, each: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]))) -> Fields {
        let world = self.worker.world.load();
        let secret = world.policy.secret_fields(&self.flow(self.identities(&world)));
        let may_be_secret = |name: &[u8]| {
            let name = name.to_ascii_lowercase();
            secret.iter().any(|names| names.binary_search_by(|known| known.as_bytes().cmp(&name)).is_ok())
        };
        let mut fields = Fields::default();
        each(&mut |name, value| {
            let redacted = !secret.is_empty() && may_be_secret(name);
            fields.push(name, if redacted { REDACTED } else { value });
        });
        fields
    }

    /// Whether the flow would come back to one of our own listeners. Behind a wildcard address every destination with the
    /// listener's port could be our own, so all of them count.
    pub(crate) fn is_loop(&self) -> bool {
        let own = |address: &SocketAddr| {
            address.port() == self.original_dst.port()
                && (address.ip().is_unspecified() || address.ip() == self.original_dst.ip())
        };
        self.listener.config.upstream == config::Upstream::OriginalDst
            && self.worker.own_addresses.borrow().iter().any(own)
    }
}

/// Notes a denial in a record.
pub(crate) fn note_denial(flow: &mut OpenFlow, generation: u64, nearest: Option<Box<NearestMiss>>) {
    let record = flow.record_mut();
    record.generation = generation;
    record.nearest_miss = nearest;
}

/// Notes an admission in a record.
pub(crate) fn note_admission(flow: &mut OpenFlow, generation: u64, rule: RuleRef, name: Option<Arc<str>>) {
    let record = flow.record_mut();
    record.generation = generation;
    record.rule = Some(rule);
    record.rule_name = name;
}

/// The reason code of a policy denial, told apart from "no policy set was ever received".
pub(crate) fn denial_reason(reason: tollgate_policy::DenyReason, has_policy: bool) -> Reason {
    if has_policy { reason.into() } else { Reason::PolicyPending }
}
