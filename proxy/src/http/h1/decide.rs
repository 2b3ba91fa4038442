//! From the bytes of one request head to a decision. Nothing here reads, writes or waits.

use std::mem::MaybeUninit;
use std::time::Instant;

use tollgate_policy::{HeaderEdits, Permit, Request, SecurityId};
use tollgate_schedule::{Work, mark};

use super::head::{HeadScanner, MAX_FIELDS};
use super::request::{FieldStorage, Refusal, RequestBody, RequestHead, Rewritten, Version};
use super::retry::Retries;
use super::websocket::WebSocketKey;
use crate::config::Normalize;
use crate::flow::{Fields, HttpRecord, OpenFlow, Protocol};
use crate::http::canonical::CanonicalPath;
use crate::http::limits::TimeLimits;
use crate::http::request_id::RequestId;
use crate::http::respond::LocalReply;
use crate::listener::connection::Connection;
use crate::listener::judge::Admitted;
use crate::reason::Reason;
use crate::tenant::{Charged, Head};

/// What is to be done with a request.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Send it on.
    Forward(Box<Forward>),
    /// Answer it here.
    Reply(Box<Reply>),
}

/// An admitted request.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) permit: Permit,
    pub(crate) flow: OpenFlow,
    /// Head to send, when it differs from the bytes received.
    pub(crate) rewritten: Option<Rewritten>,
    pub(crate) body: RequestBody,
    /// Trailer fields that were announced, in lower case.
    pub(crate) trailers: Vec<Vec<u8>>,
    /// What these two take of memory.
    pub(crate) _beside_head: Option<Charged>,
    pub(crate) version: Version,
    /// The method is HEAD, so that no response has a body.
    pub(crate) to_head: bool,
    /// The key of a WebSocket's handshake; only its answer opens a tunnel.
    pub(crate) websocket: Option<WebSocketKey>,
    pub(crate) expects_continue: bool,
    /// Nothing may follow on this upstream connection.
    pub(crate) last: bool,
    pub(crate) close: bool,
    pub(crate) grpc: bool,
    /// Whom it was admitted for.
    pub(crate) source: SecurityId,
    /// The moment that it was judged in; see [`Connection::moment`].
    pub(crate) moment: (u64, u64),
    /// How long it may take.
    pub(crate) limits: TimeLimits,
    /// How often it may be sent again; not known before its body is looked for.
    pub(crate) retries: Retries,
}

/// A request that is answered here.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) reply: LocalReply,
    pub(crate) flow: OpenFlow,
    /// Why.
    pub(crate) reason: Reason,
    /// Body that is still to come; `None` where framing is not known.
    pub(crate) body: Option<RequestBody>,
    pub(crate) expects_continue: bool,
    pub(crate) to_head: bool,
    pub(crate) close: bool,
}

/// Reads a head that is there as a whole, as it is read from a connection; for questions about requests that nobody sends.
///
/// # Errors
/// The reason for which it is refused before policy.
pub(crate) fn read<'h, 'b>(
    head: &'b [u8],
    storage: &'h mut FieldStorage<'b>,
    normalize: &Normalize,
) -> Result<RequestHead<'h, 'b>, Refusal> {
    match HeadScanner::default().scan(head).refusal() {
        Some((reason, detail)) => Err(Refusal { reason, detail: detail.to_owned() }),
        None => RequestHead::parse(head, storage, normalize),
    }
}

/// Decides about the request whose complete head is `head`.
pub(crate) fn decide(connection: &Connection, head: &[u8], started: Instant) -> Decision {
    let _work = mark(Work::Http);
    let mut storage: FieldStorage<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let config = &connection.listener.config;
    match RequestHead::parse(head, &mut storage, &config.normalize) {
        Ok(mut request) => {
            request.settle_forwarded_proto(config.http.forwarded_proto);
            judge(connection, &request, head, started)
        }
        Err(refusal) => refused(connection, refusal, started),
    }
}

/// A head that cannot be taken, as a reply that ends the connection.
pub(crate) fn refused(connection: &Connection, refusal: Refusal, started: Instant) -> Decision {
    let config = &connection.listener.config;
    let mut flow = connection.open_flow(Protocol::Http11, started);
    flow.record_mut().detail = Some(refusal.detail.as_str().into());
    // Nothing of the head is known for certain.
    flow.log_request(Some(refusal.reason), Fields::default());
    tracing::debug!(downstream = %connection.downstream, reason = refusal.reason.code(), detail = refusal.detail, "refused");
    Decision::Reply(Box::new(Reply {
        reply: LocalReply::refusal(refusal.reason, false, &config.denied_body, config.reason_header),
        flow,
        reason: refusal.reason,
        body: None,
        expects_continue: false,
        to_head: false,
        close: true,
    }))
}

