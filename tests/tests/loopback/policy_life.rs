//! Policy that is missing, arrives, changes, is nonsense, or loses its source; and the end of the proxy itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_tests::control_plane::Answer;
use tollgate_tests::http2;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, of_another_endpoint, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site, TCP_PORT};
use tollgate_tests::upstream::{OK, Upstream};
use tollgate_tests::wait::until;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
const GET_DENIED: &str = "GET /denied HTTP/1.1\r\nHost: a\r\n\r\n";

fn listener(keys: &str) -> Options {
    Options { listener: format!("reason_header: true, {keys}"), ..Options::default() }
}

fn status_of(client: &mut Peer, request: &str) -> u16 {
    client.send(request);
    client.read_message().status()
}

#[test]
fn without_any_policy_connections_are_held_and_then_reset() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::without_policy(&site, upstream.address(), &listener("policy_wait: 100ms"));
    for address in [proxy.http(), proxy.tcp()] {
        Peer::expect_reset_at(address, "");
    }
    let record = proxy.expect_reason(Reason::PolicyPending);
    assert_eq!((&record["verdict"], &record["policy"]["generation"]), (&json!("DROPPED"), &json!(0)));
    let (status, body) = proxy.get("/ready");
    assert_eq!((status, body.contains("first policy")), (503, true), "{body}");
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn connections_that_are_held_are_judged_by_the_policy_that_comes() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::without_policy(&site, upstream.address(), &listener("policy_wait: 1h"));
    let mut clients = [Peer::connect(proxy.http()), Peer::connect(proxy.http()), Peer::connect(proxy.tcp())];
    for (client, request) in clients.iter_mut().zip([GET, GET_DENIED, GET]) {
        client.send(request);
    }
    until("three connections held", || (proxy.metric("tollgate_held_connections") == 3.0).then_some(()));
    assert_eq!(upstream.connections(), 0);
    proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("GET", "/allowed")])]))]);
    let [allowed, denied, tcp] = &mut clients;
    assert_eq!(allowed.read_message().status(), 200);
    assert_eq!(denied.read_message().status(), 403);
    tcp.expect_reset();
    until("nothing held", || (proxy.metric("tollgate_held_connections") == 0.0).then_some(()));
    assert_eq!(proxy.get("/ready").0, 200);
    proxy.expect_reason(Reason::PortNotAllowed);
}

#[test]
fn an_endpoint_without_a_policy_is_denied() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let options = listener("policy_wait: 100ms");
    let proxy = Proxy::with(&site, upstream.address(), &options, &[of_another_endpoint()]);
    for address in [proxy.http(), proxy.tcp()] {
        Peer::expect_reset_at(address, "");
    }
    proxy.expect_reason(Reason::NoPolicy);
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_push_flips_verdicts_on_the_same_connection() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let options = Options { workers: 2, ..Options::default() };
    let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let mut clients: Vec<Peer> = (0..8).map(|_| Peer::connect(proxy.http())).collect();
    let only = |path: &str| [ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("GET", path)])]))];
    for path in ["/denied", "/allowed", "/neither", "/denied"] {
        // When the push is acknowledged every worker decides by it.
        proxy.push(&only(path));
        for client in &mut clients {
            assert_eq!(status_of(client, GET), if path == "/allowed" { 200 } else { 403 });
            assert_eq!(status_of(client, GET_DENIED), if path == "/denied" { 200 } else { 403 });
        }
    }
    assert!(upstream.connections() <= clients.len());
    let flows = proxy.expect_flows(8 * 2 * 4);
    let generations: BTreeSet<_> = flows.iter().map(|flow| flow["policy"]["generation"].as_u64()).collect();
    assert_eq!(generations, (2..=5).map(Some).collect());
}

