//! Programs that people use, on both ends: curl and wrk, nginx, Python's websockets, a control plane with grpcio.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_tests::nginx::Nginx;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress};
use tollgate_tests::process::Process;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::{ControlPlane, python};
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";

/// Runs curl, and returns what it printed.
fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["--silent", "--show-error", "--max-time", "20"]).args(arguments).output();
    let output = output.expect("curl runs");
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A proxy in front of an nginx with a small file and one of 3 MiB.
fn nginx_behind_proxy() -> (Site, Proxy, Nginx, Vec<u8>) {
    let site = Site::new();
    let large: Vec<u8> = (0..3_u32 << 20).map(|at| (at % 251) as u8).collect();
    let nginx = Nginx::start(&site, &[("allowed/small", b"hello"), ("allowed/large", &large), ("secret", b"secret")]);
    let proxy = Proxy::start(&site, nginx.address());
    (site, proxy, nginx, large)
}

#[test]
fn curl_gets_files_from_nginx() {
    let (site, proxy, _nginx, large) = nginx_behind_proxy();
    let url = |path: &str| format!("http://{}{path}", proxy.http());
    // One connection for all of them.
    let text = curl(&[
        "--write-out",
        "|%{http_code} %{num_connects}|",
        &url("/allowed/small"),
        &url("/secret"),
        &url("/allowed/none"),
        &url("/allowed/small"),
    ]);
    let codes: Vec<&str> = text.split('|').skip(1).step_by(2).collect();
    assert_eq!(codes, ["200 1", "403 0", "404 0", "200 0"], "{text}");
    assert!(!text.contains("secret"), "{text}");

    let file = site.path("large");
    let to = file.to_str().unwrap();
    let code = curl(&["--output", to, "--write-out", "%{http_code}", &url("/allowed/large")]);
    assert_eq!(code, "200");
    assert!(fs::read(&file).unwrap() == large, "the file came whole");
    let range = ["--range", "1000-1999", "--output", to, "--write-out", "%{http_code}", &url("/allowed/large")];
    assert_eq!(curl(&range), "206");
    assert!(fs::read(&file).unwrap() == large[1000..2000]);
    let head = curl(&["--head", &url("/allowed/large")]);
    assert!(head.contains("Content-Length: 3145728"), "{head}");
    assert_eq!(curl(&["--http1.0", &url("/allowed/small")]), "hello");

    // curl waits for 100 before a body of this size; nginx refuses the method after it.
    let body = format!("@{to}");
    fs::write(&file, &large).unwrap();
    for (path, code) in [("/allowed/small", "405"), ("/secret", "403")] {
        let upload = ["--data-binary", &body, "--output", "/dev/null", "--write-out", "%{http_code}", &url(path)];
        assert_eq!(curl(&upload), code, "{path}");
    }
}

#[test]
fn wrk_sees_no_errors() {
    let (_site, proxy, _nginx, _) = nginx_behind_proxy();
    let url = format!("http://{}/allowed/small", proxy.http());
    let output = Command::new("wrk").args(["-t1", "-c20", "-d1s", &url]).output().expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("requests in"), "{text}");
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
}

/// A proxy in front of a WebSocket server.
fn websockets_behind_proxy(python: &Path) -> (Site, Proxy, Process) {
    let site = Site::new();
    let (server, address) = script::serve(python, &site, "websocket_peer.py", &["serve", &site.ip().to_string()]);
    let proxy = Proxy::start(&site, address.parse().unwrap());
    (site, proxy, server)
}

#[test]
fn websockets_pass_after_an_allowed_handshake() {
    let Some(python) = python() else { return };
    let (site, proxy, _server) = websockets_behind_proxy(python);
    let seen = script::run(python, &site, "websocket_peer.py", &["call", &proxy.http().to_string()]);
    // The handshake's extension (compression) came through, too.
    let expected = json!({"extensions": 1, "echoes": 4, "pong": true, "closed": [4001, "as asked"], "denied": 403});
    assert_eq!(seen, expected);
    let flows = proxy.expect_flows(2);
    assert_eq!(flows[0]["l7"]["http"]["code"], 101);
    assert!(flows[0]["bytes_up"].as_u64() > Some(1 << 20), "{}", flows[0]);
}

#[test]
fn a_websocket_ends_when_policy_no_longer_allows_its_handshake() {
    let Some(python) = python() else { return };
    let (site, proxy, _server) = websockets_behind_proxy(python);
    let arguments = ["hold", &proxy.http().to_string()];
    let (mut client, ready) = script::serve(python, &site, "websocket_peer.py", &arguments);
    assert_eq!(ready, "ready");
    proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("GET", "/other")])]))]);
    assert_eq!(client.wait().code(), Some(0), "{}", client.output());
    assert_eq!(client.output().lines().last(), Some(r#"{"closed": null}"#));
    proxy.expect_reason(Reason::Revoked);
}

/// Policy from a control plane that shares no code with ours.
#[test]
fn a_control_plane_in_python_steers_the_proxy() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let socket = site.path("python.sock");
    let mut control = ControlPlane::start(python).unwrap();
    control.listen(&socket).unwrap();
    let set = |control: &mut ControlPlane, version: &str, path: &str| -> Value {
        let policy = json!({
            "endpoint_ips": [site.ip().to_string()], "endpoint_id": 7,
            "ingress_per_port_policies": [http_port(HTTP_PORT, &[http_rule("GET", path)])],
        });
        control.tell(&json!({"do": "set", "version": version, "resources": [policy]})).unwrap();
        control.answer().unwrap()
    };
    let mut proxy = Proxy::attached(&site, upstream.address(), &Options::default(), &socket);
    assert_eq!(set(&mut control, "1", "/other")["event"], "ack");
    proxy.wait_until_ready();
    let mut client = Peer::connect(proxy.http());
    let mut status = || {
        client.send(GET);
        client.read_message().status()
    };
    assert_eq!(status(), 403);
    assert_eq!(set(&mut control, "2", "/allowed")["event"], "ack");
    assert_eq!(status(), 200);
    let garbage = json!({"type_url": "type.googleapis.com/cilium.NetworkPolicy", "hex": "ffff"});
    control.tell(&json!({"do": "send", "version": "3", "resources": [garbage]})).unwrap();
    assert_eq!(control.answer().unwrap()["event"], "nack");
    assert_eq!(status(), 200);
    drop(control);
    assert_eq!(status(), 200);
}
