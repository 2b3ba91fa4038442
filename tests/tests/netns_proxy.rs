//! The real binary behind real TPROXY in network namespaces: what a pod's client and server see of it, what the node's
//! datapath sees of its packets, and what happens while it is not there.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tollgate::reason::Reason;
use tollgate_net::Mark;
use tollgate_tests::bpf::Maps;
use tollgate_tests::mark_counters::MarkCounters;
use tollgate_tests::netns::inside;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_rule, tcp_port};
use tollgate_tests::process::Process;
use tollgate_tests::python::{self, ControlPlane, python};
use tollgate_tests::steered::{
    HELLOWORLD, HOST, HTTP_PORT, HTTP2_PORT, LISTENER_PORT, SLEEP, Steered, TCP_PORT, listener,
};
use tollgate_tests::upstream::{OK, Upstream, next_request};
use tollgate_tests::wait::{DEADLINE, until};

const INGRESS: &str = "direction: ingress, reason_header: true, policy_wait: 100ms";

/// A policy of the pod's addresses; `ports` are entries of `field`.
fn policy(steered: &Steered, pod: &str, endpoint_id: &str, field: &str, ports: Value) -> Value {
    json!({"endpointIps": steered.addresses(pod), "endpointId": endpoint_id, field: ports})
}

/// The usual policy: `sleep` may GET /hello from `helloworld` and speak TCP with it; nobody else may do anything.
fn only_sleep(steered: &Steered) -> Vec<Value> {
    let rule = json!({"remotePolicies": [SLEEP], "httpRules": {"httpRules": [http_rule("GET", "/hello")]}});
    let ports = json!([
        {"port": HTTP_PORT, "rules": [rule]},
        {"port": HTTP2_PORT, "rules": [rule]},
        {"port": TCP_PORT, "rules": [{"remotePolicies": [SLEEP]}]},
    ]);
    vec![policy(steered, "helloworld", "69", "ingressPerPortPolicies", ports)]
}

/// Anybody may send any bytes to any of the ports of `helloworld`.
fn anybody(steered: &Steered) -> Vec<Value> {
    let ports = json!([tcp_port(HTTP_PORT), tcp_port(TCP_PORT)]);
    vec![policy(steered, "helloworld", "69", "ingressPerPortPolicies", ports)]
}

/// Says hello with the client's address as the server sees it, and waits for the client to end.
fn tell_peer(peer: &mut Peer, _number: usize) {
    let address = peer.stream().peer_addr().unwrap();
    peer.send(format!("{address}\n"));
    peer.read_to_any_end();
}

/// The client's address as a server with [`tell_peer`] sees it.
fn told(client: &mut Peer) -> SocketAddr {
    String::from_utf8(client.read_until(b"\n")).unwrap().trim().parse().unwrap()
}

/// nginx in `helloworld`: HTTP/1.1 and HTTP/2 without TLS. It answers with the client's address and its request.
fn nginx(steered: &Steered) -> Process {
    let listen = |port, parameter: &str| {
        steered.sockets("helloworld", port).map(|address| format!("listen {address}{parameter};")).concat()
    };
    let answer = "location / { return 200 \"$remote_addr $request\\n\"; }";
    let directory = steered.path("");
    let directory = directory.display();
    // A user namespace has no other user than root.
    let configuration = format!(
        "daemon off; master_process off; user root root; pid {directory}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n\
           access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
           fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;\n\
           server {{ {http} {answer} }}\n\
           server {{ {http2} {answer} }}\n\
         }}\n",
        http = listen(HTTP_PORT, ""),
        http2 = listen(HTTP2_PORT, " http2"),
    );
    let file = steered.path("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let mut nginx = steered.start_in("helloworld", "nginx", &["-e", "stderr", "-c", file.to_str().unwrap()]);
    // What the node itself sends is not steered.
    let ports = [HTTP_PORT, HTTP2_PORT].map(|port| steered.sockets("helloworld", port)).concat();
    nginx.until("its listeners", || {
        ports.iter().all(|port| std::net::TcpStream::connect_timeout(port, DEADLINE).is_ok()).then_some(())
    });
    nginx
}

