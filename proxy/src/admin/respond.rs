//! From a request to its response: the table of paths.

use std::convert::Infallible;
use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::config_dump::{self, DumpError};
use super::flows::{self, FlowsError};
use super::stats::{self, Form};
use super::{AdminState, Surface};
use crate::explanation::Asked;
use crate::metrics::Format;

type Body = BoxBody<Bytes, Infallible>;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Clusters,
    ConfigDump,
    Drain,
    Flows,
    Healthz,
    Listeners,
    Logging,
    Metrics,
    PolicyExplain,
    Quit,
    Ready,
    ServerInfo,
    Stats,
    Status,
    Tenants,
}

struct Route {
    path: &'static str,
    endpoint: Endpoint,
    /// Changes something: POST; otherwise GET and HEAD.
    changes: bool,
    about: &'static str,
}

const fn show(path: &'static str, endpoint: Endpoint, about: &'static str) -> Route {
    Route { path, endpoint, changes: false, about }
}

const fn change(path: &'static str, endpoint: Endpoint, about: &'static str) -> Route {
    Route { path, endpoint, changes: true, about }
}

const ROUTES: &[Route] = &[
    show("/clusters", Endpoint::Clusters, "names of the clusters that the control plane has told of; ?format=json"),
    show(
        "/config_dump",
        Endpoint::ConfigDump,
        "resolved configuration, listeners, policies and identities in force; ?resource=networkpolicies, also bootstrap, \
         dynamic_active_clusters, dynamic_listeners, dynamic_route_configs, dynamic_endpoint_configs (with ?include_eds)",
    ),
    change("/drain", Endpoint::Drain, "stop accepting, let connections end"),
    show(
        "/flows",
        Endpoint::Flows,
        "flow records as JSON lines; ?follow=1 ?denied=1 ?limited=1 ?would_limit=1 ?tenant=NAME ?limit=N",
    ),
    show("/healthz", Endpoint::Healthz, "200 while the process serves this"),
    show("/listeners", Endpoint::Listeners, "name and address of each listener; ?format=json"),
    change("/logging", Endpoint::Logging, "change the log level; ?level=off|error|warn|info|debug|trace"),
    show("/metrics", Endpoint::Metrics, "Prometheus metrics"),
    show(
        "/policy/explain",
        Endpoint::PolicyExplain,
        "verdict and why; ?endpoint=IP&direction=ingress|egress&from=ID&port=N, also proxy_id, server_name, host, header, \
         method with path; &format=text",
    ),
    change("/quitquitquit", Endpoint::Quit, "drain, then end the process"),
    show("/ready", Endpoint::Ready, "200 LIVE when ready, else 503 and what is awaited"),
    show("/server_info", Endpoint::ServerInfo, "version, state, uptime, node"),
    show("/stats", Endpoint::Stats, "what is counted, under Envoy's names; ?usedonly ?filter=REGEX ?format=json"),
    show("/stats/prometheus", Endpoint::Metrics, "same as /metrics"),
    show("/status", Endpoint::Status, "policy, control plane, listeners, connections, drain state"),
    show(
        "/tenants",
        Endpoint::Tenants,
        "who is a tenant, what each may use and has used; ?endpoints=1 whose policies they own",
    ),
];

impl Surface {
    fn serves(self, endpoint: Endpoint) -> bool {
        match self {
            Self::Admin => true,
            Self::Metrics => endpoint == Endpoint::Metrics,
            Self::Health => matches!(endpoint, Endpoint::Healthz | Endpoint::Ready),
        }
    }

    fn routes(self) -> impl Iterator<Item = &'static Route> {
        ROUTES.iter().filter(move |route| self.serves(route.endpoint))
    }
}

/// Answers one request. Its body is not read: no endpoint takes one.
pub(super) fn respond<B>(request: &Request<B>, surface: Surface, state: &AdminState) -> Response<Body> {
    let path = request.uri().path();
    let Some(route) = surface.routes().find(|route| route.path == path) else {
        return unknown(path, surface);
    };
    let (allow, allowed) = if route.changes {
        ("POST", *request.method() == Method::POST)
    } else {
        ("GET, HEAD", matches!(*request.method(), Method::GET | Method::HEAD))
    };
    if !allowed {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {allow}\n"));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        return response;
    }
    if route.changes && request.headers().contains_key(ORIGIN) {
        // Only browsers send it: a web page must not drain a proxy that listens on its reader's loopback.
        return text(StatusCode::FORBIDDEN, "requests from web pages are refused\n".to_owned());
    }
    let query = Query::parse(request.uri().query());
    match route.endpoint {
        Endpoint::Clusters => clusters(&query, state),
        Endpoint::ConfigDump => config_dump(&query, state),
        Endpoint::Drain => {
            state.actions.drain();
            text(StatusCode::OK, "draining\n".to_owned())
        }
        Endpoint::Flows => flow_records(&query, state),
        Endpoint::Healthz => text(StatusCode::OK, readiness(state).1),
        Endpoint::Listeners => listeners(&query, state),
        Endpoint::Logging => logging(&query, state),
        Endpoint::Metrics => metrics(request, state),
        Endpoint::PolicyExplain => policy_explain(&query, state),
        Endpoint::Quit => {
            state.actions.quit();
            text(StatusCode::OK, "ending\n".to_owned())
        }
        Endpoint::Ready => {
            let (status, body) = readiness(state);
            text(status, body)
        }
        Endpoint::ServerInfo => json(&server_info(state)),
        Endpoint::Stats => stats(request, &query, state),
        Endpoint::Status => json(&status(state)),
        Endpoint::Tenants => tenants(&query, state),
    }
}

