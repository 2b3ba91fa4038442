//! The requests of one type on one state-of-the-world stream. Pure: knows what was accepted, does no IO.

use envoy_types::pb::envoy::config::core::v3::Node as WireNode;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use envoy_types::pb::google::rpc::Status as ErrorDetail;

use crate::{Node, Rejection};

/// gRPC code of a refused update: `INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

/// Longest `error_detail` that is sent. Agents log it and hand it on to the user, and an excerpt names the place.
const MAX_ERROR_DETAIL_BYTES: usize = 4096;

/// Acknowledgement state of one type. Lives as long as its stream: versions of an earlier stream mean nothing to a
/// control plane that may have restarted.
#[derive(Debug)]
pub(crate) struct Session {
    type_url: &'static str,
    accepted: Option<String>,
    /// Of the last response that was answered.
    nonce: String,
}

impl Session {
    pub(crate) const fn new(type_url: &'static str) -> Self {
        Self { type_url, accepted: None, nonce: String::new() }
    }

    /// Whether a response was accepted on this stream.
    pub(crate) const fn has_accepted(&self) -> bool {
        self.accepted.is_some()
    }

    /// Version of the last response that was accepted on this stream; empty before.
    pub(crate) fn accepted_version(&self) -> &str {
        self.accepted.as_deref().unwrap_or_default()
    }

    /// The first request: who we are, what is wanted (no names: everything), nothing known.
    pub(crate) fn subscribe(&self, node: &Node, names: Vec<String>) -> DiscoveryRequest {
        DiscoveryRequest { node: Some(wire_node(node)), ..self.request(names) }
    }

    /// Accepts the response with this version.
    pub(crate) fn acknowledge(&mut self, version: String, nonce: String, names: Vec<String>) -> DiscoveryRequest {
        self.accepted = Some(version);
        self.nonce = nonce;
        self.request(names)
    }

    /// Refuses the response with this nonce; the version stays the last accepted one.
    pub(crate) fn refuse(&mut self, nonce: String, rejection: &Rejection, names: Vec<String>) -> DiscoveryRequest {
        self.nonce = nonce;
        let mut message = rejection.to_string();
        message.truncate(message.floor_char_boundary(MAX_ERROR_DETAIL_BYTES));
        let error_detail = ErrorDetail { code: INVALID_ARGUMENT, message, details: Vec::new() };
        DiscoveryRequest { error_detail: Some(error_detail), ..self.request(names) }
    }

    /// Wants other names, and says nothing else new.
    pub(crate) fn request(&self, resource_names: Vec<String>) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: self.accepted.clone().unwrap_or_default(),
            type_url: self.type_url.to_owned(),
            response_nonce: self.nonce.clone(),
            resource_names,
            ..DiscoveryRequest::default()
        }
    }
}

fn wire_node(node: &Node) -> WireNode {
    WireNode {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        user_agent_name: node.user_agent.clone(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(node.user_agent_version.clone())),
        ..WireNode::default()
    }
}
