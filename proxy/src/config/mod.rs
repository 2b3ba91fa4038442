//! Configuration: every key of `tollgate.yaml` as a plain value, checked before anything starts.
//!
//! [`load`] reads the file into a tree with places (`document`), walks it with typed readers (`read`, `scalar`,
//! `sections`, `identities`, `listeners`), and collects every mistake before it fails. The types below are what the rest of the
//! process sees: resolved, with defaults filled in.

pub(crate) mod document;
mod dump;
mod error;
mod identities;
mod limits;
mod listeners;
mod load;
pub(crate) mod read;
mod scalar;
mod secret_names;
mod sections;
mod tenants;
#[cfg(test)]
mod tests;
mod without_effect;

pub use dump::{listener as listener_to_json, to_json};
pub use error::{ConfigError, ConfigErrors};
pub use identities::{Identities, IdentityMode, IdentitySettings, StaticIdentity};
pub use limits::{IdleLimits, Limits, MemoryLimit, Rate};
pub(crate) use listeners::overlap;
pub(crate) use load::{DRAIN_TIMEOUT, MAX_CONNECTIONS, cores};
pub use load::{TenantsConfigured, default_admin, load, parse, tenants_configured};
pub use scalar::ParseAddressError;
pub use secret_names::{policy_directory, secret_names};
pub(crate) use sections::{check_node_id, io_reason, node_id};

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tollgate_policy::Direction;

use crate::tenant::TenantConfig;

/// The whole configuration, resolved: defaults filled in, every value checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Who we are towards the control plane.
    pub node: Node,
    /// Number of worker threads.
    pub workers: usize,
    /// Admin endpoints.
    pub admin: Vec<ListenAddress>,
    /// Version that the admin endpoints report instead of ours: an agent asks for a certain one.
    pub reported_version: Option<String>,
    /// Prometheus scrape endpoints.
    pub metrics: Vec<SocketAddr>,
    /// Health probe endpoints.
    pub health: Vec<SocketAddr>,
    /// Where policy comes from.
    pub policy_source: PolicySource,
    /// Whether the xDS control plane says which endpoints make up a tenant.
    pub tenants_from_xds: bool,
    /// Where peer identities come from, and whose word counts.
    pub identities: IdentitySettings,
    /// Secrets out of files.
    pub secrets: Vec<SecretFile>,
    /// Sockets that accept redirected connections.
    pub listeners: Vec<Listener>,
    /// Whether the xDS control plane says where to listen, too.
    pub dynamic_listeners: bool,
    /// What listeners of the control plane do not say themselves.
    pub upstream: UpstreamDefaults,
    /// What came with an Envoy bootstrap; `None` for a file of ours.
    pub bootstrap: Option<Bootstrap>,
    /// Sinks of flow records.
    pub access_log: Vec<AccessLog>,
    /// Time given to connections on shutdown before they are cut.
    pub drain_timeout: Duration,
    /// Open downstream connections per process, at most; shared between the workers.
    pub max_connections: usize,
    /// What hostile traffic may cost.
    pub limits: Limits,
    /// Who is a tenant, and what each may use.
    pub tenants: TenantConfig,
    /// Whether tenants share a worker's time; otherwise tasks run in the order of their wakes.
    pub fairness: bool,
    /// Whether tenants that hold up others go to threads apart. Without fair shares nobody is known to.
    pub lanes: bool,
}

/// Identity towards the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Four parts joined by `~`, the second an IP address, as Cilium's agent demands.
    pub id: String,
    /// Cluster name.
    pub cluster: String,
}

impl Default for Node {
    /// As Cilium's agent expects its proxy.
    fn default() -> Self {
        Self { id: sections::NODE_ID.to_owned(), cluster: "ingress-cluster".to_owned() }
    }
}

/// Time-outs of upstream connections of listeners that the control plane asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamDefaults {
    /// Time to establish one.
    pub connect_timeout: Duration,
    /// How long one may be without an exchange.
    pub idle_timeout: Option<Duration>,
}

impl Default for UpstreamDefaults {
    fn default() -> Self {
        Self { connect_timeout: listeners::CONNECT_TIMEOUT, idle_timeout: None }
    }
}

/// What an Envoy bootstrap says beyond what a configuration of ours can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// How it says to speak to the control plane.
    pub mode: XdsMode,
    /// Its settings without effect, by path.
    pub ignored: Vec<String>,
}

