//! What the user of the client provides per resource type, and the type-erased core underneath.

use std::any::Any as Panic;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use prost::Message;

use crate::Resource;
use crate::accepted::{Accepted, Difference, Edits, Wanted};
use crate::wire::{RawAny, RawResource};

/// Takes the accepted states of one resource type.
pub trait Handler: Send + 'static {
    /// The decoded message.
    type Resource: Message + Default + Send + 'static;

    /// The name of a resource, which state of the world leaves to the message.
    fn name(resource: &Self::Resource) -> String;

    /// Makes the state that `update` leads to the one in force, and returns when everyone who must see it can see it: the
    /// response is acknowledged right after. A handler that needs whole states keeps a [`State`].
    ///
    /// Called for every response that decodes, also when nothing in it is new, and for what decodes of others, if anything of it is
    /// new; the rest of those is refused. Updates of a type never overlap. The
    /// future may be dropped when the client is.
    ///
    /// # Errors
    /// A rejection leaves the old state in force, or of the resources that it names ([`Rejection::of_resources`]) what they were
    /// before. The next update begins from there; the control plane gets a NACK with its message.
    fn apply(&mut self, update: Update<Self::Resource>) -> impl Future<Output = Result<(), Rejection>> + Send;
}

/// How the state of a type changes. The client compares, whichever variant of the protocol it speaks: a resource that
/// comes with the bytes that it had is not mentioned, also on a new stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Update<M> {
    /// `version_info` of the response, or `system_version_info` of an incremental one; opaque.
    pub version: String,
    /// Resources that are new or differ from what was accepted before.
    pub changed: Vec<Resource<M>>,
    /// Names of resources that were accepted and are there no more, or are not wanted any more.
    pub removed: Vec<String>,
    /// No response of this stream has been accepted before. The peer may be another process than the one before, so
    /// whatever was derived from its environment (pinned maps) must be opened again.
    pub first_on_stream: bool,
}

/// All resources of a type by name, for handlers that need the whole of them. Copies share the messages.
#[derive(Clone, Debug)]
pub struct State<M>(BTreeMap<String, Arc<M>>);

impl<M> Default for State<M> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<M: Clone> State<M> {
    /// The state that `update` leads to. The handler makes it its own when it accepts.
    #[must_use]
    pub fn after(&self, update: Update<M>) -> Self {
        let mut next = self.0.clone();
        for name in &update.removed {
            next.remove(name);
        }
        next.extend(update.changed.into_iter().map(|resource| (resource.name, Arc::new(resource.message))));
        Self(next)
    }

    /// This state, but for the resources of these names, which are as in `before` or not there.
    #[must_use]
    pub fn with_old<'n>(mut self, before: &Self, names: impl IntoIterator<Item = &'n str>) -> Self {
        for name in names {
            match before.0.get(name) {
                Some(message) => self.0.insert(name.to_owned(), Arc::clone(message)),
                None => self.0.remove(name),
            };
        }
        self
    }

    /// Every resource, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Arc<M>)> {
        self.0.iter().map(|(name, message)| (name.as_str(), message))
    }
}

/// Why an update was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    message: String,
    /// Names of the resources that are refused; `None`: all that the update changes.
    resources: Option<BTreeSet<String>>,
    /// Something else of the response is in force that was not before.
    pub(crate) brings_news: bool,
}

impl Rejection {
    /// A rejection whose message names the resource, the field and the reason.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), resources: None, brings_news: false }
    }

    /// A rejection of the resources of these names only. Whatever else the update changes is in force, although the control plane
    /// is told that it was refused: the protocol cannot say more.
    pub fn of_resources(message: impl Into<String>, names: impl IntoIterator<Item = String>) -> Self {
        let resources = Some(names.into_iter().collect());
        Self { message: message.into(), resources, brings_news: false }
    }

    /// Whether both are for the same reason.
    pub(crate) fn says_what(&self, other: &Self) -> bool {
        self.message == other.message
    }

    /// What was changed all the same.
    fn in_force(&self, mut edits: Edits) -> Edits {
        let Some(refused) = &self.resources else { return Edits::new() };
        edits.retain(|(name, _)| !refused.contains(&**name));
        edits
    }
}

/// A response with more bytes of resources is compared on another thread: half a millisecond's work and up.
const LARGE: usize = 256 * 1024;

