//! Who is who: a file with the labels of identities and endpoints, so that selectors can be followed without an agent.

use std::path::Path;

use serde::Deserialize;
use tollgate_policy::EndpointKey;

use super::selector::{Labels, key};
use crate::config::{document, io_reason};

/// Identities and endpoints with their labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownIdentities {
    pub(super) identities: Vec<KnownIdentity>,
    pub(super) endpoints: Vec<KnownEndpoint>,
}

#[derive(Clone, Debug)]
pub(super) struct KnownIdentity {
    pub(super) id: u32,
    pub(super) labels: Labels,
}

#[derive(Clone, Debug)]
pub(super) struct KnownEndpoint {
    pub(super) id: u64,
    pub(super) keys: Vec<EndpointKey>,
    pub(super) labels: Labels,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct IdentitiesError(String);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    identities: Vec<IdentityEntry>,
    #[serde(default)]
    endpoints: Vec<EndpointEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityEntry {
    #[serde(alias = "id")]
    identity: u32,
    labels: LabelsEntry,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointEntry {
    endpoint_id: u64,
    addresses: Vec<String>,
    labels: LabelsEntry,
}

/// A mapping, or a list of `source:key=value` as agents print it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum LabelsEntry {
    Map(Labels),
    List(Vec<String>),
}

impl From<LabelsEntry> for Labels {
    fn from(entry: LabelsEntry) -> Self {
        match entry {
            LabelsEntry::Map(map) => map.into_iter().map(|(name, value)| (key(&name), value)).collect(),
            LabelsEntry::List(list) => list
                .iter()
                .map(|label| label.split_once('=').unwrap_or((label, "")))
                .map(|(name, value)| (key(name), value.to_owned()))
                .collect(),
        }
    }
}

impl KnownIdentities {
    /// Reads the file (YAML or JSON).
    ///
    /// # Errors
    /// It cannot be read, or is not of this form; one line that names it.
    pub(crate) fn read(path: &Path) -> Result<Self, IdentitiesError> {
        let name = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            IdentitiesError(format!("{name}: cannot read: {}; name an identities file", io_reason(&error)))
        })?;
        let file: File = document::read(&text).map_err(|error| {
            let line = error.place.map(|place| format!(":{}", place.line)).unwrap_or_default();
            IdentitiesError(format!("{name}{line}: {}; docs/policy-check.md shows the form", error.message))
        })?;
        let identities = file.identities.into_iter();
        let endpoints = file.endpoints.into_iter();
        Ok(Self {
            identities: identities.map(|e| KnownIdentity { id: e.identity, labels: e.labels.into() }).collect(),
            endpoints: endpoints
                .map(|entry| KnownEndpoint {
                    id: entry.endpoint_id,
                    keys: entry.addresses.iter().map(|address| EndpointKey::parse(address)).collect(),
                    labels: entry.labels.into(),
                })
                .collect(),
        })
    }
}
