//! Where in a text a mistake stands, given the path that names the field.

use serde_json::{Map, Number};
use tollgate_proto::json::JsonError;

use crate::config::document::{self, Node, Place, Value};

/// The same document without places. A document that is empty is null.
pub(super) fn to_json(node: Node) -> serde_json::Value {
    match node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => value.into(),
        Value::Integer(value) => match (u64::try_from(value), i64::try_from(value)) {
            (Ok(value), _) => value.into(),
            (_, Ok(value)) => value.into(),
            // Larger than any field: the message's own check names it.
            _ => value.to_string().into(),
        },
        Value::Float(value) => Number::from_f64(value).map_or_else(|| value.to_string().into(), Into::into),
        Value::Text(text) => text.into(),
        Value::List(items) => items.into_iter().map(to_json).collect(),
        Value::Map(entries) => {
            let entries = entries.into_iter().map(|entry| (entry.key, to_json(entry.node)));
            serde_json::Value::Object(entries.collect::<Map<_, _>>())
        }
    }
}

/// Line of what `error` is about, in the resource that is item `index` of the list, or the whole, of the `document`th
/// document. The nearest value around it when the path leads nowhere in the text.
pub(super) fn line(text: &str, document: usize, index: Option<usize>, error: &JsonError) -> Option<u64> {
    let path = match error {
        JsonError::UnknownField { path, .. } | JsonError::Twice { path, .. } | JsonError::Value { path, .. } => path,
        _ => "",
    };
    let documents = document::parse_all(text).ok()?; // JSON is YAML, but for rare escapes
    let mut node = documents.get(document)?;
    if let Some(index) = index {
        node = item(node, index)?;
    }
    let mut place = node.place;
    for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
        let Some((next, at)) = follow(node, step) else {
            break;
        };
        (node, place) = (next, at);
    }
    Some(place.line)
}

fn follow<'a>(node: &'a Node, step: &str) -> Option<(&'a Node, Place)> {
    if let Some(index) = step.strip_suffix(']') {
        let next = item(node, index.parse().ok()?)?;
        return Some((next, next.place));
    }
    let Value::Map(entries) = &node.value else {
        return None;
    };
    entries.iter().find(|entry| entry.key == step).map(|entry| (&entry.node, entry.key_place))
}

fn item(node: &Node, index: usize) -> Option<&Node> {
    match &node.value {
        Value::List(items) => items.get(index),
        _ => None,
    }
}
