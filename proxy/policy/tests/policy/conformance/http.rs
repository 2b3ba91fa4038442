//! `cilium_http_integration_test.cc` and `cilium_http_upstream_integration_test.cc`: HTTP rules and header matches. What of
//! it is on the wire is in `tests/tests/loopback/conformance.rs`.

use serde_json::{Value, json};
use tollgate_policy::{ConnectionVerdict, Direction, Request, Verdict};

use super::{Both, flow, paths, policy};
use crate::header_matches::seen;
use crate::support::Fields;

const TOKEN: &str = "d4ef0f5011f163ac";

/// What peer 1 may ask for, and peer 2. The first four rules of peer 1 check and edit fields, too.
fn with_matches() -> Value {
    serde_json::from_str(include_str!("../../../../../tests/conformance/requests.json")).unwrap()
}

/// The same without header matches.
fn plain() -> Value {
    let mut entries = with_matches();
    for rule in entries[0]["rules"][0]["http_rules"]["http_rules"].as_array_mut().unwrap() {
        rule.as_object_mut().unwrap().remove("header_matches");
    }
    entries
}

fn world(ingress: &Value, egress: &Value) -> Both {
    let mut both = Both::new();
    both.secrets.insert("bearer-token", TOKEN.as_bytes());
    both.update(&[policy(ingress, egress)]);
    assert_eq!(both.quarantined(), Vec::<String>::new());
    both
}

