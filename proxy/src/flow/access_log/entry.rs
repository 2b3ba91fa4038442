//! What one entry says, as a worker hands it over: copies of bytes, bounded, and nothing formatted yet.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use tollgate_policy::{Direction, HeaderLog, RuleRef, SecurityId};

use super::SinkSet;
use crate::flow::Protocol;
use crate::flow::channel::Logged;
use crate::http::request_id;
use crate::reason::Reason;
use crate::tenant::TenantId;

/// What an entry tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A request that was let through.
    Request,
    /// The answer to a request.
    Response,
    /// A request or connection that was refused.
    Denied,
}

/// One entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Where it goes.
    pub(super) sinks: SinkSet,
    pub(crate) kind: EntryKind,
    /// Whose it is.
    pub(super) tenant: TenantId,
    /// When the request began or the answer went out.
    pub(super) time: SystemTime,
    pub(super) request: Arc<LoggedRequest>,
    /// Of a `Response`.
    pub(super) response: Option<Arc<LoggedResponse>>,
}

impl Entry {
    /// Bytes of text that it holds.
    pub(super) fn size(&self) -> usize {
        let request = self.request.head.as_ref().map_or(0, Fields::size);
        size_of::<Self>() + request + self.response.as_ref().map_or(0, |response| response.fields.size())
    }
}

impl Logged for Entry {
    /// Counts the request, which entries share, for each of them.
    fn memory(&self) -> usize {
        self.size() + size_of::<LoggedRequest>()
    }

    /// A limit's refusal of a connection is none: see [`crate::flow::FlowRecord`].
    fn is_denial(&self) -> bool {
        self.kind == EntryKind::Denied && !self.request.reason.is_some_and(Reason::is_limit)
    }

    fn tenant(&self) -> TenantId {
        self.tenant
    }
}

/// A request or connection; shared by its entries.
#[derive(Debug)]
pub(super) struct LoggedRequest {
    pub(super) direction: Direction,
    /// Whose policy is enforced.
    pub(super) endpoint: IpAddr,
    pub(super) proxy_id: u16,
    pub(super) source: SecurityId,
    pub(super) destination: SecurityId,
    pub(super) downstream: SocketAddr,
    pub(super) original_dst: SocketAddr,
    pub(super) protocol: Protocol,
    /// The rule that admitted it, or that came closest.
    pub(super) rule: Option<RuleRef>,
    /// Why it is denied.
    pub(super) reason: Option<Reason>,
    /// Of an HTTP request: `:method`, `:authority` and `:path` first, then its fields.
    pub(super) head: Option<Fields>,
    pub(super) header_log: Option<Box<HeaderLog>>,
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct LoggedResponse {
    pub(super) status: u16,
    pub(super) fields: Fields,
}

/// Names and values in one allocation. Names are in lower case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields {
    /// For each field its two lengths (little endian), its name and its value.
    bytes: Vec<u8>,
    left_out: usize,
}

impl Fields {
    /// Most bytes of one value: more does not fit into an entry.
    const MAX_VALUE: usize = 4096;
    /// Most bytes kept of all fields; twice an entry, so that its maker can choose.
    const MAX: usize = 8192;

    /// Adds a field. Of one that does not fit only the fact is kept, but a pseudo-header (`:path`) is cut, and
    /// `x-request-id` always has room unless it is out of all proportion.
    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) {
        let pseudo = name.first() == Some(&b':');
        let value = if pseudo { &value[..value.len().min(Self::MAX_VALUE)] } else { value };
        let asked_for = pseudo || name.eq_ignore_ascii_case(request_id::NAME.as_bytes());
        let size = name.len() + value.len();
        let room = if asked_for { 2 * Self::MAX } else { Self::MAX };
        let lengths = [u16::try_from(name.len()), u16::try_from(value.len())];
        let ([Ok(name_length), Ok(value_length)], true) = (lengths, size <= Self::MAX_VALUE + 16) else {
            self.left_out += 1;
            return;
        };
        if self.bytes.len() + size > room {
            self.left_out += 1;
            return;
        }
        self.bytes.reserve(size + 4);
        self.bytes.extend_from_slice(&name_length.to_le_bytes());
        self.bytes.extend_from_slice(&value_length.to_le_bytes());
        self.bytes.extend(name.iter().map(u8::to_ascii_lowercase));
        self.bytes.extend_from_slice(value);
    }

    /// Name and value of each field, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (lengths, tail) = rest.split_first_chunk::<4>()?;
            let length = |low, high| usize::from(u16::from_le_bytes([low, high]));
            let (name, tail) = tail.split_at_checked(length(lengths[0], lengths[1]))?;
            let (value, tail) = tail.split_at_checked(length(lengths[2], lengths[3]))?;
            rest = tail;
            Some((name, value))
        })
    }

    /// How many were left out for want of room.
    pub(super) const fn left_out(&self) -> usize {
        self.left_out
    }

    fn size(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(fields: &Fields) -> Vec<(String, usize)> {
        fields.iter().map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.len())).collect()
    }

    #[test]
    fn fields_come_back_in_order_and_are_bounded() {
        let mut fields = Fields::default();
        fields.push(b":path", &[b'/'; 60_000]);
        fields.push(b"X-Big", &[0; 5000]);
        fields.push(b"X-Huge", &[0; 70_000]);
        fields.push(b"X-A", &[1; 4000]);
        fields.push(b"X-B", &[1; 4000]);
        fields.push(b"X-Request-ID", &[2; 36]);
        fields.push(b"x-empty", b"");
        let text = |name: &str, length| (name.to_owned(), length);
        let expected = [text(":path", 4096), text("x-a", 4000), text("x-request-id", 36), text("x-empty", 0)];
        assert_eq!(texts(&fields), expected);
        assert_eq!(fields.left_out(), 3);
    }
}
