//! `quilkin-xds`, the xDS server of the game proxy Quilkin: incremental streams, changes as they are broadcast.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost_types::Any;
use quilkin_xds::config::{ClientState, Configuration, DeltaDiscoveryRes};
use quilkin_xds::discovery::Resource;
use quilkin_xds::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use quilkin_xds::server::ControlPlane;
use tokio_stream::wrappers::UnixListenerStream;
use tonic_0_11 as tonic;

use crate::Resources;
use crate::wire::Wire;

/// By name: the version of the last change, and the bytes.
type Versioned = BTreeMap<String, (String, Vec<u8>)>;

/// What there is, by type. Whom to send what and what was acknowledged is the server's to know.
#[derive(Default)]
struct Types(Mutex<BTreeMap<String, Versioned>>);

pub(crate) struct Peer {
    types: Arc<Types>,
    server: ControlPlane<Types>,
}

impl Peer {
    pub(crate) fn new() -> Self {
        let types = Arc::new(Types::default());
        // The interval is of its other role, as a relay.
        let server = ControlPlane::from_arc(Arc::clone(&types), Duration::from_secs(60));
        Self { types, server }
    }
}

impl crate::Server for Peer {
    async fn set(&mut self, type_url: &str, resources: Resources) {
        self.types.set(type_url, resources);
        // A handful of names for as long as a test.
        self.server.push_update(String::leak(type_url.to_owned()));
    }

    fn serve(&self, incoming: UnixListenerStream) {
        let service = AggregatedDiscoveryServiceServer::new(self.server.clone());
        let server = tonic::transport::Server::builder().layer(Wire("Delta")).add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
    }
}

impl Types {
    fn set(&self, type_url: &str, resources: Resources) {
        let mut types = self.0.lock().expect("nobody panics");
        let before = types.remove(type_url).unwrap_or_default();
        let versioned = resources.by_name.into_iter().map(|(name, value)| match before.get(&name) {
            Some(same) if same.1 == value => (name, same.clone()),
            _ => (name, (resources.version.clone(), value)),
        });
        types.insert(type_url.to_owned(), versioned.collect());
    }
}

impl Configuration for Types {
    fn identifier(&self) -> String {
        "tollgate-interop".to_owned()
    }

    /// Of its role as a client.
    fn apply_delta(&self, _: &str, _: Vec<Resource>, _: &[String], _: Option<SocketAddr>) -> quilkin_xds::Result<()> {
        Ok(())
    }

    fn allow_request_processing(&self, type_url: &str) -> bool {
        self.0.lock().expect("nobody panics").contains_key(type_url)
    }

    /// What the client wants and has not acknowledged, by the server's account of it.
    fn delta_discovery_request(&self, client: &ClientState) -> quilkin_xds::Result<DeltaDiscoveryRes> {
        let types = self.0.lock().expect("nobody panics");
        let resources = types.get(&client.resource_type).cloned().unwrap_or_default();
        let removed: HashSet<_> =
            client.versions.keys().filter(|name| !resources.contains_key(*name)).cloned().collect();
        let due = |name: &String, version: &str| {
            (client.subscribed.is_empty() || client.subscribed.contains(name)) && !client.version_matches(name, version)
        };
        let resource = |(name, (version, value))| Resource {
            name,
            version,
            resource: Some(Any { type_url: client.resource_type.clone(), value }),
            ..Resource::default()
        };
        let due = resources.into_iter().filter(|(name, (version, _))| due(name, version));
        Ok(DeltaDiscoveryRes { resources: due.map(resource).collect(), removed })
    }

    fn on_changed(&self, _: ControlPlane<Self>) -> impl Future<Output = ()> + Send + 'static {
        std::future::ready(())
    }

    fn interested_resources(&self) -> impl Iterator<Item = (&'static str, Vec<String>)> {
        std::iter::empty()
    }
}
