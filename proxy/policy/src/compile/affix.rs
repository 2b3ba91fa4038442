//! All prefixes (or suffixes) of a value out of a set, in one binary search.

use std::cmp::Ordering;

use crate::weight::weight;

/// Literals sorted by their bytes as seen from one end of the value.
#[derive(Debug, Default)]
pub(super) struct AffixSet {
    /// `(literal, test)`, sorted, unique; the literals of suffixes are stored reversed.
    entries: Vec<(Box<[u8]>, u32)>,
    /// For each entry the longest other entry that it begins with.
    parents: Vec<Option<u32>>,
    from_end: bool,
}

impl AffixSet {
    pub(super) fn prefixes(literals: Vec<(&[u8], u32)>) -> Self {
        Self::new(literals.into_iter().map(|(l, t)| (l.into(), t)).collect(), false)
    }

    pub(super) fn suffixes(literals: Vec<(&[u8], u32)>) -> Self {
        let reversed = literals.into_iter().map(|(l, t)| (l.iter().rev().copied().collect(), t)).collect();
        Self::new(reversed, true)
    }

    fn new(mut entries: Vec<(Box<[u8]>, u32)>, from_end: bool) -> Self {
        entries.sort();
        entries.dedup_by(|a, b| a.0 == b.0);
        let mut parents: Vec<Option<u32>> = Vec::with_capacity(entries.len());
        for (i, (literal, _)) in entries.iter().enumerate() {
            // The predecessor, or one of its own parents, is the longest entry that this one begins with.
            let mut parent = i.checked_sub(1);
            while let Some(p) = parent {
                if literal.starts_with(&entries[p].0) {
                    break;
                }
                parent = parents[p].map(|p| p as usize);
            }
            parents.push(parent.map(|p| p as u32));
        }
        Self { entries, parents, from_end }
    }

    /// Calls `found` with the test of each literal that `value` begins (or ends) with.
    pub(super) fn each_match(&self, value: &[u8], mut found: impl FnMut(u32)) {
        let after = self.entries.partition_point(|(l, _)| self.order(l, value) != Ordering::Greater);
        // Every literal that the value begins with sorts between it and the greatest one not above the value, and is
        // one that this greatest one begins with: so all of them are on its chain of parents.
        let mut at = after.checked_sub(1);
        let mut inside = false;
        while let Some(i) = at {
            inside = inside || self.begins(value, &self.entries[i].0);
            if inside {
                found(self.entries[i].1);
            }
            at = self.parents[i].map(|p| p as usize);
        }
    }

    fn order(&self, literal: &[u8], value: &[u8]) -> Ordering {
        if self.from_end { literal.iter().cmp(value.iter().rev()) } else { literal.cmp(value) }
    }

    fn begins(&self, value: &[u8], literal: &[u8]) -> bool {
        if self.from_end {
            literal.len() <= value.len() && literal.iter().eq(value.iter().rev().take(literal.len()))
        } else {
            value.starts_with(literal)
        }
    }
}

weight!(AffixSet: entries, parents);

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(set: &AffixSet, value: &str) -> Vec<u32> {
        let mut found = Vec::new();
        set.each_match(value.as_bytes(), |t| found.push(t));
        found.sort_unstable();
        found
    }

    #[test]
    fn finds_every_prefix() {
        let literals: Vec<(&[u8], u32)> = vec![(b"/a", 0), (b"/ab", 1), (b"/abc", 2), (b"/ac", 3), (b"/b", 4)];
        let set = AffixSet::prefixes(literals);
        assert_eq!(matches(&set, "/abcd"), [0, 1, 2]);
        assert_eq!(matches(&set, "/abd"), [0, 1]);
        assert_eq!(matches(&set, "/acx"), [0, 3]);
        assert_eq!(matches(&set, "/az"), [0]);
        assert_eq!(matches(&set, "/b"), [4]);
        assert_eq!(matches(&set, "/c"), Vec::<u32>::new());
        assert_eq!(matches(&set, ""), Vec::<u32>::new());
    }

    #[test]
    fn finds_every_suffix() {
        let literals: Vec<(&[u8], u32)> = vec![(b".com", 0), (b"a.com", 1), (b".org", 2)];
        let set = AffixSet::suffixes(literals);
        assert_eq!(matches(&set, "a.com"), [0, 1]);
        assert_eq!(matches(&set, "b.com"), [0]);
        assert_eq!(matches(&set, "com"), Vec::<u32>::new());
    }
}
