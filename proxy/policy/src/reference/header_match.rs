//! Section 1.6: header matches, run one after the other on a copy of the fields.
//!
//! Conditions (`headers`) never see this copy: which rules run does not depend on what others did.

use std::collections::BTreeMap;

use super::Truth;
use super::http::{is_header_name, value_of};
use crate::model::{HeaderMatch, MatchAction, MismatchAction};
use crate::{HeaderEdits, HeaderLog, LoggedHeader, Request, Secrets};

/// What header matches made of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Every field that was changed, with its instances since then.
    pub fields: BTreeMap<String, Vec<Vec<u8>>>,
    /// `missing_headers` of the access log.
    pub missing: Vec<(String, Vec<u8>)>,
    /// `rejected_headers` of the access log.
    pub rejected: Vec<(String, Vec<u8>)>,
}

/// A request whose fields can be changed.
pub(super) struct Copy<'r> {
    pub(super) request: &'r Request<'r>,
    pub(super) secrets: &'r Secrets,
    pub(super) effects: Effects,
    /// For each changed field how many instances were put in.
    put_in: BTreeMap<String, usize>,
    /// Whether a match would have changed more than one request may be changed, so that it is refused.
    pub(super) too_many_changes: bool,
}

impl<'r> Copy<'r> {
    pub(super) fn of(request: &'r Request<'r>, secrets: &'r Secrets) -> Self {
        Self { request, secrets, effects: Effects::default(), put_in: BTreeMap::new(), too_many_changes: false }
    }

    /// Notes that a field is changed, after which rules have put in `count` of its instances. `false`: too much is.
    fn may_change(&mut self, name: &str, count: usize) -> bool {
        let changes: usize = self.put_in.values().map(|put_in| 1 + put_in).sum();
        self.too_many_changes |= changes >= HeaderEdits::MAX;
        if changes < HeaderEdits::MAX {
            self.put_in.insert(name.to_owned(), count);
        }
        changes < HeaderEdits::MAX
    }

    fn instances(&self, name: &str) -> Vec<Vec<u8>> {
        match self.effects.fields.get(name) {
            Some(instances) => instances.clone(),
            None => received(name, self.request),
        }
    }

    /// Runs every match, also after one that fails. Whether all let the request pass.
    pub(super) fn run(&mut self, matches: &[HeaderMatch]) -> bool {
        let passes: Vec<bool> = matches.iter().map(|header_match| self.run_one(header_match)).collect();
        passes.into_iter().all(|passes| passes)
    }

    /// One row of the table.
    fn run_one(&mut self, header_match: &HeaderMatch) -> bool {
        let Some(expected) = expected(header_match, self.secrets) else {
            return false;
        };
        let name = header_match.name.to_string();
        let instances = self.instances(&name);
        let actual = instances.join(&b',');
        let is_there = !instances.is_empty();
        let presence_test = expected.is_empty();
        let redact = |value: &[u8]| match header_match.secret {
            Some(_) => b"[redacted]".to_vec(),
            None => value.to_vec(),
        };
        let (expected_entry, actual_entry) = ((name.clone(), redact(&expected)), (name.clone(), redact(&actual)));
        if is_there && (presence_test || actual == expected) {
            if header_match.on_match == MatchAction::Continue {
                return true;
            }
            if header_match.on_match == MatchAction::Delete && !self.may_change(&name, 0) {
                return false;
            }
            add(&mut self.effects.rejected, expected_entry);
            if header_match.on_match == MatchAction::Delete {
                self.effects.fields.insert(name, Vec::new());
                return true;
            }
            return false;
        }
        let put_in = self.put_in.get(&name).copied().unwrap_or_default();
        let may_change = match header_match.on_mismatch {
            MismatchAction::Add => self.may_change(&name, put_in + 1),
            MismatchAction::Delete if is_there => self.may_change(&name, 0),
            MismatchAction::Replace => self.may_change(&name, 1),
            _ => true,
        };
        if !may_change {
            return false;
        }
        match header_match.on_mismatch {
            MismatchAction::Continue => add(&mut self.effects.missing, expected_entry),
            MismatchAction::Add => {
                add(&mut self.effects.missing, expected_entry);
                self.effects.fields.insert(name, [instances, vec![expected]].concat());
            }
            MismatchAction::Delete if !presence_test && is_there => {
                add(&mut self.effects.rejected, actual_entry);
                self.effects.fields.insert(name, Vec::new());
            }
            MismatchAction::Delete => {}
            MismatchAction::Replace => {
                if is_there {
                    add(&mut self.effects.rejected, actual_entry);
                }
                add(&mut self.effects.missing, expected_entry);
                self.effects.fields.insert(name, vec![expected]);
            }
            MismatchAction::Fail | MismatchAction::Unknown(_) => {
                add(&mut self.effects.missing, expected_entry);
                return false;
            }
        }
        true
    }
}

