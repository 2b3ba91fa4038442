//! What each kind of limit does, where the suite of its subject does not say it: to HTTP/2 and gRPC, to the metrics, to a neighbour, and in
//! shadow, where it does nothing. Which test shows what is in the table of `docs/limits.md`.

use std::net::IpAddr;
use std::time::Instant;

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, big_get, end_of, get};
use tollgate_tests::peer::{End, Message, Peer};
use tollgate_tests::policy::http_rule;
use tollgate_tests::proxy::Options;
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::{Upstream, WEBSOCKET_ACCEPTED, websocket_request};
use tollgate_tests::wait::until;

use super::tenants::policy;
use super::two_tenants::{GET, Two, answer_if_let_in, ask, fields_of, held_upstream, waiting};

/// A limit, and how HTTP/2 and gRPC are told of it.
struct Told {
    settings: &'static str,
    top: &'static str,
    /// Requests under way that have taken what there is.
    under_way: u32,
    reason: Reason,
    /// `None` for a refused stream.
    status: Option<u16>,
    grpc_status: &'static str,
    retry_after: Option<&'static str>,
    overloaded: bool,
}

/// Of those that have no test of their own for it.
const TOLD: [Told; 4] = [
    Told {
        settings: "ceilings: { requests: { per_second: 1, burst: 1 } }",
        top: "",
        under_way: 0,
        reason: Reason::TenantRate,
        status: Some(429),
        grpc_status: "8",
        retry_after: Some("1"),
        overloaded: false,
    },
    Told {
        settings: "ceilings: { upstream_connections: 1 }",
        top: "",
        under_way: 1,
        reason: Reason::TenantUpstreams,
        status: Some(503),
        grpc_status: "14",
        retry_after: Some("1"),
        overloaded: true,
    },
    Told {
        settings: "ceilings: { header: 8 }",
        top: "",
        under_way: 0,
        reason: Reason::TenantHeaders,
        status: Some(431),
        grpc_status: "8",
        retry_after: None,
        overloaded: false,
    },
    Told {
        settings: "weight: 1",
        top: "limits: { in_flight: 4 }",
        under_way: 2,
        reason: Reason::TenantShare,
        status: None,
        grpc_status: "14",
        retry_after: Some("1"),
        overloaded: true,
    },
];

#[test]
fn http_2_and_grpc_are_told_which_limit_it_was() {
    let Some(python) = python() else { return };
    for told in TOLD {
        let site = Site::new();
        let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
        let two = Two::to(&site, address.parse().unwrap(), told.settings, told.top);
        let under_way = (told.under_way > 0).then(|| hanging(&two, told.under_way));
        let arguments = ["refused", &two.proxy.http().to_string(), &two.busy.to_string()];
        let seen = script::run(python, &site, "h2_client.py", &arguments);
        expect_told(&told, &seen);
        let refused = two.counted("refusals_total", told.reason);
        assert!(refused >= 2, "{refused}: {seen}");
        two.expect_refused(told.reason, refused);
        let codes: Vec<u64> = two.records(told.reason).iter().map(code).collect();
        for expected in [told.status.unwrap_or(0).into(), 200] {
            assert!(codes.contains(&expected), "{codes:?} of {seen}");
        }
        let mut calm = two.calm();
        calm.send(CLIENT_START);
        calm.send(get(1));
        calm.read_until(&end_of(1));
        two.neighbour_is_refused_nothing();
        drop(under_way);
    }
}

/// So many streams on one connection that were answered, without an end.
fn hanging(two: &Two, streams: u32) -> Peer {
    let mut client = two.busy();
    client.send(CLIENT_START);
    for stream in (0..streams).map(|n| 2 * n + 1) {
        client.send(big_get(stream, "/allowed/hang", 1));
        client.read_until(&[&[1, 4][..], &stream.to_be_bytes()].concat());
    }
    client
}

fn expect_told(told: &Told, seen: &Value) {
    let code = told.reason.code();
    let (plain, grpc) = (&seen["plain"], &seen["grpc"]);
    match told.status {
        None => assert_eq!((&plain["status"], &plain["end"]), (&json!(null), &json!(7)), "REFUSED_STREAM: {seen}"),
        Some(status) => {
            assert_eq!((&plain["status"], &plain["end"]), (&json!(status), &json!("end")), "{seen}");
            expect_fields(told, plain);
        }
    }
    assert_eq!((&grpc["status"], &grpc["end"]), (&json!(200), &json!("end")), "{seen}");
    expect_fields(told, grpc);
    let fields = fields_of(grpc);
    assert_eq!((&*fields["grpc-status"], &*fields["grpc-message"]), (told.grpc_status, code), "{seen}");
}

