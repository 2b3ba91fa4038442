//! The proxy under a control plane that behaves like a Cilium agent, in each of its modes, and one that misbehaves. All the
//! time a request is sent that must be denied, and one that must be allowed.
//!
//! `TOLLGATE_LONG=1` lets each kind of trouble last as long as it does in the field.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate_proto::json::network_policy_to_json;
use tollgate_tests::canary::Canary;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::strict_agent::Agent;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

#[path = "xds_agent/policy_memory.rs"]
mod policy_memory;
#[path = "xds_agent/policy_plane.rs"]
mod policy_plane;

const MODES: [&str; 3] = ["split", "ads", "delta-split"];

fn long() -> bool {
    std::env::var_os("TOLLGATE_LONG").is_some()
}

struct World {
    site: Site,
    agent: Agent,
    proxy: Proxy,
    _upstream: Upstream,
}

/// A proxy that finds the mode by itself, under an agent that has given it the usual policy. `None`, after saying why,
/// where there is no Python.
fn world(mode: &str) -> Option<World> {
    world_with(mode, "[]", |_, _| ())
}

/// The same with another section `identities`, and with what `more` has the agent do before the proxy is there.
fn world_with(mode: &str, identities: &str, more: impl FnOnce(&Site, &mut Agent)) -> Option<World> {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let socket = site.path("agent.sock");
    let mut agent = Agent::start(&socket)?;
    agent.run(&json!({"do": "set", "resources": [network_policy_to_json(&usual(&site)).unwrap()]}));
    more(&site, &mut agent);
    agent.listen(mode);
    let options = Options { mode: "auto", workers: 2, identities: identities.into(), ..Options::default() };
    let mut proxy = Proxy::attached(&site, upstream.address(), &options, &socket);
    agent.wait_for_ack("NetworkPolicy");
    proxy.wait_until_ready();
    Some(World { site, agent, proxy, _upstream: upstream })
}

fn stream_of(proxy: &Proxy, kind: &str) -> Value {
    let status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
    let streams = status["xds"].as_array().unwrap();
    streams.iter().find(|stream| stream["type_url"].as_str().unwrap().ends_with(&format!(".{kind}"))).unwrap().clone()
}

impl World {
    fn canary(&self) -> Canary {
        Canary::start(self.proxy.http(), "/allowed", "/denied")
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.proxy.get("/status").1).unwrap()
    }

    /// What status says of one type.
    fn stream(&self, kind: &str) -> Value {
        stream_of(&self.proxy, kind)
    }

    fn endpoints(&self) -> u64 {
        self.status()["policy"]["endpoints"].as_u64().unwrap()
    }
}

#[test]
fn trouble_changes_no_verdict_in_split_mode() {
    trouble("split");
}

#[test]
fn trouble_changes_no_verdict_in_ads_mode() {
    trouble("ads");
}

#[test]
fn trouble_changes_no_verdict_in_delta_split_mode() {
    trouble("delta-split");
}

