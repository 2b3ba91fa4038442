//! Settings of Envoy's HTTP connection manager, as an agent's policy listeners have them (`spec/cilium-agent.md` section
//! 2.3).

use std::time::Duration;

use prost::Message;
use tollgate_proto::cilium;
use tollgate_proto::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use tollgate_proto::envoy::extensions::filters::http::router::v3::Router;
use tollgate_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_connection_manager::UpgradeConfig, http_filter,
};
use tollgate_proto::google::protobuf::Duration as WireDuration;

use super::convert::{Inactive, access_log, decode, duration, original_destination};
use super::fields;
use crate::config::{EscapedSlashes, ForwardedProto, HttpSettings, Listener, Normalize};

/// Longest body of a 403; as in the configuration file.
const MAX_DENIED_BODY: usize = 4096;
/// Envoy's own, where a manager says nothing.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// More would multiply the load of an upstream that fails.
const MAX_RETRIES: u32 = 10;
/// The cause that retries are made for, and those that it includes.
const FAILED: &str = "5xx";
const PARTS_OF_FAILED: [&str; 5] =
    ["gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream"];
/// Envoy's own, where a route says nothing.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);

/// Reads the settings into `listener`, and the names of those without effect into `ignored`.
///
/// # Errors
/// Something that would change what is forwarded, or to where, and is not implemented.
pub(super) fn read(
    field: &str,
    manager: HttpConnectionManager,
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    http_filters(field, &manager.http_filters, listener, ignored)?;
    listener.normalize = normalize(field, &manager)?;
    listener.http.request_id = manager.generate_request_id.is_none_or(|wanted| wanted.value);
    let edge = manager.use_remote_address.as_ref().is_some_and(|on| on.value);
    listener.http.forwarded_proto = match manager.xff_num_trusted_hops {
        _ if !edge => ForwardedProto::Keep,
        0 => ForwardedProto::Overwrite,
        _ => ForwardedProto::Add,
    };
    let websocket = |upgrade: &UpgradeConfig| {
        upgrade.upgrade_type.eq_ignore_ascii_case("websocket") && upgrade.enabled.is_none_or(|on| on.value)
    };
    listener.http.websocket = manager.upgrade_configs.iter().any(websocket);
    let idle = manager.stream_idle_timeout.as_ref().map_or(Some(STREAM_IDLE_TIMEOUT), duration);
    listener.http.stream_idle_timeout = idle.filter(|idle| !idle.is_zero());
    if manager.upgrade_configs.iter().any(|upgrade| !upgrade.filters.is_empty()) {
        return Err(Inactive::new(format!("{field}.upgrade_configs"), "filters of its own are not implemented"));
    }
    fields::HTTP_MANAGER.of(field, &manager, ignored)?;
    match &manager.route_specifier {
        Some(http_connection_manager::RouteSpecifier::RouteConfig(routes)) => {
            let action = route_configuration(&format!("{field}.route_config"), routes)?;
            time_limits(action, &mut listener.http);
            if action.retry_policy.as_ref().is_some_and(asks_for_more_retries) {
                ignored.push(format!(
                    "{field}.route_config.retry_policy (what is more than retries on 5xx with a time for each)"
                ));
            }
        }
        Some(http_connection_manager::RouteSpecifier::Rds(_)) => {
            return Err(Inactive::new(format!("{field}.rds"), "routes from elsewhere are not implemented"));
        }
        _ => return Err(Inactive::new(field, "has no route_config")),
    }
    note_ignored(field, &manager, ignored);
    Ok(())
}

