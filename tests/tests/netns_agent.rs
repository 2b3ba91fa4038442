//! The real binary in the place of cilium-envoy: started by the chart's command line and bootstrap, with listeners,
//! policies and identities from an agent, behind real TPROXY.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tollgate_proto::envoy::config::cluster::v3::Cluster;
use tollgate_proto::envoy::config::listener::v3::Listener;
use tollgate_proto::json::network_policy_from_value;
use tollgate_tests::access_log::AccessLogReader;
use tollgate_tests::admin::Admin;
use tollgate_tests::agent::{self, Agent, logging_to, with_bpf_root};
use tollgate_tests::bpf::{Maps, inside};
use tollgate_tests::control_plane::Answer;
use tollgate_tests::http2::{CLIENT_START, SERVER_START, get as get_2, headers_of};
use tollgate_tests::peer::{End, Peer};
use tollgate_tests::policy::http_rule;
use tollgate_tests::process::Process;
use tollgate_tests::proxy::binary;
use tollgate_tests::python::python;
use tollgate_tests::steered::{HELLOWORLD, HTTP_PORT, HTTP2_PORT, LISTENER_PORT, SLEEP, Steered};
use tollgate_tests::upstream::{OK, Upstream, next_request};
use tollgate_tests::wait::{DEADLINE, until};

const BOOTSTRAP: &str = include_str!("../../proxy/src/bootstrap/testdata/ads.yaml");

