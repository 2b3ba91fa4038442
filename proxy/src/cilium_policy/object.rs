//! A mapping of a resource that knows its path and notes what is wrong with it.

use std::cell::RefCell;
use std::rc::Rc;

use serde_json::{Map, Value};
use tollgate_proto::nearest::nearest;

use super::{Problem, ProblemKind};

/// A mapping and its path.
#[derive(Clone, Debug)]
pub(super) struct Object<'a> {
    path: String,
    map: &'a Map<String, Value>,
    problems: Rc<RefCell<Vec<Problem>>>,
}

impl<'a> Object<'a> {
    /// The resource; `None` when it is no mapping.
    pub(super) fn root(value: &'a Value) -> Option<Self> {
        Some(Self { path: String::new(), map: value.as_object()?, problems: Rc::default() })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Everything noted so far, also about what is below.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.problems.take()
    }

    /// Whether something in it, or below, is a mistake, so that it is not known what it was to say.
    pub(super) fn is_mistaken(&self) -> bool {
        let mistake = |problem: &Problem| matches!(problem.kind, ProblemKind::UnknownField | ProblemKind::InvalidValue);
        let here = |path: &str| {
            path.strip_prefix(&self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.problems.borrow().iter().any(|problem| mistake(problem) && here(&problem.path))
    }

    /// The path of a field.
    pub(super) fn at(&self, key: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{key}", self.path)
    }

    /// Notes every field that is none of these.
    pub(super) fn known(&self, keys: &[&str]) {
        for key in self.map.keys().filter(|key| !keys.contains(&key.as_str())) {
            let what = format!("{key} is no field here");
            let instead = match nearest(key, keys) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("one of: {}", keys.join(", ")),
            };
            self.problem(ProblemKind::UnknownField, key, what, instead);
        }
    }

    pub(super) fn not_translated(&self, key: &str, what: &str) {
        let instead = "nothing; ask the agent what it makes of it".to_owned();
        self.problem(ProblemKind::NotTranslated, key, format!("{key}: {what}"), instead);
    }

    pub(super) fn invalid(&self, key: &str, what: String, instead: &str) {
        self.problem(ProblemKind::InvalidValue, key, what, instead.to_owned());
    }

    /// The same about what stands at `path`, which is below.
    pub(super) fn invalid_at(&self, path: String, what: String, instead: String) {
        self.problems.borrow_mut().push(Problem { kind: ProblemKind::InvalidValue, path, what, instead });
    }

    fn problem(&self, kind: ProblemKind, key: &str, what: String, instead: String) {
        self.problems.borrow_mut().push(Problem { kind, path: self.at(key), what, instead });
    }

    /// The value, unless there is none or it is null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'a String> {
        self.map.keys()
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        let value = self.get(key)?;
        if !value.is_string() {
            self.invalid(key, format!("{key} is not a text"), "a text in quotes");
        }
        value.as_str()
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        if !value.is_boolean() {
            self.invalid(key, format!("{key} is not true or false"), "true or false");
        }
        value.as_bool()
    }

    pub(super) fn object(&self, key: &str) -> Option<Self> {
        self.below(self.at(key), key, self.get(key)?)
    }

    /// The mappings of a list, each with its index in its path.
    pub(super) fn objects(&self, key: &str) -> std::vec::IntoIter<Self> {
        let items = self.list(key).iter().enumerate();
        let objects = items.filter_map(|(index, value)| self.below(format!("{}[{index}]", self.at(key)), key, value));
        objects.collect::<Vec<_>>().into_iter()
    }

    /// The texts of a list, each with its path.
    pub(super) fn texts(&self, key: &str) -> Vec<(String, &'a str)> {
        let items = self.list(key).iter().enumerate();
        let texts = items.filter_map(|(index, value)| {
            if !value.is_string() {
                self.invalid(key, format!("item {index} of {key} is not a text"), "a text in quotes");
            }
            Some((format!("{}[{index}]", self.at(key)), value.as_str()?))
        });
        texts.collect()
    }

    pub(super) fn list(&self, key: &str) -> &'a [Value] {
        let value = self.get(key);
        if value.is_some_and(|value| !value.is_array()) {
            self.invalid(key, format!("{key} is not a list"), "a list");
        }
        value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn below(&self, path: String, key: &str, value: &'a Value) -> Option<Self> {
        let Some(map) = value.as_object() else {
            self.invalid(key, format!("{key} is not a mapping"), "a mapping");
            return None;
        };
        Some(Self { path, map, problems: Rc::clone(&self.problems) })
    }
}