/// `cilium.l7policy`, then the router, and nothing else that could look at or change a request.
fn http_filters(
    manager: &str,
    filters: &[HttpFilter],
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    let mut enforced = false;
    let mut routed = false;
    for (index, filter) in filters.iter().enumerate() {
        let field = format!("{manager}.http_filters[{index}]");
        if filter.disabled {
            return Err(Inactive::new(field, format!("filter {} is disabled", filter.name)));
        }
        fields::HTTP_FILTER.of(&field, filter, ignored)?;
        let config = match &filter.config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) => Some(any),
            _ => None,
        };
        match filter.name.as_str() {
            "cilium.l7policy" if !enforced && !routed => {
                l7_policy(&field, &decode(&field, config)?, listener, ignored)?;
                enforced = true;
            }
            "envoy.filters.http.router" if enforced && !routed => {
                fields::ROUTER.of(&field, &decode::<Router>(&field, config)?, ignored)?;
                routed = true;
            }
            name => return Err(Inactive::new(field, format!("HTTP filter {name} is not implemented here"))),
        }
    }
    match (enforced, routed) {
        (true, true) => Ok(()),
        (false, _) => Err(Inactive::new(format!("{manager}.http_filters"), "no cilium.l7policy")),
        (true, false) => Err(Inactive::new(format!("{manager}.http_filters"), "no router")),
    }
}

/// `spec/cilium-filter.md` section 3.2. An empty body means the default one; the data path ends it with CRLF.
fn l7_policy(
    field: &str,
    config: &cilium::L7Policy,
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    fields::L7_POLICY.of(field, config, ignored)?;
    access_log(&config.access_log_path, listener);
    let body = config.denied_403_body.trim_end_matches("\r\n");
    if body.len() > MAX_DENIED_BODY {
        let reason = format!("{} bytes long; at most {MAX_DENIED_BODY} are sent", body.len());
        return Err(Inactive::new(format!("{field}.denied_403_body"), reason));
    }
    if !body.is_empty() {
        listener.denied_body = body.to_owned();
    }
    Ok(())
}

fn normalize(field: &str, manager: &HttpConnectionManager) -> Result<Normalize, Inactive> {
    Ok(Normalize {
        path: manager.normalize_path.as_ref().is_some_and(|on| on.value),
        merge_slashes: manager.merge_slashes,
        // 0 leaves the choice to the implementation; Envoy's is to keep them.
        escaped_slashes: match manager.path_with_escaped_slashes_action {
            0 | 1 => EscapedSlashes::Keep,
            2 => EscapedSlashes::Reject,
            3 => EscapedSlashes::UnescapeAndRedirect,
            4 => EscapedSlashes::UnescapeAndForward,
            other => {
                let field = format!("{field}.path_with_escaped_slashes_action");
                return Err(Inactive::new(field, format!("{other} is unknown")));
            }
        },
    })
}

/// Every route leads to the original destination, whatever it matches by. Returns the one for every request.
fn route_configuration<'r>(field: &str, routes: &'r RouteConfiguration) -> Result<&'r RouteAction, Inactive> {
    let allowed = RouteConfiguration {
        name: routes.name.clone(),
        virtual_hosts: routes.virtual_hosts.clone(),
        validate_clusters: routes.validate_clusters,
        ..RouteConfiguration::default()
    };
    if allowed.encoded_len() != routes.encoded_len() {
        return Err(Inactive::new(field, "has more than name and virtual_hosts, which is not implemented"));
    }
    let [host] = &routes.virtual_hosts[..] else {
        let reason = format!("{}; exactly one is implemented", routes.virtual_hosts.len());
        return Err(Inactive::new(format!("{field}.virtual_hosts"), reason));
    };
    let field = format!("{field}.virtual_hosts[0]");
    let allowed = VirtualHost {
        name: host.name.clone(),
        domains: vec!["*".to_owned()],
        routes: host.routes.clone(),
        ..VirtualHost::default()
    };
    if allowed != *host {
        return Err(Inactive::new(field, "has more than routes for the domain *, which is not implemented"));
    }
    let mut everything = None;
    for (index, entry) in host.routes.iter().enumerate() {
        let action = route(&format!("{field}.routes[{index}]"), entry)?;
        if matches_everything(entry.r#match.as_ref()) {
            everything = Some(action);
        }
    }
    everything.ok_or_else(|| Inactive::new(format!("{field}.routes"), "none is for every request"))
}

/// What each try is made again for.
fn causes(policy: &RetryPolicy) -> impl Iterator<Item = &str> {
    policy.retry_on.split(',').map(str::trim).filter(|cause| !cause.is_empty())
}

