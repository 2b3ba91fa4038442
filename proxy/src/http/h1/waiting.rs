//! How an HTTP/1 connection waits for its next request.

use std::time::Instant;

use tokio::net::tcp::ReadHalf;

use super::connection::Session;
use super::head::{HeadEnd, HeadScanner, MAX_HEAD};
use super::request::Refusal;
use crate::flow::Protocol;
use crate::listener::handover::Leave;
use crate::reason::Reason;
use crate::tcp::fill;

/// Empty lines accepted before a request line (RFC 9112 section 2.2).
const MAX_EMPTY_LINES: usize = 4;

/// What waiting for a request head led to.
pub(super) enum NextHead<'c> {
    /// The head is the first so many bytes of the buffer.
    Complete(usize, Instant),
    /// The client is done, or we are.
    End,
    /// What came is no head that can be taken.
    Refused(Refusal, Instant),
    /// Another thread is to serve it.
    Elsewhere(Leave<'c>),
}

impl<'c> Session<'c> {
    /// Waits for a complete request head. An idle connection waits as long as both ends like; one that has begun a head
    /// has `request_head_timeout` to end it.
    pub(super) async fn next_head(&mut self, reader: &mut ReadHalf<'_>) -> NextHead<'c> {
        if self.buffer.is_empty() && !self.wait_for_bytes(reader).await {
            return NextHead::End;
        }
        if let Some(leave) = self.connection.way() {
            self.drop_ended_upstream();
            return NextHead::Elsewhere(leave);
        }
        let started = Instant::now();
        let mut scanner = HeadScanner::default();
        let mut empty_lines = 0;
        let mut deadline = None;
        loop {
            while scanner.is_fresh() && self.buffer.filled().starts_with(b"\r\n") && empty_lines < MAX_EMPTY_LINES {
                self.buffer.consume(2);
                empty_lines += 1;
            }
            let end = scanner.scan(self.buffer.filled());
            if let HeadEnd::At(length) = end {
                return NextHead::Complete(length, started);
            }
            if let Some((reason, detail)) = end.refusal() {
                return NextHead::Refused(Refusal { reason, detail: detail.to_owned() }, started);
            }
            let deadline = *deadline.get_or_insert_with(|| {
                tokio::time::Instant::now() + self.connection.listener.config.request_head_timeout
            });
            let told = self.connection.reaped(Protocol::Http11);
            let read = fill(reader, &mut self.buffer, MAX_HEAD);
            let more = async {
                tokio::select! { biased; read = read => read, _ = told => Ok(0) }
            };
            match tokio::time::timeout_at(deadline, more).await {
                Ok(Ok(0) | Err(_)) => return NextHead::End,
                Ok(Ok(_)) => {}
                Err(_elapsed) => {
                    let detail = "the request head did not end in time".to_owned();
                    return NextHead::Refused(Refusal { reason: Reason::DownstreamTimeout, detail }, started);
                }
            }
        }
    }

    /// Waits between requests. False when the connection ends: the client closed it, its upstream did, an end is no longer
    /// who it was, or we drain.
    async fn wait_for_bytes(&mut self, reader: &mut ReadHalf<'_>) -> bool {
        let idle = self.connection.listener.config.http.upstream_idle_timeout;
        let idle_from = idle.map(|limit| tokio::time::Instant::now() + limit);
        loop {
            if self.connection.is_ending() {
                return false;
            }
            let has_upstream = self.paired.is_some();
            let upstream_ended = async {
                match &mut self.paired {
                    // A byte of an idle upstream belongs to no response; one may have come with the last.
                    Some(paired) if !paired.buffer.is_empty() => {}
                    Some(paired) => drop(paired.stream.readable().await),
                    None => std::future::pending().await,
                }
            };
            let upstream_idle = async {
                match (idle_from, has_upstream) {
                    (Some(from), true) => tokio::time::sleep_until(from).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                read = fill(reader, &mut self.buffer, MAX_HEAD) => return matches!(read, Ok(1..)),
                () = upstream_ended => {
                    // A client that would see the upstream's close without us sees it with us.
                    if self.drop_ended_upstream() {
                        return false;
                    }
                }
                _ = self.connection.changed() => if self.connection.is_over() {
                    return false;
                },
                () = upstream_idle => self.paired = None,
                _ = self.connection.reaped(Protocol::Http11) => return false,
            }
        }
    }

    /// Lets go of an upstream that has closed or has sent bytes nobody asked for. Returns whether it did.
    pub(super) fn drop_ended_upstream(&mut self) -> bool {
        let Some(paired) = &self.paired else { return false };
        let mut byte = [0];
        let usable = paired.buffer.is_empty()
            && matches!(paired.stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        if !usable {
            self.paired = None;
        }
        !usable
    }
}