#[test]
fn an_idle_connection_whose_port_is_closed_gets_one_last_answer() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    assert_eq!(status_of(&mut client, GET), 200);
    proxy.push(&[ingress(&site, json!([{"port": TCP_PORT}]))]);
    client.send(GET);
    let answer = client.read_message();
    assert_eq!((answer.status(), answer.field("connection")), (403, Some("close")));
    assert_eq!(client.read_to_end(), b"");
    proxy.expect_reason(Reason::PortNotAllowed);
}

/// Streams of one connection are told of a change each on its own.
#[test]
fn a_push_ends_every_stream_that_it_no_longer_allows() {
    const STREAMS: u32 = 5;
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.send(http2::SERVER_START);
        peer.read_to_any_end();
    });
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    client.send(http2::CLIENT_START);
    let streams = || (0..STREAMS).map(|n| 2 * n + 1);
    streams().for_each(|stream| client.send(http2::get(stream)));
    until("all requests at the upstream", || {
        let received = upstream.received().concat();
        streams().all(|stream| contains(&received, &http2::headers_of(stream))).then_some(())
    });
    proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("GET", "/other")])]))]);
    for flow in proxy.expect_flows(STREAMS as usize) {
        assert_eq!(flow["reason"], "revoked", "{flow}");
    }
}

/// Whether `bytes` holds `part`.
fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn policy_outlives_its_control_plane() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let mut proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    assert_eq!(status_of(&mut client, GET), 200);
    proxy.kill_control_plane();
    for client in [&mut client, &mut Peer::connect(proxy.http())] {
        assert_eq!(status_of(client, GET), 200);
        assert_eq!(status_of(client, GET_DENIED), 403);
    }
    assert_eq!(proxy.get("/ready").0, 200);
    proxy.restart_control_plane();
    proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("GET", "/denied")])]))]);
    assert_eq!(status_of(&mut client, GET), 403);
    assert_eq!(status_of(&mut client, GET_DENIED), 200);
}

#[test]
fn nonsense_is_refused_and_the_last_good_policy_stays() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let mut client = Peer::connect(proxy.http());
    for garbage in [vec![vec![0xff; 20]], vec![vec![0x0a, 200]], vec![vec![], vec![0x12]]] {
        match proxy.control().push_bytes(garbage) {
            Answer::Nack { version, message } => {
                assert_eq!(version, "1");
                assert!(!message.is_empty());
            }
            Answer::Ack => panic!("nonsense was accepted"),
        }
        assert_eq!(status_of(&mut client, GET), 200);
        assert_eq!(status_of(&mut client, GET_DENIED), 403);
    }
    proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("GET", "/denied")])]))]);
    assert_eq!(status_of(&mut client, GET), 403);
}

#[test]
fn a_broken_rule_allows_nothing_and_its_siblings_stand() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::start(&site, upstream.address());
    let rules = [http_rule("GET", "/broken("), http_rule("GET", "/allowed")];
    proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &rules)]))]);
    let mut client = Peer::connect(proxy.http());
    assert_eq!(status_of(&mut client, GET), 200);
    assert_eq!(status_of(&mut client, "GET /broken( HTTP/1.1\r\nHost: a\r\n\r\n"), 403);
    assert_eq!(status_of(&mut client, GET_DENIED), 403);
    let (_, status) = proxy.get("/status");
    assert!(status.contains("/broken("), "{status}");
}

#[test]
fn the_third_of_two_connections_is_reset() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    // One tenant alone would have half of them.
    let top = "max_connections: 2\nlimits: { mode: shadow, idle_connections: \"off\" }".into();
    let options = Options { top, ..Options::default() };
    let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let mut clients = [Peer::connect(proxy.http()), Peer::connect(proxy.http())];
    for client in &mut clients {
        assert_eq!(status_of(client, GET), 200);
    }
    Peer::expect_reset_at(proxy.http(), "");
    Peer::expect_reset_at(proxy.tcp(), "");
    let refused = || proxy.flows().into_iter().filter(|flow| flow["reason"] == Reason::ConnectionLimit.code());
    until("the records", || (refused().count() == 2).then_some(()));
    for record in refused() {
        assert_eq!(
            (&record["verdict"], &record["detail"]),
            (&json!("DROPPED"), &json!("max_connections: 2")),
            "{record}"
        );
    }
    assert_eq!(proxy.metric("tollgate_refusals_total{reason=\"connection_limit\"}"), 2.0);
    let of_tenant = "tollgate_tenant_refusals_total{tenant=\"endpoint-7\",reason=\"connection_limit\"}";
    assert_eq!(proxy.metric(of_tenant), 2.0);
    for client in &mut clients {
        assert_eq!(status_of(client, GET), 200);
    }
    drop(clients);
    until("a place for the next connection", || {
        let mut client = Peer::try_connect(proxy.http()).ok()?;
        client.try_send(GET).ok()?;
        client.wait_for_bytes().then_some(())
    });
}

