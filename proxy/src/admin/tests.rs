use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;
use crate::explanation::{self, Enforced};
use crate::flow::{self, FlowRecord, FlowSender, FlowSettings, FlowThread, Outcome};

struct Process(Arc<Mutex<Vec<String>>>);

impl Views for Process {
    fn status(&self) -> Map<String, Value> {
        Map::from_iter([("generation".to_owned(), json!(7))])
    }

    fn config_dump(&self) -> Value {
        json!({
            "configuration": { "workers": 1 },
            "clusters": ["egress-cluster"],
            "routes": ["ns/routes"],
            "endpoints": ["ns/svc:80"],
            "listeners": [{ "name": "cilium-http-egress", "proxy_id": 7 }],
            "networkpolicies": [{ "endpointId": "69" }],
        })
    }

    fn tenants(&self, endpoints: bool) -> Value {
        json!({ "tenants": [{ "name": "team-a", "endpoints": endpoints.then_some([69]) }] })
    }

    fn clusters(&self) -> Vec<String> {
        vec!["egress-cluster".into()]
    }

    fn explain(&self, asked: &Asked) -> Result<Explained, String> {
        let enforced = Enforced {
            policies: &tollgate_policy::Snapshot::empty(),
            secrets: &tollgate_policy::Secrets::default(),
            normalize: &crate::config::Normalize::default(),
            forwarded_proto: crate::config::ForwardedProto::Keep,
            proxy_id: 0,
            places: &Default::default(),
            reference: None,
            offline: false,
        };
        explanation::explain(asked, &enforced).map_err(|error| error.to_string())
    }

    fn listeners(&self) -> Vec<BoundListener> {
        let addresses = vec![([127, 0, 0, 1], 15001).into(), "[::1]:15001".parse().unwrap()];
        vec![BoundListener { name: "ingress".into(), addresses }]
    }
}

impl Actions for Process {
    fn drain(&self) {
        self.0.lock().unwrap().push("drain".into());
    }

    fn quit(&self) {
        self.0.lock().unwrap().push("quit".into());
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        if level == "debug" { Ok(()) } else { Err(format!("no level {level}")) }
    }
}

/// A served Unix socket with a worker's flow sender behind it.
struct World {
    socket: PathBuf,
    sender: FlowSender,
    state: Arc<AdminState>,
    asked: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
    flows: Option<FlowThread>,
    _directory: TempDir,
}

impl World {
    fn new(surface: Surface) -> Self {
        let (metrics, workers) = Metrics::new(1);
        let (mut senders, consumer) = flow::channel(workers, 64);
        let flows = consumer.spawn(&FlowSettings { recent_records: 8, ..FlowSettings::default() }).unwrap();
        let asked = Arc::default();
        let state = Arc::new(AdminState {
            node: Node { id: "host~127.0.0.1~no-id~localdomain".into(), cluster: "ingress-cluster".into() },
            reported_version: Some("d1c4f0ba/1.2.3".into()),
            started: Instant::now(),
            readiness: Readiness::default(),
            metrics: Arc::new(metrics),
            flows: flows.log(),
            views: Box::new(Process(Arc::clone(&asked))),
            actions: Box::new(Process(Arc::clone(&asked))),
            followers: AdminState::follower_slots(),
        });
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let bound = bind(&ListenAddress::Unix(socket.clone())).unwrap();
        let server = tokio::spawn(serve(bound, surface, Arc::clone(&state)));
        Self { socket, sender: senders.remove(0), state, asked, server, flows: Some(flows), _directory: directory }
    }

