//! Where the control plane is, and how the bootstrap says to speak to it (`spec/cilium-agent.md` section 0).

use super::object::{Field, Object};
use crate::config::{ListenAddress, XdsMode};

/// A control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ControlPlane {
    pub(super) address: ListenAddress,
    /// What to begin with; the agent may speak another one by now.
    pub(super) mode: XdsMode,
}

const REMEDY: &str = "name the agent's socket as Cilium's chart does, or write a tollgate.yaml";

/// Reads `dynamicResources`. `None` only after a mistake has been noted.
pub(super) fn read(root: &mut Object<'_>, clusters: &[Field<'_>]) -> Option<ControlPlane> {
    let mut dynamic = root.require("dynamicResources", REMEDY)?.object()?;
    let (lds, cds) = (dynamic.get("ldsConfig"), dynamic.get("cdsConfig"));
    let ads = dynamic.get("adsConfig");
    let lds = source(lds.as_ref());
    // Clusters come from where the listeners do.
    let _ = source(cds.as_ref());
    let found = match (lds, &ads) {
        (Some(Source::Own(config)), _) => api(&config),
        (Some(Source::Aggregated), Some(config)) => api(config).map(|(cluster, _)| (cluster, XdsMode::Ads)),
        (Some(Source::Aggregated), None) => {
            dynamic.refuse(format!("ldsConfig is ads, and there is no adsConfig; {REMEDY}"));
            return None;
        }
        (None, _) => {
            dynamic.refuse(format!("no ldsConfig with apiConfigSource or ads; {REMEDY}"));
            return None;
        }
    };
    dynamic.finish();
    let (name, mode) = found?;
    let text = name.text()?;
    let Some(cluster) = clusters.iter().find(|cluster| cluster.path.ends_with(&format!("[{text}]"))) else {
        name.refuse(format!("no cluster {text} in staticResources; {REMEDY}"));
        return None;
    };
    Some(ControlPlane { address: address(cluster)?, mode })
}

/// Where resources of a type come from.
enum Source<'a> {
    /// A stream of their own.
    Own(Field<'a>),
    /// The one stream of all types.
    Aggregated,
}

fn source<'a>(field: Option<&Field<'a>>) -> Option<Source<'a>> {
    let mut object = field?.object()?;
    expect_v3(&mut object, "resourceApiVersion");
    // What is there before the first answer does not depend on a time here.
    drop(object.get("initialFetchTimeout"));
    let source = match (object.get("apiConfigSource"), object.get("ads")) {
        (Some(config), _) => Some(Source::Own(config)),
        (None, Some(_)) => Some(Source::Aggregated),
        (None, None) => None,
    };
    object.finish();
    source
}

/// The name of the cluster that is asked, and the mode.
fn api<'a>(field: &Field<'a>) -> Option<(Field<'a>, XdsMode)> {
    let mut object = field.object()?;
    expect_v3(&mut object, "transportApiVersion");
    // Done in any case.
    drop(object.get("setNodeOnFirstMessageOnly"));
    let kind = object.require("apiType", "GRPC or DELTA_GRPC")?;
    let mode = match kind.text()? {
        "GRPC" | "AGGREGATED_GRPC" | "AGGREGATED_DELTA_GRPC" => XdsMode::Split,
        "DELTA_GRPC" => XdsMode::DeltaSplit,
        other => {
            kind.refuse(format!("{other} is not implemented; write GRPC or DELTA_GRPC"));
            return None;
        }
    };
    let services = object.require("grpcServices", "the service to ask")?;
    let Some(service) = services.list().into_iter().next() else {
        services.refuse(format!("is empty; {REMEDY}"));
        return None;
    };
    object.finish();
    let mut envoy = service.object()?.require("envoyGrpc", "the cluster to ask")?.object()?;
    let name = envoy.require("clusterName", "the cluster to ask")?;
    Some((name, mode))
}

fn expect_v3(object: &mut Object<'_>, member: &str) {
    if let Some(field) = object.get(member)
        && field.text().is_some_and(|version| version != "V3")
    {
        field.refuse("only V3 is there");
    }
}

const SOCKET: &str = "the socket of the control plane";

/// The one endpoint of a static cluster.
fn address(cluster: &Field<'_>) -> Option<ListenAddress> {
    let mut object = cluster.object()?;
    let mut assignment = object.require("loadAssignment", SOCKET)?.object()?;
    let mut endpoints = first(&mut assignment, "endpoints")?;
    let mut endpoint = first(&mut endpoints, "lbEndpoints")?;
    let mut endpoint = endpoint.require("endpoint", SOCKET)?.object()?;
    endpoint.require("address", SOCKET)?.address()
}

fn first<'a>(object: &mut Object<'a>, name: &str) -> Option<Object<'a>> {
    let list = object.require(name, SOCKET)?;
    let first = list.list().into_iter().next();
    if first.is_none() {
        list.refuse("is empty; it has to name the socket of the control plane");
    }
    first?.object()
}
