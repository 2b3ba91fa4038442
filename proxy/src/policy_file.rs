//! Policy files: what a watched directory and the offline commands read.
//!
//! `*.json` holds one resource in proto3 JSON; `*.yaml` and `*.yml` hold the same spelling in YAML, several documents
//! separated by `---`. A resource is a `cilium.NetworkPolicy` unless its `@type` says `cilium.NetworkPolicyHosts`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tollgate_proto::cilium::{NetworkPolicy, NetworkPolicyHosts};
use tollgate_proto::json::{self, JsonError};

/// One resource of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyResource {
    /// Policy of one endpoint.
    Policy(Box<NetworkPolicy>),
    /// Addresses of one identity.
    Hosts(NetworkPolicyHosts),
}

/// Why a policy file cannot be used. Displays as one line: file, place, what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", file.display())]
pub struct PolicyFileError {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Place inside it and what is wrong there.
    pub message: String,
}

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
    let text = std::fs::read_to_string(path)
        .map_err(|error| refused(path, format!("cannot read: {error}; name a JSON or YAML policy file")))?;
    parse(&text, path)
}

/// Reads every resource of a text; `path` names it in errors, and its extension says whether it is JSON.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, path: &Path) -> Result<Vec<PolicyResource>, PolicyFileError> {
    if extension(path) == Some("json") {
        let resource = resource(|| json::network_policy_from_json(text), || json::network_policy_hosts_from_json(text));
        return Ok(vec![resource.map_err(|error| refused(path, error.to_string()))?]);
    }
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        reject_unsupported_tags: true,
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| refused(path, format!("not valid YAML: {}", error.to_string().replace('\n', " "))))?;
    let only = documents.len() == 1;
    documents
        .into_iter()
        .enumerate()
        .map(|(index, document)| {
            resource(
                || json::network_policy_from_value(document.clone()),
                || json::network_policy_hosts_from_value(document.clone()),
            )
            .map_err(|error| match only {
                true => refused(path, error.to_string()),
                false => refused(path, format!("document {}: {error}", index + 1)),
            })
        })
        .collect()
}

/// `@type` decides; without one it is a policy.
fn resource(
    policy: impl FnOnce() -> Result<NetworkPolicy, JsonError>,
    hosts: impl FnOnce() -> Result<NetworkPolicyHosts, JsonError>,
) -> Result<PolicyResource, JsonError> {
    match policy() {
        Ok(policy) => Ok(PolicyResource::Policy(Box::new(policy))),
        Err(JsonError::Type { found, .. }) if found.ends_with("/cilium.NetworkPolicyHosts") => {
            hosts().map(PolicyResource::Hosts)
        }
        Err(error) => Err(error),
    }
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(|extension| extension.to_str())
}

fn refused(path: &Path, message: String) -> PolicyFileError {
    PolicyFileError { file: path.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "endpoint_id: 69\nendpoint_ips: [10.244.2.232]\ningress_per_port_policies: [{port: 5000}]\n";
    const HOSTS: &str =
        "'@type': type.googleapis.com/cilium.NetworkPolicyHosts\npolicy: 32226\nhost_addresses: [10.244.1.17]\n";

    fn error(text: &str, file: &str) -> String {
        parse(text, Path::new(file)).expect_err("is refused").to_string()
    }

    #[test]
    fn yaml_and_json_give_the_same_policy() {
        let json =
            r#"{"endpointId": "69", "endpointIps": ["10.244.2.232"], "ingressPerPortPolicies": [{"port": 5000}]}"#;
        let from_yaml = parse(YAML, Path::new("a.yaml")).expect("reads");
        assert_eq!(from_yaml, parse(json, Path::new("a.json")).expect("reads"));
        let [PolicyResource::Policy(policy)] = &from_yaml[..] else {
            panic!("one policy, not {from_yaml:?}");
        };
        assert_eq!((policy.endpoint_id, policy.ingress_per_port_policies[0].port), (69, 5000));
    }

    #[test]
    fn a_yaml_file_holds_several_resources_of_both_kinds() {
        let resources = parse(&format!("{YAML}---\n{HOSTS}"), Path::new("a.yml")).expect("reads");
        let [PolicyResource::Policy(_), PolicyResource::Hosts(hosts)] = &resources[..] else {
            panic!("a policy and hosts, not {resources:?}");
        };
        assert_eq!((hosts.policy, hosts.host_addresses.len()), (32226, 1));
    }

    #[test]
    fn a_mistake_names_file_and_place() {
        assert!(error("endpoint_id: [", "a.yaml").starts_with("a.yaml: not valid YAML: "));
        assert!(error("endpoint_id: 1\nendpoint_id: 2\n", "a.yaml").contains("line 2"));
        assert!(error(&format!("{YAML}---\nprot: 1\n"), "a.yaml").starts_with("a.yaml: document 2: prot: "));
        assert!(error("{", "a.json").starts_with("a.json: not usable as JSON: "));
        assert!(error("{\"@type\": \"type.googleapis.com/cilium.Foo\"}", "a.json").starts_with("a.json: @type: "));
        let missing = read(Path::new("/nonexistent.yaml")).expect_err("is not there").to_string();
        assert!(missing.starts_with("/nonexistent.yaml: cannot read: "), "{missing}");
    }

    #[test]
    fn only_visible_json_and_yaml_files_count() {
        for (name, expected) in [
            ("a.json", true),
            ("dir/a.yaml", true),
            ("a.yml", true),
            (".a.yaml", false),
            ("a.yaml~", false),
            ("a.txt", false),
            ("yaml", false),
        ] {
            assert_eq!(is_policy_file(Path::new(name)), expected, "{name}");
        }
    }
}
