//! One HTTP/2 request and its response.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tollgate_policy::{HeaderEdits, Permit, SecurityId};

use super::answer::answer;
use super::connection::{Accepted, EndIfPanicked, Shared};
use super::held::HeldBack;
use super::incoming::Incoming;
use super::outlet::Outlet;
use super::owed::Answering;
use super::queue::{Piece, Queue};
use super::request::{Refusal, RequestHead, apply_edits, new_request_id, show};
use super::retry::Retries;
use super::transfer::{Sink, TransferError, transfer};
use crate::flow::{Fields, HttpRecord, Meter, OpenFlow, Outcome, Protocol};
use crate::http::h1::FORWARDED_PROTO;
use crate::http::limits::{Exceeded, Moved, RequestEnd, TimeLimits};
use crate::http::request_id::{self, RequestId};
use crate::http::respond::LocalReply;
use crate::http::retry::Failure;
use crate::listener::judge::Admitted;
use crate::reason::Reason;
use crate::tenant::{Head, Pace, Pacing};
use crate::worker::{PanicCount, Subscription};

/// Serves one stream from request to record. It is on the account by its `charge`.
pub(super) async fn serve(shared: Rc<Shared>, accepted: Accepted) {
    let Accepted { parts, body, mut respond, charge: _held } = accepted;
    let connection = &shared.connection;
    let _ends = EndIfPanicked::new(&shared);
    let _panics = PanicCount::new(connection.worker.flows.metrics(), &connection.payer);
    let _work = connection.idle.work();
    let config = &connection.listener.config;
    let present = connection.present();
    let mut flow = present.open_flow(Protocol::Http2, std::time::Instant::now());
    let reply_to = |reason: Reason, grpc| LocalReply::refusal(reason, grpc, &config.denied_body, config.reason_header);
    let head = match RequestHead::read(parts, &config.normalize) {
        Ok(mut head) => {
            head.settle_forwarded_proto(config.http.forwarded_proto);
            head
        }
        Err(Refusal { reason, detail }) => {
            tracing::debug!(downstream = %connection.downstream, reason = reason.code(), detail, "refused");
            flow.record_mut().detail = Some(detail.into());
            // Nothing of the head is known for certain.
            flow.log_request(Some(reason), Fields::default());
            return reply(&shared, &mut respond, &reply_to(reason, false), &mut flow, Outcome::Denied, reason);
        }
    };
    let text =
        HttpRecord::new(head.parts.method.as_str().as_bytes(), head.authority().as_bytes(), head.path().as_bytes());
    flow.record_mut().http = Some(text);
    let write_log = |flow: &OpenFlow, denied, edits: &HeaderEdits, request_id: Option<&RequestId>| {
        if flow.is_logged() {
            flow.log_request(denied, connection.loggable(|visit| show(&head, edits, request_id, visit)));
        }
    };
    if let Some(location) = &head.redirect {
        // No verdict yet: the client is only told to ask in another way.
        write_log(&flow, None, &HeaderEdits::default(), None);
        let redirect = LocalReply::redirect(location.clone(), config.reason_header);
        return reply(&shared, &mut respond, &redirect, &mut flow, Outcome::Denied, Reason::PathRedirect);
    }
    if let Err(limited) = present.admit_request(&mut flow, &Head { is_long: false, bytes: &|| head.size() }) {
        // No verdict, so no denial in the access log.
        write_log(&flow, None, &HeaderEdits::default(), None);
        let limit = LocalReply::limited(limited, head.is_grpc(), config.reason_header);
        shared.end_if(limit.close);
        return reply(&shared, &mut respond, &limit, &mut flow, Outcome::Denied, limited.reason);
    }
    // Each stream waits for changes of its own: the connection's subscription tells one waiter only.
    let judged = present.judge_request(&head.policy_view());
    drop(present);
    let (changes, moment) = (connection.subscribe(), judged.by.moment);
    judged.by.note(&mut flow);
    let Admitted { permit, edits, source, .. } = match judged.verdict {
        Ok(mut admitted) => {
            admitted.note(&mut flow);
            admitted
        }
        Err(denied) => {
            let reason = denied.note(&mut flow);
            write_log(&flow, Some(reason), &HeaderEdits::default(), None);
            reply(&shared, &mut respond, &reply_to(reason, head.is_grpc()), &mut flow, Outcome::Denied, reason);
            shared.end_if_refused();
            return;
        }
    };
    let request_id = new_request_id(&head.parts.headers, &edits, config.http.request_id);
    write_log(&flow, None, &edits, request_id.as_ref());
    let limits = config.http.limits_of(head.is_grpc());
    let retries = Retries::of(limits, body.is_end_stream()).on_account(&connection.payer);
    let limits = TimeLimits::of(limits, head.parts.headers.get("grpc-timeout").map(HeaderValue::as_bytes));
    let mut exchange = Exchange {
        shared: &shared,
        head: &head,
        edits,
        request_id,
        changes,
        moment,
        source,
        limits,
        retries,
        flow,
        respond,
        body,
    };
    exchange.run(permit).await;
}