fn trouble(mode: &str) {
    let Some(mut world) = world(mode) else { return };
    assert_eq!(world.stream("NetworkPolicy")["mode"], mode);
    let canary = world.canary();

    // Ten thousand endpoints come, one of them changes, one goes.
    world.agent.change(&json!({"do": "fill", "first": 1000, "count": 10_000}));
    assert_eq!(world.endpoints(), 10_001);
    world.agent.change(&json!({"do": "touch", "id": 1234, "port": 81}));
    world.agent.change(&json!({"do": "patch", "resources": [], "remove": ["1000"]}));
    assert_eq!(world.endpoints(), 10_000);
    let (before, _) = world.proxy.process().memory();
    let begins_anew = |agent: &mut Agent| {
        if mode == "delta-split" {
            agent.wait_for_ack("NetworkPolicy");
        }
    };

    for (bad, reason) in [
        ("garbage", "failed to decode"),
        ("truncated", "failed to decode"),
        ("wrong type", "wanted type.googleapis.com/cilium.NetworkPolicy"),
        ("not utf-8", "NetworkPolicy.endpoint_ips"),
    ] {
        let message = world.agent.refused(bad);
        assert!(message.starts_with("resource ") && message.contains(reason), "{bad}: {message}");
        // What comes next is taken, and the agent learns of it; then an incremental stream begins anew.
        world.agent.change(&json!({"do": "touch", "id": 1234, "port": 82}));
        begins_anew(&mut world.agent);
        world.agent.forget();
    }
    assert_eq!(world.endpoints(), 10_000);

    // Each refusal is answered with the same again.
    let refusals = world.agent.count("nack");
    world.agent.run(&json!({"do": "repeat", "bad": "garbage"}));
    world.agent.refused("garbage");
    thread::sleep(Duration::from_secs(if long() { 60 } else { 5 }));
    let refusals = world.agent.count("nack") - refusals;
    let bound = if long() { 50 } else { 12 };
    assert!((3..bound).contains(&refusals), "{refusals} refusals");
    world.agent.run(&json!({"do": "repeat", "bad": null}));
    world.agent.change(&json!({"do": "touch", "id": 1234, "port": 83}));
    begins_anew(&mut world.agent);

    // Streams end every 100 ms, with every endpoint on each new one.
    let requests = world.agent.count("requests");
    let times = if long() { 600 } else { 40 };
    world.agent.run(&json!({"do": "flap", "times": times, "every": 0.1}));
    let requests = world.agent.count("requests") - requests;
    assert!(requests < 4 * times, "{requests} requests while streams ended {times} times");
    world.agent.forget();
    world.agent.change(&json!({"do": "touch", "id": 1234, "port": 84}));

    // An agent that restarts binds its socket minutes before it serves it.
    world.agent.stop();
    world.agent.bind();
    thread::sleep(Duration::from_secs(if long() { 190 } else { 2 }));
    world.agent.stop();
    world.agent.forget();
    world.agent.listen(mode);
    world.agent.wait_for_ack("NetworkPolicy");
    assert_eq!(world.endpoints(), 10_000);

    let pairs = canary.stop();
    assert!(pairs > 100, "{pairs} pairs of requests");
    let (after, _) = world.proxy.process().memory();
    assert!(after < before + 200 * 1024, "{before} KiB before the trouble, {after} KiB after it");
}

#[test]
fn policies_that_contradict_each_other_widen_nothing() {
    for mode in MODES {
        let Some(mut world) = world(mode) else { return };
        let canary = world.canary();
        let own = network_policy_to_json(&usual(&world.site)).unwrap();
        // The same id with other rules for another address; the same address twice elsewhere; the same policy again.
        let everything = json!([{"port": HTTP_PORT}]);
        let other =
            |id: &str, ip: &str| json!({"endpointId": id, "endpointIps": [ip], "ingressPerPortPolicies": everything});
        let resources = [own.clone(), own, other("9", "192.0.2.9"), other("10", "192.0.2.9"), other("9", "192.0.2.10")];
        world.agent.change(&json!({"do": "set", "resources": resources}));
        let conflicts = world.status()["policy"]["conflicts"].to_string();
        assert!(conflicts.contains("192.0.2.9"), "{mode}: {conflicts}");
        // In split and ads the copy of our policy says nothing; as an incremental resource it has a name of its own.
        assert_eq!(world.endpoints(), if mode == "delta-split" { 5 } else { 4 }, "{mode}");
        thread::sleep(Duration::from_millis(200)); // for the canary
        assert!(canary.stop() > 0);
    }
}

#[test]
fn an_agent_that_changes_its_mode_again_and_again_is_followed() {
    let Some(mut world) = world("split") else { return };
    world.agent.change(&json!({"do": "fill", "first": 1000, "count": 1000}));
    let canary = world.canary();
    for flip in 1..=20 {
        world.agent.stop();
        world.agent.forget();
        let mode = MODES[flip % MODES.len()];
        world.agent.listen(mode);
        world.agent.wait_for_ack("NetworkPolicy");
        until("the mode in status", || (world.stream("NetworkPolicy")["mode"] == mode).then_some(()));
        world.agent.forget();
        world.agent.change(&json!({"do": "touch", "id": 1001, "port": 1000 + flip}));
    }
    assert!(canary.stop() > 0);
    assert_eq!(world.endpoints(), 1001);
    let output = world.proxy.process().output();
    let changes = output.matches("the control plane serves this xDS mode").count();
    assert_eq!(changes, 21, "each mode is told of once");
}

