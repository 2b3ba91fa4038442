//! Values that policies name and that somebody else delivers.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Secrets by SDS name, looked up at each decision: one that rotates compiles no policy again.
///
/// Printing one shows no value.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(HashMap<Box<str>, Delivered>);

#[derive(Clone, PartialEq, Eq)]
enum Delivered {
    Value(Arc<[u8]>),
    /// It came, but no header field can carry it: the text says why.
    Unusable(&'static str),
}

impl Secrets {
    /// Adds or replaces a secret. One that no header field can carry (empty, with a control character, with a blank at
    /// an end) is kept as unusable: whatever names it fails, instead of falling back to another value.
    pub fn insert(&mut self, name: &str, value: &[u8]) {
        let problem = if value.is_empty() { Some("is empty") } else { value_problem(value) };
        let delivered = problem.map_or_else(|| Delivered::Value(value.into()), Delivered::Unusable);
        self.0.insert(name.into(), delivered);
    }

    /// Adds or replaces a secret that came in a form without a value; `why` completes "secret … ".
    pub fn insert_unusable(&mut self, name: &str, why: &'static str) {
        self.0.insert(name.into(), Delivered::Unusable(why));
    }

    /// Takes a secret over from `other`, also that it was not delivered.
    pub fn keep(&mut self, name: &str, other: &Self) {
        match other.0.get(name) {
            Some(delivered) => self.0.insert(name.into(), delivered.clone()),
            None => self.0.remove(name),
        };
    }

    /// These, and of `others` those whose names are not among these.
    #[must_use]
    pub fn or(&self, others: &Self) -> Self {
        let mut both = others.0.clone();
        both.extend(self.0.iter().map(|(name, delivered)| (name.clone(), delivered.clone())));
        Self(both)
    }

    /// Why nothing can be compared with the secret, when that is so.
    pub fn problem(&self, name: &str) -> Option<&'static str> {
        match self.0.get(name) {
            None => Some("is not delivered"),
            Some(Delivered::Unusable(why)) => Some(why),
            Some(Delivered::Value(_)) => None,
        }
    }

    /// Whether anything was delivered under the name, usable or not.
    pub fn is_delivered(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// `None` when it was never delivered.
    ///
    /// # Errors
    /// Why the secret that was delivered is unusable.
    pub(crate) fn value(&self, name: &str) -> Result<Option<&[u8]>, &'static str> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Delivered::Value(value)) => Ok(Some(value)),
            Some(Delivered::Unusable(why)) => Err(why),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why no header field can carry `value` (RFC 9110 section 5.5), when that is so.
pub(crate) fn value_problem(value: &[u8]) -> Option<&'static str> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        Some("holds a line end or another control character")
    } else if blank(value.first()) || blank(value.last()) {
        Some("begins or ends with a blank")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_field_can_carry_is_unusable() {
        let mut secrets = Secrets::default();
        assert_eq!(secrets.problem("s"), Some("is not delivered"));
        for (value, problem) in [
            (&b"t\xf6 k\te\xffn"[..], None),
            (b"", Some("is empty")),
            (b"a\nb", Some("holds a line end or another control character")),
            (b"a\r", Some("holds a line end or another control character")),
            (b"a\0", Some("holds a line end or another control character")),
            (b" a", Some("begins or ends with a blank")),
            (b"a\t", Some("begins or ends with a blank")),
        ] {
            secrets.insert("s", value);
            assert_eq!(secrets.problem("s"), problem, "{value:?}");
            assert_eq!(secrets.value("s").is_err(), problem.is_some(), "{value:?}");
        }
    }

    #[test]
    fn the_first_source_of_a_name_counts_also_when_it_is_unusable() {
        let (mut first, mut others) = (Secrets::default(), Secrets::default());
        first.insert("both", b"first");
        first.insert("unusable", b"");
        others.insert("both", b"other");
        others.insert("unusable", b"other");
        others.insert("other", b"other");
        let both = first.or(&others);
        assert_eq!(both.value("both"), Ok(Some(&b"first"[..])));
        assert_eq!(both.value("unusable"), Err("is empty"));
        assert_eq!(both.value("other"), Ok(Some(&b"other"[..])));
    }

    #[test]
    fn printing_shows_no_value() {
        let mut secrets = Secrets::default();
        secrets.insert("token", b"hunter2");
        assert_eq!(format!("{secrets:?}"), "{\"token\"}");
    }
}