/// Sends an answer of our own, or refuses the stream, and says so in the record, which leaves when the stream's task ends.
fn reply(
    shared: &Shared,
    respond: &mut SendResponse<Piece>,
    reply: &LocalReply,
    flow: &mut OpenFlow,
    outcome: Outcome,
    reason: Reason,
) {
    if reply.refuses_stream() {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        shared.down.queue_answer(&HeaderMap::new(), 0);
        reply.log_refused_stream(flow);
        return flow.if_dropped(outcome, Some(reason));
    }
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.fields() {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    if reply.grpc.is_none() {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
    }
    if let Some(http) = &mut flow.record_mut().http {
        http.status = reply.status;
    }
    reply.log(flow);
    let end = reply.body.is_empty();
    // It stays in `h2` until the client takes it, and the task that has the stream on its account ends here.
    shared.down.queue_answer(response.headers(), reply.body.len());
    // A client that is gone gets no answer; the record is the same.
    if let Ok(mut stream) = respond.send_response(response, end)
        && !end
    {
        let _ = stream.send_data(Piece::uncharged(Bytes::copy_from_slice(&reply.body)), true);
    }
    flow.if_dropped(outcome, Some(reason));
}

/// An admitted request. It stays where it is made: the task that holds it is moved often enough.
struct Exchange<'a> {
    shared: &'a Shared,
    /// As received, and as it is judged again.
    head: &'a RequestHead,
    /// What is different in the head that is forwarded.
    edits: HeaderEdits,
    /// To be added to it.
    request_id: Option<RequestId>,
    changes: Subscription,
    /// The moment that the request was judged in; see [`Connection::moment`].
    moment: (u64, u64),
    /// Whom it was admitted for.
    source: SecurityId,
    limits: TimeLimits,
    retries: Retries,
    flow: OpenFlow,
    respond: Answering,
    body: Incoming,
}

/// How a try ended before its response did.
pub(super) enum Broken {
    /// Nothing was sent, for this reason.
    Unsent(Reason),
    /// The client reset the stream or went away.
    Downstream,
    /// The upstream reset the stream or went away.
    Upstream(h2::Reason),
    /// The upstream failed with this status, and is asked again.
    ServerError(u16),
    /// It may no longer go on, for this reason.
    Revoked(Reason),
    /// It took too long.
    TimedOut(Reason),
    /// This try did.
    TryTimedOut,
}

impl Broken {
    /// Those that another try may mend.
    fn failure(&self) -> Option<Failure> {
        match self {
            Self::Unsent(Reason::UpstreamConnect | Reason::UpstreamReset) => Some(Failure::Unsent),
            Self::Upstream(_) => Some(Failure::NoResponse),
            Self::ServerError(status) => Some(Failure::Status(*status)),
            Self::TryTimedOut => Some(Failure::TimedOut),
            Self::Unsent(_) | Self::Downstream | Self::Revoked(_) | Self::TimedOut(_) => None,
        }
    }
}

