//! The load generators of `benches/neighbours`: the one who is measured, and those who misbehave around it.
//!
//! Every role ends by itself: it is bounded in connections and in seconds. Each prints one JSON object when it ends.
//! Roles, with what they print: `neighbours-load --help`.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde_json::Value;
use tokio::task::LocalSet;

mod bulk;
mod closed;
mod connect;
mod flood;
mod frames;
mod http1;
mod punctual;
mod streams;
mod victim;

/// Most connections of one role.
const MAX_CONNECTIONS: usize = 4096;
/// Longest run of one role. The soak of ten minutes fits.
const MAX_SECONDS: f64 = 900.0;

#[derive(Parser)]
#[command(about = "Load generators of benches/neighbours; each prints one JSON object when it ends")]
struct Options {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Requests at a fixed rate, latencies counted from when each was due: no coordinated omission.
    Victim(victim::Options),
    /// HTTP/1 connections that each send the next request when the last one is answered.
    Closed(closed::Options),
    /// The same over HTTP/2, by stream.
    Streams(streams::Options),
    /// HTTP/2 frames that cost the peer work and the sender nothing.
    Flood(flood::Options),
    /// New connections at a fixed rate, closed at once or kept.
    Connect(connect::Options),
    /// Nothing but looking when it could not run though it should have.
    Watch(punctual::Options),
    /// Downloads as fast as they go, or that are never read.
    Bulk(bulk::Options),
}

/// Where a role sends to, with how many connections, and from which address.
#[derive(Clone, Copy, Debug)]
struct Group {
    target: SocketAddr,
    connections: usize,
    source: Option<IpAddr>,
}

impl FromStr for Group {
    type Err = anyhow::Error;

    /// `IP:PORT=CONNECTIONS`, or `IP:PORT=CONNECTIONS@SOURCE`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (target, rest) = text.split_once('=').context("IP:PORT=CONNECTIONS[@SOURCE] is expected")?;
        let (connections, source) = rest.split_once('@').map_or((rest, None), |(count, source)| (count, Some(source)));
        let connections: usize = connections.parse().context("CONNECTIONS")?;
        anyhow::ensure!(connections <= MAX_CONNECTIONS, "{connections} connections: {MAX_CONNECTIONS} is the most");
        let source = source.map(str::parse).transpose().context("SOURCE")?;
        Ok(Self { target: target.parse().context("IP:PORT")?, connections, source })
    }
}

/// Reads `--seconds`.
fn seconds(text: &str) -> anyhow::Result<Duration> {
    let seconds: f64 = text.parse()?;
    anyhow::ensure!((0.0..=MAX_SECONDS).contains(&seconds), "0 to {MAX_SECONDS} seconds are expected");
    Ok(Duration::from_secs_f64(seconds))
}

fn main() -> anyhow::Result<()> {
    let begun = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut result = LocalSet::new().block_on(&runtime, async {
        match Options::parse().role {
            Role::Victim(options) => victim::run(options).await,
            Role::Closed(options) => closed::run(options).await,
            Role::Streams(options) => streams::run(options).await,
            Role::Flood(options) => flood::run(options).await,
            Role::Connect(options) => connect::run(options).await,
            Role::Bulk(options) => bulk::run(options).await,
            Role::Watch(options) => punctual::run(options).await,
        }
    })?;
    // By the clock that every process of the machine reads.
    result["begun"] = (begun.tv_sec as f64 + begun.tv_nsec as f64 / 1e9).into();
    result["run_delay_ms"] = run_delay_ms();
    println!("{result}");
    // What is still open is reset at once rather than one task after the other.
    std::process::exit(0)
}

/// Milliseconds that this process was ready to run and waited for a core.
fn run_delay_ms() -> Value {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split(' ').nth(1).and_then(|ns| ns.parse::<f64>().ok()).map_or(Value::Null, |ns| (ns / 1e6).into())
}
