//! The automata of one direction. Port ranges whose rules ask the same of a header share one, which matters where the
//! wildcard's rules are those of every range; and all of them together are bounded.

use std::collections::HashMap;
use std::sync::Arc;

use regex_syntax::hir::Hir;

use super::regex_set::RegexSet;
use crate::limits::Effort;

/// Bytes of automaton that all expressions of one direction may need.
const LIMIT: usize = 256 << 20;

/// What was built.
#[derive(Debug)]
pub(super) struct Automata {
    /// By the expressions, in their order: equal ones were read once, so that their address tells them apart.
    sets: HashMap<Vec<*const Hir>, Arc<RegexSet>>,
    /// Bytes that may still be used. None once they did not suffice, so that trying is bounded, too.
    left: usize,
}

impl Default for Automata {
    fn default() -> Self {
        Self { sets: HashMap::new(), left: LIMIT }
    }
}

impl Automata {
    /// The automaton of these expressions, which must live as long as `self` does.
    ///
    /// # Errors
    /// Text saying which limit they exceed.
    pub(super) fn of(&mut self, expressions: &[Arc<Hir>], effort: &mut Effort) -> Result<Arc<RegexSet>, String> {
        let key: Vec<_> = expressions.iter().map(Arc::as_ptr).collect();
        if let Some(known) = self.sets.get(&key) {
            return Ok(known.clone());
        }
        let built = match self.left {
            0 => None,
            _ => Some(RegexSet::new(expressions, effort)?),
        };
        let fits = built.and_then(|built| Some((self.left.checked_sub(built.size())?, built)));
        let Some((left, built)) = fits else {
            self.left = 0;
            return Err(format!(
                "with the expressions of the ports before, it needs automata of more than {LIMIT} bytes; write fewer or \
                 simpler ones, or fewer port ranges"
            ));
        };
        self.left = left;
        let built = Arc::new(built);
        self.sets.insert(key, built.clone());
        Ok(built)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::re2::{Pattern, parse};

    fn expression(text: &str) -> Arc<Hir> {
        match parse(text) {
            Ok(Pattern::Expression(hir)) => Arc::new(hir),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn equal_lists_share_and_the_sum_is_bounded() {
        let (a, b) = (expression("/a.*"), expression("/b.*"));
        let mut automata = Automata::default();
        let mut effort = Effort::UNBOUNDED;
        let both = automata.of(&[a.clone(), b.clone()], &mut effort).unwrap();
        let left = automata.left;
        assert!(Arc::ptr_eq(&both, &automata.of(&[a.clone(), b.clone()], &mut effort).unwrap()));
        assert_eq!(automata.left, left);
        let one = automata.of(std::slice::from_ref(&a), &mut effort).unwrap();
        assert!(!Arc::ptr_eq(&both, &one));
        assert_eq!(automata.left, left - one.size());
        automata.left = one.size() - 1;
        let error = automata.of(&[b], &mut effort).unwrap_err();
        assert!(error.starts_with("with the expressions of the ports before"), "{error}");
        assert_eq!(automata.left, 0);
        // What is there costs nothing.
        assert!(automata.of(&[a], &mut effort).is_ok());
    }
}
