//! The one who is measured: an open loop, because a client that waits for the slow answer before it asks again measures
//! its own patience.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::http1::{Connection, Shape, connect, word};
use crate::punctual::Timer;

/// Requests under way at most; further ones wait, and their wait counts.
const MAX_OPEN: usize = 512;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    target: SocketAddr,
    #[arg(long)]
    source: Option<IpAddr>,
    /// Requests per second.
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
    /// A request that is not answered so long after it was due has failed.
    #[arg(long, default_value = "5", value_parser = crate::seconds)]
    timeout: Duration,
    /// A new connection for each request.
    #[arg(long)]
    fresh: bool,
    /// All requests as streams of one HTTP/2 connection, which is opened anew when it fails.
    #[arg(long)]
    http2: bool,
    #[command(flatten)]
    shape: Shape,
}

struct Victim {
    options: Options,
    idle: RefCell<Vec<Connection>>,
    http2: Mutex<Option<SendRequest<Bytes>>>,
    places: Semaphore,
    /// Due time and latency in microseconds, and what came: a status or a word.
    samples: RefCell<Vec<Value>>,
}

/// Prints `{"samples": [[due_us, latency_us, outcome], …], "first_due": …, "held_up": [[from, until], …]}`; `outcome` is a status
/// or a word for why there is none, times are since the first was due, and that and the rest in seconds of the clock that all
/// processes read.
pub(crate) async fn run(options: Options) -> anyhow::Result<Value> {
    let interval = Duration::from_secs_f64(1.0 / options.rate);
    let count = (options.seconds.as_secs_f64() * options.rate) as u32;
    let mut timer = Timer::every(interval)?;
    let start = timer.due(0);
    let places = Semaphore::new(MAX_OPEN);
    let victim = Rc::new(Victim {
        options,
        idle: RefCell::default(),
        http2: Mutex::default(),
        places,
        samples: RefCell::default(),
    });
    let (mut tasks, mut sent) = (JoinSet::new(), 0);
    while sent < count {
        timer.tick().await?;
        while sent < count && timer.due(sent) <= Instant::now() {
            let (victim, due) = (Rc::clone(&victim), timer.due(sent));
            tasks.spawn_local(async move { victim.one(start, due).await });
            sent += 1;
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(json!({
        "samples": victim.samples.take(),
        "first_due": timer.first_by_all(),
        "held_up": timer.held_up(),
    }))
}

impl Victim {
    async fn one(&self, start: Instant, due: Instant) {
        let outcome: Value = match timeout_at((due + self.options.timeout).into(), self.exchange()).await {
            Ok(Ok(status)) => status.into(),
            Ok(Err(error)) => word(&error).into(),
            Err(_) => "timeout".into(),
        };
        let micros = |duration: Duration| duration.as_micros() as u64;
        self.samples.borrow_mut().push(json!([micros(due - start), micros(due.elapsed()), outcome]));
    }

    async fn exchange(&self) -> io::Result<u16> {
        if self.options.http2 { self.stream().await } else { self.http1().await }
    }

    async fn stream(&self) -> io::Result<u16> {
        let Options { target, source, .. } = self.options;
        let mut sender = {
            let mut shared = self.http2.lock().await;
            let ready = match shared.take() {
                Some(sender) => sender.ready().await.ok(),
                None => None,
            };
            let sender = match ready {
                Some(sender) => sender,
                None => {
                    let stream = connect(source, target).await?;
                    let (sender, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
                    tokio::task::spawn_local(connection);
                    sender.ready().await.map_err(io::Error::other)?
                }
            };
            *shared = Some(sender.clone());
            sender
        };
        let uri = format!("http://{target}{}", self.options.shape.path());
        let request = http::Request::get(uri).body(()).map_err(io::Error::other)?;
        let (answer, _) = sender.send_request(request, true).map_err(io::Error::other)?;
        let answer = answer.await.map_err(io::Error::other)?;
        let (head, mut body) = answer.into_parts();
        while let Some(chunk) = body.data().await {
            let length = chunk.map_err(io::Error::other)?.len();
            body.flow_control().release_capacity(length).map_err(io::Error::other)?;
        }
        Ok(head.status.as_u16())
    }

    async fn http1(&self) -> io::Result<u16> {
        let _place = self.places.acquire().await.map_err(io::Error::other)?;
        let Options { target, source, fresh, .. } = self.options;
        let idle = self.idle.borrow_mut().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => Connection::new(connect(source, target).await?),
        };
        connection.send(self.options.shape.request(target, !fresh, 0).next()).await?;
        let answer = connection.answer().await?;
        if answer.keep && !fresh {
            self.idle.borrow_mut().push(connection);
        }
        Ok(answer.status)
    }
}