/// Name; method, authority and path; fields received; outcome with the edits; what is logged as missing, and as rejected.
type Row = (
    &'static str,
    [&'static str; 3],
    &'static [(&'static str, &'static [u8])],
    &'static str,
    &'static str,
    &'static str,
);

fn told(both: &Both, direction: Direction, [method, host, path]: [&str; 3], fields: &[(&str, &[u8])]) -> [String; 3] {
    let request = Request {
        method: method.as_bytes(),
        scheme: b"http",
        authority: host.as_bytes(),
        path: path.as_bytes(),
        headers: &Fields(fields),
    };
    let seen = seen(both.request(&flow(direction, 1, 80), &request));
    let status = if seen.allowed { "200" } else { "403" };
    [format!("{status} {}", seen.edits).trim_end().to_owned(), seen.missing, seen.rejected]
}

fn run(both: &Both, direction: Direction, rows: &[Row]) {
    for (name, request, fields, outcome, missing, rejected) in rows {
        assert_eq!(told(both, direction, *request, fields), [*outcome, missing, rejected], "{name}");
    }
}

const WITH_MATCHES: &[Row] = &[
    ("CiliumIntegrationTest.DeniedPathPrefix", ["GET", "host", "/prefix"], &[], "403", "", ""),
    (
        "CiliumIntegrationTest.AllowedPathPrefix",
        ["GET", "host", "/allowed"],
        &[("bearer-token", b"d4ef0f5011f163ac")],
        "200",
        "header42: ",
        "",
    ),
    (
        "CiliumIntegrationTest.AllowedPathPrefixWrongHeader",
        ["GET", "host", "/allowed"],
        &[("bearer-token", b"wrong-value"), ("x-envoy-original-dst-host", b"1.1.1.1:9999")],
        "200 !bearer-token=d4ef0f5011f163ac",
        "header42:  bearer-token: [redacted]",
        "bearer-token: [redacted]",
    ),
    ("CiliumIntegrationTest.AllowedPathRegex", ["GET", "host", "/maybe/public"], &[], "200", "", ""),
    (
        "CiliumIntegrationTest.AllowedPathRegexDeleteHeader",
        ["GET", "host", "/maybe/public"],
        &[("User-Agent", b"test")],
        "200 !user-agent=",
        "",
        "user-agent: test",
    ),
    (
        "CiliumIntegrationTest.AllowedHostRegexDeleteHeader",
        ["GET", "hostREGEXname", "/maybe/private"],
        &[("header42", b"test")],
        "200 !header42=",
        "",
        "header42: test",
    ),
    ("CiliumIntegrationTest.DeniedPath", ["GET", "host", "/maybe/private"], &[], "403", "", ""),
    (
        "CiliumIntegrationTest.AllowedHostString",
        ["GET", "allowedHOST", "/maybe/private"],
        &[],
        "200 +header2=value2",
        "header2: value2 header42: ",
        "",
    ),
    (
        "CiliumIntegrationTest.AllowedReplaced",
        ["GET", "allowedHOST", "/allowed"],
        &[],
        "200 !bearer-token=d4ef0f5011f163ac +header2=value2",
        "header42:  bearer-token: [redacted] header2: value2",
        "",
    ),
    (
        "CiliumIntegrationTest.Denied42",
        ["GET", "host", "/allowed"],
        &[("header42", b"anything")],
        "403",
        "bearer-token: [redacted]",
        "header42: ",
    ),
    (
        "CiliumIntegrationTest.AllowedReplacedAndDeleted",
        ["GET", "allowedHOST", "/allowed"],
        &[("header42", b"anything")],
        "200 !bearer-token=d4ef0f5011f163ac +header2=value2 !header42=",
        "bearer-token: [redacted] header2: value2",
        "header42: ",
    ),
    ("CiliumIntegrationTest.AllowedHostRegex", ["GET", "hostREGEXname", "/maybe/private"], &[], "200", "", ""),
    ("CiliumIntegrationTest.DeniedMethod", ["POST", "host", "/maybe/private"], &[], "403", "", ""),
    ("CiliumIntegrationTest.AcceptedMethod", ["PUT", "host", "/public/opinions"], &[], "200", "", ""),
    ("CiliumIntegrationTest.L3DeniedPath", ["GET", "host", "/only-2-allowed"], &[], "403", "", ""),
];

const PLAIN: &[Row] = &[
    ("CiliumIntegrationEgressTest.DeniedPathPrefix", ["GET", "host", "/prefix"], &[], "403", "", ""),
    ("CiliumIntegrationEgressTest.AllowedPathPrefix", ["GET", "host", "/allowed"], &[], "200", "", ""),
    ("CiliumIntegrationEgressTest.AllowedPathRegex", ["GET", "host", "/maybe/public"], &[], "200", "", ""),
    ("CiliumIntegrationEgressTest.DeniedPath", ["GET", "host", "/maybe/private"], &[], "403", "", ""),
    ("CiliumIntegrationEgressTest.AllowedHostString", ["GET", "allowedHOST", "/maybe/private"], &[], "200", "", ""),
    ("CiliumIntegrationEgressTest.AllowedHostRegex", ["GET", "hostREGEXname", "/maybe/private"], &[], "200", "", ""),
    ("CiliumIntegrationEgressTest.DeniedMethod", ["POST", "host", "/maybe/private"], &[], "403", "", ""),
    ("CiliumIntegrationEgressTest.AcceptedMethod", ["PUT", "host", "/public/opinions"], &[], "200", "", ""),
    ("CiliumIntegrationEgressTest.L3DeniedPath", ["GET", "host", "/only-2-allowed"], &[], "403", "", ""),
];

#[test]
fn ingress() {
    run(&world(&with_matches(), &plain()), Direction::Ingress, WITH_MATCHES);
}

#[test]
fn egress() {
    run(&world(&with_matches(), &plain()), Direction::Egress, PLAIN);
}

/// Where a load balancer has chosen the back end the same rules are egress rules. Here they are judged as those; the
/// load balancer itself is none of ours yet.
#[test]
fn egress_with_matches() {
    run(&world(&json!([]), &with_matches()), Direction::Egress, WITH_MATCHES);
}

/// `MultipleRequests`: neither request leaves anything behind for the other.
#[test]
fn one_after_another() {
    let both = world(&with_matches(), &with_matches());
    for direction in [Direction::Ingress, Direction::Egress] {
        for _ in 0..2 {
            run(&both, direction, &WITH_MATCHES[1..3]);
        }
    }
}

#[test]
fn duplicate_ports() {
    let also = json!({"http_rules": [
        {"headers": [{"name": ":path", "safe_regex_match": {"google_re2": {}, "regex": "/also-2-allowed"}}]},
    ]});
    let entries = json!([
        {"port": 80, "rules": [{"remote_policies": [1], "http_rules": paths(&["/only-2-allowed"])}]},
        {"port": 80, "rules": [{"remote_policies": [1], "http_rules": also}]},
    ]);
    let rows: &[Row] = &[
        ("CiliumIntegrationPortTest.DuplicatePortAllowedPath", ["GET", "host", "/only-2-allowed"], &[], "200", "", ""),
        ("CiliumIntegrationPortTest.DuplicatePortAllowedPath2", ["GET", "host", "/also-2-allowed"], &[], "200", "", ""),
    ];
    let both = world(&entries, &json!([]));
    run(&both, Direction::Ingress, rows);
    assert_eq!(told(&both, Direction::Ingress, ["GET", "host", "/never"], &[])[0], "403");
}

/// `CiliumIntegrationPortRangeTest.InvalidRange`: the filter refuses the policy for the sake of one egress entry, and so
/// everything. Here that entry grants nothing, and the rest is enforced.
#[test]
fn invalid_range() {
    let mut egress = plain();
    let bad = json!({"end_port": 80, "rules": [{"remote_policies": [2], "http_rules": paths(&["/more-for-2"])}]});
    egress.as_array_mut().unwrap().push(bad);
    let mut both = Both::new();
    both.update(&[policy(&plain(), &egress)]);
    let place = "42 egress_per_port_policies[1].port";
    let reason = "0-80: a range cannot begin at the wildcard port 0; begin it at 1";
    assert_eq!(both.quarantined(), [format!("{place}: {reason}")]);
    run(&both, Direction::Ingress, &PLAIN[..3]);
    run(&both, Direction::Egress, PLAIN);
    let bad = Request { path: b"/more-for-2", ..crate::support::get("", &Fields(&[])) };
    assert!(matches!(both.request(&flow(Direction::Egress, 2, 80), &bad), Verdict::Deny { .. }));
}

/// `CiliumIntegrationEgressL34Test`: without HTTP rules it is the connection that is refused, whatever it would ask for.
#[test]
fn egress_of_connections() {
    let entries = json!([{"port": 80, "end_port": 80, "rules": [{"remote_policies": [42]}]}]);
    let both = world(&json!([]), &entries);
    for (name, path) in [
        ("CiliumIntegrationEgressL34Test.DeniedPathPrefix", "/prefix"),
        ("CiliumIntegrationEgressL34Test.DeniedPathPrefix2", "/allowed"),
    ] {
        let refused = both.connection(&flow(Direction::Egress, 1, 80));
        assert!(matches!(refused, ConnectionVerdict::Deny { .. }), "{name}: {refused:?}");
        assert_eq!(told(&both, Direction::Egress, ["GET", "host", path], &[])[0], "403", "{name}");
    }
    let admitted = both.connection(&flow(Direction::Egress, 42, 80));
    assert!(matches!(admitted, ConnectionVerdict::AllowTcp { .. }), "{admitted:?}");
}

/// `SDSIntegrationTest`, in both directions: the second test file has the same cases for egress.
#[test]
fn secrets() {
    let first = json!([{"port": 80, "rules": [
        {"remote_policies": [1], "http_rules": paths(&["/allowed2"])},
        {"remote_policies": [42], "http_rules": paths(&["/only42"])},
    ]}]);
    let second = json!([{"port": 80, "rules": [{"remote_policies": [1], "http_rules": {"http_rules": [{
        "headers": [{"name": ":path", "exact_match": "/allowed"}],
        "header_matches": [
            {"name": "header42", "match_action": "FAIL_ON_MATCH", "mismatch_action": "CONTINUE_ON_MISMATCH"},
            {"name": "bearer-token", "value_sds_secret": "nonexisting-sds-secret",
             "mismatch_action": "REPLACE_ON_MISMATCH"},
        ],
    }]}}]}]);
    let denied: &[Row] = &[
        ("SDSIntegrationTest.TestDeniedL3", ["GET", "host", "/only42"], &[], "403", "", ""),
        (
            "SDSIntegrationTest.TestDeniedL3SpoofedXFF",
            ["GET", "host", "/only42"],
            &[("x-forwarded-for", b"192.168.1.1")],
            "403",
            "",
            "",
        ),
    ];
    let before: &[Row] = &[
        ("SDSIntegrationTest.TestMissingSDSSecretOnUpdate", ["GET", "host", "/allowed2"], &[], "200", "", ""),
        ("and not yet", ["GET", "host", "/allowed"], &[], "403", "", ""),
    ];
    let after: &[Row] = &[("with no secret", ["GET", "host", "/allowed"], &[], "403", "header42: ", "")];
    for direction in [Direction::Ingress, Direction::Egress] {
        let mut both = world(&first, &first);
        run(&both, direction, denied);
        run(&both, direction, before);
        both.update(&[policy(&second, &second)]);
        assert_eq!(both.quarantined(), Vec::<String>::new());
        run(&both, direction, after);
        both.update(&[policy(&first, &first)]);
        run(&both, direction, before);
    }
}
