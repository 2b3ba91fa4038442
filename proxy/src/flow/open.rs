//! A flow that is under way. Whatever ends it, exactly one record leaves.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tollgate_schedule::{Group, Spent, Work, mark};

use super::access_log::{LogWay, LoggedFlow};
use super::{Fields, FlowRecord, FlowSender, LogTarget, Outcome, Protocol};
use crate::reason::Reason;
use crate::tenant::{Charge, Head, Limited, LogItem, Pace, Payer, Scope, Table, WouldLimit};

/// The record of a request or connection that is still open; hold it where the end is seen (for HTTP, in the
/// response body).
///
/// [`OpenFlow::finish`] says how it ended. Dropped without it, the record is sent with the ending last named by
/// [`OpenFlow::if_dropped`], at first `Failed` with [`Reason::Dropped`]; where a panic ends it, with [`Reason::Internal`]. Sending also counts the flow in the
/// worker's metrics (requests, refusals, failures, duration): nobody else needs to.
#[derive(Debug)]
pub struct OpenFlow {
    /// `None` only while the value is being dropped.
    record: Option<Box<FlowRecord>>,
    /// Bytes that went so far; in the record at its end.
    up: Cell<u64>,
    down: Cell<u64>,
    sender: Rc<FlowSender>,
    started: Instant,
    if_dropped: (Outcome, Option<Reason>),
    /// Where somebody wants entries in an access log.
    log: Option<LoggedFlow>,
    /// On whose account it is.
    charge: Option<Charge>,
    /// The tasks that work for it, and what they had used when it began.
    work: Option<(Group, Spent)>,
}

impl OpenFlow {
    /// Starts a flow now. `outcome`, `reason` and `duration_us` of `record` are set at its end.
    pub fn new(sender: Rc<FlowSender>, record: FlowRecord) -> Self {
        Self::started_at(sender, record, Instant::now())
    }

    /// Starts a flow whose first byte came at `started`.
    pub fn started_at(sender: Rc<FlowSender>, record: FlowRecord, started: Instant) -> Self {
        let if_dropped = (Outcome::Failed, Some(Reason::Dropped));
        let (record, up, down) = (Some(Box::new(record)), Cell::default(), Cell::default());
        Self { record, up, down, sender, started, if_dropped, log: None, charge: None, work: None }
    }

    /// Puts the flow on the account that the connection is on, wherever that goes meanwhile.
    pub(crate) fn charge_to(&mut self, payer: &Rc<Payer>, protocol: Protocol) {
        self.charge = Some(payer.charge(protocol));
    }

    /// Takes what a request of its tenant has to have, until the flow ends. One that is on nobody's account needs nothing.
    ///
    /// # Errors
    /// The limit of the tenant that it would exceed.
    pub(crate) fn admit(&mut self, tenants: &Table, head: &Head<'_>) -> Result<(), Limited> {
        let admitted = self.charge.as_mut().map_or(Ok(None), |charge| charge.admit(tenants, head));
        admitted
            .map(|would_limit| self.note_would_limit(would_limit))
            .inspect_err(|limited| self.note_limited(*limited))
    }

    /// Notes in the record the limit that would have refused it, were it not for the shadow: the first.
    pub(crate) fn note_would_limit(&mut self, limited: WouldLimit) {
        if let Some(limited) = limited {
            self.record_mut().note_would_limit(limited);
        }
    }

    /// Notes in the record what only the limit that it has met knows.
    pub(crate) fn note_limited(&mut self, limited: Limited) {
        self.record_mut().of_remote = limited.scope == Scope::Flow;
    }

    /// Notes in the record what the tasks of its connection use until its end, if anybody measures it.
    pub(crate) fn measure(&mut self, group: &Group) {
        self.work = group.is_measured().then(|| (group.clone(), group.spent_before()));
    }

    /// Has the flow write entries to an access log, too.
    pub(crate) fn log_to(&mut self, target: LogTarget) {
        self.log = Some(LoggedFlow::new(target));
    }

    /// Whether somebody reads entries of this flow: what they need has to be kept.
    pub(crate) const fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// Writes the entry of the request, with why it is `denied` if it is. The first call counts.
    pub(crate) fn log_request(&self, denied: Option<Reason>, head: Fields) {
        if let Some(log) = &self.log {
            let _work = mark(Work::Log);
            log.request(self.way(), self, denied, Some(head));
        }
    }

