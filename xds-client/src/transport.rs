//! How messages reach the peer. The protocol above sees only opened calls and encoded messages.

mod grpc;
mod heard;

use std::future::Future;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;

pub use grpc::GrpcTransport;

/// Opens streaming calls to the control plane.
pub trait Transport: Send + Sync + 'static {
    /// Starts the bidirectional call `path` (`/package.Service/Method`) with `first` as its first message, and returns
    /// once the peer has shown that it speaks the protocol. Whether it serves the method shows later, on
    /// [`Call::responses`]: a server owes no answer before it has something to send.
    ///
    /// # Errors
    /// The peer could not be reached.
    fn open(&self, path: &'static str, first: Bytes) -> impl Future<Output = Result<Call, TransportError>> + Send;
}

/// An open call. Dropping it ends the call and closes what was opened for it.
pub struct Call {
    /// Encoded messages to the peer. One slot: at most one request is ever outstanding.
    pub requests: mpsc::Sender<Bytes>,
    /// Encoded messages from the peer. Ends with an error, or without one when the peer closed the call with status OK.
    pub responses: BoxStream<'static, Result<Bytes, TransportError>>,
}

/// Why a call could not be opened, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// No connection.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// Connected, but the peer is not an HTTP/2 server, or closed the connection at once.
    #[error("{address} does not speak HTTP/2: {reason}")]
    Handshake {
        /// Where to.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The peer does not serve the method.
    #[error("the control plane does not serve this method (gRPC UNIMPLEMENTED): {message}")]
    Unimplemented {
        /// The peer's message.
        message: String,
    },
    /// The call ended with another status, or was cut.
    #[error("gRPC {code}: {message}")]
    Status {
        /// Name of the status code.
        code: String,
        /// The peer's message, or what broke the connection.
        message: String,
    },
}
