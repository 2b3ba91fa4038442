//! Asks the admin endpoint of a running proxy, over its Unix socket or TCP.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::ListenAddress;

/// Time to connect and to get the head of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer read as a whole.
const MAX_ANSWER: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminError {
    #[error("admin {address}: cannot connect: {source}; is the proxy running, and is this its admin.address?")]
    Connect { address: ListenAddress, source: io::Error },
    #[error(
        "admin {address}: no answer within {} s; the proxy is busy or this is not its admin endpoint",
        PATIENCE.as_secs()
    )]
    Silent { address: ListenAddress },
    #[error("admin {address}: {source}; is this the admin endpoint of a Tollgate?")]
    Http { address: ListenAddress, source: hyper::Error },
    #[error("admin {address}: the answer breaks off or is too long: {reason}")]
    Body { address: ListenAddress, reason: String },
    #[error("admin {address}: {path} answered {status}: {text}")]
    Status { address: ListenAddress, path: String, status: StatusCode, text: String },
}

/// Sends `GET path` and reads the whole answer.
///
/// # Errors
/// Nobody listens, the peer is silent or no HTTP server, or the status is not 200.
pub(super) async fn get(address: &ListenAddress, path: &str) -> Result<Bytes, AdminError> {
    let response = open(address, path).await?;
    body(address, response).await
}

/// Sends `GET path` and returns the answer while its body is still coming.
///
/// # Errors
/// As [`get`].
pub(super) async fn open(address: &ListenAddress, path: &str) -> Result<Response<Incoming>, AdminError> {
    let silent = || AdminError::Silent { address: address.clone() };
    let exchange = async {
        let failed = |source| AdminError::Connect { address: address.clone(), source };
        match address {
            ListenAddress::Unix(socket) => {
                send(address, path, UnixStream::connect(socket).await.map_err(failed)?).await
            }
            ListenAddress::Tcp(peer) => send(address, path, TcpStream::connect(peer).await.map_err(failed)?).await,
        }
    };
    let response = tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| silent())??;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response);
    }
    let text = tokio::time::timeout(PATIENCE, body(address, response)).await.map_err(|_| silent())??;
    Err(AdminError::Status {
        address: address.clone(),
        path: path.to_owned(),
        status,
        text: String::from_utf8_lossy(&text).trim().replace('\n', " "),
    })
}

async fn send<S>(address: &ListenAddress, path: &str, stream: S) -> Result<Response<Incoming>, AdminError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |source| AdminError::Http { address: address.clone(), source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Its end shows as the end of the body.
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    // The paths are constants of this crate with numbers and words in their queries.
    *request.uri_mut() = path.parse().unwrap_or_default();
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("tollgate"));
    sender.send_request(request).await.map_err(failed)
}

async fn body(address: &ListenAddress, response: Response<Incoming>) -> Result<Bytes, AdminError> {
    match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(AdminError::Body { address: address.clone(), reason: error.to_string() }),
    }
}