    /// Writes the entry of the answer, whose head goes out now. The first call counts.
    pub(crate) fn log_response(&self, status: u16, fill: impl FnOnce(&mut Fields)) {
        if let Some(log) = &self.log {
            let _work = mark(Work::Log);
            log.response(self.way(), self, status, fill);
        }
    }

    fn way(&self) -> LogWay<'_> {
        LogWay { sender: &self.sender, charge: self.charge.as_ref() }
    }

    /// The record, to fill in what becomes known on the way. Count bytes with [`OpenFlow::add_up`] and
    /// [`OpenFlow::add_down`] instead, so that the metrics agree.
    #[expect(clippy::expect_used, reason = "`record` is taken only in `drop`, after which nobody can call this")]
    pub fn record_mut(&mut self) -> &mut FlowRecord {
        self.record.as_mut().expect("an open flow has its record")
    }

    /// Time since it started.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts bytes passed from downstream to upstream, when they have passed.
    pub fn add_up(&self, bytes: u64) {
        self.up.set(self.up.get() + bytes);
        self.sender.metrics().bytes_up(self.direction, bytes);
        if let Some(charge) = &self.charge {
            charge.add_up(bytes);
        }
    }

    /// Counts bytes passed from upstream to downstream, when they have passed.
    pub fn add_down(&self, bytes: u64) {
        self.down.set(self.down.get() + bytes);
        self.sender.metrics().bytes_down(self.direction, bytes);
        if let Some(charge) = &self.charge {
            charge.add_down(bytes);
        }
    }

    /// Bytes passed so far, both ways.
    pub(crate) fn moved(&self) -> u64 {
        self.up.get().wrapping_add(self.down.get())
    }

    /// Notes for how long in all a rate of bytes held it back, or that one in shadow would have: to be called when nothing of it waits
    /// any more. Who pays for that is told by [`crate::tenant::Pacing`].
    pub(crate) fn note_paced(&mut self, pace: Pace<'_>) {
        let time = pace.rest();
        if !time.is_zero() {
            self.record_mut().paced_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        }
        if pace.would_wait() {
            self.note_would_limit(Some(Limited::by(Reason::TenantBandwidth)));
        }
    }

    /// What a drop means from here on: for example, once the response body streams, that the client went away.
    pub fn if_dropped(&mut self, outcome: Outcome, reason: Option<Reason>) {
        self.if_dropped = (outcome, reason);
    }

    /// Ends the flow and sends its record.
    pub fn finish(mut self, outcome: Outcome, reason: Option<Reason>) {
        self.if_dropped = (outcome, reason);
    }
}

impl Deref for OpenFlow {
    type Target = FlowRecord;

    #[expect(clippy::expect_used, reason = "`record` is taken only in `drop`, after which nobody can call this")]
    fn deref(&self) -> &FlowRecord {
        self.record.as_ref().expect("an open flow has its record")
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        let _work = mark(Work::Log);
        // Whatever was to be said: it ends by a defect of ours.
        let panicked = std::thread::panicking().then_some((Outcome::Failed, Some(Reason::Internal)));
        (record.outcome, record.reason) = panicked.unwrap_or(self.if_dropped);
        if panicked.is_some()
            && record.protocol != Protocol::Http2
            && let Some(http) = record.http.as_mut().filter(|http| http.status == 0)
        {
            // The connection says so when it ends (`http/h1/owed.rs`).
            http.status = Reason::Internal.answer().status;
        }
        (record.bytes_up, record.bytes_down) = (self.up.get(), self.down.get());
        record.duration_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Some((group, before)) = self.work.take() {
            let spent = group.spent().since(before);
            (record.cpu_us, record.queue_us) = (Some(spent.cpu / 1000), Some(spent.waited / 1000));
        }
        if let Some(charge) = &mut self.charge {
            charge.end(&mut record);
        }
        if let Some(log) = &self.log {
            log.end(self.way(), &record);
        }
        let item = LogItem { is_entry: false, denied: record.is_denial() };
        let charge = self.charge.as_ref();
        if charge.is_some_and(|charge| !charge.may_log(item, || self.sender.length(&record))) {
            self.sender.lose(&record);
        } else if !self.sender.send(record)
            && let Some(charge) = charge
        {
            charge.lost_for_room(item);
        }
    }
}
