//! Limits of tenants: what whoever exceeds them sees, and that nobody else does. Each is driven past with real clients.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, big_get, get};
use tollgate_tests::peer::{Message, Peer};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{OK, Upstream, WEBSOCKET_ACCEPTED, websocket_request};
use tollgate_tests::wait::until;

use super::tenants::{client_address, connect, metric, policy, set_tenants, with_python};
use super::two_tenants::{GET, Two, ask, expect_overload, expect_told_grpc, held_upstream, waiting};

#[test]
fn more_requests_than_the_rate_are_told_when_to_come_back() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "ceilings: { requests: { per_second: 1, burst: 4 } }");
    let began = Instant::now();
    let (mut first, mut second) = (two.busy(), two.busy());
    let answers: Vec<Message> = (0..6).flat_map(|_| [ask(&mut first, GET), ask(&mut second, GET)]).collect();
    let (served, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status() == 200);
    // Exact: however long this took, no more than the time has paid for.
    let paid = 4 + began.elapsed().as_secs() + 1;
    assert!(served.len() >= 4 && served.len() as u64 <= paid, "{} of {paid}", served.len());
    for answer in &refused {
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.field("retry-after"), Some("1"));
        assert_eq!(answer.field("x-tollgate-reason"), Some(Reason::TenantRate.code()));
        assert_eq!(answer.field("x-envoy-overloaded"), None);
    }
    two.expect_refused(Reason::TenantRate, refused.len() as u64);
    two.neighbour_is_served();
    // It is no denial, and says which limit it was.
    let only = |what: &str| -> Vec<Value> {
        let records = two.proxy.get(&format!("/flows?{what}=1")).1;
        records.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!((only("denied").len(), only("limited").len()), (0, refused.len()));
    assert_eq!(only("limited")[0]["detail"], "ceilings.requests: 1/s, burst 4");
    let ended = |outcome| {
        two.proxy.metric(&format!("tollgate_tenant_requests_total{{tenant=\"busy\",outcome=\"{outcome}\"}}")) as usize
    };
    assert_eq!((ended("denied"), ended("limited")), (0, refused.len()));
    // The connection goes on, and so does the tenant once time has passed.
    until("the next second", || (ask(&mut first, GET).status() == 200).then_some(()));
}

#[test]
fn http_2_has_the_same_rate() {
    let site = Site::new();
    // What is admitted waits.
    let upstream = Upstream::scripted(&site, |peer, _| drop(peer.read_to_any_end()));
    let two = Two::start(&site, &upstream, "ceilings: { requests: { per_second: 1, burst: 1 } }");
    let mut client = two.busy();
    client.send(CLIENT_START);
    for stream in [1, 3, 5, 7] {
        client.send(get(stream));
    }
    until("refusals", || (two.counted("refusals_total", Reason::TenantRate) >= 2).then_some(()));
    assert_eq!(two.proxy.expect_reason(Reason::TenantRate)["l7"]["http"]["code"], 429);
}

#[test]
fn requests_under_way_have_a_ceiling() {
    let site = Site::new();
    let (upstream, go_on) = held_upstream(&site);
    let two = Two::start(&site, &upstream, "ceilings: { in_flight: 2 }");
    let mut waiting = waiting(&upstream, 2, || two.busy());
    let mut third = two.busy();
    for _ in 0..3 {
        expect_overload(&ask(&mut third, GET), Reason::TenantInFlight);
    }
    two.expect_refused(Reason::TenantInFlight, 3);
    go_on.send(()).unwrap();
    go_on.send(()).unwrap();
    for client in &mut waiting {
        assert_eq!(client.read_message().status(), 200);
    }
    (0..9).for_each(|_| go_on.send(()).unwrap());
    until("a place", || (ask(&mut third, GET).status() == 200).then_some(()));
    two.neighbour_is_served();
}

#[test]
fn connections_have_a_ceiling() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "ceilings: { connections: 3 }");
    let mut open = [two.busy(), two.busy(), two.busy()];
    for client in &mut open {
        assert_eq!(ask(client, GET).status(), 200);
    }
    (0..2).for_each(|_| two.busy().expect_reset());
    two.expect_refused(Reason::TenantConnections, 2);
    two.neighbour_is_served();
    for client in &mut open {
        assert_eq!(ask(client, GET).status(), 200);
    }
    let [first, ..] = open;
    drop(first);
    until("a place", || {
        let mut client = two.busy();
        client.try_send(GET).ok()?;
        client.wait_for_bytes().then_some(())
    });
}

