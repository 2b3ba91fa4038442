//! Rules of one direction as port entries with one rule each.

use serde_json::Value;
use tollgate_policy::model::Unsupported;
use tollgate_policy::{PortRule, RuleVerdict};

use super::http;
use super::object::Object;
use super::port::{choices, span};
use super::selector::{ENTITIES, Peer, Selector, entity};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// The list of a `cilium.NetworkPolicy` that holds the entries.
    pub(super) const fn list(self) -> &'static str {
        match self {
            Self::Ingress => "ingress_per_port_policies",
            Self::Egress => "egress_per_port_policies",
        }
    }

    pub(super) const fn of_policy(self) -> tollgate_policy::Direction {
        match self {
            Self::Ingress => tollgate_policy::Direction::Ingress,
            Self::Egress => tollgate_policy::Direction::Egress,
        }
    }

    pub(super) const fn of<'a, T>(self, ingress: &'a T, egress: &'a T) -> &'a T {
        match self {
            Self::Ingress => ingress,
            Self::Egress => egress,
        }
    }

    const fn keys(self) -> Keys {
        match self {
            Self::Ingress => Keys {
                allow: "ingress",
                deny: "ingressDeny",
                endpoints: "fromEndpoints",
                entities: "fromEntities",
                requires: "fromRequires",
                opaque: &["fromCIDR", "fromCIDRSet", "fromGroups", "fromNodes"],
            },
            Self::Egress => Keys {
                allow: "egress",
                deny: "egressDeny",
                endpoints: "toEndpoints",
                entities: "toEntities",
                requires: "toRequires",
                opaque: &["toCIDR", "toCIDRSet", "toFQDNs", "toServices", "toGroups", "toNodes"],
            },
        }
    }
}

struct Keys {
    allow: &'static str,
    deny: &'static str,
    endpoints: &'static str,
    entities: &'static str,
    requires: &'static str,
    /// Peers that only the agent can find.
    opaque: &'static [&'static str],
}

/// Rules of one direction of a `spec`.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// There are rules, also empty ones, so that what none of them allows is denied. An empty list holds none (Cilium's
    /// `Rule.Sanitize` looks at its length).
    pub(super) enforced: bool,
    /// A rule narrows the peers of all rules of the direction, for all that select the same endpoint (Cilium's `FromRequires`
    /// and `ToRequires`), which is not looked at.
    pub(super) narrowed: bool,
    pub(super) entries: Vec<Entry>,
}

/// One rule on one port or range.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: String,
    /// First and last port as in a `PortNetworkPolicy`; 0, 0 is every port.
    pub(super) ports: (u32, u32),
    /// `None`: anybody. Each with its path.
    pub(super) peers: Option<Vec<(String, Peer)>>,
    /// Without remotes.
    pub(super) rule: PortRule,
    /// For elements below the entry (`.rules[0]`) their paths in the resource.
    pub(super) parts: Vec<(String, String)>,
    /// The resource says more about it, or something else.
    pub(super) partial: bool,
    /// It is for other protocols than TCP as well.
    pub(super) all_protocols: bool,
}

impl Rules {
    pub(super) fn read(spec: &Object<'_>, direction: Direction, namespace: Option<&str>) -> Self {
        let keys = direction.keys();
        let mut rules = Self::default();
        for (list, verdict) in [(keys.allow, RuleVerdict::Allow), (keys.deny, RuleVerdict::Deny)] {
            match spec.get(list).and_then(Value::as_array) {
                Some(items) if items.is_empty() => {
                    let what = format!("{list} is empty: to an agent that is no rule, and nothing is denied");
                    spec.invalid(
                        list,
                        what,
                        &format!("`{list}: [{{}}]` to deny what nothing else allows, or no {list}"),
                    );
                }
                items => rules.enforced |= items.is_some(),
            }
            for rule in spec.objects(list) {
                let before = rules.entries.len();
                read_rule(&rule, &keys, verdict, namespace, &mut rules.entries);
                rules.narrowed |= rule.has(keys.requires);
                if rule.has("authentication") || rule.is_mistaken() {
                    rules.entries[before..].iter_mut().for_each(|entry| entry.partial = true);
                }
            }
        }
        rules
    }
}

