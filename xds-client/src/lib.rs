//! Generic xDS client: keeps subscriptions to a control plane alive and acknowledges what arrived; knows no policy.
//!
//! The rules that it keeps, whatever the peer does:
//! - A response is acknowledged only after its [`Handler`] returned, that is, after the new state is visible.
//! - A response is refused (NACK) only if it cannot be decoded or the handler rejects it. Nothing is forgotten then:
//!   the handler simply keeps what it had.
//! - A lost stream, a silent peer or a refused call never clears anything; reconnecting never ends.
//! - Every new stream starts from nothing (empty version, empty nonce), so that the peer sends everything again.
//!
//! Layers, from the wire inwards: [`Transport`] carries undecoded messages of one call; a stream shares it among the types
//! on it; a session per type builds requests and tracks what was accepted on the stream; a lane per type, which outlives
//! streams, finds what a response changes and gives it to its typed [`Handler`]. Above them one conductor chooses the
//! [`Variant`]. Only the transport does IO, so that the protocol is tested against a scripted peer with a paused clock.

mod accepted;
mod backoff;
mod client;
mod config;
mod handler;
mod interest;
mod lane;
mod resource;
mod service;
mod session;
mod status;
mod stream;
mod transport;
mod variant;
mod wire;

pub use backoff::Backoff;
pub use client::Client;
pub use config::{Address, ClientConfig, Node};
pub use handler::{Handler, Rejection, State, Update};
pub use resource::Resource;
pub use service::{
    CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, NETWORK_POLICY, NETWORK_POLICY_HOSTS, ROUTE_CONFIGURATION, SECRET,
    Service, TENANT,
};
pub use status::{Status, StreamStatus};
pub use transport::{Call, GrpcTransport, Transport, TransportError};
pub use variant::{Mode, Variant};
