//! Opens the listening sockets: all of them, before anything else starts, so that a mistake is known at once.

use std::net::{SocketAddr, TcpListener};

use tollgate_net::{ListenOptions, Mark, NetError, check_transparent, listen};
use tollgate_policy::Direction;

use crate::admin::BoundListener;
use crate::config;

/// Length of the accept queue; the kernel caps it.
const BACKLOG: i32 = 4096;

/// A listener's sockets, one per worker and address.
pub(super) struct Bound {
    pub(super) config: config::Listener,
    /// By worker.
    pub(super) sockets: Vec<Vec<TcpListener>>,
    /// The addresses in use; a configured port 0 is resolved.
    pub(super) addresses: Vec<SocketAddr>,
}

impl Bound {
    /// Opens the sockets of `config` for `workers` workers.
    pub(super) fn open(config: &config::Listener, workers: usize) -> Result<Self, NetError> {
        let mark = config.transparent.then(|| Mark::listener(config.direction == Direction::Ingress));
        let options =
            ListenOptions { transparent: config.transparent, mark, reuse_port: workers > 1, backlog: BACKLOG };
        let mut bound =
            Self { config: config.clone(), sockets: (0..workers).map(|_| Vec::new()).collect(), addresses: Vec::new() };
        for &configured in std::iter::once(&config.address).chain(&config.additional_addresses) {
            if config.transparent {
                check_transparent(&config.name, configured)?;
            }
            let mut address = configured;
            for sockets in &mut bound.sockets {
                let socket = listen(address, &options)?;
                // With port 0 the first socket chooses for all.
                address = socket.local_addr().unwrap_or(address);
                sockets.push(socket);
            }
            bound.addresses.push(address);
        }
        Ok(bound)
    }

    /// As the admin endpoint shows it.
    pub(super) fn view(&self) -> BoundListener {
        BoundListener { name: self.config.name.clone(), addresses: self.addresses.clone() }
    }
}
