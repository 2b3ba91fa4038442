//! In front of a server: leads the methods of single types to its aggregated one, and tells of each request.
//!
//! A stream of one type differs from an aggregated stream by its path alone, and the servers have paths for Envoy's types
//! only. What a stream carries is not touched.

use std::task::{Context, Poll};

use data_plane_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures_util::TryStreamExt as _;
use hyper::{Body, Request, Uri};
use prost::Message as _;
use serde_json::{Value, json};
use tower::{Layer, Service};

use crate::tell;

const AGGREGATED: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/";

/// Which of a service's two methods is led on: `Stream` or `Delta`. Others meet a server that does not implement them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire(pub(crate) &'static str);

impl<S> Layer<S> for Wire {
    type Service = Heard<S>;

    fn layer(&self, server: S) -> Heard<S> {
        Heard { kind: self.0, server }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Heard<S> {
    kind: &'static str,
    server: S,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Heard<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.server.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let method = path.rsplit('/').next().unwrap_or_default();
        if method.starts_with(self.kind) {
            let to = format!("{AGGREGATED}{}AggregatedResources", self.kind);
            parts.uri = to.parse::<Uri>().expect("it is a path");
        }
        let mut requests = Requests { path, buffered: Vec::new(), incremental: self.kind == "Delta" };
        let body = Body::wrap_stream(body.inspect_ok(move |bytes| requests.hear(bytes)));
        self.server.call(Request::from_parts(parts, body))
    }
}

/// Messages of one stream, as they come in pieces.
struct Requests {
    path: String,
    buffered: Vec<u8>,
    incremental: bool,
}

impl Requests {
    /// Takes what came next. Each message has a flag and its length, four bytes, before it (gRPC over HTTP/2, "Requests").
    fn hear(&mut self, bytes: &[u8]) {
        self.buffered.extend_from_slice(bytes);
        while let Some((head, rest)) = self.buffered.split_first_chunk::<5>() {
            let [_, a, b, c, d] = *head;
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if rest.len() < length {
                return;
            }
            tell(&self.event(&rest[..length]));
            self.buffered.drain(..5 + length);
        }
    }

    fn event(&self, message: &[u8]) -> Value {
        let (type_url, version, nonce, error) = if self.incremental {
            match DeltaDiscoveryRequest::decode(message) {
                Ok(request) => (request.type_url, String::new(), request.response_nonce, request.error_detail),
                Err(error) => return json!({"event": "error", "why": error.to_string()}),
            }
        } else {
            match DiscoveryRequest::decode(message) {
                Ok(request) => (request.type_url, request.version_info, request.response_nonce, request.error_detail),
                Err(error) => return json!({"event": "error", "why": error.to_string()}),
            }
        };
        let error = error.map(|status| status.message);
        json!({
            "event": "request", "method": self.path, "type_url": type_url, "version": version, "nonce": nonce,
            "error": error,
        })
    }
}
