//! Checks every key of a document against the message it belongs to, and carries the spelling of
//! older agents over to today's.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

use super::{JsonError, MAX_MISTAKES};
use crate::nearest::nearest;

/// A field that older agents spelled differently. The number on the wire is the same.
struct Older {
    message: &'static str,
    key: &'static str,
    today: &'static str,
    /// The older field held one value where today's holds a list.
    single: bool,
}

const OLDER: [Older; 3] = [
    Older { message: "cilium.NetworkPolicy", key: "name", today: "endpointIps", single: true },
    Older { message: "cilium.NetworkPolicy", key: "policy", today: "endpointId", single: false },
    Older { message: "cilium.L7NetworkPolicyRules", key: "l7Rules", today: "l7AllowRules", single: false },
];

/// Where the walk stands: keys as written, and list indexes.
pub(super) type Trail = Vec<String>;

/// Notes unknown and repeated fields below `value` and takes them out, and renames older ones. Values that are no
/// objects are left to the parser, which knows what each field takes.
pub(super) fn check(message: &MessageDescriptor, value: &mut Value, trail: &mut Trail, mistakes: &mut Vec<JsonError>) {
    // The well-known types have JSON forms of their own.
    if message.package_name() == "google.protobuf" {
        return;
    }
    let Value::Object(object) = value else {
        return;
    };
    let mut checked = Map::with_capacity(object.len());
    let mut seen: Vec<(u32, String)> = Vec::with_capacity(object.len());
    let mut chosen: Vec<(String, String)> = Vec::new();
    for (key, mut value) in std::mem::take(object) {
        if mistakes.len() >= MAX_MISTAKES {
            return;
        }
        trail.push(key.clone());
        match resolve(message, &key, &mut value) {
            None => mistakes.push(unknown_field(message, &key, trail)),
            Some(field) => match seen.iter().find(|(number, _)| *number == field.number()) {
                Some((_, other)) => mistakes.push(JsonError::Twice { path: join(trail), other: other.clone() }),
                None => {
                    // A null is as if the field was not there.
                    if let Some(choice) = field.containing_oneof().filter(|_| !value.is_null()) {
                        match chosen.iter().find(|(name, _)| name == choice.name()) {
                            Some((_, other)) => {
                                mistakes.push(JsonError::Choice { path: join(trail), other: other.clone() });
                                trail.pop();
                                continue;
                            }
                            None => chosen.push((choice.name().to_owned(), key.clone())),
                        }
                    }
                    check_field(&field, &mut value, trail, mistakes);
                    seen.push((field.number(), key));
                    checked.insert(field.json_name().to_owned(), value);
                }
            },
        }
        trail.pop();
    }
    *object = checked;
}

/// The field that `key` means. Turns the value of an older single field into a list.
fn resolve(message: &MessageDescriptor, key: &str, value: &mut Value) -> Option<FieldDescriptor> {
    let today = message.get_field_by_json_name(key).or_else(|| message.get_field_by_name(key));
    if today.is_some() {
        return today;
    }
    let older = OLDER.iter().find(|older| older.message == message.full_name() && older.key == key)?;
    if older.single && !value.is_null() {
        *value = Value::Array(vec![value.take()]);
    }
    message.get_field_by_json_name(older.today)
}

fn check_field(field: &FieldDescriptor, value: &mut Value, trail: &mut Trail, mistakes: &mut Vec<JsonError>) {
    let kind = field.kind();
    let Kind::Message(message) = &kind else {
        return;
    };
    match value {
        Value::Array(elements) if field.is_list() => {
            for (index, element) in elements.iter_mut().enumerate() {
                trail.push(format!("[{index}]"));
                check(message, element, trail, mistakes);
                trail.pop();
            }
        }
        // Keys of a map are data. No map here holds messages, so there is nothing below to check.
        _ if field.is_map() || field.is_list() => {}
        _ => check(message, value, trail, mistakes),
    }
}

/// The remedy names fields in the spelling that the key has.
fn unknown_field(message: &MessageDescriptor, key: &str, trail: &Trail) -> JsonError {
    let spelled = |field: FieldDescriptor| match key.contains('_') {
        true => field.name().to_owned(),
        false => field.json_name().to_owned(),
    };
    let known: Vec<String> = message.fields().map(spelled).collect();
    let candidates: Vec<&str> = known.iter().map(String::as_str).collect();
    let remedy = match (nearest(key, &candidates), known.is_empty()) {
        (Some(meant), _) => format!("did you mean `{meant}`?"),
        (None, true) => "remove it, the message has no fields".to_owned(),
        (None, false) => format!("remove it or use one of: {}", known.join(", ")),
    };
    JsonError::UnknownField { path: join(trail), message: message.full_name().to_owned(), remedy }
}

fn join(trail: &Trail) -> String {
    let mut path = String::new();
    for step in trail {
        if !path.is_empty() && !step.starts_with('[') {
            path.push('.');
        }
        path.push_str(step);
    }
    path
}

/// The last field on `path` that is known, and whether an element of it is meant. Inside a map or a well-known type that is
/// the one around.
pub(super) fn field_at(message: &MessageDescriptor, path: &Path) -> Option<(FieldDescriptor, bool)> {
    let mut field: Option<FieldDescriptor> = None;
    let mut element = false;
    for segment in path {
        match segment {
            Segment::Map { key } => {
                let around =
                    field.as_ref().map_or_else(|| Some(message.clone()), |field| field.kind().as_message().cloned());
                let inner = around
                    .filter(|_| field.as_ref().is_none_or(|field| !field.is_map()))
                    .and_then(|around| around.get_field_by_json_name(key));
                if inner.is_none() {
                    break;
                }
                field = inner;
                element = false;
            }
            Segment::Seq { .. } => element = true,
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    field.map(|field| (field, element))
}

/// What the field at `path` takes, in words, as the remedy of a value that does not fit.
pub(super) fn expected_at(message: &MessageDescriptor, path: &Path) -> String {
    match field_at(message, path) {
        None => "an object with the fields of the message".to_owned(),
        Some((field, _)) if field.is_map() => "an object of texts".to_owned(),
        Some((field, false)) if field.is_list() => format!("a list, each element {}", describe(&field.kind())),
        Some((field, _)) => describe(&field.kind()),
    }
}

fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Bool => "true or false".to_owned(),
        Kind::String => "a text in quotes".to_owned(),
        Kind::Uint32 | Kind::Fixed32 => "a whole number from 0 to 4294967295".to_owned(),
        Kind::Uint64 | Kind::Fixed64 => "a whole number from 0 to 18446744073709551615".to_owned(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 | Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            "a whole number".to_owned()
        }
        Kind::Float | Kind::Double => "a number".to_owned(),
        Kind::Bytes => "a text in base64".to_owned(),
        Kind::Enum(values) => {
            let names: Vec<String> = values.values().map(|value| value.name().to_owned()).collect();
            format!("one of {}", names.join(", "))
        }
        Kind::Message(message) if message.full_name() == "google.protobuf.Any" => {
            "an object with a known @type".to_owned()
        }
        Kind::Message(message) => format!("an object ({}), with at most one field of each choice", message.name()),
    }
}
