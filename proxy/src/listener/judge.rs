//! What policy says about a connection and its requests at this moment, with the identities of this moment.

use std::sync::Arc;

use tollgate_policy::{
    ConnectionVerdict, DenyReason, Direction, Flow, HeaderEdits, HeaderLog, NearestMiss, Permit, Request, RuleRef,
    SecurityId, ServerName, Verdict,
};
use tollgate_schedule::{Work, mark};

use super::connection::Connection;
use super::identities::{Barred, Identities};
use super::present::Present;
use crate::control::World;
use crate::flow::OpenFlow;
use crate::reason::Reason;

/// For questions about the rules of a port, which are the same whoever asks.
pub(super) const ANYBODY: SecurityId = SecurityId::WORLD;

/// A decision, and by what it was taken.
#[derive(Debug)]
pub(crate) struct Judged<V> {
    pub(crate) verdict: Result<V, Denied>,
    pub(crate) by: Basis,
}

impl<V> Judged<V> {
    /// The same with what the record of a refusal says beside its reason, unless that says more already.
    pub(super) fn with_detail(self, detail: &(impl ToString + ?Sized)) -> Self {
        let verdict = self.verdict.map_err(|denied| {
            let detail = denied.detail.or_else(|| Some(detail.to_string().into()));
            Denied { detail, ..denied }
        });
        Self { verdict, ..self }
    }
}

/// What a decision was taken by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Basis {
    generation: u64,
    /// See [`Connection::moment`].
    pub(crate) moment: (u64, u64),
    /// `None` when an end could not be looked up.
    identities: Option<Identities>,
}

impl Basis {
    /// Notes it in a record.
    pub(crate) fn note(self, flow: &mut OpenFlow) {
        let record = flow.record_mut();
        record.generation = self.generation;
        let (source, destination) = match self.identities {
            Some(identities) => (identities.source, identities.destination),
            None => (SecurityId(0), SecurityId(0)),
        };
        (record.source, record.destination) = (source, destination);
    }
}

/// An admitted connection.
#[derive(Debug)]
pub(crate) enum Passage {
    /// As bytes.
    Tcp(Admitted),
    /// Its HTTP requests are judged one by one.
    Http,
}

/// What was admitted, be it a request or a connection as bytes.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// The rule that admitted it.
    rule: RuleRef,
    name: Option<Arc<str>>,
    /// Needed to open the upstream.
    pub(crate) permit: Permit,
    /// Whom it was admitted for, and what the upstream's mark has to carry.
    pub(crate) source: SecurityId,
    /// What to change before a request is forwarded.
    pub(crate) edits: HeaderEdits,
    log: Option<Box<HeaderLog>>,
}

/// A refusal.
#[derive(Debug)]
pub(crate) struct Denied {
    pub(crate) reason: Reason,
    nearest: Option<Box<NearestMiss>>,
    log: Option<Box<HeaderLog>>,
    detail: Option<Box<str>>,
}

impl Denied {
    fn by_policy(reason: DenyReason, nearest: Option<Box<NearestMiss>>, world: &World) -> Self {
        let reason = match reason.into() {
            // It may be on its way.
            Reason::NoPolicy if !world.has_policy => Reason::PolicyPending,
            reason => reason,
        };
        Self { reason, nearest, log: None, detail: None }
    }

    /// Whether waiting may help: what the answer depends on has not come yet.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.reason, Reason::NoPolicy | Reason::PolicyPending | Reason::IdentityUnknown)
    }

    /// The reason for which what was admitted before ends.
    pub(crate) fn revocation(&self) -> Reason {
        match self.reason {
            Reason::EndpointChanged | Reason::IdentityChanged | Reason::IdentityUnknown => self.reason,
            _ => Reason::Revoked,
        }
    }

    /// The same refusal for a connection that was admitted before.
    pub(crate) fn into_revocation(self) -> Self {
        Self { reason: self.revocation(), ..self }
    }

    /// Notes the refusal in a record, and returns its reason.
    pub(crate) fn note(self, flow: &mut OpenFlow) -> Reason {
        let record = flow.record_mut();
        record.nearest_miss = self.nearest;
        record.detail = self.detail;
        record.keep_header_log(self.log);
        self.reason
    }
}

impl From<Barred> for Denied {
    fn from(barred: Barred) -> Self {
        let detail = barred.detail.map(|unavailable| unavailable.to_string().into());
        Self { reason: barred.reason, nearest: None, log: None, detail }
    }
}

impl Admitted {
    /// Notes the admission in a record.
    pub(crate) fn note(&mut self, flow: &mut OpenFlow) {
        let record = flow.record_mut();
        record.rule = Some(self.rule);
        record.rule_name = self.name.take();
        record.keep_header_log(self.log.take());
    }
}

