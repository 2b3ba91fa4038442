//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`, the Kubernetes resources, as the policies that an agent
//! makes of them: rules on ports, peers as identities, HTTP conditions as header matchers.
//!
//! For looking at policies before they are deployed, never for enforcing them: what peers and endpoints are is known to
//! the agent. Without an [`Identities`] file each resource is one endpoint, named after it, and each distinct selector an
//! identity of its own. What has no counterpart is said, never left out in silence.

mod http;
mod identities;
mod object;
mod port;
mod rules;
mod selector;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;
use tollgate_policy::{EndpointKey, NetworkPolicy, PortPolicy};
use tollgate_proto::nearest::nearest;

pub(crate) use self::identities::KnownIdentities;
use self::object::Object;
use self::rules::{Direction, Rules};
use self::selector::{Peer, Selector};

const API_VERSION: &str = "cilium.io/v2";
const KINDS: [&str; 2] = ["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"];

/// What a Kubernetes object is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// One of the two resources.
    Policy,
    /// Meant to be one, but for `apiVersion` or `kind`.
    Misspelt(Problem),
    Other,
}

/// Which resource a Kubernetes object is.
pub(crate) fn kind(object: &Value) -> Kind {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let misspelt = |path: &str, what, instead| {
        Kind::Misspelt(Problem { kind: ProblemKind::InvalidValue, path: path.to_owned(), what, instead })
    };
    match KINDS.contains(&kind) {
        true if version == API_VERSION => Kind::Policy,
        true => misspelt("apiVersion", format!("{version:?} has no {kind}"), API_VERSION.to_owned()),
        false if version.starts_with("cilium.io/") && nearest(kind, &KINDS).is_some() => {
            misspelt("kind", format!("there is no {kind}"), port::choices(kind, &KINDS))
        }
        false => Kind::Other,
    }
}

/// What cannot be carried over as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Problem {
    pub(crate) kind: ProblemKind,
    /// Path in the resource, such as `spec.ingress[0].toPorts[0].rules.http[1].path`.
    pub(crate) path: String,
    pub(crate) what: String,
    pub(crate) instead: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ProblemKind {
    /// The resource has no such field.
    UnknownField,
    /// A value that does not fit its field.
    InvalidValue,
    /// It has a meaning for the agent, and none for the proxy.
    NotTranslated,
    /// A selector to which nothing in the identities file fits.
    SelectsNobody,
}

/// A policy made of resources, and where its elements come from.
#[derive(Debug)]
pub(crate) struct Translated {
    pub(crate) policy: NetworkPolicy,
    pub(crate) parts: Vec<Part>,
    /// Entries of which the resource says more, or something else.
    pub(crate) partial: Vec<(tollgate_policy::Direction, usize)>,
    /// Entries that are for other protocols than TCP as well.
    pub(crate) all_protocols: Vec<(tollgate_policy::Direction, usize)>,
}

/// An element of a policy and the element of a resource that it was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Path in the policy, as a finding names it.
    pub(crate) element: String,
    /// Index of the resource in the list that was translated.
    pub(crate) resource: usize,
    /// Path in the resource.
    pub(crate) path: String,
}

/// What a list of resources comes to.
#[derive(Debug, Default)]
pub(crate) struct Translation {
    /// One for each `spec`. Equal peers are described in equal words, so what these say to each other is so wherever the
    /// resource is in force.
    pub(crate) policies: Vec<Translated>,
    /// One for each endpoint that is known, with the identities that are known. Who else there may be, and where else a
    /// resource is in force, is not.
    pub(crate) given: Vec<Translated>,
    /// By index of their resource.
    pub(crate) problems: Vec<(usize, Problem)>,
}

/// One `spec` of a resource.
#[derive(Debug)]
struct Spec {
    resource: usize,
    /// `namespace/name`, or the name of a clusterwide policy; with the path of the `spec` where there are several.
    name: String,
    path: String,
    endpoints: Selector,
    ingress: Rules,
    egress: Rules,
}

