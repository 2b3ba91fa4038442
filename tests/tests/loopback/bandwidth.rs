//! Tenants that may move so many bytes a second: whoever moves more is slowed down to that, exactly, and nothing else happens to
//! anybody. All bounds are about the time that was measured, whatever that is.

use std::net::IpAddr;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_tests::http2::{CLIENT_START, big_get, frame};
use tollgate_tests::peer::{Message, Peer};
use tollgate_tests::policy::{http_rule, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site, TCP_PORT};
use tollgate_tests::upstream::{OK, Upstream, WEBSOCKET_ACCEPTED, next_request, websocket_request};
use tollgate_tests::wait::until;

use super::tenants::{client_address, connect, message, metric, set_tenants, with_python};

/// Of the paced tenant.
const RATE: u64 = 256 << 10;
pub(crate) const BURST: u64 = 64 << 10;
pub(crate) const CEILING: &str = "ceilings: { bytes: { per_second: 256KiB, burst: 64KiB } }";
/// What is moved: about a second's worth beyond the burst.
const SIZE: u64 = 320 << 10;
pub(crate) const PATTERN: &[u8] = b"0123456789abcdefg";
/// A rate at which nothing that is asked for here arrives.
pub(crate) const CRAWL: &str = "ceilings: { bytes: { per_second: 1KiB, burst: 16KiB } }";

pub(crate) fn policy(endpoint: u64, address: IpAddr) -> Value {
    json!({
        "endpointIps": [address.to_string()],
        "endpointId": endpoint.to_string(),
        "egressPerPortPolicies": [
            {"port": HTTP_PORT, "rules": [{"httpRules": {"httpRules": [http_rule("GET|POST", "/allowed.*")]}}]},
            {"port": TCP_PORT},
        ],
    })
}

/// A proxy with a tenant `busy` that has settings, and `endpoint-8`, which has none.
pub(crate) struct Two {
    pub(crate) proxy: Proxy,
    pub(crate) busy: IpAddr,
    pub(crate) calm: IpAddr,
}

impl Two {
    pub(crate) fn start(site: &Site, upstream: &Upstream, settings: &str, listener: &str) -> Self {
        Self::with(site, upstream, settings, listener, "")
    }

    pub(crate) fn with(site: &Site, upstream: &Upstream, settings: &str, listener: &str, top: &str) -> Self {
        let (busy, calm) = (client_address(site, 1), client_address(site, 2));
        let group = format!("{{ name: busy, members: {{ endpoint_ids: [7] }}, {settings} }}");
        let top = format!("tenants: {{ groups: [{group}] }}\n{top}");
        let listener = listener.to_owned();
        let options = Options { direction: "egress", top, listener, workers: 2, ..Options::default() };
        let proxy = Proxy::with(site, upstream.address(), &options, &Self::policies(busy, calm));
        Self { proxy, busy, calm }
    }

    fn policies(busy: IpAddr, calm: IpAddr) -> [NetworkPolicy; 2] {
        [message(policy(7, busy)), message(policy(8, calm))]
    }

    /// The records of a tenant, once there are so many.
    pub(crate) fn records(&self, tenant: &str, count: usize) -> Vec<Value> {
        until("the records", || {
            let all = self.proxy.flows().into_iter();
            let records: Vec<Value> = all.filter(|flow| flow["tenant"] == tenant).collect();
            (records.len() >= count).then_some(records)
        })
    }

    /// So many exchanges were held back, by the metrics and by their records, and nothing else happened to them.
    fn expect_paced(&self, exchanges: usize) {
        let records = self.records("busy", exchanges);
        for record in &records {
            let (held_back, duration) = (record["paced_us"].as_u64().unwrap(), record["duration_us"].as_u64().unwrap());
            assert!(held_back > 0 && held_back <= duration, "{record}");
            assert_eq!(record["paced_by"], Reason::TenantBandwidth.code(), "{record}");
            assert_eq!((&record["verdict"], &record["reason"]), (&json!("FORWARDED"), &Value::Null), "{record}");
        }
        assert_eq!(paced(&self.proxy, "busy"), exchanges as u64);
        assert!(self.proxy.metric("tollgate_tenant_paced_seconds_total{tenant=\"busy\"}") > 0.0);
        assert!(!self.proxy.get("/metrics").1.contains("tollgate_tenant_refusals_total{tenant=\"busy\""));
    }

    /// The neighbour moves as much, and is not held back.
    fn neighbour_is_not_paced(&self, exchange: impl Fn(IpAddr)) {
        exchange(self.calm);
        for record in self.records("endpoint-8", 1) {
            assert_eq!((&record["paced_us"], &record["verdict"]), (&Value::Null, &json!("FORWARDED")), "{record}");
        }
        assert_eq!(paced(&self.proxy, "endpoint-8"), 0);
    }
}