fn judge(connection: &Connection, request: &RequestHead<'_, '_>, head: &[u8], started: Instant) -> Decision {
    let config = &connection.listener.config;
    let protocol = match request.version {
        Version::Http10 => Protocol::Http10,
        Version::Http11 => Protocol::Http11,
    };
    let present = connection.present();
    let mut flow = present.open_flow(protocol, started);
    flow.record_mut().http = Some(HttpRecord::new(request.method, request.authority, request.canonical_path()));
    let to_head = request.method == b"HEAD";
    // Our own answers do not tell an HTTP/1.0 client that the connection goes on, so it does not.
    let close = request.close || request.version == Version::Http10;
    let reply = |flow, reply, reason| {
        Decision::Reply(Box::new(Reply {
            reply,
            flow,
            reason,
            body: Some(request.body),
            expects_continue: request.expects_continue,
            to_head,
            close,
        }))
    };
    let write_log = |flow: &OpenFlow, denied, edits: &HeaderEdits, request_id: Option<&RequestId>| {
        if flow.is_logged() {
            flow.log_request(denied, connection.loggable(|visit| request.show(edits, request_id, visit)));
        }
    };
    if let CanonicalPath::Redirect(location) = &request.path {
        // No verdict yet: the client is only told to ask in another way.
        write_log(&flow, None, &HeaderEdits::default(), None);
        return reply(flow, LocalReply::redirect(location.clone(), config.reason_header), Reason::PathRedirect);
    }
    if request.websocket.is_some() && !config.http.websocket {
        let reason = Reason::UpgradeNotAllowed;
        write_log(&flow, Some(reason), &HeaderEdits::default(), None);
        return reply(flow, LocalReply::refusal(reason, false, &config.denied_body, config.reason_header), reason);
    }
    let wanted = Head { is_long: request.websocket.is_some(), bytes: &|| head.len() };
    if let Err(limited) = present.admit_request(&mut flow, &wanted) {
        // No verdict, so no denial in the access log.
        write_log(&flow, None, &HeaderEdits::default(), None);
        return reply(flow, LocalReply::limited(limited, request.is_grpc(), config.reason_header), limited.reason);
    }
    let judged = present.judge_request(&policy_view(request));
    judged.by.note(&mut flow);
    match judged.verdict {
        Ok(mut admitted) => {
            admitted.note(&mut flow);
            let Admitted { permit, edits, source, .. } = admitted;
            let request_id = request.new_request_id(config.http.request_id, &edits);
            write_log(&flow, None, &edits, request_id.as_ref());
            let rewritten = request.rewritten(head, &edits, request_id.as_ref());
            let is_chunked = request.body == RequestBody::Chunked;
            let trailers = if is_chunked { request.announced_trailers() } else { Vec::new() };
            Decision::Forward(Box::new(Forward {
                permit,
                flow,
                _beside_head: charge_beside_head(connection, rewritten.as_ref(), &trailers),
                rewritten,
                body: request.body,
                trailers,
                version: request.version,
                to_head,
                websocket: request.websocket,
                expects_continue: request.expects_continue,
                last: request.last,
                close: request.close,
                grpc: request.is_grpc(),
                source,
                moment: judged.by.moment,
                limits: TimeLimits::of(config.http.limits_of(request.is_grpc()), request.grpc_timeout()),
                retries: Retries::default(),
            }))
        }
        Err(denied) => {
            let reason = denied.note(&mut flow);
            write_log(&flow, Some(reason), &HeaderEdits::default(), None);
            let mut local = LocalReply::refusal(reason, request.is_grpc(), &config.denied_body, config.reason_header);
            local.close |= connection.is_refused();
            reply(flow, local, reason)
        }
    }
}

/// Puts what is made of a head and kept beside it on the account.
fn charge_beside_head(connection: &Connection, rewritten: Option<&Rewritten>, trailers: &[Vec<u8>]) -> Option<Charged> {
    let names = trailers.iter().map(|name| size_of::<Vec<u8>>() + name.capacity());
    let bytes = rewritten.map_or(0, Rewritten::memory) + names.sum::<usize>();
    (bytes > 0).then(|| connection.payer.hold_for_a_while(bytes))
}

impl Forward {
    /// Whether a trailer field may pass by now: it was announced, is called as the listener allows, and no rule looks for it among the
    /// header fields, where a back end that merges the two would find what policy did not see.
    pub(super) fn passes_trailer(&self, connection: &Connection, name: &[u8]) -> bool {
        let announced = self.trailers.iter().find(|announced| announced.eq_ignore_ascii_case(name));
        announced.is_some_and(|name| std::str::from_utf8(name).is_ok_and(|name| !connection.bars_trailer(name)))
    }
}

/// Whether the request of `head`, as it was received and admitted for `source`, may go on, for exchanges that outlive what
/// admitted them; if not, why.
pub(crate) fn still_admitted(connection: &Connection, head: &[u8], source: SecurityId) -> Result<(), Reason> {
    let mut storage: FieldStorage<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    match RequestHead::parse(head, &mut storage, &connection.listener.config.normalize) {
        Ok(mut request) => {
            request.settle_forwarded_proto(connection.listener.config.http.forwarded_proto);
            connection.still_admits(&policy_view(&request), source)
        }
        Err(_) => Err(Reason::Revoked),
    }
}

/// What policy judges of a request.
pub(crate) fn policy_view<'a>(request: &'a RequestHead<'_, '_>) -> Request<'a> {
    Request {
        method: request.method,
        scheme: b"http",
        authority: request.authority,
        path: request.canonical_path(),
        headers: request,
    }
}