/// A stream socket address of ours or of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix stream socket.
    Unix(PathBuf),
}

/// Where policy comes from: exactly one.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicySource {
    /// An xDS control plane.
    Xds {
        /// Its address.
        address: ListenAddress,
        /// How to speak to it.
        mode: XdsMode,
    },
    /// A watched directory of NetworkPolicy files (JSON or YAML).
    Directory(PathBuf),
}

/// xDS transport variants (`spec/cilium-agent.md` section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdsMode {
    /// Find out.
    Auto,
    /// One state-of-the-world stream per type.
    Split,
    /// One aggregated state-of-the-world stream.
    Ads,
    /// One incremental stream per type.
    DeltaSplit,
}

/// A secret that policies name, and the file that holds its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// SDS name; unique.
    pub name: String,
    /// Read again whenever it changes. May be missing; then the secret is.
    pub file: PathBuf,
}

/// A socket that accepts connections.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Name in records and metrics; unique.
    pub name: String,
    /// Address to bind.
    pub address: SocketAddr,
    /// Further addresses of the same listener, such as the IPv6 loopback.
    pub additional_addresses: Vec<SocketAddr>,
    /// Policy direction of what arrives here.
    pub direction: Direction,
    /// TPROXY mode: needs CAP_NET_ADMIN or CAP_NET_RAW; false needs no privilege.
    pub transparent: bool,
    /// Whether each worker has sockets of its own (`SO_REUSEPORT`), a queue for each shard of sources. One for all where BPF assigns
    /// connections to it.
    pub reuse_port: bool,
    /// Matched against a rule's `proxy_id`; 0 for none.
    pub proxy_id: u16,
    /// Where allowed connections go.
    pub upstream: Upstream,
    /// Whose policy is enforced, when it is not the original destination (ingress) or the source (egress): for load
    /// tests on loopback.
    pub endpoint: Option<IpAddr>,
    /// Whether upstream sockets keep the client's source address.
    pub original_source: OriginalSource,
    /// Path canonicalisation.
    pub normalize: Normalize,
    /// How long a new connection is held for its endpoint's first policy.
    pub policy_wait: Duration,
    /// Time to establish an upstream connection.
    pub connect_timeout: Duration,
    /// Time for a complete request head once its first byte came (and for protocol detection).
    pub request_head_timeout: Duration,
    /// Longest time in which nothing moves of a connection that passes as bytes.
    pub tcp_idle_timeout: Option<Duration>,
    /// Body of a 403, without its final CRLF.
    pub denied_body: String,
    /// Whether refusals carry `x-tollgate-reason`.
    pub reason_header: bool,
    /// What HTTP requests get on their way.
    pub http: HttpSettings,
    /// Socket of an access log (see [`AccessLog::CiliumSocket`]) of this listener alone, beside those of all listeners.
    pub access_log: Option<PathBuf>,
    /// What an agent that asks for the listener says of its surroundings; `None` for a listener of the configuration.
    pub agent: Option<Agent>,
}

/// How HTTP is treated beyond policy, as an agent asks its proxy for it. By default nothing is added or limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// Whether a request that comes without `x-request-id` is forwarded with one.
    pub request_id: bool,
    /// What becomes of `x-forwarded-proto`.
    pub forwarded_proto: ForwardedProto,
    /// What every request gets that has no limits of its own kind.
    pub limits: RouteLimits,
    /// What requests of gRPC get instead, where a control plane has a route for them.
    pub grpc_limits: Option<RouteLimits>,
    /// Whether the handshake of a WebSocket may open a tunnel.
    pub websocket: bool,
    /// How long an upstream connection is kept without an exchange.
    pub upstream_idle_timeout: Option<Duration>,
    /// How many requests a client may send on one connection, which ends in order with the last; zero: any number.
    pub max_requests_per_connection: u32,
}

impl HttpSettings {
    /// The limits of a request, by whether it is one of gRPC.
    pub(crate) fn limits_of(&self, is_grpc: bool) -> &RouteLimits {
        self.grpc_limits.as_ref().filter(|_| is_grpc).unwrap_or(&self.limits)
    }
}

