//! The sections beside `listeners`, `identities` and `tenants`: node, policy source, secrets, access log.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::document::Value;
use super::read::{Field, Section};
use super::scalar;
use super::{AccessLog, ListenAddress, Node, PolicySource, SecretFile, XdsMode};

/// Where Cilium's agent listens for its proxy.
const XDS_SOCKET: &str = "/var/run/cilium/envoy/sockets/xds.sock";
/// The literal that Cilium's agent gives its proxy.
pub(super) const NODE_ID: &str = "host~127.0.0.1~no-id~localdomain";

/// `node: {id, cluster}`.
pub(super) fn node(top: &mut Section<'_>) -> Node {
    let mut node = Node::default();
    if let Some(mut section) = top.field("node").and_then(|field| field.section("{id: \"…\", cluster: …}")) {
        node.id = section.read("id", node.id, node_id);
        node.cluster = section.read("cluster", node.cluster, |value| match scalar::text(value)? {
            "" => Err("empty; the control plane needs a cluster name".to_owned()),
            text => Ok(text.to_owned()),
        });
        section.finish(&[]);
    }
    node
}

/// The agent takes the node's address from the second part (`spec/cilium-agent.md` section 1) and drops streams whose
/// id has another shape.
pub(crate) fn node_id(value: &Value) -> Result<String, String> {
    let text = scalar::text(value)?;
    check_node_id(text).map(|()| text.to_owned())
}

/// As [`node_id`], for a text from elsewhere.
pub(crate) fn check_node_id(text: &str) -> Result<(), String> {
    let parts: Vec<&str> = text.split('~').collect();
    if parts.len() != 4 {
        return Err(format!(
            "\"{text}\" has {} parts joined by ~ and needs 4, the second an IP address, such as {NODE_ID}",
            parts.len()
        ));
    }
    match parts[1].parse::<IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("second part \"{}\" is not an IP address; write it like {NODE_ID}", parts[1])),
    }
}

/// `xds` or `policies`: exactly one. Also says whether tenants come from the control plane, too.
pub(super) fn policy_source(top: &mut Section<'_>) -> Option<(PolicySource, bool)> {
    let both = top.has("xds") && top.has("policies");
    let xds = match top.field("xds") {
        Some(field) => xds(&field),
        // The key without a value: all defaults, as for every section.
        None => top.has("xds").then(|| {
            let address = ListenAddress::Unix(PathBuf::from(XDS_SOCKET));
            (PolicySource::Xds { address, mode: XdsMode::Auto }, false)
        }),
    };
    let directory = top.field("policies").and_then(|field| policies(&field));
    if directory.is_none() && top.has("policies") && top.field("policies").is_none() {
        top.refuse("policies", "has no value; write policies: {directory: ./policies}");
    }
    if both {
        top.refuse("policies", "policy comes from exactly one source; remove either xds or policies");
    } else if !top.has("xds") && !top.has("policies") {
        top.refuse_whole(format!(
            "no policy source; add xds: {{address: \"unix:{XDS_SOCKET}\"}} or policies: {{directory: ./policies}}"
        ));
    }
    xds.or_else(|| Some((directory?, false)))
}

fn xds(field: &Field<'_>) -> Option<(PolicySource, bool)> {
    let mut section = field.section("{address: \"unix:run/xds.sock\"}")?;
    let address = section.read("address", ListenAddress::Unix(PathBuf::from(XDS_SOCKET)), xds_address);
    let modes = [
        ("auto", XdsMode::Auto),
        ("split", XdsMode::Split),
        ("ads", XdsMode::Ads),
        ("delta-split", XdsMode::DeltaSplit),
    ];
    let mode = section.read("mode", XdsMode::Auto, |value| scalar::word(value, &modes));
    let tenants = section.read("tenants", false, scalar::boolean);
    section.refuse("tls", "TLS to the control plane is not implemented in this version; use a Unix socket");
    section.finish(&["tls"]);
    Some((PolicySource::Xds { address, mode }, tenants))
}

fn xds_address(value: &Value) -> Result<ListenAddress, String> {
    let text = scalar::text(value)?;
    if text.starts_with("https:") {
        return Err(
            "TLS to the control plane is not implemented in this version; use unix:PATH or http://IP:PORT".into()
        );
    }
    let wrong = || {
        format!(
            "\"{text}\" is not an address; write unix:PATH or http://IP:PORT, such as unix:run/xds.sock; names are not \
             resolved"
        )
    };
    match text.strip_prefix("http://") {
        Some(address) => address.trim_end_matches('/').parse().map(ListenAddress::Tcp).map_err(|_| wrong()),
        None if text.starts_with("unix:") => scalar::listen_address(value),
        None => Err(wrong()),
    }
}