/// Runs curl in `sleep`; returns status and body, and the port that it connected from.
fn curl(steered: &Steered, arguments: &[&str], url: &str) -> (String, u16) {
    let mut all = vec!["-sS", "-g", "--noproxy", "*", "--max-time", "20", "-w", "\n%{http_code} %{local_port}"];
    all.extend(arguments);
    all.push(url);
    let (status, output) = steered.run_in("sleep", "curl", &all);
    assert!(status.success(), "curl {url}: {status}: {output}");
    let (body, line) = output.rsplit_once('\n').unwrap();
    let (code, port) = line.split_once(' ').unwrap();
    (format!("{code} {}", body.trim_end()), port.parse().unwrap())
}

/// The flow record of the connection from this port.
fn record_of(steered: &Steered, port: u16) -> Value {
    until(&format!("a flow record with the source port {port}"), || {
        let mut flows = steered.admin().flows().into_iter();
        flows.find(|flow| flow["l4"]["TCP"]["source_port"] == port)
    })
}

#[test]
fn http_1_passes_or_is_denied_by_request() {
    if !inside("http_1_passes_or_is_denied_by_request") {
        return;
    }
    let steered = Steered::new(only_sleep, INGRESS);
    let _nginx = nginx(&steered);
    let clients = steered.addresses("sleep");
    let ends = clients.into_iter().zip(steered.node_addresses()).zip(steered.sockets("helloworld", HTTP_PORT));
    for ((client, node), server) in ends {
        let (answer, port) = curl(&steered, &[], &format!("http://{server}/hello"));
        assert_eq!(answer, format!("200 {node} GET /hello HTTP/1.1"));
        let flow = record_of(&steered, port);
        assert_eq!(flow["IP"]["source"], client.to_string(), "{flow}");
        assert_eq!(flow["IP"]["destination"], server.ip().to_string(), "{flow}");
        assert_eq!(
            (&flow["l4"]["TCP"]["destination_port"], &flow["verdict"]),
            (&json!(HTTP_PORT), &json!("FORWARDED"))
        );
        assert_eq!((&flow["upstream"], &flow["source"]["identity"]), (&json!(server), &json!(SLEEP)));

        let (answer, port) = curl(&steered, &[], &format!("http://{server}/other"));
        assert_eq!(answer, "403 Access denied");
        let flow = record_of(&steered, port);
        assert_eq!((&flow["verdict"], &flow["reason"]), (&json!("DROPPED"), &json!("request_not_allowed")), "{flow}");
        assert_eq!(flow["IP"]["destination"], server.ip().to_string(), "{flow}");
    }
}

#[test]
fn http_2_with_prior_knowledge_passes_or_is_denied_by_request() {
    // Outside first: inside there is no network to make the environment with.
    let Some(python) = python() else { return };
    if !inside("http_2_with_prior_knowledge_passes_or_is_denied_by_request") {
        return;
    }
    let steered = Steered::new(only_sleep, INGRESS);
    let _nginx = nginx(&steered);
    for (server, node) in steered.sockets("helloworld", HTTP2_PORT).into_iter().zip(steered.node_addresses()) {
        let url = |path| format!("http://{server}{path}");
        let (answer, port) = curl(&steered, &["--http2-prior-knowledge"], &url("/hello"));
        assert_eq!(answer, format!("200 {node} GET /hello HTTP/2.0"));
        let flow = record_of(&steered, port);
        assert_eq!(flow["l7"]["http"]["protocol"], "HTTP/2", "{flow}");
        assert_eq!(flow["IP"]["destination"], server.ip().to_string(), "{flow}");

        let script = PathBuf::from(python::SCRIPTS).join("httpx_get.py").display().to_string();
        let arguments = [script, url("/hello"), url("/other"), url("/hello")];
        let (status, output) = steered.run_in("sleep", python, &arguments);
        assert!(status.success(), "{output}");
        let fine = json!(["HTTP/2", 200, format!("{node} GET /hello HTTP/2.0\n")]);
        let answers: Value = serde_json::from_str(output.trim()).expect(&output);
        assert_eq!(answers, json!([fine, ["HTTP/2", 403, "Access denied\r\n"], fine]));
    }
}