#[test]
fn secrets_come_rotate_and_go() {
    for mode in MODES {
        let Some(mut world) = world(mode) else { return };
        assert_eq!(world.stream("Secret")["wanted"], false);
        let rule = json!({
            "headers": [{"name": ":path", "stringMatch": {"exact": "/secret"}}],
            "headerMatches": [{"name": "x-token", "valueSdsSecret": "token", "mismatchAction": "FAIL_ON_MISMATCH"}],
        });
        let policy = ingress(&world.site, json!([http_port(HTTP_PORT, &[rule])]));
        world.agent.change(&json!({"do": "set", "resources": [network_policy_to_json(&policy).unwrap()]}));
        world.agent.wait_for_ack("Secret"); // of the answer that there is none
        let mut client = Peer::connect(world.proxy.http());
        let mut status = |token: &str| {
            client.send(format!("GET /secret HTTP/1.1\r\nHost: a\r\nX-Token: {token}\r\n\r\n"));
            client.read_message().status()
        };
        assert_eq!((status(""), status("one")), (403, 403), "{mode}: not delivered");
        let secret =
            |name: &str, value: &str| json!({"name": name, "genericSecret": {"secret": {"inlineString": value}}});
        for value in ["one", "two"] {
            let secrets = [secret("token", value), secret("nobody's", "x")];
            world.agent.change(&json!({"do": "set", "type": "Secret", "resources": secrets}));
            assert_eq!((status("one"), status("two")), if value == "one" { (200, 403) } else { (403, 200) }, "{mode}");
            assert_eq!(world.stream("Secret")["resources"], 1, "{mode}: nobody names the other one");
        }
        let certificate = json!({"name": "token", "tlsCertificate": {}});
        world.agent.change(&json!({"do": "set", "type": "Secret", "resources": [certificate]}));
        assert_eq!((status("two"), status("")), (403, 403), "{mode}");
        let missing = world.status()["policy"]["missing_secrets"].clone();
        assert_eq!(missing, json!([{"name": "token", "reason": "is not a generic secret"}]));
        world.agent.change(&json!({"do": "set", "type": "Secret", "resources": [secret("token", "three")]}));
        assert_eq!(status("three"), 200, "{mode}");
        // A stream that ends takes nothing away, and the next one delivers anew.
        world.agent.stop();
        assert_eq!(status("three"), 200, "{mode}: the last one counts while there is no stream");
        world.agent.run(&json!({"do": "set", "type": "Secret", "resources": [secret("token", "four")]}));
        world.agent.forget();
        world.agent.listen(mode);
        world.agent.wait_for_ack("Secret");
        assert_eq!((status("three"), status("four")), (403, 200), "{mode}");
        world.agent.forget();
        world.agent.change(&json!({"do": "set", "type": "Secret", "resources": []}));
        assert_eq!(status("four"), 403, "{mode}: withdrawn");
        let log = world.proxy.process().output();
        assert!(!log.contains("three") && !log.contains("four"), "no secret is logged");

        // When no policy names one any more, none is asked for.
        world.agent.change(&json!({"do": "set", "resources": [network_policy_to_json(&usual(&world.site)).unwrap()]}));
        until("no interest in secrets", || (world.stream("Secret")["wanted"] == false).then_some(()));
    }
}

