//! Connections that are never used.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::task::spawn_local;
use tokio::time::{sleep, sleep_until, timeout};

use crate::closed::Counts;
use crate::http1::{connect, word};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(1);
const MAX_RATE: f64 = 20_000.0;
/// Connections that wait for their handshake at a time.
const MAX_PENDING: usize = 8192;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    target: SocketAddr,
    #[arg(long)]
    source: Option<IpAddr>,
    /// New connections per second.
    #[arg(long)]
    rate: f64,
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
    /// Connections that are kept open, silent; past that many, and without this at all, they are closed at once.
    #[arg(long, default_value_t = 0)]
    keep: usize,
}

#[derive(Default)]
struct Connections {
    counts: Counts,
    pending: RefCell<usize>,
    held: RefCell<usize>,
    most: RefCell<usize>,
}

/// Prints `{"counts": {"opened": …, "timeout": …, "closed": …}, "held": …, "most_held": …}`; `closed` are kept connections
/// that the peer ended, `held` those that it did not.
pub(crate) async fn run(options: Options) -> anyhow::Result<Value> {
    anyhow::ensure!(options.rate <= MAX_RATE, "--rate {}: {MAX_RATE} is the most", options.rate);
    anyhow::ensure!(options.keep <= crate::MAX_CONNECTIONS, "--keep: {} is the most", crate::MAX_CONNECTIONS);
    let (begun, end) = (Instant::now(), Instant::now() + options.seconds);
    let all = Rc::new(Connections::default());
    let mut started = 0;
    while Instant::now() < end && (options.keep == 0 || started < options.keep) {
        while f64::from(u32::try_from(started)?) < begun.elapsed().as_secs_f64() * options.rate {
            started += 1;
            if *all.pending.borrow() >= MAX_PENDING {
                all.counts.add("held-back");
                continue;
            }
            let all = Rc::clone(&all);
            spawn_local(async move { one(&all, options.source, options.target, options.keep > 0).await });
        }
        sleep(TICK).await;
    }
    sleep_until(end.into()).await;
    let (held, most) = (*all.held.borrow(), *all.most.borrow());
    Ok(serde_json::json!({ "counts": all.counts.take(), "held": held, "most_held": most }))
}

async fn one(all: &Connections, source: Option<IpAddr>, target: SocketAddr, keep: bool) {
    *all.pending.borrow_mut() += 1;
    let opened = timeout(CONNECT_TIMEOUT, connect(source, target)).await;
    *all.pending.borrow_mut() -= 1;
    let mut stream = match opened {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return all.counts.add(word(&error)),
        Err(_) => return all.counts.add("timeout"),
    };
    all.counts.add("opened");
    if !keep {
        return;
    }
    *all.held.borrow_mut() += 1;
    let most = (*all.held.borrow()).max(*all.most.borrow());
    *all.most.borrow_mut() = most;
    // Nothing is ever sent, so what comes is the end.
    let _ = stream.read(&mut [0; 64]).await;
    *all.held.borrow_mut() -= 1;
    all.counts.add("closed");
}
