//! Closed loops over HTTP/2.

use std::rc::Rc;
use std::time::{Duration, Instant};

use h2::client::SendRequest;
use serde_json::Value;
use tokio::task::spawn_local;
use tokio::time::{sleep, sleep_until, timeout};

use crate::Group;
use crate::closed::{Counts, report};
use crate::http1::{Shape, connect};

const PAUSE: Duration = Duration::from_millis(20);
const MAX_STREAMS: usize = 1000;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// IP:PORT=CONNECTIONS[@SOURCE]; may be repeated.
    #[arg(long = "group", required = true)]
    groups: Vec<Group>,
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
    /// Streams of each connection that are open at a time.
    #[arg(long, default_value_t = 100)]
    streams: usize,
    /// Give each request up after so many milliseconds.
    #[arg(long)]
    cancel_after: Option<u64>,
    #[command(flatten)]
    shape: Shape,
}

/// Prints what `closed` does; a stream or connection that ends with an error counts as `reset`.
pub(crate) async fn run(options: Options) -> anyhow::Result<Value> {
    anyhow::ensure!(options.streams <= MAX_STREAMS, "--streams {}: {MAX_STREAMS} is the most", options.streams);
    let options = Rc::new(options);
    let (begun, end) = (Instant::now(), Instant::now() + options.seconds);
    let counts: Vec<Rc<Counts>> = options.groups.iter().map(|_| Rc::default()).collect();
    for (group, counts) in options.groups.iter().zip(&counts) {
        for _ in 0..group.connections {
            let (options, counts, group) = (Rc::clone(&options), Rc::clone(counts), *group);
            spawn_local(async move {
                while Instant::now() < end {
                    if connection(&options, group, &counts).await.is_err() {
                        counts.add("reset");
                    }
                    sleep(PAUSE).await;
                }
            });
        }
    }
    sleep_until(end.into()).await;
    Ok(report(begun, &options.groups, &counts))
}

/// One connection until it ends.
async fn connection(options: &Rc<Options>, group: Group, counts: &Rc<Counts>) -> anyhow::Result<()> {
    let stream = connect(group.source, group.target).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    for _ in 0..options.streams {
        let (sender, options, counts) = (sender.clone(), Rc::clone(options), Rc::clone(counts));
        spawn_local(async move {
            if exchanges(sender, &options, group, &counts).await.is_err() {
                counts.add("reset");
            }
        });
    }
    drop(sender);
    Ok(connection.await?)
}

async fn exchanges(
    mut sender: SendRequest<bytes::Bytes>,
    options: &Options,
    group: Group,
    counts: &Counts,
) -> anyhow::Result<()> {
    loop {
        sender = sender.ready().await?;
        let uri = format!("http://{}{}", group.target, options.shape.path());
        let (answer, _) = sender.send_request(http::Request::get(uri).body(())?, true)?;
        counts.asked(1);
        let answer = match options.cancel_after {
            None => answer.await?,
            // Dropped, it is cancelled.
            Some(ms) => match timeout(Duration::from_millis(ms), answer).await {
                Ok(answer) => answer?,
                Err(_) => {
                    counts.add("cancelled");
                    continue;
                }
            },
        };
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        while let Some(chunk) = body.data().await {
            let length = chunk?.len();
            body.flow_control().release_capacity(length)?;
        }
        counts.add(status);
    }
}
