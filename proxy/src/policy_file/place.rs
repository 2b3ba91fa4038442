//! Where in a text a field stands, given the path that names it.

use serde_json::{Map, Number};

use crate::config::document::{self, Entry, Node, Place, Value};

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

/// The lines of everything in a text.
#[derive(Debug, Default)]
pub(crate) struct Places(Vec<Node>);

impl Places {
    /// Of a YAML or JSON text; of any other there are none.
    pub(crate) fn of(text: &str) -> Self {
        Self(document::parse_all(text).unwrap_or_default()) // JSON is YAML, but for rare escapes
    }

    /// Line of the field `path` of a resource, which is item `index` of the list, or the whole, of the `document`th
    /// document. The nearest value around it when the path leads nowhere in the text.
    pub(crate) fn line(&self, document: usize, index: Option<usize>, path: &str) -> Option<u64> {
        let mut node = self.0.get(document)?;
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
}

impl Places {
    /// The path in the author's own spelling, as far as it leads somewhere in the text.
    pub(crate) fn spelt(&self, document: usize, index: Option<usize>, path: &str) -> String {
        let start = self.0.get(document).and_then(|node| index.map_or(Some(node), |index| item(node, index)));
        let mut node = start;
        let mut spelt = String::with_capacity(path.len());
        for step in path.split_inclusive(['.', '[']).flat_map(|step| {
            let (name, mark) = step.split_at(step.len() - usize::from(step.ends_with(['.', '['])));
            [name, mark]
        }) {
            let name = step.strip_suffix(']').unwrap_or(step);
            if matches!(step, "" | "." | "[") {
                spelt.push_str(step);
                continue;
            }
            let key = node.and_then(|node| entry(node, name)).map_or(step, |entry| &entry.key);
            spelt.push_str(key);
            node = node.and_then(|node| follow(node, step)).map(|(next, _)| next);
        }
        spelt
    }
}

/// Names that older agents give to the fields that are looked for.
const OLDER: [(&str, &str); 3] = [("endpointips", "name"), ("endpointid", "policy"), ("l7allowrules", "l7rules")];

fn follow<'a>(node: &'a Node, step: &str) -> Option<(&'a Node, Place)> {
    if let Some(index) = step.strip_suffix(']') {
        let next = item(node, index.parse().ok()?)?;
        return Some((next, next.place));
    }
    entry(node, step).map(|entry| (&entry.node, entry.key_place))
}

/// The field of that name, in any spelling.
fn entry<'a>(node: &'a Node, step: &str) -> Option<&'a Entry> {
    let Value::Map(entries) = &node.value else {
        return None;
    };
    let wanted = folded(step);
    let older = OLDER.iter().find(|(today, _)| *today == wanted).map(|(_, older)| *older);
    let exact = entries.iter().find(|entry| entry.key == step);
    let any = || entries.iter().find(|entry| folded(&entry.key) == wanted || Some(&*entry.key) == older);
    exact.or_else(any)
}

/// `endpoint_ips` and `endpointIps` are one field.
pub(crate) fn folded(name: &str) -> String {
    name.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

fn item(node: &Node, index: usize) -> Option<&Node> {
    match &node.value {
        Value::List(items) => items.get(index),
        _ => None,
    }
}