#[test]
fn new_connections_have_a_rate() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "ceilings: { new_connections: { per_second: 1, burst: 2 } }");
    let mut first = two.busy();
    assert_eq!(ask(&mut first, GET).status(), 200);
    until("a refusal", || {
        drop(two.busy());
        (two.counted("refusals_total", Reason::TenantConnectionRate) > 0).then_some(())
    });
    let record = two.proxy.expect_reason(Reason::TenantConnectionRate);
    assert_eq!((&record["tenant"], &record["verdict"]), (&json!("busy"), &json!("DROPPED")));
    assert_eq!(ask(&mut first, GET).status(), 200, "what is open stays");
    two.neighbour_is_served();
    until("the next second", || {
        let mut client = two.busy();
        client.try_send(GET).ok()?;
        client.wait_for_bytes().then_some(())
    });
}

#[test]
fn websockets_have_a_ceiling() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        let head = peer.read_head();
        if head.contains("websocket") {
            peer.send(WEBSOCKET_ACCEPTED);
            peer.read_to_any_end();
        } else {
            peer.send(OK);
        }
    });
    let two = Two::start(&site, &upstream, "ceilings: { long_streams: 1 }");
    let mut tunnel = two.busy();
    tunnel.send(websocket_request("/allowed"));
    assert_eq!(tunnel.read_head(), WEBSOCKET_ACCEPTED);
    let mut other = two.busy();
    let answer = ask(&mut other, &websocket_request("/allowed"));
    expect_overload(&answer, Reason::TenantLongStreams);
    assert_eq!(ask(&mut other, GET).status(), 200, "other requests are none");
    two.expect_refused(Reason::TenantLongStreams, 1);
    two.neighbour_is_served();
    drop(tunnel);
    until("a place", || {
        let mut client = two.busy();
        client.send(websocket_request("/allowed"));
        client.read_head().starts_with("HTTP/1.1 101").then_some(())
    });
}

#[test]
fn heads_have_a_ceiling() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "ceilings: { header: 1KiB }");
    let mut client = two.busy();
    assert_eq!(ask(&mut client, GET).status(), 200);
    let long = format!("GET /allowed HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "x".repeat(1024));
    let answer = ask(&mut client, &long);
    assert_eq!((answer.status(), answer.field("connection")), (431, Some("close")));
    assert_eq!(answer.field("x-tollgate-reason"), Some(Reason::TenantHeaders.code()));
    assert_eq!(answer.field("retry-after"), None, "it would be as long again");
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(ask(&mut connect(two.calm, two.proxy.http()), &long).status(), 200);
    // HTTP/2 counts the header list.
    let mut client = two.busy();
    client.send(CLIENT_START);
    client.send(big_get(1, "/allowed", 1024));
    two.expect_refused(Reason::TenantHeaders, 2);
    let codes = two.proxy.flows().into_iter().filter(|flow| flow["l7"]["http"]["code"] == 431).count();
    assert_eq!(codes, 2);
    two.neighbour_is_served();
}

/// A breaker for one tenant and one destination: what others have there is untouched.
#[test]
fn connections_to_a_destination_have_a_ceiling() {
    let site = Site::new();
    let (upstream, go_on) = held_upstream(&site);
    let two = Two::start(&site, &upstream, "ceilings: { upstream_connections: 2 }");
    let mut waiting = waiting(&upstream, 2, || two.busy());
    let mut third = two.busy();
    for _ in 0..2 {
        expect_overload(&ask(&mut third, GET), Reason::TenantUpstreams);
    }
    connect(two.busy, two.proxy.tcp()).expect_reset();
    two.expect_refused(Reason::TenantUpstreams, 3);
    assert_eq!(upstream.connections(), 2);
    (0..9).for_each(|_| go_on.send(()).unwrap());
    two.neighbour_is_served();
    for client in &mut waiting {
        assert_eq!(client.read_message().status(), 200);
    }
    drop(waiting);
    until("a place", || (ask(&mut third, GET).status() == 200).then_some(()));
}

#[test]
fn http_2_has_the_same_ceiling_of_upstreams() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| drop(peer.read_to_any_end()));
    let two = Two::start(&site, &upstream, "ceilings: { upstream_connections: 1 }");
    let mut clients = [two.busy(), two.busy()];
    for client in &mut clients {
        client.send(CLIENT_START);
        client.send(get(1));
        until("the upstream's connection", || (upstream.connections() == 1).then_some(()));
    }
    two.expect_refused(Reason::TenantUpstreams, 1);
    assert_eq!(two.proxy.expect_reason(Reason::TenantUpstreams)["l7"]["http"]["code"], 503);
    assert_eq!(upstream.connections(), 1);
}

