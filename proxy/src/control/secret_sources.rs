//! Where secrets come from: files that configuration names, and the control plane for every other name that policies in
//! force hold.
//!
//! Each name has one source. A name with a file is never asked of the control plane, and whatever else the control plane
//! sends does not count: a secret that one of them withdraws must not live on in the other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tollgate_policy::{Secrets, Snapshot};

use super::Control;
use super::secrets::SecretFiles;
use super::world::after_publishing;

/// What the sources have delivered, and what is wanted of the control plane.
#[derive(Debug, Default)]
pub(super) struct SecretSources {
    delivered: Mutex<Delivered>,
    /// Names that policies in force hold and that have no file.
    wanted: watch::Sender<BTreeSet<String>>,
}

#[derive(Clone, Debug, Default)]
struct Delivered {
    /// Names that have a file.
    filed: BTreeSet<String>,
    files: Secrets,
    control_plane: Secrets,
}

impl SecretSources {
    /// Looks up which secrets `policies` name.
    pub(super) fn look(&self, policies: &Snapshot) {
        let wanted: BTreeSet<String> = {
            let delivered = self.lock();
            let names = policies.secret_names().into_iter().filter(|name| !delivered.filed.contains(*name));
            names.map(ToOwned::to_owned).collect()
        };
        self.wanted.send_if_modified(|names| {
            let changed = *names != wanted;
            *names = wanted;
            changed
        });
    }

    fn lock(&self) -> MutexGuard<'_, Delivered> {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Names that policies in force hold and that the control plane has to deliver.
    pub fn wanted_secrets(&self) -> watch::Receiver<BTreeSet<String>> {
        self.secrets.wanted.subscribe()
    }

    /// Takes secrets from files: what they hold now, and only from there from now on.
    pub fn take_secrets_from(&self, files: &SecretFiles) {
        self.publish_secrets(|delivered| {
            delivered.filed = files.names().map(ToOwned::to_owned).collect();
            delivered.files = files.current().clone();
        });
    }

    /// Takes over what the files hold whenever they change. Never returns.
    pub async fn follow_secrets(self: Arc<Self>, mut files: SecretFiles) {
        loop {
            let secrets = files.changed().await.clone();
            tracing::info!("a secret has changed");
            self.publish_secrets(|delivered| delivered.files = secrets);
        }
    }

    /// Compares and injects these secrets of the control plane from now on, and no others of it.
    pub fn replace_served_secrets(&self, secrets: Secrets) {
        self.publish_secrets(|delivered| delivered.control_plane = secrets);
    }

    /// Has what `change` delivers in force. Panics only before that, with nothing changed.
    fn publish_secrets(&self, change: impl FnOnce(&mut Delivered)) {
        // Under the lock: of two publishers the later one has seen both sources.
        let mut delivered = self.secrets.lock();
        let mut next = delivered.clone();
        change(&mut next);
        self.store().publish_secrets(next.files.or(&next.control_plane));
        *delivered = next;
        drop(delivered);
        after_publishing(|| self.warn_of_missing_secrets());
    }
}
