//! Who a selector selects.

use std::collections::BTreeMap;

use super::object::Object;

/// The label that holds a pod's namespace.
pub(super) const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// What labels of the namespace itself begin with.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

/// Labels of an endpoint or identity: keys without the source that says who set them.
pub(super) type Labels = BTreeMap<String, String>;

/// A key without its source, which selectors seldom write.
pub(super) fn key(key: &str) -> String {
    let bare = ["k8s:", "any:", "k8s.", "any."].iter().find_map(|source| key.strip_prefix(source));
    bare.unwrap_or(key).to_owned()
}

/// A Kubernetes label selector. Without any condition it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selector {
    labels: Labels,
    expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Expression {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    pub(super) fn read(object: &Object<'_>) -> Self {
        object.known(&["matchLabels", "matchExpressions"]);
        let mut selector = Self::default();
        if let Some(labels) = object.object("matchLabels") {
            for name in labels.keys() {
                let value = labels.text(name).unwrap_or_default();
                selector.labels.insert(key(name), value.to_owned());
            }
        }
        for expression in object.objects("matchExpressions") {
            expression.known(&["key", "operator", "values"]);
            let operator = match expression.text("operator").unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let what = format!("{other:?} is no operator");
                    expression.invalid("operator", what, "In, NotIn, Exists or DoesNotExist");
                    continue;
                }
            };
            selector.expressions.push(Expression {
                key: key(expression.text("key").unwrap_or_default()),
                operator,
                values: expression.texts("values").into_iter().map(|(_, value)| value.to_owned()).collect(),
            });
        }
        selector
    }

    /// Narrowed to a namespace, if there is one and the selector does not speak about namespaces itself.
    pub(super) fn within(mut self, namespace: Option<&str>) -> Self {
        let mut keys = self.labels.keys().chain(self.expressions.iter().map(|expression| &expression.key));
        let elsewhere =
            keys.any(|key| key == NAMESPACE || key.starts_with(NAMESPACE_LABELS) || key.starts_with("reserved:"));
        if let Some(namespace) = namespace.filter(|_| !elsewhere) {
            self.labels.insert(NAMESPACE.to_owned(), namespace.to_owned());
        }
        self
    }

    pub(super) fn selects(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|expression| {
                let value = labels.get(&expression.key);
                let listed = value.is_some_and(|value| expression.values.contains(value));
                match expression.operator {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

/// One entry of a rule's list of peers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    /// Whoever has these labels.
    Selected(Selector),
    /// Identities that have the same number everywhere.
    Reserved(Vec<u32>),
    /// Somebody that only the agent can find, by this description.
    Opaque(String),
}

/// Source: the `Entity` enum in the schema of `cilium.io/v2`.
pub(super) const ENTITIES: [&str; 13] = [
    "all",
    "world",
    "world-ipv4",
    "world-ipv6",
    "cluster",
    "host",
    "init",
    "ingress",
    "unmanaged",
    "remote-node",
    "health",
    "none",
    "kube-apiserver",
];

/// An entity: a name for peers that have no labels. `None`: anybody.
pub(super) fn entity(name: &str) -> Option<Peer> {
    // Source: Cilium's reserved identities.
    let numbers: &[u32] = match name {
        "all" => return None,
        "host" => &[1],
        "world" => &[2, 9, 10],
        "unmanaged" => &[3],
        "health" => &[4],
        "init" => &[5],
        "remote-node" => &[6],
        "kube-apiserver" => &[7],
        "ingress" => &[8],
        "world-ipv4" => &[9],
        "world-ipv6" => &[10],
        other => return Some(Peer::Opaque(format!("entity {other}"))),
    };
    Some(Peer::Reserved(numbers.to_vec()))
}
