//! What each stream is doing, for status pages and metrics.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::Variant;

/// State of one type's stream. Counters run from the start of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStatus {
    /// Resource type.
    pub type_url: &'static str,
    /// Whether any resource of this type is wanted: without, there is no stream, and nothing is wrong.
    pub wanted: bool,
    /// A stream is open and the peer speaks HTTP/2.
    pub connected: bool,
    /// When `connected` last changed.
    pub since: SystemTime,
    /// How many resources are in force.
    pub resources: usize,
    /// In which variant the last response was accepted.
    pub mode: Option<Variant>,
    /// Last accepted version, also of an earlier stream.
    pub version: Option<String>,
    /// The later version that was refused last, at least in part: what is in force lags behind. Cleared by an acceptance.
    pub refused_version: Option<String>,
    /// When it was accepted.
    pub accepted_at: Option<SystemTime>,
    /// Responses received.
    pub responses: u64,
    /// Responses accepted.
    pub acks: u64,
    /// Responses refused.
    pub nacks: u64,
    /// Streams opened after the first.
    pub reconnects: u64,
    /// Attempts in a row that ended before anything was received.
    pub failed_attempts: u64,
    /// Why the last stream ended, could not be opened, or the last response was refused. Cleared by an acceptance.
    pub last_error: Option<String>,
}

impl StreamStatus {
    fn new(type_url: &'static str) -> Self {
        Self {
            type_url,
            wanted: true,
            connected: false,
            since: SystemTime::now(),
            resources: 0,
            mode: None,
            version: None,
            refused_version: None,
            accepted_at: None,
            responses: 0,
            acks: 0,
            nacks: 0,
            reconnects: 0,
            failed_attempts: 0,
            last_error: None,
        }
    }

    fn set_connected(&mut self, connected: bool) {
        if self.connected != connected {
            self.connected = connected;
            self.since = SystemTime::now();
        }
    }
}

/// Reads the state of all streams of a client, from any thread.
#[derive(Clone, Debug)]
pub struct Status {
    streams: Vec<watch::Receiver<StreamStatus>>,
    spoken: watch::Receiver<Option<Variant>>,
}

impl Status {
    pub(crate) fn new(streams: Vec<watch::Receiver<StreamStatus>>, spoken: watch::Receiver<Option<Variant>>) -> Self {
        Self { streams, spoken }
    }

    /// The variant that the control plane served last; `None` before any response came.
    #[must_use]
    pub fn mode(&self) -> Option<Variant> {
        *self.spoken.borrow()
    }

    /// A copy of every stream's state, in the order of subscription.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamStatus> {
        self.streams.iter().map(|stream| stream.borrow().clone()).collect()
    }

    /// A copy of the state of one type's stream; `None` if the type was not subscribed to.
    #[must_use]
    pub fn stream(&self, type_url: &str) -> Option<StreamStatus> {
        self.streams().into_iter().find(|stream| stream.type_url == type_url)
    }

    /// Waits until the state of one type's stream satisfies `wanted`, and returns it. `None` if the type was not
    /// subscribed to or the client was dropped.
    pub async fn wait_for(&self, type_url: &str, wanted: impl FnMut(&StreamStatus) -> bool) -> Option<StreamStatus> {
        let mut stream = self.streams.iter().find(|stream| stream.borrow().type_url == type_url)?.clone();
        stream.wait_for(wanted).await.ok().map(|state| state.clone())
    }
}

/// The writing side of one stream's state.
#[derive(Debug)]
pub(crate) struct StreamStatusWriter {
    state: watch::Sender<StreamStatus>,
    opened_before: AtomicBool,
}

impl StreamStatusWriter {
    pub(crate) fn new(type_url: &'static str) -> Self {
        Self { state: watch::Sender::new(StreamStatus::new(type_url)), opened_before: AtomicBool::new(false) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<StreamStatus> {
        self.state.subscribe()
    }

    pub(crate) fn opened(&self) {
        let reconnect = self.opened_before.swap(true, Ordering::Relaxed);
        self.state.send_modify(|state| {
            state.wanted = true;
            state.set_connected(true);
            state.reconnects += u64::from(reconnect);
        });
    }

    pub(crate) fn received(&self) {
        self.state.send_modify(|state| {
            state.responses += 1;
            state.failed_attempts = 0;
        });
    }

    /// How many resources are in force after some were taken away.
    pub(crate) fn holds(&self, resources: usize) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.resources, resources) != resources);
    }

    pub(crate) fn accepted(&self, version: &str, resources: usize, variant: Variant) {
        self.state.send_modify(|state| {
            state.mode = Some(variant);
            state.resources = resources;
            state.acks += 1;
            state.version = Some(version.to_owned());
            state.refused_version = None;
            state.accepted_at = Some(SystemTime::now());
            state.last_error = None;
        });
    }

    pub(crate) fn refused(&self, version: &str, reason: String) {
        self.state.send_modify(|state| {
            state.nacks += 1;
            state.refused_version = Some(version.to_owned());
            state.last_error = Some(reason);
        });
    }

    /// Something is wanted again on a stream that is open; or nothing is, which counts as having none.
    pub(crate) fn set_wanted(&self, wanted: bool) {
        self.state.send_modify(|state| {
            state.wanted = wanted;
            state.set_connected(wanted);
            state.last_error = None;
        });
    }

    /// The stream ended, or could not be opened. Returns whether this is news: the first failure after something was
    /// received, or another reason than before.
    pub(crate) fn closed(&self, reason: String) -> bool {
        let mut news = false;
        self.state.send_modify(|state| {
            state.set_connected(false);
            state.failed_attempts += 1;
            news = state.failed_attempts == 1 || state.last_error.as_ref() != Some(&reason);
            state.last_error = Some(reason);
        });
        news
    }
}
