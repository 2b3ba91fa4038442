//! Opens listening sockets for all workers.

use std::net::{SocketAddr, TcpListener};

use tollgate_net::{ListenOptions, Mark, NetError, Operation, check_transparent, listen};
use tollgate_policy::Direction;

use crate::config;

/// Length of the accept queue; the kernel caps it.
const BACKLOG: i32 = 4096;

/// Open sockets, not yet with the workers.
pub(super) struct Sockets {
    /// Those of each worker.
    pub(super) by_worker: Vec<Vec<(SocketAddr, TcpListener)>>,
    /// Each address asked for, and the one in use.
    pub(super) addresses: Vec<(SocketAddr, SocketAddr)>,
}

impl Sockets {
    pub(super) fn new(workers: usize) -> Self {
        Self { by_worker: (0..workers).map(|_| Vec::new()).collect(), addresses: Vec::new() }
    }

    /// Opens `asked` for every worker: a socket for each, or one for all of them where the listener may have only one.
    ///
    /// # Errors
    /// One cannot be opened. Nothing serves then: what was opened closes again.
    pub(super) fn open(&mut self, listener: &config::Listener, asked: SocketAddr) -> Result<(), NetError> {
        let mark = listener.transparent.then(|| Mark::listener(listener.direction == Direction::Ingress));
        let one_each = listener.reuse_port && self.by_worker.len() > 1;
        let options = ListenOptions { transparent: listener.transparent, mark, reuse_port: one_each, backlog: BACKLOG };
        if listener.transparent {
            check_transparent(&listener.name, asked)?;
        }
        let first = listen(asked, &options)?;
        // With port 0 the first socket chooses for all.
        let address = first.local_addr().unwrap_or(asked);
        for worker in self.by_worker.iter_mut().skip(1) {
            let socket = match one_each {
                true => listen(address, &options)?,
                false => first.try_clone().map_err(|error| NetError::Listen {
                    address,
                    operation: Operation::Socket,
                    error,
                })?,
            };
            worker.push((address, socket));
        }
        if let Some(worker) = self.by_worker.first_mut() {
            worker.push((address, first));
        }
        self.addresses.push((asked, address));
        Ok(())
    }
}
