//! Full match of one RE2 expression, by simulating its automaton.

use regex_automata::nfa::thompson::pikevm::PikeVM;
use regex_automata::nfa::thompson::{Compiler, Config};
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Hir, Look};

use crate::Limits;
use crate::re2::{self, Pattern};

/// Bytes of automaton that one expression may need.
const BUDGET: usize = 1 << 20;

/// Whether `pattern` matches all of `value`; `None` when it is no expression that can be honoured.
pub(super) fn matches_in_full(pattern: &str, value: &[u8]) -> Option<bool> {
    if pattern.is_empty() || pattern.len() > Limits::default().expression_bytes {
        return None;
    }
    let expression = match re2::parse(pattern).ok()? {
        Pattern::Literals(literals) => return Some(literals.iter().any(|literal| **literal == *value)),
        Pattern::Expression(expression) => expression,
    };
    let whole = Hir::concat(vec![expression, Hir::look(Look::End)]);
    let config = Config::new().utf8(false).nfa_size_limit(Some(BUDGET));
    let automaton = Compiler::new().configure(config).build_from_hir(&whole).ok()?;
    let simulation = PikeVM::new_from_nfa(automaton).ok()?;
    let all = Input::new(value).anchored(Anchored::Yes);
    Some(simulation.is_match(&mut simulation.create_cache(), all))
}
