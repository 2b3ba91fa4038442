//! What the stream of listeners does with an update.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use tollgate_proto::envoy::config::listener::v3::Listener;
use tollgate_xds::{Handler, Rejection, Resource, State, Update};

use super::super::identities::{self, AgentIdentities};
use super::clusters::want;
use super::fields::listener_understood;
use super::references::routes_of;
use super::{Inactive, Inactivity, Report, Reported, Serve, Unserved, convert, enforces_policy};
use crate::config::{self, UpstreamDefaults};

/// Serves the listeners of each state. One that asks for something that is not implemented is listed, and acknowledged: a
/// NACK would hold up every pod of the node. Only one whose socket cannot be opened is rejected, since the agent then tries
/// another port; the rest of the update is served all the same, and stays when the next one comes.
#[derive(Debug)]
pub struct ListenerHandler<S> {
    serve: Arc<S>,
    report: Report,
    defaults: UpstreamDefaults,
    identities: Option<AgentIdentities>,
    state: State<Listener>,
    /// Which of them hold more than this version knows, by name.
    unread: BTreeMap<String, Inactive>,
    /// Names of the route configurations that they refer to.
    routes: watch::Sender<BTreeSet<String>>,
}

impl<S: Serve> ListenerHandler<S> {
    /// Hands what can be served to `serve`, and tells `report` about the rest. `defaults` are what listeners do not say.
    pub fn new(serve: Arc<S>, report: Report, defaults: UpstreamDefaults) -> Self {
        Self {
            serve,
            report,
            defaults,
            identities: None,
            state: State::default(),
            unread: BTreeMap::new(),
            routes: watch::Sender::default(),
        }
    }

    /// Names of the resources of RDS that the accepted listeners refer to.
    pub fn routes(&self) -> watch::Receiver<BTreeSet<String>> {
        self.routes.subscribe()
    }

    /// Has what the listeners say about identities count, too.
    #[must_use]
    pub fn with_identities(self, identities: Option<AgentIdentities>) -> Self {
        Self { identities, ..self }
    }
}

impl<S: Serve> Handler for ListenerHandler<S> {
    type Resource = Listener;

    fn name(resource: &Listener) -> String {
        resource.name.clone()
    }

    async fn apply(&mut self, update: Update<Listener>) -> Result<(), Rejection> {
        let unread = self.unread_after(&update);
        let next = self.state.after(update);
        let mut listeners = Vec::new();
        // By name of the listener.
        let mut resources = BTreeMap::new();
        let mut reported = Reported::default();
        for (name, message) in by_own_name(&next) {
            // What is in the way for certain says more than what is not known.
            let converted = convert(message, &self.defaults);
            match converted.and_then(|active| unread.get(name).map_or(Ok(active), |unread| Err(unread.clone()))) {
                Ok(active) => {
                    let refused = |agent| identities::of_agent(agent).err().filter(|_| self.identities.is_some());
                    if let Some(reason) = active.listener.agent.as_ref().and_then(refused) {
                        reported
                            .inactive
                            .insert(name.to_owned(), inactivity(message, format!("cilium.bpf_metadata.{reason}")));
                        continue;
                    }
                    if listeners.iter().any(|served: &config::Listener| served.name == active.listener.name) {
                        let reason = format!("name: {} is the name of another listener, which is served", message.name);
                        reported.inactive.insert(name.to_owned(), inactivity(message, reason));
                        continue;
                    }
                    if !active.ignored.is_empty() {
                        reported.ignored.insert(name.to_owned(), active.ignored);
                    }
                    resources.insert(active.listener.name.clone(), name.to_owned());
                    listeners.push(active.listener);
                }
                Err(inactive) => {
                    drop(reported.inactive.insert(name.to_owned(), inactivity(message, inactive.to_string())))
                }
            }
        }
        let unserved = self.serve.serve(&listeners).await;
        // Nothing waits from here on, so that nobody reports of a listener before this.
        listeners.retain(|listener| unserved.iter().all(|unserved| unserved.name != listener.name));
        self.adopt_identities(&listeners, unserved.is_empty(), &mut reported);
        reported.served = listeners.len();
        reported.unserved = unserved.iter().map(|unserved| (unserved.name.clone(), unserved.clone())).collect();
        let before = self.report.replace(reported.clone());
        log_changes(&before, &reported);
        let refused: Vec<String> = unserved.iter().filter_map(|unserved| resources.remove(&unserved.name)).collect();
        self.keep(next, unread, &refused);
        if unserved.is_empty() {
            return Ok(());
        }
        let reasons: Vec<_> =
            unserved.iter().map(|Unserved { name, reason, .. }| format!("{name}: {reason}")).collect();
        Err(Rejection::of_resources(format!("Listener {}", reasons.join("; ")), refused))
    }
}

/// Every listener with the name of its resource. Those that are called as it come first: where two are called the same, which can be
/// on a stream that names resources, or with copies that the client has told apart, the first is served.
fn by_own_name(state: &State<Listener>) -> impl Iterator<Item = (&str, &Arc<Listener>)> {
    let own = |(name, message): &(&str, &Arc<Listener>)| *name == message.name;
    state.iter().filter(move |listener| own(listener)).chain(state.iter().filter(move |listener| !own(listener)))
}

impl<S> ListenerHandler<S> {
    /// Looks identities up as `served` say, once they are served and everything that came with them is accepted.
    fn adopt_identities(&self, served: &[config::Listener], accepted: bool, reported: &mut Reported) {
        for name in self.identities.iter().flat_map(|identities| identities.adopt(served, accepted)) {
            let other = "cilium.bpf_metadata (other maps of identities are in force)".to_owned();
            reported.ignored.entry(name).or_default().push(other);
        }
    }

    /// Begins the next update from `next`, but for what is `refused`, by resource name: that is as it was before.
    fn keep(&mut self, next: State<Listener>, mut unread: BTreeMap<String, Inactive>, refused: &[String]) {
        let next = next.with_old(&self.state, refused.iter().map(String::as_str));
        for name in refused {
            match self.unread.remove(name) {
                Some(before) => unread.insert(name.clone(), before),
                None => unread.remove(name),
            };
        }
        want(&self.routes, next.iter().flat_map(|(_, listener)| routes_of(listener)).collect());
        (self.state, self.unread) = (next, unread);
    }

    fn unread_after(&self, update: &Update<Listener>) -> BTreeMap<String, Inactive> {
        let mut unread = self.unread.clone();
        unread.retain(|name, _| !update.removed.contains(name));
        for Resource { name, message, partly_read } in &update.changed {
            match partly_read.as_ref().and_then(|bytes| listener_understood(bytes, message).err()) {
                Some(inactive) => unread.insert(name.clone(), inactive),
                None => unread.remove(name),
            };
        }
        unread
    }
}

fn inactivity(message: &Listener, reason: String) -> Inactivity {
    Inactivity { reason, enforces_policy: enforces_policy(message) }
}

/// Each finding once, not with every update that repeats it.
fn log_changes(before: &Reported, now: &Reported) {
    let known = before.not_served();
    for (name, why) in now.not_served() {
        if known.get(name) != Some(&why) {
            tracing::warn!(listener = name, reason = why.1, "listener of the control plane is not served as asked");
        }
    }
    for (name, settings) in &now.ignored {
        if before.ignored.get(name) != Some(settings) {
            tracing::info!(listener = name, settings = settings.join(", "), "settings without effect");
        }
    }
}
