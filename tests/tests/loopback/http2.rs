//! HTTP/2 with prior knowledge between Python's `h2` and grpcio, httpx, curl and h2load: each stream has its own
//! verdict, and passes with its frames' meaning unchanged.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tollgate::reason::Reason;
use tollgate_tests::http2;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::process::Process;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site, TCP_PORT};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

struct World {
    python: &'static Path,
    proxy: Proxy,
    upstream: Process,
    // Last, because its directory holds what the others wrote.
    site: Site,
}

impl World {
    /// `None` without Python.
    fn new() -> Option<Self> {
        let python = python()?;
        let site = Site::new();
        let (upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
        let proxy = Proxy::start(&site, address.parse().unwrap());
        Some(Self { python, proxy, upstream, site })
    }

    fn address(&self) -> String {
        self.proxy.http().to_string()
    }

    /// Runs a scenario of `h2_client.py` to its end.
    fn client(&self, scenario: &str) -> Value {
        script::run(self.python, &self.site, "h2_client.py", &[scenario, &self.address()])
    }

    /// Starts a scenario, and returns it once it says that it is ready.
    fn start(&self, scenario: &str) -> Process {
        let (client, ready) = script::serve(self.python, &self.site, "h2_client.py", &[scenario, &self.address()]);
        assert_eq!(ready, "ready");
        client
    }

    /// What the upstream saw, as it told it.
    fn events(&self) -> Vec<Value> {
        self.upstream.output().lines().skip(1).map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

/// The result of a scenario that was started.
fn result(mut client: Process) -> Value {
    let status = client.wait();
    let output = client.output();
    assert!(status.success(), "{status}: {output}");
    serde_json::from_str(output.lines().last().unwrap()).unwrap()
}

fn statuses(answers: &Value) -> Vec<u64> {
    answers.as_array().unwrap().iter().map(|answer| answer["status"].as_u64().unwrap()).collect()
}

#[test]
fn each_stream_has_its_own_verdict() {
    let Some(world) = World::new() else { return };
    let seen = world.client("verdicts");
    for answers in [&seen["one_by_one"], &seen["at_once"]] {
        assert_eq!(statuses(answers), [200, 403, 200, 403, 403, 200]);
        assert_eq!(answers[1]["body"], "Access denied\r\n");
    }
    assert_eq!(seen["goaway"], json!([]), "the connection stays");
    let asked: Vec<_> = world.events().iter().map(|event| event["request"].clone()).collect();
    assert_eq!(asked, vec![json!("/allowed/x"); 6]);
    let flows = world.proxy.expect_flows(12);
    let denied = flows.iter().filter(|flow| flow["reason"] == Reason::RequestNotAllowed.code()).count();
    assert_eq!(denied, 6);
}

#[test]
fn fields_pass_unchanged() {
    let Some(world) = World::new() else { return };
    let seen = world.client("fields");
    assert_eq!(seen["received"], seen["sent"]);
    assert_eq!(seen["answer"], json!([[":status", "200"]]));
}

#[test]
fn bodies_stream_both_ways_with_trailers() {
    let Some(world) = World::new() else { return };
    let seen = world.client("streaming");
    assert_eq!(seen["end"], "end");
    // Without those that decide something.
    assert_eq!(seen["trailers"], json!([["x-sum", "7"], ["x-other", "8"]]));
    let flows = world.proxy.expect_flows(1);
    assert_eq!((&flows[0]["bytes_up"], &flows[0]["bytes_down"]), (&json!(1006), &json!(1006)));
}

#[test]
fn interim_responses_pass() {
    let Some(world) = World::new() else { return };
    let seen = world.client("interim");
    assert_eq!(seen["interim"], json!([[[":status", "103"], ["link", "</a>"]]]));
    assert_eq!((&seen["status"], &seen["body"]), (&json!(200), &json!("ok")));
}

#[test]
fn resets_pass_with_their_codes() {
    let Some(world) = World::new() else { return };
    let seen = world.client("resets");
    assert_eq!((&seen["middle"]["status"], &seen["middle"]["end"]), (&json!(200), &json!(2)));
    assert_eq!((&seen["instead"]["status"], &seen["instead"]["end"]), (&json!(null), &json!(7)), "REFUSED_STREAM");
    assert_eq!(seen["after"]["status"], 200);
    until("the client's reset at the upstream", || {
        world.events().contains(&json!({"reset": 8, "path": "/allowed/hang"})).then_some(())
    });
    for reason in [Reason::UpstreamTruncated, Reason::UpstreamReset, Reason::DownstreamReset] {
        world.proxy.expect_reason(reason);
    }
}

#[test]
fn an_upstream_that_goes_away_in_order_is_replaced() {
    let Some(world) = World::new() else { return };
    assert_eq!(statuses(&world.client("upstream_goaway")), [200; 4]);
}

#[test]
fn an_early_answer_comes_whole() {
    let Some(world) = World::new() else { return };
    let seen = world.client("early_answer");
    assert_eq!((&seen["early"]["status"], &seen["early"]["body"]), (&json!(200), &json!("ok")));
    assert_eq!(seen["after"]["status"], 200);
}

#[test]
fn an_upstream_without_http_2_is_a_failure_with_a_reason() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_until(b"SM\r\n\r\n");
        peer.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    });
    let proxy = Proxy::start(&site, upstream.address());
    let seen = script::run(python, &site, "h2_client.py", &["interim", &proxy.http().to_string()]);
    assert_eq!(seen["status"], 503, "{seen}");
    proxy.expect_reason(Reason::UpstreamReset);
}

