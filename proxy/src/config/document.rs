//! A YAML document as a tree in which every value knows its line and column.
//!
//! Deserializing straight into typed structs would stop at the first error. The tree is read once, the typed readers
//! in [`super::read`] then walk it and collect every mistake.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use serde_saphyr::budget::BudgetBreach;

/// Line and column in the file, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What a value is, before anyone asked what it should be.
#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    /// Also whole numbers too large for any key.
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value` of a mapping.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) node: Node,
}

/// Why the text is no YAML document.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) place: Option<Place>,
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) remedy: &'static str,
}

/// Most documents in one text of several: a policy file of a few bytes each.
const MAX_DOCUMENTS: usize = 1 << 20;
/// Most values in one text of several documents: more than a policy file of the largest size has, unless it is made of
/// commas. What anchors and aliases may add is bounded far below that, by the defaults of the library.
const MAX_VALUES: usize = 1 << 24;

/// Reads one YAML 1.2 document. JSON is YAML. An empty document is an empty mapping.
///
/// # Errors
/// The first syntax error, duplicate key, or second document, with its place.
pub(crate) fn parse(text: &str) -> Result<Node, SyntaxError> {
    serde_saphyr::from_str_with_options::<Spanned<Value>>(text, options())
        .map(Node::from)
        .map_err(|error| SyntaxError::from(&error))
}

/// Reads any number of YAML 1.2 documents, as large as the caller lets the text be.
///
/// # Errors
/// The first syntax error or duplicate key, with its place; too many documents or values.
pub(crate) fn parse_all(text: &str) -> Result<Vec<Node>, SyntaxError> {
    serde_saphyr::from_multiple_with_options::<Spanned<Value>>(text, options_for_large())
        .map(|documents| documents.into_iter().map(Node::from).collect())
        .map_err(|error| SyntaxError::from(&error))
}

/// Reads one document straight into a type, for files in which one mistake at a time is enough.
///
/// # Errors
/// The first syntax error, or the first value that does not fit, with its place.
pub(crate) fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, SyntaxError> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| SyntaxError::from(&error))
}

/// YAML 1.1 booleans (`yes`, `on`) stay text, so that a name spelled so is not turned into `true`.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        reject_unsupported_tags: true,
    }
}

/// A value has at most two events, a document four.
fn options_for_large() -> serde_saphyr::Options {
    let mut options = options();
    options.budget = serde_saphyr::budget! {
        max_documents: MAX_DOCUMENTS,
        max_nodes: MAX_VALUES,
        max_events: 2 * MAX_VALUES + 4 * MAX_DOCUMENTS,
    };
    options
}

impl From<&serde_saphyr::Error> for SyntaxError {
    fn from(error: &serde_saphyr::Error) -> Self {
        let place = error.location().map(|location| Place { line: location.line(), column: location.column() });
        let (message, remedy) = match error.without_snippet() {
            serde_saphyr::Error::Budget { breach, .. } => over_limit(breach),
            serde_saphyr::Error::AliasReplayLimitExceeded { .. }
            | serde_saphyr::Error::AliasExpansionLimitExceeded { .. }
            | serde_saphyr::Error::AliasReplayStackDepthExceeded { .. } => over_alias_limit(),
            // Met while an alias was followed, which the library says in words alone.
            other if other.to_string().contains("budget breached") => over_alias_limit(),
            _ => (one_line(error), "correct the text there"),
        };
        Self { place, message, remedy }
    }
}

const ALIASES: &str = "write out what they stand for";

/// A text that is YAML, and more of it than is read.
fn over_limit(breach: &BudgetBreach) -> (String, &'static str) {
    let split = "split the file";
    match breach {
        BudgetBreach::Documents { documents } => (format!("more than {} documents", documents - 1), split),
        BudgetBreach::Nodes { nodes } => (format!("more than {} values", nodes - 1), split),
        BudgetBreach::Events { .. } | BudgetBreach::ScalarBytes { .. } => {
            ("more than is read of one text".into(), split)
        }
        BudgetBreach::Depth { depth } => (format!("nested more than {} levels deep", depth - 1), "nest less"),
        BudgetBreach::Aliases { aliases } => (format!("more than {} aliases", aliases - 1), ALIASES),
        BudgetBreach::AliasAnchorRatio { aliases, anchors } => {
            (format!("{aliases} aliases of {anchors} anchors, which is more than ten each"), ALIASES)
        }
        _ => over_alias_limit(),
    }
}

fn over_alias_limit() -> (String, &'static str) {
    ("its anchors, aliases or merge keys stand for too much text".to_owned(), ALIASES)
}

impl Value {
    /// How a person calls this kind of value in an error.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { place: place(&spanned), value: spanned.value }
    }
}

fn place<T>(spanned: &Spanned<T>) -> Place {
    Place { line: spanned.referenced.line(), column: spanned.referenced.column() }
}

/// The error without the place, which the caller prints in front, and without advice for users of the library.
fn one_line(error: &serde_saphyr::Error) -> String {
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("key \"{key}\" appears twice")
        }
        serde_saphyr::Error::DuplicateMappingKey { .. } => "a key appears twice".to_owned(),
        serde_saphyr::Error::MultipleDocuments { .. } => "a second YAML document; only one is read".to_owned(),
        other => {
            let text = other.to_string().replace('\n', " ");
            match text.rfind(" at line ") {
                Some(end) => text[..end].to_owned(),
                None => text,
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Value>>()? {
            list.push(Node::from(item));
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = map.next_entry::<Spanned<String>, Spanned<Value>>()? {
            entries.push(Entry { key_place: place(&key), key: key.value, node: Node::from(node) });
        }
        Ok(Value::Map(entries))
    }
}
