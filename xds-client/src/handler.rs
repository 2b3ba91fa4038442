//! What the user of the client provides per resource type, and the type-erased core underneath.

use std::any::Any as Panic;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use envoy_types::pb::google::protobuf::Any;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use prost::Message;

use crate::Resource;
use crate::resource::decode_all;

/// Takes the accepted state of one resource type.
pub trait Handler: Send + 'static {
    /// The decoded message.
    type Resource: Message + Default + Send + 'static;

    /// Makes `update` the new state and returns when everyone who must see it can see it: the response is acknowledged
    /// right after. The update replaces everything that came before.
    ///
    /// Updates of a type never overlap. The future may be dropped when the client is.
    ///
    /// # Errors
    /// A rejection leaves the old state in force; the control plane gets a NACK with its message.
    fn apply(&mut self, update: Update<Self::Resource>) -> impl Future<Output = Result<(), Rejection>> + Send;
}

/// One response, decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Update<M> {
    /// `version_info` of the response; opaque.
    pub version: String,
    /// The whole state of this type.
    pub resources: Vec<Resource<M>>,
    /// No response of this stream has been accepted before. The peer may be another process than the one before, so
    /// whatever was derived from its environment (pinned maps) must be opened again.
    pub first_on_stream: bool,
}

/// Why an update was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    message: String,
}

impl Rejection {
    /// A rejection whose message names the resource, the field and the reason.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// A [`Handler`] whose resource type is forgotten, so that one core serves all of them.
pub(crate) trait ErasedHandler: Send {
    /// Decodes `resources` as `type_url` and applies them.
    fn apply<'a>(
        &'a mut self,
        type_url: &'a str,
        version: String,
        resources: Vec<Any>,
        first_on_stream: bool,
    ) -> BoxFuture<'a, Result<(), Rejection>>;
}

impl<H: Handler> ErasedHandler for H {
    fn apply<'a>(
        &'a mut self,
        type_url: &'a str,
        version: String,
        resources: Vec<Any>,
        first_on_stream: bool,
    ) -> BoxFuture<'a, Result<(), Rejection>> {
        let work = async move {
            let decoded = decode_all::<H::Resource>(type_url, &resources)?;
            drop(resources); // a node's policy can be large; do not hold it twice while it is compiled
            Handler::apply(self, Update { version, resources: decoded, first_on_stream }).await
        };
        // A panic while compiling one update must not end the subscription: the next version may be fine.
        let work = AssertUnwindSafe(work).catch_unwind();
        async move { work.await.unwrap_or_else(|panic| Err(Rejection::new(describe(&*panic)))) }.boxed()
    }
}

fn describe(panic: &(dyn Panic + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("internal error while applying the update: {}", text.unwrap_or("panic without a message"))
}