/// What no stretch of time that began at `began` may exceed.
fn expect_within_rate(bytes: u64, began: Instant) {
    let given = began.elapsed().as_secs_f64() * RATE as f64 + BURST as f64;
    assert!(bytes as f64 <= given, "{bytes} of {given}");
}

/// Exchanges that were held back; shown once there is one.
pub(crate) fn paced(proxy: &Proxy, tenant: &str) -> u64 {
    let series = format!("tollgate_tenant_paced_total{{tenant=\"{tenant}\"}} ");
    let scrape = proxy.get("/metrics").1;
    scrape.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
}

pub(crate) fn request(method: &str, path: &str, length: u64) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

pub(crate) fn ask(client: &mut Peer, request: &str) -> Message {
    client.send(request);
    client.read_message()
}

/// Answers with as many bytes as the path ends with, chunked if it says so, and with what it was sent after taking that.
pub(crate) fn serving(site: &Site) -> Upstream {
    Upstream::scripted(site, |peer, _| {
        peer.stop_recording();
        while peer.wait_for_bytes() {
            let head = peer.read_head();
            let target = head.split(' ').nth(1).unwrap_or_default();
            let size: u64 = target.rsplit('/').next().and_then(|size| size.parse().ok()).unwrap_or_default();
            if head.starts_with("POST") {
                peer.expect_repeated(PATTERN, size);
                peer.send(OK);
            } else if target.contains("/chunked/") {
                peer.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n"));
                peer.send_repeated(PATTERN, size);
                peer.send("\r\n0\r\n\r\n");
            } else {
                peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
                // A client that is cut off takes no more.
                let _ = peer.try_send(PATTERN.iter().cycle().take(size as usize).copied().collect::<Vec<u8>>());
            }
        }
    })
}

pub(crate) fn download(client: &mut Peer, size: u64) {
    client.send(get(&format!("/allowed/{size}")));
    assert_eq!(tollgate_tests::peer::status(&client.read_head()), 200);
    client.expect_repeated(PATTERN, size);
}

fn upload(client: &mut Peer, size: u64) {
    client.send(request("POST", &format!("/allowed/{size}"), size));
    client.send_repeated(PATTERN, size);
    assert_eq!(client.read_message().status(), 200);
}

#[test]
fn bodies_go_at_the_tenants_pace_both_ways_together() {
    let site = Site::new();
    let upstream = serving(&site);
    let two = Two::start(&site, &upstream, CEILING, "");
    let began = Instant::now();
    let client = |exchange: fn(&mut Peer, u64)| {
        let mut client = connect(two.busy, two.proxy.http());
        thread::spawn(move || exchange(&mut client, SIZE / 2))
    };
    // On connections of both workers; none is left behind.
    let clients = [client(download), client(upload), client(download), client(upload)];
    two.neighbour_is_not_paced(|calm| {
        let mut client = connect(calm, two.proxy.http());
        download(&mut client, 4 * SIZE);
        upload(&mut client, 4 * SIZE);
    });
    for client in clients {
        client.join().unwrap();
    }
    expect_within_rate(2 * SIZE, began);
    two.expect_paced(4);
}

#[test]
fn chunks_pass_as_they_came() {
    let site = Site::new();
    let upstream = serving(&site);
    let two = Two::start(&site, &upstream, CEILING, "");
    let (began, mut client) = (Instant::now(), connect(two.busy, two.proxy.http()));
    let answer = ask(&mut client, &get(&format!("/allowed/chunked/{SIZE}")));
    expect_within_rate(SIZE, began);
    assert!(answer.body.iter().eq(PATTERN.iter().cycle().take(SIZE as usize)));
    assert_eq!(ask(&mut client, &get("/allowed/3")).body, b"012", "the connection goes on");
    assert_eq!(two.records("busy", 2)[0]["bytes_down"].as_u64().unwrap(), SIZE + "50000\r\n\r\n0\r\n\r\n".len() as u64);
}

