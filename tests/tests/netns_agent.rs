//! The real binary in the place of cilium-envoy: started by the chart's command line and bootstrap, with listeners,
//! policies and identities from an agent, behind real TPROXY.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use tollgate_proto::envoy::config::cluster::v3::Cluster;
use tollgate_proto::envoy::config::listener::v3::Listener;
use tollgate_proto::json::network_policy_from_value;
use tollgate_tests::access_log::AccessLogReader;
use tollgate_tests::admin::Admin;
use tollgate_tests::agent::{self, Agent, logging_to, with_bpf_root};
use tollgate_tests::bpf::{Maps, inside};
use tollgate_tests::control_plane::Answer;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::http_rule;
use tollgate_tests::process::Process;
use tollgate_tests::proxy::binary;
use tollgate_tests::python::python;
use tollgate_tests::steered::{HTTP_PORT, LISTENER_PORT, SLEEP, Steered};
use tollgate_tests::upstream::{OK, Upstream, next_request};
use tollgate_tests::wait::until;

const BOOTSTRAP: &str = include_str!("../../proxy/src/bootstrap/testdata/ads.yaml");

/// Pods, an agent, and a proxy that it configures.
struct Node {
    steered: Steered,
    maps: Maps,
    agent: Agent,
    admin: Admin,
    _proxy: Process,
    server: Upstream,
}

impl Node {
    /// A node where `sleep` may GET /hello from `helloworld`; there are no listeners yet.
    fn new() -> Self {
        let steered = Steered::without_proxy();
        let agent = Agent::start(steered.path("xds.sock"));
        agent.set::<Cluster>(&[]);
        let mut maps = Maps::mount(steered.path("bpf"));
        maps.create_ipcache();
        maps.create_conntrack();
        steered.addresses("sleep").into_iter().for_each(|address| maps.put(address, SLEEP));
        let rule = json!({"remotePolicies": [SLEEP], "httpRules": {"httpRules": [http_rule("GET", "/hello")]}});
        let policy = json!({
            "endpointIps": steered.addresses("helloworld"),
            "endpointId": "69",
            "ingressPerPortPolicies": [{"port": HTTP_PORT, "rules": [rule]}],
        });
        let policies = agent.set(&[network_policy_from_value(policy).unwrap()]);

        let sockets = steered.path("").display().to_string();
        let bootstrap = BOOTSTRAP.replace("/var/run/cilium/envoy/sockets/", &sockets);
        fs::write(steered.path("bootstrap-config.yaml"), bootstrap).unwrap();
        let program = steered.path("cilium-envoy-starter");
        symlink(binary(), &program).unwrap();
        let mut command = steered.world().command(program);
        let config = format!("-c {}", steered.path("bootstrap-config.yaml").display());
        command.args([
            "--keep-cap-net-bind-service",
            "--",
            &config,
            "--base-id 0",
            "--log-level info",
            "--concurrency 2",
        ]);
        let mut proxy = Process::start(&steered.path(""), "proxy", command);
        let admin = Admin::at(steered.path("admin.sock"));
        admin.until_ready(&mut proxy);
        assert_eq!(agent.answer(&policies), Answer::Ack);
        let server = steered.serve("helloworld", steered.sockets("helloworld", HTTP_PORT)[0], |peer, _| {
            while next_request(peer).is_some() {
                peer.send(OK);
            }
        });
        Self { steered, maps, agent, admin, _proxy: proxy, server }
    }

    /// The agent's listener, which names our maps.
    fn http_ingress(&self, name: &str, port: u16, denied_body: &str) -> Listener {
        with_bpf_root(agent::http_ingress(name, port, denied_body), self.maps.root())
    }

    fn connect(&self) -> Peer {
        self.steered.connect("sleep", self.steered.sockets("helloworld", HTTP_PORT)[0])
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.admin.get("/status").1).unwrap()
    }

    fn listeners(&self) -> String {
        self.admin.get("/listeners").1
    }
}

fn get(client: &mut Peer, path: &str) -> (u16, String) {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    let response = client.read_message();
    (response.status(), String::from_utf8(response.body).unwrap())
}

#[test]
fn an_agent_configures_the_proxy() {
    if !inside("an_agent_configures_the_proxy") {
        return;
    }
    let node = Node::new();
    let listener = node.http_ingress("cilium-http-ingress", LISTENER_PORT, "Not here.");
    assert_eq!(node.agent.push(std::slice::from_ref(&listener)), Answer::Ack);
    // No waiting: what is acknowledged is served.
    let mut open = node.connect();
    assert_eq!(get(&mut open, "/hello"), (200, "ok".into()));
    assert_eq!(get(&mut open, "/other"), (403, "Not here.\r\n".into()));
    let forwarded = node.server.text();
    assert!(forwarded.contains("x-forwarded-proto: http") && forwarded.contains("x-request-id: "), "{forwarded}");
    let dump = node.admin.get("/config_dump").1;
    assert!(dump.contains("\"timeout\": \"3600000ms\"") && dump.contains("\"retries\": 3"), "{dump}");

    assert_eq!(node.agent.push(&[listener]), Answer::Ack);
    let changed = node.http_ingress("cilium-http-ingress", LISTENER_PORT, "Nor here.");
    assert_eq!(node.agent.push(&[changed]), Answer::Ack);
    assert_eq!(get(&mut open, "/other"), (403, "Not here.\r\n".into()), "an open connection goes on as it was");
    assert_eq!(get(&mut node.connect(), "/other"), (403, "Nor here.\r\n".into()));

    let ignored = node.status()["bootstrap_settings_without_effect"].to_string();
    assert!(ignored.contains("/cilium-locality-cluster"), "{ignored}");
    let without_effect = node.status()["listener_settings_without_effect"].to_string();
    assert!(without_effect.contains("TLS is not intercepted"), "{without_effect}");
}

