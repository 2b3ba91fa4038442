//! The closed list of reasons for refusing, failing or ending a flow, and the one table that says what a client sees.
//!
//! A reason is a metric label, a log field, the flow record's `reason` and (opt-in) the `x-tollgate-reason` header. Each
//! refusal has exactly one.

use tollgate_policy::DenyReason;

/// What the client of a refused request sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status of the local reply.
    pub status: u16,
    /// gRPC status sent (with HTTP 200) when the request is gRPC.
    pub grpc_status: u8,
    /// Whether the downstream connection ends after the reply.
    pub close: bool,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $code:literal, $status:literal, $grpc:literal, $close:literal;)*) => {
        /// Why a request or connection was refused, failed or ended. One row of the table in this module each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the table; a reason's position is its metric slot.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable snake-case code.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// What the client sees, where it can still be told.
            pub const fn answer(self) -> Answer {
                match self {
                    $(Self::$name => Answer { status: $status, grpc_status: $grpc, close: $close },)*
                }
            }
        }
    };
}

reasons! {
    // Policy said no. Close only where the connection's own L4 permission is gone.
    /// The endpoint's first policy did not come within `policy_wait`.
    PolicyPending => "policy_pending", 403, 7, true;
    /// Policies are known, but none for this endpoint.
    NoPolicy => "no_policy", 403, 7, true;
    /// No rule covers the port.
    PortNotAllowed => "port_not_allowed", 403, 7, true;
    /// Rules cover the port, none admits this peer.
    PeerNotAllowed => "peer_not_allowed", 403, 7, true;
    /// Rules admit the peer, none this request.
    RequestNotAllowed => "request_not_allowed", 403, 7, false;
    /// A deny rule matched.
    DenyRule => "deny_rule", 403, 7, false;
    /// Matching a value with the policy's expressions would take more work than one request may cause.
    MatchBudget => "match_budget", 403, 7, false;
    /// What would have decided is quarantined.
    Quarantined => "quarantined", 403, 7, false;
    /// The peer's identity cannot be looked up.
    IdentityUnknown => "identity_unknown", 403, 7, true;
    /// The address of an end carries another identity than the connection, tunnel or exchange was admitted with, and what is
    /// under way cannot go on as somebody else's.
    IdentityChanged => "identity_changed", 403, 7, true;
    /// The local address belongs to another endpoint than when the connection was accepted.
    EndpointChanged => "endpoint_changed", 403, 7, true;
    /// Policy changed and no longer allows this tunnel, stream or connection.
    Revoked => "revoked", 403, 7, true;
    /// The flow would reach one of our own listeners or carries our own mark.
    Loop => "loop", 403, 7, true;

    // The client's message cannot be taken.
    /// Not HTTP, or HTTP that two readers could read differently.
    MalformedRequest => "malformed_request", 400, 13, true;
    /// The path cannot be made canonical without guessing.
    AmbiguousPath => "ambiguous_path", 400, 13, true;
    /// The path has escaped slashes; the client was sent to its canonical form.
    PathRedirect => "path_redirect", 307, 13, false;
    /// Missing, repeated or malformed `Host` / `:authority`.
    BadAuthority => "bad_authority", 400, 13, true;
    /// Request line over the limit.
    TargetTooLong => "target_too_long", 414, 13, true;
    /// Header section over the limit in bytes or fields.
    HeadersTooLarge => "headers_too_large", 431, 8, true;
    /// A transfer coding other than `chunked`.
    TransferCoding => "transfer_coding", 501, 12, true;
    /// A WebSocket, where the listener allows none.
    UpgradeNotAllowed => "upgrade_not_allowed", 403, 7, false;
    /// CONNECT or TRACE without a rule that names it.
    MethodNotSupported => "method_not_supported", 405, 12, true;
    /// An expectation other than `100-continue`.
    Expectation => "expectation", 417, 13, true;
    /// Neither HTTP/1.x nor HTTP/2 within the detection bound, on a port with HTTP rules.
    ProtocolUnknown => "protocol_unknown", 400, 13, true;
    /// The client stopped sending in the middle of a message.
    DownstreamTimeout => "downstream_timeout", 408, 4, true;
    /// The client went away before the end.
    DownstreamReset => "downstream_reset", 400, 1, true;

    // A limit of the process or the tenant.
    /// Too many open connections.
    ConnectionLimit => "connection_limit", 503, 14, true;
    /// The connection waited for its client, and others needed the place.
    IdleReaped => "idle_reaped", 408, 14, true;
    /// The client took nothing of what it was sent, and others needed the place.
    SlowReader => "slow_reader", 408, 4, true;
    /// More HTTP/2 frames that move no request than the connection's work and the limit's rate pay for.
    FrameFlood => "frame_flood", 429, 8, true;
    /// More HTTP/2 streams cancelled before they were answered, or broken, than the limit's rate allows.
    ResetFlood => "reset_flood", 429, 8, true;
    /// The tenant has as many connections open as it may have.
    TenantConnections => "tenant_connections", 503, 14, true;
    /// The tenant opens connections faster than it may.
    TenantConnectionRate => "tenant_connection_rate", 503, 14, true;
    /// The tenant sends requests faster than it may.
    TenantRate => "tenant_rate", 429, 8, false;
    /// The tenant has as many requests under way as it may have.
    TenantInFlight => "tenant_in_flight", 503, 14, false;
    /// The tenant has as many tunnels and endless exchanges open as it may have.
    TenantLongStreams => "tenant_long_streams", 503, 14, false;
    /// The tenant has had as much processor time as it may have.
    TenantCpu => "tenant_cpu", 503, 14, false;
    /// The tenant's requests wait too long behind each other for the processor.
    TenantQueueDelay => "tenant_queue_delay", 503, 14, false;
    /// What all tenants share is short, and this one has more of it than others.
    TenantShare => "tenant_share", 503, 14, false;
    /// The tenant has as much buffered as it may have.
    TenantMemory => "tenant_memory", 503, 14, true;
    /// The request's head is longer than the tenant's may be.
    TenantHeaders => "tenant_headers", 431, 8, true;
    /// The tenant has as many connections to the destination as it may have.
    TenantUpstreams => "tenant_upstreams", 503, 14, false;
    /// The tenant moves more bytes than it may. Slows down, and refuses nothing.
    TenantBandwidth => "tenant_bandwidth", 503, 14, false;
    /// The tenant is kept out for a while, because of what its connections did to the proxy.
    TenantIsolated => "tenant_isolated", 503, 14, true;

    // The upstream failed.
    /// Connection refused, unreachable, or timed out.
    UpstreamConnect => "upstream_connect", 503, 14, false;
    /// The exchange took longer than the listener or the client allows, and the request had been complete.
    UpstreamTimeout => "upstream_timeout", 504, 4, true;
    /// Reset or closed before a complete response head.
    UpstreamReset => "upstream_reset", 503, 14, true;
    /// A response that cannot be forwarded safely.
    UpstreamMalformed => "upstream_malformed", 502, 13, true;
    /// Closed in the middle of the response body.
    UpstreamTruncated => "upstream_truncated", 502, 14, true;

    // Ours.
    /// The process is draining.
    Draining => "draining", 503, 14, true;
    /// A defect of ours; counted, logged, and only this flow is lost.
    Internal => "internal", 500, 13, true;
    /// The record was dropped unfinished: the task ended without saying why.
    Dropped => "dropped", 500, 13, true;
}

