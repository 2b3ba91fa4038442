//! One automaton for all regular expressions on one header: a single pass over the value finds every one that matches
//! it in full.
//!
//! A lazily built DFA walks one table step per byte. Its states are built as values need them, in a cache of bounded
//! size that belongs to one worker at a time; the search is linear in the value whatever the expressions are.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{Compiler, Config, NFA, WhichCaptures};
use regex_automata::util::pool::Pool;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
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
    /// Of a cache, in bytes.
    capacity: usize,
    /// Bytes of states that one value may build.
    work: usize,
}

impl RegexSet {
    /// Compiles the expressions; the pattern numbers that [`RegexSet::each_match`] gives are indexes into `patterns`.
    ///
    /// # Errors
    /// Text saying which limit they exceed.
    pub(super) fn new(patterns: &[Arc<Hir>]) -> Result<Self, String> {
        let nfa = automaton(patterns, SET_SIZE_LIMIT)?;
        let size = nfa.memory_usage();
        let capacity = CACHE_CAPACITY + CACHE_PER_BYTE * size;
        let config = DFA::config().match_kind(MatchKind::All).cache_capacity(capacity).skip_cache_capacity_check(true);
        let dfa = DFA::builder().configure(config).build_from_nfa(nfa).map_err(|error| error.to_string())?;
        let for_cache = dfa.clone();
        let caches: Pool<Cache, NewCache> = Pool::new(Box::new(move || for_cache.create_cache()));
        Ok(Self { dfa, caches, capacity, work: WORK + size / WORK_PART })
    }

    /// Calls `found` with the number of each expression that matches all of `value`. `false` when finishing the search
    /// would take more work than one value may cause: then nothing is known about any of them.
    #[must_use]
    pub(super) fn each_match(&self, value: &[u8], mut found: impl FnMut(usize)) -> bool {
        let mut cache = self.caches.get();
        let limit = self.built(&cache) + self.work;
        let start = start::Config::new().anchored(Anchored::Yes);
        let Ok(mut state) = self.dfa.start_state(&mut cache, &start) else {
            return false;
        };
        for stretch in value.chunks(STRIDE) {
            for &byte in stretch {
                let Ok(next) = self.dfa.next_state(&mut cache, state, byte) else {
                    return false;
                };
                state = next;
                if state.is_tagged() {
                    if state.is_dead() {
                        return true;
                    }
                    if state.is_quit() {
                        return false;
                    }
                }
            }
            if self.built(&cache) > limit {
                return false;
            }
        }
        let Ok(end) = self.dfa.next_eoi_state(&mut cache, state) else {
            return false;
        };
        if end.is_match() {
            for i in 0..self.dfa.match_len(&cache, end) {
                found(self.dfa.match_pattern(&cache, end, i).as_usize());
            }
        }
        true
    }

    /// Bytes of states that were built in the cache so far, those included that it has let go of.
    fn built(&self, cache: &Cache) -> usize {
        cache.clear_count().saturating_mul(self.capacity).saturating_add(cache.memory_usage())
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
