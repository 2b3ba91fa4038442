//! Descriptors as places: the process takes as many as it may have, and promises no more connections than there are descriptors for.
//!
//! Nobody's share of connections would hold where descriptors run out first: then accepting pauses for everybody, and no upstream
//! can be connected, whoever has them.

use super::listeners;
use crate::config::Config;

/// Of a connection: its own socket and that of its upstream.
const OF_A_CONNECTION: u64 = 2;
/// Of a worker and its lane: event loops and what wakes them.
const OF_A_WORKER: u64 = 8;
/// Addresses that an agent's listeners may have.
const OF_AN_AGENT: usize = 16;
/// All others: files, streams, operators, logs, maps of the datapath.
const OTHERS: u64 = 512;

/// Raises the limit of open files, lowers `max_connections` to what there are descriptors for, and has the kernel's table made large
/// enough for them. To be called while there is no other thread.
pub(super) fn prepare(config: &mut Config) {
    let limit = tollgate_net::raise_nofile().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of open files");
        tollgate_net::DescriptorLimit::current()
    });
    let others = others(config);
    let most = limit.soft.map_or(usize::MAX, |limit| connections_within(limit, others));
    if let Some(limit) = limit.soft.filter(|_| most < config.max_connections) {
        tracing::warn!(
            limit,
            max_connections = config.max_connections,
            connections = most,
            "the limit of open files is too low for max_connections; no more connections than this are served. Raise the hard limit \
             (RLIMIT_NOFILE: LimitNOFILE= of a unit, the container runtime's default of a pod), or lower max_connections"
        );
        config.max_connections = most;
    }
    let all = (config.max_connections as u64).saturating_mul(OF_A_CONNECTION).saturating_add(others);
    if let Err(error) = tollgate_net::make_room_for_descriptors(all) {
        tracing::warn!(%error, "cannot have the table of descriptors made large; workers will wait for it to grow");
    }
}

/// How many connections there are descriptors for, where so many are wanted for everything else: half of them at most.
fn connections_within(limit: u64, others: u64) -> usize {
    let left = limit - others.min(limit / 2);
    usize::try_from(left / OF_A_CONNECTION).unwrap_or(usize::MAX).max(1)
}

/// Descriptors that are no connection's.
fn others(config: &Config) -> u64 {
    let configured: usize = config.listeners.iter().map(|listener| 1 + listener.additional_addresses.len()).sum();
    let addresses = configured + if config.dynamic_listeners { OF_AN_AGENT } else { 0 };
    let sockets = addresses.saturating_mul(listeners::sockets_of_an_address(config.workers));
    OTHERS + OF_A_WORKER.saturating_mul(config.workers as u64).saturating_add(sockets as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_connections_as_descriptors_for_them() {
        assert_eq!(connections_within(4096, 512), 1792);
        assert_eq!(connections_within(1 << 20, 512), 524_032);
        assert_eq!(connections_within(u64::MAX, 512), (u64::MAX as usize - 512) / 2);
        // Never none, and never less than half of them for connections.
        assert_eq!([1024, 700, 512, 4, 0].map(|limit| connections_within(limit, 512)), [256, 175, 128, 1, 1]);
    }
}
