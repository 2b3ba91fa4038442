//! State of the world: each request says everything, and a later one stands for those before it.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use envoy_types::pb::google::rpc::Status as ErrorDetail;

/// What has been accepted on the stream, and what the last response was.
#[derive(Debug)]
pub(super) struct StateOfTheWorld {
    type_url: &'static str,
    /// Of the last response that was accepted; empty before.
    version: String,
    /// Of the last response that was answered.
    nonce: String,
    /// Why that response was refused, until that is said.
    error: Option<ErrorDetail>,
}

impl StateOfTheWorld {
    pub(super) const fn new(type_url: &'static str) -> Self {
        Self { type_url, version: String::new(), nonce: String::new(), error: None }
    }

    pub(super) fn accept(&mut self, version: String, nonce: String) {
        *self = Self { version, nonce, ..Self::new(self.type_url) };
    }

    pub(super) fn refuse(&mut self, nonce: String, detail: ErrorDetail) {
        self.nonce = nonce;
        self.error = Some(detail);
    }

    pub(super) fn request(&mut self, node: Option<Node>, names: Option<&BTreeSet<String>>) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: self.version.clone(),
            node,
            resource_names: names.into_iter().flatten().cloned().collect(),
            type_url: self.type_url.to_owned(),
            response_nonce: self.nonce.clone(),
            error_detail: self.error.take(),
            ..DiscoveryRequest::default()
        }
    }
}
