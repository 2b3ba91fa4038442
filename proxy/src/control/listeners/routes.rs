//! Routes of Envoy's HTTP connection manager. Each leads to the original destination, so only what they limit is taken from them:
//! as in Envoy, from the first route that a request matches.

use std::time::Duration;

use prost::Message;
use tollgate_proto::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};

use super::convert::{Inactive, original_destination};
use super::durations::limit;
use crate::config::RouteLimits;

/// More would multiply the load of an upstream that fails.
const MAX_RETRIES: u32 = 10;
/// The cause that retries are made for, and those that it includes.
const FAILED: &str = "5xx";
const PARTS_OF_FAILED: [&str; 5] =
    ["gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream"];
/// Envoy's own, where a route says nothing.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);

/// What a route matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matches {
    Everything,
    Grpc,
}

/// The limits of every request, and those of gRPC where it has a route of its own that is asked first. `defaults` are what
/// routes do not say.
///
/// # Errors
/// They are more than what an agent writes.
pub(super) fn read(
    field: &str,
    routes: &RouteConfiguration,
    defaults: RouteLimits,
    ignored: &mut Vec<String>,
) -> Result<(RouteLimits, Option<RouteLimits>), Inactive> {
    let host = only_host(field, routes)?;
    let field = format!("{field}.virtual_hosts[0].routes");
    let (mut everything, mut grpc) = (None, None);
    for (index, entry) in host.routes.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let (matches, action) = route(&field, entry)?;
        let first = match matches {
            _ if everything.is_some() => None,
            Matches::Everything => Some(&mut everything),
            Matches::Grpc => Some(&mut grpc).filter(|grpc| grpc.is_none()),
        };
        match first {
            Some(first) => *first = Some(limits(&format!("{field}.route"), action, defaults, ignored)?),
            None => ignored.push(format!("{field} (no request reaches it)")),
        }
    }
    let everything = everything.ok_or_else(|| Inactive::new(field, "none is for every request"))?;
    Ok((everything, grpc.filter(|grpc| *grpc != everything)))
}

/// The one host, for every domain.
fn only_host<'r>(field: &str, routes: &'r RouteConfiguration) -> Result<&'r VirtualHost, Inactive> {
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
    let allowed = VirtualHost {
        name: host.name.clone(),
        domains: vec!["*".to_owned()],
        routes: host.routes.clone(),
        ..VirtualHost::default()
    };
    if allowed != *host {
        let field = format!("{field}.virtual_hosts[0]");
        return Err(Inactive::new(field, "has more than routes for the domain *, which is not implemented"));
    }
    Ok(host)
}

fn route<'r>(field: &str, route: &'r Route) -> Result<(Matches, &'r RouteAction), Inactive> {
    let everything =
        RouteMatch { path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())), ..RouteMatch::default() };
    let matched = route.r#match.clone().unwrap_or_default();
    let matches = if matched.grpc.is_some() { Matches::Grpc } else { Matches::Everything };
    if (RouteMatch { grpc: None, ..matched }) != everything {
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
    Ok((matches, action))
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

/// What a route limits. Zero is no limit; of the time without a byte it is none either, whatever `defaults` say.
fn limits(
    field: &str,
    action: &RouteAction,
    defaults: RouteLimits,
    ignored: &mut Vec<String>,
) -> Result<RouteLimits, Inactive> {
    let mut limits = defaults;
    limits.timeout = match &action.timeout {
        Some(wire) => limit(&format!("{field}.timeout"), Some(wire))?,
        None => Some(ROUTE_TIMEOUT),
    };
    if let Some(wire) = &action.idle_timeout {
        limits.stream_idle_timeout = limit(&format!("{field}.idle_timeout"), Some(wire))?;
    }
    if let Some(most) = &action.max_stream_duration {
        let field = format!("{field}.max_stream_duration");
        for (name, wire) in [
            ("max_stream_duration", &most.max_stream_duration),
            ("grpc_timeout_header_offset", &most.grpc_timeout_header_offset),
        ] {
            let field = format!("{field}.{name}");
            if limit(&field, wire.as_ref())?.is_some() {
                return Err(Inactive::new(field, "is not implemented"));
            }
        }
        let header_max = most.grpc_timeout_header_max.as_ref();
        limits.grpc_timeout = header_max.is_some();
        limits.grpc_timeout_max = limit(&format!("{field}.grpc_timeout_header_max"), header_max)?;
    }
    if let Some(policy) = &action.retry_policy {
        let field = format!("{field}.retry_policy");
        if causes(policy).any(|cause| cause == FAILED) {
            limits.retries = policy.num_retries.as_ref().map_or(1, |number| number.value).min(MAX_RETRIES);
        }
        limits.per_try_timeout = limit(&format!("{field}.per_try_timeout"), policy.per_try_timeout.as_ref())?;
        if asks_for_more_retries(policy) {
            ignored.push(format!("{field} (what is more than retries on 5xx with a time for each)"));
        }
    }
    Ok(limits)
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
