//! One record per request or connection, made when it starts and emitted exactly once, whatever happens to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tollgate_policy::{Direction, HeaderLog, LoggedHeader, NearestMiss, RuleRef, SecurityId};

use crate::reason::Reason;
use crate::tenant::{Limited, Scope, TenantId};

/// What the proxy did with the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Allowed and forwarded (its end may still carry a [`Reason`], such as an upstream reset).
    Forwarded,
    /// Refused by policy, a limit or because it was malformed.
    Denied,
    /// Allowed, but it could not be completed.
    Failed,
}

impl Outcome {
    /// Of a flow that policy allowed, and that for this reason was not sent on.
    pub(crate) const fn of_unsent(reason: Reason) -> Self {
        if reason.is_overload() { Self::Denied } else { Self::Failed }
    }
}

/// What becomes of flows, as they are counted: see [`FlowRecord::ending`].
pub(crate) const ENDINGS: [&str; 4] = ["forwarded", "denied", "limited", "failed"];

/// Protocol spoken on the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Passed as bytes, not inspected.
    Tcp,
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// The HTTP part of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRecord {
    /// Method, authority and path behind each other: one allocation for all, since another thread frees it.
    text: Box<[u8]>,
    method_end: usize,
    authority_end: usize,
    /// Status sent downstream; 0 when none was.
    pub status: u16,
}

impl HttpRecord {
    /// Longest path kept in a record, in bytes.
    pub const MAX_PATH: usize = 2048;

    /// A request that has no status yet. Of the path [`HttpRecord::MAX_PATH`] bytes are kept.
    pub fn new(method: &[u8], authority: &[u8], path: &[u8]) -> Self {
        let path = &path[..path.len().min(Self::MAX_PATH)];
        let (method_end, authority_end) = (method.len(), method.len() + authority.len());
        Self { text: [method, authority, path].concat().into(), method_end, authority_end, status: 0 }
    }

    /// Method as received.
    pub fn method(&self) -> &[u8] {
        &self.text[..self.method_end]
    }

    /// `:authority`, lower-cased never.
    pub fn authority(&self) -> &[u8] {
        &self.text[self.method_end..self.authority_end]
    }

    /// Canonical path with query.
    pub fn path(&self) -> &[u8] {
        &self.text[self.authority_end..]
    }

    /// Bytes of text.
    fn memory(&self) -> usize {
        self.text.len()
    }
}

/// What is known about one request (HTTP) or one connection (TCP, or refused before HTTP).
#[derive(Clone, Debug)]
pub struct FlowRecord {
    /// Wall clock at the start; for logs only.
    pub time: SystemTime,
    /// From first byte of the request (or accept) to the end, in microseconds.
    pub duration_us: u64,
    /// Name of the listener.
    pub listener: Arc<str>,
    /// Policy direction.
    pub direction: Direction,
    /// The peer that connected to us.
    pub downstream: SocketAddr,
    /// Address before redirection.
    pub original_dst: SocketAddr,
    /// Address actually connected to, when there was one.
    pub upstream: Option<SocketAddr>,
    /// Address it was connected from, when that is the client's with another port, because the client's was taken.
    pub upstream_source: Option<SocketAddr>,
    /// Source identity.
    pub source: SecurityId,
    /// Destination identity; 0 for ingress, as on the Cilium access log.
    pub destination: SecurityId,
    /// Protocol of the flow.
    pub protocol: Protocol,
    /// HTTP part.
    pub http: Option<HttpRecord>,
    /// What was done.
    pub outcome: Outcome,
    /// Why, whenever it is not a plain success.
    pub reason: Option<Reason>,
    /// What exactly is wrong with a message that is refused before policy sees it; which limit it was, for what a limit refused or one in
    /// shadow would have.
    pub detail: Option<Box<str>>,
    /// What its tenant may have was not all taken: it was the part of this remote identity.
    pub of_remote: bool,
    /// The limit that would have refused it, or held it back, were it not in shadow: the first.
    pub would_limit: Option<Reason>,
    /// The rule that admitted it.
    pub rule: Option<RuleRef>,
    /// `name` of that rule, when it has one.
    pub rule_name: Option<Arc<str>>,
    /// What header matches found, cut by [`FlowRecord::keep_header_log`].
    pub header_log: Option<Box<HeaderLog>>,
    /// On a denial, the rule that came closest.
    pub nearest_miss: Option<Box<NearestMiss>>,
    /// Generation of the snapshot that decided.
    pub generation: u64,
    /// Bytes of body (HTTP) or payload (TCP) from downstream to upstream.
    pub bytes_up: u64,
    /// Bytes of body (HTTP) or payload (TCP) from upstream to downstream.
    pub bytes_down: u64,
    /// Who pays for it; set at its end.
    pub tenant: TenantId,
    /// Processor time of its connection while it was under way, in microseconds; set at its end. Other streams of the connection count.
    /// `None` where it is not measured.
    pub cpu_us: Option<u64>,
    /// Time for which tasks of its connection could have run meanwhile and did not, in microseconds. `None` as for `cpu_us`.
    pub queue_us: Option<u64>,
    /// Time for which its tenant's rate of bytes held it back, in microseconds.
    pub paced_us: u64,
}

