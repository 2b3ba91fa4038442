//! The resolved configuration as JSON, in the shape and the words of `tollgate.yaml`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::tenant::{Group, TenantConfig};

use super::{
    AccessLog, Agent, Config, EscapedSlashes, ForwardedProto, HttpSettings, Identities, IdentitySettings, Limits,
    Listener, MemoryLimit, OriginalSource, PolicySource, Rate, RouteLimits, Underscores, Upstream, XdsMode,
};

/// Every key with the value in force, for `/config_dump`.
pub fn to_json(config: &Config) -> Value {
    let (xds, policies) = match &config.policy_source {
        PolicySource::Xds { address, mode } => {
            let tenants = config.tenants_from_xds;
            (json!({ "address": address.to_string(), "mode": xds_mode(*mode), "tenants": tenants }), Value::Null)
        }
        PolicySource::Directory(path) => (Value::Null, json!({ "directory": path })),
    };
    let access_log: Vec<_> = config
        .access_log
        .iter()
        .map(|sink| match sink {
            AccessLog::JsonStdout => json!({ "json": "stdout" }),
            AccessLog::JsonFile(path) => json!({ "json": path }),
            AccessLog::CiliumSocket(path) => json!({ "unix": path }),
        })
        .collect();
    json!({
        "node": { "id": config.node.id, "cluster": config.node.cluster },
        "workers": config.workers,
        "max_connections": config.max_connections,
        "fairness": if config.fairness { "on" } else { "off" },
        "lanes": if config.lanes { "on" } else { "off" },
        "drain_timeout": duration(config.drain_timeout),
        "limits": limits(&config.limits),
        "admin": address(config.admin.first()),
        "reported_version": config.reported_version,
        "metrics": address(config.metrics.first()),
        "health": address(config.health.first()),
        "xds": xds,
        "policies": policies,
        "identities": identities(&config.identities),
        "secrets": config.secrets.iter().map(|s| json!({ "name": s.name, "file": s.file })).collect::<Vec<_>>(),
        "access_log": access_log,
        "tenants": tenants(&config.tenants),
        "listeners": match config.dynamic_listeners {
            true => json!("xds"),
            false => config.listeners.iter().map(listener).collect(),
        },
    })
}

/// Settings in the words of `/tenants`.
fn tenants(tenants: &TenantConfig) -> Value {
    let members = |group: &Group| group.members.iter().map(ToString::to_string).collect::<Vec<_>>();
    let groups = tenants
        .groups
        .iter()
        .map(|group| json!({ "name": &*group.name, "members": members(group), "settings": group.settings }));
    json!({ "default": tenants.default, "groups": groups.collect::<Value>() })
}

/// One listener with the values in force.
pub fn listener(listener: &Listener) -> Value {
    let upstream = match listener.upstream {
        Upstream::OriginalDst => "original_dst".to_owned(),
        Upstream::Fixed(address) => address.to_string(),
    };
    let original_source = match listener.original_source {
        OriginalSource::Never => "never",
        OriginalSource::Always => "always",
        OriginalSource::RemoteDestinations => "remote_destinations",
    };
    let escaped_slashes = match listener.normalize.escaped_slashes {
        EscapedSlashes::Keep => "keep",
        EscapedSlashes::Reject => "reject",
        EscapedSlashes::UnescapeAndRedirect => "unescape_and_redirect",
        EscapedSlashes::UnescapeAndForward => "unescape_and_forward",
    };
    let field_underscores = match listener.normalize.field_underscores {
        Underscores::Keep => "keep",
        Underscores::Reject => "reject",
        Underscores::Drop => "drop",
    };
    json!({
        "name": listener.name,
        "address": listener.address,
        "additional_addresses": listener.additional_addresses,
        "direction": listener.direction.as_str(),
        "transparent": listener.transparent,
        "reuse_port": listener.reuse_port,
        "proxy_id": listener.proxy_id,
        "upstream": upstream,
        "endpoint": listener.endpoint,
        "original_source": original_source,
        "normalize": {
            "path": listener.normalize.path,
            "merge_slashes": listener.normalize.merge_slashes,
            "escaped_slashes": escaped_slashes,
            "field_underscores": field_underscores,
        },
        "policy_wait": duration(listener.policy_wait),
        "connect_timeout": duration(listener.connect_timeout),
        "request_head_timeout": duration(listener.request_head_timeout),
        "tcp_idle_timeout": duration(listener.tcp_idle_timeout.unwrap_or_default()),
        "denied_body": listener.denied_body,
        "reason_header": listener.reason_header,
        "http": http(&listener.http),
        "access_log": listener.access_log.as_ref().map(|path| json!({ "unix": path })),
        "agent": listener.agent.as_ref().map(agent),
    })
}

