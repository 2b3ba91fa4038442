//! Memory of tenants: what is counted, and what happens to a tenant that has too much of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tollgate::reason::Reason;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::json::network_policy_from_value;
use tollgate_tests::cgroup::ControlGroup;
use tollgate_tests::http2::{CLIENT_START, big_get, end_of, get};
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::http_rule;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::{Upstream, next_request};
use tollgate_tests::wait::until;

use super::tenants;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
/// Gets no answer.
const HANG: &str = "GET /allowed/hang HTTP/1.1\r\nHost: a\r\n\r\n";
pub(super) const MIB: u64 = 1 << 20;
/// Endpoints, whose clients have the addresses that end so.
pub(super) const GREEDY: u8 = 7;
pub(super) const NEIGHBOUR: u8 = 8;
/// Streams that a client may have open.
const STREAMS: u32 = 100;
/// Bytes of each answer that nobody reads. Five are more than the window of a connection.
const BODY: u32 = 250_000;

/// A client's address, which no other has: the local endpoint of what leaves it.
fn client_address(site: &Site, last: u8) -> IpAddr {
    let IpAddr::V4(site) = site.ip() else { panic!("sites have IPv4 addresses") };
    let [_, b, c, _] = site.octets();
    Ipv4Addr::new(127, b.wrapping_add(64), c, last).into()
}

fn policy(site: &Site, endpoint: u8) -> NetworkPolicy {
    let policy = json!({
        "endpointIps": [client_address(site, endpoint).to_string()],
        "endpointId": endpoint.to_string(),
        "egressPerPortPolicies": [
            {"port": HTTP_PORT, "rules": [{"httpRules": {"httpRules": [http_rule("GET", "/allowed.*")]}}]},
        ],
    });
    network_policy_from_value(policy).unwrap()
}

/// A proxy whose group `greedy` has this ceiling.
pub(super) fn start(site: &Site, upstream: SocketAddr, settings: &str) -> Proxy {
    start_with(site, upstream, settings, &Options::default().listener)
}

/// The same with more keys of the listener.
pub(super) fn start_with(site: &Site, upstream: SocketAddr, settings: &str, listener: &str) -> Proxy {
    let group = format!("{{ name: greedy, members: {{ endpoint_ids: [{GREEDY}] }}, {settings} }}");
    let top = format!("tenants: {{ groups: [{group}] }}");
    let options = Options { direction: "egress", top, listener: listener.to_owned(), ..Options::default() };
    Proxy::with(site, upstream, &options, &[policy(site, GREEDY), policy(site, NEIGHBOUR)])
}

pub(super) fn connect(site: &Site, proxy: &Proxy, endpoint: u8) -> Peer {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(client_address(site, endpoint), 0).into()).unwrap();
    socket.connect(&proxy.http().into()).unwrap();
    Peer::new(TcpStream::from(socket))
}