/// How long an exchange may take and how often it is tried. By default there are no limits and no tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteLimits {
    /// Longest time in which nothing of an exchange moves, in either direction.
    pub stream_idle_timeout: Option<Duration>,
    /// Time from the end of a request to that of its response.
    pub timeout: Option<Duration>,
    /// Whether a client's `grpc-timeout` ends its exchange.
    pub grpc_timeout: bool,
    /// The longest of those that counts.
    pub grpc_timeout_max: Option<Duration>,
    /// How often a request is sent again that got a 5xx, or nothing.
    pub retries: u32,
    /// Time from the end of a request to the beginning of its response, of each try.
    pub per_try_timeout: Option<Duration>,
}

/// Treatment of `x-forwarded-proto`, which says `http` here: TLS is not intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedProto {
    /// It passes as it came.
    Keep,
    /// It is added where it is missing.
    Add,
    /// What the client says is replaced.
    Overwrite,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            request_id: false,
            forwarded_proto: ForwardedProto::Keep,
            limits: RouteLimits::default(),
            grpc_limits: None,
            websocket: true,
            upstream_idle_timeout: None,
            max_requests_per_connection: 0,
        }
    }
}

/// What an agent tells its proxy with a listener (`spec/cilium-agent.md` section 2.3): where its maps are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// Where the BPF file system is mounted; `None`: no maps are to be used.
    pub bpf_root: Option<PathBuf>,
    /// Name of the map of addresses and identities, below `tc/globals`; `None`: the agent's old default.
    pub ipcache_name: Option<String>,
    /// Identities come from `NetworkPolicyHosts` instead of that map.
    pub use_nphds: bool,
    /// How long a looked up identity may be used.
    pub cache_entry_ttl: Option<Duration>,
    /// `SO_LINGER` of upstream sockets that are bound to the client's address and port. Only zero, which resets, is done:
    /// any other time would stop the worker that closes.
    pub original_source_linger: Option<Duration>,
}

impl Listener {
    /// All addresses to bind.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        std::iter::once(self.address).chain(self.additional_addresses.iter().copied())
    }

    /// Whether a socket that was opened for `other` does for this one, too.
    pub fn shares_sockets_with(&self, other: &Self) -> bool {
        let options = |listener: &Self| (listener.direction, listener.transparent, listener.reuse_port);
        options(self) == options(other)
    }
}

/// Where an allowed connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The address before redirection.
    OriginalDst,
    /// Always this address, for load tests.
    Fixed(SocketAddr),
}

/// When an upstream socket is bound to the client's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalSource {
    /// Never: the node's address is used.
    Never,
    /// Whenever family and addresses permit.
    Always,
    /// Only when no local policy owns the destination (Cilium's egress rule) and it is no address of this host.
    RemoteDestinations,
}

/// How a request is made canonical before it is matched and forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normalize {
    /// Resolve dot segments, decode unreserved escapes (RFC 3986 section 6.2.2).
    pub path: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// What `%2F` and `%5C` lead to.
    pub escaped_slashes: EscapedSlashes,
    /// What names of fields with an underscore lead to.
    pub field_underscores: Underscores,
}

impl Default for Normalize {
    /// As Cilium's agent configures Envoy.
    fn default() -> Self {
        let escaped_slashes = EscapedSlashes::UnescapeAndRedirect;
        Self { path: true, merge_slashes: true, escaped_slashes, field_underscores: Underscores::Keep }
    }
}

/// Treatment of escaped slashes, as Envoy names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// Leave them.
    Keep,
    /// 400.
    Reject,
    /// Decode, then answer 307 to the decoded path.
    UnescapeAndRedirect,
    /// Decode and go on.
    UnescapeAndForward,
}

/// Treatment of header and trailer fields whose name has an underscore: back ends that hand fields on as variables (CGI) take it
/// for a hyphen, and so for another field, which policy may have looked at. Names are those of Envoy's
/// `headers_with_underscores_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underscores {
    /// They pass.
    Keep,
    /// 400; trailers of that kind are dropped.
    Reject,
    /// They are taken out before policy looks.
    Drop,
}

impl Underscores {
    /// Whether a field of that name may not pass.
    pub(crate) fn bar(self, name: &[u8]) -> bool {
        self != Self::Keep && memchr::memchr(b'_', name).is_some()
    }
}

/// A sink of flow records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// JSON lines to standard output.
    JsonStdout,
    /// JSON lines appended to a file.
    JsonFile(PathBuf),
    /// `cilium.LogEntry` messages to the reader of this Unix socket (`SOCK_SEQPACKET`), for requests of every listener.
    CiliumSocket(PathBuf),
}
