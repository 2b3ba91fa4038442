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
use regex_automata::nfa::thompson::{Compiler, Config, NFA, State, WhichCaptures};
use regex_automata::util::pool::Pool;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind, PatternID};
use regex_syntax::hir::{Class, Hir, HirKind, Look};

use super::work::Work;
use crate::limits::{Effort, UNFINISHED};
use crate::weight::{Scale, Weight};

/// Bytes of automaton that all expressions on one header may need, in one set of rules.
const SET_SIZE_LIMIT: usize = 64 << 20;
/// Bytes of lazily built states that one worker may keep for a small automaton. A large one gets
/// [`CACHE_PER_BYTE`] times its own size on top. Full caches are emptied, so this bounds what a peer with ever
/// different values can make a worker hold, per set of rules.
const CACHE_CAPACITY: usize = 64 << 10;
const CACHE_PER_BYTE: usize = 2;

/// Expressions whose automaton is larger cost no more for each step than one of this size.
const LARGE_EXPRESSION: usize = 256 << 10;

/// Units of work that asking one expression may take.
const ALONE: usize = 512 << 10;

/// Bytes that each takes beside its automaton: the pool of caches.
const OF_EACH: usize = 3 << 10;

type NewCache = Box<dyn Fn() -> Cache + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>;

pub(super) struct RegexSet {
    dfa: DFA,
    caches: Pool<Cache, NewCache>,
    /// Bytes of states that a cache has room for.
    room: usize,
    /// Units of work for a step that has to be computed.
    step: usize,
    /// The same for each expression alone.
    steps: Box<[usize]>,
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
    pub(super) fn new(patterns: &[Arc<Hir>], effort: &mut Effort) -> Result<Self, String> {
        let nfa = automaton(patterns, SET_SIZE_LIMIT, effort)?;
        let size = nfa.memory_usage();
        if !effort.reserve(size + OF_EACH) {
            return Err(UNFINISHED.to_owned());
        }
        let step = Work::per_step(nfa.states().iter().map(places).sum());
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
        let alone = |pattern: &Arc<Hir>| Work::per_step(size_bound(pattern).min(LARGE_EXPRESSION) / PLACE);
        let steps = patterns.iter().map(alone).collect();
        Ok(Self { dfa, caches, room, step, steps, size })
    }

    /// Bytes that the automaton needs.
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// Calls `found` with the number of each expression that matches all of `value`. `false` when finishing the search
    /// would take more `work` than is left: then nothing is known about any of them.
    #[must_use]
    pub(super) fn each_match(&self, value: &[u8], work: &Work, mut found: impl FnMut(usize)) -> bool {
        let mut cache = self.caches.get();
        match self.walk(&mut cache, Anchored::Yes, value, |built, steps, _| {
            let units = built + steps * self.step;
            units == 0 || work.together(units, self.size)
        }) {
            Walked::TooFar => return false,
            Walked::Nowhere => {}
            Walked::At(end) => {
                for i in 0..self.matches_at(&cache, end) {
                    found(self.dfa.match_pattern(&cache, end, i).as_usize());
                }
            }
        }
        true
    }

    fn matches_at(&self, cache: &Cache, end: LazyStateID) -> usize {
        if end.is_match() { self.dfa.match_len(cache, end) } else { 0 }
    }

    /// Whether one of the expressions, by its number, matches all of `value`, whatever the others would take. `None` when
    /// finding out takes more `work` than is left for that, or than one expression may cause. Also a byte of the value is
    /// a unit.
    #[cold]
    pub(super) fn matches(&self, expression: usize, value: &[u8], work: &Work) -> Option<bool> {
        let mut cache = self.caches.get();
        let mut left = ALONE.min(work.left_alone());
        let per_step = self.steps[expression];
        let reach = value.get(..left).unwrap_or(value);
        let walked =
            self.walk(&mut cache, Anchored::Pattern(PatternID::must(expression)), reach, |built, steps, bytes| {
                let units = built + steps * per_step + bytes;
                work.alone(units);
                let enough = units <= left;
                left = left.saturating_sub(units);
                enough
            });
        match walked {
            Walked::Nowhere => Some(false),
            Walked::At(end) if reach.len() == value.len() => Some(end.is_match()),
            Walked::At(_) | Walked::TooFar => None,
        }
    }

