//! The proxy under xDS servers that others have published (`tests/interop`): their streams, versions and nonces, our types,
//! and verdicts on real requests of pods.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;

use prost::Name as _;
use serde_json::{Value, json};
use tollgate_proto::cilium::{NetworkPolicy, NetworkPolicyHosts};
use tollgate_proto::envoy::config::cluster::v3::Cluster;
use tollgate_proto::envoy::config::core::v3::{DataSource, data_source};
use tollgate_proto::envoy::config::listener::v3::Listener;
use tollgate_proto::envoy::extensions::transport_sockets::tls::v3::{GenericSecret, Secret, secret};
use tollgate_proto::json::network_policy_from_value;
use tollgate_tests::agent::http_ingress;
use tollgate_tests::netns::inside;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::http_rule;
use tollgate_tests::process::Process;
use tollgate_tests::proxy::binary;
use tollgate_tests::public_control_plane::{Answer, PublicControlPlane, program};
use tollgate_tests::steered::{HTTP_PORT, LISTENER_PORT, SLEEP, Steered};
use tollgate_tests::upstream::{OK, Upstream, next_request};

/// Where a stream of policies alone is asked for.
const POLICIES: &str = "/cilium.NetworkPolicyDiscoveryService/";

#[test]
fn rust_control_plane_drives_split_streams() {
    the_server_drives_the_proxy("rust_control_plane_drives_split_streams", "rust-control-plane", "split");
}

#[test]
fn rust_control_plane_drives_an_aggregated_stream() {
    the_server_drives_the_proxy("rust_control_plane_drives_an_aggregated_stream", "rust-control-plane", "ads");
}

#[test]
fn quilkin_xds_drives_incremental_streams() {
    the_server_drives_the_proxy("quilkin_xds_drives_incremental_streams", "quilkin-xds", "delta-split");
}

/// Pods, and a proxy that knows nothing but where the server is.
struct Node {
    steered: Steered,
    server: PublicControlPlane,
    _proxy: Process,
    _upstream: Upstream,
}

fn the_server_drives_the_proxy(test: &str, name: &str, mode: &str) {
    // Outside first: inside there is no network to build it with.
    let Some(program) = program() else { return };
    if !inside(test) {
        return;
    }
    let mut node = Node::start(PublicControlPlane::start(program, name), mode);
    let mut open = node.connect();
    assert_eq!(get(&mut open, "/hello", ""), (200, "ok".into()));
    assert_eq!(get(&mut open, "/other", ""), (403, "Not here.\r\n".into()), "the listener's own words");
    let methods = node.server.methods().iter().any(|method| method.starts_with(POLICIES));
    assert_eq!(methods, mode != "ads", "{:?}", node.server.methods());
    assert_eq!(node.stream("NetworkPolicy")["mode"], mode);

    // Policy, identity: no wait between the acknowledgement and the request.
    let wider = node.policy(&[http_rule("GET", "/hello|/other")]);
    node.server.push(&[("69", &wider)]);
    assert_eq!(get(&mut open, "/other", "").0, 200);
    node.server.push(&[("1", &node.hosts(1))]);
    assert_eq!(get(&mut open, "/other", "").0, 403, "the address carries another identity");
    node.server.push(&[("32226", &node.hosts(SLEEP))]);
    let mut open = node.connect();
    assert_eq!(get(&mut open, "/other", "").0, 200);

    // The secret that the policies name. Nobody asks for the other one.
    assert_eq!([get(&mut open, "/secret", "one").0, get(&mut open, "/secret", "two").0], [200, 403]);
    node.server.push(&[("token", &secret("token", "two")), ("other", &secret("other", "1"))]);
    assert_eq!([get(&mut open, "/secret", "one").0, get(&mut open, "/secret", "two").0], [403, 200]);
    let token = node.stream("Secret");
    assert_eq!((&token["resources"], &token["nacks"]), (&json!(1), &json!(0)), "{token}");

    refused(&mut node);

    // Without any listener, what comes next still counts.
    node.server.push::<Listener>(&[]);
    assert_eq!(node.steered.admin().get("/listeners").1, "");
    let other = node.policy(&[http_rule("GET", "/other")]);
    node.server.push(&[("69", &other)]);
    node.server.push(&[("1", &node.hosts(1))]);
    let listener = http_ingress("cilium-http-ingress", LISTENER_PORT, "");
    node.server.push(&[("cilium-http-ingress", &listener)]);
    let helloworld = node.steered.sockets("helloworld", HTTP_PORT)[0];
    node.steered.expect_reset("sleep", helloworld, "GET /other HTTP/1.1\r\nHost: a\r\n\r\n");
    node.server.push(&[("32226", &node.hosts(SLEEP))]);
    let mut client = node.connect();
    assert_eq!([get(&mut client, "/new", "").0, get(&mut client, "/other", "").0], [403, 200]);
}

