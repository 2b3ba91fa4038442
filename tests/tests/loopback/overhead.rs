//! All processor time is somebody's: tenants, workers and what runs beside them have together used what the process has.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate_tests::access_log::AccessLogReader;
use tollgate_tests::policy::http_rule;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::within;

use super::tenants::{client_address, connect, message, policy};

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
/// What may be missing of the process's time, or too much: the ends of threads, and what workers have not booked yet. Half of what
/// is promised, so that parts which are small on a machine where much is done at once can be told from it.
const BOUND: f64 = 0.01;
/// Of each part there is at least so much, so that the sum is out of bounds if one is left out or counted twice.
const PART: f64 = 1.5 * BOUND;
/// Seconds of which [`BOUND`] is more than what a scrape takes from its first line to its last.
const LEAST: f64 = 0.6;
/// For how long there is work until there is enough of each part: a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(90);

/// Parts of the process's time, and the whole, in seconds.
#[derive(Debug)]
struct Spent {
    parts: BTreeMap<String, f64>,
    process: f64,
}

impl Spent {
    fn of(proxy: &Proxy) -> Self {
        let (_, scrape) = proxy.get("/metrics");
        let (mut parts, mut process) = (BTreeMap::new(), None);
        for line in scrape.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let part = match name {
                "tollgate_tenant_cpu_seconds_total" if labels.contains("tenant=\"_overhead\"") => "workers".to_owned(),
                "tollgate_tenant_cpu_seconds_total" => "tenants".to_owned(),
                "tollgate_tenant_policy_compile_seconds_total" => "tenants' policies".to_owned(),
                "tollgate_overhead_cpu_seconds_total" => labels.to_owned(),
                "process_cpu_seconds_total" => {
                    process = Some(value.parse().unwrap());
                    continue;
                }
                _ => continue,
            };
            *parts.entry(part).or_default() += value.parse::<f64>().unwrap();
        }
        Self { parts, process: process.unwrap() }
    }

    fn lacks(&self, part: &str) -> bool {
        self.parts[part] < PART * self.process
    }
}

#[test]
fn all_of_the_processes_time_is_somebodys() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let (socket, file) = (site.path("access.sock"), site.path("flows.json"));
    let _reader = AccessLogReader::counting(python, &socket);
    let top = format!("access_log: [{{ unix: \"{}\" }}, {{ json: \"{}\" }}]", socket.display(), file.display());
    let options = Options { direction: "egress", top, ..Options::default() };
    let (one, two) = (client_address(&site, 1), client_address(&site, 2));
    let policies = |round: u32| {
        let rules: Vec<Value> = (0..300).map(|rule| http_rule("GET", &format!("/{round}/{rule}/.*"))).collect();
        let large = json!({
            "endpointIps": [two.to_string()],
            "endpointId": "8",
            "egressPerPortPolicies": [{"port": HTTP_PORT, "rules": [{"httpRules": {"httpRules": rules}}]}],
        });
        [message(policy(7, one)), message(large)]
    };
    let proxy = Proxy::with(&site, upstream.address(), &options, &policies(0));
    let mut client = connect(one, proxy.http());
    let (mut round, mut last) = (0, None);
    let spent = within(PATIENCE, || {
        let spent = Spent::of(&proxy);
        let lacks = |parts: &[&str]| parts.iter().any(|part| spent.lacks(part));
        let of_requests =
            spent.process < LEAST || lacks(&["tenants", "workers", r#"kind="log"}"#, r#"kind="access_log"}"#]);
        let of_updates = lacks(&["tenants' policies", r#"kind="compile"}"#, r#"kind="control"}"#]);
        for _ in 0..if of_requests { 200 } else { 0 } {
            client.send(GET);
            assert_eq!(client.read_message().status(), 200);
        }
        if of_updates {
            round += 1;
            proxy.push(&policies(round));
        }
        last = Some(format!("{spent:#?}"));
        (!of_requests && !of_updates).then_some(spent)
    });
    let spent = spent.unwrap_or_else(|| panic!("no part of each kind that would be missed: {}", last.unwrap()));
    let sum: f64 = spent.parts.values().sum();
    assert!((sum / spent.process - 1.0).abs() < BOUND, "{sum} of {spent:#?}");

    let (_, shown) = proxy.get("/tenants");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let overhead = shown["process"]["overhead_seconds"].as_object().unwrap();
    for (kind, seconds) in overhead {
        let before = spent.parts[&format!("kind=\"{kind}\"}}")];
        assert!(seconds.as_f64().unwrap() >= before, "{kind}: {before}, then {seconds}");
    }
    assert_eq!(overhead.len(), 4, "{shown}");
}
