//! gRPC over HTTP/2 without TLS, on a Unix or TCP socket. One connection per call.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::stream::StreamExt as _;
use http::Uri;
use http::uri::PathAndQuery;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use super::heard::Heard;
use super::{Call, Transport, TransportError};
use crate::Address;

/// How much the peer may send before it hears from us: most nodes' whole policy, so that a push is one way and not several
/// rounds. Messages are collected whole anyway, so this costs no memory.
const WINDOW: u32 = 16 << 20;

/// Largest HTTP/2 frame taken from the peer, in bytes.
const FRAME: u32 = 1 << 20;

/// The transport that real control planes are reached by.
///
/// Each call has a connection of its own: the calls of a client are few and live for ever, and a peer that stops
/// reading one of them, or a response of 100 MB on one, then cannot hold up another through shared flow control.
/// No HTTP/2 pings: servers written with grpc-go end connections that ping an idle stream more often than every five
/// minutes. A dead peer shows on a Unix socket at once, and on TCP through the kernel's keepalive.
#[derive(Clone, Debug)]
pub struct GrpcTransport {
    address: Address,
    max_message_bytes: usize,
}

impl GrpcTransport {
    /// A transport to `address` that takes messages up to `max_message_bytes`.
    #[must_use]
    pub fn new(address: Address, max_message_bytes: usize) -> Self {
        Self { address, max_message_bytes }
    }

    async fn connect(&self) -> Result<Connection, TransportError> {
        match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| self.connect_error(&error))?;
                self.handshake(stream).await
            }
            Address::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await.map_err(|error| self.connect_error(&error))?;
                let keepalive = TcpKeepalive::new()
                    .with_time(Duration::from_secs(30))
                    .with_interval(Duration::from_secs(10))
                    .with_retries(3);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(|error| self.connect_error(&error))?;
                stream.set_nodelay(true).map_err(|error| self.connect_error(&error))?;
                self.handshake(stream).await
            }
        }
    }

    async fn handshake<S>(&self, stream: S) -> Result<Connection, TransportError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, heard) = Heard::new(stream);
        let (sender, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.handshake_error(chain(&error)))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(driver);
        let spoke = heard.await.is_ok();
        // A first frame that is none has ended the driver by now, and only the driver knows what was wrong with it.
        let ended = if spoke { tasks.try_join_next() } else { tasks.join_next().await };
        match ended {
            Some(Ok(Err(error))) => Err(self.handshake_error(chain(&error))),
            Some(_) => Err(self.handshake_error("connection closed before the first frame".to_owned())),
            None => Ok(Connection { sender, tasks }),
        }
    }

    fn connect_error(&self, error: &std::io::Error) -> TransportError {
        TransportError::Connect { address: self.address.to_string(), reason: error.to_string() }
    }

    fn handshake_error(&self, reason: String) -> TransportError {
        TransportError::Handshake { address: self.address.to_string(), reason }
    }
}

impl Transport for GrpcTransport {
    async fn open(&self, path: &'static str, first: Bytes) -> Result<Call, TransportError> {
        let Connection { sender, tasks } = self.connect().await?;
        let (requests, outgoing) = mpsc::channel(1);
        // The first message travels with the call: a server may hold back its response headers until it has read one.
        let outgoing = tokio_stream::once(first).chain(ReceiverStream::new(outgoing));
        let service = tower::service_fn(move |request| {
            let mut sender = sender.clone();
            async move { sender.send_request(request).await }
        });
        let mut grpc = tonic::client::Grpc::with_origin(service, Uri::from_static("http://localhost"))
            .max_decoding_message_size(self.max_message_bytes);
        let path = PathAndQuery::from_static(path);
        // Response headers may come with the first message only, so they are awaited as part of the stream.
        let call = async move { grpc.streaming(tonic::Request::new(outgoing), path, BytesCodec).await };
        let responses = futures_util::stream::once(call).flat_map(|opened| match opened {
            Ok(response) => response.into_inner().boxed(),
            Err(status) => futures_util::stream::iter([Err(status)]).boxed(),
        });
        let responses = responses.map(move |message| {
            let _alive = &tasks; // the connection lives as long as its call
            message.map_err(|status| call_error(&status))
        });
        Ok(Call { requests, responses: responses.boxed() })
    }
}

/// An established connection and the task that moves its bytes; dropping it closes the connection.
struct Connection {
    sender: SendRequest<Body>,
    tasks: JoinSet<hyper::Result<()>>,
}

fn call_error(status: &Status) -> TransportError {
    let mut message = status.message().to_owned();
    if let Some(source) = std::error::Error::source(status) {
        message = format!("{message}: {}", chain(source));
    }
    match status.code() {
        // Not said by the peer: the connection broke, which gRPC's list of status codes calls UNAVAILABLE.
        Code::Unknown if std::error::Error::source(status).is_some() => {
            TransportError::Status { code: "Unavailable".to_owned(), message }
        }
        Code::Unimplemented => TransportError::Unimplemented { message },
        code => TransportError::Status { code: format!("{code:?}"), message },
    }
}

/// An error with everything underneath it; hyper's own text does not include its cause.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Passes messages through undecoded, so that one transport serves every variant of the protocol and an undecodable
/// message is reported by the layer that knows what it should have been.
#[derive(Clone, Copy, Debug)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}
