//! Addresses that change hands under open connections, sources that disagree, and sources that cannot be asked. The maps are
//! real.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tollgate::reason::Reason;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::json::network_policy_from_value;
use tollgate_tests::bpf::{Maps, inside};
use tollgate_tests::http2;
use tollgate_tests::peer::{End, Peer};
use tollgate_tests::policy::{http_rule, ingress};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site, TCP_PORT};
use tollgate_tests::upstream::{OK, Upstream, WEBSOCKET_ACCEPTED, next_request, websocket_request};
use tollgate_tests::wait::until;

/// What every client on loopback has.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";

/// Identities that the policies of these tests admit, and one that they do not.
const ADMITTED: u32 = 100;
const ALSO_ADMITTED: u32 = 101;
const DENIED: u32 = 200;

/// A proxy with maps of its own.
struct World {
    maps: Maps,
    proxy: Proxy,
    upstream: Upstream,
    site: Site,
}

/// GET of /allowed and anything on the TCP port, for those who are admitted.
fn policy(site: &Site, direction: &str, endpoint: u64) -> NetworkPolicy {
    let remotes = [ADMITTED, ALSO_ADMITTED];
    let local = if direction == "ingress" { site.ip() } else { CLIENT };
    let entries = json!([
        {"port": HTTP_PORT, "rules": [{"remotePolicies": remotes,
            "httpRules": {"httpRules": [http_rule("GET", "/allowed")]}}]},
        {"port": TCP_PORT, "rules": [{"remotePolicies": remotes}]},
    ]);
    let mut policy = json!({"endpointIps": [local.to_string()], "endpointId": endpoint.to_string()});
    policy[format!("{direction}PerPortPolicies")] = entries;
    network_policy_from_value(policy).unwrap()
}

/// An upstream that answers GET, WebSockets' handshakes and HTTP/2 connections as far as needed, and keeps what it answers
/// under way if asked to.
fn upstream(site: &Site) -> Upstream {
    Upstream::scripted(site, |peer, _| {
        while let Some(request) = next_request(peer) {
            if request.head.contains("websocket") {
                peer.send(format!("{WEBSOCKET_ACCEPTED}tunnel"));
                peer.read_to_any_end();
                return;
            }
            if request.head.contains("X-Stream") {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
                peer.read_to_any_end();
                return;
            }
            peer.send(OK);
        }
    })
}

impl World {
    /// `identities` are further keys of the section, which names the ipcache and asks it each time.
    fn start(direction: &'static str, identities: &str) -> Self {
        Self::with(direction, identities, upstream)
    }

    fn with(direction: &'static str, identities: &str, upstream: impl FnOnce(&Site) -> Upstream) -> Self {
        let site = Site::new();
        let mut maps = Maps::mount(site.path("bpf"));
        maps.create_ipcache();
        maps.create_conntrack();
        maps.put(CLIENT, ADMITTED);
        maps.put(site.ip(), ADMITTED);
        let upstream = upstream(&site);
        let policies = [policy(&site, direction, 7)];
        let options = Options {
            direction,
            identities: format!("{{ bpf_root: \"{}\", {identities} }}", maps.root().display()),
            ..Options::default()
        };
        let proxy = Proxy::with(&site, upstream.address(), &options, &policies);
        Self { maps, proxy, upstream, site }
    }
}

fn answer(client: &mut Peer) -> (u16, Option<String>) {
    client.send(GET);
    let answer = client.read_message();
    (answer.status(), answer.field("x-tollgate-reason").map(str::to_owned))
}

fn refused(reason: Reason) -> (u16, Option<String>) {
    (403, Some(reason.code().to_owned()))
}

/// The metric's value, which has labels or not.
fn count(proxy: &Proxy, name: &str) -> u64 {
    proxy.metric(name) as u64
}

const FOUND: &str = r#"tollgate_identity_lookups_total{map="ipcache",result="found"}"#;