/// An HTTP/2 client that takes all windows and does not read.
fn connect_unread(site: &Site, proxy: &Proxy, endpoint: u8) -> Peer {
    let mut client = connect(site, proxy, endpoint);
    client.send(CLIENT_START);
    client.send(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff");
    client.send(b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\x00\x00");
    for n in 0..STREAMS {
        client.send(big_get(2 * n + 1, &format!("/allowed/big/{BODY}"), 1));
    }
    client
}

/// An upstream that answers all requests but those that are to hang.
fn answering(site: &Site) -> Upstream {
    Upstream::scripted(site, |peer, _| {
        while let Some(request) = next_request(peer) {
            match request.head.contains("/hang") {
                true => drop(peer.wait_for_bytes()),
                false => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            }
        }
    })
}

fn ask(client: &mut Peer) -> u16 {
    client.send(GET);
    client.read_message().status()
}

/// A value of the entry of `/tenants`.
pub(super) fn shown(proxy: &Proxy, tenant: &str, key: &str) -> Value {
    let (_, body) = proxy.get("/tenants");
    let shown: Value = serde_json::from_str(&body).unwrap();
    let all = shown["tenants"].as_array().unwrap();
    all.iter().find(|entry| entry["name"] == tenant).unwrap_or_else(|| panic!("no {tenant} in {body}"))[key].clone()
}

pub(super) fn held(proxy: &Proxy, tenant: &str) -> u64 {
    shown(proxy, tenant, "memory_bytes").as_u64().unwrap()
}

/// Waits until nothing moves any more, although a neighbour's requests make their way there and back. Returns the resident
/// memory in bytes.
pub(super) fn settle(site: &Site, proxy: &mut Proxy) -> u64 {
    let mut other = connect(site, proxy, NEIGHBOUR);
    other.send(CLIENT_START);
    let mut seen = (0, 0);
    for n in 0.. {
        other.send(get(2 * n + 1));
        other.read_until(&end_of(2 * n + 1));
        let now = proxy.process().memory().0;
        seen = if now == seen.0 { (now, seen.1 + 1) } else { (now, 0) };
        if seen.1 == 100 {
            break;
        }
    }
    seen.0 * 1024
}

#[test]
fn accounts_add_up_to_what_the_process_grows_by() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let mut proxy = start(&site, address.parse().unwrap(), "weight: 1");
    let before = settle(&site, &mut proxy);
    let clients: Vec<Peer> = (0..12).map(|_| connect_unread(&site, &proxy, GREEDY)).collect();
    until("much memory", || (held(&proxy, "greedy") > 12 * MIB).then_some(()));
    let grown = settle(&site, &mut proxy) - before;
    let counted = held(&proxy, "greedy");
    let ratio = counted as f64 / grown as f64;
    println!("{counted} bytes are on the account, {grown} is what the process grew by: {ratio:.3}");
    assert!((0.9..1.1).contains(&ratio), "{counted} of {grown}");
    assert!(held(&proxy, "endpoint-8") < MIB);
    assert_eq!(proxy.metric("tollgate_tenant_memory_bytes{tenant=\"greedy\"}") as u64, counted);
    let byte_seconds = || proxy.metric("tollgate_tenant_memory_byte_seconds_total{tenant=\"greedy\"}");
    until("its cost", || (byte_seconds() > 0.0).then_some(()));
    drop(clients);
    until("nothing to be held", || (held(&proxy, "greedy") == 0).then_some(()));
}

/// Opens a connection.
type Open<'a> = &'a dyn Fn(&Site, &Proxy) -> Peer;

/// How many times what a process grows by is on the account, when so many connections are opened.
fn ratio_for(python: &Path, count: u64, open: Open<'_>) -> f64 {
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let mut proxy = start(&site, address.parse().unwrap(), "weight: 1");
    let opened = |proxy: &Proxy, count: u64, before: u64| {
        let peers: Vec<Peer> = (0..count).map(|_| open(&site, proxy)).collect();
        let all = || shown(proxy, "greedy", "connections_open") == before + count;
        until("the connections", || all().then_some(()));
        peers
    };
    // What is made once is made.
    let first = opened(&proxy, 20, 0);
    let (before, counted) = (settle(&site, &mut proxy), held(&proxy, "greedy"));
    let all = opened(&proxy, count, 20);
    let (grown, counted) = (settle(&site, &mut proxy) - before, held(&proxy, "greedy") - counted);
    drop((first, all));
    until("nothing to be held", || (held(&proxy, "greedy") == 0).then_some(()));
    counted as f64 / grown as f64
}

/// The middle one of three: a process may grow meanwhile for what is nobody's connection.
#[test]
fn what_connections_take_is_on_the_account() {
    let Some(python) = python() else { return };
    let silent = |site: &Site, proxy: &Proxy| connect(site, proxy, GREEDY);
    let idle = |site: &Site, proxy: &Proxy| {
        let mut client = connect(site, proxy, GREEDY);
        client.send(CLIENT_START);
        // Settings of the proxy.
        drop(client.read_exact(9));
        client
    };
    let waiting = |site: &Site, proxy: &Proxy, streams: u32| {
        let mut client = connect(site, proxy, GREEDY);
        client.send(CLIENT_START);
        for n in 0..streams {
            client.send(big_get(2 * n + 1, "/allowed/hang", 1));
            client.read_until(&[&[1, 4][..], &(2 * n + 1).to_be_bytes()].concat());
        }
        client
    };
    let one = |site: &Site, proxy: &Proxy| waiting(site, proxy, 1);
    let many = |site: &Site, proxy: &Proxy| waiting(site, proxy, 20);
    let opened: [(&str, u64, Open<'_>); 4] = [
        ("silent", 400, &silent),
        ("idle", 200, &idle),
        ("waiting", 200, &one),
        ("waiting for many answers", 100, &many),
    ];
    for (kind, count, open) in opened {
        let mut ratios: Vec<f64> = (0..3).map(|_| ratio_for(python, count, open)).collect();
        println!("{kind} {ratios:.3?}");
        ratios.sort_by(f64::total_cmp);
        assert!((0.9..1.1).contains(&ratios[1]), "{kind}: {ratios:.3?}");
    }
}

/// Connections of the greedy tenant that wait for an answer, until it gets no more.
fn fill(site: &Site, proxy: &Proxy) -> Vec<Peer> {
    let refused = || proxy.flows().iter().filter(|flow| flow["reason"] == Reason::TenantMemory.code()).count();
    let mut clients = Vec::new();
    while refused() == 0 {
        assert!(clients.len() < 200, "nothing is refused");
        let before = held(proxy, "greedy");
        let mut client = connect(site, proxy, GREEDY);
        // The last of them is reset, maybe before.
        let _ = client.try_send(HANG);
        until("the request", || (held(proxy, "greedy") > before + (16 << 10) || refused() > 0).then_some(()));
        clients.push(client);
    }
    clients
}

#[test]
fn a_tenant_past_its_ceiling_gets_nothing_more_and_its_neighbour_all() {
    let site = Site::new();
    let upstream = answering(&site);
    let proxy = start(&site, upstream.address(), "ceilings: { memory: 1MiB }");
    let mut idle = connect(&site, &proxy, GREEDY);
    assert_eq!(ask(&mut idle), 200);
    let mut neighbour = connect(&site, &proxy, NEIGHBOUR);
    let mut clients = fill(&site, &proxy);
    assert!(clients.len() > 20, "{}", clients.len());
    clients.pop().unwrap().expect_reset();

    idle.send(GET);
    let answer = idle.read_message();
    assert_eq!(answer.status(), 503);
    let fields = [
        ("x-tollgate-reason", "tenant_memory"),
        ("retry-after", "1"),
        ("x-envoy-overloaded", "true"),
        ("connection", "close"),
    ];
    for (name, value) in fields {
        assert_eq!(answer.field(name), Some(value), "{name}");
    }
    assert_eq!(ask(&mut neighbour), 200);
    assert_eq!(ask(&mut connect(&site, &proxy, NEIGHBOUR)), 200);

    let code = Reason::TenantMemory.code();
    assert_eq!(shown(&proxy, "greedy", "refusals"), json!({ code: 2 }), "a connection and a request");
    assert_eq!(shown(&proxy, "endpoint-8", "refusals"), json!({}));
    assert_eq!(shown(&proxy, "greedy", "settings_without_effect"), json!([]));
    let of_metric = format!("tollgate_tenant_refusals_total{{tenant=\"greedy\",reason=\"{code}\"}}");
    assert_eq!(proxy.metric(&of_metric), 2.0);
    let records = until("both records", || {
        let records = proxy.flows().into_iter().filter(|flow| flow["reason"] == code);
        Some(records.collect::<Vec<Value>>()).filter(|records| records.len() >= 2)
    });
    assert_eq!(records.iter().map(|record| &record["tenant"]).collect::<Vec<_>>(), ["greedy", "greedy"]);
    assert_eq!(records[1]["l7"]["http"]["code"], 503, "{}", records[1]);

    drop(clients);
    until("room", || (held(&proxy, "greedy") < MIB / 2).then_some(()));
    assert_eq!(ask(&mut connect(&site, &proxy, GREEDY)), 200);
}

/// A process that may have 32 MiB: tenants have 8 of them together, so one alone 4, which is what 280 connections take. Its idle
/// connections go as soon as they are in the way.
fn start_with_an_end(site: &Site, upstream: SocketAddr, mode: &str) -> Proxy {
    let patience = "before_request: 0s, while_not_reading: 0s, between_requests: 0s";
    let limits = format!("limits: {{ mode: {mode}, memory: 32MiB, idle_connections: {{ {patience} }} }}");
    let group = format!("{{ name: greedy, members: {{ endpoint_ids: [{GREEDY}] }} }}");
    let top = format!("{limits}\ntenants: {{ groups: [{group}] }}");
    let options = Options { direction: "egress", top, ..Options::default() };
    let proxy = Proxy::with(site, upstream, &options, &[policy(site, GREEDY), policy(site, NEIGHBOUR)]);
    assert_eq!(until("the first look", || limit_of_tenants(&proxy)), 8 * MIB);
    proxy
}

/// Bytes for all tenants together, once somebody has looked.
fn limit_of_tenants(proxy: &Proxy) -> Option<u64> {
    let status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
    status["memory"]["tenants_limit_bytes"].as_u64()
}

#[test]
fn idle_connections_of_a_tenant_make_room_for_those_that_it_needs() {
    let site = Site::new();
    let upstream = answering(&site);
    let proxy = start_with_an_end(&site, upstream.address(), "enforce");
    let mut neighbour = connect(&site, &proxy, NEIGHBOUR);
    assert_eq!(ask(&mut neighbour), 200);
    let mut used = connect(&site, &proxy, GREEDY);
    assert_eq!(ask(&mut used), 200);
    let silent: Vec<Peer> = (0..280).map(|_| connect(&site, &proxy, GREEDY)).collect();
    let newcomer = |_| {
        let mut newcomer = connect(&site, &proxy, GREEDY);
        assert_eq!(ask(&mut newcomer), 200);
        newcomer
    };
    let newcomers: Vec<Peer> = (0..250).map(newcomer).collect();
    assert_eq!(ask(&mut used), 200, "who never asked goes first");
    assert_eq!(ask(&mut neighbour), 200, "which has been idle for longest");

    let refusals = shown(&proxy, "greedy", "refusals");
    let gone = refusals[Reason::IdleReaped.code()].as_u64().unwrap_or(0);
    assert!(gone >= 100, "{refusals}");
    assert_eq!(refusals, json!({ Reason::IdleReaped.code(): gone }), "nobody is refused");
    assert_eq!(shown(&proxy, "endpoint-8", "refusals"), json!({}));
    assert!(held(&proxy, "greedy") < 6 * MIB);
    // Each look goes on with it.
    assert!(proxy.metric("tollgate_refusals_total{reason=\"idle_reaped\"}") as u64 >= gone);
    assert_eq!(proxy.expect_reason(Reason::IdleReaped)["tenant"], "greedy");
    drop((silent, newcomers));
}

#[test]
fn in_shadow_idle_connections_stay_however_much_they_hold() {
    let site = Site::new();
    let upstream = answering(&site);
    let proxy = start_with_an_end(&site, upstream.address(), "shadow");
    let mut silent: Vec<Peer> = (0..500).map(|_| connect(&site, &proxy, GREEDY)).collect();
    assert_eq!(ask(&mut connect(&site, &proxy, GREEDY)), 200);
    assert_eq!(shown(&proxy, "greedy", "refusals"), json!({}));
    let shadowed = &shown(&proxy, "greedy", "shadow_refusals")[Reason::TenantMemory.code()];
    assert!(shadowed.as_u64() >= Some(1), "what is left for it in enforcement: {shadowed}");
    assert!(proxy.flows().iter().all(|flow| flow["reason"] != Reason::TenantMemory.code()));
    silent.iter_mut().for_each(|client| assert_eq!(ask(client), 200));
}

#[test]
fn an_unused_guarantee_leaves_half_to_the_others() {
    let site = Site::new();
    let upstream = answering(&site);
    // All that can be guaranteed of 32 MiB is more than the 8 MiB that are left for tenants.
    let quiet =
        format!("{{ name: quiet, members: {{ endpoint_ids: [{NEIGHBOUR}] }}, guarantee: {{ memory: 11MiB }} }}");
    let greedy = format!("{{ name: greedy, members: {{ endpoint_ids: [{GREEDY}] }} }}");
    let top = format!("limits: {{ memory: 32MiB }}\ntenants: {{ groups: [{quiet}, {greedy}] }}");
    let options = Options { direction: "egress", top, ..Options::default() };
    let policies = [policy(&site, GREEDY), policy(&site, NEIGHBOUR)];
    let proxy = Proxy::with(&site, upstream.address(), &options, &policies);
    assert_eq!(until("the first look", || limit_of_tenants(&proxy)), 4 * MIB);
    let clients = fill(&site, &proxy);
    assert!(held(&proxy, "greedy") > 3 * MIB / 2, "{} of {} clients", held(&proxy, "greedy"), clients.len());
    // Who has the guarantee is not refused below it.
    let guaranteed: Vec<Peer> = (0..300)
        .map(|_| {
            let mut client = connect(&site, &proxy, NEIGHBOUR);
            client.send(HANG);
            client
        })
        .collect();
    let in_flight = || (shown(&proxy, "quiet", "requests_in_flight") == guaranteed.len()).then_some(());
    until("all of its requests", in_flight);
    assert!(held(&proxy, "quiet") > 3 * MIB, "{}", held(&proxy, "quiet"));
    assert_eq!(shown(&proxy, "quiet", "refusals"), json!({}));
}

#[test]
fn a_guarantee_of_memory_that_does_not_fit_takes_nothing_from_anybody() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = answering(&site);
    let policies =
        [GREEDY, NEIGHBOUR].map(|endpoint| tenants::policy(endpoint.into(), client_address(&site, endpoint)));
    let top = "limits: { memory: 32MiB }";
    let (mut control, proxy) = tenants::with_python_and(&site, python, &policies, upstream.address(), top);
    let guarantee = json!({"memoryBytes": (100_u64 << 30).to_string(), "connections": 5});
    let absurd = json!({"name": "absurd", "members": {"endpointIds": [NEIGHBOUR.to_string()]}, "guarantee": guarantee});
    tenants::set_tenants(&mut control, "1", &json!([absurd]));
    let status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
    let refused = &status["tenants"]["refused"];
    let reason = "guarantee.memory: 107374182400 bytes with what other tenants are guaranteed, and of the 33554432 bytes that the process \
                  may have (limits.memory) 11744050 can be guaranteed, half of what tenants get of them; lower one of them";
    assert_eq!(*refused, json!([{"origin": "resource absurd", "reason": reason, "whole": false}]));
    assert_eq!(shown(&proxy, "absurd", "settings")["guarantee"], json!({"connections": 5}), "the other one fits");
    assert_eq!(until("the first look", || limit_of_tenants(&proxy)), 8 * MIB);
}

#[test]
fn a_ceiling_in_shadow_refuses_nothing() {
    let site = Site::new();
    let upstream = answering(&site);
    let proxy = start(&site, upstream.address(), "ceilings: { memory: 256KiB }, shadow: true");
    let counted = || {
        let refusals = shown(&proxy, "greedy", "shadow_refusals");
        refusals[Reason::TenantMemory.code()].as_u64().unwrap_or(0)
    };
    let mut clients = Vec::new();
    while counted() == 0 {
        assert!(clients.len() < 200, "nothing is counted");
        let before = held(&proxy, "greedy");
        let mut client = connect(&site, &proxy, GREEDY);
        client.send(HANG);
        until("the request", || (held(&proxy, "greedy") > before + (16 << 10)).then_some(()));
        clients.push(client);
    }
    assert_eq!(ask(&mut connect(&site, &proxy, GREEDY)), 200);
    assert_eq!(shown(&proxy, "greedy", "refusals"), json!({}));
    let of_metric = "tollgate_tenant_shadow_refusals_total{tenant=\"greedy\",reason=\"tenant_memory\"}";
    assert!(proxy.metric(of_metric) >= 2.0, "a connection and a request");
    assert_eq!(shown(&proxy, "endpoint-8", "shadow_refusals"), json!({}));
    drop(clients);
    // With their ends on record.
    until("all records", || (shown(&proxy, "greedy", "requests_in_flight") == 0).then_some(()));
    assert!(proxy.flows().iter().all(|flow| flow["reason"] != Reason::TenantMemory.code()));
}

#[test]
fn nothing_is_read_for_a_client_that_does_not_read_what_its_tenant_has_no_room_for() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let mut proxy = start(&site, address.parse().unwrap(), "ceilings: { memory: 1536KiB }");
    let mut client = connect_unread(&site, &proxy, GREEDY);
    until("what is too much", || (held(&proxy, "greedy") > MIB).then_some(()));
    settle(&site, &mut proxy);
    let most = held(&proxy, "greedy");
    assert!(most < 3 * MIB / 2, "{most}");
    // All of it comes when it is asked for.
    let (mut ended, mut bytes) = (0, 0);
    while ended < STREAMS {
        let header = client.read_exact(9);
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        drop(client.read_exact(length as usize));
        if header[3] == 0 {
            bytes += length;
            ended += u32::from(header[4] & 1);
        }
    }
    assert_eq!(bytes, STREAMS * BODY);
    assert_eq!(shown(&proxy, "greedy", "refusals"), json!({}));
}

