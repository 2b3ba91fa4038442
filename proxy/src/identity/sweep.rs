//! Asks about the addresses of open connections from time to time, so that tunnels, TCP connections and long streams learn
//! of an address that has changed hands: nothing of theirs would ask.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Peers;
use crate::control::World;
use crate::worker::Worker;

/// Between two sweeps, or the time to live of answers, if that is longer.
const INTERVAL: Duration = Duration::from_millis(100);
/// Addresses asked about in one sweep: about half a millisecond of a worker's time. With more, a round takes several.
const BATCH: usize = 256;

/// Sweeps for as long as the worker lives. One timer for all connections, and none while no address is in use.
pub(crate) async fn run(worker: Rc<Worker>) {
    loop {
        worker.peers.occupied().await;
        let ttl = worker.world.load().identities.ttl();
        tokio::time::sleep(INTERVAL.max(ttl)).await;
        if sweep(&worker.peers, &worker.world.load(), &worker) {
            worker.peers.report_change();
        }
    }
}

fn sweep(peers: &Peers, world: &World, worker: &Worker) -> bool {
    let metrics = worker.flows.metrics();
    let Some(asking) = world.identities.asking(Instant::now(), metrics) else { return false };
    peers.sweep(BATCH, &asking)
}