/// What is known about a try while it runs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Of the response that goes out; 0 before.
    status: Cell<u16>,
    /// The client was sent an interim response.
    pub(super) interim: Cell<bool>,
    /// When the request was sent to its end.
    request_ended: Cell<Option<RequestEnd>>,
    /// There was a try before.
    again: bool,
    pacing: Pacing,
    held_back: HeldBack,
}

impl Progress {
    /// Of another try.
    fn again(self) -> Self {
        let Self { request_ended, pacing, held_back, .. } = self;
        Self { request_ended, again: true, pacing, held_back, ..Self::default() }
    }

    /// The response goes out, with this status.
    pub(super) fn answers(&self, status: u16, shared: &Shared) {
        self.status.set(status);
        self.held_back.begin(&shared.pacing);
    }

    /// The request was sent to its end.
    fn request_ends(&self, shared: &Shared) {
        self.held_back.end(&shared.pacing);
        if self.request_ended.get().is_none() {
            self.request_ended.set(Some(RequestEnd::now(self.held_back.time(&shared.pacing))));
        }
    }

    /// Whether the client got anything of an answer.
    pub(super) fn told(&self) -> bool {
        self.status.get() != 0 || self.interim.get()
    }

    /// For time limits.
    fn moved(&self, flow: &OpenFlow, shared: &Shared) -> Moved {
        let bytes = flow.moved().wrapping_add(self.status.get().into());
        Moved { bytes, held_back: self.held_back.time(&shared.pacing) }
    }

    /// At which its bodies go.
    pub(super) fn pace<'a>(&'a self, shared: &'a Shared) -> Pace<'a> {
        Pace { payer: &shared.connection.payer, pacing: &self.pacing, of_all: Some(&shared.pacing) }
    }
}

