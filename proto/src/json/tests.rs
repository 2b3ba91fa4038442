use serde_json::json;

use super::*;
use crate::cilium::port_network_policy_rule::L7;
use crate::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use crate::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

/// As Cilium's documentation of the feature prints it: the spelling of older agents.
const OLDER: &str = r#"{"@type":"type.googleapis.com/cilium.NetworkPolicy","conntrackMapName":"global",
  "egressPerPortPolicies":[{}],"endpointId":"69","ingressPerPortPolicies":[{"port":5000,"rules":[{"httpRules":
  {"httpRules":[{"headers":[{"name":":method","safeRegexMatch":{"googleRe2":{},"regex":"GET"}},
  {"name":":path","safeRegexMatch":{"googleRe2":{},"regex":"/hello"}}]}]}}]}],"name":"10.244.2.232"}"#;

fn message_of(error: JsonErrors) -> String {
    error.to_string()
}

fn refused(text: &str) -> String {
    message_of(network_policy_from_json(text).expect_err("refused"))
}

#[test]
fn older_spelling_loads() {
    let policy = network_policy_from_json(OLDER).expect("loads");
    assert_eq!(policy.endpoint_ips, ["10.244.2.232"]);
    assert_eq!(policy.endpoint_id, 69);
    assert_eq!(policy.conntrack_map_name, "global");
    assert_eq!(policy.egress_per_port_policies.len(), 1);
    assert_eq!(policy.egress_per_port_policies[0], Default::default());
    let port = &policy.ingress_per_port_policies[0];
    assert_eq!(port.port, 5000);
    let Some(L7::HttpRules(http)) = &port.rules[0].l7 else { panic!("no HTTP rules: {port:?}") };
    let headers = &http.http_rules[0].headers;
    assert_eq!(headers.iter().map(|header| header.name.as_str()).collect::<Vec<_>>(), [":method", ":path"]);
    #[expect(deprecated, reason = "the older spelling is what is tested")]
    let Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) = &headers[1].header_match_specifier else {
        panic!("no regex: {headers:?}")
    };
    assert_eq!(regex.regex, "/hello");
}

#[test]
fn the_oldest_names_load_too() {
    let policy = network_policy_from_json(r#"{"name": "10.0.0.1", "policy": 7}"#).expect("loads");
    assert_eq!((policy.endpoint_ips, policy.endpoint_id), (vec!["10.0.0.1".to_owned()], 7));
    let text = r#"{"ingressPerPortPolicies": [{"rules": [{"l7Rules": {"l7Rules": [{"rule": {"cmd": "READ"}}]}}]}]}"#;
    let policy = network_policy_from_json(text).expect("loads");
    let Some(L7::L7Rules(rules)) = &policy.ingress_per_port_policies[0].rules[0].l7 else { panic!("{policy:?}") };
    assert_eq!(rules.l7_allow_rules[0].rule["cmd"], "READ");
}

#[test]
fn names_of_the_proto_files_and_all_number_forms_load() {
    let text = r#"{"endpoint_ips": ["f00d::1", "10.0.0.1"], "endpoint_id": 18446744073709551615,
      "ingress_per_port_policies": [{"port": "80", "end_port": 90, "protocol": "TCP", "rules": [
        {"precedence": 4294967295, "deny": true, "remote_policies": [1, "2"], "server_names": null},
        {"pass_precedence": 3, "http_rules": {"http_rules": [{}, {"headers": [
          {"name": "a", "string_match": {"exact": "b", "ignore_case": true}}],
          "header_matches": [{"name": "c", "match_action": 1, "mismatch_action": "REPLACE_ON_MISMATCH"}]}]}}]},
        {"protocol": 1}]}"#;
    let policy = network_policy_from_json(text).expect("loads");
    assert_eq!(policy.endpoint_id, u64::MAX);
    let port = &policy.ingress_per_port_policies[0];
    assert_eq!((port.port, port.end_port, port.protocol), (80, 90, 0));
    assert_eq!(port.rules[0].remote_policies, [1, 2]);
    let Some(L7::HttpRules(http)) = &port.rules[1].l7 else { panic!("no HTTP rules: {port:?}") };
    assert_eq!(http.http_rules[0], Default::default());
    let Some(HeaderMatchSpecifier::StringMatch(string)) = &http.http_rules[1].headers[0].header_match_specifier else {
        panic!("no string match: {http:?}")
    };
    assert_eq!((string.match_pattern.clone(), string.ignore_case), (Some(MatchPattern::Exact("b".into())), true));
    let edit = &http.http_rules[1].header_matches[0];
    assert_eq!((edit.match_action, edit.mismatch_action), (1, 4));
    assert_eq!(policy.ingress_per_port_policies[1].protocol, 1);
}

