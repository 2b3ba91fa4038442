//! Tasks that panic: that ends a connection or a stream, and who sets it off again and again is kept apart for a while. Binaries for
//! tests have a defect that can be asked for (`proxy/src/fault.rs`).

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, big_get, end_of, frame, frames, get, go_away, headers};
use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Options;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::{until, within};

use super::first_policy::may_open;
use super::h2_memory;
use super::tenants::policy;
use super::two_tenants::{GET, Two, answer_if_let_in, ask};

const PANIC: &str = "GET /allowed/panic HTTP/1.1\r\nHost: a\r\n\r\n";
/// A tenant that is kept apart comes back when there was no panic for a minute.
const A_MINUTE_AND_MORE: Duration = Duration::from_secs(120);
/// Connections that are let in at once, and each second, meanwhile.
const LET_IN: u64 = 10;

fn start(site: &Site, settings: &str, top: &str) -> Two {
    start_before(site, &Upstream::ok(site), settings, top)
}

fn start_before(site: &Site, upstream: &Upstream, settings: &str, top: &str) -> Two {
    let environment = &[
        ("TOLLGATE_FAULT_PANIC_PATH", "/allowed/panic"),
        ("TOLLGATE_FAULT_PANIC_BODY", "panic!"),
        ("RUST_BACKTRACE", "0"),
    ];
    let options = Options { environment, top: top.to_owned(), workers: 2, ..Options::default() };
    Two::under(site, upstream.address(), settings, options, |busy| policy(7, busy))
}

/// Has so many connections panic at once, while the neighbour asks.
fn panic_at_once(two: &Two, connections: usize) {
    let mut clients: Vec<Peer> = (0..connections).map(|_| two.busy()).collect();
    let open = || two.busy_shows("connections_open").as_u64() >= Some(connections as u64);
    until("all of them", || open().then_some(()));
    let mut calm = two.calm();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(PANIC);
        if number % 10 == 0 {
            assert_eq!(ask(&mut calm, GET).status(), 200);
            assert_eq!(ask(&mut two.calm(), GET).status(), 200);
        }
    }
    for client in &mut clients {
        let answer = client.read_message();
        assert_eq!((answer.status(), answer.field("connection")), (500, Some("close")));
        assert_eq!(client.read_to_end(), b"");
    }
    assert_eq!(ask(&mut calm, GET).status(), 200);
}

/// So many come at once. Returns how many are reset.
fn turned_away(two: &Two, come: u64) -> u64 {
    let began = Instant::now();
    let mut clients: Vec<Peer> = (0..come).filter_map(|_| two.try_busy().ok()).collect();
    let let_in = clients.iter_mut().filter_map(answer_if_let_in).map(|answer| assert_eq!(answer.status(), 200));
    let let_in = let_in.count() as u64;
    let paid = LET_IN + LET_IN * (began.elapsed().as_secs() + 1);
    assert!(let_in >= LET_IN.min(come), "{let_in}");
    if let_in < come {
        assert!(let_in <= paid, "{let_in} of {paid}");
    }
    come - let_in
}

fn is_kept_apart(two: &Two) -> bool {
    let shown = two.proxy.get("/metrics").1.contains("tollgate_tenant_isolated{tenant=\"busy\"} 1");
    let left = two.busy_shows("isolated_seconds_left").as_f64().unwrap();
    assert!(left < 60.1, "{left}");
    shown && left > 0.0
}

#[test]
fn who_makes_connections_panic_is_kept_apart_and_nobody_else_notices() {
    const PANICS: u64 = 1000;
    if !may_open(4 * PANICS) {
        return;
    }
    let site = Site::new();
    let two = start(&site, "weight: 1", "");
    let mut kept = two.busy();
    assert_eq!(ask(&mut kept, GET).status(), 200);
    assert!(!is_kept_apart(&two));
    panic_at_once(&two, PANICS as usize);
    assert_eq!(two.proxy.metric("tollgate_tenant_panics_total{tenant=\"busy\"}"), PANICS as f64);
    assert_eq!(two.proxy.metric("tollgate_connection_panics_total"), PANICS as f64);
    let records =
        until("the records", || Some(two.records(Reason::Internal)).filter(|records| records.len() as u64 == PANICS));
    for record in &records {
        let said = (&record["tenant"], &record["verdict"], &record["l7"]["http"]["code"]);
        assert_eq!(said, (&json!("busy"), &json!("ERROR"), &json!(500)), "{record}");
    }
    assert_eq!(two.busy_shows("requests_in_flight"), 0, "what they held was given back");

    assert!(is_kept_apart(&two));
    let refused = turned_away(&two, 400);
    assert!(refused > 0);
    two.expect_refused(Reason::TenantIsolated, refused);
    let detail = &two.records(Reason::TenantIsolated)[0]["detail"];
    assert_eq!(detail, "3 panics within 60 s: 10 new connections a second until there was none for 60 s");
    until("its lane", || (!two.busy_shows("lane").is_null()).then_some(()));
    assert!(two.proxy.get("/metrics").1.contains("reason=\"panics\""), "why it is there");
    assert_eq!(ask(&mut kept, GET).status(), 200, "what is open is served as ever");
    two.neighbour_is_served();
    assert_eq!(two.proxy.get("/ready").0, 200);

    // It is over by itself.
    within(A_MINUTE_AND_MORE, || {
        thread::sleep(Duration::from_secs(1));
        (!is_kept_apart(&two)).then_some(())
    })
    .unwrap();
    assert_eq!(turned_away(&two, 100), 0);
    assert_eq!(two.counted("refusals_total", Reason::TenantIsolated), refused);
}

