//! Requests whose verdicts must never change, sent all the time while something else goes on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::peer::Peer;

/// Between two pairs of requests: enough of them, and not a load.
const PAUSE: Duration = Duration::from_millis(3);

/// After so many pairs a new connection is opened.
const PAIRS: usize = 20;

/// Sends a request that must be allowed and one that must be denied, until it is stopped.
#[derive(Debug)]
pub struct Canary {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Canary {
    /// Begins. `allowed` and `denied` are paths.
    pub fn start(proxy: SocketAddr, allowed: &'static str, denied: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut pairs = 0;
            while !stopped.load(Ordering::Relaxed) {
                let mut client = Peer::connect(proxy);
                for _ in 0..PAIRS {
                    for (path, expected) in [(allowed, 200), (denied, 403)] {
                        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
                        let status = client.read_message().status();
                        assert_eq!(status, expected, "{path}, after {pairs} pairs");
                    }
                    pairs += 1;
                    thread::sleep(PAUSE);
                }
            }
            pairs
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops, and returns how many pairs of requests had the right verdicts.
    ///
    /// # Panics
    /// When one had not.
    pub fn stop(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().expect("every verdict was right"))
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