fn unknown(path: &str, surface: Surface) -> Response<Body> {
    let (status, mut body) = match path {
        "/" | "/help" => (StatusCode::OK, String::new()),
        _ => (StatusCode::NOT_FOUND, "no such path; there are:\n".to_owned()),
    };
    for Route { path, changes, about, .. } in surface.routes() {
        let method = if *changes { "POST" } else { "GET" };
        // Writing to a String cannot fail.
        let _ = writeln!(body, "{method:<4} {path:<18} {about}");
    }
    text(status, body)
}

fn readiness(state: &AdminState) -> (StatusCode, String) {
    match state.waiting_for().as_slice() {
        [] => (StatusCode::OK, "LIVE\n".to_owned()),
        waiting => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", waiting.join(", "))),
    }
}

/// Envoy's member names, as Cilium's agent reads them. It compares the beginning of `version` with the one that it was
/// built for.
fn server_info(state: &AdminState) -> Value {
    let waiting = state.waiting_for();
    let phase = match waiting.as_slice() {
        [] => "LIVE",
        waiting if waiting.iter().any(|what| what == "draining") => "DRAINING",
        _ => "INITIALIZING",
    };
    json!({
        "version": state.reported_version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION")),
        "state": phase,
        "uptime_current_epoch": format!("{}s", state.started.elapsed().as_secs()),
        "uptime_all_epochs": format!("{}s", state.started.elapsed().as_secs()),
        "node": { "id": state.node.id, "cluster": state.node.cluster },
    })
}

fn status(state: &AdminState) -> Value {
    let [forwarded, denied, limited, failed] = state.metrics.flow_records_lost();
    let mut status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": { "id": state.node.id, "cluster": state.node.cluster },
        "uptime_seconds": state.started.elapsed().as_secs(),
        "ready": state.waiting_for().is_empty(),
        "waiting_for": state.waiting_for(),
        "connections_open": state.metrics.connections_open(),
        "flow_records_lost": { "forwarded": forwarded, "denied": denied, "limited": limited, "failed": failed },
    });
    if let Some(members) = status.as_object_mut() {
        members.extend(state.views.status());
    }
    status
}

fn listeners(query: &Query<'_>, state: &AdminState) -> Response<Body> {
    let listeners = state.views.listeners();
    match query.value("format") {
        None | Some("text") => {
            let lines = listeners.iter().flat_map(|listener| {
                listener.addresses.iter().map(|address| format!("{}::{address}\n", listener.name))
            });
            text(StatusCode::OK, lines.collect())
        }
        Some("json") => {
            let address = |address: &std::net::SocketAddr| {
                let (ip, port) = (address.ip().to_string(), address.port());
                json!({ "socket_address": { "address": ip, "port_value": port } })
            };
            let statuses: Vec<Value> = listeners
                .iter()
                .map(|listener| {
                    let mut addresses = listener.addresses.iter().map(address);
                    json!({
                        "name": listener.name,
                        "local_address": addresses.next(),
                        "additional_local_addresses": addresses.collect::<Vec<_>>(),
                    })
                })
                .collect();
            json(&json!({ "listener_statuses": statuses }))
        }
        Some(_) => bad_request("format is text or json"),
    }
}

/// Percent-encoded parameters, of which `header` may come several times.
fn policy_explain(query: &Query<'_>, state: &AdminState) -> Response<Body> {
    let as_text = match query.value("format") {
        None | Some("json") => false,
        Some("text") => true,
        Some(_) => return bad_request("format is text or json"),
    };
    let question: Vec<_> = query.0.iter().copied().filter(|(name, _)| *name != "format").collect();
    match Asked::from_query(&question).and_then(|asked| state.views.explain(&asked)) {
        Ok(explained) if as_text => text(StatusCode::OK, explained.text()),
        Ok(explained) => json(&explained.json()),
        Err(why) => bad_request(&why),
    }
}

