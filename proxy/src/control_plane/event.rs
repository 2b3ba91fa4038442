//! What happens between the control plane and its proxies, as one line each.

use std::fmt;
use std::io::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use crate::cli::Output;

/// Takes each event as it happens.
pub type Report = Arc<dyn Fn(&Event) + Send + Sync>;

/// A resource type that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ResourceType {
    /// NPDS.
    NetworkPolicy,
    /// NPHDS.
    NetworkPolicyHosts,
    /// Tenants.
    Tenant,
}

impl ResourceType {
    /// The type's URL on the wire.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::NetworkPolicy => tollgate_proto::type_url::NETWORK_POLICY,
            Self::NetworkPolicyHosts => tollgate_proto::type_url::NETWORK_POLICY_HOSTS,
            Self::Tenant => tollgate_proto::type_url::TENANT,
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are those of the protocol")]
pub enum Event {
    /// Proxies can connect.
    Listening { address: String },
    /// A file does not load; its last good content stays.
    FileError { error: String },
    /// Several policies claim the same; all of them are served.
    Contested { error: String },
    /// The state of a type changed and has a new version.
    State { r#type: ResourceType, version: u64, resources: usize },
    /// A proxy subscribed.
    StreamOpened { r#type: ResourceType, node: String },
    /// A stream ended; `reason` is empty when the proxy ended it.
    StreamClosed { r#type: ResourceType, node: String, reason: String },
    /// A response was sent.
    Push { r#type: ResourceType, version: u64, nonce: String, node: String, resources: usize },
    /// A response was accepted, `latency_us` after it was sent.
    Ack { r#type: ResourceType, version: String, nonce: String, node: String, latency_us: u64 },
    /// A response was refused; `version` is what the proxy accepted last.
    Nack { r#type: ResourceType, version: String, nonce: String, node: String, latency_us: u64, error: String },
    /// A request answers no response that is outstanding; it is ignored.
    Stale { r#type: ResourceType, nonce: String, node: String },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening { address } => write!(f, "listening on {address}"),
            Self::FileError { error } => write!(f, "error {error}; its last good content, if any, stays"),
            Self::Contested { error } => write!(f, "contested {error}"),
            Self::State { r#type, version, resources } => {
                write!(f, "state {type:?} version={version} resources={resources}")
            }
            Self::StreamOpened { r#type, node } => write!(f, "open {type:?} node={node}"),
            Self::StreamClosed { r#type, node, reason } if reason.is_empty() => write!(f, "close {type:?} node={node}"),
            Self::StreamClosed { r#type, node, reason } => write!(f, "close {type:?} node={node} reason={reason}"),
            Self::Push { r#type, version, nonce, node, resources } => {
                write!(f, "push {type:?} version={version} nonce={nonce} node={node} resources={resources}")
            }
            Self::Ack { r#type, version, nonce, node, latency_us } => {
                write!(f, "ack {type:?} version={version} nonce={nonce} node={node} latency_us={latency_us}")
            }
            Self::Nack { r#type, version, nonce, node, latency_us, error } => {
                write!(f, "nack {type:?} version={version} nonce={nonce} node={node} latency_us={latency_us} ")?;
                write!(f, "error={}", error.replace('\n', " "))
            }
            Self::Stale { r#type, nonce, node } => write!(f, "stale {type:?} nonce={nonce} node={node}"),
        }
    }
}

#[derive(Serialize)]
struct Stamped<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

/// Prints the event with its time on standard output.
pub(super) fn print(event: &Event, output: Output) {
    let time = humantime::format_rfc3339_micros(SystemTime::now());
    let line = match output {
        Output::Text => format!("{time} {event}\n"),
        // Strings and numbers only: it cannot fail.
        Output::Json => match serde_json::to_string(&Stamped { time: time.to_string(), event }) {
            Ok(json) => json + "\n",
            Err(error) => format!("{{\"error\":\"{error}\"}}\n"),
        },
    };
    // A reader that went away does not end the service of the proxies.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}
