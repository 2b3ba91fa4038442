//! Clusters of the control plane. Nothing is routed by them: connections go where they were going. An agent waits for them
//! to be acknowledged before it sends listeners (`spec/cilium-agent.md` section 1.4), and operators may want to see them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tollgate_proto::envoy::config::cluster::v3::Cluster;
use tollgate_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use tollgate_xds::{Handler, Rejection, Update};

/// The clusters that were accepted. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Clusters(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Names, and what the addresses of a cluster are called where it leaves them to EDS.
    clusters: Mutex<BTreeMap<String, Option<String>>>,
    endpoints: watch::Sender<BTreeSet<String>>,
}

impl Clusters {
    /// As of the last update.
    pub fn names(&self) -> BTreeSet<String> {
        self.0.clusters.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Names of the resources of EDS that they refer to.
    pub fn endpoints(&self) -> watch::Receiver<BTreeSet<String>> {
        self.0.endpoints.subscribe()
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
        let Clusters(shared) = &self.0;
        let mut clusters = shared.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &update.removed {
            clusters.remove(name);
        }
        clusters.extend(update.changed.into_iter().map(|resource| (resource.name, endpoints_of(&resource.message))));
        want(&shared.endpoints, clusters.values().flatten().cloned().collect());
        Ok(())
    }
}

/// What the addresses of a cluster are called (`envoy.config.cluster.v3.Cluster.EdsClusterConfig`).
fn endpoints_of(cluster: &Cluster) -> Option<String> {
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    if cluster.cluster_discovery_type.as_ref() != Some(&eds) {
        return None;
    }
    let service =
        cluster.eds_cluster_config.as_ref().map(|config| &config.service_name).filter(|name| !name.is_empty());
    Some(service.unwrap_or(&cluster.name).clone())
}

/// Makes these the names that are wanted, and tells of it only when they are others.
pub(super) fn want(wanted: &watch::Sender<BTreeSet<String>>, names: BTreeSet<String>) {
    wanted.send_if_modified(|before| {
        let changed = *before != names;
        *before = names;
        changed
    });
}
