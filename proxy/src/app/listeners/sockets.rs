//! Opens listening sockets for all workers.

use std::net::{SocketAddr, TcpListener};

use tollgate_net::{ListenOptions, Mark, NetError, Operation, Shards, check_transparent, listen, shard_by_source};
use tollgate_policy::Direction;

use crate::config;

/// Length of an accept queue; the kernel caps it.
const BACKLOG: i32 = 4096;
/// Accept queues that the sources of connections are spread over, and what they are reduced to where many workers would make
/// them many sockets.
const MAX_SHARDS: usize = 16;
const MIN_SHARDS: usize = 4;
/// Sockets of one address that the queues are not to exceed while there are more than the fewest.
const SOCKETS: usize = 64;

/// Open sockets, not yet with the workers.
pub(super) struct Sockets {
    /// Those of each worker, by address.
    pub(super) by_worker: Vec<Vec<(SocketAddr, Vec<TcpListener>)>>,
    /// Each address asked for, and the one in use.
    pub(super) addresses: Vec<(SocketAddr, SocketAddr)>,
}

impl Sockets {
    pub(super) fn new(workers: usize) -> Self {
        Self { by_worker: (0..workers).map(|_| Vec::new()).collect(), addresses: Vec::new() }
    }

    /// Opens `asked` for every worker: sockets of its own, a queue for each shard of the sources of connections; or one for all of
    /// them where the listener may have only one.
    ///
    /// # Errors
    /// One cannot be opened. Nothing serves then: what was opened closes again.
    pub(super) fn open(&mut self, listener: &config::Listener, asked: SocketAddr) -> Result<(), NetError> {
        let mark = listener.transparent.then(|| Mark::listener(listener.direction == Direction::Ingress));
        let options = ListenOptions {
            transparent: listener.transparent,
            mark,
            reuse_port: listener.reuse_port,
            backlog: BACKLOG,
        };
        if listener.transparent {
            check_transparent(&listener.name, asked)?;
        }
        let first = listen(asked, &options)?;
        // With port 0 the first socket chooses for all.
        let address = first.local_addr().unwrap_or(asked);
        let sockets = match listener.reuse_port {
            true => self.sharded(first, address, &options)?,
            false => self.shared(first, address)?,
        };
        for (worker, sockets) in self.by_worker.iter_mut().zip(sockets) {
            worker.push((address, sockets));
        }
        self.addresses.push((asked, address));
        Ok(())
    }

    /// The same socket for every worker.
    fn shared(&self, first: TcpListener, address: SocketAddr) -> Result<Vec<Vec<TcpListener>>, NetError> {
        let failed = |error| NetError::Listen { address, operation: Operation::Socket, error };
        let mut sockets = Vec::new();
        for _ in 1..self.by_worker.len() {
            sockets.push(vec![first.try_clone().map_err(failed)?]);
        }
        sockets.push(vec![first]);
        Ok(sockets)
    }

    /// A socket for each shard and worker.
    fn sharded(
        &self,
        first: TcpListener,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<Vec<Vec<TcpListener>>, NetError> {
        let workers = self.by_worker.len();
        let shape = shape(workers);
        if let Err(error) = shard_by_source(&first, address, shape) {
            tracing::warn!(%address, %error, "accept queues cannot be separated by source: one that floods the listener delays all");
        }
        let mut sockets: Vec<_> = (0..workers).map(|_| Vec::with_capacity(shape.shards.into())).collect();
        let mut first = Some(first);
        // In the order in which the kernel numbers them.
        for _ in 0..shape.shards {
            for of_worker in &mut sockets {
                of_worker.push(match first.take() {
                    Some(first) => first,
                    None => listen(address, options)?,
                });
            }
        }
        Ok(sockets)
    }
}

/// How many sockets one address of a listener takes, at most.
pub(in crate::app) fn sockets_of_an_address(workers: usize) -> usize {
    shape(workers).sockets()
}

/// How many queues the connections of `workers` are sorted into.
fn shape(workers: usize) -> Shards {
    let shards = (SOCKETS / workers.max(1)).clamp(MIN_SHARDS, MAX_SHARDS);
    let number = |count| u16::try_from(count).unwrap_or(u16::MAX);
    Shards { shards: number(shards), workers: number(workers.max(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_workers_have_fewer_queues_each() {
        let sockets = |workers| (shape(workers).shards, shape(workers).sockets());
        assert_eq!([1, 2, 4, 8, 16, 64].map(sockets), [(16, 16), (16, 32), (16, 64), (8, 64), (4, 64), (4, 256)]);
    }
}