#[test]
fn tcp_passes_with_half_closes_both_ways() {
    if !inside("tcp_passes_with_half_closes_both_ways") {
        return;
    }
    let steered = Steered::new(only_sleep, INGRESS);
    for server in steered.sockets("helloworld", TCP_PORT) {
        let upstream = steered.serve("helloworld", server, |peer, number| {
            if number == 0 {
                // The server ends first; the client still sends.
                peer.send("\0hello\r\n");
                peer.finish_sending();
                peer.read_to_end();
            } else {
                // The client ends first; the server still answers.
                let said = peer.read_to_end();
                peer.send(said);
            }
        });
        let mut client = steered.connect("sleep", server);
        assert_eq!(client.read_to_end(), b"\0hello\r\n");
        client.send("late words");
        drop(client);
        upstream.expect("late words");

        let mut client = steered.connect("sleep", server);
        client.send(b"GET / HTTP/1.1\r\n\r\n\xff\0");
        client.finish_sending();
        assert_eq!(client.read_to_end(), b"GET / HTTP/1.1\r\n\r\n\xff\0");
        let flow = record_of(&steered, client.local().port());
        assert_eq!((&flow["Type"], &flow["verdict"]), (&json!("L3_L4"), &json!("FORWARDED")), "{flow}");
        assert_eq!(flow["IP"]["destination"], server.ip().to_string(), "{flow}");
    }
}