fn logging(query: &Query<'_>, state: &AdminState) -> Response<Body> {
    let Some(level) = query.value("level") else {
        return bad_request("say ?level=off|error|warn|info|debug|trace");
    };
    // Words of Envoy's that are not ours.
    let level = match level {
        "critical" => "error",
        "warning" => "warn",
        level => level,
    };
    match state.actions.set_log_level(level) {
        Ok(()) => text(StatusCode::OK, format!("log level: {level}\n")),
        Err(why) => bad_request(&why),
    }
}

fn clusters(query: &Query<'_>, state: &AdminState) -> Response<Body> {
    let names = state.views.clusters();
    match query.value("format") {
        None | Some("text") => {
            text(StatusCode::OK, names.iter().map(|name| format!("{name}::observability_name::{name}\n")).collect())
        }
        Some("json") => {
            let statuses = names.iter().map(|name| json!({ "name": name, "added_via_api": true }));
            json(&json!({ "cluster_statuses": statuses.collect::<Value>() }))
        }
        Some(_) => bad_request("format is text or json"),
    }
}

fn tenants(query: &Query<'_>, state: &AdminState) -> Response<Body> {
    match query.only(&["endpoints"]).and_then(|()| query.flag("endpoints")) {
        Ok(endpoints) => json(&state.views.tenants(endpoints)),
        Err(why) => bad_request(&why),
    }
}

fn config_dump(query: &Query<'_>, state: &AdminState) -> Response<Body> {
    match config_dump::dump(query, &state.node, state.views.config_dump()) {
        Ok(dump) => json(&dump),
        Err(error @ DumpError::BadQuery(_)) => bad_request(&error.to_string()),
        Err(error @ DumpError::NoSuchResource(_)) => text(StatusCode::NOT_FOUND, format!("{error}\n")),
    }
}

fn stats<B>(request: &Request<B>, query: &Query<'_>, state: &AdminState) -> Response<Body> {
    match stats::Asked::read(query) {
        Ok(asked) => match asked.form {
            Form::Text => text(StatusCode::OK, asked.text(state.metrics.envoy_stats())),
            Form::Json => json(&asked.json(state.metrics.envoy_stats())),
            Form::Prometheus => metrics(request, state),
        },
        Err(why) => bad_request(&why),
    }
}

fn metrics<B>(request: &Request<B>, state: &AdminState) -> Response<Body> {
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::for_accept(accept);
    match state.metrics.encode(format) {
        Ok(scrape) => response(StatusCode::OK, format.content_type(), scrape),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")),
    }
}

fn flow_records(query: &Query<'_>, state: &AdminState) -> Response<Body> {
    match flows::body(query, state) {
        Ok(body) => with_type(StatusCode::OK, "application/x-ndjson", body),
        Err(FlowsError::BadQuery(why)) => bad_request(&why),
        Err(error @ FlowsError::TooManyFollowers) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

fn json(value: &Value) -> Response<Body> {
    response(StatusCode::OK, JSON, format!("{value:#}\n"))
}

fn bad_request(why: &str) -> Response<Body> {
    text(StatusCode::BAD_REQUEST, format!("{why}\n"))
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    response(status, TEXT, body)
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    with_type(status, content_type, Full::new(Bytes::from(body)).boxed())
}

fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The parameters of a request target, in the order sent, not percent-decoded.
pub(super) struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    fn parse(query: Option<&'a str>) -> Self {
        let parameters = query.unwrap_or_default().split('&').filter(|part| !part.is_empty());
        Self(parameters.map(|part| part.split_once('=').unwrap_or((part, ""))).collect())
    }

    /// The last value of `name`.
    pub(super) fn value(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// Whether `name` is set: `?name`, `?name=1` or `?name=true`.
    pub(super) fn flag(&self, name: &str) -> Result<bool, String> {
        match self.value(name) {
            None | Some("0" | "false") => Ok(false),
            Some("" | "1" | "true") => Ok(true),
            Some(_) => Err(format!("{name} is 0 or 1")),
        }
    }

    /// The number `name`, if it is given.
    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, String> {
        self.value(name).map(|value| value.parse().map_err(|_| format!("{name} is a whole number"))).transpose()
    }

    /// Refuses parameters other than these, so that a misspelt filter does not show everything.
    pub(super) fn only(&self, names: &[&str]) -> Result<(), String> {
        match self.0.iter().find(|(key, _)| !names.contains(key)) {
            Some((key, _)) => Err(format!("unknown parameter {key}; there are: {}", names.join(", "))),
            None => Ok(()),
        }
    }
}
