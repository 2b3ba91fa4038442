//! The JSON form of policies: what people write into files and what `/config_dump` prints.
//!
//! Reads proto3 JSON (camelCase or the names in the `.proto` files, 64-bit numbers as string or
//! number, enums by name or number) in today's spelling and in that of older agents. Nothing is
//! skipped: an unknown or repeated field is an error, because a rule that a typo removes could
//! open a door. YAML goes through [`network_policy_from_value`].

mod spelling;
mod strict;
#[cfg(test)]
mod tests;
mod values;

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;

use crate::cilium::{NetworkPolicy, NetworkPolicyHosts};
use crate::tenant::Tenant;
use crate::{FILE_DESCRIPTOR_SET, type_url};

/// How deep a document may be nested. A policy needs about 15 levels; the bound keeps a hostile file
/// from using up the stack.
pub const MAX_DEPTH: usize = 100;

/// Why a text is not a message. `path` is the way from the top, such as
/// `ingressPerPortPolicies[0].rules[2].httpRules`.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or a key stands twice in one object. The message has line and column.
    #[error("not usable as JSON: {0}; correct the text there")]
    Syntax(#[source] serde_json::Error),
    /// `@type` names another message.
    #[error("@type: this is a {found}, but a {expected} is needed; hand in the other file or correct the type")]
    Type {
        /// Full name of the message that is needed.
        expected: String,
        /// What `@type` says.
        found: String,
    },
    /// The message has no such field.
    #[error("{path}: {message} has no such field; {remedy}")]
    UnknownField {
        /// Where the field stands.
        path: String,
        /// Full name of the message around it.
        message: String,
        /// The field that was probably meant, or those that there are.
        remedy: String,
    },
    /// One field is given twice, under different spellings.
    #[error("{path}: sets the same field as `{other}` next to it; keep one of them")]
    Twice {
        /// Where the second one stands.
        path: String,
        /// Key of the first one.
        other: String,
    },
    /// Two fields are given of which a message can have one.
    #[error("{path}: excludes `{other}` next to it; keep one of them")]
    Choice {
        /// Where the second one stands.
        path: String,
        /// Key of the first one.
        other: String,
    },
    /// A value does not fit its field.
    #[error("{path}: {reason}; write {expected}")]
    Value {
        /// Where the value stands; `(top)` for the whole text.
        path: String,
        /// What is wrong with it.
        reason: String,
        /// What would fit.
        expected: String,
    },
    /// More mistakes than are listed.
    #[error("there are more mistakes than these {MAX_MISTAKES}; correct them first")]
    More,
    /// Objects and lists stand in each other more than [`MAX_DEPTH`] levels deep.
    #[error("nested more than {MAX_DEPTH} levels deep; nest fewer matchers")]
    TooDeep,
    /// The text fits field by field, but not as a whole.
    #[error("cannot be carried over to the wire form: {0}; split the policy")]
    Decode(#[source] prost::DecodeError),
    /// A message cannot be printed, because it contains an `Any` of a type that is not known here.
    #[error("cannot be shown as JSON: {0}; remove the extension of that type")]
    Print(#[source] serde_json::Error),
}

/// Most mistakes that are listed of one resource.
pub const MAX_MISTAKES: usize = 20;

/// All mistakes in one resource; never empty. Displays as one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct JsonErrors(Vec<JsonError>);

impl JsonErrors {
    /// The mistakes, those of names before those of values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &JsonError> {
        self.0.iter()
    }
}

impl From<JsonError> for JsonErrors {
    fn from(error: JsonError) -> Self {
        Self(vec![error])
    }
}

/// Reads one `cilium.NetworkPolicy` from JSON text.
///
/// # Errors
///
/// Every mistake, each with its place and remedy; nothing is read in part.
pub fn network_policy_from_json(text: &str) -> Result<NetworkPolicy, JsonErrors> {
    network_policy_from_value(strict::parse(text)?)
}

/// Reads JSON text as a document, for texts that hold more than one message. Unlike `serde_json` alone it refuses a
/// key that stands twice in one object.
///
/// # Errors
///
/// [`JsonError::Syntax`] with line and column.
pub fn document_from_json(text: &str) -> Result<Value, JsonError> {
    strict::parse(text)
}

/// Reads one `cilium.NetworkPolicy` from a parsed document, for example out of YAML. The caller's
/// parser has to refuse duplicate keys.
///
/// # Errors
///
/// As [`network_policy_from_json`].
pub fn network_policy_from_value(value: Value) -> Result<NetworkPolicy, JsonErrors> {
    read(value)
}

/// Prints a policy as proto3 JSON: camelCase, 64-bit numbers as strings, defaults left out.
///
/// # Errors
///
/// [`JsonError::Print`] when a matcher contains an extension of an unknown type.
pub fn network_policy_to_json(policy: &NetworkPolicy) -> Result<Value, JsonError> {
    print(policy)
}

/// Reads one `cilium.NetworkPolicyHosts` from JSON text.
///
/// # Errors
///
/// As [`network_policy_from_json`].
pub fn network_policy_hosts_from_json(text: &str) -> Result<NetworkPolicyHosts, JsonErrors> {
    network_policy_hosts_from_value(strict::parse(text)?)
}

/// Reads one `cilium.NetworkPolicyHosts` from a parsed document.
///
/// # Errors
///
/// As [`network_policy_from_json`].
pub fn network_policy_hosts_from_value(value: Value) -> Result<NetworkPolicyHosts, JsonErrors> {
    read(value)
}

/// Prints the addresses of an identity as proto3 JSON.
///
/// # Errors
///
/// None for this message; the type is shared with [`network_policy_to_json`].
pub fn network_policy_hosts_to_json(hosts: &NetworkPolicyHosts) -> Result<Value, JsonError> {
    print(hosts)
}

/// Reads one `tollgate.tenant.v1.Tenant` from a parsed document.
///
/// # Errors
///
/// As [`network_policy_from_value`].
pub fn tenant_from_value(value: Value) -> Result<Tenant, JsonErrors> {
    read(value)
}

/// Decodes a policy with its unknown fields, for [`crate::unknown`].
pub(crate) fn decode_network_policy(bytes: &[u8]) -> Result<DynamicMessage, prost::DecodeError> {
    DynamicMessage::decode(descriptor::<NetworkPolicy>(), bytes)
}

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "the bytes are written by build.rs; every test of this module reads them")]
    DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("descriptors of this build")
});