/// Back-pressure from end to end, per stream, without buffering.
#[test]
fn whoever_does_not_read_is_waited_for() {
    let Some(mut world) = World::new() else { return };
    let (_, before) = world.proxy.process().memory();
    let seen = world.client("slow_reader");
    assert_eq!((&seen["stalled"], &seen["other"], &seen["end"]), (&json!(65535), &json!(200), &json!("end")));
    assert_eq!(seen["received"], seen["total"]);
    let seen = world.client("slow_upstream");
    assert!(seen["stalled"].as_u64() < Some(2 << 20), "{seen}");
    assert_eq!((&seen["received"], &seen["other"]), (&seen["total"], &json!(200)));
    let (_, after) = world.proxy.process().memory();
    assert!(after - before < 8 << 10, "memory at most {before} KiB before, {after} KiB after");
}

#[test]
fn draining_lets_open_streams_end() {
    let Some(mut world) = World::new() else { return };
    let client = world.start("drain");
    world.proxy.process().signal(Signal::TERM);
    let seen = result(client);
    assert_eq!((&seen["answer"]["body"], &seen["answer"]["end"]), (&json!("before after"), &json!("end")));
    assert!(seen["goaway"].as_array().unwrap().iter().all(|code| code == 0), "{seen}");
    assert_eq!(seen["closed"], "closed");
    assert_eq!(world.proxy.wait().code(), Some(0));
}

#[test]
fn policy_that_changes_ends_the_streams_that_it_no_longer_allows() {
    let Some(world) = World::new() else { return };
    let client = world.start("revoked");
    let rule = http_rule(".*", "/allowed/kept/.*");
    world.proxy.push(&[ingress(&world.site, json!([http_port(HTTP_PORT, &[rule])]))]);
    let seen = result(client);
    assert_eq!((&seen["ended"]["status"], &seen["ended"]["end"]), (&json!(200), &json!(8)));
    assert_eq!((&seen["kept"]["body"], &seen["kept"]["end"]), (&json!("ab"), &json!("end")));
    assert_eq!(seen["next"]["status"], 403);
    assert_eq!(seen["goaway"], json!([]));
    world.proxy.expect_reason(Reason::Revoked);
}

#[test]
fn a_connection_whose_port_is_closed_gets_one_last_answer() {
    let Some(world) = World::new() else { return };
    let client = world.start("closed_port");
    world.proxy.push(&[ingress(&world.site, json!([{"port": TCP_PORT}]))]);
    let seen = result(client);
    assert_eq!((&seen["first"]["status"], &seen["last"]["status"]), (&json!(200), &json!(403)));
    assert_eq!(seen["closed"], "closed");
    assert!(!seen["goaway"].as_array().unwrap().is_empty(), "{seen}");
}

#[test]
fn httpx_and_curl_and_h2load_get_through() {
    let Some(world) = World::new() else { return };
    let seen = world.client("httpx");
    let denied = "request_not_allowed";
    assert_eq!(
        seen,
        json!([
            ["HTTP/2", 200, 2, null],
            ["HTTP/2", 403, 15, denied],
            ["HTTP/2", 200, 2, null],
            ["HTTP/2", 200, 100_000, null]
        ])
    );

    let url = |path: &str| format!("http://{}{path}", world.address());
    for (path, expected) in [("/allowed/x", "ok2 200"), ("/denied", "Access denied\r\n2 403")] {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--http2-prior-knowledge"])
            .args(["--write-out", "%{http_version} %{http_code}", &url(path)])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, expected, "{}", String::from_utf8_lossy(&output.stderr));
    }

    let output = Command::new("h2load")
        .args(["--requests", "600", "--clients", "3", "--max-concurrent-streams", "20"])
        .args([url("/allowed/x"), url("/denied")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("600 total, 600 started, 600 done"), "{text}");
    assert!(text.contains("0 errored, 0 timeout"), "{text}");
    assert!(text.contains("300 2xx, 0 3xx, 300 4xx, 0 5xx"), "{text}");
}

