//! Listeners that a control plane asks for: what of them is served, and why the rest is not.

mod clusters;
mod convert;
mod durations;
mod fields;
mod handler;
mod http_manager;
mod references;
mod report;
mod routes;
#[cfg(test)]
mod tests;

use tollgate_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tollgate_proto::envoy::config::route::v3::RouteConfiguration;
use tollgate_xds::Client;

use crate::config;
use clusters::Clusters;

use convert::enforces_policy;
pub use convert::{Active, Inactive, convert};
pub use handler::ListenerHandler;
pub use references::References;
pub use report::{Inactivity, NotServed, Report, Reported};

/// What the control plane tells of listeners and of what they refer to, for status. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Discovered {
    /// Clusters.
    pub clusters: Clusters,
    /// Route configurations that listeners refer to.
    pub routes: References<RouteConfiguration>,
    /// Addresses that clusters refer to.
    pub endpoints: References<ClusterLoadAssignment>,
}

impl Discovered {
    /// A client that also asks for clusters, for the listeners that are `handler`'s, and for what they refer to.
    #[must_use]
    pub fn subscribe<S: Serve>(&self, client: Client, handler: ListenerHandler<S>) -> Client {
        let (routes, endpoints) = (handler.routes(), self.clusters.endpoints());
        client
            .subscribe(tollgate_xds::CLUSTER, self.clusters.handler())
            .subscribe(tollgate_xds::LISTENER, handler)
            .subscribe_named(tollgate_xds::ROUTE_CONFIGURATION, self.routes.clone(), routes)
            .subscribe_named(tollgate_xds::CLUSTER_LOAD_ASSIGNMENT, self.endpoints.clone(), endpoints)
    }
}

/// What takes listeners in and out of service.
pub trait Serve: Send + Sync + 'static {
    /// Serves exactly these listeners from now on, beside those of the configuration. What cannot be served stays as it was,
    /// but for addresses that others asked for, or absent, and is returned. When the future ends, every worker accepts by it.
    fn serve(&self, listeners: &[config::Listener]) -> impl Future<Output = Vec<Unserved>> + Send;
}

/// A listener that cannot be served as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// Its name.
    pub name: String,
    /// Why, and what to do about it.
    pub reason: String,
    /// What was served under this name before goes on, wherever nobody else wants its addresses.
    pub as_before: bool,
}