/// Also trailers that do not pass: they came.
#[test]
fn trailers_and_extensions_of_chunks_have_the_same_pace() {
    const MESSAGES: usize = 20;
    let site = Site::new();
    let section = format!("0\r\nx-sum: {}\r\n\r\n", "s".repeat(7000));
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{section}");
    let upstream = Upstream::scripted(&site, move |peer, _| {
        while next_request(peer).is_some() {
            peer.send(&answer);
        }
    });
    let two = Two::start(&site, &upstream, CEILING, "");
    let body = format!("1;{}\r\na\r\n{section}", "e".repeat(7000));
    let exchange = |from: IpAddr| {
        let mut client = connect(from, two.proxy.http());
        for trailer in ["Trailer: x-sum\r\n", ""].repeat(MESSAGES / 2) {
            let head = format!("POST /allowed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{trailer}\r\n");
            assert_eq!(ask(&mut client, &(head + &body)).trailers.len() + "0\r\n\r\n".len(), section.len());
        }
    };
    let began = Instant::now();
    exchange(two.busy);
    expect_within_rate((MESSAGES * (body.len() + section.len())) as u64, began);
    for record in two.records("busy", MESSAGES) {
        assert_eq!(
            (&record["bytes_up"], &record["bytes_down"]),
            (&json!(body.len()), &json!(section.len())),
            "{record}"
        );
    }
    assert!(paced(&two.proxy, "busy") > 0);
    two.neighbour_is_not_paced(exchange);
    // One of each two was announced.
    let passed = upstream.text().matches("x-sum: s").count();
    assert_eq!(passed, MESSAGES, "half of both tenants' requests");
}

#[test]
fn http_2_has_the_same_pace() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let top = format!("tenants: {{ groups: [{{ name: busy, members: {{ endpoint_ids: [7] }}, {CEILING} }}] }}\n");
    let options = Options { top, ..Options::default() };
    let proxy = Proxy::with(&site, address.parse().unwrap(), &options, &[usual(&site)]);
    let began = Instant::now();
    let seen = script::run(python, &site, "h2_client.py", &["bulk", &proxy.http().to_string()]);
    expect_within_rate(3 * 200_000, began);
    assert_eq!(seen, json!([[200, 200_000, "end"], [200, 200_000, "end"]]));
    for record in proxy.expect_flows(2) {
        assert!(record["paced_us"].as_u64().is_some_and(|time| time > 0), "{record}");
    }
    assert_eq!(paced(&proxy, "busy"), 2);
    until("nothing to be held", || (metric(&proxy, "memory_bytes", "tenant=\"busy\"") == 0).then_some(()));
}

#[test]
fn connections_that_pass_as_bytes_have_the_same_pace() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.expect_repeated(PATTERN, SIZE / 2);
        peer.send_repeated(PATTERN, SIZE / 2);
    });
    let two = Two::start(&site, &upstream, CEILING, "");
    let exchange = |from: IpAddr| {
        let mut client = connect(from, two.proxy.tcp());
        client.send_repeated(PATTERN, SIZE / 2);
        client.finish_sending();
        client.expect_repeated(PATTERN, SIZE / 2);
        assert_eq!(client.read_to_end(), b"");
    };
    let began = Instant::now();
    exchange(two.busy);
    expect_within_rate(SIZE, began);
    two.expect_paced(1);
    two.neighbour_is_not_paced(exchange);
}

#[test]
fn websockets_have_the_same_pace() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send(WEBSOCKET_ACCEPTED);
        peer.expect_repeated(PATTERN, SIZE / 2);
        peer.send_repeated(PATTERN, SIZE / 2);
    });
    let two = Two::start(&site, &upstream, CEILING, "");
    let exchange = |from: IpAddr| {
        let mut client = connect(from, two.proxy.http());
        client.send(websocket_request("/allowed"));
        assert_eq!(client.read_head(), WEBSOCKET_ACCEPTED);
        client.send_repeated(PATTERN, SIZE / 2);
        client.expect_repeated(PATTERN, SIZE / 2);
    };
    let began = Instant::now();
    exchange(two.busy);
    expect_within_rate(SIZE, began);
    two.expect_paced(1);
    two.neighbour_is_not_paced(exchange);
}

#[test]
fn shadow_holds_nobody_back() {
    let site = Site::new();
    let upstream = serving(&site);
    let two = Two::start(&site, &upstream, &format!("shadow: true, {CRAWL}"), "");
    let mut client = connect(two.busy, two.proxy.http());
    // It would be hours.
    download(&mut client, 4 << 20);
    upload(&mut client, 4 << 20);
    assert_eq!(ask(&mut client, &get("/allowed/0")).status(), 200);
    for record in two.records("busy", 3) {
        assert_eq!((&record["paced_us"], &record["reason"]), (&Value::Null, &Value::Null), "{record}");
    }
    let marks = two.records("busy", 3).into_iter().map(|record| record["would_limit"].clone());
    let mark = json!(Reason::TenantBandwidth.code());
    assert_eq!(marks.collect::<Vec<_>>(), [mark.clone(), mark, Value::Null]);
    let labels = format!("tenant=\"busy\",reason=\"{}\"", Reason::TenantBandwidth.code());
    assert_eq!(metric(&two.proxy, "shadow_refusals_total", &labels), 2, "each exchange once");
    assert_eq!(paced(&two.proxy, "busy"), 0);
}

