//! Bytes and waiting are on the account of whoever paid when they went, not of whoever does when what they belong to ends.

use std::net::IpAddr;
use std::thread;

use serde_json::{Value, json};
use tollgate_tests::http2::{CLIENT_START, big_get, frame};
use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Proxy;
use tollgate_tests::python::{ControlPlane, python};
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{Upstream, WEBSOCKET_ACCEPTED, websocket_request};
use tollgate_tests::wait::until;

use super::bandwidth::{PATTERN, paced, policy, request};
use super::tenants::{client_address, connect, set_tenants, tenant, with_python};

/// Moved while the first tenant pays.
const BEFORE: u64 = 300_000;
/// And while the other does.
const AFTER: u64 = 7;

fn bytes(proxy: &Proxy, name: &str) -> Value {
    tenant(proxy, name)["bytes"].clone()
}

fn both_ways(bytes: u64) -> Value {
    json!({"up": bytes, "down": bytes})
}

/// The endpoint goes to a group of this name, and its connection with it.
fn regroup(control: &mut ControlPlane, proxy: &Proxy, name: &str) {
    set_tenants(control, name, &json!([{"name": name, "members": {"endpointIds": ["7"]}}]));
    until("the connection in its group", || (tenant(proxy, name)["connections_open"] == 1).then_some(()));
}

/// Sends back what comes, behind what the kind of exchange needs.
fn echo(site: &Site, begin: fn(&mut Peer)) -> Upstream {
    Upstream::scripted(site, move |peer, _| {
        peer.stop_recording();
        begin(peer);
        peer.expect_repeated(PATTERN, BEFORE);
        peer.send_repeated(PATTERN, BEFORE);
        peer.expect_repeated(PATTERN, AFTER);
        peer.send_repeated(PATTERN, AFTER);
    })
}

/// Moves bytes both ways under one tenant and then under another, on a connection that `begin` has brought to where they flow.
fn moves_under_two_tenants(is_http: bool, upstream: fn(&mut Peer), begin: fn(&mut Peer)) {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = echo(&site, upstream);
    let one = client_address(&site, 1);
    let (mut control, proxy) = with_python(&site, python, &[policy(7, one)], upstream.address());
    set_tenants(&mut control, "0", &json!([{"name": "before", "members": {"endpointIds": ["7"]}}]));
    let mut client = connect(one, if is_http { proxy.http() } else { proxy.tcp() });
    begin(&mut client);
    client.send_repeated(PATTERN, BEFORE);
    client.expect_repeated(PATTERN, BEFORE);
    // Its last bytes are written before they are counted.
    until("what moved", || (bytes(&proxy, "before") == both_ways(BEFORE)).then_some(()));

    regroup(&mut control, &proxy, "after");
    assert_eq!(bytes(&proxy, "after"), both_ways(0));
    client.send_repeated(PATTERN, AFTER);
    client.expect_repeated(PATTERN, AFTER);
    until("what moved", || (bytes(&proxy, "after") == both_ways(AFTER)).then_some(()));
    drop(client);
    let record = proxy.expect_flows(1).remove(0);
    assert_eq!(
        (&record["bytes_up"], &record["bytes_down"]),
        (&json!(BEFORE + AFTER), &json!(BEFORE + AFTER)),
        "{record}"
    );
    assert_eq!(record["tenant"], "after");
    // Each byte once, for the process, too.
    assert_eq!((bytes(&proxy, "before"), bytes(&proxy, "after")), (both_ways(BEFORE), both_ways(AFTER)));
    let everybodys = proxy.metric("tollgate_bytes_total{direction=\"egress\",flow=\"up\"}");
    assert!((everybodys - (BEFORE + AFTER) as f64).abs() < 0.5, "{everybodys}");
}

#[test]
fn what_a_websocket_moves_is_counted_when_it_moves() {
    let accept = |peer: &mut Peer| {
        peer.read_head();
        peer.send(WEBSOCKET_ACCEPTED);
    };
    moves_under_two_tenants(true, accept, |client| {
        client.send(websocket_request("/allowed"));
        assert_eq!(client.read_head(), WEBSOCKET_ACCEPTED);
    });
}

