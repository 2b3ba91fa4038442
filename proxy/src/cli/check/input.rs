//! From files to policies that know where they came from. A file that is wrong, or a resource in it, hides none of the
//! others.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use prost::Message as _;
use serde_json::Value;
use tollgate_policy::{Direction, NetworkPolicy};
use tollgate_proto::envoy::service::discovery::v3::DiscoveryResponse;
use tollgate_proto::json::JsonError;
use tollgate_proto::{cilium, type_url};

use super::rules::{FileRule, Rule};
use super::{Reported, damage, tenants};
use crate::cilium_policy::{self, Kind, Problem};
use crate::control::set_unknown_fields_aside;
use crate::policy_file::place::Places;
use crate::policy_file::{self, Item, PolicyFileError, PolicyResource};
use crate::tenant::{Group, GroupError};

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Located {
    pub(super) file: PathBuf,
    /// Counted from 1; `None` in a binary file, and for the file as a whole.
    pub(super) line: Option<u64>,
    /// Path of the element; empty for the whole file.
    pub(super) element: String,
}

/// A policy and its origin.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) policy: NetworkPolicy,
    pub(super) origin: Origin,
    /// Paths of fields that were taken out because they cannot be used; with any, nothing of it is enforced.
    pub(super) mistakes: Vec<String>,
    /// Entries that say something else than what they were made of.
    pub(super) partial: Vec<(Direction, usize)>,
    /// Entries that are for other protocols as well.
    pub(super) all_protocols: Vec<(Direction, usize)>,
}

impl Source {
    /// One that is the resource itself.
    fn written(policy: NetworkPolicy, place: Place, mistakes: Vec<String>) -> Self {
        Self { policy, origin: Origin::Same(place), mistakes, partial: Vec::new(), all_protocols: Vec::new() }
    }
}

/// Where a policy comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// It is the resource.
    Same(Place),
    /// It was made of resources: for elements of the policy the resource and the path in it.
    Parts(HashMap<String, (Place, String)>),
}

/// A resource of a file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    file: Rc<File>,
    document: usize,
    index: Option<usize>,
    /// Path of the resource in its document, when it is not all of it: `items[3]`.
    within: String,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    places: Places,
}

impl Origin {
    /// Where an element of the policy stands.
    pub(super) fn locate(&self, element: &str) -> Located {
        match self {
            Self::Same(place) => place.locate(element),
            Self::Parts(parts) => {
                let mut around = element;
                loop {
                    if let Some((place, path)) = parts.get(around) {
                        return place.locate(path);
                    }
                    match around.rfind(['.', '[']) {
                        Some(end) => around = &around[..end],
                        None if around.is_empty() => break,
                        None => around = "",
                    }
                }
                Located { file: PathBuf::new(), line: None, element: element.to_owned() }
            }
        }
    }
}

impl Place {
    /// Where the field `path` of the resource stands.
    pub(super) fn locate(&self, path: &str) -> Located {
        let dot = if self.within.is_empty() || path.is_empty() { "" } else { "." };
        let element = format!("{}{dot}{path}", self.within);
        let line = self.file.places.line(self.document, self.index, &element);
        let element = self.file.places.spelt(self.document, self.index, &element);
        Located { file: self.file.path.clone(), line, element }
    }

    pub(super) fn report(&self, rule: FileRule, path: &str, what: String, instead: &str) -> Reported {
        let at = self.locate(path);
        Reported { rule: Rule::File(rule), at, what, instead: instead.to_owned(), because_of: None }
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) sources: Vec<Source>,
    /// CiliumNetworkPolicies, not translated yet.
    pub(super) kubernetes: Vec<(Place, Value)>,
    /// Tenants that can be used, at least in part.
    pub(super) tenants: Vec<(Place, Group)>,
    pub(super) findings: Vec<Reported>,
    /// Something in it cannot be used at all.
    pub(super) unusable: bool,
    /// The proxy reads the file, not an agent.
    by_proxy: bool,
}

impl Input {
    pub(super) fn join(&mut self, other: Self) {
        self.sources.extend(other.sources);
        self.kubernetes.extend(other.kubernetes);
        self.tenants.extend(other.tenants);
        self.findings.extend(other.findings);
        self.unusable |= other.unusable;
    }

    /// With `by_proxy` as the proxy reads its policy directory, where no agent translates anything.
    pub(super) fn read(path: &Path, by_proxy: bool) -> Self {
        let mut input = Self { by_proxy, ..Self::default() };
        match policy_file::read_bytes(path) {
            Ok(bytes) => match text(path, bytes) {
                Ok(text) => input.read_text(path, &text),
                Err(bytes) if policy_file::is_policy_file(path) => input.refuse_bytes(path, &bytes),
                Err(bytes) => input.read_binary(path, &bytes),
            },
            Err(error) => input.refuse_unreadable(&error),
        }
        input
    }

