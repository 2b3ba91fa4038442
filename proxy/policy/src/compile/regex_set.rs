//! One automaton for all regular expressions on one header: a single pass over the value finds every one that matches
//! it in full.
//!
//! A lazily built DFA walks one table step per byte. Its states are built as values need them, in a cache of bounded
//! size that belongs to one worker at a time; the search is linear in the value whatever the expressions are.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{Compiler, Config, NFA, WhichCaptures};
use regex_automata::util::pool::Pool;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind, PatternID};
use regex_syntax::hir::{Class, Hir, HirKind};

/// Bytes of automaton that one expression may need before it is quarantined.
pub(super) const PATTERN_SIZE_LIMIT: usize = 256 << 10;
/// Bytes of automaton that all expressions on one header may need, in one set of rules.
const SET_SIZE_LIMIT: usize = 64 << 20;
/// Bytes of lazily built states that one worker may keep for a small automaton. A large one gets
/// [`CACHE_PER_BYTE`] times its own size on top. Full caches are emptied, so this bounds what a peer with ever
/// different values can make a worker hold, per set of rules.
const CACHE_CAPACITY: usize = 64 << 10;
const CACHE_PER_BYTE: usize = 2;

/// Bytes of states that deciding about one value may build, besides a part of the automaton's own size: the first values
/// that a large set sees need large states. States of expressions such as `.*a.{100}` differ with every byte, and building
/// one costs as much as the automaton is large: without a bound one request takes seconds of a worker.
const WORK: usize = 512 << 10;
const WORK_PART: usize = 8;
/// Bytes of a value between two looks at the work that was done.
const STRIDE: usize = 32;

type NewCache = Box<dyn Fn() -> Cache + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>;

pub(super) struct RegexSet {
    dfa: DFA,
    caches: Pool<Cache, NewCache>,
    /// Bytes of states that a cache has room for.
    room: usize,
    /// Bytes of states that one value may build.
    work: usize,
    /// Bytes of the automaton.
    size: usize,
}

/// Where a walk through the automaton ended.
enum Walked {
    /// In this state.
    At(LazyStateID),
    /// Where nothing can match any more.
    Nowhere,
    /// Before the end of the value: more would take too much work.
    TooFar,
}

impl RegexSet {
    /// Compiles the expressions; the pattern numbers that [`RegexSet::each_match`] gives are indexes into `patterns`.
    ///
    /// # Errors
    /// Text saying which limit they exceed.
    pub(super) fn new(patterns: &[Arc<Hir>]) -> Result<Self, String> {
        let nfa = automaton(patterns, SET_SIZE_LIMIT)?;
        let size = nfa.memory_usage();
        // What a cache holds besides states: two sets of the automaton's states, and where each expression starts.
        let empty = nfa.states().len() * 16 + nfa.pattern_len() * 24;
        let capacity = CACHE_CAPACITY + CACHE_PER_BYTE * size;
        let config = DFA::config()
            .match_kind(MatchKind::All)
            .starts_for_each_pattern(true)
            .cache_capacity(capacity)
            .skip_cache_capacity_check(true);
        let dfa = DFA::builder().configure(config).build_from_nfa(nfa).map_err(|error| error.to_string())?;
        let for_cache = dfa.clone();
        let caches: Pool<Cache, NewCache> = Pool::new(Box::new(move || for_cache.create_cache()));
        let room = capacity.saturating_sub(empty);
        Ok(Self { dfa, caches, room, work: WORK + size / WORK_PART, size })
    }

    /// Bytes that the automaton needs.
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// Calls `found` with the number of each expression that matches all of `value`. `false` when finishing the search
    /// would take more work than one value may cause: then nothing is known about any of them.
    #[must_use]
    pub(super) fn each_match(&self, value: &[u8], mut found: impl FnMut(usize)) -> bool {
        let mut cache = self.caches.get();
        let most = self.built(&cache) + self.work;
        match self.walk(&mut cache, Anchored::Yes, value, |built, _| built > most) {
            Walked::TooFar => return false,
            Walked::Nowhere => {}
            Walked::At(end) if !end.is_match() => {}
            Walked::At(end) => {
                for i in 0..self.dfa.match_len(&cache, end) {
                    found(self.dfa.match_pattern(&cache, end, i).as_usize());
                }
            }
        }
        true
    }

    /// Whether one of the expressions, by its number, matches all of `value`, whatever the others would take. `None` when
    /// finding out takes more work than is `left`, or than one expression may cause. Takes what it needs from `left`:
    /// bytes of states and of the value.
    #[cold]
    pub(super) fn matches(&self, expression: usize, value: &[u8], left: &mut usize) -> Option<bool> {
        let mut cache = self.caches.get();
        let before = self.built(&cache);
        let most = WORK.min(*left);
        let mut bytes = STRIDE;
        let walked =
            self.walk(&mut cache, Anchored::Pattern(PatternID::must(expression)), value, |built, stretches| {
                bytes = (stretches + 1) * STRIDE;
                built.saturating_sub(before) + stretches * STRIDE > most
            });
        *left = left.saturating_sub(self.built(&cache).saturating_sub(before) + bytes);
        match walked {
            Walked::At(end) => Some(end.is_match()),
            Walked::Nowhere => Some(false),
            Walked::TooFar => None,
        }
    }