#[test]
fn the_next_request_is_judged_by_who_has_the_address_now() {
    if !inside("identity::the_next_request_is_judged_by_who_has_the_address_now") {
        return;
    }
    for direction in ["ingress", "egress"] {
        let mut world = World::start(direction, "ttl: 0s");
        let World { maps, proxy, upstream, site } = &mut world;
        let peer = if direction == "ingress" { CLIENT } else { site.ip() };
        let mut client = Peer::connect(proxy.http());
        assert_eq!(answer(&mut client), (200, None));
        assert_eq!(answer(&mut client), (200, None));
        maps.put(peer, DENIED);
        assert_eq!(answer(&mut client), refused(Reason::PeerNotAllowed), "{direction}");
        assert_eq!(client.read_to_end(), b"", "its L4 permission is gone");
        assert_eq!(upstream.received().concat(), GET.repeat(2).into_bytes());
        let flow = proxy.expect_reason(Reason::PeerNotAllowed);
        let end = if direction == "ingress" { "source" } else { "destination" };
        assert_eq!(flow[end]["identity"], DENIED, "{flow}");
        // Nobody's address is the world's.
        maps.remove(peer);
        Peer::expect_reset_at(proxy.http(), GET);
        until("the world's record", || proxy.flows().into_iter().find(|flow| flow[end]["identity"] == 2));
        assert_eq!(count(proxy, "tollgate_identity_changes_total"), 1);
        assert_eq!(count(proxy, "tollgate_identity_disagreements_total"), 0);
    }
}

#[test]
fn the_next_http_2_request_is_judged_by_who_has_the_address_now() {
    if !inside("identity::the_next_http_2_request_is_judged_by_who_has_the_address_now") {
        return;
    }
    let mut world = World::with("ingress", "ttl: 0s", |site| {
        Upstream::scripted(site, |peer, _| {
            peer.send(http2::SERVER_START);
            peer.read_until(&http2::headers_of(1));
            // 200 and the end of the stream.
            peer.send([&[0, 0, 1], &http2::headers_of(1)[..], b"\x88"].concat());
            peer.read_to_any_end();
        })
    });
    let World { maps, proxy, upstream, .. } = &mut world;
    let mut client = Peer::connect(proxy.http());
    client.send(http2::CLIENT_START);
    client.send(http2::get(1));
    client.read_until(&http2::headers_of(1));
    maps.put(CLIENT, DENIED);
    client.send(http2::get(3));
    client.read_until(b"Access denied\r\n");
    // GOAWAY: the L4 permission is gone.
    client.read_until(b"\0\0\x08\x07");
    assert_eq!(proxy.expect_reason(Reason::PeerNotAllowed)["source"]["identity"], DENIED);
    assert_eq!(upstream.received().concat().windows(6).filter(|w| *w == http2::headers_of(3)).count(), 0);
}

/// What changes is seen within the time to live, without any other event.
#[test]
fn a_change_is_seen_within_the_time_to_live() {
    if !inside("identity::a_change_is_seen_within_the_time_to_live") {
        return;
    }
    let mut world = World::start("ingress", "");
    let World { maps, proxy, .. } = &mut world;
    let mut client = Peer::connect(proxy.http());
    assert_eq!(answer(&mut client), (200, None));
    maps.put(CLIENT, DENIED);
    until("the refusal", || (answer(&mut client) == refused(Reason::PeerNotAllowed)).then_some(()));
}