#[test]
fn grpc_calls_pass_or_are_told_permission_denied() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "grpc_peer.py", &["serve", &site.ip().to_string()]);
    let upstream: SocketAddr = address.parse().unwrap();
    let policy = ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("POST", r"/test\.Echo/.*")])]));
    let proxy = Proxy::with(&site, upstream, &Options::default(), std::slice::from_ref(&policy));
    let call = |proxy: &Proxy| script::run(python, &site, "grpc_peer.py", &["call", &proxy.http().to_string()]);
    let seen = call(&proxy);
    assert_eq!(seen["unary"], json!(["OK", "hello"]));
    assert_eq!(seen["stream"], json!(["OK", "1 [1, 2, 100000] 2"]));
    assert_eq!(seen["fail"], json!(["ABORTED", "as asked"]));
    for denied in ["denied", "denied_stream"] {
        assert_eq!(seen[denied], json!(["PERMISSION_DENIED", "request_not_allowed"]), "{denied}");
    }
    assert_eq!(seen["after"], json!(["OK", "again"]));
}

#[test]
fn grpc_is_told_that_the_upstream_is_unavailable() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let policy = ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("POST", r"/test\.Echo/.*")])]));
    let proxy = Proxy::with(&site, site.at(25099), &Options::default(), &[policy]);
    let seen = script::run(python, &site, "grpc_peer.py", &["call", &proxy.http().to_string()]);
    assert_eq!(seen["unary"], json!(["UNAVAILABLE", "upstream_connect"]));
    assert_eq!(seen["denied"][0], "PERMISSION_DENIED");
    proxy.expect_reason(Reason::UpstreamConnect);
}

/// Rows 95–111 of the bad-input matrix, and those of HTTP/1 that HTTP/2 can express.
#[test]
fn malformed_requests_end_before_the_upstream() {
    let Some(world) = World::new() else { return };
    let rules = [http_rule(".*", r"\*|/allowed.*"), http_rule("GET", "/get-only")];
    world.proxy.push(&[ingress(&world.site, json!([http_port(HTTP_PORT, &rules)]))]);
    let seen = script::run(world.python, &world.site, "h2_malformed.py", &[&world.address()]);
    let mut wrong = Vec::new();
    for row in seen.as_array().unwrap() {
        let (number, name, outcome) = (row[0].as_u64().unwrap(), row[1].as_str().unwrap(), &row[2]);
        let fine = match (number, outcome.as_u64()) {
            (54 | 69, status) => status == Some(403),
            (70, status) => status == Some(307),
            // The h2 crate cuts a fragment off before anybody sees it: what is judged is what is forwarded.
            (100, status) => status == Some(200),
            // Forwarded as http.
            (107, Some(200)) => name == "scheme ftp",
            // The h2 crate drops pseudo fields of trailers.
            (109, status) => status == Some(200),
            (_, Some(status)) => matches!(status, 400 | 405 | 431),
            // A reset of the stream, GOAWAY, or both overtaken by the close.
            (_, None) => true,
        };
        if !fine || row[3] != true {
            wrong.push(format!("row {number} ({name}): {outcome}, next request answered: {}", row[3]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    world.proxy.expect_reason(Reason::PathRedirect);
    let record = world.proxy.expect_reason(Reason::BadAuthority);
    assert!(record["detail"].is_string(), "{record}");
    // What reached the upstream are the good requests, bodies that broke later, and the two rows above.
    let asked: BTreeSet<_> =
        world.events().iter().filter_map(|event| event["request"].as_str().map(str::to_owned)).collect();
    assert_eq!(asked, ["/allowed", "/allowed/good", "/allowed/rest", "/allowed/row"].map(str::to_owned).into());
}

/// Not one time-out after the other.
#[test]
fn requests_that_wait_for_one_connect_share_its_failure() {
    const STREAMS: u32 = 20;
    let site = Site::new();
    // A queue that is full answers no one.
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    silent.bind(&site.at(0).into()).unwrap();
    silent.listen(0).unwrap();
    let address = silent.local_addr().unwrap().as_socket().unwrap();
    let _queued = std::net::TcpStream::connect(address).unwrap();
    let options = Options { listener: "reason_header: true, connect_timeout: 300ms".into(), ..Options::default() };
    let proxy = Proxy::with(&site, address, &options, &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    let requests: Vec<u8> = (0..STREAMS).flat_map(|n| http2::get(2 * n + 1)).collect();
    client.send([http2::CLIENT_START, &requests].concat());
    for flow in proxy.expect_flows(STREAMS as usize) {
        assert_eq!(flow["reason"], Reason::UpstreamConnect.code(), "{flow}");
    }
    let (_, metrics) = proxy.get("/metrics");
    assert!(metrics.contains("tollgate_upstream_connects_total{result=\"timeout\"} 1\n"), "{metrics}");
}
