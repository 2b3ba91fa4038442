//! `cilium_network_policy_test.cc`, `SNIPatternMatching` and `TlsPolicyUpdate`: rules for TLS connections. The cases count
//! with a server name that is known; what holds as long as nobody looks is in `peers.rs`.

use serde_json::json;
use tollgate_policy::{Direction, Flow, ServerName};

use super::{Both, Question, flow, ingress, policy, run};

/// Patterns that the filter refuses with the whole update.
const REFUSED: &[&str] = &[
    "***",
    "example.***.com",
    "example.c**",
    "example.com.",
    "example..com",
    "^example.com$",
    ".+example.com",
    "[a-zA-Z]*.example.com",
    "example.[a-zA-Z0-9]+",
    "(foo|bar|baz).example.com",
    "",
];

/// Pattern, names that it matches, names that it does not.
const PATTERNS: &[(&str, &[&str], &[&str])] = &[
    ("example.com", &["example.com", "EXaMpLE.COM"], &["www.example.com", "notexample.com", ""]),
    (
        "foo.bar.example.com",
        &["foo.bar.example.com", "foo.BaR.example.COM"],
        &["bar.example.com", "foo.bar.example.org", ""],
    ),
    ("*", ANY, NEVER),
    ("**", ANY, NEVER),
    (
        "*.example.com",
        &["foo.example.com", "bar-007.example.com", "FOO.EXaMpLE.COM"],
        &["example.com", "foo.bar.example.com", "fooexample.com", ""],
    ),
    (
        "sub.*.com",
        &["sub.foo.com", "sub.bar.com", "sub.foobar.COM"],
        &["test.sub.example.com", "sub.com", "fooexample.com", ""],
    ),
    (
        "sub.example-*.com",
        &["sub.example-foo.com", "sub.exAmPle-007.com", "sub.example-foo-bar.com"],
        &["sub.example.com", "sub.example-foo.bar.com"],
    ),
    (
        "sub.*.*.example.com",
        &["sub.foo.bar.example.com", "sub.foo.007.example.com"],
        &["sub.foo.example.com", "sub.example.com", ""],
    ),
    (
        "sub.**.example.com",
        &["sub.foo.example.com", "sub.foo.bar-007.ExAmPle.com"],
        &[
            "sub.foo.example.com.extra",
            "sub.example.com",
            "sub..example.com",
            "007.sub.ExAmPlE.com",
            "foo.sub.example.com",
            "",
        ],
    ),
    (
        "**.sub.example.com",
        &["foo.sub.example.com", "bar-007.sub.example.com", "foo.bar.sub.example.com", "007.sub.ExAmPlE.com"],
        &["sub.example.com", "foo.example.com", ""],
    ),
    (
        "**.sub.*.ex*e.com",
        &["foo.sub.bar.example.com", "test.foo.sub.bar.example.com", "test.foo.sub.bar.exe.com"],
        &["test.sub.foobar.com", "test.sub.example.com", "sub.test.example.com", ""],
    ),
    (
        "sub.*exa*.com",
        &["sub.example.com", "sub.examples.com", "sub.exa.com"],
        &["sub.foobar.com", "test.sub.example.com", "sub.test.example.com", ""],
    ),
];

const ANY: &[&str] = &[
    "localhost",
    "example.com",
    "foo.007.example.com",
    "foo.bar.example.com",
    "foo.BaR.example.COM",
    "foo-bar.example.com",
];
const NEVER: &[&str] = &["example.com.", "ex@mple.com", ""];

fn world(pattern: &str) -> Both {
    let rules = json!([{"server_names": [pattern]}]);
    let mut both = Both::new();
    both.update(&[policy(&json!([{"port": 443, "rules": rules}]), &json!([]))]);
    both
}

fn admits(both: &Both, name: &'static str) -> bool {
    let flow = Flow { server_name: ServerName::Name(name), ..flow(Direction::Ingress, 43, 443) };
    both.admits(&Question { flow, method: "GET", path: "/" })
}

