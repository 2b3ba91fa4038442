use serde_json::{Value, json};
use tollgate_policy::model::{HeaderMatch, HeaderMatcher, HttpRule, MismatchAction, TextPart, ValueMatch};
use tollgate_policy::{PortRule, RuleVerdict};

use super::*;
use crate::config::document;

fn yaml(text: &str) -> Value {
    document::read(text).expect("is YAML")
}

fn regex(name: &str, pattern: &str) -> HeaderMatcher {
    HeaderMatcher::new(name, ValueMatch::Regex(pattern.into()))
}

fn exact(name: &str, text: &str) -> HeaderMatcher {
    HeaderMatcher::new(name, ValueMatch::Text { part: TextPart::Whole, text: text.into(), ignore_case: false })
}

/// The example of what an agent sends (1.18) for a policy with everything that HTTP rules have.
const SHOP: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: { name: l7-demo, namespace: shop }
spec:
  endpointSelector: { matchLabels: { app: api } }
  ingress:
    - fromEndpoints: [{ matchLabels: { app: web } }]
      toPorts:
        - ports: [{ port: "8080", protocol: TCP }]
          rules:
            http:
              - { method: GET, path: "/v1/items/[0-9]+", host: "api\\.shop", headers: ["X-Env: prod", "X-Trace"] }
              - method: "POST|PUT"
                path: "/v1/.*"
                headerMatches:
                  - { name: X-Token, mismatch: REPLACE, secret: { namespace: shop, name: tok } }
                  - { name: X-Role, value: admin }
"#;

const WHO: &str = r#"
identities:
  - { identity: 12001, labels: ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"] }
  - { identity: 12044, labels: { app: web, version: "2", io.kubernetes.pod.namespace: shop } }
  - { identity: 12099, labels: { app: web, io.kubernetes.pod.namespace: other } }
endpoints:
  - { endpoint_id: 1234, addresses: [10.0.1.7, "fd00::17"], labels: { app: api, io.kubernetes.pod.namespace: shop } }
"#;

fn known(text: &str) -> KnownIdentities {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("who.yaml");
    std::fs::write(&file, text).expect("writes");
    KnownIdentities::read(&file).expect("reads")
}

fn shop_rules() -> Vec<HttpRule> {
    let get = vec![
        regex(":path", "/v1/items/[0-9]+"),
        regex(":method", "GET"),
        regex(":authority", r"api\.shop"),
        exact("x-env", "prod"),
        HeaderMatcher::new("x-trace", ValueMatch::Present(true)),
    ];
    let post = vec![regex(":path", "/v1/.*"), regex(":method", "POST|PUT"), exact("x-role", "admin")];
    let token = HeaderMatch {
        secret: Some("cilium-secrets/shop-tok".into()),
        on_mismatch: MismatchAction::Replace,
        ..HeaderMatch::new("x-token", "")
    };
    vec![
        HttpRule { headers: get, ..HttpRule::default() },
        HttpRule { headers: post, header_matches: vec![token], ..HttpRule::default() },
    ]
}

#[test]
fn http_rules_become_what_an_agent_sends() {
    let translation = translate(&[&yaml(SHOP)], Some(&known(WHO)));
    assert_eq!(translation.problems, []);
    let [Translated { policy, .. }] = &translation.given[..] else { panic!("{translation:?}") };
    let rule = PortRule { remotes: vec![12001, 12044], http: Some(shop_rules()), ..PortRule::default() };
    let expected = NetworkPolicy {
        endpoint_id: 1234,
        endpoints: ["10.0.1.7", "fd00::17"].map(EndpointKey::parse).to_vec(),
        ingress: vec![PortPolicy { port: 8080, rules: vec![rule], ..PortPolicy::default() }],
        // Not enforced: everything is allowed.
        egress: vec![PortPolicy::default()],
    };
    assert_eq!(*policy, expected);
}

#[test]
fn elements_lead_back_to_the_resource() {
    let translation = translate(&[&yaml(SHOP)], None);
    let [Translated { policy, parts, .. }] = &translation.policies[..] else { panic!("{translation:?}") };
    assert_eq!(policy.endpoints, [EndpointKey::Name("shop/l7-demo".into())]);
    let path = |element: &str| &*parts.iter().find(|part| part.element == element).expect(element).path;
    let entry = "ingress_per_port_policies[0]";
    assert_eq!(path(entry), "spec.ingress[0].toPorts[0].ports[0]");
    assert_eq!(path(&format!("{entry}.rules[0]")), "spec.ingress[0].toPorts[0]");
    let http = "spec.ingress[0].toPorts[0].rules.http";
    for (element, expected) in [
        ("[0].headers[0]", "[0].path"),
        ("[0].headers[1]", "[0].method"),
        ("[0].headers[2]", "[0].host"),
        ("[0].headers[4]", "[0].headers[1]"),
        ("[1].headers[2]", "[1].headerMatches[1]"),
        ("[1].header_matches[0]", "[1].headerMatches[0]"),
    ] {
        assert_eq!(path(&format!("{entry}.rules[0].http_rules.http_rules{element}")), format!("{http}{expected}"));
    }
}

type PortVerdictRemotes = (u32, RuleVerdict, Vec<u32>);

/// The ingress entries of one clusterwide policy with these rules: port, verdict, remotes.
fn ingress(spec: Value) -> (Vec<PortVerdictRemotes>, Vec<(ProblemKind, String)>) {
    let resource = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": { "name": "a" }, "spec": spec,
    });
    let who = "identities: [{ identity: 7, labels: { app: web } }, { identity: 8, labels: { app: db } }]\n\
               endpoints: [{ endpoint_id: 1, addresses: [a], labels: { app: api } }]\n";
    let translation = translate(&[&resource], Some(&known(who)));
    let entries = translation.given.iter().flat_map(|made| &made.policy.ingress).map(|entry| {
        let rule = entry.rules.first().cloned().unwrap_or_default();
        (entry.port, rule.verdict, rule.remotes)
    });
    let problems = translation.problems.iter().map(|(_, problem)| (problem.kind, problem.path.clone()));
    (entries.collect(), problems.collect())
}

