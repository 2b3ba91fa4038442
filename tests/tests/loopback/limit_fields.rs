//! What answers say about the limit of a tenant that was met: which, whose, and when to come back.

use std::collections::HashMap;

use serde_json::Value;
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::bandwidth::{Two, ask, get};
use super::tenants::connect;

const RATE: &str = "ceilings: { requests: { per_second: 1, burst: 2 } }";
const OF_RATE: [(&str, &str); 4] = [
    ("retry-after", "1"),
    ("ratelimit-policy", "\"requests\";q=1;w=1"),
    ("ratelimit", "\"requests\";r=0;t=1"),
    ("x-tollgate-limit", "tenant_rate;scope=tenant"),
];

#[test]
fn of_http_1() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, RATE, "reason_header: true");
    let mut client = connect(two.busy, two.proxy.http());
    let answer = until("a refusal", || {
        let answer = ask(&mut client, &get("/allowed"));
        assert!(answer.status() == 429 || answer.field("ratelimit").is_none(), "only where it is used up");
        (answer.status() == 429).then_some(answer)
    });
    for (name, value) in OF_RATE {
        assert_eq!(answer.field(name), Some(value), "{}", answer.head);
    }
    assert_eq!(ask(&mut connect(two.calm, two.proxy.http()), &get("/allowed")).status(), 200);
}

#[test]
fn nothing_of_ours_where_the_listener_does_not_say_so() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, RATE, "");
    let mut client = connect(two.busy, two.proxy.http());
    let answer = until("a refusal", || {
        let answer = ask(&mut client, &get("/allowed"));
        (answer.status() == 429).then_some(answer)
    });
    assert!(!answer.head.contains("x-tollgate"), "{}", answer.head);
    assert_eq!(answer.field("ratelimit"), Some("\"requests\";r=0;t=1"));
}

#[test]
fn of_http_2_and_grpc() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, RATE, "reason_header: true");
    let (address, source) = (two.proxy.http().to_string(), two.busy.to_string());
    let seen = script::run(python, &site, "h2_client.py", &["beyond_rate", &address, &source]);
    for (kind, status, grpc) in [("plain", 429, None), ("grpc", 200, Some("8"))] {
        let answer: &Value = &seen[kind];
        let fields: Vec<(String, String)> = serde_json::from_value(answer["headers"].clone()).unwrap();
        let fields: HashMap<String, String> = fields.into_iter().collect();
        let field = |name: &str| fields.get(name).map(String::as_str);
        assert_eq!((answer["status"].as_u64(), field("grpc-status")), (Some(status), grpc), "{answer}");
        for (name, value) in OF_RATE {
            assert_eq!(field(name), Some(value), "{answer}");
        }
    }
}
