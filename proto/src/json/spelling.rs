//! Checks every key of a document against the message it belongs to, and carries the spelling of
//! older agents over to today's.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

use super::JsonError;

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

/// Refuses unknown and repeated fields below `value`, and renames older ones. Values that are no
/// objects are left to the parser, which knows what each field takes.
pub(super) fn check(message: &MessageDescriptor, value: &mut Value, trail: &mut Trail) -> Result<(), JsonError> {
    // The well-known types have JSON forms of their own.
    if message.package_name() == "google.protobuf" {
        return Ok(());
    }
    let Value::Object(object) = value else {
        return Ok(());
    };
    let mut checked = Map::with_capacity(object.len());
    let mut seen: Vec<(u32, String)> = Vec::with_capacity(object.len());
    for (key, mut value) in std::mem::take(object) {
        trail.push(key.clone());
        let field = resolve(message, &key, &mut value).ok_or_else(|| unknown_field(message, trail))?;
        if let Some((_, other)) = seen.iter().find(|(number, _)| *number == field.number()) {
            return Err(JsonError::Twice { path: join(trail), other: other.clone() });
        }
        check_field(&field, &mut value, trail)?;
        trail.pop();
        seen.push((field.number(), key));
        checked.insert(field.json_name().to_owned(), value);
    }
    *object = checked;
    Ok(())
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

fn check_field(field: &FieldDescriptor, value: &mut Value, trail: &mut Trail) -> Result<(), JsonError> {
    let kind = field.kind();
    let Kind::Message(message) = &kind else {
        return Ok(());
    };
    match value {
        Value::Array(elements) if field.is_list() => {
            for (index, element) in elements.iter_mut().enumerate() {
                trail.push(format!("[{index}]"));
                check(message, element, trail)?;
                trail.pop();
            }
            Ok(())
        }
        // Keys of a map are data. No map here holds messages, so there is nothing below to check.
        _ if field.is_map() || field.is_list() => Ok(()),
        _ => check(message, value, trail),
    }
}

fn unknown_field(message: &MessageDescriptor, trail: &Trail) -> JsonError {
    let known: Vec<String> = message.fields().map(|field| field.json_name().to_owned()).collect();
    let known = if known.is_empty() { "(it has no fields)".to_owned() } else { known.join(", ") };
    JsonError::UnknownField { path: join(trail), message: message.full_name().to_owned(), known }
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

/// What the field at `path` takes, in words, as the remedy of a value that does not fit.
pub(super) fn expected_at(message: &MessageDescriptor, path: &Path) -> String {
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
                // Inside a map or a well-known type: the last field we know of tells enough.
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
    match field {
        None => "an object with the fields of the message".to_owned(),
        Some(field) if field.is_map() => "an object of texts".to_owned(),
        Some(field) if field.is_list() && !element => {
            format!("a list, each element {}", describe(&field.kind()))
        }
        Some(field) => describe(&field.kind()),
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