/// Who waits for us is not idle.
#[test]
fn nobody_is_cut_off_for_being_held_back() {
    let site = Site::new();
    let upstream = serving(&site);
    // Pieces come half a second apart.
    let limits = "http: { stream_idle_timeout: 200ms, timeout: 200ms }, tcp_idle_timeout: 200ms";
    let two = Two::start(&site, &upstream, CRAWL, limits);
    download(&mut connect(two.busy, two.proxy.http()), (16 << 10) + 1500);
    download(&mut connect(two.busy, two.proxy.tcp()), 1500);
    assert_eq!(paced(&two.proxy, "busy"), 2);
}

/// Streams of a connection share its windows, so one that is held back holds up others.
#[test]
fn no_stream_is_cut_off_for_another_that_is_held_back() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let ceiling = "ceilings: { bytes: { per_second: 16KiB, burst: 16KiB } }";
    let top = format!("tenants: {{ groups: [{{ name: busy, members: {{ endpoint_ids: [7] }}, {ceiling} }}] }}\n");
    let options = Options { top, listener: "http: { stream_idle_timeout: 1s }".into(), ..Options::default() };
    let proxy = Proxy::with(&site, address.parse().unwrap(), &options, &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    client.send(CLIENT_START);
    // Windows without an end, so that what comes is held back by nobody but us.
    client.send(frame(4, 0, 0, b"\0\x04\x7f\xff\xff\xff"));
    client.send(frame(8, 0, 0, b"\x7f\xff\0\0"));
    for n in 0..16 {
        client.send(big_get(2 * n + 1, "/allowed/big/250000", 1));
    }
    // Much longer than anybody may be idle, at this rate.
    client.read_exact(64 << 10);
    assert_eq!(proxy.flows(), Vec::<Value>::new(), "nothing has ended");
    let held = metric(&proxy, "memory_bytes", "tenant=\"busy\"");
    assert!((512 << 10..2 << 20).contains(&held), "{held} bytes: the window of a connection, and little more");
    drop(client);
    until("nothing to be held", || (metric(&proxy, "memory_bytes", "tenant=\"busy\"") == 0).then_some(()));
}

#[test]
fn a_rate_that_changes_counts_for_what_waits() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = serving(&site);
    let one = client_address(&site, 1);
    let (mut control, proxy) = with_python(&site, python, &[policy(7, one)], upstream.address());
    let team = |ceilings: Value| json!([{"name": "team", "members": {"endpointIds": ["7"]}, "ceilings": ceilings}]);
    set_tenants(&mut control, "1", &team(json!({"bytes": {"perSecond": "1", "burst": "1"}})));
    let clients = [0; 3].map(|_| {
        let mut client = connect(one, proxy.http());
        thread::spawn(move || download(&mut client, SIZE))
    });
    until("all to wait", || (paced(&proxy, "team") == 3).then_some(()));
    // At the old rate the next byte would come in hours.
    set_tenants(&mut control, "2", &team(json!({"bytes": {"perSecond": "1048576", "burst": "65536"}})));
    for client in clients {
        client.join().unwrap();
    }
    set_tenants(&mut control, "3", &team(json!({"bytes": {"perSecond": "1", "burst": "1"}})));
    let mut client = connect(one, proxy.http());
    let client = thread::spawn(move || download(&mut client, SIZE));
    until("it to wait", || (paced(&proxy, "team") == 4).then_some(()));
    set_tenants(&mut control, "4", &json!([]));
    client.join().unwrap();
}

#[test]
fn what_waits_is_cut_when_policy_says_so() {
    let site = Site::new();
    let upstream = serving(&site);
    let two = Two::start(&site, &upstream, CRAWL, "");
    let mut clients = [two.proxy.http(), two.proxy.tcp()].map(|address| connect(two.busy, address));
    for (client, waiting) in clients.iter_mut().zip([1, 2]) {
        client.send(get(&format!("/allowed/{SIZE}")));
        until("it to wait", || (paced(&two.proxy, "busy") == waiting).then_some(()));
    }
    two.proxy.push(&[message(json!({"endpointIps": [two.busy.to_string()], "endpointId": "7"}))]);
    for client in &mut clients {
        let (bytes, end) = client.read_to_any_end();
        assert_eq!(end, tollgate_tests::peer::End::Reset);
        assert!(bytes.len() < SIZE as usize);
    }
    for record in two.records("busy", 2) {
        assert_eq!((&record["verdict"], &record["reason"]), (&json!("DROPPED"), &json!("revoked")), "{record}");
        assert!(record["paced_us"].as_u64().is_some_and(|time| time > 0), "{record}");
    }
}
