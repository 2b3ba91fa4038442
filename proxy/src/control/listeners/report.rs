//! What became of the listeners that the control plane asks for: for status, metrics and readiness.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Unserved;
use crate::readiness::{Pending, Readiness};

/// What became of the listeners of the last update. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Report(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    reported: Reported,
    readiness: Readiness,
    /// Held while no listener that redirected traffic could go to is in service.
    none_in_service: Option<Pending>,
}

/// What is not, or not wholly, as the control plane asked, by listener name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// How many are served as asked.
    pub served: usize,
    /// Listeners that ask for something that is not implemented, and what.
    pub inactive: BTreeMap<String, Inactivity>,
    /// Listeners whose sockets cannot be as asked.
    pub unserved: BTreeMap<String, Unserved>,
    /// Settings without effect of listeners that are served.
    pub ignored: BTreeMap<String, Vec<String>>,
}

/// A listener that is not served because of what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inactivity {
    /// What is not implemented.
    pub reason: String,
    /// It is there to enforce policy: the datapath of the node sends pods' connections to it.
    pub enforces_policy: bool,
}

/// Why listeners are not served as asked, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// They ask for something that is not implemented.
    Unsupported,
    /// Their sockets cannot be opened.
    Socket,
    /// The same, but what was served before goes on.
    AsBefore,
}

impl NotServed {
    /// All of them, with their labels.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Unsupported, "unsupported"), (Self::Socket, "socket"), (Self::AsBefore, "as_before")];
}

impl Reported {
    /// Each listener that is not served as asked, and why.
    pub fn not_served(&self) -> BTreeMap<&str, (NotServed, &str)> {
        let inactive = self.inactive.iter();
        let inactive =
            inactive.map(|(name, inactivity)| (name.as_str(), (NotServed::Unsupported, inactivity.reason.as_str())));
        let unserved = self.unserved.iter().map(|(name, unserved)| {
            let kind = if unserved.as_before { NotServed::AsBefore } else { NotServed::Socket };
            (name.as_str(), (kind, unserved.reason.as_str()))
        });
        inactive.chain(unserved).collect()
    }

    /// Whether connections that the datapath redirects go nowhere: there are listeners for them, and none is in service. Listeners
    /// of Ingress, Gateway API and the like do not count, which never are, and which anybody may ask for who can write to a cluster.
    fn leaves_none(&self) -> bool {
        let in_service = self.served > 0 || self.unserved.values().any(|unserved| unserved.as_before);
        let wanted = !self.unserved.is_empty() || self.inactive.values().any(|inactivity| inactivity.enforces_policy);
        wanted && !in_service
    }
}

impl Report {
    /// Nothing is asked for yet. The process is not ready while no listener is in service that should be.
    pub fn new(readiness: Readiness) -> Self {
        Self(Arc::new(Mutex::new(State { readiness, ..State::default() })))
    }

    /// As of now.
    pub fn read(&self) -> Reported {
        self.lock().reported.clone()
    }

    /// The result of an update. Returns the one before.
    pub(crate) fn replace(&self, reported: Reported) -> Reported {
        self.lock().change(|current| std::mem::replace(current, reported))
    }

    /// A listener whose sockets could be neither as asked nor as before is served again as it was before; `refused` says why not as
    /// asked.
    pub fn served_again(&self, name: &str, refused: String) {
        self.lock().change(|current| {
            if let Some(unserved) = current.unserved.get_mut(name) {
                unserved.reason = refused;
                unserved.as_before = true;
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn change<R>(&mut self, change: impl FnOnce(&mut Reported) -> R) -> R {
        let result = change(&mut self.reported);
        if !self.reported.leaves_none() {
            self.none_in_service = None;
        } else if self.none_in_service.is_none() {
            let waits_for = "a listener of the control plane that can be served (status says why none is)";
            self.none_in_service = Some(self.readiness.pending(waits_for));
            tracing::warn!("no listener of the control plane is in service; redirected connections are refused");
        }
        result
    }
}