    /// A file or directory that cannot be read.
    pub(super) fn unreadable(error: &PolicyFileError) -> Self {
        let mut input = Self::default();
        input.refuse_unreadable(error);
        input
    }

    fn refuse_unreadable(&mut self, error: &PolicyFileError) {
        let (what, instead) = error.message.split_once("; ").unwrap_or((&error.message, "a file that can be read"));
        self.refuse(&error.place.file, None, FileRule::UnreadableFile, what.to_owned(), instead);
    }

    /// The proxy reads files of such names as text alone.
    fn refuse_bytes(&mut self, path: &Path, bytes: &[u8]) {
        let extension = path.extension().unwrap_or_default().display();
        let protobuf = cilium::NetworkPolicy::decode(bytes).is_ok() || DiscoveryResponse::decode(bytes).is_ok();
        let (what, instead) = match protobuf {
            true => (format!("is protobuf under the name of text (.{extension})"), "a name that ends in .pb, or text"),
            false => (format!("is not UTF-8 text, as .{extension} says"), "the text in UTF-8"),
        };
        self.refuse(path, None, FileRule::InvalidSyntax, what, instead);
    }

    fn refuse(&mut self, path: &Path, line: Option<u64>, rule: FileRule, what: String, instead: &str) {
        let at = Located { file: path.to_owned(), line, element: String::new() };
        let instead = instead.to_owned();
        self.findings.push(Reported { rule: Rule::File(rule), at, what, instead, because_of: None });
        self.unusable = true;
    }

    fn read_text(&mut self, path: &Path, text: &str) {
        let items = match policy_file::items(text, path) {
            Ok(items) => items,
            Err(error) => {
                let general = "JSON in a file named *.json, YAML in any other";
                let (what, instead) = error.message.split_once("; ").unwrap_or((&error.message, general));
                return self.refuse(path, error.place.line, FileRule::InvalidSyntax, what.to_owned(), instead);
            }
        };
        let file = Rc::new(File { path: path.to_owned(), places: Places::of(text) });
        for Item { document, index, value, .. } in items {
            let place = Place { file: Rc::clone(&file), document, index, within: String::new() };
            self.read_resource(place, value);
        }
    }

    fn read_resource(&mut self, place: Place, value: Value) {
        if let Some(kind) = value.get("kind").and_then(Value::as_str).filter(|_| value.get("apiVersion").is_some()) {
            if let (true, Some(items)) = (kind.ends_with("List"), value.get("items").and_then(Value::as_array)) {
                for (index, item) in items.iter().enumerate() {
                    self.read_resource(Place { within: format!("items[{index}]"), ..place.clone() }, item.clone());
                }
            } else {
                self.read_object(place, kind.to_owned(), value);
            }
            return;
        }
        match policy_file::resource(value.clone()) {
            Ok(PolicyResource::Policy(policy)) => self.add(place, &policy, None),
            Ok(PolicyResource::Hosts(hosts)) => {
                let what = format!(
                    "the addresses of identity {} have an effect only where a control plane serves them",
                    hosts.policy
                );
                let instead = "list them under `identities` of the proxy's configuration if it reads this file itself";
                self.findings.push(place.report(FileRule::HostsWithoutEffect, "host_addresses", what, instead));
            }
            Ok(PolicyResource::Tenant(tenant)) => match Group::of_resource(&tenant) {
                Ok((group, mistakes)) => {
                    let report = |error: &GroupError| tenants::mistake(&place, FileRule::TenantInPart, error);
                    self.findings.extend(mistakes.iter().map(report));
                    self.tenants.push((place, group));
                }
                Err(error) => {
                    self.unusable = true;
                    self.findings.push(tenants::mistake(&place, FileRule::UnusableTenant, &error));
                }
            },
            Err(errors) => {
                self.unusable = true;
                for error in errors.iter() {
                    self.findings.push(schema_mistake(&place, error));
                }
                if let Some((policy, mistakes)) = damage::rest(value, &errors) {
                    self.add_rest(place, Arc::unwrap_or_clone(policy), mistakes);
                }
            }
        }
    }

