//! A control group that gives less processor time than a tenant asks for: the kernel stops everybody, or Tollgate paces who asks.

use serde_json::{Value, json};
use tollgate_tests::cgroup::ControlGroup;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::fairness::{Crowd, expensive};

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
/// A fifth of a processor, the least that is kept to: one tenant uses it up, however busy the machine is.
const QUOTA: u64 = 20_000;
const PERIOD: u64 = 100_000;
/// Until the process has looked at its control group, and the kernel at the load.
const FIRST: u64 = 15;
const COMPARED: u64 = 40;
/// How often the machine may disturb a look.
const LOOKS: usize = 3;

/// What became of a proxy in a control group of which a tenant wants more than all, while another asks now and then.
struct Seen {
    periods: f64,
    throttled: f64,
    /// `cpu_quota` in `/status`.
    status: Value,
    metrics: String,
    log: String,
}

/// None where there are no control groups.
fn look(name: &str, quota: u64, top: &str) -> Option<Seen> {
    let group = ControlGroup::with_processor_time(name, quota, PERIOD)?;
    let (busy, calm) = (Site::new(), Site::new());
    let upstream = Upstream::ok(&calm);
    let upstream = upstream.address();
    let top = format!(
        "- {{ name: calm, address: \"{}\", direction: ingress, transparent: false, upstream: \"{upstream}\" }}\nlanes: off\n{top}",
        calm.at(HTTP_PORT),
    );
    let mut proxy =
        Proxy::with(&busy, upstream, &Options { top, ..Options::default() }, &[expensive(&busy, 8), usual(&calm)]);
    let before = status(&proxy);
    assert_eq!(before["processors"], Value::Null, "this machine's own control group has an end");
    group.take_in(proxy.process().id());
    until("the quota in /status", || (status(&proxy)["processors"] == quota as f64 / PERIOD as f64).then_some(()));
    let crowd = Crowd::start(proxy.http(), 16);
    let (start, _) = group.periods();
    until("the first periods", || (group.periods().0 >= start + FIRST).then_some(()));
    let (before, answers) = (group.periods(), crowd.answers());
    let mut peer = Peer::connect(calm.at(HTTP_PORT));
    let (periods, throttled) = until("enough periods", || {
        peer.send(GET);
        assert_eq!(peer.read_message().status(), 200);
        let (periods, throttled) = group.periods();
        let (periods, throttled) = (periods - before.0, throttled - before.1);
        (periods >= COMPARED).then_some((periods, throttled))
    });
    assert!(crowd.answers() > answers, "the busy tenant is not served");
    let tenants: Value = serde_json::from_str(&proxy.get("/tenants").1).unwrap();
    assert_eq!(tenants["process"]["cpu_quota"]["quota_seconds"], quota as f64 / 1e6, "{tenants}");
    let seen = Seen {
        periods: periods as f64,
        throttled: throttled as f64,
        status: status(&proxy),
        metrics: proxy.get("/metrics").1,
        log: proxy.process().output(),
    };
    println!("{name}: stopped in {throttled} of {periods} periods; {}", seen.status);
    drop((crowd, proxy));
    Some(seen)
}

fn status(proxy: &Proxy) -> Value {
    let mut status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
    status["cpu_quota"].take()
}

fn metric(seen: &Seen, name: &str) -> f64 {
    let value = seen.metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {}", seen.metrics))
}

#[test]
fn the_kernel_hardly_ever_stops_a_proxy_that_is_kept_busy() {
    // Whatever else the machine does decides when a worker looks at the clock again: one look of three shows what it can keep to.
    let mut looks = (0..LOOKS).map_while(|_| look("paced", QUOTA, ""));
    let Some(first) = looks.next() else { return };
    let kept = |seen: &Seen| seen.throttled <= seen.periods / 4.0;
    let seen =
        if kept(&first) { first } else { looks.find(kept).expect("a look at which the kernel hardly ever stops it") };
    assert!(seen.status["waited_seconds"].as_f64().unwrap() > 0.0, "{}", seen.status);
    let aim = seen.status["aimed_at"].as_f64().unwrap();
    assert!((0.7..=0.965).contains(&aim), "{aim}");
    assert_eq!((&seen.status["quota_seconds"], &seen.status["period_seconds"]), (&json!(0.02), &json!(0.1)));
    assert_eq!(metric(&seen, "tollgate_cpu_quota_processors"), 0.2);
    assert!(metric(&seen, "tollgate_cpu_quota_wait_seconds_total") > 0.0);
    assert!(metric(&seen, "tollgate_cpu_quota_throttled_periods_total") <= seen.periods);
    assert!(seen.log.contains("workers keep below it"), "{}", seen.log);
}

#[test]
fn without_pacing_it_does_in_most_periods() {
    for (quota, top, why) in [
        (QUOTA, "limits: { cpu_quota: \"off\" }", "workers do not keep below it"),
        (QUOTA, "limits: { mode: shadow }", "workers do not keep below it"),
        (QUOTA - 1, "", "too little processor time for workers to keep below it"),
    ] {
        let Some(seen) = look("unpaced", quota, top) else { return };
        assert!(seen.throttled >= seen.periods * 0.6, "what the other test shows is not pacing: {}", seen.throttled);
        assert_eq!((&seen.status["aimed_at"], &seen.status["waited_seconds"]), (&Value::Null, &0.0.into()));
        assert!(seen.status["throttled_periods"].as_u64().unwrap() > 0, "{}", seen.status);
        assert!(seen.log.contains(why), "{}", seen.log);
    }
}