#[test]
fn what_was_admitted_for_one_identity_does_not_go_on_for_another() {
    if !inside("identity::what_was_admitted_for_one_identity_does_not_go_on_for_another") {
        return;
    }
    // Another identity that is admitted too, and one that is not.
    for (identity, reason) in [(ALSO_ADMITTED, Reason::IdentityChanged), (DENIED, Reason::Revoked)] {
        let mut world = World::start("ingress", "ttl: 1ms");
        let World { maps, proxy, .. } = &mut world;
        let mut tunnel = Peer::connect(proxy.http());
        tunnel.send(websocket_request("/allowed"));
        tunnel.read_until(b"tunnel");
        let mut stream = Peer::connect(proxy.http());
        stream.send("GET /allowed HTTP/1.1\r\nHost: a\r\nX-Stream: 1\r\n\r\n");
        stream.read_until(b"1\r\na\r\n");
        let mut tcp = Peer::connect(proxy.tcp());
        tcp.send(GET);
        tcp.read_message();
        maps.put(CLIENT, identity);
        for peer in [&mut tunnel, &mut stream, &mut tcp] {
            assert_eq!(peer.read_to_any_end().1, End::Reset);
        }
        for flow in proxy.expect_flows(3) {
            assert_eq!((&flow["reason"], &flow["verdict"]), (&json!(reason.code()), &json!("DROPPED")), "{flow}");
        }
        assert_eq!(count(proxy, "tollgate_identity_changes_total"), 3);
    }
}

/// Whoever asks first about an address asks for all of its connections.
#[test]
fn a_change_that_another_connection_finds_ends_what_is_idle() {
    if !inside("identity::a_change_that_another_connection_finds_ends_what_is_idle") {
        return;
    }
    let mut world = World::start("ingress", "ttl: 0s");
    let World { maps, proxy, upstream, .. } = &mut world;
    let mut tunnel = Peer::connect(proxy.http());
    tunnel.send(websocket_request("/allowed"));
    tunnel.read_until(b"tunnel");
    let mut tcp = Peer::connect(proxy.tcp());
    tcp.send(GET);
    tcp.read_message();
    let mut other = Peer::connect(proxy.http());
    assert_eq!(answer(&mut other).0, 200);
    let before = upstream.received().concat().len();
    maps.put(CLIENT, DENIED);
    assert_eq!(answer(&mut other), refused(Reason::PeerNotAllowed));
    for peer in [&mut tunnel, &mut tcp] {
        assert_eq!(peer.read_to_any_end().1, End::Reset);
    }
    assert_eq!(upstream.received().concat().len(), before);
}

/// The other end of what a pod sends has no mark to keep true.
#[test]
fn what_goes_out_ends_only_when_its_destination_may_no_longer_be_reached() {
    if !inside("identity::what_goes_out_ends_only_when_its_destination_may_no_longer_be_reached") {
        return;
    }
    let mut world = World::start("egress", "ttl: 1ms");
    let World { maps, proxy, site, .. } = &mut world;
    let mut tunnel = Peer::connect(proxy.http());
    tunnel.send(websocket_request("/allowed"));
    tunnel.read_until(b"tunnel");
    let mut tcp = Peer::connect(proxy.tcp());
    tcp.send(GET);
    tcp.read_message();
    maps.put(site.ip(), ALSO_ADMITTED);
    until("both to have noticed", || (count(proxy, "tollgate_identity_changes_total") == 2).then_some(()));
    tcp.send(GET);
    assert_eq!(tcp.read_message().status(), 200);
    maps.put(site.ip(), DENIED);
    for peer in [&mut tunnel, &mut tcp] {
        assert_eq!(peer.read_to_any_end().1, End::Reset);
    }
    for flow in proxy.expect_flows(2) {
        assert_eq!(flow["reason"], Reason::Revoked.code(), "{flow}");
    }
}

#[test]
fn an_http_2_stream_under_way_ends_with_the_identity_it_was_admitted_for() {
    if !inside("identity::an_http_2_stream_under_way_ends_with_the_identity_it_was_admitted_for") {
        return;
    }
    let mut world = World::with("ingress", "", |site| {
        Upstream::scripted(site, |peer, _| {
            peer.send(http2::SERVER_START);
            peer.read_to_any_end();
        })
    });
    let World { maps, proxy, upstream, .. } = &mut world;
    let mut client = Peer::connect(proxy.http());
    client.send(http2::CLIENT_START);
    client.send(http2::get(1));
    until("the request at the upstream", || {
        upstream.received().concat().windows(6).any(|bytes| bytes == http2::headers_of(1)).then_some(())
    });
    maps.put(CLIENT, ALSO_ADMITTED);
    client.read_until(b"Access denied\r\n");
    proxy.expect_reason(Reason::IdentityChanged);
}