/// Answers to so many requests that come at once.
fn ask_at_once(client: &mut Peer, count: usize) -> Vec<Message> {
    client.send(GET.repeat(count));
    (0..count).map(|_| client.read_message()).collect()
}

/// Has `work` done, and returns how much processor time a ceiling of so many thousandths allows for meanwhile, and how much was used.
fn allowed_and_used(two: &Two, millis: f64, work: impl FnOnce()) -> (f64, f64) {
    let (began, before) = (Instant::now(), cpu_seconds(two));
    work();
    let used = cpu_seconds(two) - before;
    // A tenth of a second's worth at once.
    (millis / 1000.0 * (began.elapsed().as_secs_f64() + 0.1), used)
}

fn cpu_seconds(two: &Two) -> f64 {
    two.busy_shows("cpu_seconds").as_f64().unwrap()
}

#[test]
fn who_has_used_up_its_processor_time_waits() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "ceilings: { cpu: 50m }");
    let mut statuses = BTreeMap::new();
    let (allowed, used) = allowed_and_used(&two, 50.0, || {
        ask_from_many(&two, 10, &mut |answer| *statuses.entry(answer.status()).or_default() += 1);
        two.neighbour_is_served();
    });
    assert_eq!(statuses, BTreeMap::from([(200, 640)]), "nobody is told anything");
    // What a poll takes beyond is paid back; a worker has one at a time.
    assert!(used < 2.0 * allowed, "{used} of {allowed}");
    let held = two.busy_shows("cpu_held_seconds").as_f64().unwrap();
    assert!(held > allowed, "{held}");
    assert_eq!(two.busy_shows("refusals"), json!({}));
    let metric = two.proxy.metric("tollgate_tenant_cpu_held_seconds_total{tenant=\"busy\"}");
    assert!(metric >= held, "{metric} {held}");
    let of_calm = "tollgate_tenant_cpu_held_seconds_total{tenant=\"endpoint-8\"";
    assert!(!two.proxy.get("/metrics").1.contains(of_calm), "nobody else waits");
    assert!(two.proxy.flows().iter().any(|flow| flow["tenant"] == "busy" && flow["queue_us"].as_u64() > Some(1000)));
}

#[test]
fn connections_that_pass_as_bytes_wait_for_processor_time_too() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        while peer.wait_for_bytes() {
            peer.discard();
        }
    });
    let two = Two::start(&site, &upstream, "ceilings: { cpu: 20m }");
    let (allowed, used) = allowed_and_used(&two, 20.0, || {
        let mut client = connect(two.busy, two.proxy.tcp());
        let chunk = vec![b'x'; 1 << 16];
        until("it to wait", || {
            // More than a look takes: on a fast machine one alone would stay below the ceiling.
            (0..16).for_each(|_| client.send(&chunk));
            (two.busy_shows("cpu_held_seconds").as_f64().unwrap() > 0.5).then_some(())
        });
    });
    assert!(used < 2.0 * allowed, "{used} of {allowed}");
}

#[test]
fn refusals_are_paid_for_like_answers() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "ceilings: { cpu: 20m, queue_delay: 5ms }");
    let mut refused = 0_u64;
    let (allowed, used) = allowed_and_used(&two, 20.0, || {
        until("refusals", || {
            ask_from_many(&two, 10, &mut |answer| {
                if answer.status() != 200 {
                    expect_overload(answer, Reason::TenantCpu);
                    refused += 1;
                }
            });
            (refused >= 100).then_some(())
        });
    });
    assert!(used < 2.0 * allowed, "{used} of {allowed} for {refused} refusals");
    assert_eq!(two.counted("refusals_total", Reason::TenantCpu), refused);
    let record = two.proxy.expect_reason(Reason::TenantCpu);
    assert_eq!((&record["tenant"], &record["verdict"]), (&json!("busy"), &json!("DROPPED")));
    assert_eq!(record["detail"], "ceilings.cpu: 20m, or ceilings.queue_delay: 5ms");
    two.neighbour_is_served();
    let mut client = two.busy();
    until("an answer once that was paid back", || {
        // Refusals are paid for like answers: who asks again at once may have nothing but those.
        thread::sleep(Duration::from_millis(200));
        (ask(&mut client, GET).status() == 200).then_some(())
    });
}

