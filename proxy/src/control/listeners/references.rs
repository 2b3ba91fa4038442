//! What listeners and clusters of the control plane refer to: routes and addresses. Nothing is decided or routed by them. They are
//! asked for because a control plane that keeps its types consistent may wait for that, and kept by name for operators.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use prost::{Message, Name};
use tollgate_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tollgate_proto::envoy::config::listener::v3::{Listener, filter};
use tollgate_proto::envoy::config::route::v3::RouteConfiguration;
use tollgate_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use tollgate_proto::google::protobuf::Any;
use tollgate_xds::{Handler, Rejection, Update};

/// A resource that others refer to by its name.
pub trait Referred: Message + Default + Send + 'static {
    /// The name.
    fn name(&self) -> &str;
}

impl Referred for RouteConfiguration {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Referred for ClusterLoadAssignment {
    fn name(&self) -> &str {
        &self.cluster_name
    }
}

/// Names of the resources of a type that were accepted. Clones share them.
#[derive(Clone, Debug)]
pub struct References<M>(Arc<Mutex<BTreeSet<String>>>, PhantomData<fn() -> M>);

impl<M> Default for References<M> {
    fn default() -> Self {
        Self(Arc::default(), PhantomData)
    }
}

impl<M> References<M> {
    /// As of the last update.
    pub fn names(&self) -> BTreeSet<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<M: Referred> Handler for References<M> {
    type Resource = M;

    fn name(resource: &M) -> String {
        resource.name().to_owned()
    }

    async fn apply(&mut self, update: Update<M>) -> Result<(), Rejection> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &update.removed {
            names.remove(name);
        }
        names.extend(update.changed.into_iter().map(|resource| resource.name));
        Ok(())
    }
}

/// Names of the route configurations that a listener leaves to RDS, whether it is served or not.
pub(super) fn routes_of(listener: &Listener) -> impl Iterator<Item = String> + '_ {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains.flat_map(|chain| &chain.filters).filter_map(|filter| match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => route_of(any),
        _ => None,
    })
}

/// What does not decode refers to nothing; why such a listener is not served is told elsewhere.
fn route_of(config: &Any) -> Option<String> {
    if config.type_url.rsplit('/').next() != Some(HttpConnectionManager::full_name().as_str()) {
        return None;
    }
    match HttpConnectionManager::decode(config.value.as_slice()).ok()?.route_specifier? {
        RouteSpecifier::Rds(rds) => Some(rds.route_config_name).filter(|name| !name.is_empty()),
        _ => None,
    }
}
