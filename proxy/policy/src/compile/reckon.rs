//! What compiling rules takes, from a look at them: so that nothing is begun that cannot be finished.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use super::effort;
use super::rule::is_name;
use crate::limits::{Effort, Limits};
use crate::model::{HttpRule, PortPolicy, PortRule, TextPart, ValueMatch};

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
        let bytes = expression_bytes(&header.value, limits);
        (bytes > 0 && seen.insert(&header.value)).then(|| Effort::to_read(bytes))
    });
    read.sum()
}

/// Bytes of the expression that it is read as; 0 for none.
fn expression_bytes(value: &ValueMatch, limits: &Limits) -> usize {
    match value {
        ValueMatch::Regex(pattern) if pattern.len() <= limits.expression_bytes => pattern.len(),
        ValueMatch::Text { part, text, ignore_case } if *ignore_case || *part == TextPart::Anywhere => text.len(),
        _ => 0,
    }
}

/// Bytes of memory that rules take, automata and copies for several port ranges not.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    /// About, in the end.
    held: usize,
    /// While they are compiled, on top.
    passing: usize,
}

/// While something is compiled, it takes so many times the room that there is for it in the end.
const PEAK: usize = 2;

/// Room that there has to be for compiling the entries to be tried.
pub(super) fn least_room(entries: &[PortPolicy], limits: &Limits) -> usize {
    let rules = entries.iter().filter(|entry| super::is_placed(entry)).flat_map(|entry| &entry.rules);
    let memory = rules.map(|rule| of_rule(rule, limits)).fold(Memory::default(), |sum, rule| Memory {
        held: sum.held + rule.held,
        passing: sum.passing + rule.passing,
    });
    // What is held is counted when it is there, so it may be less.
    (memory.held / 10 * 7).max((memory.held + memory.passing) / PEAK)
}

/// The constants are measured (`tests/weight.rs` holds them against what is allocated).
fn of_rule(rule: &PortRule, limits: &Limits) -> Memory {
    let names: usize = rule.server_names.iter().map(String::len).sum();
    let mut memory = Memory {
        held: 600 + rule.name.len() + 60 * rule.remotes.len() + 300 * rule.server_names.len() + 3 * names,
        passing: 2_000 * rule.server_names.len() + 40 * names,
    };
    for http in rule.http.iter().flatten() {
        memory.held += 300;
        for header in &http.headers {
            memory.held += 600 + header.name.len();
            if let Some(bytes) = NonZeroUsize::new(expression_bytes(&header.value, limits)) {
                memory.held += 2 * bytes.get();
                memory.passing += if is_plain(&header.value) { 300 } else { 2_600 + 20 * bytes.get() };
            }
        }
        let matches = http.header_matches.iter().map(|header| 160 + header.name.len() + header.value.len());
        memory.held += matches.sum::<usize>();
    }
    memory
}

/// Whether the expression is a literal, at a glance.
fn is_plain(value: &ValueMatch) -> bool {
    matches!(value, ValueMatch::Regex(pattern) if !pattern.bytes().any(|byte| br".+*?()|[]{}^$\".contains(&byte)))
}

/// Bytes for each of the copies that splitting port ranges makes, as [`CompiledRule::weight`](super::CompiledRule::weight) counts
/// them.
pub(super) const COPY: usize = 350;
