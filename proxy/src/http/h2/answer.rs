//! The answer to one HTTP/2 request, from the upstream to the client.

use std::future::poll_fn;
use std::task::Poll;

use h2::RecvStream;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use http::Response;

use super::connection::Shared;
use super::incoming::Incoming;
use super::queue::{Ahead, Piece, Queue, charge_of};
use super::retry::Retries;
use super::stream::{Broken, Progress};
use super::transfer::{Sink, TransferError, reset_code, transfer};
use crate::flow::{Meter, OpenFlow};
use crate::http::retry::Failure;

/// Passes interim responses, the response, its body and its trailers on, unless another try follows.
pub(super) async fn answer(
    mut response: ResponseFuture,
    respond: &mut SendResponse<Piece>,
    flow: &OpenFlow,
    progress: &Progress,
    shared: &Shared,
    retries: &Retries,
) -> Result<(), Broken> {
    enum Step {
        Interim(Response<()>),
        Final(Result<Response<RecvStream>, h2::Error>),
        Reset,
    }
    let mut interim = 0;
    let mut ahead = Ahead::default();
    let response = loop {
        let step = poll_fn(|cx| {
            if let Poll::Ready(Some(Ok(head))) = response.poll_informational(cx) {
                return Poll::Ready(Step::Interim(head));
            }
            if respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Step::Reset);
            }
            std::pin::Pin::new(&mut response).poll(cx).map(Step::Final)
        })
        .await;
        match step {
            Step::Interim(head) => {
                interim += 1;
                if interim > crate::http::h1::MAX_INTERIM {
                    return Err(Broken::Upstream(h2::Reason::ENHANCE_YOUR_CALM));
                }
                progress.interim.set(true);
                let charge = charge_of(head.headers());
                if respond.send_informational(head).is_ok() {
                    shared.down.queue_head(charge, &mut ahead);
                }
            }
            Step::Final(Ok(response)) => break response,
            Step::Final(Err(error)) => return Err(Broken::Upstream(reset_code(&error))),
            Step::Reset => return Err(Broken::Downstream),
        }
    };
    let (parts, body) = response.into_parts();
    let mut body = Incoming::new(body);
    let status = parts.status.as_u16();
    if retries.may_follow(Failure::Status(status), progress.told()) {
        return Err(Broken::ServerError(status));
    }
    progress.answers(status, shared);
    // The client is about to be told; what was kept for another try goes before a long answer comes.
    retries.give_up();
    shared.budget.answered();
    flow.log_response(status, |log| {
        parts.headers.iter().for_each(|(name, value)| log.push(name.as_str().as_bytes(), value.as_bytes()));
    });
    let end = body.is_end_stream();
    let charge = charge_of(&parts.headers);
    let mut stream = respond.send_response(Response::from_parts(parts, ()), end).map_err(|_| Broken::Downstream)?;
    shared.down.queue_head(charge, &mut ahead);
    if end {
        return Ok(());
    }
    let mut sink = Sink::new(&mut stream, Queue::new(&shared.down, ahead), Meter::Down(flow), progress.pace(shared));
    let moved = transfer(&mut body, &mut sink, |bytes| shared.budget.moved(bytes), None, None).await;
    drop(sink);
    moved.map_err(|error| match error {
        TransferError::Source(code) => {
            stream.send_reset(code);
            Broken::Upstream(code)
        }
        TransferError::Sink => Broken::Downstream,
    })
}
