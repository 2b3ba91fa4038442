//! Transfers that wait for the rate of their tenant and are given up: nothing of them is left for others to wait for. At the rate of
//! these tests the turns of all that give up would take minutes, far longer than any test waits.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use std::{io, thread};

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, big_get, cancel, end_of, frame};
use tollgate_tests::peer::{End, Peer};
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{OK, Upstream, WEBSOCKET_ACCEPTED, next_request, websocket_request};
use tollgate_tests::wait::until;

use super::bandwidth::{BURST, CEILING, CRAWL, PATTERN, Two, ask, download, get, paced, policy, request, serving};
use super::tenants::{client_address, connect, metric, set_tenants, with_python};

/// Of `CRAWL`.
const CRAWL_RATE: f64 = 1024.0;
const CRAWL_BURST: f64 = 16384.0;
/// Most bytes that go at once.
const PIECE: u64 = 16 << 10;

/// Transfers of the tenant that wait now, by `/tenants`.
fn waiting(proxy: &Proxy, name: &str) -> u64 {
    let shown: Value = serde_json::from_str(&proxy.get("/tenants").1).unwrap();
    let all = shown["tenants"].as_array().unwrap();
    all.iter().find(|tenant| tenant["name"] == name).unwrap()["paced_now"].as_u64().unwrap()
}

fn until_paced(proxy: &Proxy, tenant: &str, exchanges: u64) {
    until("all to wait", || (paced(proxy, tenant) == exchanges).then_some(()));
}

fn until_nobody_waits(proxy: &Proxy) {
    until("nobody to wait", || (waiting(proxy, "busy") == 0).then_some(()));
}

/// Sends something that has to wait.
fn begin(from: IpAddr, proxy: &Proxy, request: impl AsRef<[u8]>) -> Peer {
    let mut client = connect(from, proxy.http());
    client.send(request);
    client
}

#[test]
fn downloads_that_are_given_up_hold_up_nobody() {
    let site = Site::new();
    let upstream = serving(&site);
    let two = Two::start(&site, &upstream, CRAWL, "");
    let began = Instant::now();
    for round in 1..=3 {
        let clients: Vec<Peer> = (0..100).map(|_| begin(two.busy, &two.proxy, get("/allowed/100000"))).collect();
        until_paced(&two.proxy, "busy", 100 * round);
        assert_eq!(waiting(&two.proxy, "busy"), 100);
        // Some close, with an answer's head that nobody has read.
        for (n, client) in clients.into_iter().enumerate() {
            if n % 2 == 0 {
                client.reset();
            }
        }
        until_nobody_waits(&two.proxy);
    }
    download(&mut connect(two.busy, two.proxy.http()), 1);
    // What never went is not counted.
    let records = two.records("busy", 301);
    let moved: u64 = records.iter().map(|record| record["bytes_down"].as_u64().unwrap()).sum();
    assert_eq!(moved, metric(&two.proxy, "bytes_total", "tenant=\"busy\",flow=\"down\""));
    let given = began.elapsed().as_secs_f64() * CRAWL_RATE + CRAWL_BURST;
    assert!(moved as f64 <= given, "{moved} of {given}");
    download(&mut connect(two.calm, two.proxy.http()), 1 << 20);
    assert_eq!((paced(&two.proxy, "endpoint-8"), waiting(&two.proxy, "endpoint-8")), (0, 0));
}

#[test]
fn uploads_whose_upstream_goes_hold_up_nobody() {
    let site = Site::new();
    let gone = Arc::new(AtomicBool::new(false));
    let upstream = Upstream::scripted(&site, {
        let gone = Arc::clone(&gone);
        move |peer, _| {
            if peer.read_head().starts_with("POST") {
                until("the end", || gone.load(Ordering::Relaxed).then_some(()));
                return;
            }
            peer.send(OK);
            peer.wait_for_bytes();
        }
    });
    let two = Two::start(&site, &upstream, CRAWL, "");
    let upload = [request("POST", "/allowed", 100_000).into_bytes(), vec![b'a'; 32 << 10]].concat();
    let mut clients: Vec<Peer> = (0..80).map(|_| begin(two.busy, &two.proxy, &upload)).collect();
    until_paced(&two.proxy, "busy", 80);
    gone.store(true, Ordering::Relaxed);
    for client in &mut clients {
        assert_eq!(client.read_message().status(), 503);
    }
    until_nobody_waits(&two.proxy);
    assert_eq!(ask(&mut connect(two.busy, two.proxy.http()), &get("/allowed")).body, b"ok");
}