#[test]
fn peers_and_default_deny() {
    use RuleVerdict::{Allow, Deny};
    let web = json!([{ "matchLabels": { "k8s:app": "web" } }]);
    let cases = [
        // Nothing is said about the direction: everything is allowed.
        (json!({}), vec![(0, Allow, vec![])]),
        (json!({ "ingress": [{}] }), vec![]),
        (json!({ "ingress": [{ "fromEndpoints": [] }] }), vec![]),
        (json!({ "ingress": [{ "fromEndpoints": web }] }), vec![(0, Allow, vec![7])]),
        (json!({ "ingress": [{ "fromEndpoints": [{}] }] }), vec![(0, Allow, vec![7, 8])]),
        (json!({ "ingress": [{ "fromEntities": ["all"] }] }), vec![(0, Allow, vec![])]),
        (json!({ "ingress": [{ "fromEntities": ["host", "ingress"] }] }), vec![(0, Allow, vec![1, 8])]),
        (json!({ "ingress": [{ "toPorts": [{ "ports": [{ "port": "80" }] }] }] }), vec![(80, Allow, vec![])]),
        (json!({ "ingressDeny": [{ "fromEndpoints": web }] }), vec![(0, Deny, vec![7])]),
        (
            json!({ "ingress": [{ "fromEndpoints": [{ "matchExpressions": [
                { "key": "app", "operator": "NotIn", "values": ["web"] }, { "key": "app", "operator": "Exists" }] }] }] }),
            vec![(0, Allow, vec![8])],
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(ingress(spec.clone()), (expected, vec![]), "{spec}");
    }
}

/// As a `NetworkPolicy` of Kubernetes it would deny everything, so it is said.
#[test]
fn an_empty_list_of_rules_denies_nothing() {
    let everything = vec![(0, RuleVerdict::Allow, vec![])];
    for list in ["ingress", "ingressDeny"] {
        let (entries, problems) = ingress(json!({ list: [] }));
        assert_eq!(entries, everything, "{list}");
        let found = problems.iter().map(|(kind, path)| (*kind, path.as_str())).collect::<Vec<_>>();
        assert_eq!(found, [(ProblemKind::InvalidValue, format!("spec.{list}").as_str())]);
    }
    assert_eq!(ingress(json!({ "ingress": [{}], "ingressDeny": [] })).0, vec![]);
}

/// What a rule of which only a part is known says is not held against others.
#[test]
fn what_is_translated_in_part_is_marked() {
    let partial = |rule: Value| {
        let resource = json!({ "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": { "ingress": [
            rule, { "fromEntities": ["host"], "toPorts": [{ "ports": [{ "port": "1" }, { "port": "2" }] }] }] } });
        translate(&[&resource], None).policies[0].partial.iter().map(|(_, entry)| *entry).collect::<Vec<_>>()
    };
    let ports = |key: &str, value: Value| json!([{ "ports": [{ "port": "80" }], key: value }]);
    let on_ports = |key: &str, value: Value| json!({ "fromEntities": ["host"], "toPorts": ports(key, value) });
    assert_eq!(partial(json!({ "fromEntities": ["host"] })), Vec::<usize>::new());
    assert_eq!(partial(json!({ "fromEntities": ["host"], "authentication": { "mode": "required" } })), [0]);
    assert_eq!(partial(on_ports("listener", json!({}))), [0]);
    let unlike = json!({ "fromEntities": ["host"], "toPorts": [{ "ports": [{ "port": "80" }, { "port": "web" }] }] });
    assert_eq!(partial(unlike), [0]);
    assert_eq!(partial(on_ports("rules", json!({ "http": [{ "paths": "/" }] }))), [0]);
    assert_eq!(partial(on_ports("rules", json!({ "http": [] }))), [0]);
    assert_eq!(partial(json!({ "fromEntities": ["host", "hots"] })), [0]);
    // It narrows all rules of the direction.
    assert_eq!(partial(json!({ "fromEntities": ["host"], "fromRequires": [{}] })), [0, 1, 2]);
    assert_eq!(partial(json!({ "fromRequires": [{}] })), [0, 1]);
}

#[test]
fn what_is_for_other_protocols_is_marked() {
    let tcp = json!([{ "ports": [{ "port": "80", "protocol": "TCP" }, { "port": "81" }, { "port": "82", "protocol": "ANY" }] }]);
    let resource = json!({ "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": { "ingress": [
        { "fromEntities": ["host"], "toPorts": tcp }, { "fromEntities": ["host"] }] } });
    let translation = translate(&[&resource], None);
    let entries: Vec<usize> = translation.policies[0].all_protocols.iter().map(|(_, entry)| *entry).collect();
    assert_eq!(entries, [1, 2, 3]);
}

/// An agent looks at the length of the list, so nothing is restricted to HTTP.
#[test]
fn an_empty_list_of_http_rules_is_none() {
    let ports = json!([{ "ports": [{ "port": "80" }], "rules": { "http": [] } }]);
    let resource = json!({ "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "spec": { "ingress": [{ "toPorts": ports }] } });
    let translation = translate(&[&resource], None);
    assert_eq!(translation.policies[0].policy.ingress[0].rules, [PortRule::default()]);
    let found: Vec<_> = translation.problems.iter().map(|(_, problem)| (problem.kind, &*problem.path)).collect();
    assert_eq!(found, [(ProblemKind::InvalidValue, "spec.ingress[0].toPorts[0].rules.http")]);
}

#[test]
fn what_has_no_counterpart_is_said() {
    use ProblemKind::{InvalidValue, NotTranslated, SelectsNobody, UnknownField};
    let with = |key: &str, value: Value| json!({ "ingress": [{ key: value }] });
    let on_port = |key: &str, value: Value| with("toPorts", json!([{ "ports": [{ "port": "80" }], key: value }]));
    let cases = [
        (with("fromCIDR", json!(["10.0.0.0/8"])), NotTranslated, "spec.ingress[0].fromCIDR"),
        (with("icmps", json!([{}])), NotTranslated, "spec.ingress[0].icmps"),
        (with("fromRequires", json!([{}])), NotTranslated, "spec.ingress[0].fromRequires"),
        (with("fromEndpoint", json!([{}])), UnknownField, "spec.ingress[0].fromEndpoint"),
        (with("fromEndpoints", json!({})), InvalidValue, "spec.ingress[0].fromEndpoints"),
        (
            with("fromEndpoints", json!([{ "matchLabels": { "app": "wbe" } }])),
            SelectsNobody,
            "spec.ingress[0].fromEndpoints[0]",
        ),
        (on_port("rules", json!({ "kafka": [{}] })), NotTranslated, "spec.ingress[0].toPorts[0].rules.kafka"),
        (
            on_port("rules", json!({ "http": [{ "paths": "/" }] })),
            UnknownField,
            "spec.ingress[0].toPorts[0].rules.http[0].paths",
        ),
        (on_port("listener", json!({})), NotTranslated, "spec.ingress[0].toPorts[0].listener"),
        (
            with("toPorts", json!([{ "ports": [{ "port": "http" }] }])),
            NotTranslated,
            "spec.ingress[0].toPorts[0].ports[0].port",
        ),
        (Value::Null, InvalidValue, "spec"),
        (json!({ "nodeSelector": {} }), NotTranslated, "spec.nodeSelector"),
        (json!({ "enableDefaultDeny": { "ingress": false } }), NotTranslated, "spec.enableDefaultDeny.ingress"),
        (json!({ "endpointSelector": { "matchLabels": { "app": "x" } } }), SelectsNobody, "spec.endpointSelector"),
    ];
    for (spec, kind, path) in cases {
        assert_eq!(ingress(spec.clone()).1, [(kind, path.to_owned())], "{spec}");
    }
}

#[test]
fn misspelt_values_are_named_with_what_there_is() {
    let entities = |names: Value| json!({ "ingress": [{ "fromEntities": names }] });
    let port = |port: Value| json!({ "ingress": [{ "toPorts": [{ "ports": [port] }] }] });
    let at_port = "spec.ingress[0].toPorts[0].ports[0]";
    for (spec, path, instead) in [
        (entities(json!(["wrld"])), "spec.ingress[0].fromEntities[0]".to_owned(), "did you mean world? one of: all,"),
        (entities(json!(["all", "x"])), "spec.ingress[0].fromEntities[1]".to_owned(), "one of: all, world,"),
        (port(json!({ "port": "80", "protocol": "TPC" })), format!("{at_port}.protocol"), "one of: TCP, UDP,"),
        (port(json!({ "port": "80", "protocol": "tcp" })), format!("{at_port}.protocol"), "did you mean TCP? one of"),
        (port(json!({ "port": "80-90" })), format!("{at_port}.port"), "port: \"80\", endPort: 90"),
        (port(json!({ "port": 80 })), format!("{at_port}.port"), "\"80\""),
        (port(json!({ "port": "no_name" })), format!("{at_port}.port"), "a number from 0 to 65535"),
        (port(json!({})), format!("{at_port}.port"), "a number from 0 to 65535"),
        (port(json!({ "port": "80", "endPort": "90" })), format!("{at_port}.endPort"), "the number without quotes"),
    ] {
        let resource = json!({ "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": spec });
        let [(_, problem)] = &translate(&[&resource], None).problems[..] else { panic!("{spec}") };
        assert_eq!((problem.kind, &problem.path), (ProblemKind::InvalidValue, &path), "{spec}");
        assert!(problem.instead.starts_with(instead), "{spec}: {}", problem.instead);
    }
    for good in ["cluster", "none", "world-ipv6", "kube-apiserver"] {
        assert_eq!(ingress(entities(json!([good]))).1, [], "{good}");
    }
}

#[test]
fn kinds_and_versions_are_told_from_other_resources() {
    let path = |version: &str, name: &str| match kind(&json!({ "apiVersion": version, "kind": name })) {
        Kind::Policy => "policy".to_owned(),
        Kind::Misspelt(problem) => format!("{}: {}", problem.path, problem.instead),
        Kind::Other => "other".to_owned(),
    };
    let both = "one of: CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy";
    for (version, name, expected) in [
        ("cilium.io/v2", "CiliumNetworkPolicy", "policy".to_owned()),
        ("cilium.io/v1", "CiliumNetworkPolicy", "apiVersion: cilium.io/v2".to_owned()),
        ("cilum.io/v2", "CiliumClusterwideNetworkPolicy", "apiVersion: cilium.io/v2".to_owned()),
        ("cilium.io/v2", "CiliumNetworkPolcy", format!("kind: did you mean CiliumNetworkPolicy? {both}")),
        ("cilium.io/v2", "CiliumEnvoyConfig", "other".to_owned()),
        ("networking.k8s.io/v1", "NetworkPolicy", "other".to_owned()),
    ] {
        assert_eq!(path(version, name), expected, "{version} {name}");
    }
}

#[test]
fn selectors_of_a_namespaced_policy_stay_in_its_namespace() {
    let who = known(WHO);
    let selects = |selector: &str| {
        let text = SHOP.replace("matchLabels: { app: web }", selector);
        let translation = translate(&[&yaml(&text)], Some(&who));
        translation.given[0].policy.ingress[0].rules[0].remotes.clone()
    };
    assert_eq!(selects("matchLabels: { app: web }"), [12001, 12044]);
    assert_eq!(selects("matchLabels: { app: web, \"k8s:io.kubernetes.pod.namespace\": other }"), [12099]);
    assert_eq!(
        selects("matchExpressions: [{ key: io.kubernetes.pod.namespace, operator: Exists }]"),
        [12001, 12044, 12099]
    );
}
