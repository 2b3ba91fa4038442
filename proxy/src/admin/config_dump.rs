//! `/config_dump`: everything in force, its parts that Envoy has too in Envoy's form (`envoy.admin.v3.ConfigDump`).

use serde_json::{Map, Value, json};

use super::respond::Query;
use crate::config::Node;

/// Why there is no dump.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum DumpError {
    #[error("{0}")]
    BadQuery(String),
    #[error("{0} not found in config dump")]
    NoSuchResource(String),
}

/// The dump for `?include_eds` (without it there are no endpoints) and `?resource=MEMBER`, which lists the elements of one
/// member of `configs`. `dump` is what [`super::Views::config_dump`] returns.
pub(super) fn dump(query: &Query<'_>, node: &Node, mut dump: Value) -> Result<Value, DumpError> {
    query.only(&["include_eds", "resource"]).map_err(DumpError::BadQuery)?;
    let include_eds = query.flag("include_eds").map_err(DumpError::BadQuery)?;
    let configs = configs(node, &mut dump, include_eds);
    let Some(resource) = query.value("resource") else {
        let mut whole = Map::from_iter([("configs".to_owned(), configs.into())]);
        if let Value::Object(rest) = dump {
            whole.extend(rest);
        }
        return Ok(whole.into());
    };
    let member = configs.into_iter().find_map(|mut config| config.as_object_mut()?.remove(resource));
    let member = member.filter(|member| !member.is_string());
    let member = member.ok_or_else(|| DumpError::NoSuchResource(resource.to_owned()))?;
    let elements = match member {
        Value::Array(elements) => elements,
        element => vec![element],
    };
    let typed = |mut element: Value| {
        if let Some((members, type_name)) = element.as_object_mut().zip(type_of(resource)) {
            members.insert("@type".to_owned(), format!("type.googleapis.com/{type_name}").into());
        }
        element
    };
    Ok(json!({ "configs": elements.into_iter().map(typed).collect::<Value>() }))
}

/// Moves what Envoy knows out of `dump`.
fn configs(node: &Node, dump: &mut Value, include_eds: bool) -> Vec<Value> {
    let mut take = |name: &str| dump.as_object_mut().and_then(|members| members.remove(name)).unwrap_or(json!([]));
    let policies = take("networkpolicies");
    let clusters = take("clusters");
    let clusters = clusters.as_array().into_iter().flatten().map(|name| json!({ "cluster": { "name": name } }));
    let routes = take("routes");
    let routes = routes.as_array().into_iter().flatten().map(|name| json!({ "route_config": { "name": name } }));
    let endpoints = take("endpoints");
    let endpoints = endpoints.as_array().into_iter().flatten();
    let endpoints = endpoints.map(|name| json!({ "endpoint_config": { "cluster_name": name } }));
    let listeners = dump["listeners"].as_array().into_iter().flatten().map(|listener| {
        let name = &listener["name"];
        json!({ "name": name, "active_state": { "listener": { "name": name } } })
    });
    let dumps = "type.googleapis.com/envoy.admin.v3";
    let mut configs = vec![
        json!({
            "@type": format!("{dumps}.BootstrapConfigDump"),
            "bootstrap": { "node": { "id": node.id, "cluster": node.cluster } },
        }),
        json!({
            "@type": format!("{dumps}.ClustersConfigDump"),
            "dynamic_active_clusters": clusters.collect::<Value>(),
        }),
        json!({
            "@type": format!("{dumps}.ListenersConfigDump"),
            "dynamic_listeners": listeners.collect::<Value>(),
        }),
        json!({ "@type": "type.googleapis.com/cilium.NetworkPoliciesConfigDump", "networkpolicies": policies }),
        json!({
            "@type": format!("{dumps}.RoutesConfigDump"),
            "dynamic_route_configs": routes.collect::<Value>(),
        }),
    ];
    if include_eds {
        configs.push(json!({
            "@type": format!("{dumps}.EndpointsConfigDump"),
            "dynamic_endpoint_configs": endpoints.collect::<Value>(),
        }));
    }
    configs
}

fn type_of(resource: &str) -> Option<&'static str> {
    Some(match resource {
        "bootstrap" => "envoy.config.bootstrap.v3.Bootstrap",
        "dynamic_active_clusters" => "envoy.admin.v3.ClustersConfigDump.DynamicCluster",
        "dynamic_route_configs" => "envoy.admin.v3.RoutesConfigDump.DynamicRouteConfig",
        "dynamic_endpoint_configs" => "envoy.admin.v3.EndpointsConfigDump.DynamicEndpointConfig",
        "dynamic_listeners" => "envoy.admin.v3.ListenersConfigDump.DynamicListener",
        "networkpolicies" => "cilium.NetworkPolicy",
        _ => return None,
    })
}
