//! Policies that take more memory than their tenant may have for them: its endpoint denies, and nobody else notices.

use std::net::TcpStream;

use serde_json::{Value, json};
use tollgate_proto::json::network_policy_to_json;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::strict_agent::Agent;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::World;

fn world(settings: &str) -> Option<World> {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let socket = site.path("agent.sock");
    let mut agent = Agent::start(&socket)?;
    agent.run(&json!({"do": "set", "resources": [network_policy_to_json(&usual(&site)).unwrap()]}));
    agent.listen("split");
    let top = format!("tenants: {{ groups: [ {{ name: little, members: {{ endpoint_ids: [7] }}, {settings} }} ] }}");
    let options = Options { mode: "auto", workers: 2, top, ..Options::default() };
    let mut proxy = Proxy::attached(&site, upstream.address(), &options, &socket);
    agent.wait_for_ack("NetworkPolicy");
    proxy.wait_until_ready();
    Some(World { site, agent, proxy, _upstream: upstream })
}

/// The site's endpoint gets so many rules, and one of a neighbour comes with them.
fn change(world: &mut World, rules: usize) {
    let mut all: Vec<Value> = (0..rules).map(|i| http_rule("GET", &format!("/x{i}"))).collect();
    all.push(http_rule("GET", "/new"));
    let large = network_policy_to_json(&ingress(&world.site, json!([http_port(HTTP_PORT, &all)]))).unwrap();
    let other = json!({"endpointId": "9", "endpointIps": ["192.0.2.9"]});
    world.agent.change(&json!({"do": "set", "resources": [large, other]}));
}

fn status_of(world: &World, path: &str) -> u16 {
    let mut client = Peer::connect(world.proxy.http());
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    client.read_message().status()
}

/// With a reset, since nothing is known of the rules, or an answer.
fn is_refused(world: &World) -> bool {
    let Ok(stream) = TcpStream::connect(world.proxy.http()) else { return true };
    let mut client = Peer::new(stream);
    let _ = client.try_send("GET /new HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let answer = client.read_to_any_end().0;
    answer.is_empty() || answer.starts_with(b"HTTP/1.1 403 ")
}

fn metric(world: &World, name: &str) -> u64 {
    world.proxy.metric(name) as u64
}

#[test]
fn a_policy_that_there_is_no_room_for_denies_and_says_what_helps() {
    let Some(mut world) = world("policy: { memory: 1MiB }") else { return };
    assert_eq!(status_of(&world, "/allowed"), 200);
    change(&mut world, 3000);
    assert_eq!(world.endpoints(), 2, "acknowledged is in force");
    assert!(is_refused(&world), "admitted by what there is no room for");
    assert_eq!(metric(&world, "tollgate_policy_without_room"), 1);
    let status = world.status();
    let [lacking] = &status["policy_memory"]["without_room"].as_array().unwrap()[..] else { panic!("{status}") };
    assert_eq!((&lacking["endpoint_id"], &lacking["tenant"]), (&json!(7), &json!("little")), "{status}");
    assert!(lacking["needed_bytes"].as_u64().unwrap() > 1 << 20, "{status}");
    let quarantined = status["policy"]["quarantined"].to_string();
    assert!(quarantined.contains("policy.memory") && quarantined.contains("Waiting does not help"), "{quarantined}");
    until("its record", || {
        let records = world.proxy.flows();
        records.iter().any(|record| record["reason"] == "quarantined" && record["tenant"] == "little").then_some(())
    });
    // Fewer rules have room.
    change(&mut world, 500);
    assert_eq!((status_of(&world, "/new"), metric(&world, "tollgate_policy_without_room")), (200, 0));
    let bytes = metric(&world, "tollgate_tenant_policy_bytes{tenant=\"little\"}");
    assert!((200_000..1 << 20).contains(&bytes), "{bytes}");
    assert!(metric(&world, "tollgate_policy_memory_bytes") >= bytes);
    assert_eq!(metric(&world, "tollgate_tenant_policy_rules{tenant=\"little\"}"), 502);
    // Its policy changes, and a neighbour's does not.
    let changed = |tenant| {
        let name = format!("tollgate_tenant_policy_last_change_timestamp_seconds{{tenant=\"{tenant}\"}}");
        world.proxy.metric(&name)
    };
    assert!(changed("endpoint-9") > 1.7e9 && changed("little") > changed("endpoint-9"));
}

#[test]
fn in_shadow_the_default_counts() {
    let Some(mut world) = world("shadow: true, policy: { memory: 1MiB }") else { return };
    change(&mut world, 3000);
    assert_eq!((status_of(&world, "/new"), metric(&world, "tollgate_policy_without_room")), (200, 0));
    assert!(metric(&world, "tollgate_tenant_policy_bytes{tenant=\"little\"}") > 1 << 20);
}
