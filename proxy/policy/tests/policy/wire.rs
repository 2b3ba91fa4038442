//! Policies from protobuf.

#![allow(deprecated, reason = "older spellings are part of what is read")]

use tollgate_policy::model::{
    HeaderMatch, HeaderMatcher, MatchAction, MismatchAction, RuleVerdict, TextPart, ValueMatch,
};
use tollgate_policy::{NetworkPolicy, PolicyError, Snapshot};
use tollgate_proto::cilium::{self, port_network_policy_rule::L7, port_network_policy_rule::Verdict};
use tollgate_proto::envoy::config::route::v3 as route;
use tollgate_proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use tollgate_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use tollgate_proto::envoy::r#type::v3::Int64Range;

use crate::support::{World, flow};

fn with(rules: Vec<cilium::PortNetworkPolicyRule>) -> cilium::NetworkPolicy {
    cilium::NetworkPolicy {
        endpoint_ips: vec!["10.0.0.1".to_owned()],
        endpoint_id: 7,
        ingress_per_port_policies: vec![cilium::PortNetworkPolicy { port: 80, rules, ..Default::default() }],
        ..Default::default()
    }
}

fn convert(policy: &cilium::NetworkPolicy) -> NetworkPolicy {
    NetworkPolicy::try_from(policy).unwrap()
}

fn world(rules: Vec<cilium::PortNetworkPolicyRule>) -> World {
    let mut builder = Snapshot::empty().update();
    builder.replace_all([convert(&with(rules))]);
    World(builder.build())
}

#[test]
fn unusable_resources() {
    let no_id = cilium::NetworkPolicy { endpoint_id: 0, ..with(vec![]) };
    let no_ips = cilium::NetworkPolicy { endpoint_ips: vec![], ..with(vec![]) };
    let empty_ip = cilium::NetworkPolicy { endpoint_ips: vec!["a".to_owned(), String::new()], ..with(vec![]) };
    let cases = [
        (no_id, PolicyError::NoEndpointId(vec!["10.0.0.1".to_owned()])),
        (no_ips, PolicyError::NoEndpointIps(7)),
        (empty_ip, PolicyError::EmptyEndpointIp { endpoint_id: 7, index: 1 }),
    ];
    for (policy, expected) in cases {
        assert_eq!(NetworkPolicy::try_from(&policy), Err(expected));
    }
}

#[test]
fn header_matchers() {
    let text = |part, text: &str, ignore_case| ValueMatch::Text { part, text: text.into(), ignore_case };
    let regex = |regex: &str| RegexMatcher { regex: regex.to_owned(), ..Default::default() };
    let string =
        |pattern| Some(HeaderMatchSpecifier::StringMatch(StringMatcher { ignore_case: true, match_pattern: pattern }));
    let cases = [
        (None, ValueMatch::Present(true)),
        (Some(HeaderMatchSpecifier::PresentMatch(false)), ValueMatch::Present(false)),
        (Some(HeaderMatchSpecifier::ExactMatch(String::new())), ValueMatch::Any),
        (Some(HeaderMatchSpecifier::ExactMatch("a".into())), text(TextPart::Whole, "a", false)),
        (Some(HeaderMatchSpecifier::PrefixMatch("a".into())), text(TextPart::Prefix, "a", false)),
        (Some(HeaderMatchSpecifier::SuffixMatch("a".into())), text(TextPart::Suffix, "a", false)),
        (Some(HeaderMatchSpecifier::ContainsMatch("a".into())), text(TextPart::Anywhere, "a", false)),
        (Some(HeaderMatchSpecifier::SafeRegexMatch(regex("a+"))), ValueMatch::Regex("a+".into())),
        (
            Some(HeaderMatchSpecifier::RangeMatch(Int64Range { start: 1, end: 2 })),
            ValueMatch::Range { start: 1, end: 2 },
        ),
        (string(Some(MatchPattern::Exact(String::new()))), text(TextPart::Whole, "", true)),
        (string(Some(MatchPattern::Prefix("a".into()))), text(TextPart::Prefix, "a", true)),
        (string(Some(MatchPattern::Suffix("a".into()))), text(TextPart::Suffix, "a", true)),
        (string(Some(MatchPattern::Contains("a".into()))), text(TextPart::Anywhere, "a", true)),
        (string(Some(MatchPattern::SafeRegex(regex("a+")))), ValueMatch::Regex("a+".into())),
        (string(None), ValueMatch::Unsupported("string_match says nothing to match".into())),
    ];
    for (specifier, value) in cases {
        let matcher = route::HeaderMatcher {
            name: "X-A".to_owned(),
            header_match_specifier: specifier,
            invert_match: true,
            treat_missing_header_as_empty: true,
        };
        let http_rule = cilium::HttpNetworkPolicyRule { headers: vec![matcher], ..Default::default() };
        let rule = cilium::PortNetworkPolicyRule {
            l7: Some(L7::HttpRules(cilium::HttpNetworkPolicyRules { http_rules: vec![http_rule] })),
            ..Default::default()
        };
        let converted = convert(&with(vec![rule]));
        let matchers = &converted.ingress[0].rules[0].http.as_ref().unwrap()[0].headers;
        let expected = HeaderMatcher { invert: true, treat_missing_as_empty: true, ..HeaderMatcher::new("x-a", value) };
        assert_eq!(*matchers, [expected]);
    }
}