/// In each mode, for policies and for hosts: what an update omits stays in an increment, nothing is lost with a stream, and the
/// first update of the next one replaces everything.
#[test]
fn only_the_first_update_of_a_stream_takes_away_what_it_omits() {
    const ADMITTED: u32 = 300;
    let hosts = |identity: u32, address: &str| json!({"policy": identity.to_string(), "hostAddresses": [address]});
    let own = |site: &Site| {
        let mut entry = http_port(HTTP_PORT, &[http_rule("GET", "/allowed")]);
        entry["rules"][0]["remotePolicies"] = json!([ADMITTED]);
        network_policy_to_json(&ingress(site, json!([entry]))).unwrap()
    };
    for mode in MODES {
        let Some(mut world) = world_with(mode, "nphds", |site, agent| {
            let kind = "NetworkPolicyHosts";
            agent.run(&json!({"do": "set", "resources": [own(site)]}));
            let known = [hosts(ADMITTED, "127.0.0.1/32"), hosts(301, "192.0.2.1/32")];
            agent.run(&json!({"do": "set", "type": kind, "resources": known}));
        }) else {
            return;
        };
        let http = world.proxy.http();
        let admitted = || {
            let mut client = Peer::connect(http);
            client.send("GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
            client.read_message().status() == 200
        };
        assert!(admitted(), "{mode}");
        world.agent.forget();
        let generation = |world: &World| world.status()["policy"]["generation"].as_u64().unwrap();
        let before = generation(&world);
        let other = json!([hosts(301, "192.0.2.2/32")]);
        world.agent.change(&json!({"do": "patch", "type": "NetworkPolicyHosts", "resources": other, "remove": []}));
        assert!(admitted(), "{mode}: what did not change is still known");
        assert_eq!(generation(&world), before, "{mode}: hosts are no policy");
        let other = json!([{"endpointId": "9", "endpointIps": ["192.0.2.9"]}]);
        world.agent.change(&json!({"do": "patch", "resources": other, "remove": []}));
        assert_eq!((world.endpoints(), generation(&world) > before, admitted()), (2, true, true), "{mode}");

        let before = generation(&world);
        world.agent.stop();
        until("the end of the stream", || (world.stream("NetworkPolicy")["connected"] == false).then_some(()));
        assert_eq!((world.endpoints(), generation(&world), admitted()), (2, before, true), "{mode}");

        world.agent.run(&json!({"do": "set", "resources": [own(&world.site)]}));
        let others = [hosts(301, "192.0.2.1/32")];
        world.agent.run(&json!({"do": "set", "type": "NetworkPolicyHosts", "resources": others}));
        world.agent.forget();
        world.agent.listen(mode);
        world.agent.wait_for_ack("NetworkPolicy");
        world.agent.wait_for_ack("NetworkPolicyHosts");
        assert_eq!((world.endpoints(), generation(&world) > before), (1, true), "{mode}");
        Peer::expect_reset_at(http, "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
    }
}

/// A strict control plane expects to be asked for what its listeners and clusters refer to. Nothing comes of it.
#[test]
fn what_listeners_and_clusters_refer_to_is_asked_for() {
    const MANAGER: &str =
        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    for mode in MODES {
        let site = Site::new();
        let socket = site.path("agent.sock");
        let Some(mut agent) = Agent::start(&socket) else { return };
        agent.run(&json!({"do": "set", "resources": [network_policy_to_json(&usual(&site)).unwrap()]}));
        agent.listen(mode);
        let mut proxy = Proxy::with_listeners_of(&site, "auto", &socket);
        agent.wait_for_ack("NetworkPolicy");
        proxy.wait_until_ready();
        let stream = |kind: &str| stream_of(&proxy, kind);
        let dump = |member: &str| {
            let text = proxy.get(&format!("/config_dump?include_eds&resource={member}")).1;
            serde_json::from_str::<Value>(&text).unwrap()["configs"].to_string()
        };
        for kind in ["RouteConfiguration", "ClusterLoadAssignment"] {
            assert_eq!(stream(kind)["wanted"], false, "{mode}: nobody refers to any {kind}");
        }

        let clusters = json!([
            {"name": "ns/cec/svc", "type": "EDS", "edsClusterConfig": {"serviceName": "ns/svc:80"}},
            {"name": "ns/other:80", "type": "EDS"},
            {"name": "static", "type": "STATIC"},
        ]);
        agent.change(&json!({"do": "set", "type": "Cluster", "resources": clusters}));
        let assigned = |name: &str| json!({"clusterName": name});
        let assignments = [assigned("ns/svc:80"), assigned("ns/other:80"), assigned("static")];
        agent.change(&json!({"do": "set", "type": "ClusterLoadAssignment", "resources": assignments}));
        until("both", || (stream("ClusterLoadAssignment")["resources"] == 2).then_some(()));
        let endpoints = dump("dynamic_endpoint_configs");
        assert!(endpoints.contains("\"ns/svc:80\"") && endpoints.contains("\"ns/other:80\""), "{mode}: {endpoints}");
        assert!(!endpoints.contains("static"), "{mode}: {endpoints}");

        let manager = json!({"@type": MANAGER, "rds": {"routeConfigName": "ns/cec/routes"}});
        let filters = json!([{"name": "envoy.filters.network.http_connection_manager", "typedConfig": manager}]);
        let listener = json!({"name": "ns/cec/l", "filterChains": [{"filters": filters}]});
        agent.change(&json!({"do": "set", "type": "Listener", "resources": [listener]}));
        let routes = json!([{"name": "ns/cec/routes"}, {"name": "nobody's"}]);
        agent.change(&json!({"do": "set", "type": "RouteConfiguration", "resources": routes}));
        until("its routes", || (stream("RouteConfiguration")["resources"] == 1).then_some(()));
        let routes = dump("dynamic_route_configs");
        assert!(routes.contains("ns/cec/routes") && !routes.contains("nobody's"), "{mode}: {routes}");
        assert!(proxy.get("/status").1.contains("ns/cec/l"), "it is not served, and listed");

        // What refers to them goes, and they with it.
        agent.change(&json!({"do": "patch", "type": "Cluster", "resources": [], "remove": ["ns/cec/svc"]}));
        until("one", || (stream("ClusterLoadAssignment")["resources"] == 1).then_some(()));
        agent.change(&json!({"do": "set", "type": "Listener", "resources": []}));
        until("no routes", || (stream("RouteConfiguration")["wanted"] == false).then_some(()));
        assert_eq!(dump("dynamic_route_configs"), "[]", "{mode}");
    }
}
