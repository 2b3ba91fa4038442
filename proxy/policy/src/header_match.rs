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
    /// It would change the request, and enough of it was changed already.
    TooManyEdits,
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

    /// The match that would have changed more than one request may be changed, if any. The request must be refused: it may
    /// be one that takes out what nobody behind it expects.
    pub(crate) fn too_many_edits(&self) -> Option<&Failure> {
        self.failures.iter().find(|failure| failure.why == Why::TooManyEdits)
    }

    fn apply(&mut self, header_match: &HeaderMatch) -> Result<(), Why> {
        let secrets = self.secrets;
        let expected = expected(header_match, secrets).map_err(Why::Secret)?;
        let name = &*header_match.name;
        let redact = header_match.secret.is_some();
        let mut comparison = Comparison::with(expected);
        self.each(name, &mut |value| comparison.add(value));
        let matches = comparison.found && (expected.is_empty() || comparison.is_equal());
        let edits_more = match matches {
            true => header_match.on_match == MatchAction::Delete,
            // A field that is not there is not taken out.
            false if header_match.on_mismatch == MismatchAction::Delete => comparison.found,
            false => header_match.on_mismatch.edits(),
        };
        if edits_more && self.edits.is_full() {
            return Err(Why::TooManyEdits);
        }
        // Copied only where it may be logged.
        let found = (!matches && edits_more).then(|| self.value(name)).flatten();
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

    /// Gives `visit` all instances of a field, as they stand by now.
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        let edit = self.edits.of(name);
        if edit.is_none_or(|edit| edit.keep) {
            match pseudo_header(name, self.request) {
                Some([]) => {}
                Some(value) => visit(value),
                None => self.request.headers.each(name, visit),
            }
        }
        edit.iter().flat_map(|edit| &edit.append).for_each(|value| visit(value.as_bytes()));
    }

    /// All instances as one value with a bare comma between them.
    fn value(&self, name: &str) -> Option<Vec<u8>> {
        let mut joined: Option<Vec<u8>> = None;
        self.each(name, &mut |value| match &mut joined {
            None => joined = Some(value.to_vec()),
            Some(joined) => {
                joined.push(b',');
                joined.extend_from_slice(value);
            }
        });
        joined
    }
}

/// Compares the instances of a field, one value with a bare comma between them, with what is expected. Copies nothing,
/// and takes a time that tells nothing but lengths, since one side may be a secret.
struct Comparison<'a> {
    /// Whether there is any instance.
    found: bool,
    /// What is left of the expected value; `None` once there is more than it has.
    rest: Option<&'a [u8]>,
    different: u8,
}

impl<'a> Comparison<'a> {
    const fn with(expected: &'a [u8]) -> Self {
        Self { found: false, rest: Some(expected), different: 0 }
    }

    fn add(&mut self, instance: &[u8]) {
        if self.found {
            self.bytes(b",");
        }
        self.found = true;
        self.bytes(instance);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let Some((these, rest)) = self.rest.and_then(|rest| rest.split_at_checked(bytes.len())) else {
            self.rest = None;
            return;
        };
        self.rest = Some(rest);
        self.different =
            bytes.iter().zip(these).fold(self.different, |different, (a, b)| black_box(different | (a ^ b)));
    }

    fn is_equal(&self) -> bool {
        self.different == 0 && self.rest.is_some_and(<[u8]>::is_empty)
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

/// Secrets that `matches` need and that nothing can be compared with, each once, with the reason.
pub(crate) fn unusable(matches: &[HeaderMatch], secrets: &Secrets) -> Vec<(Box<str>, &'static str)> {
    let mut unusable: Vec<(Box<str>, &'static str)> = Vec::new();
    for header_match in matches {
        if let (Some(name), Err(why)) = (&header_match.secret, expected(header_match, secrets))
            && !unusable.iter().any(|(known, _)| **known == **name)
        {
            unusable.push((name.as_ref().into(), why));
        }
    }
    unusable
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
            Self::TooManyEdits => format!("editable: at most {} changes are made to a request", HeaderEdits::MAX),
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