/// Every entry stands once.
fn add(list: &mut Vec<(String, Vec<u8>)>, entry: (String, Vec<u8>)) {
    if !list.contains(&entry) {
        list.push(entry);
    }
}

/// A pseudo-header is one instance.
fn received(name: &str, request: &Request<'_>) -> Vec<Vec<u8>> {
    if name.starts_with(':') || name == "host" {
        return value_of(name, request).into_iter().collect();
    }
    let mut instances = Vec::new();
    request.headers.each(name, &mut |value| instances.push(value.to_vec()));
    instances
}

/// The secret, or the inline value where none is named or the named one was never delivered. `None`: there is nothing to
/// compare with, or what was delivered is nothing that a field can hold.
fn expected(header_match: &HeaderMatch, secrets: &Secrets) -> Option<Vec<u8>> {
    let inline = header_match.value.as_bytes().to_vec();
    let Some(name) = &header_match.secret else { return Some(inline) };
    match secrets.value(name) {
        Ok(Some(secret)) => Some(secret.to_vec()),
        Ok(None) if !inline.is_empty() => Some(inline),
        Ok(None) | Err(_) => None,
    }
}

/// Whether a match can be honoured: its name, its actions and its value are known ones, and it changes nothing that frames
/// or routes the message.
pub(super) fn enforceable(header_match: &HeaderMatch) -> Truth {
    let changes = header_match.on_match == MatchAction::Delete
        || [MismatchAction::Add, MismatchAction::Delete, MismatchAction::Replace].contains(&header_match.on_mismatch);
    let framing = "host content-length transfer-encoding connection keep-alive proxy-connection te trailer upgrade \
                   http2-settings expect";
    let fixed = header_match.name.starts_with(':') || framing.split(' ').any(|name| *name == *header_match.name);
    let known = !matches!(header_match.on_match, MatchAction::Unknown(_))
        && !matches!(header_match.on_mismatch, MismatchAction::Unknown(_));
    let value = header_match.value.as_bytes();
    let trimmed = value.trim_ascii();
    let sendable = trimmed.len() == value.len() && !value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f);
    match is_header_name(&header_match.name) && known && sendable && !(changes && fixed) {
        true => Truth::Holds,
        false => Truth::Unenforceable,
    }
}

impl Effects {
    /// Whether the compiled form has the same log and, where it forwards, the same fields.
    pub(super) fn agree_with(
        &self,
        request: &Request<'_>,
        edits: Option<&HeaderEdits>,
        log: Option<&HeaderLog>,
    ) -> bool {
        let same = |expected: &[(String, Vec<u8>)], found: &[LoggedHeader]| {
            let found = found.iter().map(|entry| (entry.name.to_string(), entry.value.to_vec()));
            expected.iter().cloned().eq(found)
        };
        let empty = HeaderLog::default();
        let log = log.unwrap_or(&empty);
        same(&self.missing, &log.missing)
            && same(&self.rejected, &log.rejected)
            && edits.is_none_or(|edits| self.agree_on_fields(request, edits))
    }

    /// Whether the compiled form leaves the same fields.
    pub fn agree_on_fields(&self, request: &Request<'_>, edits: &HeaderEdits) -> bool {
        let after = edits.iter().map(|edit| {
            let kept = if edit.keep { received(&edit.name, request) } else { Vec::new() };
            let appended = edit.append.iter().map(|value| value.as_bytes().to_vec());
            (edit.name.to_string(), kept.into_iter().chain(appended).collect())
        });
        after.collect::<BTreeMap<String, Vec<Vec<u8>>>>() == self.fields
    }
}
