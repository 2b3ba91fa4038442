//! Typed readers over the document tree. A reader never stops: it notes the mistake, goes on with the default, and the
//! caller fails in the end when anything was noted.

use std::cell::RefCell;

use tollgate_proto::nearest::nearest;

use super::document::{Entry, Node, Place, Value};

/// Mistakes noted so far.
#[derive(Debug, Default)]
pub(crate) struct Mistakes(RefCell<Vec<Mistake>>);

/// One mistake, not yet tied to a file.
#[derive(Debug)]
pub(crate) struct Mistake {
    pub(super) place: Place,
    pub(super) field: String,
    pub(super) message: String,
}

impl Mistakes {
    pub(crate) fn note(&self, place: Place, field: impl Into<String>, message: impl Into<String>) {
        self.0.borrow_mut().push(Mistake { place, field: field.into(), message: message.into() });
    }

    /// All mistakes in the order of the file.
    pub(super) fn into_sorted(self) -> Vec<Mistake> {
        let mut mistakes = self.0.into_inner();
        mistakes.sort_by_key(|mistake| mistake.place);
        mistakes
    }
}

/// One value of the file with the path that names it.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
    pub(super) mistakes: &'a Mistakes,
}

impl<'a> Field<'a> {
    /// Notes a mistake about this value.
    pub(super) fn refuse(&self, message: impl Into<String>) {
        self.mistakes.note(self.node.place, self.path.clone(), message);
    }

    /// Reads the value with `parse`; notes what it objects to.
    pub(super) fn read<T>(&self, parse: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        match parse(&self.node.value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.refuse(message);
                None
            }
        }
    }

    /// The value as a mapping.
    pub(super) fn section(&self, example: &str) -> Option<Section<'a>> {
        match &self.node.value {
            Value::Map(entries) => Some(Section {
                path: self.path.clone(),
                place: self.node.place,
                entries,
                known: Vec::new(),
                mistakes: self.mistakes,
            }),
            other => {
                self.refuse(format!("{} where a mapping belongs; write {example}", other.kind()));
                None
            }
        }
    }

    /// The value as a list.
    pub(super) fn list(&self, example: &str) -> Option<Vec<Self>> {
        match &self.node.value {
            Value::List(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, node)| Self {
                        node,
                        path: format!("{}[{index}]", self.path),
                        mistakes: self.mistakes,
                    })
                    .collect(),
            ),
            other => {
                self.refuse(format!("{} where a list belongs; write {example}", other.kind()));
                None
            }
        }
    }
}

/// A mapping that is being read. Every key asked for becomes a known one; [`Section::finish`] refuses the rest.
#[derive(Debug)]
pub(super) struct Section<'a> {
    path: String,
    pub(super) place: Place,
    entries: &'a [Entry],
    known: Vec<&'static str>,
    mistakes: &'a Mistakes,
}

impl<'a> Section<'a> {
    /// Path of `key` in this mapping.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of `key`; `None` when it is absent or written without a value.
    pub(super) fn field(&mut self, key: &'static str) -> Option<Field<'a>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (!matches!(entry.node.value, Value::Null)).then(|| Field {
            node: &entry.node,
            path: self.path_of(key),
            mistakes: self.mistakes,
        })
    }

    /// The value of `key` read by `parse`, or `default`.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> T {
        self.field(key).and_then(|field| field.read(parse)).unwrap_or(default)
    }

    /// Refuses `key` by name: it has a meaning that this version does not implement.
    pub(super) fn refuse(&self, key: &str, message: &str) {
        if let Some(entry) = self.entries.iter().find(|entry| entry.key == key) {
            self.mistakes.note(entry.key_place, self.path_of(key), message);
        }
    }

    /// Whether `key` is there, with a value or without.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// Notes a mistake about the mapping as a whole.
    pub(super) fn refuse_whole(&self, message: impl Into<String>) {
        self.mistakes.note(self.place, self.path.clone(), message);
    }

    /// Notes each key that nobody asked for, except `refused` ones, which [`Section::refuse`] has noted.
    pub(super) fn finish(self, refused: &[&str]) {
        for entry in self.entries {
            let key = entry.key.as_str();
            if self.known.contains(&key) || refused.contains(&key) {
                continue;
            }
            let message = match nearest(key, &self.known) {
                Some(known) => format!("unknown key; did you mean \"{known}\"?"),
                None => format!("unknown key; known are {}", self.known.join(", ")),
            };
            self.mistakes.note(entry.key_place, self.path_of(key), message);
        }
    }
}