#[test]
fn what_is_printed_reads_back() {
    let policy = network_policy_from_json(OLDER).expect("loads");
    let printed = network_policy_to_json(&policy).expect("prints");
    let expected = json!({
        "endpointIps": ["10.244.2.232"],
        "endpointId": "69",
        "ingressPerPortPolicies": [{"port": 5000, "rules": [{"httpRules": {"httpRules": [{"headers": [
            {"name": ":method", "safeRegexMatch": {"googleRe2": {}, "regex": "GET"}},
            {"name": ":path", "safeRegexMatch": {"googleRe2": {}, "regex": "/hello"}},
        ]}]}}]}],
        "egressPerPortPolicies": [{}],
        "conntrackMapName": "global",
    });
    assert_eq!(printed, expected);
    assert_eq!(network_policy_from_value(printed).expect("reads back"), policy);
}

#[test]
fn metadata_rules_and_durations_of_known_types_load() {
    let text = r#"{"egressPerPortPolicies": [{"rules": [{"l7Proto": "x", "l7Rules": {"l7DenyRules": [{"metadataRule": [
      {"filter": "f", "path": [{"key": "k"}], "invert": true, "value": {"orMatch": {"valueMatchers": [
        {"nullMatch": {}}, {"doubleMatch": {"range": {"start": 0.5, "end": "Infinity"}}},
        {"listMatch": {"oneOf": {"presentMatch": true}}}]}}}]}]}}]}]}"#;
    let policy = network_policy_from_json(text).expect("loads");
    let printed = network_policy_to_json(&policy).expect("prints");
    assert_eq!(network_policy_from_value(printed).expect("reads back"), policy);
    let Some(L7::L7Rules(rules)) = &policy.egress_per_port_policies[0].rules[0].l7 else { panic!("{policy:?}") };
    assert!(rules.l7_deny_rules[0].metadata_rule[0].invert);
}

