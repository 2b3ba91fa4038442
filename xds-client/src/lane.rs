//! One subscription: its handler, what is in force of it, and the queue of what streams bring.
//!
//! A lane is a task of its own and outlives streams: a slow handler holds up its own type only, and an update that is being
//! applied is completed also when its stream is lost.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::accepted::Accepted;
use crate::handler::{Arrival, Changed, ErasedHandler, Incoming};
use crate::interest::Interest;
use crate::status::StreamStatusWriter;
use crate::{Rejection, Service, Variant};

/// One subscription.
pub(crate) struct Lane {
    service: Service,
    interest: Interest,
    handler: Box<dyn ErasedHandler>,
    accepted: Arc<Accepted>,
    status: Arc<StreamStatusWriter>,
    jobs: mpsc::Receiver<Job>,
    /// Of the last update that was accepted.
    version: String,
}

/// What streams know of a lane.
#[derive(Clone, Debug)]
pub(crate) struct LaneHandle {
    pub(crate) service: Service,
    pub(crate) interest: Interest,
    pub(crate) status: Arc<StreamStatusWriter>,
    jobs: mpsc::Sender<Job>,
}

/// A response to apply. Given up when nobody waits for its outcome any more before its turn comes.
#[derive(Debug)]
struct Job {
    variant: Variant,
    arrival: Arrival,
    done: oneshot::Sender<Result<Changed, Rejection>>,
}

impl Lane {
    pub(crate) fn new(service: Service, interest: Interest, handler: Box<dyn ErasedHandler>) -> (Self, LaneHandle) {
        let status = Arc::new(StreamStatusWriter::new(service.type_url));
        let (sender, jobs) = mpsc::channel(1);
        let handle = LaneHandle { service, interest: interest.clone(), status: Arc::clone(&status), jobs: sender };
        let accepted = Arc::default();
        (Self { service, interest, handler, accepted, status, jobs, version: String::new() }, handle)
    }

    /// Applies what comes until no stream can bring anything any more.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.interest.changed() => drop(self.narrow().await),
                job = self.jobs.recv() => match job {
                    Some(job) if job.done.is_closed() => {}
                    Some(job) => self.apply(job).await,
                    None => return,
                },
            }
        }
    }

    async fn apply(&mut self, Job { variant, arrival, done }: Job) {
        let names = self.narrow().await;
        let type_url = self.service.type_url;
        let version = arrival.version.clone();
        let applied = self.handler.apply(&mut self.accepted, type_url, names, arrival).await;
        match &applied {
            Ok(Changed { changed, removed }) => {
                self.status.accepted(&version, self.accepted.len(), variant);
                let resources = self.accepted.len();
                info!(
                    xds.type_url = type_url,
                    xds.version = version,
                    resources,
                    changed,
                    removed,
                    "xDS update accepted"
                );
                self.version = version;
            }
            Err(rejection) => {
                self.status.refused(&version, rejection.to_string());
                self.status.holds(self.accepted.len());
                warn!(xds.type_url = type_url, xds.version = version, %rejection,
                    "xDS update refused; what was accepted before stays in force");
            }
        }
        let _ = done.send(applied); // its stream may have ended: what was accepted stays in force
    }

    /// Takes away what is not wanted any more, without waiting for a response, and returns what is wanted.
    async fn narrow(&mut self) -> Option<Arc<BTreeSet<String>>> {
        let names = self.interest.names().map(Arc::new);
        let type_url = self.service.type_url;
        let less = Arrival { version: self.version.clone(), first_on_stream: false, incoming: Incoming::Less };
        match self.handler.apply(&mut self.accepted, type_url, names.clone(), less).await {
            Ok(_) => self.status.holds(self.accepted.len()),
            Err(rejection) => {
                warn!(xds.type_url = type_url, %rejection, "cannot take away what is not wanted any more");
            }
        }
        names
    }
}

impl LaneHandle {
    /// Applies a response after those that came before. Dropping the future gives it up if its turn has not come.
    pub(crate) async fn apply(&self, variant: Variant, arrival: Arrival) -> Result<Changed, Rejection> {
        let (done, outcome) = oneshot::channel();
        let gone = || Rejection::new("internal error: the subscription has ended");
        self.jobs.send(Job { variant, arrival, done }).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}