impl Reason {
    /// Those of limits that can be told to count only.
    pub(crate) const SHADOWED: [Self; 4] = [Self::IdleReaped, Self::SlowReader, Self::FrameFlood, Self::ResetFlood];

    /// Whether it is a limit, of the process, a connection or a tenant, rather than anything that a request or policy says.
    pub const fn is_limit(self) -> bool {
        self.is_overload()
            || matches!(
                self,
                Self::ConnectionLimit
                    | Self::IdleReaped
                    | Self::SlowReader
                    | Self::FrameFlood
                    | Self::ResetFlood
                    | Self::TenantRate
                    | Self::TenantHeaders
            )
    }

    /// Whether a connection that is told to go for this ends at once, whatever is under way on it.
    pub(crate) const fn ends_at_work(self) -> bool {
        matches!(self, Self::SlowReader | Self::TenantMemory)
    }

    /// Whether an HTTP/2 stream is refused for it rather than answered. It passes by itself, and nothing of the request was
    /// forwarded: so a client may send it again, whatever it asks for (RFC 9113 section 8.7).
    pub(crate) const fn refuses_streams(self) -> bool {
        matches!(self, Self::TenantInFlight | Self::TenantCpu | Self::TenantQueueDelay | Self::TenantShare)
    }

    /// Whether it says that there is no room, rather than that something is wrong or too fast: `x-envoy-overloaded`, which
    /// clients and meshes know, goes with it.
    pub const fn is_overload(self) -> bool {
        matches!(
            self,
            Self::TenantConnections
                | Self::TenantConnectionRate
                | Self::TenantInFlight
                | Self::TenantLongStreams
                | Self::TenantCpu
                | Self::TenantQueueDelay
                | Self::TenantShare
                | Self::TenantMemory
                | Self::TenantUpstreams
                | Self::TenantBandwidth
                | Self::TenantIsolated
        )
    }
}

