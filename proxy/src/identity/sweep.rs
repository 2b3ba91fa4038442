//! Asks about the addresses of open connections from time to time, so that tunnels, TCP connections and long streams learn
//! of an address that has changed hands: nothing of theirs would ask.

use std::rc::Rc;
use std::time::{Duration, Instant};

use tollgate_schedule::rest;

use super::Peers;
use super::peers::Swept;
use crate::control::World;
use crate::worker::Worker;

/// Between two sweeps, or the time to live of answers, if that is longer.
const INTERVAL: Duration = Duration::from_millis(100);
/// Addresses asked about in one sweep. With more, a round takes several.
const BATCH: usize = 256;
/// Addresses that are looked at before others get their turn, if time is up: asking about one takes 2 us.
const AT_ONCE: usize = 32;

/// Sweeps for as long as the worker lives. One timer for all connections, and none while no address is in use.
pub(crate) async fn run(worker: Rc<Worker>) {
    loop {
        worker.peers.occupied().await;
        let ttl = worker.world.load().identities.ttl();
        tokio::time::sleep(INTERVAL.max(ttl)).await;
        let (mut asked, mut looked_at, all) = (0, 0, worker.peers.places());
        while asked < BATCH && looked_at < all {
            let swept = sweep(&worker.peers, &worker.world.load(), &worker);
            if swept.changed {
                worker.peers.report_change();
            }
            asked += swept.asked;
            looked_at += AT_ONCE;
            rest().await;
        }
    }
}

fn sweep(peers: &Peers, world: &World, worker: &Worker) -> Swept {
    let metrics = worker.flows.metrics();
    match world.identities.asking(Instant::now(), metrics) {
        Some(asking) => peers.sweep(AT_ONCE, &asking),
        None => Swept::default(),
    }
}