/// Bytes that are no policy: the server gets to know why, everything stays as it was, and what is right again is taken.
fn refused(node: &mut Node) {
    let url = format!("type.googleapis.com/{}", NetworkPolicy::full_name());
    node.server.set_bytes(&url, &[("69", vec![0x0a, 0x05, 0xff])]);
    let Answer::Nack(why) = node.server.answer::<NetworkPolicy>() else { panic!("that is no policy") };
    assert!(why.starts_with("resource 0 of 1 (") && why.contains("NetworkPolicy.endpoint_ips"), "{why}");
    let stream = node.stream("NetworkPolicy");
    node.server.says(if stream["mode"] == "delta-split" { "NACK" } else { "responding: new version" });
    assert!(stream["nacks"].as_u64().unwrap() >= 1, "{stream}");
    let mut client = node.connect();
    assert_eq!([get(&mut client, "/other", "").0, get(&mut client, "/new", "").0], [200, 403], "as before");
    let other = node.policy(&[http_rule("GET", "/new")]);
    node.server.push(&[("69", &other)]);
    assert_eq!([get(&mut client, "/other", "").0, get(&mut client, "/new", "").0], [403, 200]);
}

impl Node {
    fn start(mut server: PublicControlPlane, mode: &str) -> Self {
        let steered = Steered::without_proxy();
        let socket = steered.path("xds.sock");
        let configuration = format!(
            "workers: 2\n\
             admin: {{ address: \"unix:{admin}\" }}\n\
             xds: {{ address: \"unix:{socket}\", mode: {mode} }}\n\
             identities: nphds\n\
             listeners: xds\n",
            admin = steered.path("admin.sock").display(),
            socket = socket.display(),
        );
        let file = steered.path("tollgate.yaml");
        fs::write(&file, configuration).unwrap();
        let mut command = steered.world().command(binary());
        command.args(["run", "--log-level", "info", "-c"]).arg(&file);
        let upstream = steered.serve("helloworld", steered.sockets("helloworld", HTTP_PORT)[0], |peer, _| {
            while next_request(peer).is_some() {
                peer.send(OK);
            }
        });
        let cluster = Cluster { name: "ingress-cluster".into(), ..Cluster::default() };
        let listener = http_ingress("cilium-http-ingress", LISTENER_PORT, "Not here.");
        let hosts = hosts(&steered, SLEEP);
        let policy = policy(&steered, &[http_rule("GET", "/hello")]);
        server.set(&[("ingress-cluster", &cluster)]);
        server.set(&[("cilium-http-ingress", &listener)]);
        server.set(&[("32226", &hosts)]);
        server.set(&[("token", &secret("token", "one")), ("other", &secret("other", "1"))]);
        server.set(&[("69", &policy)]);
        server.listen(&socket);
        let mut proxy = Process::start(&steered.path(""), "tollgate", command);
        steered.admin().until_ready(&mut proxy);
        server.settle();
        Self { steered, server, _proxy: proxy, _upstream: upstream }
    }

    fn policy(&self, rules: &[Value]) -> NetworkPolicy {
        policy(&self.steered, rules)
    }

    fn hosts(&self, identity: u32) -> NetworkPolicyHosts {
        hosts(&self.steered, identity)
    }

    fn connect(&self) -> Peer {
        self.steered.connect("sleep", self.steered.sockets("helloworld", HTTP_PORT)[0])
    }

    /// What status says of the stream of a type.
    fn stream(&self, kind: &str) -> Value {
        let status: Value = serde_json::from_str(&self.steered.admin().get("/status").1).unwrap();
        let streams = status["xds"].as_array().unwrap();
        let of_kind =
            |stream: &&Value| stream["type_url"].as_str().is_some_and(|url| url.ends_with(&format!(".{kind}")));
        streams.iter().find(of_kind).unwrap().clone()
    }
}

/// `sleep` may ask `helloworld` for what one of the rules admits, and for /secret with the secret.
fn policy(steered: &Steered, rules: &[Value]) -> NetworkPolicy {
    let of_secret = json!({
        "headers": [{"name": ":path", "stringMatch": {"exact": "/secret"}}],
        "headerMatches": [{"name": "x-token", "valueSdsSecret": "token", "mismatchAction": "FAIL_ON_MISMATCH"}],
    });
    let rules = [rules, &[of_secret]].concat();
    let rule = json!({"remotePolicies": [SLEEP], "httpRules": {"httpRules": rules}});
    let policy = json!({
        "endpointIps": steered.addresses("helloworld"),
        "endpointId": "69",
        "ingressPerPortPolicies": [{"port": HTTP_PORT, "rules": [rule]}],
    });
    network_policy_from_value(policy).unwrap()
}

/// The addresses of `sleep` carry this identity.
fn hosts(steered: &Steered, identity: u32) -> NetworkPolicyHosts {
    let host_addresses = steered.addresses("sleep").map(|address| address.to_string()).to_vec();
    NetworkPolicyHosts { policy: identity.into(), host_addresses }
}

fn secret(name: &str, value: &str) -> Secret {
    let inline =
        DataSource { specifier: Some(data_source::Specifier::InlineString(value.into())), ..DataSource::default() };
    let generic = GenericSecret { secret: Some(inline), ..GenericSecret::default() };
    Secret { name: name.into(), r#type: Some(secret::Type::GenericSecret(generic)) }
}

fn get(client: &mut Peer, path: &str, token: &str) -> (u16, String) {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Token: {token}\r\n\r\n"));
    let response = client.read_message();
    (response.status(), String::from_utf8(response.body).unwrap())
}