#[test]
fn http_2_streams_that_are_reset_hold_up_nobody() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let top = format!("tenants: {{ groups: [{{ name: busy, members: {{ endpoint_ids: [7] }}, {CRAWL} }}] }}\n");
    let options = Options { top, workers: 2, ..Options::default() };
    let proxy = Proxy::with(&site, address.parse().unwrap(), &options, &[usual(&site)]);
    let start = |requests: &mut dyn Iterator<Item = Vec<u8>>| {
        let mut client = Peer::connect(proxy.http());
        client.send(CLIENT_START);
        // Windows without an end, so that what comes is held back by nobody but us.
        client.send(frame(4, 0, 0, b"\0\x04\x7f\xff\xff\xff"));
        client.send(frame(8, 0, 0, b"\x7f\xff\0\0"));
        requests.for_each(|request| client.send(request));
        client
    };
    let stream = |n: u32| 2 * n + 1;
    let mut clients: Vec<Peer> =
        (0..6).map(|_| start(&mut (0..16).map(|n| big_get(stream(n), "/allowed/big/20000", 1)))).collect();
    until_paced(&proxy, "busy", 96);
    assert_eq!(waiting(&proxy, "busy"), 96);
    // Of half of the connections all streams end alone, of the others with the connection, whether that is reset or only ended.
    let mut closed = clients.split_off(3);
    closed[0].finish_sending();
    drop(closed.split_off(1));
    for client in &mut clients {
        (0..16).for_each(|n| client.send(cancel(stream(n))));
    }
    until_nobody_waits(&proxy);
    start(&mut [big_get(1, "/allowed/big/1", 1)].into_iter()).read_until(&end_of(1));
    // On a connection that had others.
    clients[0].send(big_get(stream(16), "/allowed/big/1", 1));
    clients[0].read_until(&end_of(stream(16)));
}

#[test]
fn tunnels_that_are_given_up_hold_up_nobody() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, connection| {
        peer.stop_recording();
        if connection < 50 {
            peer.read_head();
            peer.send(WEBSOCKET_ACCEPTED);
        }
        // A client that gives up takes no more.
        let _ = peer.try_send(vec![b'a'; 64 << 10]);
        while peer.wait_for_bytes() {
            peer.discard();
        }
    });
    let two = Two::start(&site, &upstream, CRAWL, "");
    let websockets = (0..50).map(|_| {
        let mut client = begin(two.busy, &two.proxy, websocket_request("/allowed"));
        assert_eq!(client.read_head(), WEBSOCKET_ACCEPTED);
        client
    });
    let connections = (0..50).map(|_| connect(two.busy, two.proxy.tcp()));
    let mut clients: Vec<Peer> = websockets.chain(connections).collect();
    // The other way, too.
    clients.iter_mut().for_each(|client| client.send([b'a'; 4096]));
    until_paced(&two.proxy, "busy", 100);
    until("both ways to wait", || (waiting(&two.proxy, "busy") == 200).then_some(()));
    // Whoever only ends what it sends may go on to read.
    clients.into_iter().for_each(Peer::reset);
    until_nobody_waits(&two.proxy);
    assert_eq!(connect(two.busy, two.proxy.tcp()).read_exact(1), b"a");
}

#[test]
fn each_try_is_paced_and_one_that_is_given_up_holds_up_nobody() {
    let site = Site::new();
    let posts = AtomicUsize::new(0);
    let upstream = Upstream::scripted(&site, move |peer, _| {
        while let Some(request) = next_request(peer) {
            match request.head.split(' ').next() {
                Some("POST") if posts.fetch_add(1, Ordering::Relaxed) == 0 => {
                    peer.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
                }
                Some("POST") => peer.send(OK),
                _ => {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 16384\r\n\r\n");
                    peer.send(vec![b'a'; 16384]);
                }
            }
        }
    });
    let two = Two::start(&site, &upstream, CRAWL, "http: { retries: 1 }");
    let mut client = connect(two.busy, two.proxy.http());
    assert_eq!(ask(&mut client, &get("/allowed")).body.len(), 16384, "the burst");
    let post = |size: usize| [request("POST", "/allowed", size as u64).into_bytes(), vec![b'b'; size]].concat();
    client.send(post(700));
    assert_eq!(client.read_message().status(), 200);
    let record = two.records("busy", 2).pop().unwrap();
    assert!(two.proxy.metric("tollgate_upstream_retries_total") == 1.0);
    // The tries together, each of which was a piece of 512 bytes and one of 188.
    assert!(record["paced_us"].as_u64().is_some_and(|time| time > 600_000), "{record}");
    let before = paced(&two.proxy, "busy");
    let clients: Vec<Peer> = (0..80).map(|_| begin(two.busy, &two.proxy, post(8000))).collect();
    until_paced(&two.proxy, "busy", before + 80);
    // Those that only end what they send may wait for their answers.
    clients.into_iter().for_each(Peer::reset);
    until_nobody_waits(&two.proxy);
    client.send(post(1));
    assert_eq!(client.read_message().status(), 200);
}