/// Translates resources that are in force together.
pub(crate) fn translate(resources: &[&Value], known: Option<&KnownIdentities>) -> Translation {
    let mut translation = Translation::default();
    let mut specs = Vec::new();
    for (number, resource) in resources.iter().enumerate() {
        let root = Object::root(resource);
        if let Some(root) = &root {
            read_specs(number, root, &mut specs);
            translation.problems.extend(root.problems().into_iter().map(|problem| (number, problem)));
        }
    }
    let mut peers = Peers { known: None, made_up: BTreeMap::new() };
    for (spec, id) in specs.iter().zip(1..) {
        let names = vec![EndpointKey::Name(spec.name.as_str().into())];
        translation.policies.push(assemble(id, names, &[spec], &mut peers, &mut Vec::new()));
    }
    if let Some(known) = known {
        with_identities(&specs, known, &mut translation);
    }
    translation
}

fn with_identities(specs: &[Spec], known: &KnownIdentities, translation: &mut Translation) {
    let mut peers = Peers { known: Some(known), made_up: BTreeMap::new() };
    let mut problems: Vec<(usize, Problem)> = Vec::new();
    for spec in specs.iter().filter(|spec| !known.endpoints.iter().any(|e| spec.endpoints.selects(&e.labels))) {
        let path = format!("{}.endpointSelector", spec.path);
        problems.push((spec.resource, nobody(path, "endpoint")));
    }
    for endpoint in &known.endpoints {
        let here: Vec<&Spec> = specs.iter().filter(|spec| spec.endpoints.selects(&endpoint.labels)).collect();
        if !here.is_empty() {
            let made = assemble(endpoint.id, endpoint.keys.clone(), &here, &mut peers, &mut problems);
            translation.given.push(made);
        }
    }
    // A spec for several endpoints says the same for each.
    let mut seen = HashSet::new();
    problems.retain(|problem| seen.insert(problem.clone()));
    translation.problems.extend(problems);
}

fn nobody(path: String, what: &str) -> Problem {
    Problem {
        kind: ProblemKind::SelectsNobody,
        path,
        what: format!("selects no {what} of the identities file"),
        instead: "labels that something has, or an identities file that knows it".to_owned(),
    }
}

fn read_specs(resource: usize, root: &Object<'_>, specs: &mut Vec<Spec>) {
    root.known(&["apiVersion", "kind", "metadata", "spec", "specs", "status"]);
    let metadata = root.object("metadata");
    let text = |key: &str| metadata.as_ref().and_then(|metadata| metadata.text(key));
    let clusterwide = root.text("kind").is_some_and(|kind| kind == "CiliumClusterwideNetworkPolicy");
    let namespace = (!clusterwide).then(|| text("namespace").unwrap_or("default"));
    let name = text("name").unwrap_or("unnamed");
    let name = namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
    if !root.has("spec") && !root.has("specs") {
        root.invalid("spec", "there is no spec".to_owned(), "a spec with an endpointSelector and rules");
    }
    let several = root.objects("specs");
    let numbered = several.len() > 0;
    for spec in root.object("spec").into_iter().chain(several) {
        spec.known(&[
            "endpointSelector",
            "nodeSelector",
            "ingress",
            "ingressDeny",
            "egress",
            "egressDeny",
            "labels",
            "description",
            "enableDefaultDeny",
            "log",
        ]);
        if spec.has("nodeSelector") {
            spec.not_translated("nodeSelector", "host policies are enforced in the kernel, not by the proxy");
            continue;
        }
        if let Some(default_deny) = spec.object("enableDefaultDeny") {
            for direction in ["ingress", "egress"].into_iter().filter(|key| default_deny.flag(key) == Some(false)) {
                default_deny.not_translated(direction, "is looked at as if the direction was denied by default");
            }
        }
        let endpoints = spec.object("endpointSelector").map(|selector| Selector::read(&selector));
        specs.push(Spec {
            resource,
            name: if numbered { format!("{name} {}", spec.path()) } else { name.clone() },
            path: spec.path().to_owned(),
            endpoints: endpoints.unwrap_or_default().within(namespace),
            ingress: Rules::read(&spec, Direction::Ingress, namespace),
            egress: Rules::read(&spec, Direction::Egress, namespace),
        });
    }
}