    /// Walks through all of `value`, and its end, until `too_far` says so of the bytes of states built in the cache so far
    /// and the stretches of the value behind. It is asked after each stretch and at the end.
    #[inline]
    fn walk(
        &self,
        cache: &mut Cache,
        anchored: Anchored,
        value: &[u8],
        mut too_far: impl FnMut(usize, usize) -> bool,
    ) -> Walked {
        let start = start::Config::new().anchored(anchored);
        let Ok(mut state) = self.dfa.start_state(cache, &start) else { return Walked::TooFar };
        for (stretch, number) in value.chunks(STRIDE).zip(1..) {
            for &byte in stretch {
                let Ok(next) = self.dfa.next_state(cache, state, byte) else { return Walked::TooFar };
                state = next;
                if state.is_tagged() {
                    if state.is_dead() {
                        return Walked::Nowhere;
                    }
                    if state.is_quit() {
                        return Walked::TooFar;
                    }
                }
            }
            if too_far(self.built(cache), number) {
                return Walked::TooFar;
            }
        }
        self.dfa.next_eoi_state(cache, state).map_or(Walked::TooFar, Walked::At)
    }

    /// Bytes of states that were built in the cache so far, those included that it has let go of.
    fn built(&self, cache: &Cache) -> usize {
        cache.clear_count().saturating_mul(self.room).saturating_add(cache.memory_usage())
    }
}

impl fmt::Debug for RegexSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegexSet").field("patterns", &self.dfa.pattern_len()).finish_non_exhaustive()
    }
}

/// Whether one expression fits the budget on its own.
///
/// # Errors
/// Text saying which limit it exceeds.
pub(super) fn check_size(pattern: &Hir) -> Result<(), String> {
    if size_bound(pattern) <= PATTERN_SIZE_LIMIT {
        return Ok(());
    }
    automaton(std::slice::from_ref(pattern), PATTERN_SIZE_LIMIT).map(drop)
}

/// Bytes that the automaton of `pattern` needs at most. Building one only to see its size is most of the cost of reading a
/// small expression.
fn size_bound(pattern: &Hir) -> usize {
    /// More than a state with its share of every table.
    const STATE: usize = 128;
    /// States for one range of characters: at most seven sequences of at most four bytes.
    const CHARACTERS: usize = 28;
    match pattern.kind() {
        HirKind::Empty | HirKind::Look(_) => STATE,
        HirKind::Literal(literal) => literal.0.len().saturating_mul(STATE),
        HirKind::Class(Class::Bytes(class)) => STATE + class.ranges().len() * size_of::<u64>(),
        HirKind::Class(Class::Unicode(class)) => (1 + class.ranges().len() * CHARACTERS).saturating_mul(STATE),
        HirKind::Repetition(repetition) => {
            let copies = repetition.max.unwrap_or_else(|| repetition.min.saturating_add(1)).max(1) as usize;
            size_bound(&repetition.sub).saturating_add(2 * STATE).saturating_mul(copies)
        }
        HirKind::Capture(capture) => size_bound(&capture.sub).saturating_add(2 * STATE),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(|part| size_bound(part).saturating_add(STATE)).fold(STATE, usize::saturating_add)
        }
    }
}

/// Patterns are not anchored at their end: of all matches only those count that end with the value.
fn automaton(patterns: &[impl Borrow<Hir>], limit: usize) -> Result<NFA, String> {
    let config = Config::new().utf8(false).which_captures(WhichCaptures::None).nfa_size_limit(Some(limit));
    Compiler::new().configure(config).build_many_from_hir(patterns).map_err(|error| match error.size_limit() {
        Some(_) => format!("needs an automaton of more than {limit} bytes"),
        None => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::re2::{Pattern, parse};

    fn set(patterns: impl Iterator<Item = String>) -> RegexSet {
        let read = |pattern: String| match parse(&pattern) {
            Ok(Pattern::Expression(hir)) => Arc::new(hir),
            other => panic!("{pattern}: {other:?}"),
        };
        RegexSet::new(&patterns.map(read).collect::<Vec<_>>()).unwrap()
    }

    fn found(set: &RegexSet, value: &str) -> Option<Vec<usize>> {
        let mut found = Vec::new();
        set.each_match(value.as_bytes(), |i| found.push(i)).then_some(found)
    }

    /// An emptied cache is no work that the value has caused.
    #[test]
    fn no_value_pays_for_an_emptied_cache() {
        let set = set((0..4000).map(|i| format!("/api/v1/service-number-{i}/[a-z]+/x")));
        let mut emptied = 0;
        for i in 0..40_000 {
            let service = i * 7919 % 4000;
            let rest = (0..8).map(|k| char::from(b'a' + ((i >> k) * 31 % 26) as u8)).collect::<String>();
            let value = format!("/api/v1/service-number-{service}/{rest}/x");
            assert_eq!(found(&set, &value), Some(vec![service]), "{value}, {emptied} times emptied");
            emptied = set.caches.get().clear_count();
        }
        assert!(emptied > 0, "the cache was never full");
    }

    #[test]
    fn one_expression_at_a_time() {
        let set = set([".*a.{300}b", "[-ab]*", "c.*"].map(str::to_owned).into_iter());
        let mut state = 1_u32;
        let byte = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b"-ab"[(state >> 24) as usize % 3])
        };
        let value: String = (0..60_000).map(byte).collect();
        let value = value.as_bytes();
        assert!(!set.each_match(value, |_| {}));
        let mut left = 10 * WORK;
        assert_eq!(set.matches(1, value, &mut left), Some(true));
        assert_eq!(set.matches(2, value, &mut left), Some(false));
        let light = 10 * WORK - left;
        assert!((60_000..200_000).contains(&light), "{light}");
        let before = left;
        assert_eq!(set.matches(0, value, &mut left), None);
        assert!((WORK..2 * WORK).contains(&(before - left)), "{} bytes", before - left);
        // What is left bounds it, too.
        left = 1000;
        assert_eq!(set.matches(1, value, &mut left), None);
        assert_eq!(left, 0);
    }
}