impl Exchange<'_> {
    /// Asks the upstream, again where that may help, and passes its answer on.
    async fn run(&mut self, permit: Permit) {
        self.flow.if_dropped(Outcome::Failed, Some(Reason::DownstreamReset));
        let bodiless = self.body.is_end_stream();
        let request_ended = Cell::new(bodiless.then(|| RequestEnd::now(Duration::ZERO)));
        let mut progress = Progress { request_ended, ..Progress::default() };
        loop {
            let Some(broken) = self.attempt(&permit, bodiless, &progress).await else {
                return self.flow.if_dropped(Outcome::Forwarded, None);
            };
            let may_follow = |failure| self.retries.may_follow(failure, progress.told());
            if !broken.failure().is_some_and(may_follow) {
                return self.finish(broken, &progress);
            }
            // Boxed: a task is as large as its longest way, and few go this one.
            if let Some(broken) = Box::pin(self.pause(&progress)).await {
                return self.finish(broken, &progress);
            }
            progress = progress.again();
        }
    }

    /// Waits before the next try, unless something ends the exchange meanwhile.
    async fn pause(&mut self, progress: &Progress) -> Option<Broken> {
        let connection = &self.shared.connection;
        tracing::debug!(downstream = %connection.downstream, "asking the upstream again");
        connection.worker.flows.metrics().upstream_retry();
        let moved = || progress.moved(&self.flow, self.shared);
        tokio::select! {
            biased;
            broken = revoked(self.shared, self.head, self.source, &self.changes) => Some(broken),
            () = reset(&mut self.respond) => Some(Broken::Downstream),
            _ = self.body.gather(&connection.payer) => Some(Broken::Downstream),
            reason = self.limits.exceeded_as_a_whole(moved, || progress.request_ended.get()) => {
                Some(Broken::TimedOut(reason))
            }
            () = tokio::time::sleep(self.retries.take()) => None,
        }
    }

    /// One try. Returns what ended it before its response did, if anything.
    async fn attempt(&mut self, permit: &Permit, bodiless: bool, progress: &Progress) -> Option<Broken> {
        let connection = &self.shared.connection;
        let moved = || progress.moved(&self.flow, self.shared);
        let opened = tokio::select! {
            biased;
            opened = self.shared.upstream.turn(connection, permit, self.source) => opened,
            // Connecting and waiting for a turn take time; a request that nobody waits for must not wait here.
            () = reset(&mut self.respond) => return Some(Broken::Downstream),
            _ = self.body.gather(&connection.payer) => return Some(Broken::Downstream),
            broken = revoked(self.shared, self.head, self.source, &self.changes) => return Some(broken),
            reason = self.limits.exceeded_as_a_whole(moved, || progress.request_ended.get()) => {
                return Some(Broken::TimedOut(reason));
            }
        };
        let mut turn = match opened {
            Ok(turn) => turn,
            Err(reason) => return Some(Broken::Unsent(reason)),
        };
        // World or identities may have changed in this very moment, and nothing was sent yet.
        if connection.moment() != self.moment
            && let Err(reason) = connection.still_admits(&self.head.policy_view(), self.source)
        {
            self.shared.end_if_refused();
            return Some(Broken::Revoked(reason));
        }
        turn.path().note(self.flow.record_mut());
        self.flow.note_would_limit(turn.would_limit());
        // The engine makes no edit that cannot be made; not a request without it goes out.
        let Ok(request) = self.request() else { return Some(Broken::Unsent(Reason::Internal)) };
        let Ok((response, mut upstream_body)) = turn.send(request, bodiless) else {
            return Some(Broken::Unsent(Reason::UpstreamReset));
        };
        let broken = self.relay(response, (&mut upstream_body, turn.outlet()), bodiless, progress).await;
        if let Some(broken) = &broken {
            // No effect on a stream that was reset already.
            upstream_body.send_reset(h2::Reason::CANCEL);
            turn.end(broken, &connection.payer, &self.head.parts);
        }
        broken
    }

    /// The head that is forwarded.
    fn request(&self) -> Result<http::Request<()>, http::Error> {
        let mut request = http::Request::new(());
        *request.method_mut() = self.head.parts.method.clone();
        *request.uri_mut() = self.head.parts.uri.clone();
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = self.head.parts.headers.clone();
        apply_edits(request.headers_mut(), &self.edits)?;
        if self.head.adds_forwarded_proto(&self.edits) {
            request.headers_mut().insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
        }
        if let Some(id) = self.request_id.as_ref().and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok()) {
            request.headers_mut().insert(request_id::NAME, id);
        }
        Ok(request)
    }

    /// Both directions at once, until the response has ended. Returns what ended it before, if anything.
    async fn relay(
        &mut self,
        response: ResponseFuture,
        (upstream_body, outlet): (&mut SendStream<Piece>, &Rc<Outlet>),
        bodiless: bool,
        progress: &Progress,
    ) -> Option<Broken> {
        let connection = &self.shared.connection;
        let retries = &self.retries;
        let respond = &mut self.respond;
        let (from_client, flow) = (&mut self.body, &self.flow);
        let request = async {
            if bodiless {
                return std::future::pending().await;
            }
            progress.held_back.begin(&self.shared.pacing);
            let dropped = |name: &HeaderName| connection.bars_trailer(name.as_str());
            let queue = Queue::of_request(&self.shared.up, outlet);
            let pace = progress.pace(self.shared);
            let mut sink = Sink::new(upstream_body, Rc::clone(&queue), Meter::Up(flow), pace);
            let sent = match retries.body() {
                Some(body) => sink.send_whole(body).await,
                None => transfer(from_client, &mut sink, |_| {}, Some(&dropped), Some(retries)).await,
            };
            drop(sink);
            match sent {
                // The response decides from here on.
                Ok(()) => {
                    progress.request_ends(self.shared);
                    // Whenever the world changes the task is polled, and this with it.
                    poll_fn(|_| match queue.may_still_hold(dropped) {
                        true => Poll::Ready(Broken::Revoked(Reason::Revoked)),
                        false => Poll::Pending,
                    })
                    .await
                }
                Err(TransferError::Sink) => {
                    progress.request_ends(self.shared);
                    std::future::pending().await
                }
                Err(TransferError::Source(code)) => {
                    upstream_body.send_reset(code);
                    Broken::Downstream
                }
            }
        };
        let answered = answer(response, respond, flow, progress, self.shared, retries);
        let exceeded = self.limits.exceeded(
            || progress.moved(flow, self.shared),
            || progress.request_ended.get(),
            || progress.status.get() != 0,
        );
        let broken = tokio::select! {
            biased;
            // First, so that what is ready to be moved waits for the judgement.
            broken = revoked(self.shared, self.head, self.source, &self.changes) => Some(broken),
            result = answered => result.err(),
            broken = request => Some(broken),
            exceeded = exceeded => Some(match exceeded {
                Exceeded::Exchange(reason) => Broken::TimedOut(reason),
                Exceeded::Try => Broken::TryTimedOut,
            }),
        };
        progress.held_back.end_all(&self.shared.pacing);
        self.flow.note_paced(progress.pace(self.shared));
        if let Some(http) = &mut self.flow.record_mut().http {
            http.status = progress.status.get();
        }
        broken
    }

    /// Ends a failed exchange the way its cause asks for; where no response was begun yet, the client is told why.
    fn finish(&mut self, broken: Broken, progress: &Progress) {
        let started = progress.status.get() != 0;
        // The upstream has done nothing for it, as a proxy like this one says of a limit: so the client may be told as much.
        let is_refused = matches!(broken, Broken::Upstream(h2::Reason::REFUSED_STREAM)) && !progress.again;
        if !started && matches!(broken, Broken::Downstream) {
            self.shared.budget.given_up(self.flow.age());
        }
        let (outcome, reason, code) = match broken {
            Broken::Downstream if let Some(reason) = self.shared.budget.over() => {
                // Its client was sent away, and has been told.
                return self.flow.if_dropped(Outcome::Denied, Some(reason));
            }
            Broken::Unsent(reason) => (Outcome::of_unsent(reason), reason, h2::Reason::CANCEL),
            Broken::Downstream => (Outcome::Failed, Reason::DownstreamReset, h2::Reason::CANCEL),
            Broken::Upstream(code) if started => (Outcome::Failed, Reason::UpstreamTruncated, code),
            Broken::Upstream(code) => (Outcome::Failed, Reason::UpstreamReset, code),
            Broken::ServerError(_) => (Outcome::Failed, Reason::UpstreamReset, h2::Reason::CANCEL),
            Broken::Revoked(reason) => (Outcome::Denied, reason, h2::Reason::CANCEL),
            Broken::TimedOut(reason) => (Outcome::Failed, reason, h2::Reason::CANCEL),
            Broken::TryTimedOut => (Outcome::Failed, Reason::UpstreamTimeout, h2::Reason::CANCEL),
        };
        if started || reason == Reason::DownstreamReset || (is_refused && !self.head.is_grpc()) {
            self.respond.send_reset(code);
            return self.flow.if_dropped(outcome, Some(reason));
        }
        self.fail(outcome, reason);
    }

    /// Tells the client why there will be no response.
    fn fail(&mut self, outcome: Outcome, reason: Reason) {
        let config = &self.shared.connection.listener.config;
        let local = LocalReply::refusal(reason, self.head.is_grpc(), &config.denied_body, config.reason_header);
        reply(self.shared, &mut self.respond, &local, &mut self.flow, outcome, reason);
    }
}

/// Waits until the request may no longer go on.
async fn revoked(shared: &Shared, head: &RequestHead, source: SecurityId, changes: &Subscription) -> Broken {
    let connection = &shared.connection;
    loop {
        connection.changed_since(changes).await;
        if let Err(reason) = connection.still_admits(&head.policy_view(), source) {
            shared.end_if_refused();
            return Broken::Revoked(reason);
        }
    }
}

/// Waits until the client resets the stream or goes away.
async fn reset(respond: &mut SendResponse<Piece>) {
    let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
}
