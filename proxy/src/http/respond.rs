//! Local replies: what a client gets when the proxy answers itself. One table (`reason.rs`) says which status.

use super::limit_fields;
use crate::flow::OpenFlow;
use crate::reason::Reason;
use crate::tenant::{Limited, Scope};

/// `content-type` values that make a request gRPC (the gRPC over HTTP/2 protocol).
pub(crate) fn is_grpc(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some((head, rest)) = content_type.split_at_checked(GRPC.len()) else {
        return false;
    };
    head.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// A reply of our own, before it takes the form of a protocol version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalReply {
    /// HTTP status.
    pub(crate) status: u16,
    /// gRPC status and message, when the request was gRPC.
    pub(crate) grpc: Option<(u8, &'static str)>,
    /// Body, CRLF included.
    pub(crate) body: Vec<u8>,
    /// `location`, for a redirect.
    pub(crate) location: Option<Vec<u8>>,
    /// `x-tollgate-reason`, when the listener asks for it.
    pub(crate) reason: Option<Reason>,
    /// Whether the downstream connection ends.
    pub(crate) close: bool,
    /// `retry-after` in seconds, where 429 and 503 do not say 1.
    retry_after: Option<u64>,
    /// `x-envoy-overloaded`.
    overloaded: bool,
    /// The limit of a tenant that this is the answer of.
    limited: Option<Limited>,
    /// Whose limit it is, if that is known.
    scope: Option<Scope>,
}

impl LocalReply {
    /// The refusal for `reason`. `denied_body` is the listener's text for a 403.
    pub(crate) fn refusal(reason: Reason, grpc: bool, denied_body: &str, reason_header: bool) -> Self {
        let answer = reason.answer();
        let text = if answer.status == 403 { denied_body } else { phrase(answer.status) };
        let mut body = text.trim_end_matches("\r\n").as_bytes().to_vec();
        body.extend_from_slice(b"\r\n");
        Self {
            status: if grpc { 200 } else { answer.status },
            grpc: grpc.then(|| (answer.grpc_status, reason.code())),
            body: if grpc { Vec::new() } else { body },
            location: None,
            reason: reason_header.then_some(reason),
            close: answer.close,
            // Also where the status of HTTP is 200, so that it would not tell.
            retry_after: (reason.is_limit() && matches!(answer.status, 429 | 503)).then_some(1),
            overloaded: reason.is_overload(),
            limited: None,
            // What memory lacks may be the tenant's, or everybody's.
            scope: (reason.is_overload() && reason != Reason::TenantMemory).then(|| Limited::by(reason).scope),
        }
    }

    /// The refusal of a tenant's limit.
    pub(crate) fn limited(limited: Limited, grpc: bool, reason_header: bool) -> Self {
        let refusal = Self::refusal(limited.reason, grpc, "", reason_header);
        // Who sends the same head again gets the same answer.
        let retry_after = refusal.retry_after.map(|_| limited.retry_after_seconds());
        Self { retry_after, limited: Some(limited), scope: Some(limited.scope), ..refusal }
    }

    /// Whether HTTP/2 refuses the stream instead. gRPC has a status for it, which clients know, and which says why.
    pub(crate) fn refuses_stream(&self) -> bool {
        self.grpc.is_none() && self.limited.is_some_and(|limited| limited.reason.refuses_streams())
    }

    /// 307 to the canonical form of the path.
    pub(crate) fn redirect(location: Vec<u8>, reason_header: bool) -> Self {
        let reason = Reason::PathRedirect;
        let (answer, reason_header) = (reason.answer(), reason_header.then_some(reason));
        Self {
            status: answer.status,
            grpc: None,
            body: Vec::new(),
            location: Some(location),
            reason: reason_header,
            close: answer.close,
            retry_after: None,
            overloaded: false,
            limited: None,
            scope: None,
        }
    }

    /// Header fields besides those of framing.
    pub(crate) fn fields(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut fields = Vec::new();
        match self.grpc {
            Some((status, message)) => {
                fields.push(("content-type", b"application/grpc".to_vec()));
                fields.push(("grpc-status", status.to_string().into_bytes()));
                fields.push(("grpc-message", message.as_bytes().to_vec()));
            }
            None if !self.body.is_empty() => fields.push(("content-type", b"text/plain".to_vec())),
            None => {}
        }
        if let Some(location) = &self.location {
            fields.push(("location", location.clone()));
        }
        if let Some(seconds) = self.retry_after.or_else(|| matches!(self.status, 429 | 503).then_some(1)) {
            fields.push(("retry-after", seconds.to_string().into_bytes()));
        }
        if let Some(limited) = self.limited
            && let Some(rate) = limited.rate
        {
            fields.push(("ratelimit-policy", limit_fields::policy(rate).into_bytes()));
            fields.push(("ratelimit", limit_fields::used_up(limited.retry_after_seconds()).into_bytes()));
        }
        if self.overloaded {
            fields.push(("x-envoy-overloaded", b"true".to_vec()));
        }
        if self.status == 405 {
            fields.push(("allow", b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS".to_vec()));
        }
        if let Some(reason) = self.reason {
            fields.push(("x-tollgate-reason", reason.code().as_bytes().to_vec()));
            if let Some(scope) = self.scope {
                fields.push(("x-tollgate-limit", limit_fields::limit(reason, scope).into_bytes()));
            }
        }
        fields
    }

    /// Writes it to the access log, where the flow has one. An entry has no place of its own for the reason of a limit, so that is
    /// a field of it, whether the client gets one or not.
    pub(crate) fn log(&self, flow: &OpenFlow) {
        flow.log_response(self.status, |log| {
            self.fields().iter().for_each(|(name, value)| log.push(name.as_bytes(), value));
            if let Some(limited) = self.limited.filter(|_| self.reason.is_none()) {
                log.push(b"x-tollgate-reason", limited.reason.code().as_bytes());
            }
            log.push(b"content-length", self.body.len().to_string().as_bytes());
        });
    }

    /// The same where the client gets no answer, but a reset.
    pub(crate) fn log_refused_stream(&self, flow: &OpenFlow) {
        flow.log_response(0, |log| {
            let reason = self.limited.map(|limited| limited.reason).or(self.reason);
            reason.into_iter().for_each(|reason| log.push(b"x-tollgate-reason", reason.code().as_bytes()));
        });
    }

    /// The reply as HTTP/1.1 bytes. `bodiless` leaves the body out, for HEAD; `close` ends the connection even if the
    /// reason alone would not.
    pub(crate) fn to_http1(&self, bodiless: bool, close: bool) -> Vec<u8> {
        let mut out = format!("HTTP/1.1 {} {}\r\n", self.status, phrase(self.status)).into_bytes();
        for (name, value) in self.fields() {
            crate::http::h1::write_field(&mut out, name.as_bytes(), &value);
        }
        out.extend_from_slice(format!("content-length: {}\r\n", self.body.len()).as_bytes());
        if self.close || close {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !bodiless {
            out.extend_from_slice(&self.body);
        }
        out
    }
}

/// Reason phrases of the statuses that we send.
fn phrase(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denial_as_cilium_sends_it() {
        let reply = LocalReply::refusal(Reason::RequestNotAllowed, false, "Access denied", false);
        let expected =
            "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 15\r\n\r\nAccess denied\r\n";
        assert_eq!(String::from_utf8(reply.to_http1(false, false)).unwrap(), expected);
        assert!(String::from_utf8(reply.to_http1(true, true)).unwrap().ends_with("connection: close\r\n\r\n"));
        let custom = LocalReply::refusal(Reason::DenyRule, false, "no\r\n", true);
        assert_eq!(custom.body, b"no\r\n");
        assert!(custom.fields().contains(&("x-tollgate-reason", b"deny_rule".to_vec())));
    }

    #[test]
    fn limits_say_when_to_come_back() {
        for (reason, status, grpc_status, retry_after, overloaded) in [
            (Reason::TenantRate, 429, 8, Some("3"), false),
            (Reason::TenantInFlight, 503, 14, Some("3"), true),
            // Whoever sends the same head again has no better luck.
            (Reason::TenantHeaders, 431, 8, None, false),
        ] {
            let wait = std::time::Duration::from_millis(2_001);
            let limited = Limited { retry_after: Some(wait), ..Limited::by(reason) };
            let retry_after = retry_after.map(|seconds| seconds.as_bytes().to_vec());
            let said = |reply: &LocalReply| {
                reply.fields().into_iter().find(|(name, _)| *name == "retry-after").map(|(_, seconds)| seconds)
            };
            let reply = LocalReply::limited(limited, false, true);
            assert_eq!((reply.status, said(&reply)), (status, retry_after.clone()));
            assert_eq!(reply.fields().contains(&("x-envoy-overloaded", b"true".to_vec())), overloaded);
            let reply = LocalReply::limited(limited, true, true);
            assert_eq!((reply.status, reply.grpc), (200, Some((grpc_status, reason.code()))));
            assert_eq!(said(&reply), retry_after);
        }
        let reply = LocalReply::refusal(Reason::TenantUpstreams, true, "", true);
        assert!(reply.fields().contains(&("retry-after", b"1".to_vec())), "found out on the way to the upstream");
    }

    #[test]
    fn whose_limit_it_is_is_said_where_the_reason_is() {
        let said = |reply: LocalReply| {
            let field = reply.fields().into_iter().find(|(name, _)| *name == "x-tollgate-limit");
            field.map(|(_, value)| String::from_utf8(value).unwrap())
        };
        let limited = Limited { scope: Scope::Flow, ..Limited::by(Reason::TenantInFlight) };
        assert_eq!(said(LocalReply::limited(limited, false, true)).as_deref(), Some("tenant_in_flight;scope=flow"));
        assert_eq!(said(LocalReply::limited(limited, false, false)), None);
        let refusal = |reason| said(LocalReply::refusal(reason, false, "", true));
        assert_eq!(refusal(Reason::TenantUpstreams).as_deref(), Some("tenant_upstreams;scope=tenant"));
        assert_eq!(refusal(Reason::TenantShare).as_deref(), Some("tenant_share;scope=shared"));
        assert_eq!([Reason::TenantMemory, Reason::DenyRule, Reason::UpstreamReset].map(refusal), [None, None, None]);
    }

    #[test]
    fn streams_are_refused_for_what_passes() {
        for &reason in Reason::ALL {
            let limited = Limited::by(reason);
            let refuses = |grpc| LocalReply::limited(limited, grpc, true).refuses_stream();
            assert_eq!((refuses(false), refuses(true)), (reason.refuses_streams(), false), "{}", reason.code());
            assert!(!refuses(false) || (reason.is_overload() && !reason.answer().close), "{}", reason.code());
            assert!(!LocalReply::refusal(reason, false, "", true).refuses_stream(), "{}", reason.code());
        }
    }

    #[test]
    fn grpc_gets_a_status_of_its_own() {
        let reply = LocalReply::refusal(Reason::RequestNotAllowed, true, "Access denied", false);
        assert_eq!((reply.status, reply.grpc.map(|g| g.0), reply.body.len()), (200, Some(7), 0));
        for (content_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("text", false),
        ] {
            assert_eq!(is_grpc(content_type.as_bytes()), expected, "{content_type}");
        }
    }

    #[test]
    fn every_reason_has_a_reply() {
        for &reason in Reason::ALL {
            let reply = LocalReply::refusal(reason, false, "Access denied", false);
            let redirect = reason == Reason::PathRedirect;
            assert_eq!(reply.status >= 400, !redirect, "{}", reason.code());
            assert!(reply.body.ends_with(b"\r\n"), "{}", reason.code());
        }
    }
}
