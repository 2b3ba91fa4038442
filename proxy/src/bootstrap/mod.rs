//! The bootstrap that Cilium's chart writes for Envoy, as a configuration of ours (`spec/cilium-agent.md` section 2.1).
//!
//! Honoured are the node, the control plane and how to speak to it, time-outs of the clusters that lead to the original
//! destination, the endpoints for operators, and the limit of connections. The rest has no effect and is named.

mod control_plane;
mod endpoints;
mod object;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::time::Duration;

use crate::config::document::{Node as Document, Value};
use crate::config::read::Mistakes;
use crate::config::{self, Bootstrap, Config, Identities, IdentitySettings, Node, PolicySource, XdsMode};
use crate::tenant::TenantConfig;
use control_plane::ControlPlane;
use endpoints::Endpoints;
use object::{Field, Notes, Object};

/// Top-level members that only a bootstrap has, in both spellings.
const MEMBERS: [&str; 6] = [
    "static_resources",
    "staticResources",
    "dynamic_resources",
    "dynamicResources",
    "overload_manager",
    "overloadManager",
];

/// Clusters that stand for where a connection was going.
const ORIGINAL_DESTINATION: [&str; 4] =
    ["ingress-cluster", "egress-cluster", "ingress-cluster-tls", "egress-cluster-tls"];

/// Whether the document is a bootstrap and not a configuration of ours.
pub(crate) fn is_bootstrap(document: &Document) -> bool {
    match &document.value {
        Value::Map(entries) => entries.iter().any(|entry| MEMBERS.contains(&entry.key.as_str())),
        _ => false,
    }
}

/// Reads a bootstrap. `None` only after a mistake has been noted.
pub(crate) fn read(document: &Document, mistakes: &Mistakes) -> Option<Config> {
    let notes = Notes { mistakes, ignored: RefCell::default() };
    let mut root = Object::root(document, &notes)?;
    let node = node(&mut root);
    let mut resources = root.get("staticResources").and_then(|field| field.object());
    let clusters = resources.as_mut().and_then(|resources| resources.get("clusters"));
    let clusters = clusters.map(|field| field.list()).unwrap_or_default();
    let control_plane = control_plane::read(&mut root, &clusters);
    let known = |cluster: &&Field<'_>| {
        let name = cluster.path.rsplit_once('[').map_or("", |(_, name)| name.trim_end_matches(']'));
        ORIGINAL_DESTINATION.contains(&name) || [endpoints::ADMIN_CLUSTER, "xds-grpc-cilium"].contains(&name)
    };
    clusters.iter().filter(|cluster| !known(cluster)).for_each(Field::ignore);
    let upstream = upstream(&clusters);
    let listeners = resources.as_mut().and_then(|resources| resources.get("listeners"));
    let mut endpoints = Endpoints::of_static_listeners(listeners.as_ref());
    if let Some(mut admin) = root.get("admin").and_then(|field| field.object()) {
        endpoints.admin.splice(0..0, admin.get("address").and_then(|field| field.address()));
        admin.finish();
    }
    let max_connections = root.get("overloadManager").and_then(|field| max_connections(&field));
    if let Some(resources) = resources {
        resources.finish();
    }
    root.finish();
    let ControlPlane { address, mode } = control_plane?;
    Some(Config {
        node,
        admin: endpoints.admin,
        reported_version: None,
        metrics: endpoints.metrics,
        health: endpoints.health,
        policy_source: PolicySource::Xds { address, mode: XdsMode::Auto },
        tenants_from_xds: false,
        identities: IdentitySettings::new(Identities::Agent),
        dynamic_listeners: true,
        upstream,
        max_connections: max_connections.unwrap_or(config::MAX_CONNECTIONS),
        bootstrap: Some(Bootstrap { mode, ignored: notes.ignored.into_inner() }),
        workers: config::cores(),
        secrets: Vec::new(),
        listeners: Vec::new(),
        access_log: Vec::new(),
        drain_timeout: config::DRAIN_TIMEOUT,
        limits: config::Limits::default(),
        tenants: TenantConfig::default(),
        fairness: true,
        lanes: true,
    })
}