/// Pods, an agent, and a proxy that it configures.
struct Node {
    steered: Steered,
    maps: Maps,
    agent: Agent,
    admin: Admin,
    _proxy: Process,
    server: [Upstream; 2],
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
        maps.create_conntrack_v6();
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
        let server = steered.sockets("helloworld", HTTP_PORT).map(|address| {
            steered.serve("helloworld", address, |peer, _| {
                while next_request(peer).is_some() {
                    peer.send(OK);
                }
            })
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
    let forwarded = node.server[0].text();
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

/// Has `sleep` as the only endpoint of the node: it may GET /hello and /allowed from `helloworld`.
fn only_egress(node: &mut Node) {
    let rule =
        json!({"remotePolicies": [HELLOWORLD], "httpRules": {"httpRules": [http_rule("GET", "/hello|/allowed")]}});
    let policy = json!({
        "endpointIps": node.steered.addresses("sleep"),
        "endpointId": "17",
        "egressPerPortPolicies": [{"port": HTTP_PORT, "rules": [rule]}, {"port": HTTP2_PORT, "rules": [rule]}],
    });
    node.steered.addresses("helloworld").into_iter().for_each(|address| node.maps.put(address, HELLOWORLD));
    assert_eq!(node.agent.push(&[network_policy_from_value(policy).unwrap()]), Answer::Ack);
}

/// Ends, addresses, identities and direction are those of the pod that asks; a request that was sent again is told once.
#[test]
fn an_agent_gets_the_access_log_of_egress() {
    let Some(python) = python() else { return };
    if !inside("an_agent_gets_the_access_log_of_egress") {
        return;
    }
    let mut node = Node::new();
    only_egress(&mut node);
    let socket = node.steered.path("one.sock");
    let reader = AccessLogReader::start(python, &socket);
    let listener = with_bpf_root(agent::http_egress("cilium-http-egress", LISTENER_PORT, None), node.maps.root());
    assert_eq!(node.agent.push(&[logging_to(listener, socket.to_str().unwrap())]), Answer::Ack);
    // The first try of each connection fails.
    let http_2 = |peer: &mut Peer, _| {
        peer.send(SERVER_START);
        for (stream, status) in [(1_u32, b"\x8e"), (3, b"\x88")] {
            peer.read_until(&headers_of(stream));
            peer.send([&b"\0\0\x01\x01\x05"[..], &stream.to_be_bytes(), status].concat());
        }
        peer.read_to_any_end();
    };
    let pod = |port| node.steered.sockets("helloworld", port)[0];
    let _http_2 = node.steered.serve("helloworld", pod(HTTP2_PORT), http_2);
    let check = |entry: &Value, kind: &str, status: u16, ends: (SocketAddr, SocketAddr), identity: u32| {
        let whole = &entry["http"]["status"];
        assert_eq!((&entry["entry_type"], whole.as_u64()), (&json!(kind), (!whole.is_null()).then_some(status.into())));
        let name = &node.steered.addresses("sleep")[0];
        assert_eq!((&entry["policy_name"], &entry["is_ingress"]), (&json!(name), &json!(false)), "{entry}");
        assert_eq!(
            (&entry["proxy_id"], &entry["source_security_id"]),
            (&json!(LISTENER_PORT), &json!(SLEEP)),
            "{entry}"
        );
        assert_eq!(entry["destination_security_id"], identity, "{entry}");
        let addresses = [&entry["source_address"], &entry["destination_address"]];
        assert_eq!(addresses, [&json!(ends.0.to_string()), &json!(ends.1.to_string())], "{entry}");
    };

    let mut client = node.connect();
    let ends = (client.local(), pod(HTTP_PORT));
    for (path, kind, status) in [("/hello", "Request", 200), ("/other", "Denied", 403)] {
        assert_eq!(get(&mut client, path).0, status);
        let [asked, answered] = reader.entries(2).try_into().unwrap();
        check(&asked, kind, 0, ends, HELLOWORLD);
        check(&answered, "Response", status, ends, HELLOWORLD);
        assert_eq!((&asked["http"]["path"], &answered["http"]["path"]), (&json!(path), &json!(path)));
    }
    let mut client = node.steered.connect("sleep", pod(HTTP2_PORT));
    let ends = (client.local(), pod(HTTP2_PORT));
    client.send(CLIENT_START);
    client.send(get_2(1));
    client.read_until(b"\x01\x05\0\0\0\x01\x88");
    let [asked, answered] = reader.entries(2).try_into().unwrap();
    check(&asked, "Request", 0, ends, HELLOWORLD);
    check(&answered, "Response", 200, ends, HELLOWORLD);
    assert_eq!(node.admin.metric("tollgate_upstream_retries_total"), 1.0);

    let refused = node.steered.sockets("other", HTTP_PORT)[0];
    node.steered.expect_reset("sleep", refused, "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
    let denied = reader.entry();
    let from = denied["source_address"].as_str().unwrap().parse().unwrap();
    check(&denied, "Denied", 0, (from, refused), 2);
    assert!(denied["http"].is_null(), "{denied}");
}

/// What the server sees of the end of a connection from the client's own address and port.
#[test]
fn connections_from_the_clients_port_linger_as_the_agent_says() {
    if !inside("connections_from_the_clients_port_linger_as_the_agent_says") {
        return;
    }
    let mut node = Node::new();
    only_egress(&mut node);
    let (told, seen) = channel();
    let server = node.steered.sockets("helloworld", HTTP2_PORT)[0];
    let _server = node.steered.serve("helloworld", server, move |peer, connection| {
        let from = peer.stream().peer_addr().unwrap();
        assert!(next_request(peer).is_some());
        // One try fails, and the next has the same port.
        let fails = connection == 0;
        peer.send(if fails { "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n" } else { OK });
        told.send((from, peer.read_to_any_end().1)).unwrap();
    });
    let mut before = true;
    for (linger, end) in [(None, End::Closed), (Some(0), End::Reset), (Some(5), End::Closed)] {
        let listener = with_bpf_root(agent::http_egress("cilium-http-egress", LISTENER_PORT, linger), node.maps.root());
        assert_eq!(node.agent.push(&[listener]), Answer::Ack);
        let mut client = node.steered.connect("sleep", server);
        assert_eq!(get(&mut client, "/hello").0, 200);
        let from = client.local();
        drop(client);
        if std::mem::take(&mut before) {
            assert_eq!(seen.recv_timeout(DEADLINE).unwrap(), (from, End::Reset), "the try that failed");
        }
        assert_eq!(seen.recv_timeout(DEADLINE).unwrap(), (from, end), "{linger:?}");
    }
    assert_eq!(node.admin.metric("tollgate_upstream_source_port_changed_total"), 0.0);
}

/// What no rule admits, and another one that it does not either.
const STRANGERS: [u32; 2] = [4711, 4712];

/// The agent names no time to live: answers of the map are asked for again when they are older than 3 ms.
fn let_answers_expire() {
    thread::sleep(Duration::from_millis(20));
}

/// A connection from `sleep` that conntrack knows from its first packet on.
fn connect_tracked(node: &mut Node, server: SocketAddr, identity: u32) -> Peer {
    let (steered, maps) = (&node.steered, &mut node.maps);
    let pod = steered.addresses("sleep")[usize::from(server.is_ipv6())];
    let connect = || {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(pod, 0).into()).unwrap();
        maps.track(socket.local_addr().unwrap().as_socket().unwrap(), server, identity);
        socket.connect(&server.into()).unwrap();
        Peer::new(socket.into())
    };
    steered.world().run_in("sleep", connect).unwrap()
}

#[test]
fn on_ingress_the_agents_maps_say_who_asks() {
    if !inside("on_ingress_the_agents_maps_say_who_asks") {
        return;
    }
    let mut node = Node::new();
    let listener = node.http_ingress("cilium-http-ingress", LISTENER_PORT, "");
    assert_eq!(node.agent.push(&[listener]), Answer::Ack);
    the_peer_changes_hands(&mut node, "sleep", SLEEP, "source");

    // Conntrack's word counts before that of the address, until the address is somebody else's.
    for (pod, server) in node.steered.addresses("sleep").into_iter().zip(node.steered.sockets("helloworld", HTTP_PORT))
    {
        node.maps.put(pod, STRANGERS[0]);
        let_answers_expire();
        let mut tracked = connect_tracked(&mut node, server, SLEEP);
        assert_eq!(get(&mut tracked, "/hello").0, 200);
        let of_tracked = |flow: &Value| flow["l4"]["TCP"]["source_port"] == tracked.local().port();
        let flow = until("its record", || node.admin.flows().into_iter().find(of_tracked));
        assert_eq!(flow["source"]["identity"], SLEEP, "{flow}");
        node.steered.expect_reset("sleep", server, "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
        node.maps.put(pod, STRANGERS[1]);
        let_answers_expire();
        assert_eq!(get(&mut tracked, "/hello").0, 403);
        connect_tracked(&mut node, server, STRANGERS[0]).expect_reset();
    }
}

#[test]
fn on_egress_the_agents_maps_say_who_is_asked() {
    if !inside("on_egress_the_agents_maps_say_who_is_asked") {
        return;
    }
    let mut node = Node::new();
    only_egress(&mut node);
    let listener = agent::http_egress("cilium-http-egress", LISTENER_PORT, None);
    assert_eq!(node.agent.push(&[with_bpf_root(listener, node.maps.root())]), Answer::Ack);
    the_peer_changes_hands(&mut node, "helloworld", HELLOWORLD, "destination");
}

/// The addresses of the pod `peer` carry identities that no rule admits, and its own again, while a connection is open.
fn the_peer_changes_hands(node: &mut Node, peer: &str, own: u32, end: &str) {
    for (address, server) in node.steered.addresses(peer).into_iter().zip(node.steered.sockets("helloworld", HTTP_PORT))
    {
        let mut open = node.steered.connect("sleep", server);
        assert_eq!(
            [get(&mut open, "/hello").0, get(&mut open, "/other").0, get(&mut open, "/hello").0],
            [200, 403, 200]
        );
        node.maps.put(address, STRANGERS[0]);
        let_answers_expire();
        assert_eq!(get(&mut open, "/hello").0, 403, "{server}");
        assert_eq!(open.read_to_end(), b"", "nothing is left that this connection could ask");
        node.steered.expect_reset("sleep", server, "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
        let of_reset = |flow: &Value| {
            let ends = (&flow["IP"]["destination"], &flow[end]["identity"]);
            flow["l7"].is_null() && ends == (&json!(server.ip().to_string()), &json!(STRANGERS[0]))
        };
        until("the record of what was reset", || node.admin.flows().into_iter().find(of_reset));

        node.maps.put(address, own);
        let_answers_expire();
        let mut open = node.steered.connect("sleep", server);
        assert_eq!(get(&mut open, "/hello").0, 200);
        node.maps.remove(address);
        let_answers_expire();
        assert_eq!(get(&mut open, "/hello").0, 403, "who is in no map is the world");
        node.maps.put(address, own);
        let_answers_expire();
        assert_eq!(get(&mut node.steered.connect("sleep", server), "/hello").0, 200);
    }
}
