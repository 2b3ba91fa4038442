//! The xDS client against a control plane that was written in Python from the same specification, over a Unix socket.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tollgate_proto::cilium::{NetworkPolicy, NetworkPolicyHosts};
use tollgate_tests::python::{ControlPlane, python};
use tollgate_xds::{
    Address, Backoff, Client, ClientConfig, Handler, NETWORK_POLICY, NETWORK_POLICY_HOSTS, Node, Rejection, State,
    Status, Update,
};

/// What a handler made of an update: version, first on its stream, ids of all endpoints.
type Applied = (String, bool, Vec<u64>);

struct Policies {
    state: State<NetworkPolicy>,
    applied: SyncSender<Applied>,
}

impl Handler for Policies {
    type Resource = NetworkPolicy;

    fn name(policy: &NetworkPolicy) -> String {
        policy.endpoint_id.to_string()
    }

    async fn apply(&mut self, update: Update<NetworkPolicy>) -> Result<(), Rejection> {
        let (version, first_on_stream) = (update.version.clone(), update.first_on_stream);
        self.state = self.state.after(update);
        let mut ids: Vec<_> = self.state.iter().map(|(_, policy)| policy.endpoint_id).collect();
        ids.sort_unstable();
        self.applied.send((version, first_on_stream, ids)).unwrap();
        Ok(())
    }
}

struct Hosts;

impl Handler for Hosts {
    type Resource = NetworkPolicyHosts;

    fn name(hosts: &NetworkPolicyHosts) -> String {
        hosts.policy.to_string()
    }

    async fn apply(&mut self, update: Update<NetworkPolicyHosts>) -> Result<(), Rejection> {
        match update.changed.iter().find(|resource| resource.message.host_addresses.is_empty()) {
            Some(resource) => {
                Err(Rejection::new(format!("NetworkPolicyHosts {}: no address", resource.message.policy)))
            }
            None => Ok(()),
        }
    }
}

/// The client on a thread and a runtime of its own, as the proxy runs it; ends when dropped.
struct Running {
    status: Status,
    applied: Receiver<Applied>,
    _stop: oneshot::Sender<()>,
}

fn connect(socket: &Path) -> Running {
    let node = Node {
        id: "host~127.0.0.1~no-id~localdomain".into(),
        cluster: "ingress-cluster".into(),
        user_agent: "tollgate".into(),
        user_agent_version: "0.1.0".into(),
    };
    let config = ClientConfig {
        backoff: Backoff { initial: Duration::from_millis(10), max: Duration::from_millis(50) },
        ..ClientConfig::new(node, Address::Unix(socket.to_owned()))
    };
    let (sender, applied) = sync_channel(100);
    let client = Client::new(config);
    let client = client
        .subscribe(NETWORK_POLICY, Policies { state: State::default(), applied: sender })
        .subscribe(NETWORK_POLICY_HOSTS, Hosts);
    let status = client.status();
    let (stop, stopped) = oneshot::channel::<()>();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                () = client.run() => {}
                _ = stopped => {}
            }
        });
    });
    Running { status, applied, _stop: stop }
}

