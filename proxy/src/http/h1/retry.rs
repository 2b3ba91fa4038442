//! What it takes to send an HTTP/1 request again: one without a body, or with one that came along with its head. Others
//! stream, and a stream cannot be sent twice.

use std::time::Duration;

use super::buffer::Buffer;
use super::decide::Forward;
use super::request::RequestBody;
use crate::http::retry::{Failure, Tries};
use crate::listener::connection::Connection;

/// How often a request may be sent again, and its body.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    tries: Tries,
    body: Option<Buffer>,
}

impl Retries {
    /// The retries of a request whose body, if it has one, begins `buffer`.
    pub(super) fn of(connection: &Connection, forward: &Forward, buffer: &mut Buffer) -> Self {
        let tries = Tries::of(connection.listener.config.http.limits_of(forward.grpc));
        if !tries.are_left() || forward.websocket.is_some() || forward.expects_continue {
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
            0 => connection.buffer(),
            length => buffer.split_front(length),
        };
        Self { tries, body: Some(body) }
    }

    /// The whole body, where it is kept.
    pub(super) fn body(&self) -> Option<&[u8]> {
        self.body.as_ref().map(Buffer::filled)
    }

    /// Whether a try that failed so is followed by another; see [`Tries::may_follow`].
    pub(super) fn may_follow(&self, failure: Failure, told: bool) -> bool {
        self.tries.may_follow(failure, told)
    }

    /// Takes the next try. Returns how long to wait before it.
    pub(super) fn take(&mut self, connection: &Connection) -> Duration {
        connection.worker.flows.metrics().upstream_retry();
        self.tries.take()
    }
}