impl FlowRecord {
    /// Most fields kept of each list of a header log.
    pub const MAX_LOGGED_FIELDS: usize = HeaderLog::MAX;
    /// Most bytes kept of each of their values.
    pub const MAX_LOGGED_VALUE: usize = 256;

    /// Position in [`ENDINGS`]. What a limit refuses is no denial: nobody has to look for it in a policy.
    pub(crate) fn ending(&self) -> usize {
        match self.outcome {
            Outcome::Forwarded => 0,
            Outcome::Denied if self.is_denial() => 1,
            Outcome::Denied => 2,
            Outcome::Failed => 3,
        }
    }

    /// Whether it tells of a denial: by policy, or of what was no proper request. Logs keep room for those, which nobody else
    /// tells of; what limits refuse comes in floods, and is counted.
    pub(crate) fn is_denial(&self) -> bool {
        self.outcome == Outcome::Denied && !self.is_limited()
    }

    /// Whether a limit refused it.
    pub(crate) fn is_limited(&self) -> bool {
        self.outcome == Outcome::Denied && self.reason.is_some_and(Reason::is_limit)
    }

    /// Notes a limit that would have refused it, were it not in shadow, unless another was noted before.
    pub(crate) fn note_would_limit(&mut self, limited: Limited) {
        if self.would_limit.is_none() {
            (self.would_limit, self.of_remote) = (Some(limited.reason), limited.scope == Scope::Flow);
        }
    }

    /// The limit that [`FlowRecord::detail`] is about: the one that refused it, or else, where nothing ended it, the one that would have.
    pub(super) fn limit_to_explain(&self) -> Option<Reason> {
        match self.reason {
            Some(reason) => Some(reason).filter(|_| self.is_limited()),
            None => self.would_limit,
        }
    }

    /// Approximate memory, in bytes.
    pub(super) fn memory(&self) -> usize {
        let http = self.http.as_ref().map_or(0, HttpRecord::memory);
        // The texts of a nearest miss are shared with the policy snapshot.
        let miss = self.nearest_miss.as_ref().map_or(0, |miss| size_of_val(&**miss) + miss.matched.len() * 16);
        let header = |header: &LoggedHeader| size_of_val(header) + header.name.len() + header.value.len();
        let headers = |log: &HeaderLog| log.missing.iter().chain(&log.rejected).map(header).sum();
        let detail = self.detail.as_deref().map_or(0, str::len);
        size_of::<Self>() + http + miss + self.header_log.as_deref().map_or(0, headers) + detail
    }

    /// Keeps what header matches found, as far as a record has room for it.
    pub fn keep_header_log(&mut self, log: Option<Box<HeaderLog>>) {
        self.header_log = log.map(|mut log| {
            let HeaderLog { missing, rejected } = &mut *log;
            for list in [missing, rejected] {
                list.truncate(Self::MAX_LOGGED_FIELDS);
                for entry in list.iter_mut().filter(|entry| entry.value.len() > Self::MAX_LOGGED_VALUE) {
                    entry.value = entry.value[..Self::MAX_LOGGED_VALUE].into();
                }
            }
            log
        });
    }

    /// A flow that has begun, of which nothing else is known.
    pub fn new(
        time: SystemTime,
        listener: Arc<str>,
        direction: Direction,
        downstream: SocketAddr,
        original_dst: SocketAddr,
        protocol: Protocol,
    ) -> Self {
        Self {
            time,
            duration_us: 0,
            listener,
            direction,
            downstream,
            original_dst,
            upstream: None,
            upstream_source: None,
            source: SecurityId(0),
            destination: SecurityId(0),
            protocol,
            http: None,
            outcome: Outcome::Failed,
            reason: None,
            detail: None,
            of_remote: false,
            would_limit: None,
            rule: None,
            rule_name: None,
            header_log: None,
            nearest_miss: None,
            generation: 0,
            bytes_up: 0,
            bytes_down: 0,
            tenant: TenantId::UNKNOWN,
            cpu_us: None,
            queue_us: None,
            paced_us: 0,
        }
    }

    /// A TCP flow from 10.244.1.17 to 10.244.2.232:5000 on the listener `ingress`, at the epoch.
    pub fn for_test(outcome: Outcome) -> Self {
        let (downstream, original_dst) = (([10, 244, 1, 17], 40000).into(), ([10, 244, 2, 232], 5000).into());
        let (time, direction) = (SystemTime::UNIX_EPOCH, Direction::Ingress);
        let begun = Self::new(time, "ingress".into(), direction, downstream, original_dst, Protocol::Tcp);
        Self { source: SecurityId::WORLD, outcome, ..begun }
    }
}