/// A socket's mark is for life, so what it says of its source has to stay true.
#[test]
fn an_upstream_connection_carries_one_identity() {
    if !inside("identity::an_upstream_connection_carries_one_identity") {
        return;
    }
    let mut world = World::start("ingress", "ttl: 0s");
    let World { maps, proxy, upstream, .. } = &mut world;
    let mut client = Peer::connect(proxy.http());
    assert_eq!(answer(&mut client), (200, None));
    assert_eq!(answer(&mut client), (200, None));
    assert_eq!(upstream.connections(), 1);
    maps.put(CLIENT, ALSO_ADMITTED);
    assert_eq!(answer(&mut client), (200, None));
    assert_eq!(upstream.connections(), 2);
    until("the end of the first upstream connection", || (upstream.finished() == 1).then_some(()));
    let sources: Vec<_> = proxy.expect_flows(3).iter().map(|flow| flow["source"]["identity"].clone()).collect();
    assert_eq!(sources, [ADMITTED, ADMITTED, ALSO_ADMITTED]);
}

#[test]
fn a_connection_ends_when_the_local_address_belongs_to_another_endpoint() {
    if !inside("identity::a_connection_ends_when_the_local_address_belongs_to_another_endpoint") {
        return;
    }
    for direction in ["ingress", "egress"] {
        let world = World::start(direction, "");
        let World { proxy, site, .. } = &world;
        let mut idle = Peer::connect(proxy.http());
        assert_eq!(answer(&mut idle), (200, None));
        let mut silent = Peer::connect(proxy.http());
        let mut http_2 = Peer::connect(proxy.http());
        http_2.send(http2::CLIENT_START);
        // The acknowledgement of its settings.
        http_2.read_until(b"\0\0\0\x04\x01\0\0\0\0");
        let mut tunnel = Peer::connect(proxy.http());
        tunnel.send(websocket_request("/allowed"));
        tunnel.read_until(b"tunnel");
        let mut tcp = Peer::connect(proxy.tcp());
        tcp.send(GET);
        tcp.read_message();
        // The same endpoint again ends nothing.
        proxy.push(&[policy(site, direction, 7)]);
        assert_eq!(answer(&mut idle), (200, None));
        let open = format!("tollgate_connections_open{{listener=\"http\",direction=\"{direction}\"}}");
        until("four connections", || (count(proxy, &open) == 4).then_some(()));
        proxy.push(&[policy(site, direction, 8)]);
        assert_eq!(idle.read_to_end(), b"", "nobody tells an idle client why");
        // GOAWAY.
        http_2.read_until(b"\0\0\x08\x07");
        for peer in [&mut silent, &mut tunnel, &mut tcp] {
            assert_eq!(peer.read_to_any_end().1, End::Reset);
        }
        proxy.expect_reason(Reason::EndpointChanged);
        let ended: Vec<Value> = until("three records of it", || {
            let ended: Vec<_> =
                proxy.flows().into_iter().filter(|flow| flow["reason"] == Reason::EndpointChanged.code()).collect();
            (ended.len() == 3).then_some(ended)
        });
        assert!(ended.iter().all(|flow| flow["verdict"] == "DROPPED"), "{ended:#?}");
        assert_eq!(answer(&mut Peer::connect(proxy.http())), (200, None), "a new connection is the new endpoint's");
    }
}

