//! `cilium_network_policy_test.cc` without precedence and TLS: what one update after another comes to.

use serde_json::{Value, json};
use tollgate_policy::{Direction, Request, Verdict};

use super::{Both, Case, flow, ingress, paths, policy, questions, run};
use crate::support::{Fields, get};

/// The same entries the other way round: their order never matters.
fn reversed(entries: &Value) -> Value {
    entries.as_array().unwrap().iter().rev().cloned().collect()
}

fn from(remotes: &[u32]) -> Value {
    json!([{"remote_policies": remotes}])
}

fn requests(remotes: &[u32], http: Value) -> Value {
    json!([{"remote_policies": remotes, "http_rules": http}])
}

fn regex(pattern: &str) -> Value {
    json!({"http_rules": [
        {"headers": [{"name": ":path", "safe_regex_match": {"google_re2": {}, "regex": pattern}}]},
    ]})
}

/// A response without a resource, be it the first one or a later one, leaves nobody with a policy.
#[test]
fn nothing() {
    let open = policy(&json!([{}]), &json!([{}]));
    type Response<'a> = (&'a [Value], bool);
    let cases: [(&str, &[Response<'_>]); 2] = [
        ("CiliumNetworkPolicyTest.EmptyPolicyUpdate", &[(&[], false)]),
        ("CiliumNetworkPolicyTest.SimplePolicyUpdate", &[(&[], false), (&[open], true), (&[], false)]),
    ];
    for (name, responses) in cases {
        let mut both = Both::new();
        for (resources, admitted) in responses {
            both.update(resources);
            for question in ["in 43 80", "out 43 80"].into_iter().flat_map(questions) {
                assert_eq!(both.admits(&question), *admitted, "{name}");
            }
        }
    }
}

#[test]
fn ports() {
    run(vec![
        ("CiliumNetworkPolicyTest.OverlappingPortRange", overlapping_port_range()),
        ("CiliumNetworkPolicyTest.OverlappingPortRanges", overlapping_port_ranges()),
        (
            "CiliumNetworkPolicyTest.DuplicatePorts",
            vec![
                ingress(json!([{"port": 80, "rules": from(&[43])}, {"port": 80, "rules": from(&[43])}]))
                    .admits(&["in 43 80"])
                    .denies(&["in 43 8080", "in 44 80,8080", "out 43 8080"]),
            ],
        ),
        (
            "CiliumNetworkPolicyTest.DuplicatePortRange",
            vec![
                ingress(json!([
                    {"port": 80, "end_port": 8080, "rules": from(&[43])},
                    {"port": 80, "rules": from(&[43])},
                ]))
                .admits(&["in 43 80,81,8079,8080"])
                .denies(&["in 43 79,8081", "out 43 8080"]),
            ],
        ),
        (
            "CiliumNetworkPolicyTest.ZeroPortRange",
            vec![
                ingress(json!([
                    {"port": 80, "end_port": 0, "rules": from(&[43])},
                    {"port": 4040, "end_port": 9999, "rules": from(&[43])},
                ]))
                .admits(&["in 43 80", "in 43 8080 /allowed", "in 43 80 /notallowed"])
                .denies(&["in 40 80", "out 43 80"]),
            ],
        ),
        ("CiliumNetworkPolicyTest.PortRanges", port_ranges()),
        (
            "CiliumNetworkPolicyTest.EmptyRulesAllow",
            vec![
                ingress(json!([{}]))
                    .admits(&["in 43 79,80,81,4039,4040,4041,8079,8080,8081,9998,9999,10000"])
                    .denies(&["out 43,44 8080"]),
            ],
        ),
        ("CiliumNetworkPolicyTest.OrderedRules", ordered_rules()),
    ]);
}

fn overlapping_port_range() -> Vec<super::Update> {
    let entries = json!([
        {"port": 23, "rules": [{"remote_policies": [42]}, {"remote_policies": [45]}]},
        {"port": 80, "rules": from(&[44])},
        {"port": 92, "rules": [{"deny": true}]},
        {"port": 40, "end_port": 99, "rules": from(&[43])},
    ]);
    let update = |entries| {
        ingress(entries).admits(&["in 42,45 23", "in 43 40,79,80,81,91,93,99", "in 44 80"]).denies(&[
            "in 43,44 23",
            "in 42,43,44 92",
            "in 43,44 39,100",
            "in 44 40,79,81,99",
            "out 43,44 8080",
        ])
    };
    vec![update(entries.clone()), update(reversed(&entries))]
}

fn overlapping_port_ranges() -> Vec<super::Update> {
    let entries = json!([
        {"port": 80, "end_port": 8080, "rules": from(&[43])},
        {"port": 4040, "end_port": 9999, "rules": from(&[44])},
    ]);
    let update = |entries| {
        ingress(entries).admits(&["in 43 80,81,4039,4040,4041,8079,8080", "in 44 4040,8080,8081,9999"]).denies(&[
            "in 43 79,8081,9998,9999,10000",
            "in 44 79,4039,10000",
            "out 43,44 8080",
        ])
    };
    let to_the_last = json!([
        {"port": 32768, "end_port": 65534, "rules": from(&[43])},
        {"port": 32768, "end_port": 65535, "rules": from(&[44])},
        {"port": 1024, "end_port": 65535, "rules": from(&[45])},
    ]);
    let last = ingress(to_the_last)
        .admits(&["in 43,44,45 40000,65534", "in 44,45 65535", "in 45 1024,8080"])
        .denies(&["in 43 8080,65535", "in 44 8080", "in 45 1023", "out 43 40000", "out 44 65535", "out 45 8080"]);
    vec![update(entries.clone()), update(reversed(&entries)), last]
}

fn port_ranges() -> Vec<super::Update> {
    let first = json!([{"port": 80, "end_port": 8080, "rules": from(&[43])}]);
    let two = json!([first[0], {"port": 9000, "end_port": 9999, "rules": from(&[44])}]);
    let egress = |rules: Value| json!([{"port": 80, "end_port": 90, "rules": rules}]);
    vec![
        ingress(first).admits(&["in 43 80,4040,8080", "in 43 80 /notallowed"]).denies(&["in 43 79,8081", "out 43 80"]),
        ingress(two.clone())
            .egress(egress(from(&[43, 44])))
            .admits(&[
                "in 43 80,4040,8080",
                "in 43 80 /notallowed",
                "in 44 9000,9500,9999",
                "out 43,44 80",
                "out 43 80 /publicz",
                "out 43 85,90",
            ])
            .denies(&["in 43 79,8081,9000,9500,9999", "in 44 80,8999,10000", "out 40 80", "out 43 79,91"]),
        ingress(two)
            .egress(egress(requests(&[43, 44], paths(&["/allowed", "/allows", "/public"]))))
            .admits(&["out 43 80 /allowed", "out 44 80 /allows", "out 43 85 /allows", "out 43 90 /public"])
            .denies(&["out 43 80 /publicz", "out 40 80 /public", "out 43 79 /allows", "out 43 91 /public"]),
    ]
}

fn ordered_rules() -> Vec<super::Update> {
    let entries = json!([
        {"port": 80, "end_port": 8080, "rules": [{"remote_policies": [43], "precedence": 0, "deny": true}]},
        {"port": 4040, "end_port": 9999, "rules": [{"remote_policies": [43], "precedence": 1}]},
    ]);
    let update = |entries| {
        ingress(entries)
            .admits(&["in 43 4040,4041,8079,8080,8081,9998,9999"])
            .denies(&["in 43 79,80,81,4039,10000", "out 43,44 8080"])
    };
    vec![update(entries.clone()), update(reversed(&entries))]
}

/// The filter refuses such an update as a whole. Here the entry grants nothing, and what stands next to it is enforced.
#[test]
fn invalid_ranges() {
    let entries = |first: u16, end: u16| {
        json!([
            {"port": first, "end_port": end, "rules": from(&[43])},
            {"port": 4040, "end_port": 9999, "rules": from(&[43])},
        ])
    };
    run(vec![
        (
            "CiliumNetworkPolicyTest.InvalidPortRange",
            vec![
                ingress(entries(80, 60))
                    .quarantines(&["42 ingress_per_port_policies[0].port: 80-60: the range ends before it begins"])
                    .admits(&["in 43 4040,9999"])
                    .denies(&["in 43 60,70,80", "out 43 8080"]),
            ],
        ),
        (
            "CiliumNetworkPolicyTest.InvalidWildcardPortRange",
            vec![
                ingress(entries(0, 80))
                    .quarantines(&["42 ingress_per_port_policies[0].port: 0-80: a range cannot begin at the wildcard \
                                    port 0; begin it at 1"])
                    .admits(&["in 43 4040,9999"])
                    .denies(&["in 43 1,80", "out 43 8080"]),
            ],
        ),
    ]);
}

#[test]
fn http() {
    run(vec![
        ("CiliumNetworkPolicyTest.HttpPolicyUpdate", http_policy_update()),
        ("CiliumNetworkPolicyTest.HttpOverlappingPortRanges", http_overlapping_port_ranges()),
        tcp_policy_update(),
    ]);
}

fn http_policy_update() -> Vec<super::Update> {
    let allowed = || json!({"port": 80, "rules": requests(&[43], paths(&["/allowed"]))});
    let wide = |rule: Value| json!([allowed(), {"port": 80, "end_port": 10000, "rules": [rule]}]);
    let egress = || json!([{"port": 80, "rules": requests(&[43, 44], regex(".*public$"))}]);
    vec![
        ingress(json!([allowed()])).admits(&["in 43 80 /allowed"]).denies(&[
            "in 40 80 /allowed",
            "in 43 8080 /allowed",
            "in 43 80 /notallowed",
            "out 43 80 /public",
        ]),
        ingress(json!([allowed()])).egress(egress()).admits(&["in 43 80 /allowed", "out 43,44 80 /public"]).denies(&[
            "in 40 80 /allowed",
            "in 43 8080 /allowed",
            "in 43 80 /notallowed",
            "out 40 80 /public",
            "out 43 8080 /public",
            "out 43 80 /publicz",
        ]),
        // A deny of the same precedence.
        ingress(wide(json!({"deny": true}))).egress(egress()).admits(&["out 43,44 80 /public"]).denies(&[
            "in 40,43 80 /allowed",
            "in 43 8080 /allowed",
            "in 43 80 /notallowed",
            "out 40 80 /public",
            "out 43 8080 /public",
            "out 43 80 /publicz",
        ]),
        // The listener's own proxy id.
        ingress(wide(json!({"proxy_id": 42})))
            .egress(egress())
            .admits(&["in 40,43 80 /allowed", "in 43 8080 /allowed", "in 43 80 /notallowed"])
            .denies(&["in 43 79 /allowed", "in 43 10001 /notallowed"]),
        // And another's.
        ingress(wide(json!({"proxy_id": 99}))).egress(egress()).admits(&["in 43 80 /allowed"]).denies(&[
            "in 40 80 /allowed",
            "in 43 8080 /allowed",
            "in 43 80 /notallowed",
            "in 43 79 /allowed",
            "in 43 10001 /notallowed",
        ]),
    ]
}

fn http_overlapping_port_ranges() -> Vec<super::Update> {
    let get = || requests(&[43], json!({"http_rules": [{"headers": [{"name": ":method", "exact_match": "GET"}]}]}));
    let allowed = || requests(&[43], paths(&["/allowed"]));
    vec![
        ingress(json!([{"port": 80, "rules": allowed()}, {"port": 80, "rules": get()}]))
            .admits(&["in 43 80 PUSH /allowed", "in 43 80 /also_allowed"])
            .denies(&["in 40 80 /allowed", "in 43 8080 /allowed", "in 43 80 PUSH /notallowed", "out 43 80 /public"]),
        ingress(json!([{"port": 70, "end_port": 90, "rules": allowed()}, {"port": 80, "rules": get()}]))
            .admits(&["in 43 70,80,90 PUSH /allowed", "in 43 80 /also_allowed"])
            .denies(&["in 43 70,90 /also_allowed", "in 40 80 /allowed", "in 43 8080 /allowed", "out 43 80 /public"]),
        ingress(json!([
            {"port": 70, "end_port": 90, "rules": allowed()},
            {"port": 80, "end_port": 8080, "rules": get()},
        ]))
        .admits(&["in 43 70,80,90 PUSH /allowed", "in 43 80,90,8080 /also_allowed"])
        .denies(&[
            "in 43 70 /also_allowed",
            "in 40 80 /allowed",
            "in 43 8080 PUSH /allowed",
            "in 43 80 PUSH /notallowed",
            "out 43 80 /public",
        ]),
    ]
}

fn tcp_policy_update() -> Case {
    let entries = || json!([{"port": 80, "rules": from(&[43])}]);
    let updates = vec![
        ingress(entries()).admits(&["in 43 80 /allowed", "in 43 80 /notallowed"]).denies(&[
            "in 40 80 /allowed",
            "in 43 8080 /allowed",
            "out 43 80 /public",
        ]),
        ingress(entries())
            .egress(json!([{"port": 80, "rules": from(&[43, 44])}]))
            .admits(&["in 43 80 /allowed", "in 43 80 /notallowed", "out 43,44 80 /public", "out 43 80 /publicz"])
            .denies(&["in 40 80 /allowed", "in 43 8080 /allowed", "out 40 80 /public", "out 43 8080 /public"]),
    ];
    ("CiliumNetworkPolicyTest.TcpPolicyUpdate", updates)
}

/// The secret never comes: that is no reason to refuse the update, and the rule admits nothing.
#[test]
fn missing_secret() {
    let rule = |header_matches: Value| {
        let rule = json!({"headers": [{"name": ":path", "exact_match": "/allowed"}], "header_matches": header_matches});
        json!([{"port": 80, "rules": requests(&[43], json!({"http_rules": [rule]}))}])
    };
    let replace = json!([{
        "name": "bearer-token", "value_sds_secret": "nonexisting-sds-secret",
        "mismatch_action": "REPLACE_ON_MISMATCH",
    }]);
    let denied = &["in 40 80 /allowed", "in 43 8080 /allowed", "in 43 80 /notallowed", "out 43 80 /public"];
    run(vec![(
        "CiliumNetworkPolicyTest.HttpPolicyUpdateToMissingSDS",
        vec![
            ingress(rule(json!([]))).admits(&["in 43 80 /allowed"]).denies(denied),
            ingress(rule(replace.clone())).denies(&["in 43 80 /allowed"]),
            ingress(rule(replace)).denies(denied),
        ],
    )]);
}

/// `SecretWatchersAreDeduplicatedWithinStream`: rules that name one secret share it, and each keeps its inline value for as
/// long as none is delivered.
#[test]
fn one_secret_in_several_rules() {
    let rule = |path: &str, inline: &str| {
        json!({
            "headers": [{"name": ":path", "exact_match": path}],
            "header_matches": [{"name": "x-token", "value": inline, "value_sds_secret": "shared"}],
        })
    };
    let http = json!({"http_rules": [rule("/a", "1"), rule("/b", "2")]});
    let mut both = Both::new();
    both.update(&[policy(&json!([{"port": 80, "rules": [{"http_rules": http}]}]), &json!([]))]);
    let admitted = |both: &Both| -> Vec<(&str, &str)> {
        let pairs = ["/a", "/b"].into_iter().flat_map(|path| ["1", "2", "3"].map(|value| (path, value)));
        let admits = |(path, value): &(&'static str, &'static str)| {
            let fields = [("x-token", value.as_bytes())];
            let headers = Fields(&fields);
            let request: Request<'_> = get(path, &headers);
            matches!(both.request(&flow(Direction::Ingress, 43, 80), &request), Verdict::Allow { .. })
        };
        pairs.filter(admits).collect()
    };
    assert_eq!(admitted(&both), [("/a", "1"), ("/b", "2")]);
    both.secrets.insert("shared", b"3");
    assert_eq!(admitted(&both), [("/a", "3"), ("/b", "3")]);
}
