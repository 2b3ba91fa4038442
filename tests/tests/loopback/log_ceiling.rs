//! Tenants that may log so many bytes a second: what they do beyond is served as ever, its records are lost and counted, each of
//! them, and nobody else loses any.

use std::time::Instant;

use serde_json::{Value, json};
use tollgate_tests::access_log::AccessLogReader;
use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Proxy;
use tollgate_tests::python::python;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::bandwidth::Two;
use super::tenants::connect;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
const DENIED: &str = "GET /denied HTTP/1.1\r\nHost: a\r\n\r\n";
const RATE: u64 = 1 << 10;
const BURST: u64 = 64 << 10;
const CEILING: &str = "ceilings: { log_bytes: { per_second: 1KiB, burst: 64KiB } }";
/// More than the burst has room for.
const REQUESTS: usize = 300;

fn ask(client: &mut Peer, request: &str) -> u16 {
    client.send(request);
    client.read_message().status()
}

/// A series of a counter that is there once it is not 0.
fn counted(proxy: &Proxy, series: &str) -> usize {
    let (scrape, series) = (proxy.get("/metrics").1, format!("tollgate_tenant_{series} "));
    scrape.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
}

/// Of a tenant `busy`.
fn lost(proxy: &Proxy, log: &str, class: &str) -> usize {
    counted(proxy, &format!("log_lost_total{{tenant=\"busy\",log=\"{log}\",class=\"{class}\",reason=\"log_bytes\"}}"))
}

fn records(proxy: &Proxy, tenant: &str, verdict: &str) -> Vec<Value> {
    let all = proxy.flows().into_iter();
    all.filter(|flow| flow["tenant"] == tenant && flow["verdict"] == verdict).collect()
}

#[test]
fn records_beyond_the_ceiling_are_lost_and_counted() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::with(&site, &upstream, CEILING, "", "");
    let began = Instant::now();
    let (mut busy, mut calm) = (connect(two.busy, two.proxy.http()), connect(two.calm, two.proxy.http()));
    for _ in 0..REQUESTS {
        assert_eq!((ask(&mut busy, GET), ask(&mut calm, GET)), (200, 200));
    }
    // There is room for those that tell of denials.
    for _ in 0..10 {
        assert_eq!(ask(&mut busy, DENIED), 403);
    }
    let kept = until("all to be on record or lost", || {
        let kept = records(&two.proxy, "busy", "FORWARDED");
        let all = kept.len() + lost(&two.proxy, "flows", "other") == REQUESTS;
        (all && records(&two.proxy, "busy", "DROPPED").len() == 10).then_some(kept)
    });
    assert!(!kept.is_empty() && kept.len() < REQUESTS / 2, "{}", kept.len());
    let name = ",\"tenant\":\"busy\"".len();
    let bytes: usize = kept.iter().map(|record| record.to_string().len() - name).sum();
    let given = began.elapsed().as_secs_f64() * RATE as f64 + BURST as f64;
    assert!(bytes as f64 <= given, "{bytes} of {given}");
    until("the neighbour's records", || {
        (records(&two.proxy, "endpoint-8", "FORWARDED").len() == REQUESTS).then_some(())
    });
    let everybodys = two.proxy.metric("tollgate_flow_records_lost_total{class=\"forwarded\"}") as usize;
    assert_eq!(everybodys, REQUESTS - kept.len(), "nobody else's");
    assert_eq!(counted(&two.proxy, "requests_total{tenant=\"busy\",outcome=\"forwarded\"}"), REQUESTS);
    let shown: Value = serde_json::from_str(&two.proxy.get("/tenants").1).unwrap();
    let busy = shown["tenants"].as_array().unwrap().iter().find(|tenant| tenant["name"] == "busy").unwrap();
    assert_eq!(busy["log_lost"], json!({ "log_bytes": everybodys }));
}

