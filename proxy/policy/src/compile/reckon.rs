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

/// Bytes of memory that rules take, copies for several port ranges not, and of automata what usual expressions need.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    /// About, in the end.
    held: usize,
    /// While they are compiled, on top.
    passing: usize,
}

/// While something is compiled, it takes so many halves of the room that there is for it in the end.
const PEAK_HALVES: usize = 7;

/// What a direction takes, and each entry, beside their rules.
const DIRECTION: usize = 768;
const ENTRY: usize = 2_500;

/// Room that there has to be for compiling the entries to be tried: what they take in the end, and a little more.
pub(super) fn least_room(entries: &[PortPolicy], limits: &Limits) -> usize {
    if entries.is_empty() {
        return 0;
    }
    let mut seen = HashSet::new();
    let mut memory = Memory { held: DIRECTION, passing: 0 };
    for entry in entries.iter().filter(|entry| super::is_placed(entry)) {
        memory.held += ENTRY;
        for rule in &entry.rules {
            memory.add_rule(rule, limits, &mut seen);
        }
    }
    memory.held.max((memory.held + memory.passing) / PEAK_HALVES * 2)
}

impl Memory {
    /// The constants are measured (`tests/weight.rs` holds them against what is allocated). Expressions that were `seen` before are
    /// read no more.
    fn add_rule<'r>(&mut self, rule: &'r PortRule, limits: &Limits, seen: &mut HashSet<&'r ValueMatch>) {
        let names: usize = rule.server_names.iter().map(String::len).sum();
        self.held += 600 + rule.name.len() + 50 * rule.remotes.len() + 300 * rule.server_names.len() + 3 * names;
        self.passing += 3_000 * rule.server_names.len() + 90 * names;
        for http in rule.http.iter().flatten() {
            self.held += 300;
            for header in &http.headers {
                self.held += 610 + header.name.len();
                self.passing += 500;
                if let Some(bytes) = NonZeroUsize::new(expression_bytes(&header.value, limits)) {
                    self.held += 2 * bytes.get();
                    if !is_plain(&header.value) && seen.insert(&header.value) {
                        self.held += 15 * bytes.get();
                        self.passing += 3_200 + 20 * bytes.get();
                    }
                }
            }
            let matches = http.header_matches.iter().map(|header| 175 + header.name.len() + header.value.len());
            self.held += matches.sum::<usize>();
        }
    }
}

/// Whether the expression is a literal, at a glance.
fn is_plain(value: &ValueMatch) -> bool {
    matches!(value, ValueMatch::Regex(pattern) if !pattern.bytes().any(|byte| br".+*?()|[]{}^$\".contains(&byte)))
}

/// Bytes for each of the copies that splitting port ranges makes, as [`CompiledRule::weight`](super::CompiledRule::weight) counts
/// them.
pub(super) const COPY: usize = 350;
