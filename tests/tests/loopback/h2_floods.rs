//! HTTP/2 clients that only cost: each is sent away with the reason, is on record, and hurts nobody else. In shadow mode
//! they are counted.

use serde_json::json;
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, SERVER_START, cancel, end_of, frame, get, go_away};
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

const ENHANCE_YOUR_CALM: u32 = 11;
/// Low enough for a short flood.
const LOW: &str = "http2_control_frames: { per_second: 1, burst: 50 }, http2_resets: { per_second: 1, burst: 50 }";

/// Begins as HTTP/2 does, then reads and says nothing.
fn silent(site: &Site) -> Upstream {
    Upstream::scripted(site, |peer, _| {
        peer.send(SERVER_START);
        while peer.wait_for_bytes() {
            peer.discard();
        }
    })
}

fn start(site: &Site, limits: &str) -> (Proxy, Upstream) {
    let upstream = silent(site);
    let options = Options { top: format!("limits: {{ {limits} }}"), ..Options::default() };
    (Proxy::with(site, upstream.address(), &options, &[usual(site)]), upstream)
}

fn connect(proxy: &Proxy) -> Peer {
    let mut peer = Peer::connect(proxy.http());
    peer.send(CLIENT_START);
    peer
}

/// A request that policy refuses; the proxy itself answers it.
fn denied(stream: u32) -> Vec<u8> {
    frame(1, 5, stream, b"\x82\x86\x01\x01a\x04\x07/denied")
}

fn ask(peer: &mut Peer, stream: u32) {
    peer.send(denied(stream));
    peer.read_until(&end_of(stream));
}

fn refusals(proxy: &Proxy, reason: Reason) -> f64 {
    proxy.metric(&format!("tollgate_refusals_total{{reason=\"{}\"}}", reason.code()))
}

/// Sends `flood` on a connection, and expects GOAWAY with ENHANCE_YOUR_CALM, a record and a count, while another connection
/// goes on. Returns the debug data and the record's detail.
#[track_caller]
fn expect_end(proxy: &Proxy, flood: &[u8], reason: Reason) -> (String, String) {
    let mut other = connect(proxy);
    ask(&mut other, 1);
    let before = refusals(proxy, reason);
    let of_connection = |flow: &serde_json::Value| {
        flow["reason"] == reason.code() && flow["l7"].is_null() && flow["detail"].is_string()
    };
    let records = || proxy.flows().into_iter().filter(of_connection).collect::<Vec<_>>();
    let known = records().len();
    let mut client = connect(proxy);
    // It may be sent away before it has sent all.
    let _ = client.try_send(flood);
    let (answer, _) = client.read_to_any_end();
    let (code, debug) = go_away(&answer).unwrap_or_else(|| panic!("no GOAWAY in {}", answer.escape_ascii()));
    assert_eq!(code, ENHANCE_YOUR_CALM, "{debug}");
    until("the count", || (refusals(proxy, reason) > before).then_some(()));
    let record = until("the record", || records().into_iter().nth(known));
    assert_eq!(record["verdict"], "DROPPED", "{record}");
    ask(&mut other, 3);
    (debug, record["detail"].as_str().unwrap_or_default().to_owned())
}