/// A response or a change of what is wanted, before it is compared with what was accepted.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) version: String,
    pub(crate) first_on_stream: bool,
    pub(crate) incoming: Incoming,
}

/// What came.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// State of the world.
    State(Vec<RawAny>),
    /// Differences.
    Increment {
        resources: Vec<RawResource>,
        removed: Vec<String>,
        /// Nothing else is there any more.
        replaces_all: bool,
    },
    /// Nothing came, but less is wanted.
    Less,
}

/// A [`Handler`] whose resource type is forgotten, so that one core serves all of them.
pub(crate) trait ErasedHandler: Send {
    /// Decodes what is new in `arrival`, applies it, and keeps `accepted` up to date. Returns how much changed.
    fn apply<'a>(
        &'a mut self,
        accepted: &'a mut Arc<Accepted>,
        type_url: &'static str,
        wanted: Option<Arc<BTreeSet<String>>>,
        arrival: Arrival,
    ) -> BoxFuture<'a, Result<Changed, Rejection>>;
}

/// How many resources an update changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) changed: usize,
    pub(crate) removed: usize,
}

impl Changed {
    pub(crate) const fn is_none(self) -> bool {
        self.changed == 0 && self.removed == 0
    }
}

impl<H: Handler> ErasedHandler for H {
    fn apply<'a>(
        &'a mut self,
        accepted: &'a mut Arc<Accepted>,
        type_url: &'static str,
        wanted: Option<Arc<BTreeSet<String>>>,
        arrival: Arrival,
    ) -> BoxFuture<'a, Result<Changed, Rejection>> {
        let work = async move {
            let Arrival { version, first_on_stream, incoming } = arrival;
            let less = matches!(incoming, Incoming::Less);
            let large = incoming.len() > LARGE;
            let compared = Arc::clone(accepted);
            let compare = move || incoming.differs::<H::Resource>(&compared, type_url, wanted.as_deref(), H::name);
            let difference = if large {
                // Off this thread, which has other types and other duties.
                tokio::task::spawn_blocking(compare).await.map_err(|error| Rejection::new(error.to_string()))??
            } else {
                compare()?
            };
            if less && difference.is_none() {
                return Ok(Changed { changed: 0, removed: 0 });
            }
            let (changed, removed, edits, refused) = difference.into_parts();
            let counts = Changed { changed: changed.len(), removed: removed.len() };
            let outcome = Handler::apply(self, Update { version, changed, removed, first_on_stream }).await;
            let in_force = match &outcome {
                Ok(()) => edits,
                Err(rejection) => rejection.in_force(edits),
            };
            let brings_news = !in_force.is_empty();
            Arc::make_mut(accepted).apply(in_force);
            match outcome.err().or_else(|| refused.into_rejection()) {
                None => Ok(counts),
                Some(rejection) => Err(Rejection { brings_news, ..rejection }),
            }
        };
        // A panic while compiling one update must not end the subscription: the next version may be fine.
        let work = AssertUnwindSafe(work).catch_unwind();
        async move { work.await.unwrap_or_else(|panic| Err(Rejection::new(describe(&*panic)))) }.boxed()
    }
}

impl Incoming {
    /// Bytes of all resources.
    fn len(&self) -> usize {
        match self {
            Self::State(resources) => resources.iter().map(|any| any.value.len()).sum(),
            Self::Increment { resources, .. } => {
                resources.iter().filter_map(|resource| Some(resource.resource.as_ref()?.value.len())).sum()
            }
            Self::Less => 0,
        }
    }

    /// How this differs from what was accepted. Drops what came: a node's policy can be large, and is not held twice while
    /// it is compiled.
    fn differs<M: Message + Default>(
        self,
        accepted: &Accepted,
        type_url: &str,
        wanted: Wanted<'_>,
        name_of: fn(&M) -> String,
    ) -> Result<Difference<M>, Rejection> {
        match self {
            Self::State(resources) => accepted.differs_from_state(type_url, &resources, wanted, name_of),
            Self::Increment { resources, removed, replaces_all } => {
                accepted.differs_by_increment(type_url, resources, &removed, replaces_all, wanted)
            }
            Self::Less => Ok(match wanted {
                Some(wanted) => accepted.without_unwanted(wanted),
                None => Difference::none(),
            }),
        }
    }
}

fn describe(panic: &(dyn Panic + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("internal error while applying the update: {}", text.unwrap_or("panic without a message"))
}
