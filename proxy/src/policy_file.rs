//! Policy files: what a watched directory and the offline commands read.
//!
//! `*.json` holds resources in proto3 JSON, one or a list of them; `*.yaml` and `*.yml` hold the same spelling in YAML,
//! also as several documents separated by `---`. A resource is a `cilium.NetworkPolicyHosts` when its `@type` says so,
//! or, without one, when it has that message's fields; a `tollgate.tenant.v1.Tenant` in the same way, by its fields;
//! otherwise it is a `cilium.NetworkPolicy`.

pub(crate) mod broken;
pub(crate) mod claims;
pub(crate) mod lines;
pub(crate) mod place;
mod quoted;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tollgate_proto::cilium::{NetworkPolicy, NetworkPolicyHosts};
use tollgate_proto::json::{self, JsonError, JsonErrors};
use tollgate_proto::nearest::nearest;
use tollgate_proto::tenant::Tenant;

pub(crate) use self::quoted::shortened;
use crate::config::{document, io_reason};
use place::Places;

/// Largest policy file, in bytes: some hundred thousand rules. Whoever reads more than that by mistake (a disk image, a
/// device) would hold up everything else.
pub const MAX_BYTES: u64 = 64 << 20;

/// Most mistakes that are listed of one file.
const MAX_MISTAKES: usize = 50;

/// One resource of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyResource {
    /// Policy of one endpoint.
    Policy(Arc<NetworkPolicy>),
    /// Addresses of one identity.
    Hosts(NetworkPolicyHosts),
    /// Endpoints that share one account.
    Tenant(Box<Tenant>),
}

/// Where a resource stands. Displays as `file:line`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// The file, as it was named.
    pub file: Arc<Path>,
    /// Line, counted from 1.
    pub line: Option<u64>,
}

impl fmt::Display for FilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// A resource and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct FileResource {
    /// Where it begins.
    pub place: FilePlace,
    /// What it says.
    pub resource: PolicyResource,
}

/// A mistake in a policy file. Displays as one line: `file:line: ` what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct PolicyFileError {
    /// Where it is, as far as that is known.
    pub place: FilePlace,
    /// Field and what is wrong with it.
    pub message: String,
}

impl PolicyFileError {
    pub(crate) fn new(file: &Path, line: Option<u64>, message: impl Into<String>) -> Self {
        Self { place: FilePlace { file: file.into(), line }, message: shortened(&message.into()) }
    }
}

/// All mistakes because of which a file cannot be used; never empty. Displays as one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct PolicyFileErrors(Vec<PolicyFileError>);

impl PolicyFileErrors {
    /// The mistakes, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = &PolicyFileError> {
        self.0.iter()
    }
}

impl PolicyFileErrors {
    /// The same, with what follows from them.
    pub(crate) fn followed_by(mut self, consequence: &str) -> Self {
        self.0.iter_mut().for_each(|error| error.message = format!("{}; {consequence}", error.message));
        self
    }
}

impl From<PolicyFileError> for PolicyFileErrors {
    fn from(error: PolicyFileError) -> Self {
        Self(vec![error])
    }
}

/// Whether a directory entry is a policy file, by its name. Hidden files and editors' leftovers are not.
pub fn is_policy_file(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && matches!(extension(path), Some("json" | "yaml" | "yml"))
}

/// What paths name.
#[derive(Debug, Default)]
pub struct Named {
    /// Files, each once; `true` for those that only their directory was named of.
    pub files: Vec<(PathBuf, bool)>,
    /// Directories that cannot be read, or hold no policy file.
    pub errors: Vec<PolicyFileError>,
}

/// The policy files that `paths` name: a directory stands for the policy files in it, in the order of their names.
pub fn expand(paths: &[PathBuf]) -> Named {
    let mut named = Named::default();
    let mut seen = HashSet::new();
    for path in paths {
        let (found, listed) = match path.is_dir() {
            true => (list(path), true),
            false => (Ok(vec![path.clone()]), false),
        };
        match found {
            Ok(files) => {
                let new = files.into_iter().filter(|file| seen.insert(whereabouts(file)));
                named.files.extend(new.map(|file| (file, listed)));
            }
            Err(error) => named.errors.push(error),
        }
    }
    named
}

/// One name for one directory entry, however it is reached. Links stay apart, as they do for the proxy.
pub(crate) fn whereabouts(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    match (parent.canonicalize(), file.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => file.to_owned(),
    }
}