#[test]
fn all_who_wait_go_when_the_ceiling_does() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = serving(&site);
    let one = client_address(&site, 1);
    let (mut control, proxy) = with_python(&site, python, &[policy(7, one)], upstream.address());
    let team = |ceilings: Value| json!([{"name": "team", "members": {"endpointIds": ["7"]}, "ceilings": ceilings}]);
    let rate = |rate: &str| team(json!({"bytes": {"perSecond": rate, "burst": "1"}}));
    set_tenants(&mut control, "1", &rate("1"));
    let clients: Vec<_> = [proxy.http(), proxy.tcp()]
        .into_iter()
        .flat_map(|to| [to; 20])
        .map(|to| {
            let mut client = connect(one, to);
            thread::spawn(move || download(&mut client, 40_000))
        })
        .collect();
    until_paced(&proxy, "team", 40);
    until("all to wait", || (waiting(&proxy, "team") == 40).then_some(()));
    // Nobody gets anywhere at this rate, either, and nobody is forgotten.
    set_tenants(&mut control, "2", &rate("2"));
    until("all to wait again", || (waiting(&proxy, "team") == 40).then_some(()));
    set_tenants(&mut control, "3", &json!([]));
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn a_drain_ends_what_waits() {
    let site = Site::new();
    let upstream = serving(&site);
    let mut two = Two::with(&site, &upstream, CRAWL, "", "drain_timeout: 100ms");
    let mut clients: Vec<Peer> = [two.proxy.http(), two.proxy.tcp()]
        .into_iter()
        .flat_map(|to| [to; 40])
        .map(|to| {
            let mut client = connect(two.busy, to);
            client.send(get("/allowed/100000"));
            client
        })
        .collect();
    until_paced(&two.proxy, "busy", 80);
    two.proxy.terminate();
    for client in &mut clients {
        assert_eq!(client.read_to_any_end().1, End::Reset);
    }
    assert!(two.proxy.wait().success());
}

/// Each goes a piece, and then another.
#[test]
fn large_transfers_of_a_tenant_leave_room_for_its_small_ones() {
    // Eight times what is moved in eight seconds: none ends before.
    const LARGE: u64 = 8;
    let site = Site::new();
    let upstream = serving(&site);
    let two = Two::start(&site, &upstream, CEILING, "");
    let moved = Arc::new(AtomicU64::new(0));
    for _ in 0..LARGE {
        let (client, moved) = (begin(two.busy, &two.proxy, get(&format!("/allowed/{}", 2 << 20))), Arc::clone(&moved));
        let mut stream = client.stream().try_clone().unwrap();
        thread::spawn(move || {
            let _client = client;
            let mut bytes = [0; PIECE as usize];
            // It ends with the proxy.
            while let Ok(n @ 1..) = io::Read::read(&mut stream, &mut bytes) {
                moved.fetch_add(n as u64, Ordering::Relaxed);
            }
        });
    }
    until_paced(&two.proxy, "busy", LARGE);
    let before = moved.load(Ordering::Relaxed);
    let mut client = connect(two.busy, two.proxy.http());
    for _ in 0..5 {
        download(&mut client, PATTERN.len() as u64);
    }
    let moved = moved.load(Ordering::Relaxed) - before;
    // Whoever is on the same thread goes before each once, and the other threads take turns with that.
    let most = 5 * 2 * (LARGE + 1) * PIECE + BURST;
    assert!(moved <= most, "{moved} of {most}");
    assert_eq!(two.records("busy", 5)[0]["paced_by"], Reason::TenantBandwidth.code());
}

/// Nobody is behind all of somebody else's transfers.
#[test]
fn remote_identities_of_a_tenant_take_turns() {
    let site = Site::new();
    let upstream = serving(&site);
    let (many, calm) = (client_address(&site, 1), client_address(&site, 2));
    let identity = |identity: u32, address: IpAddr| format!("{{ identity: {identity}, addresses: [{address}] }}");
    let identities = format!("[{}, {}]", identity(100, many), identity(200, calm));
    let top = format!("tenants: {{ groups: [{{ name: busy, members: {{ endpoint_ids: [7] }}, {CRAWL} }}] }}\n");
    let options = Options { top, identities, ..Options::default() };
    let proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let _waiting: Vec<Peer> = (0..100).map(|_| begin(many, &proxy, get("/allowed/100000"))).collect();
    until_paced(&proxy, "busy", 100);
    let mut client = connect(calm, proxy.http());
    for _ in 0..3 {
        download(&mut client, 1);
    }
    assert_eq!(waiting(&proxy, "busy"), 100);
}
