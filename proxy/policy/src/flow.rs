//! What is judged: one connection ([`Flow`]) and one HTTP request on it ([`Request`]).

use std::fmt;

use crate::EndpointKey;

/// Policy direction relative to the local endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Towards the local endpoint; the remote peer is the source.
    Ingress,
    /// From the local endpoint; the remote peer is the destination.
    Egress,
}

impl Direction {
    /// The lower-case word used in configuration, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A numeric security identity, as Cilium allocates them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecurityId(pub u32);

impl SecurityId {
    /// `reserved:world`: a peer that no identity source knows (never 0, so that "unknown" cannot equal "any").
    pub const WORLD: Self = Self(2);
}

impl fmt::Display for SecurityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One connection as policy sees it. Every field comes from the kernel or the listener, none from the peer's bytes,
/// except `server_name`.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// Which of the endpoint's two rule lists applies.
    pub direction: Direction,
    /// Whose policy is enforced: the address of the destination for ingress, of the source for egress, or the name of an
    /// Ingress policy.
    pub endpoint: &'a EndpointKey,
    /// Identity of the other side: the source for ingress, the destination for egress.
    pub remote: SecurityId,
    /// Original destination port.
    pub port: u16,
    /// The listener's proxy id; 0 when it has none. A rule with a non-zero id applies to that listener only.
    pub proxy_id: u16,
    /// Server name of the TLS ClientHello.
    pub server_name: ServerName<'a>,
}

/// What is known about the TLS server name that a connection asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerName<'a> {
    /// Nobody looked. Rules that ask for one admit nothing, and refuse everything that their other conditions cover.
    #[default]
    Unknown,
    /// The connection asks for none.
    Absent,
    /// This one, as received.
    Name(&'a str),
}

impl<'a> From<Option<&'a str>> for ServerName<'a> {
    /// What a ClientHello said.
    fn from(seen: Option<&'a str>) -> Self {
        seen.map_or(Self::Absent, Self::Name)
    }
}

/// Access to the header fields of a request without copying them into a map.
pub trait Headers {
    /// Calls `visit` with the value of each field named `name` (lower case), in the order received.
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]));
}

/// A request without header fields, for tests and tools.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn each(&self, _name: &str, _visit: &mut dyn FnMut(&[u8])) {}
}

/// Field lists as `(name, value)` pairs in the order received; names compare without regard to ASCII case.
impl<N: AsRef<[u8]>, V: AsRef<[u8]>> Headers for [(N, V)] {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        for (field, value) in self {
            if field.as_ref().eq_ignore_ascii_case(name.as_bytes()) {
                visit(value.as_ref());
            }
        }
    }
}

/// One HTTP request in its canonical form: exactly what will be forwarded if it is allowed.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Method token, case preserved (`:method`).
    pub method: &'a [u8],
    /// `http` or `https` (`:scheme`).
    pub scheme: &'a [u8],
    /// Host, with its port when one was sent (`:authority`; HTTP/1.1 `Host`).
    pub authority: &'a [u8],
    /// Canonical path with its query (`:path`).
    pub path: &'a [u8],
    /// All other fields.
    pub headers: &'a dyn Headers,
}
