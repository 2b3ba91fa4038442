//! One condition of an HTTP rule on a field, as the checks see it.

use std::rc::Rc;

use super::finding::Element;
use super::probe::{Probe, Probes};
use crate::model::{HeaderMatcher, HttpRule};

/// A matcher and what can be asked about it.
#[derive(Debug)]
pub(super) struct Condition<'a> {
    pub(super) element: Element,
    pub(super) matcher: &'a HeaderMatcher,
    pub(super) probe: Rc<Probe>,
    pub(super) others: Others,
}

/// The other conditions of the HTTP rule on the same field.
#[derive(Debug)]
pub(super) struct Others(Vec<(Rc<Probe>, bool)>);

impl<'a> Condition<'a> {
    /// `None` when the matcher is not enforced as written, which is said elsewhere.
    pub(super) fn of(http_rule: &Element, http: &'a HttpRule, number: usize, probes: &mut Probes) -> Option<Self> {
        let matcher = &http.headers[number];
        let probe = probes.of(&matcher.value)?;
        let others = http.headers.iter().enumerate().filter(|(n, other)| *n != number && other.name == matcher.name);
        let others = others.filter_map(|(_, other)| Some((probes.of(&other.value)?, other.invert))).collect();
        Some(Self { element: http_rule.header(number), matcher, probe, others: Others(others) })
    }
}

impl Others {
    /// Whether all of them hold for the value.
    pub(super) fn accept(&self, value: &[u8]) -> bool {
        self.0.iter().all(|(probe, invert)| probe.accepts(value) != *invert)
    }
}
