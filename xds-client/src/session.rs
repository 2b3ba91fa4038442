//! The requests of one type on one stream. Pure: knows what was accepted, does no IO.
//!
//! A session lives as long as its stream: versions and nonces of an earlier stream mean nothing to a control plane that
//! may have restarted.

mod incremental;
mod state_of_the_world;

use std::collections::BTreeSet;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node as WireNode;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::google::rpc::Status as ErrorDetail;
use prost::Message as _;

use self::incremental::Incremental;
use self::state_of_the_world::StateOfTheWorld;
use crate::{Node, Rejection, Service, Variant};

/// gRPC code of a refused update: `INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

/// Longest `error_detail` that is sent. Agents log it and hand it on to the user, and an excerpt names the place.
const MAX_ERROR_DETAIL_BYTES: usize = 4096;

/// The type's side of one stream: what the next request says.
#[derive(Debug)]
pub(crate) struct Session {
    protocol: Protocol,
    accepted: bool,
    refused: bool,
    accepted_after_refusal: bool,
}

#[derive(Debug)]
enum Protocol {
    StateOfTheWorld(StateOfTheWorld),
    Incremental(Incremental),
}

impl Session {
    pub(crate) fn new(variant: Variant, service: &Service) -> Self {
        let protocol = match variant {
            Variant::Split | Variant::Ads => Protocol::StateOfTheWorld(StateOfTheWorld::new(service.type_url)),
            Variant::DeltaSplit => Protocol::Incremental(Incremental::new(service.type_url)),
        };
        Self { protocol, accepted: false, refused: false, accepted_after_refusal: false }
    }

    /// Whether a response was accepted on this stream.
    pub(crate) const fn has_accepted(&self) -> bool {
        self.accepted
    }

    /// Whether a response was refused on this stream.
    pub(crate) const fn has_refused(&self) -> bool {
        self.refused
    }

    /// Whether a response was accepted after another was refused.
    pub(crate) const fn has_accepted_after_refusal(&self) -> bool {
        self.accepted_after_refusal
    }

    /// The next request accepts the response with this version and nonce.
    pub(crate) fn accept(&mut self, version: String, nonce: String) {
        self.accepted = true;
        self.accepted_after_refusal |= self.refused;
        match &mut self.protocol {
            Protocol::StateOfTheWorld(session) => session.accept(version, nonce),
            Protocol::Incremental(session) => session.accept(nonce),
        }
    }

    /// The next request refuses the response with this nonce; the version stays the last accepted one.
    pub(crate) fn refuse(&mut self, nonce: String, rejection: &Rejection) {
        self.refused = true;
        let mut message = rejection.to_string();
        message.truncate(message.floor_char_boundary(MAX_ERROR_DETAIL_BYTES));
        let detail = ErrorDetail { code: INVALID_ARGUMENT, message, details: Vec::new() };
        match &mut self.protocol {
            Protocol::StateOfTheWorld(session) => session.refuse(nonce, detail),
            Protocol::Incremental(session) => session.refuse(nonce, detail),
        }
    }

    /// The next request: the answer that is due, if any, and the names wanted now (`None`: everything). The first one of
    /// a stream says who we are: `node`.
    pub(crate) fn request(&mut self, node: Option<&Node>, names: Option<&BTreeSet<String>>) -> Bytes {
        let node = node.map(wire_node);
        match &mut self.protocol {
            Protocol::StateOfTheWorld(session) => session.request(node, names).encode_to_vec().into(),
            Protocol::Incremental(session) => session.request(node, names).encode_to_vec().into(),
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
