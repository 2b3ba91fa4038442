//! Responses as they come, without copying what is in them: most resources of a response are those of the one before, and
//! are told by their bytes.
//!
//! Fields that the client has no use for are left out; protobuf skips them.

use bytes::Bytes;
use prost::Message;

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RawAny {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) type_url: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RawResource {
    #[prost(message, optional, tag = "2")]
    pub(crate) resource: Option<RawAny>,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
}

/// `envoy.service.discovery.v3.DiscoveryResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RawResponse {
    #[prost(string, tag = "1")]
    pub(crate) version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<RawAny>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RawDeltaResponse {
    #[prost(string, tag = "1")]
    pub(crate) system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<RawResource>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(crate) removed_resources: Vec<String>,
}

impl RawAny {
    /// The type URL for people.
    pub(crate) fn type_name(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.type_url)
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};
    use envoy_types::pb::google::protobuf::Any;

    use super::*;

    fn any() -> Any {
        Any { type_url: "t".into(), value: vec![1, 2] }
    }

    fn raw_any() -> RawAny {
        RawAny { type_url: Bytes::from_static(b"t"), value: Bytes::from_static(&[1, 2]) }
    }

    #[test]
    fn a_response_is_read_as_envoy_writes_it() {
        let response = DiscoveryResponse {
            version_info: "v".into(),
            resources: vec![any()],
            canary: true,
            type_url: "u".into(),
            nonce: "n".into(),
            control_plane: Some(Default::default()),
            ..DiscoveryResponse::default()
        };
        let expected = RawResponse {
            version_info: "v".into(),
            resources: vec![raw_any()],
            type_url: "u".into(),
            nonce: "n".into(),
        };
        assert_eq!(RawResponse::decode(Bytes::from(response.encode_to_vec())), Ok(expected));
    }

    #[test]
    fn an_incremental_response_is_read_as_envoy_writes_it() {
        let resource = Resource {
            name: "a".into(),
            aliases: vec!["b".into()],
            version: "7".into(),
            resource: Some(any()),
            ttl: Some(Default::default()),
            ..Resource::default()
        };
        let response = DeltaDiscoveryResponse {
            system_version_info: "v".into(),
            resources: vec![resource],
            type_url: "u".into(),
            removed_resources: vec!["c".into()],
            nonce: "n".into(),
            ..DeltaDiscoveryResponse::default()
        };
        let expected = RawDeltaResponse {
            system_version_info: "v".into(),
            resources: vec![RawResource { resource: Some(raw_any()), name: "a".into() }],
            type_url: "u".into(),
            nonce: "n".into(),
            removed_resources: vec!["c".into()],
        };
        assert_eq!(RawDeltaResponse::decode(Bytes::from(response.encode_to_vec())), Ok(expected));
    }
}
