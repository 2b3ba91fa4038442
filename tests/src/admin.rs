//! The admin endpoint of a running `tollgate`: how a test looks into it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;
use tollgate::reason::Reason;

use crate::process::Process;
use crate::wait::{DEADLINE, until};

/// An admin endpoint on a Unix socket.
#[derive(Clone, Debug)]
pub struct Admin {
    socket: PathBuf,
}

impl Admin {
    /// The endpoint on this socket; nothing needs to listen yet.
    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Whether something accepts connections.
    pub fn is_there(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    /// Waits until `process`, whose endpoint this is, is ready.
    ///
    /// # Panics
    /// When it ends, or is not ready in time.
    pub fn until_ready(&self, process: &mut Process) {
        process.until("readiness", || (self.is_there() && self.get("/ready").0 == 200).then_some(()));
    }

    /// Status and body of an endpoint.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").expect("an HTTP response");
        (crate::peer::status(head), body.to_owned())
    }

    /// The flow records so far, oldest first.
    ///
    /// # Panics
    /// When they are no JSON.
    pub fn flows(&self) -> Vec<Value> {
        // As many as are kept.
        let (_, lines) = self.get("/flows?limit=4096");
        lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// Waits for a flow record with that reason.
    ///
    /// # Panics
    /// When none comes.
    pub fn expect_reason(&self, reason: Reason) -> Value {
        let mut seen = Vec::new();
        crate::wait::within(DEADLINE, || {
            seen = self.flows();
            seen.iter().find(|flow| flow["reason"] == reason.code()).cloned()
        })
        .unwrap_or_else(|| panic!("no record with reason {}, but: {seen:#?}", reason.code()))
    }

    /// Waits until there are `n` flow records, and returns them.
    ///
    /// # Panics
    /// When they do not come, or more do.
    pub fn expect_flows(&self, n: usize) -> Vec<Value> {
        let flows = until(&format!("{n} flow records"), || Some(self.flows()).filter(|flows| flows.len() >= n));
        assert_eq!(flows.len(), n, "{flows:#?}");
        flows
    }

    /// The value of a metric that has no labels.
    ///
    /// # Panics
    /// When there is none.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }
}