    /// A Kubernetes object that is no list.
    fn read_object(&mut self, place: Place, kind: String, value: Value) {
        if self.by_proxy {
            self.unusable = true;
            let what = format!("is a {kind}, in the policy directory of the proxy");
            let instead = "the cilium.NetworkPolicy that an agent makes of it, or leave it to an agent";
            self.findings.push(place.report(FileRule::RefusedByProxy, "kind", what, instead));
        }
        match cilium_policy::kind(&value) {
            Kind::Policy => {}
            Kind::Misspelt(problem) => {
                self.unusable = true;
                let Problem { path, what, instead, .. } = problem;
                self.findings.push(place.report(FileRule::InvalidValue, &path, what, &instead));
            }
            Kind::Other if self.by_proxy => return,
            Kind::Other => {
                let what = format!("is a {kind}, not a policy that is known here");
                let instead = "a CiliumNetworkPolicy, or the cilium.NetworkPolicy that an agent makes of it";
                self.findings.push(place.report(FileRule::NotAPolicy, "kind", what, instead));
                return;
            }
        }
        self.kubernetes.push((place, value));
    }

    /// An xDS response, or one policy. Nobody can take one for the other: the fields have different wire types.
    fn read_binary(&mut self, path: &Path, bytes: &[u8]) {
        let file = Rc::new(File { path: path.to_owned(), places: Places::default() });
        let policies: Vec<Vec<u8>> = match DiscoveryResponse::decode(bytes) {
            Ok(response) if !response.resources.is_empty() || response.type_url == type_url::NETWORK_POLICY => {
                let resources = response.resources.into_iter();
                resources.filter(|any| any.type_url == type_url::NETWORK_POLICY).map(|any| any.value).collect()
            }
            _ => vec![bytes.to_vec()],
        };
        for (index, bytes) in policies.iter().enumerate() {
            let place = Place { file: Rc::clone(&file), document: 0, index: Some(index), within: String::new() };
            match cilium::NetworkPolicy::decode(&bytes[..]) {
                Ok(policy) => self.add(place, &policy, Some(bytes)),
                Err(error) => {
                    let what = format!("is neither text nor a cilium.NetworkPolicy in protobuf: {error}");
                    let instead = "a NetworkPolicy or DiscoveryResponse as it goes over the wire, or text";
                    self.refuse(path, None, FileRule::InvalidSyntax, what, instead);
                }
            }
        }
    }

    fn add(&mut self, place: Place, policy: &cilium::NetworkPolicy, bytes: Option<&[u8]>) {
        match NetworkPolicy::try_from(policy) {
            Ok(mut model) => {
                if let Some(bytes) = bytes {
                    set_unknown_fields_aside(&mut model, bytes);
                }
                self.sources.push(Source::written(model, place, Vec::new()));
            }
            Err(error) => {
                let message = error.to_string();
                let (field, what) = message.split_once(": ").unwrap_or(("", &message));
                let (what, instead) = what.split_once("; ").unwrap_or((what, "an endpoint that can be found"));
                self.findings.push(place.report(FileRule::UnusablePolicy, field, what.to_owned(), instead));
                self.unusable = true;
                self.add_rest(place, policy.clone(), vec![field.to_owned()]);
            }
        }
    }

    /// What mistakes left of a policy, under an endpoint of its own where it has none.
    fn add_rest(&mut self, place: Place, mut policy: cilium::NetworkPolicy, mistakes: Vec<String>) {
        policy.endpoint_id = policy.endpoint_id.max(1);
        policy.endpoint_ips.retain(|address| !address.is_empty());
        if policy.endpoint_ips.is_empty() {
            policy.endpoint_ips.push("unnamed".to_owned());
        }
        if let Ok(policy) = NetworkPolicy::try_from(&policy) {
            self.sources.push(Source::written(policy, place, mistakes));
        }
    }
}

/// A mistake that keeps the whole file from being read, as a finding.
fn schema_mistake(place: &Place, error: &JsonError) -> Reported {
    let rule = match error {
        JsonError::UnknownField { .. } => FileRule::UnknownField,
        _ => FileRule::InvalidValue,
    };
    let message = error.to_string();
    // The path is shown as the finding's element.
    let path = policy_file::path_of(error);
    let message = message.strip_prefix(path).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&message);
    let (what, instead) = message.split_once("; ").unwrap_or((message, "a value that fits"));
    place.report(rule, path, what.to_owned(), instead)
}

/// The text of a file that is text: by its name, or because nothing in it speaks against it.
fn text(path: &Path, bytes: Vec<u8>) -> Result<String, Vec<u8>> {
    let named = policy_file::is_policy_file(path);
    let text = String::from_utf8(bytes).map_err(std::string::FromUtf8Error::into_bytes)?;
    let control = |c: char| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r');
    // A short policy in protobuf is UTF-8 by chance.
    let protobuf = || cilium::NetworkPolicy::decode(text.as_bytes()).is_ok_and(|policy| policy.endpoint_id != 0);
    match !text.contains(control) || named && !protobuf() {
        true => Ok(text),
        false => Err(text.into_bytes()),
    }
}