#[test]
fn a_head_that_does_not_end_is_not_waited_for() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let options = listener("request_head_timeout: 100ms");
    let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    // A connection that is idle between requests is nobody's business.
    assert_eq!(status_of(&mut client, GET), 200);
    client.send("GET /allowed HTTP/1.1\r\nHos");
    let answer = client.read_message();
    assert_eq!((answer.status(), answer.field("connection")), (408, Some("close")));
    assert_eq!(client.read_to_end(), b"");
    proxy.expect_reason(Reason::DownstreamTimeout);
    Peer::expect_reset_at(proxy.http(), "PRI * HT");
}

#[test]
fn draining_lets_exchanges_end_and_nothing_begin() {
    let site = Site::new();
    let (go_on, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::scripted(&site, move |peer, _| {
        while peer.wait_for_bytes() {
            if peer.read_head().contains("slow") {
                wait.lock().unwrap().recv().unwrap();
            }
            peer.send(OK);
        }
    });
    let mut proxy = Proxy::start(&site, upstream.address());
    let mut idle = Peer::connect(proxy.http());
    assert_eq!(status_of(&mut idle, GET), 200);
    let mut fresh = Peer::connect(proxy.http());
    let mut busy = Peer::connect(proxy.http());
    busy.send("GET /allowed/slow HTTP/1.1\r\nHost: a\r\n\r\n");
    until("the request at the upstream", || upstream.text().contains("slow").then_some(()));
    proxy.terminate();
    assert_eq!(idle.read_to_end(), b"");
    assert_eq!(fresh.read_to_end(), b"");
    until("a listener that accepts no more", || {
        let refused = TcpStream::connect(proxy.http()).err()?;
        (refused.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    assert_eq!(proxy.get("/ready").0, 503);
    go_on.send(()).unwrap();
    let answer = busy.read_message();
    assert_eq!((answer.status(), answer.field("connection")), (200, Some("close")));
    assert_eq!(busy.read_to_end(), b"");
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.process().output());
}

#[test]
fn what_does_not_end_in_time_is_cut_and_recorded() {
    let site = Site::new();
    let log = site.path("flows.json");
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_to_any_end();
    });
    let top = format!("drain_timeout: 100ms\naccess_log: [ {{ json: \"{}\" }} ]", log.display());
    let options = Options { top, ..Options::default() };
    let mut proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    upstream.expect(GET);
    proxy.terminate();
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.process().output());
    let answer = client.read_message();
    assert_eq!((answer.status(), answer.field("x-tollgate-reason")), (503, Some("draining")));
    let line = fs::read_to_string(log).unwrap();
    let record: Value = serde_json::from_str(line.trim()).unwrap();
    assert_eq!(record["reason"], Reason::Draining.code());
}

/// Each byte of such a path makes another state of such an automaton.
#[test]
fn a_value_that_takes_too_much_work_is_refused() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let rules: Vec<_> = (0..50).map(|i| http_rule("GET", &format!("/v1/.*-.{{36}}/{i}"))).collect();
    let policy = ingress(&site, json!([http_port(HTTP_PORT, &rules)]));
    let proxy = Proxy::with(&site, upstream.address(), &Options::default(), &[policy]);
    let mut random = fastrand::Rng::with_seed(1);
    let path: String = (0..30_000).map(|_| if random.bool() { 'a' } else { '-' }).collect();
    let mut client = Peer::connect(proxy.http());
    for (path, status) in [(format!("/v1/{path}"), 403), (format!("/v1/-{}/7", "x".repeat(36)), 200)] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.read_message().status(), status);
    }
    proxy.expect_reason(Reason::MatchBudget);
}

