//! Downloads, taken as fast as they come or not at all.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;
use tokio::time::{sleep, sleep_until};

use crate::Group;
use crate::closed::Counts;
use crate::frames;
use crate::http1::{connect, word};

const PAUSE: Duration = Duration::from_millis(20);
const CHUNK: usize = 256 * 1024;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// IP:PORT=CONNECTIONS[@SOURCE]; may be repeated.
    #[arg(long = "group", required = true)]
    groups: Vec<Group>,
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
    /// Bytes of each body.
    #[arg(long, default_value_t = 1 << 40)]
    bytes: u64,
    /// Ask over HTTP/2 on so many streams of each connection, grant all windows, and never read.
    #[arg(long)]
    unread_streams: Option<u32>,
}

/// Prints `{"seconds": …, "bytes": …, "counts": {"opened": …, "reset": …}}`.
pub(crate) async fn run(options: Options) -> anyhow::Result<Value> {
    let options = Rc::new(options);
    let (begun, end) = (Instant::now(), Instant::now() + options.seconds);
    let (bytes, counts) = (Rc::new(Cell::new(0_u64)), Rc::new(Counts::default()));
    for group in options.groups.clone() {
        for _ in 0..group.connections {
            let (options, bytes, counts) = (Rc::clone(&options), Rc::clone(&bytes), Rc::clone(&counts));
            spawn_local(async move {
                while Instant::now() < end {
                    if let Err(error) = transfer(&options, group, &bytes, &counts, end).await {
                        counts.add(word(&error));
                    }
                    sleep(PAUSE).await;
                }
            });
        }
    }
    sleep_until(end.into()).await;
    Ok(json!({ "seconds": begun.elapsed().as_secs_f64(), "bytes": bytes.get(), "counts": counts.take() }))
}

async fn transfer(
    options: &Options,
    group: Group,
    bytes: &Cell<u64>,
    counts: &Counts,
    end: Instant,
) -> std::io::Result<()> {
    let mut stream = connect(group.source, group.target).await?;
    counts.add("opened");
    let path = format!("/bytes/{}", options.bytes);
    if let Some(streams) = options.unread_streams {
        let mut out = frames::generous_greeting();
        (0..streams).for_each(|index| frames::request(&mut out, index * 2 + 1, &path, true));
        stream.write_all(&out).await?;
        // Held, not read.
        sleep_until(end.into()).await;
        return Ok(());
    }
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bulk\r\n\r\n").as_bytes()).await?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.set(bytes.get() + count as u64);
    }
}
