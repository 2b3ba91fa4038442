//! Runs the `header_matches` of rules on a working copy of the request.
//!
//! Conditions (`headers`) look at the request as it was received, so which rules apply does not depend on what other rules
//! do to it. Header matches are a program: each sees what those before it have made of the fields.

use std::fmt;
use std::hint::black_box;

use crate::compile::index::pseudo_header;
use crate::edits::{HeaderEdits, HeaderLog, NewValue, log_once};
use crate::model::{HeaderMatch, MatchAction, MismatchAction};
use crate::{Request, Secrets};

/// A request under the header matches of the rules that apply to it.
pub(crate) struct Trial<'a> {
    request: &'a Request<'a>,
    secrets: &'a Secrets,
    pub(crate) edits: HeaderEdits,
    pub(crate) log: HeaderLog,
    /// Rules whose matches were run, by the number of their unit; of the policy that is being judged.
    pub(crate) ran: Vec<u32>,
    /// Which of them failed.
    pub(crate) failures: Vec<Failure>,
}

/// A header match because of which a rule did not admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The rule's unit.
    pub(crate) unit: u32,
    /// Index in its `header_matches`.
    pub(crate) index: usize,
    pub(crate) why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The field is as expected, and must not be.
    Matched,
    /// The field is not as expected.
    Mismatched,
    /// What is expected is a secret, which has this problem.
    Secret(&'static str),
}

impl<'a> Trial<'a> {
    pub(crate) fn new(request: &'a Request<'a>, secrets: &'a Secrets) -> Self {
        Self {
            request,
            secrets,
            edits: HeaderEdits::default(),
            log: HeaderLog::default(),
            ran: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Begins with the next policy. What the last one edited and logged stays.
    pub(crate) fn next_policy(&mut self) {
        self.ran.clear();
        self.failures.clear();
    }

    /// Runs all matches of a rule, also after one has failed, and says whether they let the request pass.
    pub(crate) fn run(&mut self, unit: u32, matches: &[HeaderMatch]) -> bool {
        let mut passes = true;
        self.ran.push(unit);
        for (index, header_match) in matches.iter().enumerate() {
            if let Err(why) = self.apply(header_match) {
                self.failures.push(Failure { unit, index, why });
                passes = false;
            }
        }
        passes
    }

    fn apply(&mut self, header_match: &HeaderMatch) -> Result<(), Why> {
        let secrets = self.secrets;
        let expected = expected(header_match, secrets).map_err(Why::Secret)?;
        let name = &*header_match.name;
        let redact = header_match.secret.is_some();
        let found = self.value(name);
        let matches = match &found {
            None => false,
            Some(_) if expected.is_empty() => true,
            Some(found) => equal(found, expected),
        };
        let Self { edits, log, .. } = self;
        let new_value = || NewValue { bytes: expected.into(), redacted: redact };
        if matches {
            return match header_match.on_match {
                MatchAction::Continue => Ok(()),
                MatchAction::Fail | MatchAction::Unknown(_) => {
                    log_once(&mut log.rejected, name, expected, redact);
                    Err(Why::Matched)
                }
                MatchAction::Delete => {
                    log_once(&mut log.rejected, name, expected, redact);
                    edits.remove(name);
                    Ok(())
                }
            };
        }
        match header_match.on_mismatch {
            MismatchAction::Fail | MismatchAction::Unknown(_) => {
                log_once(&mut log.missing, name, expected, redact);
                return Err(Why::Mismatched);
            }
            MismatchAction::Continue => log_once(&mut log.missing, name, expected, redact),
            MismatchAction::Add => {
                log_once(&mut log.missing, name, expected, redact);
                edits.append(name, new_value());
            }
            // A presence test does not match only where there is nothing to take out.
            MismatchAction::Delete => {
                if let Some(found) = &found {
                    log_once(&mut log.rejected, name, found, redact);
                    edits.remove(name);
                }
            }
            MismatchAction::Replace => {
                if let Some(found) = &found {
                    log_once(&mut log.rejected, name, found, redact);
                }
                log_once(&mut log.missing, name, expected, redact);
                edits.replace(name, new_value());
            }
        }
        Ok(())
    }

    /// All instances of a field as one value with a bare comma between them, as it stands by now.
    fn value(&self, name: &str) -> Option<Vec<u8>> {
        let mut joined: Option<Vec<u8>> = None;
        let mut add = |value: &[u8]| match &mut joined {
            None => joined = Some(value.to_vec()),
            Some(joined) => {
                joined.push(b',');
                joined.extend_from_slice(value);
            }
        };
        let edit = self.edits.of(name);
        if edit.is_none_or(|edit| edit.keep) {
            match pseudo_header(name, self.request) {
                Some([]) => {}
                Some(value) => add(value),
                None => self.request.headers.each(name, &mut add),
            }
        }
        edit.iter().flat_map(|edit| &edit.append).for_each(|value| add(value.as_bytes()));
        joined
    }
}

/// What the field should be; empty when it only has to be there.
fn expected<'a>(header_match: &'a HeaderMatch, secrets: &'a Secrets) -> Result<&'a [u8], &'static str> {
    let inline = header_match.value.as_bytes();
    let Some(name) = &header_match.secret else { return Ok(inline) };
    match secrets.value(name)? {
        Some(value) => Ok(value),
        None if inline.is_empty() => Err("is not delivered"),
        None => Ok(inline),
    }
}

/// Compares in a time that tells nothing but the lengths, since one side may be a secret.
fn equal(found: &[u8], expected: &[u8]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).fold(0, |different, (a, b)| black_box(different | (a ^ b))) == 0
}

/// What the match asks for, for people: never a secret.
pub(crate) fn test(header_match: &HeaderMatch) -> String {
    match &header_match.secret {
        Some(secret) => format!("the value of secret {secret:?}"),
        None if header_match.value.is_empty() => "present".to_owned(),
        None => format!("exact {:?}", header_match.value),
    }
}

impl Why {
    /// Completes "FIELD is not …".
    pub(crate) fn wanted(self, header_match: &HeaderMatch) -> String {
        match self {
            Self::Matched => format!("anything but {}", test(header_match)),
            Self::Mismatched => test(header_match),
            Self::Secret(problem) => {
                let name = header_match.secret.as_deref().unwrap_or_default();
                format!("comparable: secret {name:?} {problem}")
            }
        }
    }
}

/// What a match asks for and does, for people.
pub(crate) struct Program<'a>(pub(crate) &'a HeaderMatch);

impl fmt::Display for Program<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&test(self.0))?;
        f.write_str(match self.0.on_match {
            MatchAction::Continue => "",
            MatchAction::Fail => " (refused)",
            MatchAction::Delete => " (taken out)",
            MatchAction::Unknown(_) => " (unknown action)",
        })?;
        f.write_str(match self.0.on_mismatch {
            MismatchAction::Fail => "",
            MismatchAction::Continue => ", or anything",
            MismatchAction::Add => ", or added",
            MismatchAction::Delete => ", or taken out",
            MismatchAction::Replace => ", or put in place",
            MismatchAction::Unknown(_) => ", or an unknown action",
        })
    }
}
