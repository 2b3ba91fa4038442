//! Opens the upstream connection of an admitted flow.
//!
//! Each downstream connection has its own upstream connection, and they end together. Nothing is pooled across clients, so
//! no upstream ever carries two identities, one client's broken framing can never reach another's response, and an
//! upstream sees connections come and go just as without a proxy.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tollgate_net::{Mark, NetError, Operation, UpstreamOptions};
use tollgate_policy::{Direction, Permit, SecurityId};

use crate::config::{Listener, OriginalSource, Upstream};
use crate::flow::FlowRecord;
use crate::listener::connection::Connection;
use crate::metrics::ConnectResult;
use crate::reason::Reason;
use crate::tenant::{UpstreamPlace, WouldLimit};

/// Between which addresses an upstream connection runs, as records tell it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpstreamPath {
    /// What was connected to.
    address: SocketAddr,
    /// The client's address with another port, where the client's own port could not be had.
    changed_source: Option<SocketAddr>,
}

impl UpstreamPath {
    /// Notes it in a record.
    pub(crate) fn note(self, record: &mut FlowRecord) {
        record.upstream = Some(self.address);
        record.upstream_source = self.changed_source;
    }
}

/// An open upstream connection.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: TcpStream,
    pub(crate) path: UpstreamPath,
    /// To be kept for as long as the stream is open.
    pub(crate) place: UpstreamPlace,
    pub(crate) would_limit: WouldLimit,
}

/// Connects to where `connection` was going. The permit shows that policy was asked. Where the system refuses the mark or
/// the client's address, nothing is connected: the flow would pass for somebody else's. Nor is it where the tenant has as many
/// connections as it may have.
pub(crate) async fn open(connection: &Connection, _permit: &Permit, source: SecurityId) -> Result<Opened, Reason> {
    let config = &connection.listener.config;
    let destination = match config.upstream {
        Upstream::OriginalDst => connection.original_dst,
        Upstream::Fixed(address) => address,
    };
    let (place, would_limit) = {
        let world = connection.worker.world.load();
        connection.payer.admit_upstream(&world.tenants, destination).map_err(|limited| limited.reason)?
    };
    let ingress = config.direction == Direction::Ingress;
    let options = UpstreamOptions {
        transparent: config.transparent,
        mark: config.transparent.then(|| Mark::upstream(ingress, source.0)),
        source: source_address(connection, destination),
        reset_on_close: resets_on_close(config),
        unsent: connection.worker.limits.unsent,
    };
    let metrics = connection.worker.flows.metrics();
    match tokio::time::timeout(config.connect_timeout, tollgate_net::connect(destination, &options)).await {
        Ok(Ok(upstream)) => {
            metrics.upstream_connect(config.direction, ConnectResult::Connected);
            if config.transparent {
                metrics.upstream_permitted(true);
            }
            let mut changed_source = None;
            if upstream.source_port_changed {
                metrics.upstream_source_port_changed();
                changed_source = upstream.stream.local_addr().ok();
            }
            let path = UpstreamPath { address: destination, changed_source };
            Ok(Opened { stream: upstream.stream, path, place, would_limit })
        }
        Ok(Err(error)) => {
            let result = result_of(&error);
            if result == ConnectResult::NotPermitted && metrics.upstream_permitted(false) {
                tracing::error!(upstream = %destination, %error, "no upstream can be connected as configured");
            }
            metrics.upstream_connect(config.direction, result);
            tracing::debug!(upstream = %destination, %error, "upstream connect failed");
            Err(Reason::UpstreamConnect)
        }
        Err(_elapsed) => {
            metrics.upstream_connect(config.direction, ConnectResult::Timeout);
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

/// Whether an agent wants connections from the client's port to end with a reset (a linger time of zero,
/// `spec/cilium-agent.md` section 2.7). With any other time the close would stop the worker for as long, so that it is taken for
/// no linger: the system sends what is left, and nobody waits.
fn resets_on_close(config: &Listener) -> bool {
    config.agent.as_ref().is_some_and(|agent| agent.original_source_linger == Some(Duration::ZERO))
}

fn result_of(error: &NetError) -> ConnectResult {
    if let NetError::Connect { operation: Operation::Mark | Operation::Transparent, .. } = error {
        return ConnectResult::NotPermitted;
    }
    match error.io_error().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => ConnectResult::Refused,
        Some(io::ErrorKind::TimedOut) => ConnectResult::Timeout,
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => ConnectResult::Unreachable,
        _ => ConnectResult::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Agent;

    #[test]
    fn only_a_linger_of_zero_is_taken() {
        let listener = |original_source_linger| Listener {
            agent: Some(Agent { original_source_linger, ..Agent::default() }),
            ..Listener::new(Direction::Egress, true)
        };
        assert!(resets_on_close(&listener(Some(Duration::ZERO))));
        assert!(!resets_on_close(&listener(Some(Duration::from_secs(1)))));
        assert!(!resets_on_close(&listener(None)));
        assert!(!resets_on_close(&Listener::new(Direction::Egress, true)));
    }

    #[test]
    fn a_mark_that_is_refused_is_told_from_an_upstream_that_is_not_there() {
        let result = |operation, code| {
            let error = io::Error::from_raw_os_error(code);
            let destination = SocketAddr::from(([192, 0, 2, 1], 80));
            result_of(&NetError::Connect { destination, source_address: None, operation, error })
        };
        const EPERM: i32 = 1;
        const ECONNREFUSED: i32 = 111;
        assert_eq!(result(Operation::Mark, EPERM), ConnectResult::NotPermitted);
        assert_eq!(result(Operation::Transparent, EPERM), ConnectResult::NotPermitted);
        // A firewall's answer.
        assert_eq!(result(Operation::Connect, EPERM), ConnectResult::Failed);
        assert_eq!(result(Operation::Connect, ECONNREFUSED), ConnectResult::Refused);
    }
}