fn list(path: &Path) -> Result<Vec<PathBuf>, PolicyFileError> {
    let unreadable = |error: std::io::Error| {
        let message = format!("cannot read the directory: {}; name one that can be read", io_reason(&error));
        PolicyFileError::new(path, None, message)
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if is_policy_file(&path) && !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        let message = "the directory holds no policy file; name one with files *.json, *.yaml or *.yml in it";
        return Err(PolicyFileError::new(path, None, message));
    }
    files.sort();
    Ok(files)
}

/// Reads the bytes of a policy file, whatever they are.
///
/// # Errors
/// It cannot be read, is no regular file, or has more than [`MAX_BYTES`].
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, PolicyFileError> {
    bytes_of(&open(path)?, path)
}

/// Opens a policy file.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub(crate) fn open(path: &Path) -> Result<File, PolicyFileError> {
    // Asked before it is opened: a pipe that nobody writes to would hold up whoever opens it.
    if !std::fs::metadata(path).map_err(|error| unreadable(path, &error))?.is_file() {
        let message = "is no regular file (a directory, pipe, socket or device); name a JSON or YAML policy file";
        return Err(PolicyFileError::new(path, None, message));
    }
    File::open(path).map_err(|error| unreadable(path, &error))
}

/// Reads the bytes of an open file, which `path` names in errors.
///
/// # Errors
/// It cannot be read, or has more than [`MAX_BYTES`].
pub(crate) fn bytes_of(file: &File, path: &Path) -> Result<Vec<u8>, PolicyFileError> {
    let length = file.metadata().map_err(|error| unreadable(path, &error))?.len();
    let mut bytes = Vec::new();
    if length <= MAX_BYTES {
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    }
    if length.max(bytes.len() as u64) > MAX_BYTES {
        let message = format!("is larger than {} MiB, the limit for a policy file; split it", MAX_BYTES >> 20);
        return Err(PolicyFileError::new(path, None, message));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: &std::io::Error) -> PolicyFileError {
    let message = format!("cannot read: {}; name a JSON or YAML policy file", io_reason(error));
    PolicyFileError::new(path, None, message)
}

/// What the bytes of a file say as text.
///
/// # Errors
/// They are not UTF-8.
pub(crate) fn text_of<'b>(bytes: &'b [u8], path: &Path) -> Result<&'b str, PolicyFileError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + memchr::memchr_iter(b'\n', &bytes[..error.valid_up_to()]).count() as u64;
        PolicyFileError::new(path, Some(line), "is not UTF-8 text; save it as UTF-8")
    })
}

/// Reads every resource of a file.
///
/// # Errors
/// The file cannot be read, or every mistake in it; nothing is read in part.
pub fn read(path: &Path) -> Result<Vec<FileResource>, PolicyFileErrors> {
    parse(text_of(&read_bytes(path)?, path)?, path)
}

/// Reads every resource of a text; `path` names it in errors, and its extension says whether it is JSON.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, path: &Path) -> Result<Vec<FileResource>, PolicyFileErrors> {
    let items = items(text, path)?;
    let several = items.iter().any(|item| item.document > 0);
    let file: Arc<Path> = path.into();
    let mut resources = Vec::with_capacity(items.len());
    let mut mistakes = Vec::new();
    let mut places = None;
    for Item { document, index, line, value } in items {
        let errors = match resource(value) {
            Ok(resource) => {
                resources.push(FileResource { place: FilePlace { file: Arc::clone(&file), line }, resource });
                continue;
            }
            Err(errors) => errors,
        };
        for error in errors.iter() {
            let in_document = if several { format!("document {}: ", document + 1) } else { String::new() };
            let in_list = index.map(|index| format!("[{index}]: ")).unwrap_or_default();
            let places = places.get_or_insert_with(|| Places::of(text));
            let line = places.line(document, index, path_of(error)).or(line);
            let (field, message) = (path_of(error), error.to_string());
            let message = match message.strip_prefix(field) {
                Some(rest) if !field.is_empty() => format!("{}{rest}", places.spelt(document, index, field)),
                _ => message,
            };
            mistakes.push(PolicyFileError::new(path, line, format!("{in_document}{in_list}{message}")));
        }
        if mistakes.len() > MAX_MISTAKES {
            mistakes.truncate(MAX_MISTAKES);
            let message = format!("there are more mistakes than these {MAX_MISTAKES}; correct them first");
            mistakes.push(PolicyFileError::new(path, None, message));
            break;
        }
    }
    match mistakes.is_empty() {
        true => Ok(resources),
        false => Err(PolicyFileErrors(mistakes)),
    }
}