/// Identities of peers.
struct Peers<'a> {
    known: Option<&'a KnownIdentities>,
    /// Numbers of peers about which nothing but their selector is known.
    made_up: BTreeMap<Peer, u32>,
}

/// Beyond what an agent allocates for a cluster; the number itself is never shown.
const FIRST_MADE_UP: u32 = 1 << 24;

impl Peers<'_> {
    /// The identities of a peer; empty when it is nobody.
    fn identities(&mut self, peer: &Peer) -> Vec<u32> {
        let made_up = FIRST_MADE_UP + self.made_up.len() as u32;
        match (peer, self.known) {
            (Peer::Reserved(numbers), _) => numbers.clone(),
            (Peer::Selected(selector), Some(known)) => {
                known.identities.iter().filter(|known| selector.selects(&known.labels)).map(|known| known.id).collect()
            }
            (Peer::Selected(_) | Peer::Opaque(_), _) => {
                vec![*self.made_up.entry(peer.clone()).or_insert(made_up)]
            }
        }
    }
}

/// The policy of one endpoint.
fn assemble(
    endpoint_id: u64,
    endpoints: Vec<EndpointKey>,
    specs: &[&Spec],
    peers: &mut Peers<'_>,
    problems: &mut Vec<(usize, Problem)>,
) -> Translated {
    let mut parts = Vec::new();
    if let [spec, ..] = specs {
        let at =
            |element: &str, path: &str| Part { element: element.into(), resource: spec.resource, path: path.into() };
        parts.extend([at("", &spec.path), at("endpoint_ips", "metadata.name"), at("endpoint_id", "metadata.name")]);
    }
    let (mut partial, mut all_protocols) = (Vec::new(), Vec::new());
    let mut side = |direction: Direction| {
        let list = direction.list();
        let mut entries: Vec<PortPolicy> = Vec::new();
        let mut enforced = false;
        let narrowed = specs.iter().any(|spec| direction.of(&spec.ingress, &spec.egress).narrowed);
        for spec in specs {
            let rules = direction.of(&spec.ingress, &spec.egress);
            enforced |= rules.enforced;
            for entry in &rules.entries {
                let mut rule = entry.rule.clone();
                if let Some(wanted) = &entry.peers {
                    rule.remotes = wanted.iter().flat_map(|(_, peer)| peers.identities(peer)).collect();
                    if rule.remotes.is_empty() {
                        // An empty list would mean anybody.
                        let path = wanted.first().map_or_else(|| entry.path.clone(), |(path, _)| path.clone());
                        problems.push((spec.resource, nobody(path, "identity")));
                        continue;
                    }
                }
                let element = format!("{list}[{}]", entries.len());
                parts.extend(entry.parts.iter().map(|(below, path)| Part {
                    element: format!("{element}{below}"),
                    resource: spec.resource,
                    path: path.clone(),
                }));
                let here = (direction.of_policy(), entries.len());
                partial.extend((entry.partial || narrowed).then_some(here));
                all_protocols.extend(entry.all_protocols.then_some(here));
                let (port, end_port) = entry.ports;
                entries.push(PortPolicy { port, end_port, rules: vec![rule], ..PortPolicy::default() });
            }
        }
        if !enforced {
            entries.push(PortPolicy::default());
        }
        entries
    };
    let (ingress, egress) = (side(Direction::Ingress), side(Direction::Egress));
    Translated { policy: NetworkPolicy { endpoint_id, endpoints, ingress, egress }, parts, partial, all_protocols }
}