#[test]
fn shadow_refuses_nobody_processor_time() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "shadow: true, ceilings: { cpu: 1m }");
    let mut client = two.busy();
    until("what would be a refusal", || {
        assert!(ask_at_once(&mut client, 50).iter().all(|answer| answer.status() == 200));
        (two.counted("shadow_refusals_total", Reason::TenantCpu) > 0).then_some(())
    });
    two.neighbour_is_served();
}

/// More than a worker can do at once, from clients that wait for all of their answers.
fn ask_from_many(two: &Two, each: usize, seen: &mut dyn FnMut(&Message)) {
    let mut clients: Vec<Peer> = (0..64).map(|_| two.busy()).collect();
    for client in &mut clients {
        client.send(GET.repeat(each));
    }
    for client in &mut clients {
        (0..each).for_each(|_| seen(&client.read_message()));
    }
}

/// Ends a load when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// HTTP/2 and gRPC, as clients see them that others of their tenant leave no time.
#[test]
fn streams_that_would_only_wait_are_refused_and_grpc_is_told() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "ceilings: { queue_delay: 1ms }");
    let over = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                ask_from_many(&two, 100, &mut |_| {});
            }
        });
        let (address, source) = (two.proxy.http().to_string(), two.busy.to_string());
        // Also when the client fails.
        let _over = Over(&over);
        script::run(python, &site, "h2_client.py", &["refused", &address, &source])
    });
    assert_eq!((&seen["plain"]["status"], &seen["plain"]["end"]), (&json!(null), &json!(7)), "REFUSED_STREAM");
    expect_told_grpc(&seen["grpc"], Reason::TenantQueueDelay);
    // Records of the load have taken the place of these by now.
    assert!(two.counted("refusals_total", Reason::TenantQueueDelay) >= 2);
    two.neighbour_is_served();
}

/// Nothing of them was forwarded, and the client may know.
#[test]
fn http_2_streams_beyond_a_ceiling_are_refused() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let run = |settings: &str| {
        let two = Two::to(&site, address.parse().unwrap(), settings, "");
        let (address, source) = (two.proxy.http().to_string(), two.busy.to_string());
        let seen = script::run(python, &site, "h2_client.py", &["limited", &address, &source]);
        (two, seen)
    };
    let (two, seen) = run("ceilings: { in_flight: 1 }");
    for refused in ["plain", "posted"] {
        assert_eq!((&seen[refused]["status"], &seen[refused]["end"]), (&json!(null), &json!(7)), "REFUSED_STREAM");
    }
    expect_told_grpc(&seen["grpc"], Reason::TenantInFlight);
    assert_eq!((&seen["after"], &seen["goaway"]), (&json!(200), &json!([])), "the connection goes on");
    let records = until("the records", || {
        let records = two.proxy.flows().into_iter();
        let refused = records.filter(|flow| flow["reason"] == Reason::TenantInFlight.code());
        let refused: Vec<Value> = refused.collect();
        (refused.len() as u64 == two.counted("refusals_total", Reason::TenantInFlight)).then_some(refused)
    });
    let codes: Vec<&Value> = records.iter().map(|record| &record["l7"]["http"]["code"]).collect();
    assert_eq!(codes[..3], [&json!(0), &json!(0), &json!(200)]);
    assert!(records.iter().all(|record| record["verdict"] == "DROPPED" && record["tenant"] == "busy"));
    assert!(records.iter().all(|record| record["detail"] == "ceilings.in_flight: 1"), "{records:?}");
    drop(two);
    let (two, seen) = run("shadow: true, ceilings: { in_flight: 1 }");
    assert_eq!(["plain", "posted", "grpc"].map(|name| seen[name]["status"].clone()), [200; 3].map(Value::from));
    two.expect_shadowed(Reason::TenantInFlight, 3);
}

#[test]
fn requests_that_would_only_wait_behind_each_other_are_refused() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "ceilings: { queue_delay: 1ms }");
    until("a refusal", || {
        let mut refused = 0;
        ask_from_many(&two, 100, &mut |answer| {
            if answer.status() != 200 {
                expect_overload(answer, Reason::TenantQueueDelay);
                refused += 1;
            }
        });
        (refused > 0).then_some(())
    });
    let record = two.proxy.expect_reason(Reason::TenantQueueDelay);
    assert_eq!((&record["tenant"], &record["verdict"]), (&json!("busy"), &json!("DROPPED")));
    assert!(two.counted("refusals_total", Reason::TenantQueueDelay) > 0);
    two.neighbour_is_served();
    // Without a queue it is served again: nothing has to be paid back.
    let mut client = two.busy();
    until("an answer", || (ask(&mut client, GET).status() == 200).then_some(()));
}