fn http(settings: &HttpSettings) -> Value {
    let forwarded_proto = match settings.forwarded_proto {
        ForwardedProto::Keep => "keep",
        ForwardedProto::Add => "add",
        ForwardedProto::Overwrite => "overwrite",
    };
    let mut section = route_limits(&settings.limits);
    section["request_id"] = json!(settings.request_id);
    section["forwarded_proto"] = json!(forwarded_proto);
    section["max_requests_per_connection"] = json!(settings.max_requests_per_connection);
    section["websocket"] = json!(settings.websocket);
    section["upstream_idle_timeout"] = json!(duration(settings.upstream_idle_timeout.unwrap_or_default()));
    // No key of the configuration: an agent sets it.
    if let Some(limits) = &settings.grpc_limits {
        section["grpc_limits"] = route_limits(limits);
    }
    section
}

fn route_limits(limits: &RouteLimits) -> Value {
    json!({
        "stream_idle_timeout": duration(limits.stream_idle_timeout.unwrap_or_default()),
        "timeout": duration(limits.timeout.unwrap_or_default()),
        "grpc_timeout": limits.grpc_timeout,
        "grpc_timeout_max": duration(limits.grpc_timeout_max.unwrap_or_default()),
        "retries": limits.retries,
        "per_try_timeout": duration(limits.per_try_timeout.unwrap_or_default()),
    })
}

/// No key of the configuration: an agent sets it.
fn agent(agent: &Agent) -> Value {
    json!({
        "bpf_root": agent.bpf_root,
        "ipcache_name": agent.ipcache_name,
        "use_nphds": agent.use_nphds,
        "cache_entry_ttl": agent.cache_entry_ttl.map(duration),
        "original_source_linger": agent.original_source_linger.map(duration),
    })
}

fn limits(limits: &Limits) -> Value {
    let rate = |rate: Option<Rate>| match rate {
        Some(Rate { per_second, burst }) => json!({ "per_second": per_second, "burst": burst }),
        None => json!("off"),
    };
    let idle = limits.idle_connections.map(|idle| {
        json!({
            "above_percent": idle.above_percent,
            "before_request": duration(idle.before_request),
            "while_not_reading": duration(idle.while_not_reading),
            "between_requests": duration(idle.between_requests),
        })
    });
    json!({
        "mode": if limits.shadow { "shadow" } else { "enforce" },
        "in_flight": limits.in_flight,
        "http2_control_frames": rate(limits.http2_control_frames),
        "http2_resets": rate(limits.http2_resets),
        "idle_connections": idle.unwrap_or_else(|| json!("off")),
        "memory": match limits.memory {
            MemoryLimit::OfControlGroup => json!("cgroup"),
            MemoryLimit::Bytes(bytes) => json!(bytes),
            MemoryLimit::Off => json!("off"),
        },
        "cpu_quota": if limits.cpu_quota { "cgroup" } else { "off" },
        "unsent": limits.unsent.map_or_else(|| json!("off"), |bytes| json!(bytes)),
    })
}

fn identities(settings: &IdentitySettings) -> Value {
    if let Identities::Static(list) = &settings.source {
        return list
            .iter()
            .map(|entry| {
                let addresses: Vec<_> = entry.addresses.iter().map(ToString::to_string).collect();
                json!({ "identity": entry.identity.0, "addresses": addresses })
            })
            .collect();
    }
    if settings.source == Identities::Agent {
        return json!("agent");
    }
    let (ipcache, nphds) = match &settings.source {
        Identities::Ipcache(path) => (Some(path), None),
        Identities::Nphds | Identities::Agent | Identities::Static(_) => (None, Some(true)),
    };
    let mut section = json!({ "mode": settings.mode.as_str(), "ttl": duration(settings.ttl) });
    let optional = [("ipcache", json!(ipcache)), ("nphds", json!(nphds)), ("conntrack", json!(settings.conntrack))];
    for (key, value) in optional.into_iter().filter(|(_, value)| !value.is_null()) {
        section[key] = value;
    }
    section
}

fn address(address: Option<&impl ToString>) -> Value {
    json!({ "address": address.map_or_else(|| "none".to_owned(), ToString::to_string) })
}

fn xds_mode(mode: XdsMode) -> &'static str {
    match mode {
        XdsMode::Auto => "auto",
        XdsMode::Split => "split",
        XdsMode::Ads => "ads",
        XdsMode::DeltaSplit => "delta-split",
    }
}

fn duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A dump is a configuration file that means the same.
    #[test]
    fn a_dump_reads_back_as_the_same_configuration() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/tollgate.yaml"));
        let config = crate::config::load(path).unwrap();
        let mut dump = to_json(&config);
        dump.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        for listener in dump["listeners"].as_array_mut().unwrap() {
            listener.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        }
        assert_eq!(crate::config::parse(&dump.to_string(), Path::new("dump.json")).unwrap(), config);
    }
}
