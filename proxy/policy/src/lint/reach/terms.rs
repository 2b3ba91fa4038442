//! What units ask for, as numbers: equal conditions have equal numbers, and which conditions imply which is found out once.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::rc::Rc;

use super::super::cover::{covers_matcher, covers_names};
use super::super::lookup::Lookup;
use super::super::probe::Probes;
use crate::model::{HeaderMatcher, HttpRule, PortRule};

/// What comparing two conditions costs, in steps; one step is a comparison of numbers.
const COMPARISON: usize = 8;

/// How much is compared, at most. When it is used up, nothing is claimed.
#[derive(Debug)]
pub(super) struct Steps {
    left: usize,
}

/// More would have to be compared than [`Steps`] allows.
#[derive(Debug)]
pub(super) struct TooMany;

impl Steps {
    pub(super) const fn new(left: usize) -> Self {
        Self { left }
    }

    pub(super) fn take(&mut self, steps: usize) -> Result<(), TooMany> {
        self.left = self.left.checked_sub(steps).ok_or(TooMany)?;
        Ok(())
    }

    #[cfg(test)]
    pub(super) const fn left(&self) -> usize {
        self.left
    }
}

/// Values and their numbers.
#[derive(Debug)]
struct Numbers<T>(HashMap<T, u32>);

impl<T: Clone + Eq + Hash> Numbers<T> {
    fn of(&mut self, value: &T) -> u32 {
        if let Some(number) = self.0.get(value) {
            return *number;
        }
        let number = self.0.len() as u32;
        self.0.insert(value.clone(), number);
        number
    }
}

/// The conditions of a unit or of a piece of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Terms {
    pub(super) remotes: u32,
    names: u32,
    proxy_id: u32,
    /// In no order.
    pub(super) matchers: Vec<u32>,
}

/// All conditions that were met, and what is known about them.
#[derive(Debug)]
pub(super) struct Conditions {
    remotes: Remotes,
    names: Numbers<Vec<String>>,
    name_lists: Vec<Vec<String>>,
    names_cover: HashMap<(u32, u32), bool>,
    matchers: Matchers,
}

impl Conditions {
    pub(super) fn new() -> Self {
        Self {
            remotes: Remotes { numbers: Numbers(HashMap::new()), sets: Vec::new(), holding: HashMap::new() },
            names: Numbers(HashMap::new()),
            name_lists: Vec::new(),
            names_cover: HashMap::new(),
            matchers: Matchers {
                numbers: Numbers(HashMap::new()),
                list: Vec::new(),
                by_name: HashMap::new(),
                covering: HashMap::new(),
            },
        }
    }

    /// What a piece of a rule asks for. With `covers` it is one that may be found to cover others.
    pub(super) fn terms(
        &mut self,
        rule: &PortRule,
        remotes: &[u32],
        http: Option<&HttpRule>,
        covers: bool,
        probes: &mut Probes,
    ) -> Terms {
        let names = self.names.of(&rule.server_names);
        if names as usize == self.name_lists.len() {
            self.name_lists.push(rule.server_names.clone());
        }
        let headers = http.map_or(&[][..], |http| &http.headers);
        Terms {
            remotes: self.remotes.number(remotes, covers),
            names,
            proxy_id: rule.proxy_id,
            matchers: headers.iter().map(|matcher| self.matchers.number(matcher, covers, probes)).collect(),
        }
    }

    /// Whether what a connection of `other` is holds for those of `terms`, apart from its peer.
    pub(super) fn covers_rest(
        &mut self,
        terms: &Terms,
        other: &Terms,
        probes: &mut Probes,
        steps: &mut Steps,
    ) -> Result<bool, TooMany> {
        steps.take(1)?;
        if terms.proxy_id != 0 && terms.proxy_id != other.proxy_id {
            return Ok(false);
        }
        if terms.names == other.names {
            return Ok(true);
        }
        if let Some(known) = self.names_cover.get(&(terms.names, other.names)) {
            return Ok(*known);
        }
        let (mine, theirs) = (&self.name_lists[terms.names as usize], &self.name_lists[other.names as usize]);
        steps.take(COMPARISON * (1 + mine.len() * theirs.len()))?;
        let covers = covers_names(mine, theirs, probes);
        self.names_cover.insert((terms.names, other.names), covers);
        Ok(covers)
    }

