//! The admin socket as Cilium's agent and its tools use it: curl over the Unix socket, with the `Host` that an agent sends.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

/// Status and body.
fn curl(socket: &PathBuf, arguments: &[&str], path: &str) -> (String, String) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "-H", "Host: envoy-admin", "-w", "%{http_code}", "--unix-socket"]);
    let output = curl.arg(socket).args(arguments).arg(format!("http://envoy-admin{path}")).output().unwrap();
    assert!(output.status.success(), "{path}: {output:?}");
    let mut body = String::from_utf8(output.stdout).unwrap();
    let status = body.split_off(body.len() - 3);
    (status, body)
}

#[test]
fn an_agent_finds_what_it_asks_for() {
    const COMMIT: &str = "d1c4f0ba8e0d5b1d1b6b1f0e3c1f3a5b7c9d0e1f";
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let top = format!("reported_version: \"{COMMIT}/1.2.3/Clean\"");
    let options = Options { top, ..Options::default() };
    let mut proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let socket = site.path("admin.sock");
    let get = |path: &str| {
        let (status, body) = curl(&socket, &[], path);
        assert_eq!(status, "200", "{path}: {body}");
        body
    };
    let post = |path: &str| curl(&socket, &["-X", "POST", "-d", ""], path);
    let json = |path: &str| -> Value { serde_json::from_str(&get(path)).unwrap() };

    assert_eq!(get("/ready"), "LIVE\n");
    assert!(json("/server_info")["version"].as_str().unwrap().starts_with(COMMIT));

    // The level counts at once, and nonsense changes nothing.
    for (level, status) in [("warning", "200"), ("debug", "200"), ("loud", "400")] {
        assert_eq!(post(&format!("/logging?level={level}")).0, status, "{level}");
    }
    let mut client = Peer::connect(proxy.http());
    client.send("GET /allowed HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_message().status(), 400);
    drop(client);
    until("an event of the level debug", || proxy.process().output().contains("DEBUG").then_some(()));

    // A tool waits in this way for the connections of a listener to end.
    let active = || get("/stats?usedonly&filter=%5Elistener%5C.http%5C.downstream_cx_active");
    let mut client = Peer::connect(proxy.http());
    client.send("GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_message().status(), 200);
    until("one connection", || (active() == "listener.http.downstream_cx_active: 1\n").then_some(()));
    drop(client);
    until("its end", || (active() == "listener.http.downstream_cx_active: 0\n").then_some(()));
    let scrape = get("/stats/prometheus");
    for line in [
        "envoy_listener_downstream_cx_total{envoy_listener_address=\"http\"} 2\n",
        "envoy_cluster_upstream_rq_xx{envoy_cluster_name=\"ingress-cluster\",envoy_response_code_class=\"2\"} 1\n",
        "envoy_http_downstream_rq_xx{envoy_response_code_class=\"2\",envoy_http_conn_manager_prefix=\"proxy\"} 1\n",
        "envoy_cilium_npds_update_success 1\n",
        "envoy_server_live 1\n",
        "tollgate_connections_total{listener=\"http\",direction=\"ingress\"} 2\n",
    ] {
        assert!(scrape.contains(line), "{line} is not in {scrape}");
    }

    let names = |listeners: &Value| -> Vec<String> {
        let statuses = listeners["listener_statuses"].as_array().unwrap().iter();
        statuses.map(|status| status["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&json("/listeners?format=json")), ["http", "tcp"]);
    get("/clusters");
    let dump = json("/config_dump?include_eds");
    let policies = dump["configs"].as_array().unwrap().iter().find_map(|config| config.get("networkpolicies"));
    assert_eq!(policies.unwrap()[0]["endpointIps"], json!([site.ip().to_string()]));
    let alone = json("/config_dump?include_eds&resource=networkpolicies");
    assert_eq!(alone["configs"][0]["endpointIps"], json!([site.ip().to_string()]));

    assert_eq!(curl(&socket, &[], "/quitquitquit").0, "405", "it takes more than to look at it");
    assert_eq!(post("/quitquitquit").0, "200");
    assert!(proxy.wait().success());
}
