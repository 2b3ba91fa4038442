//! Policy files: what a watched directory and the offline commands read.
//!
//! `*.json` holds resources in proto3 JSON, one or a list of them; `*.yaml` and `*.yml` hold the same spelling in YAML,
//! also as several documents separated by `---`. A resource is a `cilium.NetworkPolicyHosts` when its `@type` says so,
//! or, without one, when it has that message's fields; otherwise it is a `cilium.NetworkPolicy`.

pub(crate) mod place;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tollgate_proto::cilium::{NetworkPolicy, NetworkPolicyHosts};
use tollgate_proto::json::{self, JsonError};

use crate::config::document;
use place::Places;

/// One resource of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyResource {
    /// Policy of one endpoint.
    Policy(Box<NetworkPolicy>),
    /// Addresses of one identity.
    Hosts(NetworkPolicyHosts),
}

/// Why a policy file cannot be used. Displays as one line: `file:line: ` what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFileError {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Line, counted from 1, where it is known.
    pub line: Option<u64>,
    /// Field and what is wrong with it.
    pub message: String,
}

impl fmt::Display for PolicyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for PolicyFileError {}

/// Whether a directory entry is a policy file, by its name. Hidden files and editors' leftovers are not.
pub fn is_policy_file(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && matches!(extension(path), Some("json" | "yaml" | "yml"))
}

/// Reads every resource of a file.
///
/// # Errors
/// The file cannot be read, or the first of its resources that is wrong; nothing is read in part.
pub fn read(path: &Path) -> Result<Vec<PolicyResource>, PolicyFileError> {
    let text = std::fs::read_to_string(path).map_err(|error| PolicyFileError {
        file: path.to_owned(),
        line: None,
        message: format!("cannot read: {error}; name a JSON or YAML policy file"),
    })?;
    parse(&text, path)
}

/// Reads every resource of a text; `path` names it in errors, and its extension says whether it is JSON.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, path: &Path) -> Result<Vec<PolicyResource>, PolicyFileError> {
    let items = items(text, path)?;
    let several = items.iter().any(|item| item.document > 0);
    let mut resources = Vec::with_capacity(items.len());
    for Item { document, index, value } in items {
        resources.push(resource(value).map_err(|error| {
            let in_document = if several { format!("document {}: ", document + 1) } else { String::new() };
            let in_list = index.map(|index| format!("[{index}]: ")).unwrap_or_default();
            let line = Places::of(text).line(document, index, path_of(&error));
            let message = format!("{in_document}{in_list}{error}");
            PolicyFileError { file: path.to_owned(), line, message }
        })?);
    }
    Ok(resources)
}

/// One resource of a text, before it is read as any message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// Number of the document, from 0.
    pub(crate) document: usize,
    /// Index in the list that the document is, if it is one.
    pub(crate) index: Option<usize>,
    pub(crate) value: Value,
}

/// Takes a text apart into resources; `path` as for [`parse`].
///
/// # Errors
/// The text is not JSON or YAML, a key stands twice in one mapping, or there is no document.
pub(crate) fn items(text: &str, path: &Path) -> Result<Vec<Item>, PolicyFileError> {
    let refused = |line, message| PolicyFileError { file: path.to_owned(), line, message };
    let documents = match extension(path) {
        Some("json") => json::document_from_json(text).map(|document| vec![document]).map_err(|error| match &error {
            JsonError::Syntax(syntax) => refused(u64::try_from(syntax.line()).ok(), error.to_string()),
            other => refused(None, other.to_string()),
        }),
        _ => document::parse_all(text).map(|documents| documents.into_iter().map(place::to_json).collect()).map_err(
            |error| refused(error.place.map(|place| place.line), format!("not valid YAML: {}", error.message)),
        ),
    }?;
    if documents.is_empty() {
        let message = "holds no resource; write `[]` for none, or delete the file".to_owned();
        return Err(refused(None, message));
    }
    let mut items = Vec::with_capacity(documents.len());
    for (document, value) in documents.into_iter().enumerate() {
        match value {
            Value::Array(list) => {
                let numbered = list.into_iter().enumerate();
                items.extend(numbered.map(|(index, value)| Item { document, index: Some(index), value }));
            }
            value => items.push(Item { document, index: None, value }),
        }
    }
    Ok(items)
}

/// The field that an error is about; empty for the whole resource.
pub(crate) fn path_of(error: &JsonError) -> &str {
    match error {
        JsonError::UnknownField { path, .. } | JsonError::Twice { path, .. } | JsonError::Value { path, .. } => path,
        _ => "",
    }
}

/// Reads one resource.
///
/// # Errors
/// A field is unknown, stands twice or does not take its value.
pub(crate) fn resource(value: Value) -> Result<PolicyResource, JsonError> {
    if let Some(kind) = value.get("kind").and_then(Value::as_str).filter(|_| value.get("apiVersion").is_some()) {
        return Err(JsonError::Value {
            path: "kind".to_owned(),
            reason: format!("a Kubernetes {kind}, which an agent translates before it reaches a proxy"),
            expected: "a cilium.NetworkPolicy (`tollgate policy check` reads Cilium's resources, too)".to_owned(),
        });
    }
    let hosts = match value.get("@type").and_then(Value::as_str) {
        Some(type_url) => type_url.ends_with("/cilium.NetworkPolicyHosts"),
        None => ["policy", "hostAddresses", "host_addresses"].iter().any(|field| value.get(field).is_some()),
    };
    if hosts {
        json::network_policy_hosts_from_value(value).map(PolicyResource::Hosts)
    } else {
        json::network_policy_from_value(value).map(|policy| PolicyResource::Policy(Box::new(policy)))
    }
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(|extension| extension.to_str())
}