#[test]
fn what_passes_as_bytes_is_counted_when_it_moves() {
    moves_under_two_tenants(false, |_| {}, |_| {});
}

#[test]
fn bodies_of_http_1_are_counted_when_they_move() {
    let answer = |peer: &mut Peer| {
        peer.read_head();
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", BEFORE + AFTER));
    };
    moves_under_two_tenants(true, answer, |client| {
        client.send(request("POST", "/allowed", BEFORE + AFTER));
        client.read_head();
    });
}

/// Reads a frame, and returns how many bytes of a body it has.
fn read_data(client: &mut Peer) -> u64 {
    let header = client.read_exact(9);
    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
    client.read_exact(length);
    if header[3] == 0 { length as u64 } else { 0 }
}

#[test]
fn bodies_of_http_2_are_counted_when_they_move() {
    /// More than there is room for on the way.
    const SIZE: u64 = 1_000_000;
    /// What a client may be sent before it says that it has read.
    const WINDOW: u64 = 65_535;
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let one = client_address(&site, 1);
    let (mut control, proxy) = with_python(&site, python, &[policy(7, one)], address.parse().unwrap());
    set_tenants(&mut control, "0", &json!([{"name": "before", "members": {"endpointIds": ["7"]}}]));
    let mut client = connect(one, proxy.http());
    client.send(CLIENT_START);
    client.send(big_get(1, &format!("/allowed/big/{SIZE}"), 1));
    let mut received = 0;
    while received < WINDOW {
        received += read_data(&mut client);
    }
    let down = |name: &str| bytes(&proxy, name)["down"].as_u64().unwrap();
    // What waits for the client's window has been counted, too, and is less than all there is.
    let before = until("the window's worth", || Some(down("before")).filter(|bytes| *bytes >= WINDOW));
    assert!(before < SIZE, "{before}");

    regroup(&mut control, &proxy, "after");
    let room = u32::try_from(SIZE).unwrap().to_be_bytes();
    client.send([frame(8, 0, 0, &room), frame(8, 0, 1, &room)].concat());
    while received < SIZE {
        received += read_data(&mut client);
    }
    let record = proxy.expect_flows(1).remove(0);
    assert_eq!((&record["bytes_down"], &record["tenant"]), (&json!(SIZE), &json!("after")), "{record}");
    assert!(down("after") > 0);
    assert_eq!(down("before") + down("after"), SIZE, "each byte once");
}

/// Who has no ceiling is told of no waiting, whatever the transfer did before it was this tenant's.
#[test]
fn waiting_is_on_the_account_of_whose_rate_it_was() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| peer.expect_repeated(PATTERN, BEFORE));
    let one: IpAddr = client_address(&site, 1);
    let (mut control, proxy) = with_python(&site, python, &[policy(7, one)], upstream.address());
    let slow = json!({"bytes": {"perSecond": "1024", "burst": "16384"}});
    set_tenants(&mut control, "0", &json!([{"name": "slow", "members": {"endpointIds": ["7"]}, "ceilings": slow}]));
    let client = thread::spawn({
        let to = proxy.tcp();
        move || {
            let mut client = connect(one, to);
            client.send_repeated(PATTERN, BEFORE);
            client
        }
    });
    let paced_seconds = |name: &str| tenant(&proxy, name)["paced_seconds"].as_f64().unwrap_or_default();
    // Also while the transfer lives.
    until("time of waiting", || (paced_seconds("slow") > 0.0).then_some(()));
    // At the slow rate the rest would take minutes.
    regroup(&mut control, &proxy, "quick");
    drop(client.join().unwrap());
    let record = proxy.expect_flows(1).remove(0);
    assert_eq!((&record["bytes_up"], &record["tenant"]), (&json!(BEFORE), &json!("quick")), "{record}");
    let whole = record["paced_us"].as_f64().unwrap() / 1e6;
    let slow = paced_seconds("slow");
    assert!((slow - whole).abs() < 1e-5, "{slow} of {whole}");
    assert_eq!((paced(&proxy, "slow"), paced(&proxy, "quick"), paced_seconds("quick")), (1, 0, 0.0));
}