/// What a client sees whose requests, so many at once on one connection, have heads of some bytes as they come, and as many times 3,933 as
/// they are decoded (RFC 9113 section 6.5.2).
fn bomb(python: &Path, site: &Site, proxy: &Proxy, path: &str, fields: usize, streams: u32) -> Value {
    let (address, source) = (proxy.http().to_string(), client_address(site, GREEDY).to_string());
    script::run(python, site, "h2_bomb.py", &[&address, &source, path, &fields.to_string(), &streams.to_string()])
}

#[test]
fn heads_that_are_large_when_they_are_decoded_take_no_memory() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let mut proxy = start(&site, address.parse().unwrap(), "ceilings: { header: 32KiB }");
    let before = settle(&site, &mut proxy);
    // 115 KiB each.
    let seen = bomb(python, &site, &proxy, "/allowed", 30, STREAMS);
    assert_eq!(seen, json!({ "statuses": { "431": STREAMS }, "reasons": {}, "goaway": [] }), "by the list's limit");
    let records = until("their records", || {
        let records = proxy.flows().into_iter().filter(|flow| flow["reason"] == Reason::HeadersTooLarge.code());
        Some(records.collect::<Vec<Value>>()).filter(|records| records.len() >= STREAMS as usize)
    });
    assert_eq!(records.len(), STREAMS as usize);
    assert!(
        records.iter().all(|record| record["tenant"] == "greedy" && record["verdict"] == "DROPPED"),
        "{}",
        records[0]
    );
    // 38 KiB.
    let seen = bomb(python, &site, &proxy, "/allowed", 10, STREAMS);
    let code = Reason::TenantHeaders.code();
    assert_eq!(seen, json!({ "statuses": { "431": STREAMS }, "reasons": { code: STREAMS }, "goaway": [0] }));
    let large = Reason::HeadersTooLarge.code();
    assert_eq!(shown(&proxy, "greedy", "refusals"), json!({ code: STREAMS, large: STREAMS }));
    // 384 KiB: decoding ends there, and so does the connection.
    let seen = bomb(python, &site, &proxy, "/allowed", 100, 1);
    assert_eq!(seen["goaway"], json!([11]), "{seen}");
    // Nothing of 15 MiB of heads was there at a time.
    let peak = proxy.process().memory().1 * 1024 - before;
    assert!(peak < 6 * MIB, "{peak}");
    assert_eq!(shown(&proxy, "endpoint-8", "refusals"), json!({}));
}