    /// Walks through all of `value`, and its end, until `may_go_on` refuses. It is told what was done since it was asked
    /// last: bytes of states built, steps computed, and, when the walk ends, bytes of the value behind.
    #[inline]
    fn walk(
        &self,
        cache: &mut Cache,
        anchored: Anchored,
        value: &[u8],
        mut may_go_on: impl FnMut(usize, usize, usize) -> bool,
    ) -> Walked {
        let before = self.built(cache);
        let start = start::Config::new().anchored(anchored);
        let Ok(mut state) = self.dfa.start_state(cache, &start) else { return Walked::TooFar };
        let built = self.built(cache).saturating_sub(before);
        if built > 0 && !may_go_on(built, 1, 0) {
            return Walked::TooFar;
        }
        if state.is_tagged() {
            return if state.is_dead() { Walked::Nowhere } else { Walked::TooFar };
        }
        for (&byte, behind) in value.iter().zip(0..) {
            // Only states behind the end of a value are matches, so that nothing but these is tagged: unknown, dead, quit.
            let mut next = self.dfa.next_state_untagged(cache, state, byte);
            if next.is_unknown() {
                let before = self.built(cache);
                let Ok(computed) = self.dfa.next_state(cache, state, byte) else { return Walked::TooFar };
                if !may_go_on(self.built(cache).saturating_sub(before), 1, 0) {
                    return Walked::TooFar;
                }
                next = computed;
            }
            if next.is_tagged() {
                let enough = may_go_on(0, 0, behind + 1);
                return if next.is_dead() && enough { Walked::Nowhere } else { Walked::TooFar };
            }
            state = next;
        }
        let before = self.built(cache);
        let Ok(end) = self.dfa.next_eoi_state(cache, state) else { return Walked::TooFar };
        let built = self.built(cache).saturating_sub(before);
        match may_go_on(built, usize::from(built > 0), value.len()) {
            true => Walked::At(end),
            false => Walked::TooFar,
        }
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

/// More bytes than a state with its share of every table.
const PLACE: usize = 128;

/// How much there is to look at in a state when a step is computed.
fn places(state: &State) -> usize {
    match state {
        State::Union { alternates } => 1 + alternates.len(),
        State::BinaryUnion { .. } => 3,
        // They are looked through one after the other, which is quick.
        State::Sparse(transitions) => 1 + transitions.transitions.len() / 4,
        _ => 1,
    }
}

/// Whether one expression fits the budget on its own.
///
/// # Errors
/// Text saying which limit it exceeds.
pub(super) fn check_size(pattern: &Hir, limit: usize, effort: &mut Effort) -> Result<(), String> {
    if size_bound(pattern) <= limit {
        return Ok(());
    }
    automaton(std::slice::from_ref(pattern), limit, effort).map(drop)
}

/// Bytes that the automaton of `pattern` needs at most. Building one only to see its size is most of the cost of reading a
/// small expression.
fn size_bound(pattern: &Hir) -> usize {
    const STATE: usize = PLACE;
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

/// Patterns are anchored at their end, by which no state is a match before it: all of these are untagged, so that it can be
/// asked if a step is known.
///
/// # Errors
/// Text saying which limit they exceed, or that `effort` does not suffice: building ends where that is.
fn automaton(patterns: &[impl Borrow<Hir>], limit: usize, effort: &mut Effort) -> Result<NFA, String> {
    let most = limit.min(effort.automaton_bytes());
    let config = Config::new().utf8(false).which_captures(WhichCaptures::None).nfa_size_limit(Some(most));
    let whole = |pattern: &_| Hir::concat(vec![Borrow::<Hir>::borrow(pattern).clone(), Hir::look(Look::End)]);
    let whole: Vec<Hir> = patterns.iter().map(whole).collect();
    let built = Compiler::new().configure(config).build_many_from_hir(&whole);
    let size = match &built {
        Ok(nfa) => nfa.memory_usage(),
        // One byte more than there may be was too much, too, where it is the effort that ends it.
        Err(error) if error.size_limit().is_some() => most.saturating_add(usize::from(most < limit)),
        Err(_) => 0,
    };
    if size > most {
        effort.note_too_large(most);
    }
    effort.build(size)?;
    built.map_err(|error| match error.size_limit() {
        Some(_) => format!("needs an automaton of more than {limit} bytes"),
        None => error.to_string(),
    })
}

impl Weight for RegexSet {
    fn weigh(&self, scale: &mut Scale) {
        scale.block(self.size + OF_EACH);
        self.steps.weigh(scale);
    }
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
        RegexSet::new(&patterns.map(read).collect::<Vec<_>>(), &mut { Effort::UNBOUNDED }).unwrap()
    }

    fn found(set: &RegexSet, value: &str) -> Option<Vec<usize>> {
        let mut found = Vec::new();
        set.each_match(value.as_bytes(), &Work::default(), |i| found.push(i)).then_some(found)
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
        assert!(!set.each_match(value, &Work::default(), |_| {}));
        let work = Work::default();
        assert_eq!(set.matches(1, value, &work), Some(true));
        assert_eq!(set.matches(2, value, &work), Some(false));
        let light = super::super::work::ALONE - work.left_alone();
        assert!((60_000..200_000).contains(&light), "{light}");
        let before = work.left_alone();
        assert_eq!(set.matches(0, value, &work), None);
        let heavy = before - work.left_alone();
        assert!((ALONE..2 * ALONE).contains(&heavy), "{heavy} units");
        // What is left bounds it, too.
        work.alone(work.left_alone() - 1000);
        assert_eq!(set.matches(1, value, &work), None);
        assert_eq!(work.left_alone(), 0);
    }

    /// Steps into states that were there already are work, too; steps that are known are none.
    #[test]
    fn steps_between_known_states_count() {
        // Each of these bytes is told apart, and does the same.
        let bytes: Vec<u8> = (b'a'..=b'z').collect();
        let apart: String = bytes.iter().map(|b| char::from(*b)).collect();
        let set = set([r"(?:(?:\C?){900}(?:\C?){900})*A", &format!("(?:{apart})+")].map(str::to_owned).into_iter());
        let value: Vec<u8> = bytes.into_iter().rev().collect();
        while !set.each_match(&b"z".repeat(value.len()), &Work::default(), |_| {}) {}
        let before = set.built(&set.caches.get());
        let work = Work::default();
        assert!(set.each_match(&value, &work, |_| {}));
        assert_eq!(set.built(&set.caches.get()), before, "no state was built");
        assert!(work.done_together() >= 25 * (3600 / 16), "{} units", work.done_together());
        let again = Work::default();
        assert!(set.each_match(&value, &again, |_| {}));
        assert_eq!(again.done_together(), 0);
    }
}
