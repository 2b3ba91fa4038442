//! Matchers on one field, found by values that they may accept, without asking each.

use std::collections::{BTreeSet, HashMap};

use super::probe::Probes;
use crate::model::{HeaderMatcher, ValueMatch};

/// Matchers by number.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// By each value that they list.
    listed: HashMap<Box<[u8]>, Vec<u32>>,
    /// Those that ask for nothing but a beginning, by it.
    prefixes: HashMap<Box<[u8]>, Vec<u32>>,
    /// Other expressions, which cover nothing but listed values, by what these begin with.
    expressions: HashMap<Box<[u8]>, Vec<u32>>,
    /// How long the beginnings are.
    lengths: BTreeSet<usize>,
    /// Any other.
    others: Vec<u32>,
}

impl Lookup {
    /// `None`: any value is accepted.
    pub(super) fn add(&mut self, number: u32, matcher: Option<&HeaderMatcher>, probes: &mut Probes) {
        let plain = matcher.filter(|matcher| !matcher.invert && !matcher.treat_missing_as_empty);
        let Some((matcher, probe)) = plain.and_then(|matcher| Some((matcher, probes.of(&matcher.value)?))) else {
            return self.others.push(number);
        };
        if let Some(listed) = probe.listed() {
            for value in listed {
                self.listed.entry(value.clone()).or_default().push(number);
            }
            return;
        }
        let (map, beginning) = match (probe.prefix(), &matcher.value) {
            (Some(prefix), _) => (&mut self.prefixes, prefix),
            (None, ValueMatch::Regex(_)) => (&mut self.expressions, probe.beginning()),
            (None, _) => return self.others.push(number),
        };
        self.lengths.insert(beginning.len());
        map.entry(beginning.into()).or_default().push(number);
    }

    /// All that may accept the value, and some that do not.
    pub(super) fn accepting(&self, value: &[u8]) -> Vec<u32> {
        let mut found = self.others.clone();
        self.beginning(&self.prefixes, value, &mut found);
        self.beginning(&self.expressions, value, &mut found);
        found.extend(self.listed.get(value).into_iter().flatten());
        found
    }

    /// All that may accept whatever the matcher does, and some that do not.
    pub(super) fn covering(&self, matcher: &HeaderMatcher, probes: &mut Probes) -> Vec<u32> {
        let Some(probe) = probes.of(&matcher.value).filter(|_| !matcher.treat_missing_as_empty) else {
            return Vec::new();
        };
        match (matcher.invert, probe.listed().map(<[_]>::first)) {
            (false, Some(Some(value))) => self.accepting(value),
            (false, None) => {
                let mut found = self.others.clone();
                self.beginning(&self.prefixes, probe.beginning(), &mut found);
                found
            }
            (true, _) | (false, Some(None)) => self.others.clone(),
        }
    }

    fn beginning(&self, map: &HashMap<Box<[u8]>, Vec<u32>>, value: &[u8], found: &mut Vec<u32>) {
        for length in self.lengths.range(..=value.len()) {
            found.extend(map.get(&value[..*length]).into_iter().flatten());
        }
    }
}