impl From<DenyReason> for Reason {
    fn from(reason: DenyReason) -> Self {
        match reason {
            DenyReason::NoPolicy => Self::NoPolicy,
            DenyReason::NoPortRule => Self::PortNotAllowed,
            DenyReason::NoPeerRule => Self::PeerNotAllowed,
            DenyReason::NoHttpRule => Self::RequestNotAllowed,
            DenyReason::DenyRule => Self::DenyRule,
            DenyReason::MatchBudget => Self::MatchBudget,
            DenyReason::Quarantined => Self::Quarantined,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn repository() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    /// Cells of the table of all limits in `docs/limits.md`.
    fn documented() -> Vec<Vec<String>> {
        let text = fs::read_to_string(repository().join("docs/limits.md")).unwrap();
        let (_, section) = text.split_once("\n## Every limit\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
    }

    /// The text of each suite, by its name.
    fn suites() -> BTreeMap<String, String> {
        let folders = ["", "loopback", "xds_agent"].map(|folder| repository().join("tests/tests").join(folder));
        let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
        let suites = files.filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
        let named = |file: std::path::PathBuf| {
            (file.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&file).unwrap())
        };
        suites.map(named).collect()
    }

    #[test]
    fn every_limit_has_its_row_and_the_tests_that_show_it() {
        let (rows, suites) = (documented(), suites());
        for row in &rows {
            let [code, _, _, _, _, default, shadow, tests] = &row[..] else { panic!("eight cells: {row:?}") };
            let tests: Vec<&str> = tests.split_whitespace().map(|test| test.trim_matches('`')).collect();
            assert!(
                !default.is_empty() && !shadow.is_empty() && !tests.is_empty(),
                "{code}: which default, which test?"
            );
            for test in tests {
                let (suite, function) = test.split_once("::").unwrap();
                assert!(suites[suite].contains(&format!("\nfn {function}() {{\n")), "there is no {test}");
            }
        }
        for reason in Reason::ALL.iter().filter(|reason| reason.is_limit()) {
            let code = format!("`{}`", reason.code());
            let found = rows.iter().filter(|row| row[0] == code).count();
            assert_eq!(found, 1, "docs/limits.md has to have a row for {code}, with the tests that show it");
        }
    }

    #[test]
    fn rows_of_limits_say_what_clients_see() {
        for row in documented() {
            let reason = Reason::ALL.iter().find(|reason| row[0] == format!("`{}`", reason.code()));
            let reason = *reason.unwrap_or_else(|| panic!("there is no {}", row[0]));
            let (answer, number) =
                (reason.answer(), |cell: &str| cell.get(..3).and_then(|code| code.parse::<u16>().ok()));
            for status in [&row[2], &row[3]].into_iter().filter_map(|cell| number(cell)) {
                assert_eq!(status, answer.status, "{}", row[0]);
                assert_eq!(row[2].contains("close"), answer.close, "{}", row[0]);
            }
            if !row[4].is_empty() {
                assert_eq!(row[4], answer.grpc_status.to_string(), "{}", row[0]);
            }
            assert_eq!(row[3] == "REFUSED_STREAM", reason.refuses_streams(), "{}", row[0]);
        }
    }
}