#[test]
fn heads_count_as_they_are_decoded() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let proxy = start(&site, address.parse().unwrap(), "ceilings: { memory: 1MiB }");
    // 54 KiB each, for as long as there is no answer.
    let seen = bomb(python, &site, &proxy, "/allowed/hang", 14, STREAMS);
    let (served, refused) = (&seen["statuses"]["200"], &seen["statuses"]["503"]);
    let (served, refused) = (served.as_u64().unwrap_or(0), refused.as_u64().unwrap_or(0));
    assert_eq!(served + refused, u64::from(STREAMS), "{seen}");
    assert!((5..=20).contains(&served), "{seen}");
    assert_eq!(seen["reasons"], json!({ Reason::TenantMemory.code(): refused }));
    let mut neighbour = connect(&site, &proxy, NEIGHBOUR);
    neighbour.send(CLIENT_START);
    neighbour.send(get(1));
    neighbour.read_until(&end_of(1));
    assert_eq!(shown(&proxy, "endpoint-8", "refusals"), json!({}));
}

/// Bytes that the kernel holds of what the proxy wrote to this client.
fn written_and_held(proxy: &Proxy, client: SocketAddr) -> u64 {
    let hex = |address: SocketAddr| {
        let IpAddr::V4(ip) = address.ip() else { panic!("sites have IPv4 addresses") };
        format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port())
    };
    let ends = format!("{} {} 01 ", hex(proxy.http()), hex(client));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table.lines().find_map(|line| line.split_once(&ends)).unwrap_or_else(|| panic!("no {ends}: {table}"));
    u64::from_str_radix(line.1.split(':').next().unwrap(), 16).unwrap()
}

