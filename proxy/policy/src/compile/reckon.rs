//! What compiling rules takes at least, from a look at them: so that nothing is begun that cannot be finished.

use std::collections::HashSet;

use super::effort;
use super::rule::is_name;
use crate::limits::{Effort, Limits};
use crate::model::{HttpRule, PortPolicy, TextPart, ValueMatch};

/// Nanoseconds; what indexes and automata take comes on top.
pub(super) fn least_effort(entries: &[PortPolicy], limits: &Limits) -> u64 {
    let rules = || entries.iter().filter(|entry| super::is_placed(entry)).flat_map(|entry| &entry.rules);
    let http = rules().flat_map(|rule| rule.http.iter().flatten());
    rules().map(effort).sum::<u64>() + expressions(http, limits)
}

/// Each is read once.
fn expressions<'r>(rules: impl Iterator<Item = &'r HttpRule>, limits: &Limits) -> u64 {
    let mut seen = HashSet::new();
    let headers = rules.flat_map(|rule| &rule.headers).filter(|header| is_name(&header.name));
    let read = headers.filter_map(|header| {
        let bytes = match &header.value {
            ValueMatch::Regex(pattern) if pattern.len() <= limits.expression_bytes => pattern.len(),
            ValueMatch::Text { part, text, ignore_case } if *ignore_case || *part == TextPart::Anywhere => text.len(),
            _ => 0,
        };
        (bytes > 0 && seen.insert(&header.value)).then(|| Effort::to_read(bytes))
    });
    read.sum()
}
