//! Clusters of the control plane. Nothing is routed by them: connections go where they were going. An agent waits for them
//! to be acknowledged before it sends listeners (`spec/cilium-agent.md` section 1.4), and operators may want to see them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tollgate_proto::envoy::config::cluster::v3::Cluster;
use tollgate_xds::{Handler, Rejection, Update};

/// Names of the clusters that were accepted. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Clusters(Arc<Mutex<BTreeSet<String>>>);

impl Clusters {
    /// As of the last update.
    pub fn names(&self) -> BTreeSet<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the names of what arrives.
    pub fn handler(&self) -> ClusterHandler {
        ClusterHandler(self.clone())
    }
}

/// What the stream of clusters does with an update.
#[derive(Debug)]
pub struct ClusterHandler(Clusters);

impl Handler for ClusterHandler {
    type Resource = Cluster;

    fn name(resource: &Cluster) -> String {
        resource.name.clone()
    }

    async fn apply(&mut self, update: Update<Cluster>) -> Result<(), Rejection> {
        let Clusters(names) = &self.0;
        let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &update.removed {
            names.remove(name);
        }
        names.extend(update.changed.into_iter().map(|resource| resource.name));
        Ok(())
    }
}