/// A client of a proxy with these limits that asks for 16 MiB, and reads nothing. Shows what is held for it until `enough`.
fn held_by_the_kernel(limits: &str, mut enough: impl FnMut(u64) -> bool) -> u64 {
    let site = Site::new();
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 16777216\r\n\r\n";
    let upstream = Upstream::answering(&site, [head.as_bytes(), &vec![b'x'; 16 << 20]].concat());
    let options = Options { direction: "egress", top: format!("limits: {{ {limits} }}"), ..Options::default() };
    let proxy = Proxy::with(&site, upstream.address(), &options, &[policy(&site, GREEDY), policy(&site, NEIGHBOUR)]);
    let mut client = connect(&site, &proxy, GREEDY);
    client.send(GET);
    let mut neighbour = connect(&site, &proxy, NEIGHBOUR);
    let held = until("enough", || {
        // On the way there and back of which nothing else happens.
        neighbour.send("GET /refused HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(neighbour.read_message().status(), 403);
        let held = written_and_held(&proxy, client.local());
        enough(held).then_some(held)
    });
    client.expect_repeated(head.as_bytes(), head.len() as u64);
    client.expect_repeated(b"x", 16 << 20);
    held
}

#[test]
fn the_kernel_holds_little_for_a_client_that_does_not_read() {
    let most = held_by_the_kernel("unsent: \"off\"", |held| held > 512 << 10);
    assert!(most > 512 << 10);
    let mut seen = (0, 0);
    let held = held_by_the_kernel("mode: enforce", |held| {
        seen = if held == seen.0 && held > 0 { (held, seen.1 + 1) } else { (held, 0) };
        seen.1 == 100
    });
    assert!((64 << 10..192 << 10).contains(&held), "{held}");
}

#[test]
fn the_end_of_a_control_group_counts_as_it_is_now() {
    let Some(group) = ControlGroup::with_memory("memory", 1 << 30) else { return };
    let site = Site::new();
    let upstream = answering(&site);
    let mut proxy = start(&site, upstream.address(), "guarantee: { memory: 10MiB }");
    let memory = |proxy: &Proxy| -> Value {
        let mut status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
        status["memory"].take()
    };
    assert_eq!(memory(&proxy)["limit_from"], "none", "this machine's own control group has an end");
    assert!(!shown(&proxy, "greedy", "settings_without_effect").as_array().unwrap().is_empty());
    group.take_in(proxy.process().id());
    for mib in [1024_u64, 512, 768] {
        group.set_memory(mib * MIB).unwrap();
        let seen = until("the new end", || Some(memory(&proxy)).filter(|memory| memory["limit_bytes"] == mib * MIB));
        assert_eq!(seen["limit_from"], "cgroup");
        // Seven tenths, without what the process has and with what the guarantee keeps.
        until("its part", || {
            let part = limit_of_tenants(&proxy)?;
            (part > mib * MIB / 2 && part < mib * MIB / 10 * 7).then_some(())
        });
    }
    assert_eq!(shown(&proxy, "greedy", "settings_without_effect"), json!([]), "it has something to rest on now");
    assert!(proxy.process().output().contains("another amount of memory"));
}

/// Denied by policy.
const DENIED: &str = "/denied";

/// So many clients, each of which does not read what it asked for and the sockets do not hold.
fn unread(proxy: &Proxy, site: &Site, clients: u32) -> Vec<Peer> {
    const FULL: u32 = 6;
    let mut peers: Vec<Peer> = (0..clients).map(|_| connect(site, proxy, GREEDY)).collect();
    for client in &mut peers {
        client.send(CLIENT_START);
        client.send(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff");
        client.send(b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\x00\x00");
        (0..FULL).for_each(|n| client.send(big_get(2 * n + 1, &format!("/allowed/big/{BODY}"), 1)));
    }
    until("full sockets", || (held(proxy, "greedy") > u64::from(clients) * 500_000).then_some(()));
    peers
}

/// What is on the account of answers of the proxy that nobody reads, and what the process grows by.
fn held_for_answers(python: &Path) -> (u64, u64) {
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let mut proxy = start(&site, address.parse().unwrap(), "weight: 1");
    let mut clients = unread(&proxy, &site, 24);
    let mut ask = |streams: std::ops::Range<u32>| {
        for client in &mut clients {
            streams.clone().for_each(|n| client.send(big_get(2 * n + 1, DENIED, 1)));
        }
        (settle(&site, &mut proxy), held(&proxy, "greedy"))
    };
    // The first ones have the room that bodies have left in the heap.
    let (before, counted) = ask(10..40);
    let (after, then) = ask(40..STREAMS);
    let (grown, counted) = (after - before, then - counted);
    drop(clients);
    until("nothing to be held", || (held(&proxy, "greedy") == 0).then_some(()));
    (counted, grown)
}

/// Of several runs together: what is free in the heap between bodies that nobody reads either is another part of it each time.
#[test]
fn answers_of_the_proxy_that_nobody_reads_are_on_the_account() {
    let Some(python) = python() else { return };
    let runs: Vec<(u64, u64)> = (0..4).map(|_| held_for_answers(python)).collect();
    let (counted, grown) = runs.iter().fold((0, 0), |sum, run| (sum.0 + run.0, sum.1 + run.1));
    let ratio = counted as f64 / grown as f64;
    println!("{counted} bytes are on the account, {grown} is what the process grew by: {ratio:.3}");
    assert!((0.85..1.15).contains(&ratio), "{runs:?}");
}
