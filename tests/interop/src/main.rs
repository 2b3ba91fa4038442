//! Public xDS servers with our resources, driven by a test.
//!
//! ```text
//! public-control-plane rust-control-plane | quilkin-xds
//! ```
//!
//! One JSON object per line on standard input, one event per line on standard output:
//!
//! ```text
//! {"do": "set", "type_url": "…", "version": "1", "resources": [{"name": "7", "hex": "0a…"}]}   all of a type
//! {"do": "listen", "path": "/run/xds.sock"}                                                    serves
//! ```
//!
//! Events: `listening`; `request`, as it came from the proxy (`method`, `type_url`, `version`, `nonce`, `error`); `said`,
//! what the server itself logs of it; `error`. A resource is bytes to the servers: they need not know its type.

mod incremental;
mod state_of_the_world;
mod wire;

use std::collections::BTreeMap;
use std::io::BufRead as _;

use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tracing::field::{Field, Visit};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// What [`state_of_the_world`] and [`incremental`] serve of one type.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resources {
    version: String,
    by_name: BTreeMap<String, Vec<u8>>,
}

/// Writes one event.
pub(crate) fn tell(event: &Value) {
    println!("{event}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), String> {
    let targets = Targets::new()
        .with_target("rust_control_plane", tracing::Level::INFO)
        .with_target("quilkin_xds", tracing::Level::TRACE);
    tracing_subscriber::registry().with(Said.with_filter(targets)).init();
    let commands = commands();
    match std::env::args().nth(1).as_deref() {
        Some("rust-control-plane") => drive(state_of_the_world::Peer::new(), commands).await,
        Some("quilkin-xds") => drive(incremental::Peer::new(), commands).await,
        other => Err(format!("one argument is wanted, rust-control-plane or quilkin-xds, not {other:?}")),
    }
}

/// One of the servers.
pub(crate) trait Server {
    /// Makes these all resources of their type, and lets the server tell its clients.
    async fn set(&mut self, type_url: &str, resources: Resources);

    /// Serves until the process ends.
    fn serve(&self, incoming: UnixListenerStream);
}

async fn drive(mut server: impl Server, mut commands: mpsc::Receiver<Value>) -> Result<(), String> {
    while let Some(command) = commands.recv().await {
        match command["do"].as_str() {
            Some("set") => server.set(text(&command["type_url"])?, resources(&command)?).await,
            Some("listen") => {
                let listener = UnixListener::bind(text(&command["path"])?).map_err(|error| error.to_string())?;
                server.serve(UnixListenerStream::new(listener));
                tell(&json!({"event": "listening"}));
            }
            _ => return Err(format!("not understood: {command}")),
        }
    }
    Ok(())
}

/// The lines of standard input; reading them holds up no stream.
fn commands() -> mpsc::Receiver<Value> {
    let (sender, commands) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(command) => {
                    if sender.blocking_send(command).is_err() {
                        return;
                    }
                }
                Err(error) => tell(&json!({"event": "error", "line": line, "why": error.to_string()})),
            }
        }
    });
    commands
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("a text is wanted, not {value}"))
}

fn resources(command: &Value) -> Result<Resources, String> {
    let mut by_name = BTreeMap::new();
    for resource in command["resources"].as_array().into_iter().flatten() {
        by_name.insert(text(&resource["name"])?.to_owned(), bytes(text(&resource["hex"])?)?);
    }
    Ok(Resources { version: text(&command["version"])?.to_owned(), by_name })
}

fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(byte).collect::<Option<_>>().ok_or_else(|| format!("not hexadecimal: {hex}"))
}

/// Turns what the servers log into events.
struct Said;

impl<S: tracing::Subscriber> Layer<S> for Said {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut words = Words(String::new());
        event.record(&mut words);
        tell(&json!({"event": "said", "words": words.0}));
    }
}

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.0 += &format!("{value:?} "),
            name if name.starts_with("log.") => {}
            name => self.0 += &format!("{name}={value:?} "),
        }
    }
}
