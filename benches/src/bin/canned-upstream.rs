//! The upstream of the side-by-side runs and of the neighbours: answers 64 bytes, fast enough not to be what is measured.
//!
//! HTTP/1.1 is scanned by hand, because a full parser would cost as much as the proxies under test:
//! - any request without a body: 200 and 64 bytes; pipelining works
//! - a request with `content-length`: the body is read and dropped first
//! - `GET /bytes/N`: N bytes
//! - `GET /slow/MS`: 64 bytes after so many milliseconds
//!
//! HTTP/2 is hyper's, for want of a cheaper one; the same paths. HTTP1_LISTEN answers it too, by the preface.
//!
//! Usage: `canned-upstream HTTP1_LISTEN HTTP2_LISTEN`

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

const BODY: [u8; 64] = [b'x'; 64];
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: ";
const CHUNK: usize = 64 * 1024;
static CHUNK_OF_X: [u8; CHUNK] = [b'x'; CHUNK];
/// How HTTP/2 begins, as far as no HTTP/1 request does.
const PREFACE: &[u8] = b"PRI * HTTP/2";
/// Longest time that `/slow/` waits.
const MAX_SLOW_MS: u64 = 600_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [http1, http2] = arguments.as_slice() else {
        bail!("usage: canned-upstream HTTP1_LISTEN HTTP2_LISTEN");
    };
    let http1: SocketAddr = http1.parse().context("HTTP1_LISTEN")?;
    let http2: SocketAddr = http2.parse().context("HTTP2_LISTEN")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        tokio::try_join!(serve_http1(http1), serve_http2(http2))?;
        Ok(())
    })
}

async fn serve_http1(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let canned: Bytes = [format!("{HEAD}{}\r\n\r\n", BODY.len()).as_bytes(), &BODY].concat().into();
    loop {
        let stream = listener.accept().await?.0;
        stream.set_nodelay(true)?;
        let canned = canned.clone();
        spawn_local(async move {
            let mut first = [0; PREFACE.len()];
            // Proxies reset idle connections as they please; that is theirs to report.
            match stream.peek(&mut first).await {
                Ok(count) if count > 0 && first[..count] == PREFACE[..count] => answer_http2(stream).await,
                _ => drop(answer_http1(stream, &canned).await),
            }
        });
    }
}

async fn answer_http1(mut stream: TcpStream, canned: &[u8]) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut start = 0;
        while let Some(length) = find(&buffer[start..filled], b"\r\n\r\n") {
            let head = &buffer[start..start + length];
            let bytes = head.strip_prefix(b"GET /bytes/").map(leading_number);
            let slow = head.strip_prefix(b"GET /slow/").map(leading_number);
            let body = content_length(head);
            start += length + 4;
            let buffered = usize::try_from(body).unwrap_or(usize::MAX).min(filled - start);
            start += buffered;
            drop_body(&mut stream, body - buffered as u64).await?;
            if let Some(ms) = slow {
                sleep(Duration::from_millis(ms.min(MAX_SLOW_MS))).await;
            }
            match bytes {
                Some(count) => send_bytes(&mut stream, count).await?,
                None => stream.write_all(canned).await?,
            }
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The `content-length` of a head, 0 without one. Proxies write the name in any case they like.
fn content_length(head: &[u8]) -> u64 {
    const NAME: &[u8] = b"content-length:";
    head.split(|byte| *byte == b'\n')
        .find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))
        .map_or(0, |line| leading_number(line[NAME.len()..].trim_ascii_start()))
}

fn leading_number(text: &[u8]) -> u64 {
    text.iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}

async fn drop_body(stream: &mut TcpStream, mut left: u64) -> std::io::Result<()> {
    let mut sink = vec![0; if left == 0 { 0 } else { CHUNK }];
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        left -= stream.read_exact(&mut sink[..want]).await? as u64;
    }
    Ok(())
}

async fn send_bytes(stream: &mut TcpStream, mut left: u64) -> std::io::Result<()> {
    stream.write_all(format!("{HEAD}{left}\r\n\r\n").as_bytes()).await?;
    let chunk = vec![b'x'; CHUNK];
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_all(&chunk[..count]).await?;
        left -= count as u64;
    }
    Ok(())
}

async fn serve_http2(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let stream = listener.accept().await?.0;
        stream.set_nodelay(true)?;
        spawn_local(answer_http2(stream));
    }
}

async fn answer_http2(stream: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let path = request.uri().path().as_bytes();
        if let Some(ms) = path.strip_prefix(b"/slow/").map(leading_number) {
            sleep(Duration::from_millis(ms.min(MAX_SLOW_MS))).await;
        }
        let left = path.strip_prefix(b"/bytes/").map_or(BODY.len() as u64, leading_number);
        Ok::<_, Infallible>(Response::new(Letters { left }))
    });
    // A load generator that ends resets all its streams at once, through the proxy; that is no attack here.
    let connection = http2::Builder::new(Local)
        .max_pending_accept_reset_streams(10_000)
        .max_local_error_reset_streams(None)
        .max_concurrent_streams(10_000)
        .serve_connection(TokioIo::new(stream), service);
    drop(connection.await);
}

/// A body of so many bytes.
struct Letters {
    left: u64,
}

impl Body for Letters {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let count = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
        self.left -= count as u64;
        Poll::Ready((count > 0).then(|| Ok(Frame::data(Bytes::from_static(&CHUNK_OF_X[..count])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Runs hyper's own tasks on this thread.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}