    /// Sets of peers, of those that may cover, that hold all of these.
    pub(super) fn wider_remotes(&self, terms: &Terms, steps: &mut Steps) -> Result<Vec<u32>, TooMany> {
        self.remotes.wider(terms.remotes, steps)
    }

    /// Matchers, of those that may cover, that hold wherever all of these do.
    pub(super) fn implied(
        &mut self,
        terms: &Terms,
        probes: &mut Probes,
        steps: &mut Steps,
    ) -> Result<BTreeSet<u32>, TooMany> {
        let mut implied = BTreeSet::new();
        for matcher in &terms.matchers {
            implied.extend(self.matchers.covering(*matcher, probes, steps)?.iter());
        }
        Ok(implied)
    }
}

/// Sets of peers; the empty one means anybody.
#[derive(Debug)]
struct Remotes {
    numbers: Numbers<Vec<u32>>,
    /// Each in order.
    sets: Vec<Vec<u32>>,
    /// For each peer the sets with it that may cover others; the empty set under `None`.
    holding: HashMap<Option<u32>, Vec<u32>>,
}

impl Remotes {
    fn number(&mut self, remotes: &[u32], covers: bool) -> u32 {
        let mut set = remotes.to_vec();
        set.sort_unstable();
        set.dedup();
        let number = self.numbers.of(&set);
        if number as usize == self.sets.len() {
            if covers {
                let peers = set.iter().copied().map(Some).chain(set.is_empty().then_some(None));
                peers.for_each(|peer| self.holding.entry(peer).or_default().push(number));
            }
            self.sets.push(set);
        }
        number
    }

    fn wider(&self, number: u32, steps: &mut Steps) -> Result<Vec<u32>, TooMany> {
        /// Peers of a set that one step looks at.
        const AT_ONCE: usize = 16;
        let set = &self.sets[number as usize];
        let holding = |peer: Option<u32>| self.holding.get(&peer).map_or(&[][..], Vec::as_slice);
        let mut wider = holding(None).to_vec();
        let fewest = set.iter().map(|peer| holding(Some(*peer))).min_by_key(|sets| sets.len());
        for other in fewest.unwrap_or_default() {
            let there = &self.sets[*other as usize];
            steps.take(1 + there.len() / AT_ONCE)?;
            let mut rest = there.iter();
            if set.iter().all(|peer| rest.any(|other| other == peer)) {
                wider.push(*other);
            }
        }
        Ok(wider)
    }
}

/// Matchers, and where to look for those that cover another.
#[derive(Debug)]
struct Matchers {
    numbers: Numbers<HeaderMatcher>,
    list: Vec<HeaderMatcher>,
    by_name: HashMap<Box<str>, Lookup>,
    covering: HashMap<u32, Rc<[u32]>>,
}

impl Matchers {
    fn number(&mut self, matcher: &HeaderMatcher, covers: bool, probes: &mut Probes) -> u32 {
        let number = self.numbers.of(matcher);
        if number as usize == self.list.len() {
            self.list.push(matcher.clone());
            // Others cover nothing but themselves.
            if covers && !matcher.invert && !matcher.treat_missing_as_empty {
                self.by_name.entry(matcher.name.clone()).or_default().add(number, Some(matcher), probes);
            }
        }
        number
    }

    fn covering(&mut self, number: u32, probes: &mut Probes, steps: &mut Steps) -> Result<Rc<[u32]>, TooMany> {
        if let Some(known) = self.covering.get(&number) {
            return Ok(Rc::clone(known));
        }
        let matcher = &self.list[number as usize];
        let mut covering = vec![number];
        if let Some(lookup) = self.by_name.get(&matcher.name) {
            for candidate in lookup.covering(matcher, probes) {
                steps.take(COMPARISON)?;
                if candidate != number && covers_matcher(&self.list[candidate as usize], matcher, probes) {
                    covering.push(candidate);
                }
            }
        }
        covering.sort_unstable();
        covering.dedup();
        let covering: Rc<[u32]> = covering.into();
        self.covering.insert(number, Rc::clone(&covering));
        Ok(covering)
    }
}
