//! Policies that take long to compile, and those that nothing can be made of: nobody else notices.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate_proto::json::network_policy_to_json;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::strict_agent::Agent;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::{MODES, World};

/// The site's endpoint may compile for a millisecond each second.
const POOR: &str =
    "tenants: { groups: [ { name: poor, members: { endpoint_ids: [7] }, policy: { compile_per_second: 1ms } } ] }";

fn world(mode: &str) -> Option<World> {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let socket = site.path("agent.sock");
    let mut agent = Agent::start(&socket)?;
    agent.run(&json!({"do": "set", "resources": [network_policy_to_json(&usual(&site)).unwrap()]}));
    agent.listen(mode);
    let options = Options { mode: "auto", workers: 2, top: POOR.into(), ..Options::default() };
    let mut proxy = Proxy::attached(&site, upstream.address(), &options, &socket);
    agent.wait_for_ack("NetworkPolicy");
    proxy.wait_until_ready();
    Some(World { site, agent, proxy, _upstream: upstream })
}

fn status_of(world: &World, path: &str) -> u16 {
    let mut client = Peer::connect(world.proxy.http());
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    client.read_message().status()
}

/// Two endpoints change at once, and compiling one takes more than its tenant may use. When that is acknowledged, the other one
/// is in force, and nothing is admitted by what the first one held before.
#[test]
fn a_policy_that_takes_long_denies_until_it_is_compiled_and_holds_up_nobody() {
    for mode in MODES {
        let Some(mut world) = world(mode) else { return };
        assert_eq!(status_of(&world, "/allowed"), 200, "{mode}");
        let mut rules: Vec<Value> = (0..300).map(|i| http_rule("GET", &format!("/x{i}.*x.{{50}}"))).collect();
        rules.push(http_rule("GET", "/new[0-9]"));
        let heavy = network_policy_to_json(&ingress(&world.site, json!([http_port(HTTP_PORT, &rules)]))).unwrap();
        let other = json!({"endpointId": "9", "endpointIps": ["192.0.2.9"]});
        world.agent.change(&json!({"do": "set", "resources": [heavy, other]}));
        assert_eq!(world.endpoints(), 2, "{mode}: acknowledged is in force");
        // Refused, or reset while nothing is known of the rules.
        let answer = TcpStream::connect(world.proxy.http()).map_or_else(
            |_| Vec::new(),
            |stream| {
                let mut client = Peer::new(stream);
                let _ = client.try_send("GET /allowed HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                client.read_to_any_end().0
            },
        );
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 403 "), "{mode}: admitted by the old policy");
        // And what changes next is in force when it is acknowledged.
        world.agent.change(&json!({"do": "fill", "first": 1000, "count": 10}));
        assert_eq!(world.endpoints(), 12, "{mode}");
        until("the new policy", || {
            let quarantined = world.status()["policy"]["quarantined"].clone();
            (quarantined == json!([])).then_some(())
        });
        assert_eq!((status_of(&world, "/new1"), status_of(&world, "/allowed")), (200, 403), "{mode}");
        until("its log", || {
            let log = world.proxy.process().output();
            assert!(log.contains("until then nothing is allowed"), "{mode}: {log}");
            log.contains("policy compiled in the background is in force").then_some(())
        });
        let seconds = world.proxy.metric("tollgate_tenant_policy_compile_seconds_total{tenant=\"poor\"}");
        assert!(seconds > 0.005, "{mode}: {seconds}");
    }
}

/// An agent puts the policies of the whole node into one response, and some send it again at once when it is refused.
#[test]
fn a_policy_that_cannot_be_read_holds_up_no_other_and_is_refused_ever_more_slowly() {
    for mode in MODES {
        let Some(mut world) = super::world(mode) else { return };
        world.agent.change(&json!({"do": "fill", "first": 1000, "count": 198}));
        assert_eq!(world.endpoints(), 199, "{mode}");
        let canary = world.canary();
        world.agent.run(&json!({"do": "insist", "id": 1000}));
        // Comes in the same response, or while that is sent again and again.
        world.agent.run(&json!({"do": "fill", "first": 2000, "count": 2}));
        until("what comes with it", || (world.endpoints() == 201).then_some(()));
        until("some refusals", || (world.agent.count("nack") >= 6).then_some(()));
        let before = world.agent.count("nack");
        thread::sleep(Duration::from_secs(5));
        let refusals = world.agent.count("nack") - before;
        assert!((1..=5).contains(&refusals), "{mode}: {refusals} refusals in 5 s");
        assert_eq!(world.endpoints(), 201, "{mode}: it is enforced as it was last");
        let error = world.stream("NetworkPolicy")["last_error"].as_str().unwrap().to_owned();
        assert!(error.starts_with("resource ") && error.contains("failed to decode"), "{mode}: {error}");

        let accepted = |world: &World| world.stream("NetworkPolicy")["acks"].as_u64().unwrap();
        let before = accepted(&world);
        world.agent.run(&json!({"do": "insist", "id": null}));
        world.agent.run(&json!({"do": "touch", "id": 1000, "port": 82}));
        until("its acknowledgement", || (accepted(&world) > before).then_some(()));
        assert_eq!(world.endpoints(), 201, "{mode}");
        assert!(canary.stop() > 0);
    }
}