impl Present<'_> {
    /// Judges the connection.
    pub(crate) fn judge(&self) -> Judged<Passage> {
        let _work = mark(Work::Policy);
        let verdict = self.identities.map_err(Denied::from).and_then(|identities| {
            let passage = self.judge_connection_of(identities, identities.source)?;
            match identities.also.map(|also| self.judge_connection_of(identities, also)).transpose()? {
                Some(Passage::Http) => Ok(Passage::Http),
                Some(Passage::Tcp(_)) | None => Ok(passage),
            }
        });
        Judged { verdict, by: self.basis() }
    }

    /// Judges one request.
    pub(crate) fn judge_request(&self, request: &Request<'_>) -> Judged<Admitted> {
        crate::fault::panic_for(request.path);
        let _work = mark(Work::Policy);
        let verdict = self.identities.map_err(Denied::from).and_then(|identities| {
            if let Some(also) = identities.also {
                self.judge_request_of(identities, also, request)?;
            }
            self.judge_request_of(identities, identities.source, request)
        });
        Judged { verdict, by: self.basis() }
    }

    fn basis(&self) -> Basis {
        Basis {
            generation: self.world.policy.generation(),
            moment: self.connection.moment_in(&self.world),
            identities: self.identities.ok(),
        }
    }

    fn judge_connection_of(&self, identities: Identities, source: SecurityId) -> Result<Passage, Denied> {
        let flow = self.connection.flow(self.connection.remote(identities, source));
        match self.world.policy.evaluate_connection(&flow) {
            ConnectionVerdict::InspectHttp => Ok(Passage::Http),
            ConnectionVerdict::AllowTcp { rule, name, permit } => {
                let edits = HeaderEdits::default();
                Ok(Passage::Tcp(Admitted { rule, name, permit, source: identities.source, edits, log: None }))
            }
            ConnectionVerdict::Deny { reason, nearest } => Err(Denied::by_policy(reason, nearest, &self.world)),
        }
    }

    fn judge_request_of(
        &self,
        identities: Identities,
        source: SecurityId,
        request: &Request<'_>,
    ) -> Result<Admitted, Denied> {
        let world = &self.world;
        let flow = self.connection.flow(self.connection.remote(identities, source));
        match world.policy.evaluate_request(&flow, request, &world.secrets) {
            Verdict::Allow { rule, name, permit, edits, log } => {
                Ok(Admitted { rule, name, permit, source: identities.source, edits, log })
            }
            Verdict::Deny { reason, nearest, log } => Err(Denied { log, ..Denied::by_policy(reason, nearest, world) }),
        }
    }
}

impl Connection {
    /// Judges the connection by the newest policy.
    pub(crate) fn judge(&self) -> Judged<Passage> {
        self.present().judge()
    }

    /// Whether a request that was admitted for `source` may go on. If not, why it ends: policy no longer admits it, or
    /// `source` is no longer who sends it, so that its upstream carries the mark of somebody else.
    pub(crate) fn still_admits(&self, request: &Request<'_>, source: SecurityId) -> Result<(), Reason> {
        match self.present().judge_request(request).verdict {
            Ok(admitted) if admitted.source == source => Ok(()),
            Ok(_) => Err(Reason::IdentityChanged),
            Err(denied) => Err(denied.revocation()),
        }
    }

    /// The same for a connection that was admitted as bytes. HTTP rules count: its bytes would not be inspected.
    pub(crate) fn still_passes(&self, source: SecurityId) -> Result<(), Reason> {
        match self.judge().verdict {
            Ok(Passage::Tcp(admitted)) if admitted.source == source => Ok(()),
            Ok(Passage::Tcp(_)) => Err(Reason::IdentityChanged),
            Ok(Passage::Http) => Err(Reason::Revoked),
            Err(denied) => Err(denied.revocation()),
        }
    }

    /// Whether a trailer of that name (lower case) may not pass: a rule that requests of this connection are judged by reads header
    /// fields of that name, or no field may be called so.
    pub(crate) fn bars_trailer(&self, field: &str) -> bool {
        self.listener.config.normalize.field_underscores.bar(field.as_bytes()) || self.rules_read(field)
    }

    fn rules_read(&self, field: &str) -> bool {
        self.worker.world.load().policy.reads_field(&self.flow(ANYBODY), field)
    }

    /// Whether the connection itself would be refused by now, not only a request on it: then it ends with the refusal.
    pub(crate) fn is_refused(&self) -> bool {
        self.judge().verdict.is_err()
    }

    /// Whether it is over for the connection, whatever policy says: an end is not who it was.
    pub(crate) fn is_over(&self) -> bool {
        let barred = self.present().identities.err();
        barred.is_some_and(|barred| matches!(barred.reason, Reason::EndpointChanged | Reason::IdentityChanged))
    }

    /// The flow as policy sees it, with this identity of the other side.
    pub(super) fn flow(&self, remote: SecurityId) -> Flow<'_> {
        Flow {
            direction: self.listener.config.direction,
            endpoint: self.endpoint(),
            remote,
            port: self.original_dst.port(),
            proxy_id: self.listener.config.proxy_id,
            // TLS is not inspected.
            server_name: ServerName::Unknown,
        }
    }

    /// Whom rules name: the source of what comes in, the destination of what goes out.
    fn remote(&self, identities: Identities, source: SecurityId) -> SecurityId {
        match self.listener.config.direction {
            Direction::Ingress => source,
            Direction::Egress => identities.destination,
        }
    }
}