/// What limits refuse leaves the part of the burst alone that is for denials.
#[test]
fn a_flood_of_limits_takes_no_denial() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let settings = "ceilings: { header: 1KiB, log_bytes: { per_second: 1KiB, burst: 64KiB } }";
    let two = Two::with(&site, &upstream, settings, "", "");
    let long = format!("GET /allowed HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "x".repeat(1024));
    for _ in 0..REQUESTS {
        assert_eq!(ask(&mut connect(two.busy, two.proxy.http()), &long), 431);
    }
    let mut busy = connect(two.busy, two.proxy.http());
    for _ in 0..10 {
        assert_eq!(ask(&mut busy, DENIED), 403);
    }
    until("all to be on record or lost", || {
        let dropped = records(&two.proxy, "busy", "DROPPED");
        let denied = dropped.iter().filter(|record| record["reason"] == "request_not_allowed").count();
        let limited = dropped.len() - denied + lost(&two.proxy, "flows", "other");
        assert_eq!(lost(&two.proxy, "flows", "denied"), 0);
        (denied == 10 && limited == REQUESTS).then_some(())
    });
    let lost = lost(&two.proxy, "flows", "other");
    assert!(lost > REQUESTS / 2, "{lost}");
    assert_eq!(two.proxy.metric("tollgate_flow_records_lost_total{class=\"limited\"}") as usize, lost);
    assert_eq!(two.proxy.metric("tollgate_flow_records_lost_total{class=\"denied\"}"), 0.0);
}

#[test]
fn entries_of_the_access_log_are_under_the_same_ceiling() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let socket = site.path("access_log.sock");
    let reader = AccessLogReader::start(python, &socket);
    let top = format!("access_log: [{{ unix: \"{}\" }}]", socket.display());
    let two = Two::with(&site, &upstream, CEILING, "", &top);
    let (mut busy, mut calm) = (connect(two.busy, two.proxy.http()), connect(two.calm, two.proxy.http()));
    for _ in 0..REQUESTS {
        assert_eq!(ask(&mut busy, GET), 200);
    }
    assert_eq!((ask(&mut busy, DENIED), ask(&mut calm, GET)), (403, 200));
    let lost = until("all records", || {
        let denied = records(&two.proxy, "busy", "DROPPED").len();
        let records = records(&two.proxy, "busy", "FORWARDED").len() + lost(&two.proxy, "flows", "other");
        (records == REQUESTS && denied == 1).then(|| lost(&two.proxy, "access_log", "other"))
    });
    assert!(lost > REQUESTS, "{lost}");
    // A request and an answer each; those of the denial and the neighbour's, too.
    let mut kinds: Vec<String> = Vec::new();
    for entry in reader.entries(2 * (REQUESTS + 2) - lost) {
        let whose = if entry["policy_name"] == two.busy.to_string() { "busy" } else { "calm" };
        kinds.push(format!("{whose} {}", entry["entry_type"].as_str().unwrap()));
    }
    let count = |kind: &str| kinds.iter().filter(|other| *other == kind).count();
    assert_eq!((count("busy Denied"), count("calm Request"), count("calm Response")), (1, 1, 1), "{kinds:?}");
    assert_eq!(
        two.proxy.metric("tollgate_access_log_entries_lost_total{type=\"request\"}") as usize
            + two.proxy.metric("tollgate_access_log_entries_lost_total{type=\"response\"}") as usize,
        lost
    );
}

#[test]
fn shadow_loses_nothing() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::with(&site, &upstream, &format!("shadow: true, {CEILING}"), "", "");
    let mut busy = connect(two.busy, two.proxy.http());
    for _ in 0..REQUESTS {
        assert_eq!(ask(&mut busy, GET), 200);
    }
    until("all records", || (records(&two.proxy, "busy", "FORWARDED").len() == REQUESTS).then_some(()));
    let shadowed = counted(&two.proxy, "shadow_log_lost_total{tenant=\"busy\"}");
    assert!(shadowed > REQUESTS / 2 && shadowed < REQUESTS, "{shadowed}");
    assert_eq!(lost(&two.proxy, "flows", "other"), 0);
}
