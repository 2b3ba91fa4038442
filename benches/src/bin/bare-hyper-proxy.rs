//! The peer that Tollgate's cost per request is compared with: what hyper alone costs as a proxy.
//!
//! One current-thread runtime, local tasks, one pool of upstream connections. No policy, no flow record, no metrics,
//! no limits, no canonicalisation: nothing may be added here, or the comparison is worth nothing.
//!
//! Usage: `bare-hyper-proxy http1|http2 LISTEN UPSTREAM`

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1 as client1, http2 as client2};
use hyper::server::conn::{http1 as server1, http2 as server2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

type Sender = client1::SendRequest<Incoming>;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [protocol, listen, upstream] = arguments.as_slice() else {
        bail!("usage: bare-hyper-proxy http1|http2 LISTEN UPSTREAM");
    };
    let listen: SocketAddr = listen.parse().context("LISTEN")?;
    let upstream: SocketAddr = upstream.parse().context("UPSTREAM")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match protocol.as_str() {
        "http1" => LocalSet::new().block_on(&runtime, serve_http1(listen, upstream)),
        "http2" => LocalSet::new().block_on(&runtime, serve_http2(listen, upstream)),
        other => bail!("protocol {other}: http1 or http2 is expected"),
    }
}

async fn serve_http1(listen: SocketAddr, upstream: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let pool = Rc::new(Pool { upstream, idle: RefCell::default() });
    loop {
        let stream = listener.accept().await?.0;
        stream.set_nodelay(true)?;
        let pool = Rc::clone(&pool);
        spawn_local(async move {
            let service = service_fn(|request| forward_http1(Rc::clone(&pool), request));
            // A client that goes away is no event worth a word here.
            drop(server1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn forward_http1(pool: Rc<Pool>, request: Request<Incoming>) -> anyhow::Result<Response<Pooled>> {
    let mut sender = pool.take().await?;
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| Pooled { body, sender: Some(sender), pool }))
}

/// Idle upstream connections of this thread.
struct Pool {
    upstream: SocketAddr,
    idle: RefCell<Vec<Sender>>,
}

impl Pool {
    async fn take(&self) -> anyhow::Result<Sender> {
        loop {
            let idle = self.idle.borrow_mut().pop();
            let Some(mut sender) = idle else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(self.upstream).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = client1::handshake(TokioIo::new(stream)).await?;
        spawn_local(connection);
        Ok(sender)
    }
}

/// A response body that gives its connection back when it ends.
struct Pooled {
    body: Incoming,
    sender: Option<Sender>,
    pool: Rc<Pool>,
}

impl Body for Pooled {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take()
            && self.body.is_end_stream()
        {
            self.pool.idle.borrow_mut().push(sender);
        }
    }
}

async fn serve_http2(listen: SocketAddr, upstream: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let shared = Rc::new(Shared { upstream, sender: RefCell::default() });
    loop {
        let stream = listener.accept().await?.0;
        stream.set_nodelay(true)?;
        let shared = Rc::clone(&shared);
        spawn_local(async move {
            let service = service_fn(|request| {
                let shared = Rc::clone(&shared);
                async move { anyhow::Ok(shared.sender().await?.send_request(request).await?) }
            });
            // As above: clients come and go.
            drop(server2::Builder::new(Local).serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// The one HTTP/2 connection to the upstream, made anew when it has ended.
struct Shared {
    upstream: SocketAddr,
    sender: RefCell<Option<client2::SendRequest<Incoming>>>,
}

impl Shared {
    async fn sender(&self) -> anyhow::Result<client2::SendRequest<Incoming>> {
        if let Some(sender) = self.sender.borrow().as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TcpStream::connect(self.upstream).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            client2::Builder::new(Local).timer(TokioTimer::new()).handshake(TokioIo::new(stream)).await?;
        spawn_local(connection);
        self.sender.replace(Some(sender.clone()));
        Ok(sender)
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