fn policies(field: &Field<'_>) -> Option<PolicySource> {
    let mut section = field.section("{directory: ./policies}")?;
    let default = PathBuf::from("./policies");
    let directory = match section.field("directory") {
        Some(field) => field.read(|value| Ok(PathBuf::from(scalar::text(value)?))).inspect(|directory| {
            if let Some(message) = no_directory(directory) {
                field.refuse(message);
            }
        }),
        None => {
            if let Some(message) = no_directory(&default) {
                section.refuse_whole(message);
            }
            Some(default)
        }
    };
    section.finish(&[]);
    directory.map(PolicySource::Directory)
}

pub(super) fn no_directory(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => None,
        Ok(_) => Some(format!("{} is not a directory; name the directory that holds the policy files", path.display())),
        Err(error) => Some(format!(
            "cannot open directory {}: {}; create it (paths are relative to the working directory)",
            path.display(),
            io_reason(&error)
        )),
    }
}

/// What went wrong, without the errno that only developers read.
pub(crate) fn io_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}

/// `secrets: [{name: bearer-token, file: run/secrets/bearer-token}]`.
pub(super) fn secrets(top: &mut Section<'_>) -> Vec<SecretFile> {
    const EXAMPLE: &str = "{name: bearer-token, file: run/secrets/bearer-token}";
    let mut secrets: Vec<SecretFile> = Vec::new();
    let items = top.field("secrets").and_then(|field| field.list(&format!("[{EXAMPLE}]")));
    for item in items.unwrap_or_default() {
        let Some(mut section) = item.section(EXAMPLE) else {
            continue;
        };
        let name = match section.field("name") {
            Some(field) => match field.read(secret_name) {
                Some(name) if secrets.iter().any(|secret| secret.name == name) => {
                    field.refuse(format!("secret \"{name}\" is listed twice; remove one"));
                    None
                }
                name => name,
            },
            None => {
                section.refuse_whole("no name; add name: the name by which policies ask for the secret");
                None
            }
        };
        let file = match section.field("file") {
            Some(field) => field.read(secret_file),
            None => {
                section.refuse_whole("no file; add file: the path of the file that holds the secret");
                None
            }
        };
        section.finish(&[]);
        if let (Some(name), Some(file)) = (name, file) {
            secrets.push(SecretFile { name, file });
        }
    }
    secrets
}

fn secret_name(value: &Value) -> Result<String, String> {
    match scalar::text(value)? {
        "" => Err("empty; write the name by which policies ask for the secret".to_owned()),
        name => Ok(name.to_owned()),
    }
}

/// The file itself may come later; its directory is watched and must be there.
fn secret_file(value: &Value) -> Result<PathBuf, String> {
    let path = match scalar::text(value)? {
        "" => return Err("empty; write the path of the file that holds the secret".to_owned()),
        path => PathBuf::from(path),
    };
    if path.is_dir() {
        return Err(format!("{} is a directory; write the path of a file", path.display()));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match parent.and_then(no_directory) {
        Some(message) => Err(message),
        None => Ok(path),
    }
}

/// `access_log: [{json: stdout}, {json: FILE}, {unix: SOCKET}]`.
pub(super) fn access_log(top: &mut Section<'_>) -> Vec<AccessLog> {
    let mut sinks = Vec::new();
    let items = top.field("access_log").and_then(|field| field.list("[{json: stdout}]"));
    for item in items.unwrap_or_default() {
        const SINKS: &str = "{json: stdout}, {json: FILE} or {unix: SOCKET}";
        let Some(mut section) = item.section(SINKS) else {
            continue;
        };
        let json = section.field("json").map(|field| (field.read(json_sink), field));
        let unix = section.field("unix").map(|field| {
            let path = field.read(scalar::socket_path);
            (path.map(AccessLog::CiliumSocket), field)
        });
        match (json, unix) {
            (Some((sink, field)), None) | (None, Some((sink, field))) => match sink {
                Some(sink) if sinks.contains(&sink) => field.refuse("this sink is listed twice; remove one"),
                Some(sink) => sinks.push(sink),
                None => {}
            },
            (None, None) => section.refuse_whole(format!("no sink; write {SINKS}")),
            (Some(_), Some((_, field))) => field.refuse("two sinks in one entry; give each its own"),
        }
        section.finish(&[]);
    }
    sinks
}

fn json_sink(value: &Value) -> Result<AccessLog, String> {
    match scalar::text(value)? {
        "" => Err("empty; write stdout or the path of a file".to_owned()),
        "stdout" => Ok(AccessLog::JsonStdout),
        path => {
            let path = PathBuf::from(path);
            if path.is_dir() {
                return Err(format!("{} is a directory; write the path of a file", path.display()));
            }
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            match parent.and_then(no_directory) {
                Some(message) => Err(message),
                None => Ok(AccessLog::JsonFile(path)),
            }
        }
    }
}