/// Where the end of a connection is the end of the data, a clean one would make a part the whole.
#[test]
fn what_is_cut_is_reset() {
    const PART: &str = "HTTP/1.0 200 OK\r\n\r\na part";
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send(PART);
        peer.read_to_any_end();
    });
    let options = Options { top: "drain_timeout: 100ms".into(), ..Options::default() };
    let mut proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let mut clients = [Peer::connect(proxy.http()), Peer::connect(proxy.tcp())];
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.read_exact(PART.len()), PART.as_bytes());
    }
    proxy.terminate();
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.process().output());
    for client in &mut clients {
        client.expect_reset();
    }
}

/// Where each reason is reached: in these suites (module and test, which must name the reason), or elsewhere.
const REACHED: &[(Reason, &str, &str)] = &[
    (Reason::PolicyPending, "policy_life", "without_any_policy_connections_are_held_and_then_reset"),
    (Reason::NoPolicy, "policy_life", "an_endpoint_without_a_policy_is_denied"),
    (Reason::PortNotAllowed, "tcp", "what_policy_denies_is_reset"),
    (Reason::PeerNotAllowed, "tcp", "what_policy_denies_is_reset"),
    (Reason::RequestNotAllowed, "http1", "pipelined_requests_are_answered_in_order"),
    (Reason::DenyRule, "tcp", "what_policy_denies_is_reset"),
    (Reason::UpgradeNotAllowed, "limits", "websockets_can_be_forbidden_and_may_idle_out"),
    (Reason::UpstreamTimeout, "limits", "a_response_that_does_not_come_is_504"),
    (Reason::Quarantined, "tcp", "what_policy_denies_is_reset"),
    (Reason::MatchBudget, "policy_life", "a_value_that_takes_too_much_work_is_refused"),
    (Reason::IdentityUnknown, "identity", "who_cannot_be_looked_up_is_refused"),
    (Reason::IdentityChanged, "identity", "what_was_admitted_for_one_identity_does_not_go_on_for_another"),
    (Reason::EndpointChanged, "identity", "a_connection_ends_when_the_local_address_belongs_to_another_endpoint"),
    (Reason::Revoked, "tcp", "a_port_that_gains_rules_ends_uninspected_connections"),
    (Reason::MalformedRequest, "malformed", "each_refusal_names_its_reason"),
    (Reason::AmbiguousPath, "malformed", "each_refusal_names_its_reason"),
    (Reason::PathRedirect, "malformed", "each_refusal_names_its_reason"),
    (Reason::BadAuthority, "malformed", "each_refusal_names_its_reason"),
    (Reason::TargetTooLong, "malformed", "each_refusal_names_its_reason"),
    (Reason::HeadersTooLarge, "malformed", "each_refusal_names_its_reason"),
    (Reason::TransferCoding, "malformed", "each_refusal_names_its_reason"),
    (Reason::MethodNotSupported, "malformed", "each_refusal_names_its_reason"),
    (Reason::Expectation, "malformed", "each_refusal_names_its_reason"),
    (Reason::ProtocolUnknown, "malformed", "each_refusal_names_its_reason"),
    (Reason::DownstreamTimeout, "policy_life", "a_head_that_does_not_end_is_not_waited_for"),
    (Reason::DownstreamReset, "tcp", "a_reset_is_a_reset_on_the_other_side"),
    (Reason::ConnectionLimit, "policy_life", "the_third_of_two_connections_is_reset"),
    (Reason::IdleReaped, "idle", "who_waits_longest_makes_room_and_who_never_asked_goes_first"),
    (Reason::SlowReader, "idle", "who_does_not_read_makes_room"),
    (Reason::TenantMemory, "memory", "a_tenant_past_its_ceiling_gets_nothing_more_and_its_neighbour_all"),
    (Reason::FrameFlood, "h2_floods", "floods_of_control_frames_end"),
    (Reason::ResetFlood, "h2_floods", "rapid_resets_end"),
    (Reason::TenantConnections, "tenant_limits", "connections_have_a_ceiling"),
    (Reason::TenantConnectionRate, "tenant_limits", "new_connections_have_a_rate"),
    (Reason::TenantRate, "tenant_limits", "more_requests_than_the_rate_are_told_when_to_come_back"),
    (Reason::TenantInFlight, "tenant_limits", "requests_under_way_have_a_ceiling"),
    (Reason::TenantLongStreams, "tenant_limits", "websockets_have_a_ceiling"),
    (Reason::TenantShare, "tenant_limits", "who_has_most_makes_room_for_who_comes"),
    (Reason::TenantHeaders, "tenant_limits", "heads_have_a_ceiling"),
    (Reason::TenantUpstreams, "tenant_limits", "connections_to_a_destination_have_a_ceiling"),
    (Reason::TenantCpu, "tenant_limits", "refusals_are_paid_for_like_answers"),
    (Reason::TenantQueueDelay, "tenant_limits", "requests_that_would_only_wait_behind_each_other_are_refused"),
    (Reason::TenantBandwidth, "bandwidth", "shadow_holds_nobody_back"),
    (Reason::TenantIsolated, "panics", "who_makes_connections_panic_is_kept_apart_and_nobody_else_notices"),
    (Reason::Internal, "panics", "who_makes_connections_panic_is_kept_apart_and_nobody_else_notices"),
    (Reason::UpstreamConnect, "tcp", "an_upstream_that_refuses_is_a_reset"),
    (Reason::UpstreamReset, "tcp", "a_reset_is_a_reset_on_the_other_side"),
    (Reason::UpstreamMalformed, "http1", "responses_that_could_smuggle_are_502"),
    (Reason::UpstreamTruncated, "http1", "a_truncated_response_has_no_clean_end"),
    (Reason::Draining, "policy_life", "what_does_not_end_in_time_is_cut_and_recorded"),
];

