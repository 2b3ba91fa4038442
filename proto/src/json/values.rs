//! Reads a document whose names are right, and finds every value that does not fit.

use prost_reflect::{DeserializeOptions, DynamicMessage, Kind, MessageDescriptor};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment, Track};

use super::{JsonError, MAX_MISTAKES, spelling};

/// The message, when every value fits. Otherwise what does not is noted: the parser stops at the first, so that one is
/// taken out and the rest is read again, until nothing is left or there are [`MAX_MISTAKES`].
pub(super) fn read(
    descriptor: &MessageDescriptor,
    mut value: Value,
    mistakes: &mut Vec<JsonError>,
) -> Option<DynamicMessage> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let mut before: Option<String> = None;
    loop {
        let mut track = Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&value, &mut track);
        let error = match DynamicMessage::deserialize_with_options(descriptor.clone(), tracked, &options) {
            Ok(message) => return Some(message),
            Err(error) => error,
        };
        let path = track.path();
        let shown = if path.iter().len() == 0 { "(top)".to_owned() } else { path.to_string() };
        if before.as_ref() == Some(&shown) {
            return None; // what was put there instead does not fit either
        }
        let expected = spelling::expected_at(descriptor, &path);
        let reason = match at(&value, &path) {
            Some(found @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) => format!("{found} does not fit"),
            _ => error.to_string(),
        };
        mistakes.push(JsonError::Value { path: shown.clone(), reason, expected });
        if mistakes.len() >= MAX_MISTAKES || !take_out(descriptor, &mut value, &path) {
            return None;
        }
        before = Some(shown);
    }
}

/// What stands at `path`.
fn at<'a>(value: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter().try_fold(value, |around, segment| match segment {
        Segment::Map { key } => around.get(key.as_str()),
        Segment::Seq { index } => around.get(*index),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

/// Removes the field at `path`; an element of a list becomes an empty one, so that those behind it keep their indexes.
fn take_out(descriptor: &MessageDescriptor, value: &mut Value, path: &Path) -> bool {
    let mut segments: Vec<&Segment> = path.iter().collect();
    let Some(last) = segments.pop() else { return false };
    let mut around = value;
    for segment in segments {
        let next = match segment {
            Segment::Map { key } => around.get_mut(key.as_str()),
            Segment::Seq { index } => around.get_mut(*index),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        let Some(next) = next else { return false };
        around = next;
    }
    match (last, around) {
        (Segment::Map { key }, Value::Object(object)) => object.shift_remove(key).is_some(),
        (Segment::Seq { index }, Value::Array(list)) => {
            let Some(element) = list.get_mut(*index) else { return false };
            *element = match spelling::field_at(descriptor, path).map(|(field, _)| field.kind()) {
                Some(Kind::Message(_)) => Value::Object(Map::new()),
                Some(Kind::String | Kind::Bytes) => Value::String(String::new()),
                Some(Kind::Bool) => Value::Bool(false),
                Some(_) => 0.into(),
                None => return false,
            };
            true
        }
        _ => false,
    }
}