#[test]
fn a_typo_is_named_with_its_place_and_the_remedy() {
    let text = r#"{"ingressPerPortPolicies": [{}, {"rules": [{"http_rules": {"httpRules": [{"header": []}]}}]}]}"#;
    assert_eq!(
        refused(text),
        "ingressPerPortPolicies[1].rules[0].http_rules.httpRules[0].header: cilium.HttpNetworkPolicyRule has no such \
         field; did you mean `headers`?"
    );
    for (text, remedy) in [
        (r#"{"egressPerPortPolicy": [{}]}"#, "did you mean `egressPerPortPolicies`?"),
        (r#"{"egress_per_port_policy": [{}]}"#, "did you mean `egress_per_port_policies`?"),
        (
            r#"{"ingressPerPortPolicies": [{"rules": [{"http_rules": {"paths": []}}]}]}"#,
            "remove it or use one of: httpRules",
        ),
    ] {
        assert!(refused(text).ends_with(&format!(" has no such field; {remedy}")), "{text}: {}", refused(text));
    }
}

#[test]
fn every_mistake_is_listed() {
    let text = r#"{"endpointId": "x", "endpoint_id": 2, "endpointIps": [1, "10.0.0.1", {}], "egresPerPortPolicies": 7,
      "ingressPerPortPolicies": [5, {"port": -1, "rules": [{"remotePolicies": ["a", 1, "b"], "deny": 7}]}, {"porte": 1}]}"#;
    let error = network_policy_from_json(text).expect_err("refused");
    let paths: Vec<String> = error.to_string().lines().map(|l| l.split(": ").next().unwrap().to_owned()).collect();
    let expected = [
        "endpoint_id",
        "egresPerPortPolicies",
        "ingressPerPortPolicies[2].porte",
        "endpointId",
        "endpointIps[0]",
        "endpointIps[2]",
        "ingressPerPortPolicies[0]",
        "ingressPerPortPolicies[1].port",
        "ingressPerPortPolicies[1].rules[0].remotePolicies[0]",
        "ingressPerPortPolicies[1].rules[0].remotePolicies[2]",
        "ingressPerPortPolicies[1].rules[0].deny",
    ];
    assert_eq!(paths, expected, "{error}");
}

#[test]
fn a_list_of_mistakes_ends() {
    for mistake in ["{\"porte\": 1}", "5"] {
        let entries = vec![mistake; 1000].join(", ");
        let error = network_policy_from_json(&format!(r#"{{"ingressPerPortPolicies": [{entries}]}}"#)).unwrap_err();
        assert_eq!(error.iter().len(), MAX_MISTAKES + 1, "{mistake}");
        assert!(matches!(error.iter().last(), Some(JsonError::More)));
    }
}

#[test]
fn nothing_is_given_twice() {
    let cases = [
        (r#"{"endpointId": 1, "endpoint_id": 2}"#, "endpoint_id: sets the same field as `endpointId`"),
        (r#"{"endpointIps": ["10.0.0.1"], "name": "10.0.0.2"}"#, "name: sets the same field as `endpointIps`"),
        (r#"{"endpointId": 1, "endpointId": 2}"#, "key `endpointId` stands twice in one object at line 1"),
        (
            r#"{"ingressPerPortPolicies": [{"rules": [{"deny": false, "passPrecedence": 0}]}]}"#,
            "ingressPerPortPolicies[0].rules[0].passPrecedence: excludes `deny` next to it; keep one of them",
        ),
    ];
    for (text, expected) in cases {
        let message = refused(text);
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn a_value_that_does_not_fit_is_named() {
    let cases = [
        (r#"{"ingressPerPortPolicies": [{"port": -1}]}"#, "ingressPerPortPolicies[0].port", "from 0 to 4294967295"),
        (r#"{"ingressPerPortPolicies": [{"port": "http"}]}"#, "ingressPerPortPolicies[0].port", "from 0 to 4294967295"),
        (r#"{"ingressPerPortPolicies": [{"port": 1.5}]}"#, "ingressPerPortPolicies[0].port", "from 0 to 4294967295"),
        (r#"{"ingressPerPortPolicies": [{"protocol": "tcp"}]}"#, "ingressPerPortPolicies[0].protocol", "TCP, UDP"),
        (r#"{"ingressPerPortPolicies": {"port": 1}}"#, "ingressPerPortPolicies", "a list, each element an object"),
        (r#"{"ingressPerPortPolicies": [5]}"#, "ingressPerPortPolicies[0]", "an object (PortNetworkPolicy)"),
        (r#"{"ingressPerPortPolicies": [null]}"#, "ingressPerPortPolicies[0]", "an object (PortNetworkPolicy)"),
        (r#"{"name": 7}"#, "endpointIps[0]", "a text in quotes"),
        (r#"{"endpointIps": "10.0.0.1"}"#, "endpointIps", "a list, each element a text in quotes"),
        (r#"{"endpointId": "18446744073709551616"}"#, "endpointId", "18446744073709551615"),
        ("[]", "(top)", "an object with the fields of the message"),
    ];
    for (text, path, remedy) in cases {
        let error = network_policy_from_json(text).expect_err("refused");
        assert!(
            matches!(error.iter().next(), Some(JsonError::Value { path: found, .. }) if found == path),
            "{text}: {error:?}"
        );
        let message = message_of(error);
        assert!(message.contains(remedy), "{text}: {message}");
    }
    assert!(
        refused(r#"{"endpointId": "many"}"#).starts_with("endpointId: \"many\" does not fit; write a whole number")
    );
}

#[test]
fn text_that_is_not_json_and_other_messages_are_refused() {
    assert!(refused("{\n \"endpointId\": }").contains("line 2 column 16"));
    assert!(refused("{} {}").contains("trailing characters"));
    let other = refused(r#"{"@type": "type.googleapis.com/cilium.NetworkPolicyHosts"}"#);
    assert!(other.contains("a type.googleapis.com/cilium.NetworkPolicy is needed"), "{other}");
    assert!(refused(&"[".repeat(10_000)).contains("recursion limit"));
}

#[test]
fn deep_nesting_is_an_error_and_nothing_worse() {
    let mut value = json!({"nullMatch": {}});
    for _ in 0..200 {
        value = json!({"listMatch": {"oneOf": value}});
    }
    let rule = json!({"l7Rules": {"l7AllowRules": [{"metadataRule": [{"filter": "f", "value": value}]}]}});
    let policy = json!({"ingressPerPortPolicies": [{"rules": [rule]}]});
    let error = network_policy_from_value(policy).expect_err("refused");
    assert!(matches!(error.iter().next(), Some(JsonError::TooDeep)), "{error:?}");
}

#[test]
fn hosts_load_and_print() {
    let text = r#"{"@type": "type.googleapis.com/cilium.NetworkPolicyHosts", "policy": "32226",
      "host_addresses": ["10.244.1.17/32", "fd00::/64"]}"#;
    let hosts = network_policy_hosts_from_json(text).expect("loads");
    assert_eq!(hosts.policy, 32226);
    assert_eq!(hosts.host_addresses, ["10.244.1.17/32", "fd00::/64"]);
    let printed = network_policy_hosts_to_json(&hosts).expect("prints");
    assert_eq!(printed, json!({"policy": "32226", "hostAddresses": ["10.244.1.17/32", "fd00::/64"]}));
    let error = network_policy_hosts_from_json(r#"{"name": "1"}"#).expect_err("refused");
    assert!(matches!(error.iter().next(), Some(JsonError::UnknownField { .. })), "{error:?}");
}
