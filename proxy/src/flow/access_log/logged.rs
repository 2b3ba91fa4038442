//! What the access log knows of a flow that is under way.

use std::cell::{Cell, OnceCell};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::entry::{LoggedRequest, LoggedResponse};
use super::message::MAX as MAX_ENTRY;
use super::{Entry, EntryKind, Fields, SinkSet};
use crate::flow::channel::Logged as _;
use crate::flow::{FlowRecord, FlowSender};
use crate::reason::Reason;
use crate::tenant::{Charge, LogItem, TenantId};

/// Where the entries of a flow go, and what they say beside its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogTarget {
    pub(crate) sinks: SinkSet,
    /// Whose policy is enforced.
    pub(crate) endpoint: IpAddr,
    pub(crate) proxy_id: u16,
}

/// The way of an entry: by the worker that makes it, at whose expense.
#[derive(Clone, Copy, Debug)]
pub(in crate::flow) struct LogWay<'a> {
    pub(in crate::flow) sender: &'a FlowSender,
    pub(in crate::flow) charge: Option<&'a Charge>,
}

impl LogWay<'_> {
    /// Hands the entry over if its tenant may log as much and there is room for it.
    fn log(self, entry: Entry) {
        let item = LogItem { is_entry: true, denied: entry.is_denial() };
        if self.charge.is_some_and(|charge| !charge.may_log(item, || entry.size().min(MAX_ENTRY))) {
            self.sender.lose_entry(entry.kind);
        } else if !self.sender.log(entry)
            && let Some(charge) = self.charge
        {
            charge.lost_for_room(item);
        }
    }
}

/// The entries of one flow: at most one for the request or connection, and one for its answer, in that order.
#[derive(Debug)]
pub(in crate::flow) struct LoggedFlow {
    target: LogTarget,
    request: OnceCell<Arc<LoggedRequest>>,
    answered: Cell<bool>,
}

impl LoggedFlow {
    pub(in crate::flow) const fn new(target: LogTarget) -> Self {
        Self { target, request: OnceCell::new(), answered: Cell::new(false) }
    }

    /// Sends the entry of the request or connection, unless it was sent before.
    pub(in crate::flow) fn request(
        &self,
        way: LogWay<'_>,
        record: &FlowRecord,
        denied: Option<Reason>,
        head: Option<Fields>,
    ) {
        if self.request.get().is_some() {
            return;
        }
        let request = Arc::new(LoggedRequest {
            direction: record.direction,
            endpoint: self.target.endpoint,
            proxy_id: self.target.proxy_id,
            source: record.source,
            destination: record.destination,
            downstream: record.downstream,
            original_dst: record.original_dst,
            protocol: record.protocol,
            rule: record.rule.or_else(|| Some(record.nearest_miss.as_ref()?.rule)),
            reason: denied,
            head,
            header_log: record.header_log.clone(),
        });
        let kind = if denied.is_some() { EntryKind::Denied } else { EntryKind::Request };
        self.send(way, kind, record.time, Arc::clone(self.request.get_or_init(|| request)), None);
    }

    /// Sends the entry of the answer whose head goes out now, once.
    pub(in crate::flow) fn response(
        &self,
        way: LogWay<'_>,
        record: &FlowRecord,
        status: u16,
        fill: impl FnOnce(&mut Fields),
    ) {
        if self.answered.replace(true) {
            return;
        }
        self.request(way, record, None, Some(Fields::default()));
        let Some(request) = self.request.get() else { return };
        let mut fields = Fields::default();
        fill(&mut fields);
        let response = Some(Arc::new(LoggedResponse { status, fields }));
        let now = way.sender.wall_clock(Instant::now());
        self.send(way, EntryKind::Response, now, Arc::clone(request), response);
    }

    /// Sends what is missing when the flow ends: a connection that passes as bytes has no entry, unless it is refused.
    pub(in crate::flow) fn end(&self, way: LogWay<'_>, record: &FlowRecord) {
        // A client that went away before it said anything was refused nothing, and of what a limit refuses no policy has spoken.
        let denied = record.reason.filter(|reason| record.is_denial() && *reason != Reason::DownstreamReset);
        if denied.is_some() || record.http.is_some() {
            self.request(way, record, denied, None);
        }
    }

    fn send(
        &self,
        way: LogWay<'_>,
        kind: EntryKind,
        time: SystemTime,
        request: Arc<LoggedRequest>,
        response: Option<Arc<LoggedResponse>>,
    ) {
        let tenant = way.charge.map_or(TenantId::UNKNOWN, Charge::tenant);
        way.log(Entry { sinks: self.target.sinks, kind, tenant, time, request, response });
    }
}
