//! Incremental: each request says what is different. A nonce is sent once, with the answer to its response.
//!
//! `initial_resource_versions` stays empty: a peer that goes by it sends differences only, a Cilium agent ignores the
//! versions in it, and the first accepted response of a stream replaces everything. Resources that come again with the
//! bytes that they had cost nothing, so there is nothing to win (`spec/cilium-filter.md` section 1.10).

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::google::rpc::Status as ErrorDetail;

/// What the peer has been told on the stream.
#[derive(Debug)]
pub(super) struct Incremental {
    type_url: &'static str,
    subscribed: BTreeSet<String>,
    /// Of a response whose answer is due.
    nonce: String,
    /// Why that response is refused.
    error: Option<ErrorDetail>,
}

impl Incremental {
    pub(super) const fn new(type_url: &'static str) -> Self {
        Self { type_url, subscribed: BTreeSet::new(), nonce: String::new(), error: None }
    }

    pub(super) fn accept(&mut self, nonce: String) {
        self.nonce = nonce;
        self.error = None;
    }

    pub(super) fn refuse(&mut self, nonce: String, detail: ErrorDetail) {
        self.nonce = nonce;
        self.error = Some(detail);
    }

    /// An empty first subscription means everything.
    pub(super) fn request(&mut self, node: Option<Node>, names: Option<&BTreeSet<String>>) -> DeltaDiscoveryRequest {
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        if let Some(names) = names {
            subscribe = names.difference(&self.subscribed).cloned().collect();
            unsubscribe = self.subscribed.difference(names).cloned().collect();
            self.subscribed = names.clone();
        }
        DeltaDiscoveryRequest {
            node,
            type_url: self.type_url.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            response_nonce: std::mem::take(&mut self.nonce),
            error_detail: self.error.take(),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_nonce_is_sent_once_and_names_as_differences() {
        let mut session = Incremental::new("type");
        let first = session.request(None, Some(&names(&["a", "b"])));
        assert_eq!(
            (first.resource_names_subscribe, first.response_nonce),
            (vec!["a".into(), "b".into()], String::new())
        );
        assert!(first.initial_resource_versions.is_empty());

        session.accept("1".into());
        let ack = session.request(None, Some(&names(&["a", "b"])));
        assert_eq!(
            ack,
            DeltaDiscoveryRequest { type_url: "type".into(), response_nonce: "1".into(), ..Default::default() }
        );

        let other = session.request(None, Some(&names(&["b", "c"])));
        assert_eq!((other.response_nonce, other.error_detail), (String::new(), None));
        assert_eq!(other.resource_names_subscribe, ["c"]);
        assert_eq!(other.resource_names_unsubscribe, ["a"]);

        session.refuse("2".into(), ErrorDetail { message: "bad".into(), ..Default::default() });
        let nack = session.request(None, Some(&names(&["b", "c", "d"])));
        assert_eq!((nack.response_nonce.as_str(), nack.error_detail.unwrap().message.as_str()), ("2", "bad"));
        assert_eq!(nack.resource_names_subscribe, ["d"]);
        assert_eq!(session.request(None, None).error_detail, None);
    }

    #[test]
    fn everything_is_wanted_by_naming_nothing() {
        let request = Incremental::new("type").request(None, None);
        assert_eq!(request, DeltaDiscoveryRequest { type_url: "type".into(), ..Default::default() });
    }
}
