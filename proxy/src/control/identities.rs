//! Keeps the datapath's maps open: which ones, and which file a pin is, can change while the process runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Control;
use crate::config::{Agent, Identities, IdentitySettings, Listener};
use crate::identity::{DuplicatePrefix, IdentityTable, Maps, Sources};
use crate::readiness::{Pending, Readiness};

/// How often the pins are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long maps whose pin is gone are still read. An agent that restarts may take one away for a moment; one that is gone
/// for good leaves maps behind that nobody writes to.
const ORPHANED: Duration = Duration::from_secs(5);

/// What an agent means by a map without a name (`spec/cilium-agent.md` section 2.3).
const OLD_IPCACHE_NAME: &str = "cilium_ipcache";

/// The sources of `settings`, before anything else is known.
///
/// # Errors
/// The listed identities contradict each other.
pub fn sources(settings: &IdentitySettings) -> Result<Sources, DuplicatePrefix> {
    let table = match &settings.source {
        Identities::Static(list) => {
            let entries = list.iter().flat_map(|entry| entry.addresses.iter().map(|net| (*net, entry.identity)));
            Some(Arc::new(IdentityTable::new(entries)?))
        }
        Identities::Nphds | Identities::Ipcache(_) | Identities::Agent => None,
    };
    Ok(Sources::new(settings, table))
}

/// What an agent's listener says about identities; `None` when it says nothing.
///
/// # Errors
/// It cannot be done.
pub(super) fn of_agent(agent: &Agent) -> Result<Option<IdentitySettings>, &'static str> {
    if agent.use_nphds {
        return Err("use_nphds: identities over xDS have to be configured, with identities: nphds");
    }
    let Some(root) = &agent.bpf_root else { return Ok(None) };
    let name = agent.ipcache_name.as_deref().unwrap_or(OLD_IPCACHE_NAME);
    let mut settings = IdentitySettings::of_bpf_root(root, name);
    settings.ttl = agent.cache_entry_ttl.unwrap_or(settings.ttl);
    Ok(Some(settings))
}

/// Takes the maps that an agent names with its listeners. Maps are the process's, not a listener's: where listeners differ the
/// first by name counts.
#[derive(Clone, Debug)]
pub struct AgentIdentities(Arc<Control>);

impl AgentIdentities {
    /// Tells `control`. `None` where the configuration says where identities come from.
    pub fn new(control: &Arc<Control>, source: &Identities) -> Option<Self> {
        matches!(source, Identities::Agent).then(|| Self(Arc::clone(control)))
    }

    /// Looks identities up where these listeners say, which are in service. Of an update that is not `accepted` only where nobody
    /// has said anything before: maps that are in force are not replaced by a refused update, and without any everybody would be
    /// refused. Returns the names of listeners whose settings have no effect.
    pub(super) fn adopt(&self, listeners: &[Listener], accepted: bool) -> Vec<String> {
        let said = |listener: &Listener| of_agent(listener.agent.as_ref()?).ok()?;
        let in_force = || Arc::clone(&self.0.store().load().identities);
        let first = listeners.iter().find_map(said);
        if let Some(adopted) = first.filter(|_| accepted || in_force().settings().source == Identities::Agent)
            && let Err(error) = self.0.configure_identities(&adopted)
        {
            // Only a list can contradict itself.
            tracing::error!(%error, "cannot look identities up as the agent says");
        }
        let in_force = in_force();
        let differs = |listener: &&Listener| said(listener).is_some_and(|said| said != *in_force.settings());
        listeners.iter().filter(differs).map(|listener| listener.name.clone()).collect()
    }
}

impl Control {
    /// Opens the maps anew and looks identities up in them from now on. For a new stream of policies: whoever sends them may
    /// have made new maps, and these policies are about the identities in those. A map whose pin is gone stays open: it is what
    /// there is until a new one is pinned, or until [`Self::follow_identity_maps`] gives it up.
    pub fn reopen_identity_maps(&self) {
        let identities = Arc::clone(&self.store().load().identities);
        if let Some(sources) = identities.reopened() {
            self.replace_sources(sources);
        }
    }

    /// Looks identities up where `settings` say from now on; a table that came over xDS is kept. Does nothing when that is
    /// how it is already.
    ///
    /// # Errors
    /// The listed identities contradict each other; nothing changes then.
    pub fn configure_identities(&self, settings: &IdentitySettings) -> Result<(), DuplicatePrefix> {
        let current = Arc::clone(&self.store().load().identities);
        if current.settings() == settings {
            return Ok(());
        }
        let sources = match &settings.source {
            Identities::Static(_) => sources(settings)?,
            Identities::Nphds | Identities::Ipcache(_) | Identities::Agent => Sources::new(settings, current.hosts()),
        };
        self.replace_sources(sources);
        Ok(())
    }

    fn replace_sources(&self, sources: Sources) {
        if let Some(maps) = sources.maps() {
            for view in maps.views() {
                tracing::info!(map = %view, "identity map");
            }
        }
        self.store().publish_sources(sources);
    }

    /// Looks at the pins, and opens maps anew when they are other files or could not be opened before. Never returns.
    ///
    /// The process is not ready while identities cannot be looked up: all it could do is refuse.
    pub async fn follow_identity_maps(self: Arc<Self>, readiness: Readiness) {
        let mut worlds = self.store().subscribe();
        let mut orphaned_since = None;
        let mut blocked: Option<(String, Pending)> = None;
        loop {
            worlds.borrow_and_update();
            let identities = Arc::clone(&self.store().load().identities);
            if let Some(maps) = identities.maps() {
                self.follow_pins(&identities, maps, &mut orphaned_since);
            }
            let waits_for = self.store().load().identities.waits_for();
            if blocked.as_ref().map(|(what, _)| what) != waits_for.as_ref() {
                if let Some(what) = &waits_for {
                    tracing::warn!(reason = what, "identities cannot be looked up; connections are refused");
                }
                blocked = waits_for.map(|what| (what.clone(), readiness.pending(what)));
            }
            // Without maps there is nothing to look at again: an idle process stays idle.
            let look = async {
                match identities.maps() {
                    Some(_) => sleep(LOOK).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = look => {}
                changed = worlds.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Opens the maps anew when that is due and makes a difference.
    fn follow_pins(&self, identities: &Sources, maps: &Maps, orphaned_since: &mut Option<Instant>) {
        let state = maps.state();
        if !state.orphaned {
            *orphaned_since = None;
        }
        let given_up = state.orphaned && orphaned_since.get_or_insert_with(Instant::now).elapsed() >= ORPHANED;
        let opened = match (given_up, state.stale) {
            (true, _) => identities.opened_anew(),
            (false, true) => identities.reopened(),
            (false, false) => None,
        };
        if let Some(sources) = opened
            && (maps.has_failed() || sources.maps().is_some_and(|opened| opened.views() != maps.views()))
        {
            self.replace_sources(sources);
        }
    }
}
