//! `tollgate control-plane`: a reference xDS server that pushes the policy files of a directory and tells what each
//! proxy answered. It keeps the protocol of a Cilium agent in split mode, so that what works with it works with that.

mod conversation;
mod event;
mod published;
mod server;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};

use tollgate_net::SocketFile;

use crate::cli::Output;
use crate::config::ListenAddress;
use crate::control::directory::Directory;

pub use event::{Event, Report, ResourceType};
pub use published::Published;

/// Mode of the Unix socket: its owner and group may connect.
const SOCKET_MODE: u32 = 0o660;

/// Serve the policies of a directory over xDS, and print what is pushed and answered
///
/// Each file of the directory holds NetworkPolicy, NetworkPolicyHosts or Tenant resources in JSON or YAML. A change is pushed
/// at once; a file that does not load is reported, and its last good content stays.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  tollgate control-plane --policies ./policies --listen unix:run/xds.sock

Exit codes: 0 ended by SIGINT or SIGTERM; 2 bad input, also a directory that is not there; 3 it cannot listen or serve.")]
pub struct Args {
    /// Directory with *.json, *.yaml and *.yml files
    #[arg(long, value_name = "DIR")]
    pub policies: PathBuf,
    /// Where to listen: unix:PATH or IP:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub listen: ListenAddress,
    /// How each event is printed: as a line of text or a JSON object
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Serves until the process is told to stop (SIGINT, SIGTERM).
///
/// # Errors
/// The address cannot be listened on, or connections cannot be accepted any more.
pub async fn run(directory: Directory, args: Args) -> anyhow::Result<()> {
    let listener = Listener::bind(&args.listen).context("--listen")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let report: Report = Arc::new(move |event| event::print(event, args.output));
    tokio::select! {
        ended = serve(directory, listener, report) => ended,
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for SIGINT"),
    }
}

/// Serves the directory until the future is dropped; each event goes to `report`.
///
/// # Errors
/// Connections cannot be accepted any more.
pub async fn serve(mut directory: Directory, listener: Listener, report: Report) -> anyhow::Result<()> {
    let published = Arc::new(Published::new());
    // Before anyone can ask: a proxy must not take a start for an empty state.
    while !publish(&published, directory.next().await, &report) {}
    report(&Event::Listening { address: listener.address()? });
    let watching = async {
        loop {
            let _ = publish(&published, directory.next().await, &report);
        }
    };
    let service = server::service(Arc::clone(&published), Arc::clone(&report));
    let server = tonic::transport::Server::builder();
    let serving = async {
        match listener {
            Listener::Tcp(listener) => server.serve_with_incoming(service, TcpListenerStream::new(listener)).await,
            Listener::Unix(listener, _, _file) => {
                server.serve_with_incoming(service, UnixListenerStream::new(listener)).await
            }
        }
    };
    tokio::select! {
        served = serving => served.context("cannot accept connections any more"),
        never = watching => never,
    }
}

/// Returns whether there is something to serve, which there is not while the directory cannot be listed.
fn publish(published: &Published, reading: crate::control::directory::Reading, report: &Report) -> bool {
    for error in reading.errors {
        report(&Event::FileError { error: error.to_string() });
    }
    if reading.changed {
        for contested in reading.set.contested() {
            report(&Event::Contested { error: contested.to_string() });
        }
    }
    if reading.is_known {
        for change in published.replace(&reading.set) {
            report(&change);
        }
    }
    reading.is_known
}

/// An open socket for proxies.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix, its path, and the file there.
    Unix(UnixListener, PathBuf, SocketFile),
}

impl Listener {
    /// Opens the socket; a stale Unix socket is replaced. Needs a Tokio runtime.
    ///
    /// # Errors
    /// The address is in use or not permitted.
    pub fn bind(address: &ListenAddress) -> anyhow::Result<Self> {
        match address {
            ListenAddress::Tcp(tcp) => {
                let listener = std::net::TcpListener::bind(tcp)
                    .with_context(|| format!("cannot listen on {tcp}; choose another address"))?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpListener::from_std(listener)?))
            }
            ListenAddress::Unix(path) => {
                let listener = tollgate_net::listen_unix(path, SOCKET_MODE)?;
                listener.set_nonblocking(true)?;
                let file = SocketFile::of(path);
                Ok(Self::Unix(UnixListener::from_std(listener)?, path.clone(), file))
            }
        }
    }

    /// The address in the form that a configuration takes, with the port that was given for port 0.
    ///
    /// # Errors
    /// The system does not know it.
    pub fn address(&self) -> anyhow::Result<String> {
        Ok(match self {
            Self::Tcp(listener) => listener.local_addr()?.to_string(),
            Self::Unix(_, path, _) => format!("unix:{}", path.display()),
        })
    }
}