fn read_rule(rule: &Object<'_>, keys: &Keys, verdict: RuleVerdict, namespace: Option<&str>, entries: &mut Vec<Entry>) {
    let general = ["toPorts", "icmps", "authentication", keys.endpoints, keys.entities, keys.requires];
    rule.known(&[&general, keys.opaque].concat());
    if rule.has("icmps") {
        return rule.not_translated("icmps", "is enforced in the kernel, not by the proxy");
    }
    if rule.has("authentication") {
        rule.not_translated("authentication", "is between agents, not for the proxy");
    }
    if rule.has(keys.requires) {
        rule.not_translated(keys.requires, "narrows the peers, which is not looked at");
    }
    if rule.is_empty() {
        return; // selects nobody, and puts the direction into default deny
    }
    let peers = peers(rule, keys, namespace);
    if peers.as_ref().is_some_and(Vec::is_empty) {
        return;
    }
    let to_ports: Vec<Object<'_>> = rule.objects("toPorts").collect();
    for to_port in &to_ports {
        read_ports(to_port, verdict, peers.as_ref(), entries);
    }
    if to_ports.is_empty() && (peers.is_some() || rule.has(keys.entities)) {
        let parts = vec![(String::new(), rule.path().to_owned())];
        let template = PortRule { verdict, ..PortRule::default() };
        let path = rule.path().to_owned();
        entries.push(Entry { path, ports: (0, 0), peers, rule: template, parts, partial: false, all_protocols: true });
    }
}

/// The peers, `None` for anybody.
fn peers(rule: &Object<'_>, keys: &Keys, namespace: Option<&str>) -> Option<Vec<(String, Peer)>> {
    let mut peers = Vec::new();
    let (mut named, mut anybody) = (false, false);
    if rule.has(keys.endpoints) {
        named = true;
        let selectors = rule.objects(keys.endpoints);
        peers.extend(selectors.map(|selector| {
            let read = Selector::read(&selector).within(namespace);
            (selector.path().to_owned(), Peer::Selected(read))
        }));
    }
    for (path, name) in rule.texts(keys.entities) {
        named = true;
        if !ENTITIES.contains(&name) {
            rule.invalid_at(path.clone(), format!("{name:?} is no entity"), choices(name, &ENTITIES));
        }
        match entity(name) {
            Some(peer) => peers.push((path, peer)),
            None => anybody = true,
        }
    }
    for key in keys.opaque.iter().filter(|key| rule.has(key)) {
        named = true;
        rule.not_translated(key, "who that is is known to the agent only; each entry is looked at as one unknown peer");
        let items = rule.list(key).iter().enumerate();
        peers.extend(
            items.map(|(index, item)| (format!("{}[{index}]", rule.at(key)), Peer::Opaque(format!("{key} {item}")))),
        );
    }
    (named && !anybody).then_some(peers)
}

fn read_ports(
    to_port: &Object<'_>,
    verdict: RuleVerdict,
    peers: Option<&Vec<(String, Peer)>>,
    entries: &mut Vec<Entry>,
) {
    to_port.known(&["ports", "rules", "serverNames", "terminatingTLS", "originatingTLS", "listener"]);
    let mut template = PortRule { verdict, ..PortRule::default() };
    let here = to_port.path();
    let mut parts = vec![(".rules[0]".to_owned(), here.to_owned())];
    for key in ["terminatingTLS", "originatingTLS"].into_iter().filter(|key| to_port.has(key)) {
        template.unsupported.push(Unsupported { element: key.into(), reason: "TLS is not intercepted".into() });
        parts.push((format!(".rules[0].{key}"), to_port.at(key)));
    }
    if to_port.has("listener") {
        to_port.not_translated("listener", "which proxy_id the listener has is known to the agent only");
    }
    for (index, (path, name)) in to_port.texts("serverNames").into_iter().enumerate() {
        template.server_names.push(name.to_owned());
        parts.push((format!(".rules[0].server_names[{index}]"), path));
    }
    if let Some(rules) = to_port.object("rules") {
        rules.known(&["http", "kafka", "dns", "l7proto", "l7"]);
        if let Some(key) = ["kafka", "dns", "l7proto", "l7"].into_iter().find(|key| rules.has(key)) {
            return rules.not_translated(key, "is no HTTP rule");
        }
        if rules.get("http").and_then(Value::as_array).is_some_and(Vec::is_empty) {
            // Source: Cilium's `createL4Filter` looks at its length.
            let what = "http is empty: to an agent that is no HTTP rule, and any bytes pass on the port".to_owned();
            rules.invalid("http", what, "at least one HTTP rule, `{}` for every request; or no `rules`");
        } else if rules.has("http") {
            parts.push((".rules[0].http_rules".to_owned(), rules.at("http")));
            template.http = Some(http::read(&rules, &mut parts));
        }
    }
    let ports: Vec<Object<'_>> = to_port.objects("ports").collect();
    let spans: Vec<Option<(u32, u32)>> = ports.iter().map(span).collect();
    // What is said about the others would be said about all of them.
    let partial = to_port.has("listener") || spans.contains(&None);
    let mut add = |path: &str, ports, all_protocols| {
        let mut parts = parts.clone();
        parts.push((String::new(), path.to_owned()));
        let (path, peers, rule) = (path.to_owned(), peers.cloned(), template.clone());
        entries.push(Entry { path, ports, peers, rule, parts, partial, all_protocols });
    };
    if ports.is_empty() {
        add(here, (0, 0), true);
    }
    for (port, span) in ports.iter().zip(spans) {
        if let Some(span) = span {
            add(port.path(), span, port.text("protocol") != Some("TCP"));
        }
    }
}
