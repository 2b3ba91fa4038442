//! The records that a proxy keeps for `/flows`: there is room for everybody, and for denials.

use serde_json::Value;
use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Proxy;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::bandwidth::Two;
use super::tenants::connect;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
const DENIED: &str = "GET /denied HTTP/1.1\r\nHost: a\r\n\r\n";
/// More than are kept of all together.
const MANY: usize = 5000;

fn ask(client: &mut Peer, request: &str, count: usize) {
    for _ in 0..count.div_ceil(100) {
        client.send(request.repeat(count.min(100)));
        (0..count.min(100)).for_each(|_| drop(client.read_message()));
    }
}

/// Without a word of what made room while it was read.
fn flows(proxy: &Proxy, query: &str) -> Vec<Value> {
    let (_, body) = proxy.get(&format!("/flows?{query}"));
    let all = body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line["lost_events"].is_null()).collect()
}

#[test]
fn a_quiet_tenant_finds_its_denial_after_the_load_of_others() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::with(&site, &upstream, "weight: 1", "", "");
    let (mut busy, mut calm) = (connect(two.busy, two.proxy.http()), connect(two.calm, two.proxy.http()));
    ask(&mut calm, DENIED, 1);
    ask(&mut busy, DENIED, 2);
    ask(&mut busy, GET, MANY);
    let all = until("the records", || {
        let all = flows(&two.proxy, "limit=9999");
        (two.proxy.metric("tollgate_flow_records_total{class=\"forwarded\"}") as usize >= MANY && all.len() > 4000)
            .then_some(all)
    });
    assert!(all.len() < MANY, "{}", all.len());
    let quiet = flows(&two.proxy, "denied=1&tenant=endpoint-8");
    assert_eq!(quiet.len(), 1);
    assert_eq!((&quiet[0]["reason"], &quiet[0]["tenant"]), (&"request_not_allowed".into(), &"endpoint-8".into()));
    assert_eq!(flows(&two.proxy, "denied=1").len(), 3, "whose own traffic it is makes no difference");
    // Nor do denials of others.
    ask(&mut busy, DENIED, MANY);
    until("the records", || (flows(&two.proxy, "denied=1&limit=9999").len() > 1500).then_some(()));
    assert_eq!(flows(&two.proxy, "denied=1&tenant=endpoint-8"), quiet);
    // What is kept has an end, and is shown.
    let status: Value = serde_json::from_str(&two.proxy.get("/status").1).unwrap();
    let (bytes, limit) =
        (status["log_memory"]["bytes"].as_u64().unwrap(), status["log_memory"]["limit_bytes"].as_u64());
    assert!(bytes > 1 << 20 && Some(bytes) < limit, "{status}");
    assert_eq!(two.proxy.metric("tollgate_log_memory_limit_bytes") as u64, limit.unwrap());
    assert!(two.proxy.metric("tollgate_log_memory_bytes") > 1e6);
}