#[test]
fn patterns() {
    let case = "CiliumNetworkPolicyTest.SNIPatternMatching";
    for (pattern, matching, others) in PATTERNS {
        let both = world(pattern);
        assert_eq!(both.quarantined(), Vec::<String>::new(), "{case}: {pattern}");
        for (names, expected) in [(matching, true), (others, false)] {
            for name in *names {
                assert_eq!(admits(&both, name), expected, "{case}: {pattern} on {name:?}");
            }
        }
    }
    for pattern in REFUSED {
        let both = world(pattern);
        let [quarantined] = &both.quarantined()[..] else { panic!("{case}: {pattern}: {:?}", both.quarantined()) };
        let place = format!("42 ingress_per_port_policies[0].rules[0].server_names[0]: {pattern:?}");
        assert!(quarantined.starts_with(&place), "{case}: {quarantined}");
        for name in ANY.iter().chain(NEVER).chain([pattern]) {
            assert!(!admits(&both, name), "{case}: {pattern} on {name:?}");
        }
    }
}

/// A rule with a TLS context would end or begin TLS, which this proxy does not: it admits nothing, rather than bytes that
/// its author wanted inspected. Where the filter admits without TLS, so do we.
#[test]
fn tls_policy_update() {
    let with_deny = |deny: u32, allow: u32| {
        json!([
            {"port": 0, "rules": [{"remote_policies": [43], "deny": true, "precedence": deny}]},
            {"port": 80, "rules": [{"remote_policies": [43], "precedence": allow}]},
        ])
    };
    let others: &[&str] = &["in 40 80 sni=example.com", "in 43 8080 sni=example.com", "out 43 80"];
    let all: &[&str] = &[
        "in 43 80 sni=example.com",
        "in 43 80",
        "in 40 80 sni=example.com",
        "in 43 8080 sni=example.com",
        "out 43 80",
    ];
    let names = ["cilium.io", "example.com"];
    let terminated = json!({"tls_sds_secret": "secret1"});
    let originated = json!({"validation_context_sds_secret": "cacerts"});
    run(vec![(
        "CiliumNetworkPolicyTest.TlsPolicyUpdate",
        vec![
            ingress(json!([{"port": 80, "rules": [{"remote_policies": [43]}]}]))
                .admits(&["in 43 80 sni=example.com", "in 43 80"])
                .denies(others),
            // The wildcard's deny: below, next to and above the port's own rule.
            ingress(with_deny(0, 1)).admits(&["in 43 80 sni=example.com", "in 43 80"]).denies(others),
            ingress(with_deny(0, 0)).denies(all),
            ingress(with_deny(1, 0)).denies(all),
            ingress(json!([{"port": 80, "rules": [{"remote_policies": [43], "server_names": names}]}]))
                .admits(&["in 43 80 sni=example.com", "in 43 80 sni=cilium.io"])
                .denies(&["in 43 80 sni=www.example.com", "in 43 80"])
                .denies(others),
            ingress(json!([]))
                .egress(json!([{"port": 80, "rules": [{
                    "remote_policies": [43], "server_names": names,
                    "downstream_tls_context": terminated, "upstream_tls_context": originated,
                }]}]))
                .quarantines(&[
                    "42 egress_per_port_policies[0].rules[0].downstream_tls_context: TLS interception is not supported \
                     yet",
                    "42 egress_per_port_policies[0].rules[0].upstream_tls_context: TLS origination is not supported yet",
                ])
                .denies(&["out 43 80 sni=example.com", "out 43 80 sni=www.example.com", "out 43 80", "in 43 80"]),
            ingress(json!([{"port": 80, "rules": [{
                "remote_policies": [43], "server_names": names, "downstream_tls_context": terminated,
            }]}]))
            .quarantines(&[
                "42 ingress_per_port_policies[0].rules[0].downstream_tls_context: TLS interception is not supported yet",
            ])
            .denies(&["in 43 80 sni=example.com", "in 43 80 sni=cilium.io", "in 43 80", "out 43 80"]),
            ingress(json!([]))
                .egress(json!([{"port": 80, "rules": [{
                    "remote_policies": [43], "upstream_tls_context": originated,
                }]}]))
                .quarantines(&[
                    "42 egress_per_port_policies[0].rules[0].upstream_tls_context: TLS origination is not supported yet",
                ])
                .denies(&["out 43 80 sni=example.com", "out 43 80", "in 43 80"]),
        ],
    )]);
}