fn expect_fields(told: &Told, answer: &Value) {
    let fields = fields_of(answer);
    let field = |name: &str| fields.get(name).map(String::as_str);
    assert_eq!(field("x-tollgate-reason"), Some(told.reason.code()), "{answer}");
    assert_eq!(field("x-envoy-overloaded"), told.overloaded.then_some("true"), "{answer}");
    if let Some(seconds) = told.retry_after {
        assert_eq!(field("retry-after"), Some(seconds), "{answer}");
    }
}

/// Of the answer, by its record.
fn code(record: &Value) -> u64 {
    record["l7"]["http"]["code"].as_u64().unwrap_or_else(|| panic!("no request: {record}"))
}

#[test]
fn each_connection_beyond_the_rate_is_reset_and_counted() {
    const COME: usize = 40;
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "ceilings: { new_connections: { per_second: 1, burst: 4 } }");
    let began = Instant::now();
    let mut clients: Vec<Peer> = (0..COME).filter_map(|_| two.try_busy().ok()).collect();
    let let_in: Vec<Message> = clients.iter_mut().filter_map(answer_if_let_in).collect();
    // However long this took, no more than the time has paid for.
    let paid = 4 + began.elapsed().as_secs() + 1;
    assert!(let_in.len() >= 4 && let_in.len() as u64 <= paid, "{} of {paid}", let_in.len());
    assert!(let_in.iter().all(|answer| answer.status() == 200));
    two.expect_refused(Reason::TenantConnectionRate, (COME - let_in.len()) as u64);
    let details: Vec<Value> =
        two.records(Reason::TenantConnectionRate).iter().map(|record| record["detail"].clone()).collect();
    assert!(details.iter().all(|detail| *detail == "ceilings.new_connections: 1/s, burst 4"), "{details:?}");
    two.neighbour_is_served();
}

#[test]
fn shadow_lets_everybody_in_beyond_the_rate() {
    const COME: u64 = 20;
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(
        &site,
        &upstream,
        "shadow: true, ceilings: { new_connections: { per_second: 1, burst: 2 }, requests: { per_second: 1, burst: 2 } }",
    );
    let began = Instant::now();
    let mut clients: Vec<Peer> = (0..COME).map(|_| two.busy()).collect();
    for client in &mut clients {
        assert_eq!(ask(client, GET).status(), 200);
    }
    let paid = 2 + began.elapsed().as_secs() + 1;
    for reason in [Reason::TenantConnectionRate, Reason::TenantRate] {
        let would_be = two.counted("shadow_refusals_total", reason);
        assert!(would_be <= COME - 2 && would_be + paid >= COME, "{would_be} of {COME}, {paid} of which were paid for");
        two.expect_shadowed(reason, would_be);
        assert_eq!(two.counted("refusals_total", reason), 0);
    }
    two.neighbour_is_served();
}

#[test]
fn shadow_opens_every_websocket() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send(WEBSOCKET_ACCEPTED);
        peer.read_to_any_end();
    });
    let two = Two::start(&site, &upstream, "shadow: true, ceilings: { long_streams: 1 }");
    let mut tunnels: Vec<Peer> = (0..3).map(|_| two.busy()).collect();
    for tunnel in &mut tunnels {
        tunnel.send(websocket_request("/allowed"));
        assert_eq!(tunnel.read_head(), WEBSOCKET_ACCEPTED);
    }
    two.expect_shadowed(Reason::TenantLongStreams, 2);
    let mut calm = two.calm();
    calm.send(websocket_request("/allowed"));
    assert_eq!(calm.read_head(), WEBSOCKET_ACCEPTED);
    two.neighbour_is_refused_nothing();
}

/// A tenant's own shadow, and that of the process.
const SHADOWS: [(&str, &str); 2] = [("shadow: true", ""), ("weight: 1", "mode: shadow, ")];

#[test]
fn shadow_shares_no_connections() {
    for (settings, mode) in SHADOWS {
        let site = Site::new();
        let upstream = Upstream::ok(&site);
        let top = format!("max_connections: 10\nlimits: {{ {mode}idle_connections: \"off\" }}");
        let two = Two::with(&site, &upstream, settings, &top);
        // Alone it may have half of them.
        let mut open: Vec<Peer> = (0..8).map(|_| two.busy()).collect();
        for client in &mut open {
            assert_eq!(ask(client, GET).status(), 200);
        }
        two.expect_shadowed(Reason::TenantShare, 3);
        two.neighbour_is_served();
    }
}

