//! `/flows`: recent flow records as JSON lines, and the stream of those to come.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::OwnedSemaphorePermit;

use super::AdminState;
use super::respond::Query;
use crate::explanation::percent_decode;
use crate::flow::{FlowFilter, FlowReader, GATHER};

/// Records shown when nobody says how many.
const DEFAULT_LIMIT: usize = 100;

/// Why the records are not shown.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum FlowsError {
    #[error("{0}")]
    BadQuery(String),
    #[error("too many followers; end one and try again")]
    TooManyFollowers,
}

/// The body. Starts with the last `limit` records (100; when following, 0), oldest first; `denied`, `limited` and
/// `would_limit` leave out the others, `tenant` those of other tenants; `follow` goes on until the client goes away.
pub(super) fn body(query: &Query<'_>, state: &AdminState) -> Result<BoxBody<Bytes, Infallible>, FlowsError> {
    query.only(&["follow", "denied", "limited", "would_limit", "tenant", "limit"]).map_err(FlowsError::BadQuery)?;
    let follow = query.flag("follow").map_err(FlowsError::BadQuery)?;
    let denied = query.flag("denied").map_err(FlowsError::BadQuery)?;
    let limited = query.flag("limited").map_err(FlowsError::BadQuery)?;
    let would_limit = query.flag("would_limit").map_err(FlowsError::BadQuery)?;
    let tenant = query.value("tenant").map(|text| percent_decode(text).ok_or("tenant is not percent-encoded UTF-8"));
    let tenant = tenant.transpose().map_err(|why| FlowsError::BadQuery(why.to_owned()))?;
    let default_limit = if follow { 0 } else { DEFAULT_LIMIT };
    let limit = query.number("limit").map_err(FlowsError::BadQuery)?.unwrap_or(default_limit);
    let slot = if follow {
        let slot = Arc::clone(&state.followers).try_acquire_owned();
        Some(slot.map_err(|_| FlowsError::TooManyFollowers)?)
    } else {
        None
    };
    let log = Arc::clone(&state.flows);
    let open = async move {
        if slot.is_none() {
            // Records gather before they reach the log. Who asks after a request was answered wants to see that request.
            tokio::time::sleep(GATHER * 2).await;
        }
        let reader = log.reader(FlowFilter { denied, limited, would_limit, tenant }, limit);
        Records { end: reader.end_of_log(), reader, follower: slot }
    };
    let frames = stream::once(open).flat_map(|records| Box::pin(stream::unfold(records, next)));
    Ok(BodyExt::boxed(StreamBody::new(frames)))
}

struct Records {
    reader: FlowReader,
    /// Where a reader that does not follow ends.
    end: u64,
    /// Held while following.
    follower: Option<OwnedSemaphorePermit>,
}

async fn next(mut records: Records) -> Option<(Result<Frame<Bytes>, Infallible>, Records)> {
    loop {
        if records.follower.is_none() && records.reader.position() >= records.end {
            return None;
        }
        let mut lines = Vec::new();
        if !records.reader.read(&mut lines) {
            records.reader.wait().await;
        } else if !lines.is_empty() {
            return Some((Ok(Frame::data(lines.into())), records));
        }
    }
}