#[test]
fn shadow_keeps_nobody_out_for_panics() {
    const COME: u64 = 100;
    let site = Site::new();
    let two = start(&site, "shadow: true", "");
    panic_at_once(&two, 3);
    assert!(is_kept_apart(&two));
    let began = Instant::now();
    let mut clients: Vec<Peer> = (0..COME).map(|_| two.busy()).collect();
    for client in &mut clients {
        assert_eq!(ask(client, GET).status(), 200);
    }
    let would_be = two.counted("shadow_refusals_total", Reason::TenantIsolated);
    let paid = LET_IN + LET_IN * (began.elapsed().as_secs() + 1);
    assert!(would_be <= COME - LET_IN && would_be + paid >= COME, "{would_be} of {COME}, {paid} paid for");
    two.expect_shadowed(Reason::TenantIsolated, would_be);
    assert_eq!(two.counted("refusals_total", Reason::TenantIsolated), 0);
    two.neighbour_is_served();
}

/// Without shares tasks are run by other code.
#[test]
fn without_fair_shares_a_panic_ends_its_connection_alone() {
    let site = Site::new();
    let two = start(&site, "weight: 1", "fairness: off");
    panic_at_once(&two, 20);
    let refused = turned_away(&two, 400);
    assert!(refused > 0);
    two.expect_refused(Reason::TenantIsolated, refused);
    two.neighbour_is_served();
}

/// A request that policy refuses, so that the proxy answers.
fn denied(stream: u32) -> Vec<u8> {
    frame(1, 5, stream, b"\x82\x86\x01\x01a\x04\x07/denied")
}

fn panics(stream: u32) -> Vec<u8> {
    big_get(stream, "/allowed/panic", 1)
}

/// SETTINGS_MAX_CONCURRENT_STREAMS of a new connection.
fn streams_at_a_time(client: &mut Peer) -> u32 {
    client.send(CLIENT_START);
    let header = client.read_exact(9);
    let settings = client.read_exact(usize::from(header[2]));
    let value = settings.chunks_exact(6).find(|setting| setting[..2] == [0, 3]).expect("a limit of streams");
    u32::from_be_bytes(value[2..].try_into().unwrap())
}

#[test]
fn a_stream_that_panics_is_reset_alone_until_its_tenant_is_kept_apart() {
    const INTERNAL_ERROR: u32 = 2;
    let site = Site::new();
    let two = start(&site, "weight: 1", "");
    let mut client = two.busy();
    let usual = streams_at_a_time(&mut client);
    for stream in [1, 5] {
        client.send(panics(stream));
        client.read_until(&[&[0, 0, 4, 3, 0][..], &stream.to_be_bytes()].concat());
        assert_eq!(client.read_exact(4), INTERNAL_ERROR.to_be_bytes());
        client.send(denied(stream + 2));
        client.read_until(&end_of(stream + 2));
        // The rest of the frame that begins so.
        drop(client.read_exact(15));
    }
    assert!(!is_kept_apart(&two));
    client.send(panics(9));
    // Whether or not its client heeds the GOAWAY.
    let (answer, _) = client.read_to_any_end();
    let resets = frames(&answer).into_iter().filter(|(kind, _)| *kind == 3).map(|(_, code)| code);
    assert_eq!(resets.collect::<Vec<_>>(), [INTERNAL_ERROR.to_be_bytes()]);
    assert_eq!(go_away(&answer), Some((0, String::new())), "{}", answer.escape_ascii());
    assert!(is_kept_apart(&two));
    assert_eq!((usual, streams_at_a_time(&mut two.busy())), (100, 10));
    let records = until("the records", || Some(two.records(Reason::Internal)).filter(|records| records.len() == 3));
    assert!(records.iter().all(|record| record["tenant"] == "busy" && record["verdict"] == "ERROR"), "{records:?}");
    assert_eq!(streams_at_a_time(&mut two.calm()), 100);
    two.neighbour_is_served();
}

/// The answer to the third request, which panics as it is written, under a lock that the streams of its connection share. The second gets none.
fn answer_the_third(peer: &mut Peer, stream: u32, _: bool) {
    if stream == 5 {
        peer.send([headers(stream, false, b"\x88"), frame(0, 1, stream, b"panic!")].concat());
    }
}

#[test]
fn a_panic_in_the_midst_of_h2_ends_its_connection_alone() {
    const LONG: usize = 1000;
    let site = Site::new();
    let two = start_before(&site, &h2_memory::upstream(&site, b"", answer_the_third), "weight: 1", "");
    let ask_over_http_2 = |client: &mut Peer, stream| {
        client.send(get(stream));
        client.read_until(&end_of(stream));
    };
    let (mut client, mut calm) = (two.busy(), two.calm());
    for client in [&mut client, &mut calm] {
        client.send(CLIENT_START);
        ask_over_http_2(client, 1);
    }
    client.send(big_get(3, "/allowed", LONG));
    until("the one that waits", || (two.busy_shows("requests_in_flight") == 1).then_some(()));
    client.send(big_get(5, "/allowed", LONG));
    let (answer, _) = client.read_to_any_end();
    assert!(!answer.ends_with(b"panic!"), "{}", answer.escape_ascii());
    // The one that waits does not go on for ever: its task knows no other end than a panic of its own.
    until("all to be over", || {
        let left = ["requests_in_flight", "connections_open"].map(|key| two.busy_shows(key));
        left.iter().all(|left| left == 0).then_some(())
    });
    assert!(two.proxy.metric("tollgate_tenant_panics_total{tenant=\"busy\"}") >= 1.0);
    ask_over_http_2(&mut calm, 3);
    two.neighbour_is_refused_nothing();
    let mut again = two.busy();
    again.send(CLIENT_START);
    ask_over_http_2(&mut again, 1);
}