fn descriptor<M: Name>() -> MessageDescriptor {
    #[expect(clippy::expect_used, reason = "`M` and the descriptors are generated from the same files")]
    POOL.get_message_by_name(&M::full_name()).expect("descriptor of a generated message")
}

fn read<M: Message + Name + Default>(mut value: Value) -> Result<M, JsonErrors> {
    let descriptor = descriptor::<M>();
    if is_deeper_than(&value, MAX_DEPTH) {
        return Err(JsonError::TooDeep.into());
    }
    take_type(&mut value, descriptor.full_name())?;
    let mut mistakes = Vec::new();
    spelling::check(&descriptor, &mut value, &mut Vec::new(), &mut mistakes);
    let message = values::read(&descriptor, value, &mut mistakes);
    if mistakes.len() >= MAX_MISTAKES {
        mistakes.truncate(MAX_MISTAKES);
        mistakes.push(JsonError::More);
    }
    match message {
        Some(message) if mistakes.is_empty() => {
            M::decode(message.encode_to_vec().as_slice()).map_err(|error| JsonError::Decode(error).into())
        }
        _ => Err(JsonErrors(mistakes)),
    }
}

/// Takes `@type` out of the top object; it is allowed there and has to name the message.
fn take_type(value: &mut Value, expected: &str) -> Result<(), JsonError> {
    let Some(found) = value.as_object_mut().and_then(|object| object.shift_remove("@type")) else {
        return Ok(());
    };
    // Any prefix up to the last slash is allowed in a type URL.
    if found.as_str().and_then(|url| url.rsplit_once('/')).is_some_and(|(_, name)| name == expected) {
        return Ok(());
    }
    let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
    Err(JsonError::Type { expected: format!("{}{expected}", type_url::PREFIX), found })
}

fn is_deeper_than(value: &Value, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else {
        return true;
    };
    match value {
        Value::Array(elements) => elements.iter().any(|element| is_deeper_than(element, below)),
        Value::Object(object) => object.values().any(|value| is_deeper_than(value, below)),
        _ => false,
    }
}

fn print<M: Message + Name>(message: &M) -> Result<Value, JsonError> {
    let dynamic =
        DynamicMessage::decode(descriptor::<M>(), message.encode_to_vec().as_slice()).map_err(JsonError::Decode)?;
    dynamic.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new()).map_err(JsonError::Print)
}