#[test]
fn header_matches() {
    let wire = |match_action, mismatch_action, secret: &str| cilium::HeaderMatch {
        name: "X-A".to_owned(),
        value: "V".to_owned(),
        match_action,
        mismatch_action,
        value_sds_secret: secret.to_owned(),
    };
    let cases = [
        (wire(0, 0, ""), MatchAction::Continue, MismatchAction::Fail, None),
        (wire(1, 1, "s"), MatchAction::Fail, MismatchAction::Continue, Some("s".into())),
        (wire(2, 2, ""), MatchAction::Delete, MismatchAction::Add, None),
        (wire(3, 3, ""), MatchAction::Unknown(3), MismatchAction::Delete, None),
        (wire(-1, 4, ""), MatchAction::Unknown(-1), MismatchAction::Replace, None),
        (wire(0, 5, ""), MatchAction::Continue, MismatchAction::Unknown(5), None),
    ];
    for (matched, on_match, on_mismatch, secret) in cases {
        let http_rule = cilium::HttpNetworkPolicyRule { header_matches: vec![matched], ..Default::default() };
        let rule = cilium::PortNetworkPolicyRule {
            l7: Some(L7::HttpRules(cilium::HttpNetworkPolicyRules { http_rules: vec![http_rule] })),
            ..Default::default()
        };
        let converted = convert(&with(vec![rule]));
        let matches = &converted.ingress[0].rules[0].http.as_ref().unwrap()[0].header_matches;
        assert_eq!(*matches, [HeaderMatch { on_match, on_mismatch, secret, ..HeaderMatch::new("x-a", "V") }]);
    }
}

#[test]
fn verdicts() {
    let cases = [
        (None, RuleVerdict::Allow),
        (Some(Verdict::Deny(false)), RuleVerdict::Allow),
        (Some(Verdict::PassPrecedence(0)), RuleVerdict::Allow),
        (Some(Verdict::Deny(true)), RuleVerdict::Deny),
        (Some(Verdict::PassPrecedence(3)), RuleVerdict::Pass(3)),
    ];
    for (verdict, expected) in cases {
        let rule = cilium::PortNetworkPolicyRule { verdict, ..Default::default() };
        assert_eq!(convert(&with(vec![rule])).ingress[0].rules[0].verdict, expected);
    }
}

#[test]
fn what_cannot_be_honoured_is_named() {
    let rule = cilium::PortNetworkPolicyRule::default;
    let header_match = cilium::HttpNetworkPolicyRule {
        header_matches: vec![cilium::HeaderMatch { name: "x".to_owned(), match_action: 9, ..Default::default() }],
        ..Default::default()
    };
    let cases = [
        (cilium::PortNetworkPolicyRule { l7_proto: "r2d2".to_owned(), ..rule() }, "l7_proto"),
        (cilium::PortNetworkPolicyRule { l7: Some(L7::KafkaRules(Default::default())), ..rule() }, "kafka_rules"),
        (cilium::PortNetworkPolicyRule { l7: Some(L7::L7Rules(Default::default())), ..rule() }, "l7_rules"),
        (
            cilium::PortNetworkPolicyRule { downstream_tls_context: Some(Default::default()), ..rule() },
            "downstream_tls_context",
        ),
        (
            cilium::PortNetworkPolicyRule { upstream_tls_context: Some(Default::default()), ..rule() },
            "upstream_tls_context",
        ),
        (cilium::PortNetworkPolicyRule { proxy_id: 65536, ..rule() }, "proxy_id"),
        (cilium::PortNetworkPolicyRule { l7: Some(L7::HttpRules(Default::default())), ..rule() }, "http_rules"),
        (
            cilium::PortNetworkPolicyRule {
                l7: Some(L7::HttpRules(cilium::HttpNetworkPolicyRules { http_rules: vec![header_match] })),
                ..rule()
            },
            "http_rules[0].header_matches[0].match_action",
        ),
    ];
    for (rule, element) in cases {
        let world = world(vec![rule]);
        assert!(!world.allows(1, 80, "/"), "{element}");
        let [quarantined] = &world.quarantined()[..] else {
            panic!("{element}: {:?}", world.quarantined());
        };
        let place = format!("7 ingress_per_port_policies[0].rules[0].{element}: ");
        assert!(quarantined.starts_with(&place), "{quarantined}");
    }
}

/// The policy of the demo in its older JSON spelling.
#[test]
fn demo_policy_json() {
    let text = r#"{"@type":"type.googleapis.com/cilium.NetworkPolicy","conntrackMapName":"global",
        "egressPerPortPolicies":[{}],"endpointId":"69","ingressPerPortPolicies":[{"port":5000,"rules":[{"httpRules":
        {"httpRules":[{"headers":[{"name":":method","safeRegexMatch":{"googleRe2":{},"regex":"GET"}},
        {"name":":path","safeRegexMatch":{"googleRe2":{},"regex":"/hello"}}]}]}}]}],"name":"10.0.0.1"}"#;
    let policy = tollgate_proto::json::network_policy_from_json(text).unwrap();
    let mut builder = Snapshot::empty().update();
    builder.replace_all([convert(&policy)]);
    let world = World(builder.build());
    assert_eq!(world.quarantined(), Vec::<String>::new());
    assert_eq!(world.both(&flow(1, 5000), "/hello"), "http");
    assert_eq!(world.both(&flow(1, 5000), "/hello3"), "http NoHttpRule");
}