#[test]
fn shadow_shares_no_requests_under_way() {
    for (settings, mode) in SHADOWS {
        let site = Site::new();
        let (upstream, go_on) = held_upstream(&site);
        let two = Two::with(&site, &upstream, settings, &format!("limits: {{ {mode}in_flight: 4 }}"));
        let mut waiting = waiting(&upstream, 3, || two.busy());
        two.expect_shadowed(Reason::TenantShare, 1);
        two.neighbour_is_served();
        (0..3).for_each(|_| go_on.send(()).unwrap());
        for client in &mut waiting {
            assert_eq!(client.read_message().status(), 200);
        }
    }
}

static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];

/// Answers to the first two connections are more than sockets hold, others get none.
fn endless_twice(site: &Site) -> Upstream {
    Upstream::scripted(site, |peer, number| {
        peer.read_head();
        if number < 2 {
            peer.stop_recording();
            peer.send("HTTP/1.1 200 OK\r\n\r\n");
            while peer.try_send(PIECE).is_ok() {}
            return;
        }
        peer.read_to_any_end();
    })
}

/// Neighbour and busy tenant, which do not read, and connections of the latter that wait for an answer: five of the eight that it may
/// have, where four are thought enough.
fn not_reading(two: &Two, upstream: &Upstream) -> ([Peer; 2], Vec<Peer>) {
    let asks = |mut client: Peer, number: usize| {
        client.send(GET);
        until("the request", || (upstream.connections() == number).then_some(()));
        client
    };
    let mut both = [asks(two.calm(), 1), asks(two.busy(), 2)];
    for client in &mut both {
        assert!(client.read_head().starts_with("HTTP/1.1 200"));
    }
    (both, (3..7).map(|number| asks(two.busy(), number)).collect())
}

/// Both on one worker: each looks after its own connections.
fn few_connections(site: &Site, upstream: &Upstream, mode: &str) -> Two {
    let patience = "before_request: 0s, while_not_reading: 0s, between_requests: 0s";
    let top = format!("limits: {{ {mode}idle_connections: {{ above_percent: 50, {patience} }} }}");
    let options = Options { top, workers: 1, ..Options::default() };
    Two::under(site, upstream.address(), "ceilings: { connections: 8 }", options, |busy| policy(7, busy))
}

#[test]
fn a_slow_reader_makes_room_for_its_own_tenant_alone() {
    let site = Site::new();
    let upstream = endless_twice(&site);
    let two = few_connections(&site, &upstream, "");
    let ([mut calm, mut slow], others) = not_reading(&two, &upstream);
    until("its end", || {
        drop(two.try_busy());
        (!two.records(Reason::SlowReader).is_empty()).then_some(())
    });
    two.expect_refused(Reason::SlowReader, 1);
    let record = two.records(Reason::SlowReader).remove(0);
    assert_eq!(code(&record), 200, "what it was told before");
    // Of all places there are as many as this machine has descriptors for.
    let detail = record["detail"].as_str().unwrap();
    assert!(detail.starts_with("limits.idle_connections of ceilings.connections: 8, max_connections: "), "{detail}");
    let (_, end) = slow.read_to_any_end();
    assert_eq!(end, End::Reset);
    // Whoever reads as slowly in another tenant gets all there is.
    calm.expect_repeated(&PIECE, 32 << 20);
    two.neighbour_is_refused_nothing();
    drop(others);
}

#[test]
fn shadow_waits_for_slow_readers() {
    let site = Site::new();
    let upstream = endless_twice(&site);
    let two = few_connections(&site, &upstream, "mode: shadow, ");
    let ([calm, mut slow], others) = not_reading(&two, &upstream);
    let counted = "tollgate_shadow_refusals_total{reason=\"slow_reader\"} ";
    until("what would be its end", || {
        drop(two.try_busy());
        let scrape = two.proxy.get("/metrics").1;
        scrape.lines().find_map(|line| line.strip_prefix(counted)).filter(|count| *count != "0").map(drop)
    });
    slow.expect_repeated(&PIECE, 32 << 20);
    two.expect_shadowed(Reason::SlowReader, 0);
    assert_eq!(two.counted("refusals_total", Reason::SlowReader), 0);
    drop((calm, others));
}