fn node(root: &mut Object<'_>) -> Node {
    let mut node = Node::default();
    if let Some(mut object) = root.get("node").and_then(|field| field.object()) {
        if let Some(id) = object.get("id") {
            match config::node_id(&id.node.value) {
                Ok(text) => node.id = text,
                Err(message) => id.refuse(message),
            }
        }
        if let Some(cluster) = object.get("cluster").and_then(|field| field.text()) {
            node.cluster = cluster.to_owned();
        }
        object.finish();
    }
    node
}

/// Time-outs of the clusters for the original destination. There are up to four, of which the chart writes the same; the
/// shortest connect time-out counts.
fn upstream(clusters: &[Field<'_>]) -> config::UpstreamDefaults {
    let mut connect: Option<Duration> = None;
    let mut idle: Option<Duration> = None;
    let by_name = |name: &str| clusters.iter().find(|cluster| cluster.path.ends_with(&format!("[{name}]")));
    for cluster in ORIGINAL_DESTINATION {
        let Some(mut object) = by_name(cluster).and_then(|field| field.object()) else { continue };
        // That is what these clusters are, and what follows from it: nothing is pooled here, so nothing is cleaned up.
        for member in ["name", "type", "lbPolicy", "cleanupInterval"] {
            drop(object.get(member));
        }
        let timeout = object.get("connectTimeout").and_then(|field| field.duration());
        if let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) {
            connect = Some(connect.map_or(timeout, |known| known.min(timeout)));
        }
        if let Some(mut options) = object.get("typedExtensionProtocolOptions").and_then(|field| field.object()) {
            let http = options.get("envoy.extensions.upstreams.http.v3.HttpProtocolOptions");
            idle = http.and_then(|field| idle_timeout(&field)).or(idle);
            options.finish();
        }
        object.finish();
    }
    let default = config::UpstreamDefaults::default();
    config::UpstreamDefaults { connect_timeout: connect.unwrap_or(default.connect_timeout), idle_timeout: idle }
}

fn idle_timeout(options: &Field<'_>) -> Option<Duration> {
    let mut options = options.object()?;
    // What comes as HTTP/2 goes on as HTTP/2, here as there.
    drop(options.get("useDownstreamProtocolConfig"));
    let mut common = options.get("commonHttpProtocolOptions")?.object()?;
    options.finish();
    let idle = common.get("idleTimeout").and_then(|field| field.duration()).filter(|idle| !idle.is_zero());
    // Zero is off, which is how it is here.
    if let Some(age) = common.get("maxConnectionDuration")
        && age.duration().is_some_and(|age| !age.is_zero())
    {
        age.ignore();
    }
    if let Some(requests) = common.get("maxRequestsPerConnection")
        && requests.number().is_some_and(|requests| requests != 0)
    {
        requests.ignore();
    }
    common.finish();
    idle
}

/// `global_downstream_max_connections`, the one monitor that the chart sets.
fn max_connections(manager: &Field<'_>) -> Option<usize> {
    const MONITOR: &str = "envoy.resource_monitors.global_downstream_max_connections";
    let mut manager = manager.object()?;
    let mut limit = None;
    for monitor in manager.get("resourceMonitors").map(|field| field.list()).unwrap_or_default() {
        let Some(mut object) = monitor.object() else { continue };
        if object.get("name").and_then(|field| field.text()) != Some(MONITOR) {
            monitor.ignore();
            continue;
        }
        let most = object.get("typedConfig").and_then(|field| field.object()).and_then(|mut config| {
            let most = config.get("maxActiveDownstreamConnections");
            config.finish();
            most
        });
        if let Some(field) = most
            && let Some(number) = field.number()
        {
            match usize::try_from(number) {
                Ok(number @ 1..) => limit = Some(number),
                _ => field.refuse("not a number of connections from 1"),
            }
        }
        object.finish();
    }
    manager.finish();
    limit
}
