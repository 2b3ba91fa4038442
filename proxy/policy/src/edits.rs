//! What `header_matches` do to an admitted request, and what is logged about them.

use std::fmt;

/// Changes to make to the head of an admitted request before it is forwarded. Nothing is allocated when there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits(Vec<FieldEdit>);

/// What becomes of all fields of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldEdit {
    /// Lower case. Never a field that frames or routes the message.
    pub name: Box<str>,
    /// Whether the instances that were received stay.
    pub keep: bool,
    /// Further instances, in order. Where nothing stays, the first of them takes the place of the first received.
    pub append: Vec<NewValue>,
}

/// A value that a rule puts into a request. It can be sent as it is.
#[derive(Clone, PartialEq, Eq)]
pub struct NewValue {
    pub(crate) bytes: Box<[u8]>,
    pub(crate) redacted: bool,
}

impl NewValue {
    /// What to send. May be a secret.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it comes from a secret.
    pub const fn is_secret(&self) -> bool {
        self.redacted
    }

    /// What to show.
    pub fn shown(&self) -> &[u8] {
        if self.redacted { REDACTED } else { &self.bytes }
    }
}

impl fmt::Debug for NewValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.shown().escape_ascii())
    }
}

impl HeaderEdits {
    /// Most fields and values changed in one request. A match that would change more refuses the request: each change
    /// costs the next match time, and a policy must not hold up its node.
    pub const MAX: usize = 100;

    /// Whether nothing more may be changed.
    pub(crate) fn is_full(&self) -> bool {
        self.0.iter().map(|edit| 1 + edit.append.len()).sum::<usize>() >= Self::MAX
    }

    /// Whether the request is forwarded with the fields that it came with.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One edit for each name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &FieldEdit> {
        self.0.iter()
    }

    /// The edit of fields named `name`, in any case.
    pub fn of(&self, name: &str) -> Option<&FieldEdit> {
        self.0.iter().find(|edit| edit.name.eq_ignore_ascii_case(name))
    }

    pub(crate) fn remove(&mut self, name: &str) {
        let edit = self.entry(name);
        edit.keep = false;
        edit.append.clear();
    }

    pub(crate) fn append(&mut self, name: &str, value: NewValue) {
        self.entry(name).append.push(value);
    }

    pub(crate) fn replace(&mut self, name: &str, value: NewValue) {
        self.remove(name);
        self.append(name, value);
    }

    fn entry(&mut self, name: &str) -> &mut FieldEdit {
        let known = self.0.iter().position(|edit| *edit.name == *name);
        let at = known.unwrap_or_else(|| {
            self.0.push(FieldEdit { name: name.into(), keep: true, append: Vec::new() });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

/// What is shown in the place of a value that belongs to a secret.
pub const REDACTED: &[u8] = b"[redacted]";

/// Fields that were not as `header_matches` expect, whatever the verdict. Each entry stands once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderLog {
    /// Expected and not found, with the value that was expected.
    pub missing: Vec<LoggedHeader>,
    /// Found and refused, taken out or replaced, with the value that was expected or found.
    pub rejected: Vec<LoggedHeader>,
}

/// A field in a [`HeaderLog`].
#[derive(Clone, PartialEq, Eq)]
pub struct LoggedHeader {
    /// Lower case.
    pub name: Box<str>,
    /// `[redacted]` when a secret was expected, whether it is that secret or what came instead.
    pub value: Box<[u8]>,
}

impl fmt::Debug for LoggedHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.value.escape_ascii())
    }
}

impl HeaderLog {
    /// Most entries of each list; what comes later is left out.
    pub const MAX: usize = 32;

    /// Whether there is nothing to say.
    pub const fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.rejected.is_empty()
    }
}

/// Adds an entry unless it is there or there are enough.
pub(crate) fn log_once(list: &mut Vec<LoggedHeader>, name: &str, value: &[u8], redact: bool) {
    let value = if redact { REDACTED } else { value };
    if list.len() < HeaderLog::MAX && !list.iter().any(|entry| *entry.name == *name && *entry.value == *value) {
        list.push(LoggedHeader { name: name.into(), value: value.into() });
    }
}
