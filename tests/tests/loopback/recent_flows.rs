//! The records that a proxy keeps for `/flows`: there is room for everybody, and for denials.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;

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

/// A file that nobody reads, and a tenant whose records have all of the room there that it gets.
#[test]
fn a_quiet_tenant_is_recorded_although_another_has_filled_what_waits() {
    let site = Site::new();
    let fifo = site.path("records");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let upstream = Upstream::ok(&site);
    let two =
        Two::with(&site, &upstream, "weight: 1", "", &format!("access_log: [{{ json: \"{}\" }}]", fifo.display()));
    let (mut busy, mut calm) = (connect(two.busy, two.proxy.http()), connect(two.calm, two.proxy.http()));
    let lost = || two.proxy.metric(&format!("tollgate_flow_sink_lost_total{{sink=\"{}\"}}", fifo.display()));
    until("too much", || {
        ask(&mut busy, GET, 1000);
        (lost() > 1000.0).then_some(())
    });
    for request in [GET, DENIED] {
        ask(&mut calm, request, 1);
    }
    ask(&mut busy, DENIED, 1);
    until("all to wait there", || (flows(&two.proxy, "tenant=endpoint-8").len() == 2).then_some(()));
    until("the denial", || (flows(&two.proxy, "denied=1&tenant=busy").len() == 1).then_some(()));

    let (line, lines) = channel();
    thread::spawn(move || BufReader::new(reader).lines().try_for_each(|read| line.send(read.unwrap())));
    let mut read = Vec::new();
    until("its records", || {
        let of_line = |line: String| serde_json::from_str::<Value>(&line).unwrap();
        read.extend(
            lines.try_iter().map(of_line).filter(|line| line["tenant"] != "busy" || line["verdict"] == "DROPPED"),
        );
        (read.len() == 3).then_some(())
    });
    let seen = read.iter().map(|line| [&line["tenant"], &line["verdict"]].map(|text| text.as_str().unwrap()).join(" "));
    let mut seen: Vec<String> = seen.collect();
    seen.sort(); // those of another worker may come first
    assert_eq!(seen, ["busy DROPPED", "endpoint-8 DROPPED", "endpoint-8 FORWARDED"]);
}
