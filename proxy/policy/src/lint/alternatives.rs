//! The HTTP rules of one rule, asked what any of them admits: what one leaves out, another may say.

use std::cell::OnceCell;

use super::cover::covers_matcher;
use super::lookup::Lookup;
use super::probe::Probes;
use crate::model::{HeaderMatcher, HttpRule};

/// HTTP rules with HEAD that one without it is compared with. If there are more, nothing is said about it.
const COMPARED: usize = 64;

/// The HTTP rules of a rule.
pub(super) struct Alternatives<'a> {
    pub(super) rules: &'a [HttpRule],
    /// By the path that they ask for.
    by_path: OnceCell<Lookup>,
    with_head: OnceCell<Vec<&'a HttpRule>>,
}

impl<'a> Alternatives<'a> {
    pub(super) const fn of(rules: &'a [HttpRule]) -> Self {
        Self { rules, by_path: OnceCell::new(), with_head: OnceCell::new() }
    }

    /// Whether any of them may admit the path, whatever else it asks for.
    pub(super) fn admit_path(&self, path: &[u8], probes: &mut Probes) -> bool {
        let lookup = self.by_path.get_or_init(|| {
            let mut lookup = Lookup::default();
            for (rule, number) in self.rules.iter().zip(0..) {
                lookup.add(number, on(rule, ":path").next(), probes);
            }
            lookup
        });
        let admits = |number: u32| on(&self.rules[number as usize], ":path").all(|m| accepts(m, path, probes));
        lookup.accepting(path).into_iter().any(admits)
    }

    /// Whether one of them admits HEAD wherever `http` holds but for its method, or may.
    pub(super) fn admit_head(&self, http: &HttpRule, probes: &mut Probes) -> bool {
        let with_head = self.with_head.get_or_init(|| {
            self.rules.iter().filter(|rule| on(rule, ":method").all(|m| accepts(m, b"HEAD", probes))).collect()
        });
        if with_head.len() > COMPARED {
            return true;
        }
        with_head.iter().any(|other| {
            let mut others = other.headers.iter().filter(|matcher| &*matcher.name != ":method");
            others.all(|mine| http.headers.iter().any(|theirs| covers_matcher(mine, theirs, probes)))
        })
    }
}

fn on<'a>(rule: &'a HttpRule, name: &'static str) -> impl Iterator<Item = &'a HeaderMatcher> {
    rule.headers.iter().filter(move |matcher| &*matcher.name == name)
}

/// Whether a value of the field is as the matcher asks; not, when nothing can be said about it.
pub(super) fn accepts(matcher: &HeaderMatcher, value: &[u8], probes: &mut Probes) -> bool {
    probes.of(&matcher.value).is_some_and(|probe| probe.accepts(value) != matcher.invert)
}