/// Reasons that no test here can reach, and why.
const ELSEWHERE: &[(Reason, &str)] = &[
    (Reason::Loop, "needs an original destination, so a transparent listener; the configuration refuses it otherwise"),
    (Reason::Dropped, "flow/channel/tests.rs: a record whose task ended without a word"),
];

#[test]
fn every_reason_is_reached() {
    let sources = BTreeMap::from([
        ("bandwidth", include_str!("bandwidth.rs")),
        ("h2_floods", include_str!("h2_floods.rs")),
        ("http1", include_str!("http1.rs")),
        ("identity", include_str!("identity.rs")),
        ("idle", include_str!("idle.rs")),
        ("limits", include_str!("limits.rs")),
        ("malformed", include_str!("malformed.rs")),
        ("memory", include_str!("memory.rs")),
        ("panics", include_str!("panics.rs")),
        ("policy_life", include_str!("policy_life.rs")),
        ("tcp", include_str!("tcp.rs")),
        ("tenant_limits", include_str!("tenant_limits.rs")),
    ]);
    for reason in Reason::ALL {
        let here = REACHED.iter().filter(|(reached, ..)| reached == reason).count();
        let elsewhere = ELSEWHERE.iter().filter(|(other, _)| other == reason).count();
        assert_eq!(here + elsewhere, 1, "{reason:?}: name the test that reaches it");
    }
    for (reason, module, test) in REACHED {
        let (_, body) = sources[module].split_once(&format!("fn {test}()")).expect(test);
        let (body, _) = body.split_once("\n}\n").expect(test);
        assert!(body.contains(&format!("Reason::{reason:?}")), "{module}::{test} does not mention {reason:?}");
    }
}