#[test]
fn a_peer_that_no_rule_admits_is_reset() {
    if !inside("a_peer_that_no_rule_admits_is_reset") {
        return;
    }
    let steered = Steered::new(only_sleep, INGRESS);
    for (index, port) in [HTTP_PORT, TCP_PORT].into_iter().enumerate() {
        for (family, server) in steered.sockets("helloworld", port).into_iter().enumerate() {
            let upstream = steered.serve("helloworld", server, tell_peer);
            steered.expect_reset("other", server, "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
            let flow = steered.admin().expect_flows(index * 2 + family + 1).pop().unwrap();
            assert_eq!((&flow["verdict"], &flow["reason"]), (&json!("DROPPED"), &json!("peer_not_allowed")));
            assert_eq!(flow["source"]["identity"], 2, "{flow}");
            assert_eq!(flow["IP"]["destination"], server.ip().to_string(), "{flow}");
            assert_eq!(upstream.connections(), 0);
        }
    }
}

/// The whole of both connections, from the handshake to the end, and a connection that is refused.
#[test]
fn packets_carry_the_marks_of_the_datapath() {
    if !inside("packets_carry_the_marks_of_the_datapath") {
        return;
    }
    let steered = Steered::new(only_sleep, INGRESS);
    let upstream_mark = Mark::upstream(true, SLEEP);
    assert_eq!((upstream_mark.raw(), Mark::listener(true).raw()), (0x7DE2_0A00, 0x0A00));
    for server in steered.sockets("helloworld", TCP_PORT) {
        let _upstream = steered.serve("helloworld", server, |peer, _| {
            let said = peer.read_to_end();
            peer.send(said);
        });
        let counters = MarkCounters::start(&steered, server, upstream_mark, Mark::listener(true));
        let mut client = steered.connect("sleep", server);
        client.send("hello");
        client.finish_sending();
        assert_eq!(client.read_to_end(), b"hello");
        record_of(&steered, client.local().port());
        counters.expect_only_marked();
        let replies = counters.packets("reply");
        steered.expect_reset("other", server, "hello");
        assert!(counters.packets("reply") > replies);
        counters.expect_only_marked();
    }
}

/// Only 24 bits of an identity are in a mark, and in an order of their own (`spec/cilium-agent.md` section 5.3).
#[test]
fn marks_carry_identities_of_every_size() {
    if !inside("marks_carry_identities_of_every_size") {
        return;
    }
    let mut steered = Steered::without_proxy();
    let servers = steered.sockets("helloworld", TCP_PORT);
    let _upstreams = servers.map(|server| steered.serve("helloworld", server, tell_peer));
    // (identity, mark on ingress, mark on egress)
    let marks = [
        (12001, 0x2EE1_0A00, 0x2EE1_0B00),
        (0x00AB_CDEF, 0xCDEF_0AAB, 0xCDEF_0BAB),
        (0x00FF_0000, 0x0000_0AFF, 0x0000_0BFF),
        (0x0100_0001, 0x0001_0A00, 0x0001_0B00),
        (0xFFFF_FFFF, 0xFFFF_0AFF, 0xFFFF_0BFF),
    ];
    for (identity, ingress_mark, egress_mark) in marks {
        steered.set_sleep(identity);
        for (direction, mark) in [("ingress", ingress_mark), ("egress", egress_mark)] {
            let is_ingress = direction == "ingress";
            let ports = if is_ingress {
                json!([{"port": TCP_PORT, "rules": [{"remotePolicies": [identity]}]}])
            } else {
                json!([tcp_port(TCP_PORT)])
            };
            let (pod, field) =
                if is_ingress { ("helloworld", "ingressPerPortPolicies") } else { ("sleep", "egressPerPortPolicies") };
            steered.write_policies(&[policy(&steered, pod, "7", field, ports)]);
            steered.start_proxy(&steered.directory_source(), &listener(&format!("direction: {direction}")));
            let upstream = Mark::upstream(is_ingress, identity);
            assert_eq!(upstream.raw(), mark, "{identity:#x} {direction}");
            for server in servers {
                let counters = MarkCounters::start(&steered, server, upstream, Mark::listener(is_ingress));
                let mut client = steered.connect("sleep", server);
                told(&mut client);
                client.finish_sending();
                client.read_to_end();
                assert_eq!(record_of(&steered, client.local().port())["source"]["identity"], identity);
                counters.expect_only_marked();
            }
            steered.kill_proxy();
        }
    }
}

/// Identities out of the datapath's maps: conntrack's at first, the ipcache's once the address has changed hands. The upstream
/// carries the one that the request was judged by.
#[test]
fn the_mark_follows_the_identity_of_the_source() {
    if !tollgate_tests::bpf::inside("the_mark_follows_the_identity_of_the_source") {
        return;
    }
    const OTHER: u32 = 0x00AB_CDEF;
    let mut steered = Steered::without_proxy();
    let mut maps = Maps::mount(steered.path("bpf"));
    maps.create_ipcache();
    maps.create_conntrack();
    maps.create_conntrack_v6();
    steered.set_identities(format!("{{ bpf_root: \"{}\", ttl: 0s }}", maps.root().display()));
    let rule = json!({"remotePolicies": [SLEEP, OTHER], "httpRules": {"httpRules": [http_rule("GET", "/hello")]}});
    let ports = json!([{"port": HTTP_PORT, "rules": [rule]}]);
    steered.write_policies(&[policy(&steered, "helloworld", "69", "ingressPerPortPolicies", ports)]);
    let servers = steered.sockets("helloworld", HTTP_PORT);
    let _upstreams = servers.map(|server| {
        steered.serve("helloworld", server, |peer, _| {
            while next_request(peer).is_some() {
                peer.send(OK);
            }
        })
    });
    steered.start_proxy(&steered.directory_source(), &listener(INGRESS));
    for (server, pod) in servers.into_iter().zip(steered.addresses("sleep")) {
        // The ipcache lags behind: to it the pod is the world, which nobody admits.
        let mut client = steered
            .world()
            .run_in("sleep", || {
                let socket = Socket::new(Domain::for_address(server), Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::new(pod, 0).into()).unwrap();
                let from = socket.local_addr().unwrap().as_socket().unwrap();
                maps.track(from, server, SLEEP);
                socket.connect(&server.into()).unwrap();
                Peer::new(socket.into())
            })
            .unwrap();
        for identity in [SLEEP, OTHER] {
            let mark = Mark::upstream(true, identity);
            let counters = MarkCounters::start(&steered, server, mark, Mark::listener(true));
            client.send("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.read_message().status(), 200, "{identity} {server}");
            // Connecting, the request, and its answer's acknowledgement.
            until("the upstream's packets", || (counters.packets("upstream") >= 3).then_some(()));
            maps.put(pod, OTHER);
        }
        let source = |flow: &Value| flow["source"]["identity"].clone();
        until("the records of both", || {
            let flows: Vec<_> = steered.admin().flows().iter().rev().take(2).map(source).collect();
            (flows == [OTHER, SLEEP]).then_some(())
        });
        maps.remove(pod);
        client.send("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.read_message().status(), 403, "the world again");
    }
}

#[test]
fn the_server_sees_the_client_or_the_node_as_configured() {
    if !inside("the_server_sees_the_client_or_the_node_as_configured") {
        return;
    }
    let mut steered = Steered::without_proxy();
    steered.write_policies(&anybody(&steered));
    let servers = steered.sockets("helloworld", TCP_PORT);
    let _upstreams = servers.map(|server| steered.serve("helloworld", server, tell_peer));
    for original_source in ["always", "never"] {
        let keys = format!("{INGRESS}, original_source: {original_source}");
        steered.start_proxy(&steered.directory_source(), &listener(&keys));
        for (server, node) in servers.into_iter().zip(steered.node_addresses()) {
            let mut client = steered.connect("sleep", server);
            let seen = told(&mut client);
            match original_source {
                "always" => assert_eq!(seen, client.local(), "address and port"),
                _ => assert_eq!(seen.ip(), node),
            }
        }
        steered.kill_proxy();
    }
}

/// The refusal is for the client's address, and must come back to the proxy all the same.
#[test]
fn a_server_that_refuses_is_known_at_once_whoever_it_refuses() {
    if !inside("a_server_that_refuses_is_known_at_once_whoever_it_refuses") {
        return;
    }
    let mut steered = Steered::without_proxy();
    steered.write_policies(&only_sleep(&steered));
    for original_source in ["always", "never"] {
        let keys = format!("{INGRESS}, original_source: {original_source}, connect_timeout: 1h");
        steered.start_proxy(&steered.directory_source(), &listener(&keys));
        for server in steered.sockets("helloworld", HTTP_PORT) {
            let (answer, port) = curl(&steered, &["-D", "-"], &format!("http://{server}/hello"));
            assert!(answer.starts_with("503 ") && answer.contains("upstream_connect"), "{answer}");
            assert_eq!(record_of(&steered, port)["reason"], Reason::UpstreamConnect.code());
        }
        assert_eq!(steered.admin().metric("tollgate_upstream_connects_total{result=\"refused\"}"), 2.0);
        steered.kill_proxy();
    }
}

/// Two connections from one client port to two servers are one connection too many when both lead to one upstream:
/// the second keeps the client's address and takes another port.
#[test]
fn a_source_port_that_is_taken_becomes_another_port() {
    if !inside("a_source_port_that_is_taken_becomes_another_port") {
        return;
    }
    let mut steered = Steered::without_proxy();
    steered.write_policies(&anybody(&steered));
    let upstreams = steered.sockets("helloworld", 5999);
    let _servers = upstreams.map(|upstream| steered.serve("helloworld", upstream, tell_peer));
    let listeners = ["127.0.0.1", "[::1]"].into_iter().zip(upstreams).enumerate().map(|(index, (own, upstream))| {
        format!(
            "- {{ name: l{index}, address: \"{own}:{LISTENER_PORT}\", transparent: true, upstream: \"{upstream}\", \
             original_source: always, {INGRESS} }}\n"
        )
    });
    let listeners: String = listeners.collect();
    steered.start_proxy(&steered.directory_source(), &listeners);
    let changed = || steered.admin().metric("tollgate_upstream_source_port_changed_total");
    let servers = steered.sockets("helloworld", HTTP_PORT).into_iter().zip(steered.sockets("helloworld", TCP_PORT));
    for (((one, other), client), before) in servers.zip(steered.addresses("sleep")).zip([0.0, 1.0]) {
        let client = SocketAddr::new(client, 0);
        let mut first = steered.world().run_in("sleep", || connect_from(client, one)).unwrap();
        assert_eq!(told(&mut first), first.local());
        assert_eq!(changed(), before);

        let mut second = steered.world().run_in("sleep", || connect_from(first.local(), other)).unwrap();
        let seen = told(&mut second);
        assert_eq!(second.local(), first.local());
        assert_eq!(seen.ip(), first.local().ip());
        assert_ne!(seen.port(), first.local().port());
        assert_eq!(changed(), before + 1.0);
        drop((first, second));
        let told_of: Vec<_> = until("both records", || {
            let flows = steered.admin().flows();
            let of_both = flows.into_iter().filter(|flow| flow["IP"]["source"] == client.ip().to_string());
            Some(of_both.map(|flow| flow["upstream_source"].clone()).collect())
                .filter(|flows: &Vec<_>| flows.len() == 2)
        });
        assert!(told_of.contains(&Value::Null) && told_of.contains(&json!(seen)), "{told_of:?}");
    }
}

/// A client takes its old port again while the node still remembers both of its former connections (TIME_WAIT).
#[test]
fn a_port_can_be_used_again_at_once_and_carries_much_data() {
    const BYTES: u64 = 4 << 20;
    if !inside("a_port_can_be_used_again_at_once_and_carries_much_data") {
        return;
    }
    let mut steered = Steered::without_proxy();
    steered.write_policies(&anybody(&steered));
    let keys = format!("{INGRESS}, original_source: always");
    steered.start_proxy(&steered.directory_source(), &listener(&keys));
    // The client itself shall forget at once.
    let (status, output) = steered.run_in("sleep", "sysctl", &["-qw", "net.ipv4.tcp_max_tw_buckets=0"]);
    assert!(status.success(), "{output}");
    let ends = steered.addresses("sleep").into_iter().zip(steered.sockets("helloworld", TCP_PORT));
    for (client, server) in ends {
        let _upstream = steered.serve("helloworld", server, |peer, _| {
            let address = peer.stream().peer_addr().unwrap();
            peer.send(format!("{address}\n"));
            peer.expect_repeated(&[7; 65536], BYTES);
            peer.send_repeated(&[8; 65536], BYTES);
            peer.read_to_end();
        });
        let mut from = SocketAddr::new(client, 0);
        for _ in 0..3 {
            let mut client = steered.world().run_in("sleep", || connect_from(from, server)).unwrap();
            from = client.local();
            assert_eq!(told(&mut client).ip(), from.ip());
            client.send_repeated(&[7; 65536], BYTES);
            client.expect_repeated(&[8; 65536], BYTES);
            client.finish_sending();
            assert_eq!(client.read_to_end(), b"");
        }
        let remembered = steered.run_on_node("ss", &["-Htan", "state", "time-wait"]);
        assert!(remembered.contains(&from.to_string()), "{remembered}");
    }
}

/// Connects from an address and a port that another such connection may use, too; 0 is any port.
fn connect_from(from: SocketAddr, to: SocketAddr) -> Peer {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect_timeout(&to.into(), DEADLINE).unwrap();
    Peer::new(socket.into())
}

/// Egress policy of `sleep`, pushed by a control plane in Python over gRPC: destinations by identity, and whose address
/// a server sees.
#[test]
fn egress_keeps_the_source_towards_destinations_that_are_remote() {
    let Some(python) = python() else { return };
    if !inside("egress_keeps_the_source_towards_destinations_that_are_remote") {
        return;
    }
    let mut steered = Steered::without_proxy();
    let mut plane = ControlPlane::start(python).unwrap();
    let socket = steered.path("xds.sock");
    plane.listen(&socket).unwrap();
    let egress = json!([{"port": TCP_PORT, "rules": [{"remotePolicies": [HELLOWORLD, HOST]}]}]);
    let of_sleep = policy(&steered, "sleep", "17", "egressPerPortPolicies", egress);
    plane.tell(&json!({"do": "set", "version": "1", "resources": [of_sleep]})).unwrap();
    let source = format!("xds: {{ address: \"unix:{}\", mode: split }}", socket.display());
    steered.start_proxy(&source, &listener("direction: egress, policy_wait: 100ms"));
    assert_eq!(plane.answer().unwrap()["event"], "ack");

    let servers = steered.sockets("helloworld", TCP_PORT);
    let _upstreams = servers.map(|server| steered.serve("helloworld", server, tell_peer));
    let of_the_node = steered.node_addresses().map(|ip| SocketAddr::new(ip, TCP_PORT));
    let _servers = of_the_node.map(|server| Upstream::on(TcpListener::bind(server).unwrap(), tell_peer));
    let forbidden = steered.sockets("other", TCP_PORT);
    let others = forbidden.map(|server| steered.serve("other", server, tell_peer));
    for ((server, forbidden), of_the_node) in servers.into_iter().zip(forbidden).zip(of_the_node) {
        let counters = MarkCounters::start(&steered, server, Mark::upstream(false, SLEEP), Mark::listener(false));
        let mut client = steered.connect("sleep", server);
        assert_eq!(told(&mut client), client.local(), "no policy of ours at the destination");
        client.finish_sending();
        client.read_to_end();
        let flow = record_of(&steered, client.local().port());
        counters.expect_only_marked();
        assert_eq!((&flow["traffic_direction"], &flow["upstream"]), (&json!("EGRESS"), &json!(server)), "{flow}");
        let identities = [&flow["source"], &flow["destination"]].map(|end| end["identity"].clone());
        assert_eq!(identities, [json!(SLEEP), json!(HELLOWORLD)]);

        // The host itself would answer the client's address directly.
        assert_eq!(told(&mut steered.connect("sleep", of_the_node)).ip(), of_the_node.ip());

        steered.expect_reset("sleep", forbidden, "hello");
        // `other` has no policy, so nothing that it sends is allowed.
        steered.expect_reset("other", server, "hello");
    }
    let reasons =
        || steered.admin().flows().iter().map(|flow| flow["reason"].to_string()).collect::<Vec<_>>().join(" ");
    until("two refusals of each kind", || {
        let reasons = reasons();
        let count = |reason: Reason| reasons.matches(reason.code()).count();
        (count(Reason::PeerNotAllowed) == 2 && count(Reason::NoPolicy) == 2).then_some(())
    });
    assert!(others.iter().all(|other| other.connections() == 0));

    // Now the destination is an endpoint of this node: the datapath knows it by its mark, not by its address.
    let of_helloworld = policy(&steered, "helloworld", "69", "ingressPerPortPolicies", json!([]));
    plane.tell(&json!({"do": "set", "version": "2", "resources": [of_sleep, of_helloworld]})).unwrap();
    assert_eq!(plane.answer().unwrap()["event"], "ack");
    for (server, node) in servers.into_iter().zip(steered.node_addresses()) {
        assert_eq!(told(&mut steered.connect("sleep", server)).ip(), node);
    }
}

/// A connection to the listener itself has the listener as its original destination: forwarded, it would come back.
#[test]
fn connections_to_the_listener_itself_are_reset() {
    if !inside("connections_to_the_listener_itself_are_reset") {
        return;
    }
    let mut steered = Steered::without_proxy();
    steered.write_policies(&anybody(&steered));
    let wildcard = format!(
        "- {{ name: all, address: \"0.0.0.0:{LISTENER_PORT}\", additional_addresses: [\"[::]:{LISTENER_PORT}\"], \
         transparent: true, {INGRESS} }}"
    );
    let addresses = |text: [&str; 2]| text.map(|ip| SocketAddr::new(ip.parse::<IpAddr>().unwrap(), LISTENER_PORT));
    let loopback = addresses(["127.0.0.1", "::1"]);
    let of_the_node = steered.node_addresses().map(|ip| SocketAddr::new(ip, LISTENER_PORT));
    for (listeners, targets, from_pods) in
        [(listener(INGRESS), loopback, false), (wildcard.clone(), loopback, false), (wildcard, of_the_node, true)]
    {
        steered.start_proxy(&steered.directory_source(), &listeners);
        for target in targets {
            if from_pods {
                steered.expect_reset("sleep", target, "hello");
            } else {
                Peer::expect_reset_at(target, "hello");
            }
        }
        let flows = steered.admin().expect_flows(targets.len());
        for flow in &flows {
            assert_eq!((&flow["verdict"], &flow["reason"]), (&json!("DROPPED"), &json!(Reason::Loop.code())), "{flow}");
        }
        steered.kill_proxy();
    }
}

#[test]
fn without_the_capabilities_it_does_not_start_and_says_which() {
    if !inside("without_the_capabilities_it_does_not_start_and_says_which") {
        return;
    }
    let steered = Steered::without_proxy();
    for (address, option) in [("127.0.0.1", "IP_TRANSPARENT"), ("[::1]", "IPV6_TRANSPARENT")] {
        let listeners =
            format!("- {{ name: steered, address: \"{address}:{LISTENER_PORT}\", transparent: true, {INGRESS} }}");
        let run = steered.configure(&steered.directory_source(), &listeners);
        let mut command = steered.world().command("setpriv");
        command.args(["--bounding-set=-net_admin,-net_raw", "--inh-caps=-net_admin,-net_raw", "--"]);
        command.arg(run.get_program()).args(run.get_args());
        let mut process = Process::start(&steered.path(""), "unprivileged", command);
        let status = process.wait();
        let output = process.output();
        assert_eq!(status.code(), Some(3), "{output}");
        let listener = format!("listener steered ({address}:{LISTENER_PORT})");
        for part in [&listener, option, "CAP_NET_ADMIN", "securityContext.capabilities.add", "`transparent: false`"] {
            assert!(output.contains(part), "{part} is not in: {output}");
        }
        assert!(!steered.admin().is_there());
    }
}

/// Connections that nothing takes.
fn refused_by_the_rules(steered: &Steered) -> u64 {
    let status = steered.world().redirect(&["status"]).unwrap();
    let line = status.lines().find(|line| line.contains("no listener")).expect(&status);
    let packets = line.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect(line)
}

/// While the proxy is away nothing gets around it, not even on connections that are open; the ones that wait are served
/// when it is back.
#[test]
fn without_the_proxy_nothing_passes_and_with_it_everything_does_again() {
    if !inside("without_the_proxy_nothing_passes_and_with_it_everything_does_again") {
        return;
    }
    let mut steered = Steered::new(only_sleep, INGRESS);
    for server in steered.sockets("helloworld", HTTP_PORT) {
        let upstream = steered.serve("helloworld", server, |peer, _| {
            while next_request(peer).is_some() {
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        });
        let request = |name: &str| format!("GET /hello HTTP/1.1\r\nHost: a\r\nX-Name: {name}\r\n\r\n");
        let mut open = steered.connect("sleep", server);
        open.send(request("before"));
        assert_eq!(open.read_message().status(), 200);
        let (connections, received) = (upstream.connections(), upstream.text());

        steered.kill_proxy();
        let _ = open.try_send(request("late"));
        open.read_to_any_end();
        let before = refused_by_the_rules(&steered);
        let url = format!("http://{server}/hello");
        let arguments = ["-sS", "-g", "--noproxy", "*", "--max-time", "60", "-w", " %{http_code}", &url];
        let mut waiting = steered.start_in("sleep", "curl", &arguments);
        waiting.until("a dropped packet", || (refused_by_the_rules(&steered) > before).then_some(()));
        assert_eq!((upstream.connections(), upstream.text()), (connections, received), "around the proxy");

        steered.start_proxy(&steered.directory_source(), &listener(INGRESS));
        assert!(waiting.wait().success(), "{}", waiting.output());
        assert_eq!(waiting.output(), "ok 200");
        assert!(!upstream.text().contains("late"), "{}", upstream.text());
        steered.admin().expect_flows(1);
    }
}