#[test]
fn who_cannot_be_looked_up_is_refused() {
    if !inside("identity::who_cannot_be_looked_up_is_refused") {
        return;
    }
    let site = Site::new();
    let mut maps = Maps::mount(site.path("bpf"));
    let upstream = Upstream::ok(&site);
    let options = Options {
        identities: format!("{{ ipcache: \"{}\", ttl: 0s }}", maps.ipcache().display()),
        listener: "reason_header: true, policy_wait: 100ms".into(),
        ..Options::default()
    };
    // Everybody may: it is not policy that refuses.
    let everybody = tollgate_tests::policy::usual(&site);
    let mut proxy = Proxy::without_policy(&site, upstream.address(), &options);
    proxy.push(&[everybody]);
    for address in [proxy.http(), proxy.tcp()] {
        Peer::expect_reset_at(address, "");
    }
    let flow = proxy.expect_reason(Reason::IdentityUnknown);
    assert_eq!((&flow["verdict"], &flow["source"]["identity"]), (&json!("DROPPED"), &json!(0)), "{flow}");
    assert_eq!(flow["detail"], "the ipcache cannot be read", "{flow}");
    let waiting = proxy.get("/ready");
    assert!(waiting.0 == 503 && waiting.1.contains("cilium_ipcache_v2: No such file"), "{waiting:?}");
    assert!(proxy.get("/status").1.contains("the datapath's agent pins it"), "{}", proxy.get("/status").1);

    // It comes; then something else comes in its place; then it comes back.
    maps.create_ipcache();
    proxy.wait_until_ready();
    let mut kept = Peer::connect(proxy.http());
    assert_eq!(answer(&mut kept), (200, None));
    maps.replace_ipcache_by_an_array();
    until("not ready", || (proxy.get("/ready").0 == 503).then_some(()));
    assert_eq!(answer(&mut kept), refused(Reason::IdentityUnknown));
    assert_eq!(kept.read_to_end(), b"");
    Peer::expect_reset_at(proxy.tcp(), "");
    maps.create_ipcache();
    proxy.wait_until_ready();
    assert_eq!(answer(&mut Peer::connect(proxy.http())), (200, None));
    assert_eq!(upstream.connections(), 2);
}

/// Maps that nobody can be writing to any more are not read for long.
#[test]
fn a_map_whose_pin_is_gone_is_given_up() {
    if !inside("identity::a_map_whose_pin_is_gone_is_given_up") {
        return;
    }
    let world = World::start("ingress", "");
    let mut client = Peer::connect(world.proxy.http());
    assert_eq!(answer(&mut client), (200, None));
    std::fs::remove_file(world.maps.ipcache()).unwrap();
    // Whatever else is published, which is when pins are looked at, too.
    world.proxy.push(&[policy(&world.site, "ingress", 7)]);
    assert_eq!(answer(&mut client), (200, None), "it may be back in a moment");
    assert_eq!(world.proxy.get("/ready").0, 200);
    until("not ready", || (world.proxy.get("/ready").0 == 503).then_some(()));
    assert_eq!(answer(&mut client), refused(Reason::IdentityUnknown));
}

/// As when an agent restarts.
fn begin_another_stream(proxy: &mut Proxy) {
    proxy.kill_control_plane();
    proxy.restart_control_plane();
    until("the stream", || proxy.get("/status").1.contains("\"connected\": true").then_some(()));
}

/// The first update of a new stream is about the maps that its sender made.
#[test]
fn a_new_stream_of_policies_opens_the_maps_anew() {
    if !inside("identity::a_new_stream_of_policies_opens_the_maps_anew") {
        return;
    }
    let mut world = World::start("ingress", "");
    let World { maps, proxy, site, .. } = &mut world;
    assert_eq!(answer(&mut Peer::connect(proxy.http())), (200, None));
    begin_another_stream(proxy);
    maps.create_ipcache();
    maps.put(CLIENT, DENIED);
    // When this is acknowledged, nobody reads the old map any more.
    proxy.push(&[policy(site, "ingress", 7)]);
    Peer::expect_reset_at(proxy.http(), GET);
    proxy.expect_reason(Reason::PeerNotAllowed);
}