impl Running {
    fn applied(&self) -> Applied {
        self.applied.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

fn set(version: &str, ids: &[u64]) -> Value {
    let resources: Vec<_> =
        ids.iter().map(|id| json!({"endpoint_id": id.to_string(), "endpoint_ips": [format!("10.0.0.{id}")]})).collect();
    json!({"do": "set", "version": version, "resources": resources})
}

/// A request in protobuf's wire form, put together by hand. Fields are those of `DiscoveryRequest`.
fn wire(version_info: &str, type_url: &str, response_nonce: &str) -> String {
    let mut bytes = Vec::new();
    for (tag, text) in [(0x0a, version_info), (0x22, type_url), (0x2a, response_nonce)] {
        if !text.is_empty() {
            bytes.extend([tag, u8::try_from(text.len()).unwrap()]);
            bytes.extend(text.as_bytes());
        }
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct World {
    directory: TempDir,
    plane: ControlPlane,
}

/// `None`, after saying why, where there is no Python.
fn world() -> Option<World> {
    let plane = ControlPlane::start(python()?).unwrap();
    Some(World { directory: tempfile::tempdir().unwrap(), plane })
}

impl World {
    fn listen(&mut self) -> std::path::PathBuf {
        let socket = self.directory.path().join("xds.sock");
        self.plane.listen(&socket).unwrap();
        socket
    }

    /// Gives a command and returns the answer of the proxy to what it sends.
    fn exchange(&mut self, command: &Value) -> Value {
        self.plane.tell(command).unwrap();
        self.plane.answer().unwrap()
    }
}

#[test]
fn requests_have_the_bytes_that_the_specification_gives_them() {
    let Some(mut world) = world() else { return };
    let client = connect(&world.listen());

    let mut opened = [world.plane.wait_for("open").unwrap(), world.plane.wait_for("open").unwrap()];
    opened.sort_by_key(|event| event["type"].to_string());
    for (event, service) in opened.iter().zip([NETWORK_POLICY, NETWORK_POLICY_HOSTS]) {
        let expected = json!({
            "node": {"id": "host~127.0.0.1~no-id~localdomain", "cluster": "ingress-cluster",
                     "user_agent_name": "tollgate", "user_agent_version": "0.1.0"},
            "type_url": service.type_url,
        });
        assert_eq!(event["request"], expected, "no version, no nonce, no names");
    }
    world.plane.tell(&set("1", &[7])).unwrap();
    world.plane.tell(&json!({"do": "set", "version": "5", "type": "NetworkPolicyHosts", "resources": []})).unwrap();
    for answer in [world.plane.answer().unwrap(), world.plane.answer().unwrap()] {
        let (service, version) = match answer["type"].as_str() {
            Some("NetworkPolicy") => (NETWORK_POLICY, "1"),
            _ => (NETWORK_POLICY_HOSTS, "5"),
        };
        assert_eq!(answer["event"], "ack");
        assert_eq!(answer["hex"], wire(version, service.type_url, version), "{answer}");
    }
    assert_eq!(client.applied(), ("1".into(), true, vec![7]));

    // Version and nonce are opaque and need not agree.
    let mut command = set("opaque version", &[7, 8]);
    command["nonce"] = "n/2".into();
    let answer = world.exchange(&command);
    assert_eq!(answer["hex"], wire("opaque version", NETWORK_POLICY.type_url, "n/2"));
    assert_eq!(client.applied(), ("opaque version".into(), false, vec![7, 8]));
}

#[test]
fn garbage_is_refused_with_the_last_accepted_version_and_the_place() {
    let Some(mut world) = world() else { return };
    world.plane.tell(&set("3", &[1])).unwrap();
    let client = connect(&world.listen());
    assert_eq!(world.plane.answer().unwrap()["event"], "ack");
    assert_eq!(client.applied().0, "3");

    let good = "0a0831302e302e302e31".to_owned() + "1001";
    let cases = [
        (json!([{"hex": good}, {"hex": "0a05ff"}]), "resource 1 of 2 (type.googleapis.com/cilium.NetworkPolicy): "),
        (json!([{"hex": &good[..good.len() - 2]}]), "resource 0 of 1 (type.googleapis.com/cilium.NetworkPolicy): "),
        (json!([{"hex": "0a02fffe"}]), "NetworkPolicy.endpoint_ips"),
        (json!([{"hex": "", "type_url": "type.googleapis.com/cilium.NetworkPolicyHosts"}]), "wrong type"),
    ];
    for (index, (resources, reason)) in cases.into_iter().enumerate() {
        let nonce = (index + 4).to_string();
        let answer = world.exchange(&json!({"do": "send", "version": nonce, "resources": resources}));
        assert_eq!(answer["event"], "nack");
        let request = &answer["request"];
        assert_eq!((&request["version_info"], &request["response_nonce"]), (&json!("3"), &json!(nonce)));
        assert_eq!(request["error_detail"]["code"], 3);
        let message = request["error_detail"]["message"].as_str().unwrap();
        assert!(message.contains(reason), "{message:?} does not contain {reason:?}");
    }
    let wrong = json!({"do": "send", "version": "20", "resources": [], "type_url": "type.googleapis.com/cilium.Other"});
    let answer = world.exchange(&wrong);
    assert_eq!((&answer["event"], &answer["request"]["version_info"]), (&json!("nack"), &json!("3")));

    let answer = world.exchange(&set("21", &[2]));
    assert_eq!(answer["event"], "ack");
    assert_eq!(client.applied(), ("21".into(), false, vec![2]), "nothing of the garbage was applied");
    let status = client.status.stream(NETWORK_POLICY.type_url).unwrap();
    assert_eq!((status.acks, status.nacks, status.reconnects), (2, 5, 0));
}

#[test]
fn what_the_handler_rejects_is_refused_with_its_words() {
    let Some(mut world) = world() else { return };
    let _client = connect(&world.listen());
    let kind = "NetworkPolicyHosts";
    world.plane.wait_for("open").unwrap();
    world.plane.wait_for("open").unwrap();
    let bad = json!({"do": "set", "type": kind, "version": "1", "resources": [{"policy": "42"}]});
    let answer = world.exchange(&bad);
    assert_eq!(answer["event"], "nack");
    assert_eq!(answer["request"]["error_detail"]["message"], "NetworkPolicyHosts 42: no address");
    assert_eq!(answer["request"].get("version_info"), None, "nothing was accepted on this stream");
    let good = json!({"policy": "42", "host_addresses": ["10.0.0.1/32"]});
    let answer = world.exchange(&json!({"do": "set", "type": kind, "version": "2", "resources": [good]}));
    assert_eq!(answer["hex"], wire("2", NETWORK_POLICY_HOSTS.type_url, "2"));
}

#[test]
fn a_restarted_server_gets_a_fresh_start_and_may_count_from_one_again() {
    let Some(mut world) = world() else { return };
    world.plane.tell(&set("900", &[1, 2])).unwrap();
    let client = connect(&world.listen());
    assert_eq!(world.plane.answer().unwrap()["event"], "ack");
    assert_eq!(client.applied(), ("900".into(), true, vec![1, 2]));

    world.plane.tell(&json!({"do": "stop"})).unwrap();
    world.plane.wait_for("stopped").unwrap();
    world.plane.tell(&set("1", &[3])).unwrap();
    world.listen();
    let answer = world.plane.answer().unwrap();
    assert_eq!(answer["hex"], wire("1", NETWORK_POLICY.type_url, "1"));
    assert_eq!(client.applied(), ("1".into(), true, vec![3]));

    // A process that is killed closes nothing in order.
    world.plane = ControlPlane::start(python().unwrap()).unwrap();
    world.plane.tell(&set("1", &[4])).unwrap();
    world.listen();
    let opened = world.plane.wait_for("open").unwrap();
    assert_eq!((opened["request"].get("version_info"), opened["request"].get("response_nonce")), (None, None));
    assert_eq!(world.plane.answer().unwrap()["event"], "ack");
    assert_eq!(client.applied(), ("1".into(), true, vec![4]));
    assert!(client.status.stream(NETWORK_POLICY.type_url).unwrap().reconnects >= 2);
}

#[test]
fn streams_that_the_server_drops_come_back_whatever_the_reason() {
    let Some(mut world) = world() else { return };
    world.plane.tell(&set("1", &[1])).unwrap();
    let client = connect(&world.listen());
    assert_eq!(world.plane.answer().unwrap()["event"], "ack");
    assert!(client.applied().1);
    for code in ["UNAVAILABLE", "UNIMPLEMENTED", "INVALID_ARGUMENT", "OK"] {
        let answer = world.exchange(&json!({"do": "drop", "code": code}));
        assert_eq!(answer["event"], "ack", "after {code}");
        assert_eq!(client.applied(), ("1".into(), true, vec![1]), "after {code}");
    }
    // Bytes that are no DiscoveryResponse have no nonce to refuse.
    let answer = world.exchange(&json!({"do": "send_message", "hex": "ffffff"}));
    assert_eq!(answer["event"], "ack");
    assert_eq!(client.applied(), ("1".into(), true, vec![1]));
    // Five ends, and after UNIMPLEMENTED one try of each other mode, which this server does not serve.
    assert_eq!(client.status.stream(NETWORK_POLICY.type_url).unwrap().reconnects, 7);
}

#[test]
fn a_response_of_many_megabytes_is_accepted() {
    let Some(mut world) = world() else { return };
    let client = connect(&world.listen());
    world.plane.wait_for("open").unwrap();
    world.plane.wait_for("open").unwrap();
    world.plane.tell(&json!({"do": "fill", "version": "1", "count": 40_000, "bytes": 500})).unwrap();
    let sent = world.plane.wait_for("sent").unwrap();
    assert!(sent["bytes"].as_u64().unwrap() > 20_000_000, "{sent}");
    assert_eq!(world.plane.answer().unwrap()["event"], "ack");
    assert_eq!(client.applied().2.len(), 40_000);
}