    fn curl(&self, arguments: &[&str]) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-N", "--max-time", "60", "--unix-socket"]).arg(&self.socket).args(arguments);
        curl
    }

    /// Status and body.
    async fn ask(&self, path: &str, arguments: &[&str]) -> (u16, String) {
        let url = format!("http://admin{path}");
        let mut curl = self.curl(&["-w", "%{http_code}", &url]);
        curl.args(arguments);
        let output = spawn_blocking(move || curl.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut body = String::from_utf8(output.stdout).unwrap();
        let status = body.split_off(body.len() - 3).parse().unwrap();
        (status, body)
    }

    async fn get_json(&self, path: &str) -> Value {
        let (status, body) = self.ask(path, &[]).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    fn send(&self, outcome: Outcome) {
        self.sender.send(Box::new(FlowRecord::for_test(outcome)));
    }

    /// Waits until the flow thread has taken everything sent so far.
    fn settle_flows(&mut self) {
        assert!(self.flows.take().unwrap().shutdown(Duration::from_secs(60)));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tokio::test]
async fn readiness_names_what_is_awaited() {
    for surface in [Surface::Admin, Surface::Health] {
        let world = World::new(surface);
        let pending = world.state.readiness.pending("first policy");
        assert_eq!(world.ask("/ready", &[]).await, (503, "not ready: first policy\n".into()));
        assert_eq!(world.ask("/healthz", &[]).await, (200, "not ready: first policy\n".into()));
        drop(pending);
        assert_eq!(world.ask("/ready", &[]).await, (200, "LIVE\n".into()));
        world.state.readiness.start_draining();
        assert_eq!(world.ask("/ready", &[]).await, (503, "not ready: draining\n".into()));
    }
}

/// What is not marked would go out under another identity, so nothing does; then nobody should send us more.
#[tokio::test]
async fn without_the_privilege_to_mark_nobody_is_ready() {
    let world = World::new(Surface::Admin);
    let worker = world.sender.metrics();
    assert!(worker.upstream_permitted(false) && !worker.upstream_permitted(false), "news only once");
    let why = "not ready: the privilege to mark upstream sockets (CAP_NET_ADMIN)\n";
    assert_eq!(world.ask("/ready", &[]).await, (503, why.into()));
    let status = world.get_json("/status").await;
    assert_eq!((&status["ready"], status["waiting_for"].as_array().unwrap().len()), (&json!(false), 1));
    worker.upstream_permitted(true);
    assert_eq!(world.ask("/ready", &[]).await, (200, "LIVE\n".into()));
}

#[tokio::test]
async fn views_are_shown() {
    let world = World::new(Surface::Admin);
    let status = world.get_json("/status").await;
    assert_eq!(status["generation"], 7);
    assert_eq!(status["ready"], true);
    let info = world.get_json("/server_info").await;
    assert_eq!((&info["version"], &status["version"]), (&json!("d1c4f0ba/1.2.3"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!(info["state"], "LIVE");
    assert_eq!(info["node"]["id"], "host~127.0.0.1~no-id~localdomain");
    assert_eq!(world.ask("/listeners", &[]).await.1, "ingress::127.0.0.1:15001\ningress::[::1]:15001\n");
    let listeners = world.get_json("/listeners?format=json").await;
    let first = &listeners["listener_statuses"][0];
    assert_eq!(first["local_address"]["socket_address"], json!({ "address": "127.0.0.1", "port_value": 15001 }));
    assert_eq!(first["additional_local_addresses"][0]["socket_address"]["address"], "::1");
}

#[tokio::test]
async fn metrics_have_the_type_that_was_asked_for() {
    let world = World::new(Surface::Metrics);
    let print = ["-o", "/dev/null", "-w", "%{content_type}200"];
    let (_, classic) = world.ask("/metrics", &print).await;
    assert_eq!(classic, "text/plain; version=0.0.4; charset=utf-8");
    let openmetrics = ["-H", "accept: application/openmetrics-text; version=1.0.0"];
    let (_, open) = world.ask("/metrics", &[&print[..], &openmetrics].concat()).await;
    assert_eq!(open, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(world.ask("/metrics", &openmetrics).await.1.ends_with("# EOF\n"));
    assert_eq!(world.ask("/status", &[]).await.0, 404, "the metrics socket serves nothing else");
}

#[tokio::test]
async fn actions_need_post_and_no_browser() {
    let world = World::new(Surface::Admin);
    assert_eq!(world.ask("/drain", &[]).await, (405, "/drain takes POST\n".into()));
    let (_, headers) = world.ask("/ready", &["-X", "DELETE", "-i"]).await;
    assert!(headers.contains("allow: GET, HEAD\r\n"), "{headers}");
    assert_eq!(world.ask("/drain", &["-X", "POST", "-H", "origin: http://evil"]).await.0, 403);
    assert!(world.asked.lock().unwrap().is_empty());
    assert_eq!(world.ask("/drain", &["-X", "POST"]).await.0, 200);
    assert_eq!(world.ask("/quitquitquit", &["-X", "POST"]).await.0, 200);
    assert_eq!(*world.asked.lock().unwrap(), ["drain", "quit"]);
    assert_eq!(world.ask("/logging?level=debug", &["-X", "POST"]).await, (200, "log level: debug\n".into()));
    for (word, level) in [("warning", "warn"), ("critical", "error")] {
        let answer = world.ask(&format!("/logging?level={word}"), &["-X", "POST"]).await;
        assert_eq!(answer, (400, format!("no level {level}\n")), "an agent says it in Envoy's words");
    }
    assert_eq!(world.ask("/logging?level=loud", &["-X", "POST"]).await, (400, "no level loud\n".into()));
    assert_eq!(world.ask("/logging", &["-X", "POST"]).await.0, 400);
}

#[tokio::test]
async fn unknown_paths_list_the_known_ones() {
    let world = World::new(Surface::Admin);
    let (status, body) = world.ask("/statuss", &[]).await;
    assert_eq!(status, 404);
    for route in ["GET  /status ", "POST /drain ", "GET  /flows "] {
        assert!(body.contains(route), "{body}");
    }
    assert_eq!(world.ask("/", &[]).await.0, 200);
}

#[tokio::test]
async fn recent_flows_are_listed() {
    let mut world = World::new(Surface::Admin);
    for seq in 0..10 {
        world.send(if seq % 2 == 0 { Outcome::Denied } else { Outcome::Forwarded });
    }
    world.settle_flows();
    let seqs = |body: String| -> Vec<u64> {
        body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap()).collect()
    };
    assert_eq!(seqs(world.ask("/flows", &[]).await.1), [2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(seqs(world.ask("/flows?denied=1&limit=2", &[]).await.1), [6, 8]);
    assert_eq!(world.ask("/flows?limit=x", &[]).await, (400, "limit is a whole number\n".into()));
    assert_eq!(world.ask("/flows?denied=yes", &[]).await, (400, "denied is 0 or 1\n".into()));
    assert_eq!(world.ask("/flows?deny=1", &[]).await.0, 400);
}

#[tokio::test]
async fn a_follower_sees_each_record_as_it_comes() {
    let world = World::new(Surface::Admin);
    let url = "http://admin/flows?follow=1&denied=1&limit=8";
    let mut curl = world.curl(&[url]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines();
    for (first, second) in [(0, 1), (2, 3)] {
        world.send(Outcome::Denied);
        world.send(Outcome::Forwarded);
        let (line, rest) = spawn_blocking(move || (lines.next().unwrap().unwrap(), lines)).await.unwrap();
        lines = rest;
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["seq"], &line["verdict"]), (&json!(first), &json!("DROPPED")), "{second} is left out");
    }
    assert_eq!(world.state.followers.available_permits(), MAX_FOLLOWERS - 1);
    curl.kill().unwrap();
    curl.wait().unwrap();
    // The slot comes back although no further record is written.
    let all = Arc::clone(&world.state.followers).acquire_many_owned(MAX_FOLLOWERS as u32);
    let slots = tokio::time::timeout(Duration::from_secs(60), all).await.unwrap().unwrap();
    assert_eq!(world.ask("/flows?follow=1", &[]).await.0, 503);
    drop(slots);
}

/// Ends only if the server gives up on the client.
async fn serve_stalled(request: &[u8]) {
    const SOON: Duration = Duration::from_millis(10);
    let never = Duration::from_secs(3600);
    let (mut ours, theirs) = tokio::io::duplex(1024);
    ours.write_all(request).await.unwrap();
    let patience =
        if request.is_empty() { Patience { head: SOON, write: never } } else { Patience { head: never, write: SOON } };
    let world = World::new(Surface::Admin);
    connection::serve(Box::new(theirs), Surface::Admin, Arc::clone(&world.state), patience).await;
    drop(ours);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    serve_stalled(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_dropped() {
    serve_stalled(b"").await;
}

#[tokio::test]
async fn garbage_gets_an_answer_and_the_next_client_is_served() {
    let world = World::new(Surface::Admin);
    let mut stream = UnixStream::connect(&world.socket).await.unwrap();
    stream.write_all(b"\x16\x03\x01 nonsense\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(world.ask("/ready", &[]).await.0, 200);
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new(Surface::Admin);
    assert_eq!(std::fs::metadata(&world.socket).unwrap().permissions().mode() & 0o777, 0o660);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let Ok(Socket::Tcp(first)) = bind(&ListenAddress::Tcp(([127, 0, 0, 1], 0).into())) else {
        panic!("no TCP socket");
    };
    let address = first.local_addr().unwrap();
    let error = bind(&ListenAddress::Tcp(address)).unwrap_err().to_string();
    assert!(error.contains(&format!("cannot listen on {address}")), "{error}");
}

/// As Cilium's tools ask for it and read it.
#[tokio::test]
async fn the_dump_has_envoys_form() {
    let world = World::new(Surface::Admin);
    let types = |dump: &Value| -> Vec<String> {
        let configs = dump["configs"].as_array().unwrap().iter();
        configs.map(|config| config["@type"].as_str().unwrap().rsplit('.').next().unwrap().to_owned()).collect()
    };
    for (path, with_endpoints) in [("/config_dump", false), ("/config_dump?include_eds", true)] {
        let dump = world.get_json(path).await;
        let expected = [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "ListenersConfigDump",
            "NetworkPoliciesConfigDump",
            "RoutesConfigDump",
            "EndpointsConfigDump",
        ];
        assert_eq!(types(&dump), expected[..5 + usize::from(with_endpoints)]);
        assert_eq!(dump["configs"][0]["bootstrap"]["node"]["cluster"], "ingress-cluster");
        assert_eq!(dump["configs"][3]["networkpolicies"], json!([{ "endpointId": "69" }]));
        assert_eq!((&dump["configuration"]["workers"], &dump["listeners"][0]["proxy_id"]), (&json!(1), &json!(7)));
    }
    let policy = json!({ "endpointId": "69", "@type": "type.googleapis.com/cilium.NetworkPolicy" });
    let only = world.get_json("/config_dump?include_eds&resource=networkpolicies").await;
    assert_eq!(only, json!({ "configs": [policy] }));
    let listeners = world.get_json("/config_dump?resource=dynamic_listeners").await;
    assert_eq!(listeners["configs"][0]["name"], "cilium-http-egress");
    let clusters = world.get_json("/config_dump?resource=dynamic_active_clusters").await;
    assert_eq!(clusters["configs"][0]["cluster"]["name"], "egress-cluster");
    let routes = world.get_json("/config_dump?resource=dynamic_route_configs").await;
    assert_eq!(routes["configs"][0]["route_config"]["name"], "ns/routes");
    let endpoints = world.get_json("/config_dump?include_eds&resource=dynamic_endpoint_configs").await;
    assert_eq!(endpoints["configs"][0]["endpoint_config"]["cluster_name"], "ns/svc:80");
    assert_eq!(types(&world.get_json("/config_dump?resource=bootstrap").await), ["Bootstrap"]);
    for unknown in ["secrets", "@type"] {
        let answer = world.ask(&format!("/config_dump?resource={unknown}"), &[]).await;
        assert_eq!(answer, (404, format!("{unknown} not found in config dump\n")));
    }
    assert_eq!(world.ask("/config_dump?mask=x", &[]).await.0, 400, "what is not done is not ignored");
    let clusters = (200, "egress-cluster::observability_name::egress-cluster\n".to_owned());
    assert_eq!(world.ask("/clusters", &[]).await, clusters);
    assert_eq!(world.get_json("/clusters?format=json").await["cluster_statuses"][0]["name"], "egress-cluster");
}

#[tokio::test]
async fn stats_can_be_filtered() {
    let world = World::new(Surface::Admin);
    let index = world.state.metrics.listener("cilium-http-egress", tollgate_policy::Direction::Egress);
    world.state.metrics.listener("idle", tollgate_policy::Direction::Ingress);
    let open = world.sender.metrics().connection_opened(index.index());
    let ask = async |query: &str| world.ask(&format!("/stats{query}"), &[]).await;
    // As the agent's own tests wait for a listener to be idle; the name is a pattern, percent-encoded or not.
    let active = "listener.cilium-http-egress.downstream_cx_active: 1\n";
    assert_eq!(ask("?usedonly&filter=cx_active").await, (200, active.into()));
    assert_eq!(ask("?usedonly&filter=%5Elistener%5C..*active").await, (200, active.into()));
    drop(open);
    assert_eq!(ask("?usedonly&filter=cx_active").await, (200, active.replace('1', "0")));
    assert!(ask("?filter=cx_active").await.1.contains("listener.idle.downstream_cx_active: 0\n"));
    assert_eq!(ask("?filter=nothing").await, (200, String::new()));
    for bad in ["?filter=%5B", "?filter=%F", "?usedonly=x", "?format=xml", "?used"] {
        assert_eq!(ask(bad).await.0, 400, "{bad}");
    }
    let json = world.get_json("/stats?format=json&filter=server.live").await;
    assert_eq!(json, json!({ "stats": [{ "name": "server.live", "value": 1 }] }));
    world.state.metrics.watch_readiness(world.state.readiness.clone());
    world.state.readiness.start_draining();
    assert_eq!(ask("?filter=server.live").await.1, "server.live: 0\n");
    let (_, text) = ask("").await;
    assert!(text.lines().is_sorted(), "{text}");
    for path in ["/stats?format=prometheus", "/stats/prometheus", "/metrics"] {
        let (_, text) = world.ask(path, &[]).await;
        let line = "envoy_listener_downstream_cx_active{envoy_listener_address=\"cilium-http-egress\"} 0\n";
        assert!(text.contains(line), "{text}");
    }
}