/// Whether a part of the policy has no effect.
fn asks_for_more_retries(policy: &RetryPolicy) -> bool {
    let taken = RetryPolicy {
        retry_on: policy.retry_on.clone(),
        num_retries: policy.num_retries,
        per_try_timeout: policy.per_try_timeout,
        ..RetryPolicy::default()
    };
    let on_failure = causes(policy).any(|cause| cause == FAILED);
    let is_more = |cause| cause != FAILED && !(on_failure && PARTS_OF_FAILED.contains(&cause));
    taken != *policy
        || causes(policy).any(is_more)
        || policy.num_retries.is_some_and(|number| number.value > MAX_RETRIES)
}

/// An agent writes the same into each route. Zero is no limit.
fn time_limits(action: &RouteAction, http: &mut HttpSettings) {
    let limit = |wire: Option<&WireDuration>| wire.and_then(duration).filter(|limit| !limit.is_zero());
    http.timeout = action.timeout.as_ref().map_or(Some(ROUTE_TIMEOUT), duration).filter(|limit| !limit.is_zero());
    http.stream_idle_timeout = limit(action.idle_timeout.as_ref()).or(http.stream_idle_timeout);
    let most = action.max_stream_duration.as_ref().and_then(|most| most.grpc_timeout_header_max.as_ref());
    if let Some(policy) = &action.retry_policy {
        if causes(policy).any(|cause| cause == FAILED) {
            http.retries = policy.num_retries.as_ref().map_or(1, |number| number.value).min(MAX_RETRIES);
        }
        http.per_try_timeout = limit(policy.per_try_timeout.as_ref());
    }
    http.grpc_timeout = most.is_some();
    http.grpc_timeout_max = limit(most);
}

fn prefix_of_everything() -> RouteMatch {
    RouteMatch { path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())), ..RouteMatch::default() }
}

fn matches_everything(route: Option<&RouteMatch>) -> bool {
    route == Some(&prefix_of_everything())
}

fn route<'r>(field: &str, route: &'r Route) -> Result<&'r RouteAction, Inactive> {
    let matched = route.r#match.clone().unwrap_or_default();
    if (RouteMatch { grpc: None, ..matched }) != prefix_of_everything() {
        return Err(Inactive::new(
            format!("{field}.match"),
            "is more than the prefix / (and grpc), which is not implemented",
        ));
    }
    let Some(route::Action::Route(action)) = &route.action else {
        return Err(Inactive::new(field, "does not route to a cluster"));
    };
    let allowed = Route {
        name: route.name.clone(),
        r#match: route.r#match.clone(),
        action: route.action.clone(),
        ..Route::default()
    };
    if allowed != *route {
        return Err(Inactive::new(field, "has more than match and route, which is not implemented"));
    }
    route_action(&format!("{field}.route"), action)?;
    Ok(action)
}

fn route_action(field: &str, action: &RouteAction) -> Result<(), Inactive> {
    match &action.cluster_specifier {
        Some(route_action::ClusterSpecifier::Cluster(cluster)) => original_destination(field, cluster)?,
        _ => return Err(Inactive::new(field, "does not name one cluster")),
    }
    let allowed = RouteAction {
        cluster_specifier: action.cluster_specifier.clone(),
        timeout: action.timeout,
        idle_timeout: action.idle_timeout,
        max_stream_duration: action.max_stream_duration,
        retry_policy: action.retry_policy.clone(),
        ..RouteAction::default()
    };
    match allowed == *action {
        true => Ok(()),
        false => {
            Err(Inactive::new(field, "has more than cluster, timeouts and retry_policy, which is not implemented"))
        }
    }
}

/// What is read and has not the effect, or not the whole effect, that it has in Envoy.
fn note_ignored(field: &str, manager: &HttpConnectionManager, ignored: &mut Vec<String>) {
    if !manager.skip_xff_append {
        ignored.push(format!("{field}.use_remote_address (x-forwarded-for)"));
    }
}
