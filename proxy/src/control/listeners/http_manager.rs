//! Settings of Envoy's HTTP connection manager, as an agent's policy listeners have them (`spec/cilium-agent.md` section
//! 2.3).

use std::time::Duration;

use tollgate_proto::cilium;
use tollgate_proto::envoy::extensions::filters::http::router::v3::Router;
use tollgate_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_connection_manager::UpgradeConfig, http_filter,
};

use super::convert::{Inactive, access_log, decode};
use super::durations::limit;
use super::{fields, routes};
use crate::config::{EscapedSlashes, ForwardedProto, Listener, Normalize, RouteLimits, Underscores};

/// Longest body of a 403; as in the configuration file.
const MAX_DENIED_BODY: usize = 4096;
/// Envoy's own, where a manager says nothing.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
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
    listener.http.websocket = allows_websocket(field, &manager.upgrade_configs)?;
    fields::HTTP_MANAGER.of(field, &manager, ignored)?;
    protocol_options(field, &manager, listener, ignored)?;
    let idle = match &manager.stream_idle_timeout {
        Some(wire) => limit(&format!("{field}.stream_idle_timeout"), Some(wire))?,
        None => Some(STREAM_IDLE_TIMEOUT),
    };
    let defaults = RouteLimits { stream_idle_timeout: idle, ..RouteLimits::default() };
    match &manager.route_specifier {
        Some(http_connection_manager::RouteSpecifier::RouteConfig(routes)) => {
            let field = format!("{field}.route_config");
            (listener.http.limits, listener.http.grpc_limits) = routes::read(&field, routes, defaults, ignored)?;
        }
        Some(http_connection_manager::RouteSpecifier::Rds(_)) => {
            return Err(Inactive::new(format!("{field}.rds"), "routes from elsewhere are not implemented"));
        }
        _ => return Err(Inactive::new(field, "has no route_config")),
    }
    note_ignored(field, &manager, ignored);
    Ok(())
}

/// What connections may do, whatever is asked for on them. HTTP/1.0 is taken whether `accept_http_10` is set or not.
fn protocol_options(
    field: &str,
    manager: &HttpConnectionManager,
    listener: &mut Listener,
    ignored: &mut Vec<String>,
) -> Result<(), Inactive> {
    if let Some(http1) = &manager.http_protocol_options {
        fields::HTTP1_OPTIONS.of(&format!("{field}.http_protocol_options"), http1, ignored)?;
    }
    let Some(common) = &manager.common_http_protocol_options else { return Ok(()) };
    let field = format!("{field}.common_http_protocol_options");
    fields::COMMON_HTTP_OPTIONS.of(&field, common, ignored)?;
    let field = |name| format!("{field}.{name}");
    if limit(&field("max_stream_duration"), common.max_stream_duration.as_ref())?.is_some() {
        return Err(Inactive::new(field("max_stream_duration"), "is not implemented"));
    }
    listener.http.max_requests_per_connection =
        common.max_requests_per_connection.as_ref().map_or(0, |most| most.value);
    Ok(())
}

/// Whether WebSockets may be opened. No other protocol may be changed to, so a listener that asks for one is not served; what it
/// switches off is off.
fn allows_websocket(manager: &str, upgrades: &[UpgradeConfig]) -> Result<bool, Inactive> {
    let mut websocket = None;
    for (index, upgrade) in upgrades.iter().enumerate() {
        let field = format!("{manager}.upgrade_configs[{index}]");
        let enabled = upgrade.enabled.is_none_or(|on| on.value);
        if !upgrade.filters.is_empty() {
            return Err(Inactive::new(format!("{field}.filters"), "filters of its own are not implemented"));
        }
        match upgrade.upgrade_type.eq_ignore_ascii_case("websocket") {
            true if websocket.is_some() => return Err(Inactive::new(field, "is a second one for websocket")),
            true => websocket = Some(enabled),
            false if enabled => {
                let reason = format!("{} is not implemented; only websocket is", upgrade.upgrade_type);
                return Err(Inactive::new(format!("{field}.upgrade_type"), reason));
            }
            false => {}
        }
    }
    Ok(websocket.unwrap_or(false))
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
    let common = manager.common_http_protocol_options.unwrap_or_default();
    Ok(Normalize {
        field_underscores: match common.headers_with_underscores_action {
            0 => Underscores::Keep,
            1 => Underscores::Reject,
            2 => Underscores::Drop,
            other => {
                let field = format!("{field}.common_http_protocol_options.headers_with_underscores_action");
                return Err(Inactive::new(field, format!("{other} is unknown")));
            }
        },
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

/// What is read and has not the effect, or not the whole effect, that it has in Envoy.
fn note_ignored(field: &str, manager: &HttpConnectionManager, ignored: &mut Vec<String>) {
    if !manager.skip_xff_append {
        ignored.push(format!("{field}.use_remote_address (x-forwarded-for)"));
    }
}