/// A listener names its socket, and another one later, while the proxy runs.
#[test]
fn an_agent_gets_the_access_log_where_it_asks_for_it() {
    // Outside first: inside there is no network to make the environment with.
    let Some(python) = python() else { return };
    if !inside("an_agent_gets_the_access_log_where_it_asks_for_it") {
        return;
    }
    let node = Node::new();
    let listener = node.http_ingress("cilium-http-ingress", LISTENER_PORT, "");
    assert_eq!(node.agent.push(std::slice::from_ref(&listener)), Answer::Ack);
    let mut before = node.connect();
    assert_eq!(get(&mut before, "/hello").0, 200);
    for name in ["one.sock", "other.sock"] {
        let socket = node.steered.path(name);
        let reader = AccessLogReader::start(python, &socket);
        let logging = logging_to(listener.clone(), socket.to_str().unwrap());
        assert_eq!(node.agent.push(&[logging]), Answer::Ack);
        let mut client = node.connect();
        assert_eq!(get(&mut client, "/other").0, 403);
        let [denied, response] = reader.entries(2).try_into().unwrap();
        let pod = node.steered.addresses("helloworld")[0];
        for (entry, kind, status) in [(&denied, "Denied", 0), (&response, "Response", 403)] {
            assert_eq!((&entry["entry_type"], &entry["http"]["status"]), (&json!(kind), &json!(status)), "{entry}");
            assert_eq!((&entry["policy_name"], &entry["is_ingress"]), (&json!(pod), &json!(true)), "{entry}");
            assert_eq!((&entry["proxy_id"], &entry["source_security_id"]), (&json!(LISTENER_PORT), &json!(SLEEP)));
            assert_eq!(entry["source_address"], client.local().to_string());
            assert_eq!(entry["destination_address"], format!("{pod}:{HTTP_PORT}"));
        }
        // A connection goes on as it began.
        assert_eq!(get(&mut before, "/hello").0, 200);
        assert_eq!(get(&mut client, "/hello").0, 200);
        let more = reader.entries(2);
        assert!(more.iter().all(|entry| entry["source_address"] == client.local().to_string()), "{more:?}");
    }
}

#[test]
fn no_listeners_drain_and_come_back() {
    if !inside("no_listeners_drain_and_come_back") {
        return;
    }
    let node = Node::new();
    let listener = node.http_ingress("cilium-http-ingress", LISTENER_PORT, "");
    assert_eq!(node.agent.push(std::slice::from_ref(&listener)), Answer::Ack);
    let mut idle = node.connect();
    assert_eq!(get(&mut idle, "/hello"), (200, "ok".into()));
    assert_eq!(node.agent.push::<Listener>(&[]), Answer::Ack);
    assert_eq!(node.listeners(), "");
    assert_eq!(idle.read_to_end(), b"", "an idle connection ends in order");
    // Policy is not forgotten with the listener.
    assert_eq!(node.status()["policy"]["endpoints"], 1);
    assert_eq!(node.agent.push(&[listener]), Answer::Ack);
    assert_eq!(get(&mut node.connect(), "/hello"), (200, "ok".into()));
}

#[test]
fn what_cannot_be_served_hurts_nothing_else() {
    if !inside("what_cannot_be_served_hurts_nothing_else") {
        return;
    }
    let node = Node::new();
    let good = node.http_ingress("cilium-http-ingress", LISTENER_PORT, "");
    let odd = Listener { listener_filters: Vec::new(), ..node.http_ingress("ns/cec/lb", LISTENER_PORT + 1, "") };
    assert_eq!(node.agent.push(&[good.clone(), odd]), Answer::Ack);
    let not_served = node.status()["listeners_not_served"].to_string();
    assert!(not_served.contains("ns/cec/lb") && not_served.contains("no cilium.bpf_metadata"), "{not_served}");
    assert_eq!(get(&mut node.connect(), "/hello"), (200, "ok".into()));

    let port = LISTENER_PORT + 2;
    let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let busy = node.http_ingress("cilium-http-egress", port, "");
    let Answer::Nack { message, .. } = node.agent.push(&[good.clone(), busy]) else { panic!("the port is taken") };
    assert!(message.contains("cilium-http-egress") && message.contains("Address already in use"), "{message}");
    assert_eq!(get(&mut node.connect(), "/hello"), (200, "ok".into()));
    let elsewhere = node.http_ingress("cilium-http-egress", port + 1, "");
    assert_eq!(node.agent.push(&[good, elsewhere]), Answer::Ack);
    until("both listeners", || node.listeners().contains(&format!("127.0.0.1:{}", port + 1)).then_some(()));
}