/// Frames that move no request.
fn control_frames() -> [(&'static str, Vec<u8>); 5] {
    [
        ("PING", frame(6, 0, 0, &[0; 8])),
        ("SETTINGS", frame(4, 0, 0, &[])),
        ("PRIORITY", frame(2, 0, 3, &[0, 0, 0, 0, 1])),
        ("WINDOW_UPDATE", frame(8, 0, 0, &[0, 0, 0, 1])),
        ("unknown", frame(0xbb, 0, 0, b"?")),
    ]
}

#[test]
fn floods_of_control_frames_end() {
    let site = Site::new();
    let (proxy, _upstream) = start(&site, LOW);
    for (name, piece) in control_frames() {
        let (debug, detail) = expect_end(&proxy, &piece.repeat(200), Reason::FrameFlood);
        assert_eq!(debug, Reason::FrameFlood.code(), "{name}");
        assert!(detail.contains(&format!(" {name}")), "{name}: {detail}");
    }
}

/// With the limits as they are by default, whatever a read cuts apart.
#[test]
fn a_flood_ends_by_default() {
    let site = Site::new();
    let (proxy, _upstream) = start(&site, "mode: enforce");
    for (name, piece) in control_frames() {
        let (debug, _) = expect_end(&proxy, &piece.repeat(20_000), Reason::FrameFlood);
        assert_eq!(debug, Reason::FrameFlood.code(), "{name}");
    }
}

/// These are limits of `h2`, which does not know our codes; the records do.
#[test]
fn floods_that_h2_cuts_are_on_record() {
    let site = Site::new();
    let (proxy, _upstream) = start(&site, "mode: enforce");
    let open = frame(1, 4, 1, b"\x83\x86\x01\x01a\x04\x08/allowed");
    let empty_data = [open, frame(0, 0, 1, &[]).repeat(1000)].concat();
    let endless = [frame(1, 1, 1, b"\x82"), frame(9, 0, 1, &[]).repeat(1000)].concat();
    // MadeYouReset: each stream is ended by an error that its client makes us see, a window that overflows.
    let overflow = |stream| frame(8, 0, stream, &0x7fff_ffff_u32.to_be_bytes());
    let made = (0..2000).flat_map(|n| [get(2 * n + 1), overflow(2 * n + 1)].concat()).collect();
    for (flood, name, frames) in [
        (empty_data, "too_many_data_frames", " DATA without bytes"),
        (endless, "too_many_continuations", " CONTINUATION"),
        (made, "too_many_internal_resets", " WINDOW_UPDATE"),
    ] {
        let (debug, detail) = expect_end(&proxy, &flood, Reason::FrameFlood);
        assert!(debug == name && detail.contains(frames), "{debug}: {detail}");
    }
    let at_once: Vec<u8> = (0..2000).flat_map(|n| [get(2 * n + 1), cancel(2 * n + 1)].concat()).collect();
    let (debug, detail) = expect_end(&proxy, &at_once, Reason::ResetFlood);
    let told = ["too_many_resets", Reason::ResetFlood.code()].contains(&debug.as_str());
    assert!(told && detail.contains(" RST_STREAM"), "{debug}: {detail}");
}

/// Streams that are cancelled one by one, as soon as the proxy has taken them up.
#[test]
fn rapid_resets_end() {
    const TIMES: u32 = 60;
    let site = Site::new();
    let (proxy, _upstream) = start(&site, LOW);
    let mut other = connect(&proxy);
    ask(&mut other, 1);
    let mut client = connect(&proxy);
    for n in 0..TIMES {
        if client.try_send(get(4 * n + 1)).is_err() || client.try_send(denied(4 * n + 3)).is_err() {
            break;
        }
        let _ = client.try_send(cancel(4 * n + 1));
    }
    let (answer, _) = client.read_to_any_end();
    assert_eq!(go_away(&answer), Some((ENHANCE_YOUR_CALM, Reason::ResetFlood.code().to_owned())));
    let of_connection =
        |flow: &serde_json::Value| flow["reason"] == Reason::ResetFlood.code() && flow["detail"].is_string();
    let record = until("the record", || proxy.flows().into_iter().find(of_connection));
    assert!(record["detail"].as_str().is_some_and(|detail| detail.contains(" RST_STREAM")), "{record}");
    assert_eq!((&record["verdict"], &record["tenant"]), (&json!("DROPPED"), &json!("endpoint-7")), "{record}");
    // The streams that were under way end with the connection, for the same reason; each is counted as its record says.
    let counted = until("the count", || {
        let records = proxy.flows().iter().filter(|flow| flow["reason"] == Reason::ResetFlood.code()).count();
        (refusals(&proxy, Reason::ResetFlood) == records as f64).then_some(records as f64)
    });
    let of_tenant = "tollgate_tenant_refusals_total{tenant=\"endpoint-7\",reason=\"reset_flood\"}";
    assert_eq!(proxy.metric(of_tenant), counted);
    ask(&mut other, 3);
}

/// A client that does not read what it is told goes all the same.
#[test]
fn a_flood_ends_although_nobody_reads() {
    let site = Site::new();
    let (proxy, _upstream) = start(&site, LOW);
    let mut client = connect(&proxy);
    let _ = client.try_send(frame(6, 0, 0, &[0; 8]).repeat(200));
    // A frame that never ends.
    let _ = client.try_send([0, 0, 200, 0xbb]);
    proxy.expect_reason(Reason::FrameFlood);
    let open = || proxy.metric("tollgate_connections_open{listener=\"http\",direction=\"ingress\"}");
    until("the end of the connection", || (open() == 0.0).then_some(()));
}

#[test]
fn shadow_only_counts() {
    let site = Site::new();
    let (proxy, _upstream) = start(&site, &format!("mode: shadow, {LOW}"));
    let mut client = connect(&proxy);
    for (n, (_, piece)) in (0..).zip(control_frames()) {
        client.send(piece.repeat(200));
        ask(&mut client, 2 * n + 1);
    }
    for n in 10..200 {
        client.send(get(4 * n + 1));
        client.send(cancel(4 * n + 1));
        if n % 10 == 0 {
            ask(&mut client, 4 * n + 3);
        }
    }
    for reason in [Reason::FrameFlood, Reason::ResetFlood] {
        let counted = proxy.metric(&format!("tollgate_shadow_refusals_total{{reason=\"{}\"}}", reason.code()));
        assert!(counted >= 2.0, "{counted} {}", reason.code());
        assert_eq!(refusals(&proxy, reason), 0.0);
    }
}

/// gRPC clients that ping as often as their library lets them, and give up most of their calls.
#[test]
fn grpc_clients_that_cancel_and_ping_are_left_alone() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "grpc_peer.py", &["serve", &site.ip().to_string()]);
    let policy = ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("POST", r"/test\.Echo/.*")])]));
    let proxy = Proxy::with(&site, address.parse().unwrap(), &Options::default(), &[policy]);
    let seen = script::run(python, &site, "grpc_peer.py", &["cancel", &proxy.http().to_string()]);
    assert_eq!(seen, json!({"cancelled": 3000, "answered": 3000, "codes": ["CANCELLED"]}));
    let connections = proxy.metric("tollgate_connections_total{listener=\"http\",direction=\"ingress\"}");
    assert_eq!(connections, 1.0, "nobody was sent away");
}
