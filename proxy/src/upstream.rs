//! Opens the upstream connection of an admitted flow.
//!
//! Each downstream connection has its own upstream connection, and they end together. Nothing is pooled across clients, so
//! no upstream ever carries two identities, one client's broken framing can never reach another's response, and an
//! upstream sees connections come and go just as without a proxy.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;
use tollgate_net::{Mark, NetError, UpstreamOptions};
use tollgate_policy::{Direction, Permit, SecurityId};

use crate::config::{OriginalSource, Upstream};
use crate::listener::connection::Connection;
use crate::metrics::ConnectResult;
use crate::reason::Reason;

/// Connects to where `connection` was going. The permit shows that policy was asked.
pub(crate) async fn open(
    connection: &Connection,
    _permit: &Permit,
    source: SecurityId,
) -> Result<(TcpStream, SocketAddr), Reason> {
    let config = &connection.listener.config;
    let destination = match config.upstream {
        Upstream::OriginalDst => connection.original_dst,
        Upstream::Fixed(address) => address,
    };
    let ingress = config.direction == Direction::Ingress;
    let options = UpstreamOptions {
        transparent: config.transparent,
        mark: config.transparent.then(|| Mark::upstream(ingress, source.0)),
        source: source_address(connection, destination),
    };
    let metrics = connection.worker.flows.metrics();
    match tokio::time::timeout(config.connect_timeout, tollgate_net::connect(destination, &options)).await {
        Ok(Ok(upstream)) => {
            metrics.upstream_connect(ConnectResult::Connected);
            if upstream.source_port_changed {
                metrics.upstream_source_port_changed();
            }
            Ok((upstream.stream, destination))
        }
        Ok(Err(error)) => {
            metrics.upstream_connect(result_of(&error));
            tracing::debug!(upstream = %destination, %error, "upstream connect failed");
            Err(Reason::UpstreamConnect)
        }
        Err(_elapsed) => {
            metrics.upstream_connect(ConnectResult::Timeout);
            tracing::debug!(upstream = %destination, "upstream connect timed out");
            Err(Reason::UpstreamConnect)
        }
    }
}

/// The client's own address, where the listener wants it kept and the datapath can carry it (`spec/cilium-agent.md`
/// section 5.4): same family, not a hairpin, and for [`OriginalSource::RemoteDestinations`] no local policy at the
/// destination, which is not this host either: servers of the host answer the client's address directly, past us, and
/// the connection would never come about.
fn source_address(connection: &Connection, destination: SocketAddr) -> Option<SocketAddr> {
    let config = &connection.listener.config;
    let source = connection.downstream;
    let wanted = config.transparent
        && match config.original_source {
            OriginalSource::Never => false,
            OriginalSource::Always => true,
            OriginalSource::RemoteDestinations => {
                let ip = destination.ip();
                !connection.worker.world.load().knows(ip) && !tollgate_net::is_own_address(ip)
            }
        };
    (wanted && source.is_ipv4() == destination.is_ipv4() && source.ip() != destination.ip()).then_some(source)
}

fn result_of(error: &NetError) -> ConnectResult {
    match error.io_error().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => ConnectResult::Refused,
        Some(io::ErrorKind::TimedOut) => ConnectResult::Timeout,
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => ConnectResult::Unreachable,
        _ => ConnectResult::Failed,
    }
}
