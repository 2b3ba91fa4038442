//! Endpoints for operators. For Envoy they are static listeners that lead to its admin endpoint; what each is for shows
//! in where it leads.

use std::net::SocketAddr;

use super::object::Field;
use crate::config::ListenAddress;

/// The cluster that is Envoy's own admin endpoint.
pub(super) const ADMIN_CLUSTER: &str = "/envoy-admin";

/// Addresses by what they serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Endpoints {
    pub(super) admin: Vec<ListenAddress>,
    pub(super) metrics: Vec<SocketAddr>,
    pub(super) health: Vec<SocketAddr>,
}

impl Endpoints {
    /// The endpoints among `staticResources.listeners`.
    pub(super) fn of_static_listeners(listeners: Option<&Field<'_>>) -> Self {
        let mut endpoints = Self::default();
        for listener in listeners.map(Field::list).unwrap_or_default() {
            endpoints.add(&listener);
        }
        endpoints
    }

    fn add(&mut self, listener: &Field<'_>) {
        if !listener.mentions("cluster", ADMIN_CLUSTER) {
            return listener.ignore();
        }
        let addresses = addresses(listener);
        if listener.mentions("prefixRewrite", "/stats/prometheus") {
            self.metrics.extend(addresses);
        } else if listener.mentions("prefixRewrite", "/ready") {
            self.health.extend(addresses);
        } else {
            self.admin.extend(addresses.into_iter().map(ListenAddress::Tcp));
        }
    }
}

fn addresses(listener: &Field<'_>) -> Vec<SocketAddr> {
    let Some(mut object) = listener.object() else { return Vec::new() };
    let mut fields: Vec<_> = object.require("address", "where to listen").into_iter().collect();
    for additional in object.get("additionalAddresses").map(|field| field.list()).unwrap_or_default() {
        fields.extend(additional.object().and_then(|mut object| object.require("address", "where to listen")));
    }
    let address = |field: Field<'_>| match field.address()? {
        ListenAddress::Tcp(address) => Some(address),
        ListenAddress::Unix(_) => {
            field.refuse("is a Unix socket, which only admin.address can be");
            None
        }
    };
    fields.into_iter().filter_map(address).collect()
}