/// An agent that restarts may take a pin away for a moment, and its policies may come before the new map.
#[test]
fn a_new_stream_of_policies_waits_for_a_pin_that_is_gone() {
    if !inside("identity::a_new_stream_of_policies_waits_for_a_pin_that_is_gone") {
        return;
    }
    let mut world = World::start("ingress", "");
    let World { maps, proxy, site, .. } = &mut world;
    let mut client = Peer::connect(proxy.http());
    assert_eq!(answer(&mut client), (200, None));
    begin_another_stream(proxy);
    std::fs::remove_file(maps.ipcache()).unwrap();
    proxy.push(&[policy(site, "ingress", 7)]);
    assert_eq!(answer(&mut client), (200, None), "it may be back in a moment");
    assert_eq!(proxy.get("/ready").0, 200);
    // The new one counts soon after it is there.
    let open =
        || serde_json::from_str::<Value>(&proxy.get("/status").1).unwrap()["identities"]["maps"][0]["id"].clone();
    let before = open();
    maps.create_ipcache();
    maps.put(CLIENT, DENIED);
    until("the new map", || (open() != before).then_some(()));
    Peer::expect_reset_at(proxy.http(), GET);
}

/// As when an agent restarts without a map that it had: the policies of its new stream are about the new maps.
#[test]
fn a_pin_that_is_gone_holds_up_no_other_map() {
    if !inside("identity::a_pin_that_is_gone_holds_up_no_other_map") {
        return;
    }
    let mut world = World::start("ingress", "");
    let World { maps, proxy, site, .. } = &mut world;
    assert_eq!(answer(&mut Peer::connect(proxy.http())), (200, None));
    begin_another_stream(proxy);
    std::fs::remove_file(maps.conntrack(true)).unwrap();
    maps.create_ipcache();
    maps.put(CLIENT, DENIED);
    proxy.push(&[policy(site, "ingress", 7)]);
    Peer::expect_reset_at(proxy.http(), GET);
    proxy.expect_reason(Reason::PeerNotAllowed);
}

/// A client on a port that conntrack knows before it connects.
fn connect_tracked(maps: &mut Maps, to: SocketAddr, identity: u32) -> Peer {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(CLIENT, 0).into()).unwrap();
    let from = socket.local_addr().unwrap().as_socket().unwrap();
    maps.track(from, to, identity);
    socket.connect(&to.into()).unwrap();
    Peer::new(TcpStream::from(socket))
}

#[test]
fn whose_word_counts_is_configured() {
    if !inside("identity::whose_word_counts_is_configured") {
        return;
    }
    const OF_CONNTRACK: u32 = ADMITTED;
    // (mode, what the address carries, the source in the record; 0: reset)
    for (mode, address, counts) in [
        ("compat", DENIED, OF_CONNTRACK),
        ("fresh", DENIED, 0),
        ("fresh", ALSO_ADMITTED, ALSO_ADMITTED),
        ("strict", DENIED, 0),
        ("strict", ALSO_ADMITTED, OF_CONNTRACK),
    ] {
        let mut world = World::start("ingress", &format!("mode: {mode}"));
        let World { maps, proxy, .. } = &mut world;
        maps.put(CLIENT, address);
        let to = proxy.http();
        let mut client = connect_tracked(maps, to, OF_CONNTRACK);
        if counts == 0 {
            client.expect_reset();
        } else {
            assert_eq!(answer(&mut client), (200, None), "{mode} {address}");
            assert_eq!(proxy.expect_flows(1)[0]["source"]["identity"], counts, "{mode} {address}");
        }
        assert_eq!(count(proxy, "tollgate_identity_disagreements_total"), 1);
        // What conntrack says of another connection, or denies of its own, is no help.
        let mut denied = connect_tracked(maps, to, DENIED);
        if mode == "fresh" && address == ALSO_ADMITTED {
            assert_eq!(answer(&mut denied), (200, None));
        } else {
            denied.expect_reset();
        }
    }
}

