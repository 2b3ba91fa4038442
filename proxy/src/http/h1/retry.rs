//! Sending a request again whose upstream failed, where an agent asks for it as it does of Envoy
//! (`spec/cilium-agent.md` section 2.3): on any 5xx, on none at all, and when connecting failed.
//!
//! It is done only while nothing was sent to the client, and with a request that is here as a whole: one without a body,
//! or with one that came along with its head. Others stream, and a stream cannot be sent twice.

use std::time::Duration;

use super::buffer::Buffer;
use super::decide::Forward;
use super::request::RequestBody;
use crate::listener::connection::Connection;

/// Envoy's back-off: a random part of so much, twice as much each time.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How often a request may be sent again, and its body.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    left: u32,
    made: u32,
    body: Option<Buffer>,
}

impl Retries {
    /// The retries of a request whose body, if it has one, begins `buffer`.
    pub(super) fn of(connection: &Connection, forward: &Forward, buffer: &mut Buffer) -> Self {
        let left = connection.listener.config.http.retries;
        if left == 0 || forward.websocket.is_some() || forward.expects_continue {
            return Self::default();
        }
        let length = match forward.body {
            RequestBody::None => 0,
            RequestBody::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
            RequestBody::Chunked => return Self::default(),
        };
        if buffer.len() < length {
            return Self::default();
        }
        let body = match length {
            0 => Buffer::new(&connection.worker.buffers),
            length => buffer.split_front(length),
        };
        Self { left, made: 0, body: Some(body) }
    }

    /// The whole body, where it is kept.
    pub(super) fn body(&self) -> Option<&[u8]> {
        self.body.as_ref().map(Buffer::filled)
    }

    pub(super) fn are_left(&self) -> bool {
        self.left > 0
    }

    /// Waits before the next attempt. False when there is none.
    pub(super) async fn again(&mut self, connection: &Connection) -> bool {
        if self.left == 0 {
            return false;
        }
        let most = FIRST_PAUSE.saturating_mul(1 << self.made.min(10)).min(LONGEST_PAUSE);
        self.left -= 1;
        self.made += 1;
        connection.worker.flows.metrics().upstream_retry();
        tokio::time::sleep(most.mul_f64(fastrand::f64())).await;
        true
    }
}
