//! Two tenants of one worker that both want all of its time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::json::network_policy_from_value;
use tollgate_tests::policy::{http_port, http_rule};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::wait::until;

const DENIED: &[u8] = b"GET /denied HTTP/1.1\r\nHost: a\r\n\r\n";
/// Requests of one connection that wait for their answers: always more than one poll takes.
const AHEAD: u64 = 128;
/// Answers that the two tenants get together while they are compared.
const COMPARED: u64 = 6_000;

/// Rules that a request is held against one by one until the last has failed, too.
pub(super) fn expensive(site: &Site, endpoint: u64) -> NetworkPolicy {
    let rules: Vec<Value> = (0..1_000).map(|n| http_rule("GET", &format!("/allowed/{n}/.*"))).collect();
    let policy = json!({
        "endpointIps": [site.ip().to_string()],
        "endpointId": endpoint.to_string(),
        "ingressPerPortPolicies": [http_port(HTTP_PORT, &rules)],
    });
    network_policy_from_value(policy).unwrap()
}

/// A tenant's clients: each sends requests without waiting for answers, which it counts.
pub(super) struct Crowd {
    answers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Crowd {
    pub(super) fn start(address: SocketAddr, connections: usize) -> Self {
        let (answers, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        for _ in 0..connections {
            let (answers, stop) = (Arc::clone(&answers), Arc::clone(&stop));
            let mut stream = TcpStream::connect(address).unwrap();
            thread::spawn(move || {
                stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                let mut buffer = [0; 16 * 1024];
                let (mut owed, mut seen) = (0, Tail::default());
                while !stop.load(Ordering::Relaxed) {
                    if owed <= AHEAD / 2 {
                        if stream.write_all(&DENIED.repeat(AHEAD as usize / 2)).is_err() {
                            return;
                        }
                        owed += AHEAD / 2;
                    }
                    match stream.read(&mut buffer) {
                        Ok(0) => return,
                        Ok(n) => {
                            let heads = seen.heads(&buffer[..n]);
                            answers.fetch_add(heads, Ordering::Relaxed);
                            owed -= heads;
                        }
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                        // The proxy has ended, with the test.
                        Err(_) => return,
                    }
                }
            });
        }
        Self { answers, stop }
    }

    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Counts answers in a stream that comes in any pieces.
#[derive(Default)]
struct Tail(usize);

impl Tail {
    fn heads(&mut self, bytes: &[u8]) -> u64 {
        const HEAD: &[u8] = b"HTTP/1.1 403 ";
        let mut heads = 0;
        for byte in bytes {
            // No byte of the text begins it anew but its first.
            self.0 = if *byte == HEAD[self.0] { self.0 + 1 } else { usize::from(*byte == HEAD[0]) };
            if self.0 == HEAD.len() {
                heads += 1;
                self.0 = 0;
            }
        }
        heads
    }
}

/// Answers that two tenants get at the same time, whose clients have so many connections; `top` are further keys.
fn answers(top: &str, connections: [usize; 2]) -> (f64, f64) {
    let (first, second) = (Site::new(), Site::new());
    let nobody = first.at(9);
    // Their polls are slow enough in debug builds that one of them, and not the other, would go to the lane.
    let top = format!(
        "- {{ name: second, address: \"{}\", direction: ingress, transparent: false, upstream: \"{nobody}\" }}\nlanes: off\n{top}",
        second.at(HTTP_PORT),
    );
    let options = Options { top, ..Options::default() };
    let proxy = Proxy::with(&first, nobody, &options, &[expensive(&first, 7), expensive(&second, 8)]);
    let one = Crowd::start(proxy.http(), connections[0]);
    let other = Crowd::start(second.at(HTTP_PORT), connections[1]);
    until("answers to both", || (one.answers() > 10 && other.answers() > 10).then_some(()));
    let before = (one.answers(), other.answers());
    let (one, other) = until("enough answers to compare", || {
        let (one, other) = (one.answers() - before.0, other.answers() - before.1);
        (one + other >= COMPARED).then_some((one as f64, other as f64))
    });
    println!("{connections:?}: {one} and {other} answers");
    (one, other)
}

/// Jain's index of what a tenant with 64 connections and one with a single connection get at the same time.
fn jain(fairness: &str) -> f64 {
    let (many, one) = answers(&format!("fairness: {fairness}"), [64, 1]);
    (many + one).powi(2) / (2.0 * (many.powi(2) + one.powi(2)))
}

#[test]
fn many_connections_are_worth_no_more_than_one() {
    let jain = jain("on");
    assert!(jain >= 0.95, "{jain}");
}

#[test]
fn without_fairness_they_are() {
    let jain = jain("off");
    assert!(jain < 0.7, "what the other test shows is not fairness: {jain}");
}

/// Everything else is counted, and nothing says 0 that nobody has measured.
#[test]
fn without_fairness_no_processor_time_is_told() {
    let site = Site::new();
    let options = Options { top: "fairness: off".to_owned(), ..Options::default() };
    let proxy = Proxy::with(&site, site.at(9), &options, &[expensive(&site, 7)]);
    let mut client = TcpStream::connect(proxy.http()).unwrap();
    client.write_all(DENIED).unwrap();
    let record = proxy.expect_flows(1).remove(0);
    assert_eq!(record["tenant"], "endpoint-7");
    assert_eq!((&record["cpu_us"], &record["queue_us"]), (&Value::Null, &Value::Null), "{record}");
    let shown: Value = serde_json::from_str(&proxy.get("/tenants").1).unwrap();
    let tenants = shown["tenants"].as_array().unwrap();
    let mine = tenants.iter().find(|tenant| tenant["name"] == "endpoint-7").unwrap();
    assert_eq!((&mine["requests"]["denied"], &mine["connections_open"]), (&json!(1), &json!(1)));
    assert!(mine["memory_bytes"].as_u64() > Some(0), "{mine}");
    for tenant in tenants {
        for field in ["cpu_seconds", "cpu_seconds_by_kind", "queue_seconds", "cpu_held_seconds", "polls"] {
            assert_eq!(tenant.get(field), None, "{tenant}");
        }
    }
    assert!(shown["process"]["cpu_seconds"].is_f64() && shown["process"]["unattributed_ratio"].is_null(), "{shown}");
    let (_, metrics) = proxy.get("/metrics");
    assert!(metrics.contains("tollgate_tenant_connections_total{tenant=\"endpoint-7\"} 1"), "{metrics}");
    for family in ["tenant_cpu_seconds", "tenant_queue_seconds", "tenant_cpu_held_seconds", "cpu_unattributed_ratio"] {
        assert!(!metrics.contains(&format!("tollgate_{family}")), "{family}: {metrics}");
    }
}

#[test]
fn a_tenant_has_its_weight() {
    let group = "{ name: heavy, members: { endpoint_ids: [8] }, weight: 3 }";
    let (light, heavy) = answers(&format!("tenants: {{ groups: [{group}] }}"), [8, 8]);
    let ratio = heavy / light;
    assert!((2.4..3.75).contains(&ratio), "{heavy} : {light} = {ratio}");
}

/// A guarantee counts more than any weight: 6 of 10 to a tenant that by weight has one.
#[test]
fn a_tenant_has_what_it_is_guaranteed() {
    let light = "{ name: light, members: { endpoint_ids: [7] }, guarantee: { cpu: 600m } }";
    let heavy = "{ name: heavy, members: { endpoint_ids: [8] }, weight: 9 }";
    let (guaranteed, other) = answers(&format!("tenants: {{ groups: [{light}, {heavy}] }}"), [8, 8]);
    let part = guaranteed / (guaranteed + other);
    // Of the worker's time, of which its event loop takes a part.
    assert!((0.55..0.85).contains(&part), "{guaranteed} and {other}: {part}");
}

/// Length of the turns of each thread of a process, by its name, in nanoseconds; `None` where the kernel does not say.
fn turns(process: u32) -> Option<Vec<(String, u64)>> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads
        .map(|thread| {
            let thread = thread.unwrap().path();
            let name = std::fs::read_to_string(thread.join("comm")).unwrap().trim().to_owned();
            let known = std::fs::read_to_string(thread.join("sched")).ok()?;
            let slice = known.lines().find_map(|line| line.strip_prefix("se.slice")?.split(':').nth(1))?;
            Some((name, slice.trim().parse().unwrap()))
        })
        .collect()
}

/// Workers, and nobody else, ask the kernel for short turns: a lane that did would hold up its worker.
#[test]
fn workers_have_short_turns_and_lanes_do_not() {
    let site = Site::new();
    let mut proxy = Proxy::start(&site, site.at(9));
    let process = proxy.process().id();
    let all = ["worker-0", "lane-0", "flow"];
    // A thread that has just begun has no name of its own yet.
    let turns = until("threads", || {
        let turns = turns(process);
        let named = |turns: &Vec<(String, u64)>| all.iter().all(|name| turns.iter().any(|(thread, _)| thread == name));
        turns.as_ref().is_none_or(named).then_some(turns)
    });
    let Some(turns) = turns else {
        assert!(std::env::var_os("CI").is_none(), "/proc/PID/sched does not have the length of turns");
        eprintln!("SKIPPED: /proc/PID/sched does not have the length of turns");
        return;
    };
    let of = |name: &str| turns.iter().find(|(thread, _)| thread == name).unwrap().1;
    assert_eq!(of("worker-0"), 100_000, "{turns:?}");
    assert!(of("lane-0") > 100_000 && of("flow") > 100_000, "{turns:?}");
}