/// Both may connect, but not for the same request.
#[test]
fn strict_wants_each_request_admitted_for_both() {
    if !inside("identity::strict_wants_each_request_admitted_for_both") {
        return;
    }
    const OTHERS: u32 = 300;
    for (mode, expected) in [("compat", (200, None)), ("strict", refused(Reason::RequestNotAllowed))] {
        let mut world = World::start("ingress", &format!("mode: {mode}"));
        let World { maps, proxy, site, .. } = &mut world;
        let rule = |remote: u32, path: &str| json!({"remotePolicies": [remote], "httpRules": {"httpRules": [http_rule("GET", path)]}});
        let rules = [rule(ADMITTED, "/allowed"), rule(OTHERS, "/other")];
        proxy.push(&[ingress(site, json!([{"port": HTTP_PORT, "rules": rules}]))]);
        maps.put(CLIENT, OTHERS);
        let to = proxy.http();
        let mut client = connect_tracked(maps, to, ADMITTED);
        assert_eq!(answer(&mut client), expected, "{mode}");
    }
}

/// Conntrack's word was about who had the address before.
#[test]
fn conntrack_does_not_outlive_a_change_of_the_address() {
    if !inside("identity::conntrack_does_not_outlive_a_change_of_the_address") {
        return;
    }
    let mut world = World::start("ingress", "ttl: 0s");
    let World { maps, proxy, .. } = &mut world;
    let to = proxy.http();
    let mut client = connect_tracked(maps, to, ALSO_ADMITTED);
    assert_eq!(answer(&mut client), (200, None));
    maps.put(CLIENT, DENIED);
    assert_eq!(answer(&mut client), refused(Reason::PeerNotAllowed));
}

#[test]
fn strict_ends_a_connection_whose_peer_has_changed() {
    if !inside("identity::strict_ends_a_connection_whose_peer_has_changed") {
        return;
    }
    for direction in ["ingress", "egress"] {
        let mut world = World::start(direction, "ttl: 0s, mode: strict");
        let World { maps, proxy, site, .. } = &mut world;
        let mut client = Peer::connect(proxy.http());
        assert_eq!(answer(&mut client), (200, None));
        maps.put(if direction == "ingress" { CLIENT } else { site.ip() }, ALSO_ADMITTED);
        // The sweep may be first, and then there is no request to answer.
        client.send(GET);
        let (said, _) = client.read_to_any_end();
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 403 "), "{}", said.escape_ascii());
        assert_eq!(answer(&mut Peer::connect(proxy.http())), (200, None));
    }
}

#[test]
fn an_address_is_asked_about_once_per_time_to_live() {
    if !inside("identity::an_address_is_asked_about_once_per_time_to_live") {
        return;
    }
    let world = World::start("ingress", "ttl: 1h");
    let mut clients: Vec<_> = (0..3).map(|_| Peer::connect(world.proxy.http())).collect();
    for round in 0..300 {
        assert_eq!(answer(&mut clients[round % 3]), (200, None));
    }
    assert_eq!(count(&world.proxy, FOUND), 1);
    let conntrack = r#"tollgate_identity_lookups_total{map="conntrack",result="no_entry"}"#;
    assert_eq!(count(&world.proxy, conntrack), 3);
}

/// No word from the control plane is not the word that everybody is the world.
#[test]
fn without_any_hosts_nobody_is_the_world() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let listener = "reason_header: true, policy_wait: 100ms".to_owned();
    let options = Options { identities: "nphds".into(), listener, ..Options::default() };
    let proxy = Proxy::without_policy(&site, upstream.address(), &options);
    proxy.push(&[tollgate_tests::policy::usual(&site)]);
    Peer::expect_reset_at(proxy.http(), "");
    let flow = proxy.expect_reason(Reason::IdentityUnknown);
    assert_eq!(flow["detail"], "no NetworkPolicyHosts has come from the control plane yet", "{flow}");
    assert_eq!(proxy.get("/ready").0, 503);
}
