//! One state-of-the-world stream, seen from the server. Pure: told what arrives and when, says what to send.
//!
//! The rules are those of a Cilium agent in split mode: nonce and version are the same decimal number, one response is
//! outstanding at most, and a refused version is not sent again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tollgate_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tonic::Status;

use super::event::{Event, ResourceType};
use super::published::State;

/// What is known of the proxy at the other end.
#[derive(Debug)]
pub(super) struct Conversation {
    kind: ResourceType,
    /// Node id of the first request.
    node: Option<String>,
    /// Names that are wanted; empty for all.
    names: BTreeSet<String>,
    /// Version and time of the response that is not answered yet.
    outstanding: Option<(u64, Instant)>,
    /// Version that was sent last; 0 for none.
    sent: u64,
}

impl Conversation {
    pub(super) fn new(kind: ResourceType) -> Self {
        Self { kind, node: None, names: BTreeSet::new(), outstanding: None, sent: 0 }
    }

    /// The proxy, once it has introduced itself.
    pub(super) fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Takes a request.
    ///
    /// # Errors
    /// The request breaks the protocol; the stream has to end with this status.
    pub(super) fn hear(&mut self, request: DiscoveryRequest, now: Instant) -> Result<Option<Event>, Status> {
        let r#type = self.kind;
        let wanted = r#type.type_url();
        if !request.type_url.is_empty() && request.type_url != wanted {
            return Err(Status::invalid_argument(format!("type_url {:?} on a stream of {wanted}", request.type_url)));
        }
        decimal("version_info", &request.version_info)?;
        let nonce = decimal("response_nonce", &request.response_nonce)?;
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        let Some(node) = self.node.clone() else {
            let node = request.node.map(|node| node.id).filter(|id| !id.is_empty());
            let node = node.ok_or_else(|| Status::invalid_argument("the first request of a stream needs node.id"))?;
            self.node = Some(node.clone());
            self.names = names;
            return Ok(Some(Event::StreamOpened { r#type, node }));
        };
        if names != self.names {
            self.names = names;
            self.sent = 0; // more may be wanted of a version that was sent already
        }
        let (version, nonce_text) = (request.version_info, request.response_nonce);
        let Some((_, sent_at)) = self.outstanding.take_if(|(outstanding, _)| *outstanding == nonce) else {
            return Ok(Some(Event::Stale { r#type, nonce: nonce_text, node }));
        };
        let latency_us = micros(now.saturating_duration_since(sent_at));
        Ok(Some(match request.error_detail {
            None => Event::Ack { r#type, version, nonce: nonce_text, node, latency_us },
            Some(detail) => Event::Nack { r#type, version, nonce: nonce_text, node, latency_us, error: detail.message },
        }))
    }

    /// The response that is due, if any, and its event.
    pub(super) fn due(&mut self, state: &State, now: Instant) -> Option<(DiscoveryResponse, Event)> {
        let node = self.node.clone()?;
        if self.outstanding.is_some() || state.version <= self.sent {
            return None;
        }
        self.sent = state.version;
        self.outstanding = Some((state.version, now));
        let wanted = |name: &String| self.names.is_empty() || self.names.contains(name);
        let resources: Vec<_> =
            state.resources.iter().filter(|(name, _)| wanted(name)).map(|(_, resource)| resource.clone()).collect();
        let version = state.version.to_string();
        let event = Event::Push {
            r#type: self.kind,
            version: state.version,
            nonce: version.clone(),
            node,
            resources: resources.len(),
        };
        let response = DiscoveryResponse {
            version_info: version.clone(),
            nonce: version,
            type_url: self.kind.type_url().to_owned(),
            resources,
            ..DiscoveryResponse::default()
        };
        Some((response, event))
    }
}

/// Reads a version or nonce; empty is 0, which no response has.
fn decimal(field: &str, text: &str) -> Result<u64, Status> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| Status::invalid_argument(format!("{field} {text:?} is not a decimal number")))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