/// One resource of a text, before it is read as any message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// Number of the document, from 0.
    pub(crate) document: usize,
    /// Index in the list that the document is, if it is one.
    pub(crate) index: Option<usize>,
    /// Where it begins, counted from 1.
    pub(crate) line: Option<u64>,
    pub(crate) value: Value,
}

/// Takes a text apart into resources; `path` as for [`parse`].
///
/// # Errors
/// The text is not JSON or YAML, a key stands twice in one mapping, or there is no document.
pub(crate) fn items(text: &str, path: &Path) -> Result<Vec<Item>, PolicyFileError> {
    let documents: Vec<(Value, Vec<u64>)> = match extension(path) {
        Some("json") => {
            let document = json::document_from_json(text).map_err(|error| match &error {
                JsonError::Syntax(syntax) => {
                    PolicyFileError::new(path, u64::try_from(syntax.line()).ok(), error.to_string())
                }
                other => PolicyFileError::new(path, None, other.to_string()),
            })?;
            vec![(document, lines::of_json(text))]
        }
        _ => {
            let documents = document::parse_all(text).map_err(|error| {
                let line = error.place.map(|place| place.line);
                let message = format!("not valid YAML: {}; {}", error.message, error.remedy);
                PolicyFileError::new(path, line, message)
            })?;
            documents
                .into_iter()
                .map(|node| (lines::of_yaml(&node), node))
                .map(|(l, n)| (place::to_json(n), l))
                .collect()
        }
    };
    if documents.is_empty() {
        return Err(PolicyFileError::new(path, None, "holds no resource; write `[]` for none, or delete the file"));
    }
    let mut items = Vec::with_capacity(documents.len());
    for (document, (value, lines)) in documents.into_iter().enumerate() {
        match value {
            Value::Array(list) => {
                let numbered = list.into_iter().enumerate();
                let item =
                    |(index, value)| Item { document, index: Some(index), line: lines.get(index).copied(), value };
                items.extend(numbered.map(item));
            }
            value => items.push(Item { document, index: None, line: lines.first().copied(), value }),
        }
    }
    Ok(items)
}

/// The field that an error is about; empty for the whole resource.
pub(crate) fn path_of(error: &JsonError) -> &str {
    match error {
        JsonError::UnknownField { path, .. }
        | JsonError::Twice { path, .. }
        | JsonError::Choice { path, .. }
        | JsonError::Value { path, .. } => path,
        _ => "",
    }
}

/// Reads one resource.
///
/// # Errors
/// Every field that is unknown, stands twice or does not take its value.
pub(crate) fn resource(value: Value) -> Result<PolicyResource, JsonErrors> {
    if let Some(kind) = value.get("kind").and_then(Value::as_str).filter(|_| value.get("apiVersion").is_some()) {
        return Err(JsonError::Value {
            path: "kind".to_owned(),
            reason: format!("a Kubernetes {kind}, which an agent translates before it reaches a proxy"),
            expected: "a cilium.NetworkPolicy (`tollgate policy check` reads Cilium's resources, too)".to_owned(),
        }
        .into());
    }
    if is_tenant(&value) {
        return json::tenant_from_value(value).map(|tenant| PolicyResource::Tenant(Box::new(tenant)));
    }
    let hosts = match value.get("@type").and_then(Value::as_str) {
        Some(type_url) => type_url.ends_with("/cilium.NetworkPolicyHosts"),
        None => ["policy", "hostAddresses", "host_addresses"].iter().any(|field| value.get(field).is_some()),
    };
    if hosts {
        json::network_policy_hosts_from_value(value).map(PolicyResource::Hosts)
    } else {
        json::network_policy_from_value(value).map(|policy| PolicyResource::Policy(Arc::new(policy)))
    }
}

/// By its type, or by its fields, also misspelt: the mistake is then told in the words of a tenant.
fn is_tenant(value: &Value) -> bool {
    const OF_TENANTS: [&str; 6] = ["members", "weight", "guarantee", "ceilings", "shadow", "isolation"];
    const OF_POLICIES: [&str; 4] = ["endpointIps", "endpointId", "ingressPerPortPolicies", "egressPerPortPolicies"];
    if let Some(type_url) = value.get("@type").and_then(Value::as_str) {
        return type_url.ends_with("/tollgate.tenant.v1.Tenant");
    }
    let Some(fields) = value.as_object() else { return false };
    let any_of = |names: &[&str]| fields.keys().any(|key| nearest(key, names).is_some());
    fields.contains_key("members") || (any_of(&OF_TENANTS) && !any_of(&OF_POLICIES))
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(|extension| extension.to_str())
}
