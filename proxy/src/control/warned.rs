//! Problems that the log has told of.

use std::collections::HashMap;

/// What was said already, so that an update that repeats a problem does not repeat the warning.
#[derive(Debug, Default)]
pub(super) struct Warned(HashMap<String, Vec<String>>);

impl Warned {
    /// Keeps these problems of `subject` and forgets its others, which may come again as news. Returns those that were not
    /// known.
    pub(super) fn keep(&mut self, subject: &str, mut problems: Vec<String>) -> Vec<String> {
        problems.sort();
        problems.dedup();
        let before = self.0.remove(subject).unwrap_or_default();
        let news = problems.iter().filter(|problem| before.binary_search(problem).is_err()).cloned().collect();
        if !problems.is_empty() {
            self.0.insert(subject.to_owned(), problems);
        }
        news
    }
}