#[test]
fn shadow_refuses_nobody_who_waits() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "shadow: true, ceilings: { queue_delay: 1ms }");
    until("what would be a refusal", || {
        ask_from_many(&two, 100, &mut |answer| assert_eq!(answer.status(), 200));
        (two.counted("shadow_refusals_total", Reason::TenantQueueDelay) > 0).then_some(())
    });
    assert!(two.proxy.flows().iter().all(|flow| flow["reason"] != Reason::TenantQueueDelay.code()));
    two.neighbour_is_served();
}

#[test]
fn who_has_most_makes_room_for_who_comes() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let top = "max_connections: 10\nlimits: { idle_connections: \"off\" }";
    let two = Two::with(&site, &upstream, "weight: 3", top);
    let mut open: Vec<Peer> = (0..5).map(|_| two.busy()).collect();
    for client in &mut open {
        assert_eq!(ask(client, GET).status(), 200);
    }
    (0..3).for_each(|_| two.busy().expect_reset());
    two.expect_refused(Reason::TenantShare, 3);
    two.neighbour_is_served();
}

#[test]
fn requests_under_way_are_shared_too() {
    let site = Site::new();
    let (upstream, go_on) = held_upstream(&site);
    let two = Two::with(&site, &upstream, "weight: 1", "limits: { in_flight: 4 }");
    let _waiting = waiting(&upstream, 2, || two.busy());
    expect_overload(&ask(&mut two.busy(), GET), Reason::TenantShare);
    two.expect_refused(Reason::TenantShare, 1);
    (0..3).for_each(|_| go_on.send(()).unwrap());
    two.neighbour_is_served();
}

#[test]
fn shadow_refuses_nothing() {
    let site = Site::new();
    let (upstream, go_on) = held_upstream(&site);
    let two = Two::start(
        &site,
        &upstream,
        "shadow: true, ceilings: { connections: 1, new_connections: { per_second: 1, burst: 1000 }, in_flight: 1, requests: { per_second: 1, burst: 1000 }, header: 8, upstream_connections: 1 }",
    );
    let mut clients = [two.busy(), two.busy(), two.busy()];
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(GET);
        until("the request", || (upstream.connections() == index + 1).then_some(()));
    }
    (0..3).for_each(|_| go_on.send(()).unwrap());
    for client in &mut clients {
        assert_eq!(client.read_message().status(), 200);
    }
    two.expect_shadowed(Reason::TenantConnections, 2);
    two.expect_shadowed(Reason::TenantInFlight, 2);
    two.expect_shadowed(Reason::TenantHeaders, 3);
    two.expect_shadowed(Reason::TenantUpstreams, 2);
    two.expect_shadowed(Reason::TenantRate, 0);
    assert_eq!(two.proxy.metric("tollgate_tenant_requests_total{tenant=\"busy\",outcome=\"forwarded\"}"), 3.0);
}

#[test]
fn settings_that_change_count_for_what_is_open() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let (one, two) = (client_address(&site, 1), client_address(&site, 2));
    let (mut control, proxy) = with_python(&site, python, &[policy(7, one), policy(8, two)], upstream.address());
    let mut clients = [connect(one, proxy.http()), connect(two, proxy.http())];
    for client in &mut clients {
        assert_eq!(ask(client, GET).status(), 200);
    }
    // Both move into a group that may have two: they are taken along.
    let members = json!({"endpointIds": ["7", "8"]});
    let team = json!({"name": "team", "members": members, "ceilings": {"connections": 2}});
    set_tenants(&mut control, "1", &json!([team]));
    until("both connections in the group", || {
        (metric(&proxy, "connections_open", "tenant=\"team\"") == 2).then_some(())
    });
    connect(one, proxy.http()).expect_reset();
    assert_eq!(proxy.expect_reason(Reason::TenantConnections)["tenant"], "team");
    for client in &mut clients {
        assert_eq!(ask(client, GET).status(), 200, "what is open stays");
    }
    // A rate for connections that are open already.
    let rate = json!({"requests": {"perSecond": "1", "burst": "1"}});
    set_tenants(&mut control, "2", &json!([json!({"name": "team", "members": members, "ceilings": rate})]));
    let statuses: Vec<u16> = (0..4).flat_map(|_| clients.each_mut().map(|client| ask(client, GET).status())).collect();
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    set_tenants(&mut control, "3", &json!([]));
    for client in &mut clients {
        assert_eq!(ask(client, GET).status(), 200);
    }
    assert_eq!(ask(&mut connect(one, proxy.http()), GET).status(), 200);
}
