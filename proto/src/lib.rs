//! Wire types: `cilium.*` and `tollgate.*` generated from the files under `proto/`, Envoy's from `envoy-types`.
//!
//! No logic lives here except reading and writing the JSON form of policies ([`json`], with [`nearest`] for what is
//! misspelt) and finding fields that this version does not know ([`unknown`], [`unread`]). What a message means is decided elsewhere.

pub mod json;
pub mod nearest;
pub mod type_url;
pub mod unknown;
pub mod unread;

/// Messages, enums, clients and servers of package `cilium`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, reason = "generated")]
#[allow(clippy::all, clippy::pedantic, clippy::use_self, reason = "generated")]
pub mod cilium {
    tonic::include_proto!("cilium");
}

/// Messages, enums, clients and servers of package `tollgate.tenant.v1`: Tollgate's own resource, see its `.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, reason = "generated")]
#[allow(clippy::all, clippy::pedantic, clippy::use_self, reason = "generated")]
pub mod tenant {
    tonic::include_proto!("tollgate.tenant.v1");
}

/// Envoy's messages (`envoy.config.core.v3` is `envoy::config::core::v3`).
pub use envoy_types::pb::envoy;
/// Google's messages: the well-known types in the form that [`envoy`] uses, and `google.rpc`.
pub use envoy_types::pb::google;
/// The messages that Envoy shares with other proxies.
pub use envoy_types::pb::xds;

/// Descriptors of the packages `cilium` and `tollgate.tenant.v1` and of what they import, as an encoded
/// `google.protobuf.FileDescriptorSet`. Messages that come from `stubs/` are incomplete in it.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
