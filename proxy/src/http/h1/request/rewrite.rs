//! The head that is forwarded where it differs from the one received. Everything else keeps its bytes and its order.

use std::fmt;
use std::ops::Deref;

use httparse::Header;
use tollgate_policy::{FieldEdit, HeaderEdits};

use super::{FORWARDED_PROTO, RequestHead, Version, write_field};
use crate::http::canonical::CanonicalPath;
use crate::http::request_id::{self, RequestId};

/// A head to send. May hold secrets, so printing it shows nothing of it.
pub(crate) struct Rewritten(Vec<u8>);

impl Rewritten {
    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        self.0.capacity()
    }
}

impl Deref for Rewritten {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Rewritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a head of {} bytes", self.0.len())
    }
}

impl<'b> RequestHead<'_, 'b> {
    /// The head to forward with `edits` and with `request_id` (see [`RequestHead::new_request_id`]), when it differs from
    /// the bytes received.
    pub(crate) fn rewritten(
        &self,
        head: &'b [u8],
        edits: &HeaderEdits,
        request_id: Option<&RequestId>,
    ) -> Option<Rewritten> {
        let rewrite = &self.rewrite;
        let same = self.removed == 0
            && self.path == CanonicalPath::Unchanged
            && rewrite.host.is_none()
            && rewrite.content_length.is_none()
            && rewrite.connection.is_none()
            && edits.is_empty()
            && !rewrite.forwarded_proto
            && request_id.is_none();
        if same {
            return None;
        }
        let mut out = Vec::with_capacity(head.len() + 64);
        out.extend_from_slice(self.method);
        out.push(b' ');
        out.extend_from_slice(self.canonical_path());
        out.extend_from_slice(match self.version {
            Version::Http10 => b" HTTP/1.0\r\n",
            Version::Http11 => b" HTTP/1.1\r\n",
        });
        let mut connection_written = false;
        for (index, field) in self.forwarded() {
            if let Some(edit) = edits.of(field.name) {
                self.write_edited(&mut out, edit, index, field);
                continue;
            }
            let mut value = field.value;
            let number;
            if let (Some(host), true) = (rewrite.host, field.name.eq_ignore_ascii_case("host")) {
                value = host;
            } else if let (Some(length), true) =
                (rewrite.content_length, field.name.eq_ignore_ascii_case("content-length"))
            {
                number = length.to_string();
                value = number.as_bytes();
            } else if let (Some(options), true) = (&rewrite.connection, field.name.eq_ignore_ascii_case("connection")) {
                if connection_written || options.is_empty() {
                    continue;
                }
                connection_written = true;
                value = options;
            }
            write_field(&mut out, field.name.as_bytes(), value);
        }
        if let (Some(host), None) = (rewrite.host, self.named("host").next()) {
            write_field(&mut out, b"Host", host);
        }
        if let (Some(options), false) = (&rewrite.connection, connection_written)
            && !options.is_empty()
        {
            write_field(&mut out, b"Connection", options);
        }
        for edit in edits.iter() {
            // The first value may stand in the place of a received field already.
            let placed = usize::from(!edit.keep && self.first(edit).is_some());
            for value in edit.append.iter().skip(placed) {
                write_field(&mut out, edit.name.as_bytes(), value.as_bytes());
            }
        }
        if self.adds_forwarded_proto(edits) {
            write_field(&mut out, FORWARDED_PROTO.as_bytes(), b"http");
        }
        if let Some(id) = request_id {
            write_field(&mut out, request_id::NAME.as_bytes(), id.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        Some(Rewritten(out))
    }

    /// A new `x-request-id`, where one is `wanted` and neither the client nor `edits` give one. Policy never sees it: no
    /// rule admits what the proxy itself put in.
    pub(crate) fn new_request_id(&self, wanted: bool, edits: &HeaderEdits) -> Option<RequestId> {
        let given = || {
            self.forwarded().any(|(_, field)| field.name.eq_ignore_ascii_case(request_id::NAME))
                || edits.of(request_id::NAME).is_some()
        };
        (wanted && !given()).then(RequestId::random)
    }

    /// Shows the head that is forwarded with `edits` and `request_id`, pseudo-headers as in HTTP/2 first; nothing of an
    /// injected secret.
    pub(crate) fn show(
        &self,
        edits: &HeaderEdits,
        request_id: Option<&RequestId>,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) {
        visit(b":method", self.method);
        visit(b":authority", self.authority);
        visit(b":path", self.canonical_path());
        visit(b":scheme", b"http");
        for (index, field) in self.forwarded() {
            match edits.of(field.name) {
                Some(edit) if !edit.keep => {
                    if let Some(value) = edit.append.first().filter(|_| self.first(edit) == Some(index)) {
                        visit(field.name.as_bytes(), value.shown());
                    }
                }
                _ => visit(field.name.as_bytes(), field.value),
            }
        }
        for edit in edits.iter() {
            let placed = usize::from(!edit.keep && self.first(edit).is_some());
            edit.append.iter().skip(placed).for_each(|value| visit(edit.name.as_bytes(), value.shown()));
        }
        if self.adds_forwarded_proto(edits) {
            visit(FORWARDED_PROTO.as_bytes(), b"http");
        }
        if let Some(id) = request_id {
            visit(request_id::NAME.as_bytes(), id.as_bytes());
        }
    }

    /// Whether `x-forwarded-proto` is put in; a rule that puts it in goes first.
    fn adds_forwarded_proto(&self, edits: &HeaderEdits) -> bool {
        self.rewrite.forwarded_proto && edits.of(FORWARDED_PROTO).is_none()
    }

    /// The fields that are not of this hop, by their index.
    pub(super) fn forwarded(&self) -> impl Iterator<Item = (usize, &Header<'b>)> + Clone {
        self.fields.iter().enumerate().filter(|(index, _)| self.removed >> index & 1 == 0)
    }

    /// Index of the first field that `edit` is about.
    fn first(&self, edit: &FieldEdit) -> Option<usize> {
        let mut named = self.forwarded().filter(|(_, field)| field.name.eq_ignore_ascii_case(&edit.name));
        named.next().map(|(index, _)| index)
    }

    /// Writes what is left of a received field: itself, or the value that replaces it, or nothing.
    fn write_edited(&self, out: &mut Vec<u8>, edit: &FieldEdit, index: usize, field: &Header<'b>) {
        if edit.keep {
            write_field(out, field.name.as_bytes(), field.value);
        } else if let Some(value) = edit.append.first()
            && self.first(edit) == Some(index)
        {
            write_field(out, field.name.as_bytes(), value.as_bytes());
        }
    }
}