/// Each byte of such a path makes another state of such an automaton.
#[test]
fn work_beyond_the_budget_of_a_request_costs_a_neighbour_nothing() {
    const TIMES: u64 = 3;
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let rules: Vec<Value> = (0..50).map(|i| http_rule("GET", &format!("/v1/.*-.{{36}}/{i}"))).collect();
    let two = Two::under(&site, upstream.address(), "weight: 1", Options::default(), |busy| with_rules(busy, &rules));
    let mut random = fastrand::Rng::with_seed(1);
    let (mut busy, mut calm) = (two.busy(), two.calm());
    for _ in 0..TIMES {
        let path: String = (0..30_000).map(|_| if random.bool() { 'a' } else { '-' }).collect();
        let answer = ask(&mut busy, &format!("GET /v1/{path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.status(), 403);
        assert_eq!(answer.field("x-tollgate-reason"), Some(Reason::MatchBudget.code()));
        assert_eq!(ask(&mut calm, GET).status(), 200);
    }
    let records =
        until("the records", || Some(two.records(Reason::MatchBudget)).filter(|records| records.len() as u64 == TIMES));
    assert!(records.iter().all(|record| record["tenant"] == "busy" && code(record) == 403), "{records:?}");
    assert_eq!(two.counted("refusals_total", Reason::MatchBudget), TIMES);
    assert_eq!(two.proxy.metric("tollgate_refusals_total{reason=\"match_budget\"}"), TIMES as f64);
    two.neighbour_is_served();
}

fn with_rules(address: IpAddr, rules: &[Value]) -> Value {
    let mut policy = policy(7, address);
    policy["egressPerPortPolicies"] = json!([{"port": HTTP_PORT, "rules": [{"httpRules": {"httpRules": rules}}]}]);
    policy
}

/// A limit of policies, words of why a rule is beyond it, rules, and a path that only one beyond it allows.
const POLICY_LIMITS: [(&str, &str, [&str; 3], &str); 3] = [
    ("rules: 2", "rules, and 2 are the most", ["/allowed.*", "/a", "/b"], "/b"),
    (
        "expression: 64",
        "64",
        ["/allowed.*", "/(x|0123456789012345678901234567890123456789012345678901234567890123456789)", "/b"],
        "/x",
    ),
    ("program: 8KiB", "automaton of more than 8192 bytes", ["/allowed.*", "/x.{0,200}", "/b"], "/x"),
];

#[test]
fn a_policy_beyond_its_tenants_limits_allows_less_and_holds_up_nobody() {
    for (limit, why, paths, beyond) in POLICY_LIMITS {
        let rules = paths.map(|path| http_rule("GET", path));
        let request = format!("GET {beyond} HTTP/1.1\r\nHost: a\r\n\r\n");
        let run = |shadow: &str| {
            let site = Site::new();
            let upstream = Upstream::ok(&site);
            let settings = format!("{shadow}policy: {{ {limit} }}");
            // Acknowledged, or this would not return.
            let two =
                Two::under(&site, upstream.address(), &settings, Options::default(), |busy| with_rules(busy, &rules));
            let mut client = two.busy();
            let answer =
                client.try_send(&request).ok().and_then(|()| client.wait_for_bytes().then(|| client.read_message()));
            two.neighbour_is_served();
            let status: Value = serde_json::from_str(&two.proxy.get("/status").1).unwrap();
            ((site, two), answer.map(|answer| answer.status()), status["policy"]["quarantined"].clone())
        };
        let ((_site, two), answer, quarantined) = run("");
        // With a reset, where nothing of the direction is in force.
        assert!(matches!(answer, None | Some(403)), "{limit}: {answer:?}");
        assert_eq!(quarantined.as_array().map(Vec::len), Some(1), "{limit}: {quarantined}");
        assert!(quarantined.to_string().contains(why), "{limit}: {quarantined}");
        let record = until("the record", || {
            let denials = two.proxy.get("/flows?denied=1").1;
            denials.lines().next().map(|line| serde_json::from_str::<Value>(line).unwrap())
        });
        assert_eq!((&record["tenant"], &record["reason"]), (&json!("busy"), &json!(Reason::Quarantined.code())));
        assert_eq!(two.counted("refusals_total", Reason::Quarantined), 1, "{limit}");
        assert_eq!(two.proxy.metric("tollgate_policy_quarantined_rules"), 1.0, "{limit}");
        // Rules beside it are in force, unless there are too many.
        let answer = answer_if_let_in(&mut two.busy()).map(|answer| answer.status());
        assert_eq!(answer == Some(200), limit != "rules: 2", "{limit}: {answer:?}");
        drop(two);
        let (_, answer, quarantined) = run("shadow: true, ");
        assert_eq!((answer, quarantined), (Some(200), json!([])), "{limit}: in shadow the defaults count");
    }
}
