//! Tenants that move to a lane and back: their connections go on, nothing is lost, and everything holds there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::{Value, json};
use tollgate_tests::http2;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::{ControlPlane, python};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::{Upstream, next_request};
use tollgate_tests::wait::until;

const CLIENTS: usize = 6;
/// Moves to the lane and back.
const ROUNDS: usize = 8;
/// Answers that each client gets between two moves.
const BETWEEN: u64 = 12;

/// One endpoint with one worker, and a control plane that says how far its tenant is kept apart.
struct World {
    control: ControlPlane,
    proxy: Proxy,
    version: u64,
    site: Site,
}

impl World {
    /// `None` without Python.
    fn new(rules: &[Value], upstream: impl Fn(&Site) -> Upstream) -> Option<(Self, Upstream)> {
        let python = python()?;
        let site = Site::new();
        let upstream = upstream(&site);
        let mut control = ControlPlane::start(python).unwrap();
        let socket = site.path("python.sock");
        control.listen(&socket).unwrap();
        control.tell(&json!({"do": "set", "version": "1", "resources": [policy(&site, rules)]})).unwrap();
        let options = Options { mode: "split, tenants: true", ..Options::default() };
        let mut proxy = Proxy::attached(&site, upstream.address(), &options, &socket);
        proxy.wait_until_ready();
        Some((Self { control, proxy, version: 1, site }, upstream))
    }

    fn set(&mut self, kind: &str, resources: &Value) {
        self.version += 1;
        let version = self.version.to_string();
        self.control.tell(&json!({"do": "set", "type": kind, "version": version, "resources": resources})).unwrap();
        loop {
            let answer = self.control.answer().unwrap();
            assert_eq!(answer["event"], "ack", "{answer}");
            if answer["type"] == kind && answer["request"]["version_info"] == version {
                return;
            }
        }
    }

    /// Puts the tenant into the lane, or else takes it out, and waits until it is there.
    fn isolate(&mut self, lane: bool) {
        let isolation = if lane { "LANE" } else { "SHARED" };
        let team = json!({"name": "team", "members": {"endpointIds": ["7"]}, "isolation": isolation,
            "ceilings": {"connections": CLIENTS}});
        self.set("Tenant", &json!([team]));
        until("the move", || (self.tenant("team")["lane"].is_object() == lane).then_some(()));
    }

    fn tenant(&self, name: &str) -> Value {
        let shown: Value = serde_json::from_str(&self.proxy.get("/tenants").1).unwrap();
        let all = shown["tenants"].as_array().unwrap();
        all.iter().find(|tenant| tenant["name"] == name).cloned().unwrap_or(Value::Null)
    }

    /// On which thread each request was served, so far as they are remembered: 0 is the worker, 1 its lane.
    fn threads(&self) -> Vec<u64> {
        let records = self.proxy.get("/flows").1;
        let records = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.map(|record| record["worker"].as_u64().unwrap()).collect()
    }

    fn address(&self) -> SocketAddr {
        self.proxy.http()
    }
}

fn policy(site: &Site, rules: &[Value]) -> Value {
    json!({
        "endpointIps": [site.ip().to_string()],
        "endpointId": "7",
        "ingressPerPortPolicies": [http_port(HTTP_PORT, rules)],
    })
}

/// Answers with the body that it was sent.
fn echo(site: &Site) -> Upstream {
    Upstream::scripted(site, |peer, _| {
        while let Some(request) = next_request(peer) {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
            peer.send([head.as_bytes(), &request.body].concat());
        }
    })
}

/// Three requests at once on one connection, again and again; each is answered with its own body.
fn pipeline(address: SocketAddr, client: usize, stop: &AtomicBool, answers: &AtomicU64) {
    let mut peer = Peer::connect(address);
    let mut random = fastrand::Rng::with_seed(client as u64);
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let body = format!("{client}-{round}-").repeat(random.usize(1..3000));
        let half = body.len() / 2;
        let requests = format!(
            "POST /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n\
             POST /allowed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
            body.len(),
            half,
            &body[..half],
            body.len() - half,
            &body[half..],
        );
        // In two pieces anywhere: a head or body may be under way when the tenant moves.
        let (first, rest) = requests.split_at(random.usize(..requests.len()));
        peer.send(first);
        peer.send(rest);
        for expected in [body.as_str(), "", body.as_str()] {
            let answer = peer.read_message();
            assert_eq!(answer.status(), 200, "{}", answer.head);
            assert!(answer.body == expected.as_bytes(), "client {client}, round {round}");
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn http1_connections_move_both_ways_and_nothing_is_lost() {
    let Some((mut world, upstream)) = World::new(&[http_rule("GET|POST", "/allowed")], echo) else { return };
    world.isolate(false);
    let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::new([const { AtomicU64::new(0) }; CLIENTS]));
    let address = world.address();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            thread::spawn(move || pipeline(address, client, &stop, &answers[client]))
        })
        .collect();
    let mut served = [false; 2];
    for round in 0..2 * ROUNDS {
        world.isolate(round % 2 == 0);
        let before: Vec<u64> = answers.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        until("answers to everybody", || {
            assert!(clients.iter().all(|client| !client.is_finished()), "a client has failed");
            answers
                .iter()
                .zip(&before)
                .all(|(now, before)| now.load(Ordering::Relaxed) >= before + BETWEEN)
                .then_some(())
        });
        let last: Vec<u64> = world.threads().into_iter().rev().take(CLIENTS).collect();
        for thread in last {
            served[usize::try_from(thread).unwrap()] = true;
        }
    }
    assert_eq!(world.tenant("team")["connections_open"], CLIENTS);
    // Each has kept its place among the tenant's, on whichever thread it is.
    Peer::expect_reset_at(address, "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
    world.isolate(true);
    Peer::expect_reset_at(address, "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
    world.isolate(false);
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(served, [true, true], "both threads have served them");
    let answers: u64 = answers.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    let team = world.tenant("team");
    assert_eq!(team["requests"], json!({"forwarded": answers, "denied": 0, "limited": 0, "failed": 0}));
    // Nobody has counted a connection twice, or opened another to the upstream.
    assert_eq!(team["connections"], CLIENTS + 2, "with the two refused");
    assert_eq!(upstream.connections(), CLIENTS);
    assert_eq!(team["lane_moves"], json!({"to_lane": {"configured": ROUNDS + 1}, "back": {"configured": ROUNDS + 1}}));
    let moves = r#"tollgate_tenant_lane_moves_total{tenant="team",to="lane",reason="configured"}"#;
    assert_eq!(world.proxy.metric(moves), (ROUNDS + 1) as f64);
    until("the ends of all", || (world.tenant("team")["connections_open"] == 0).then_some(()));
    // And has given it back.
    let mut again: Vec<_> = (0..CLIENTS).map(|_| Peer::connect(address)).collect();
    for peer in &mut again {
        peer.send("GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(peer.read_message().status(), 200);
    }
}

#[test]
fn new_connections_go_where_their_tenant_is() {
    let Some((mut world, _upstream)) = World::new(&[http_rule("GET", "/other")], Upstream::ok) else { return };
    world.isolate(true);
    let ask = |peer: &mut Peer| {
        peer.send("GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
        peer.read_message().status()
    };
    assert_eq!(ask(&mut Peer::connect(world.address())), 403);
    // One that never asks is counted there, too.
    let idle = Peer::connect(world.address());
    until("the record", || (world.threads() == [1]).then_some(()));
    until("both connections", || (world.tenant("team")["connections"] == 2).then_some(()));
    world.isolate(false);
    assert_eq!(ask(&mut Peer::connect(world.address())), 403);
    until("the other record", || (world.threads() == [1, 0]).then_some(()));
    drop(idle);
    until("the ends of all", || (world.tenant("team")["connections_open"] == 0).then_some(()));
    assert_eq!(world.proxy.metric(r#"tollgate_connections_open{listener="http",direction="ingress"}"#), 0.0);
}

/// Reads until the connection's GOAWAY is there; its code.
fn until_go_away(peer: &mut Peer) -> u32 {
    let mut seen = Vec::new();
    loop {
        seen.extend(peer.read_exact(1));
        if let Some((code, _)) = http2::go_away(&seen) {
            return code;
        }
    }
}

#[test]
fn http2_connections_are_asked_to_come_again() {
    let Some((mut world, _upstream)) = World::new(&[http_rule("GET", "/other")], Upstream::ok) else { return };
    world.isolate(false);
    let mut before = Peer::connect(world.address());
    before.send([http2::CLIENT_START, &http2::get(1)].concat());
    until("the record", || (world.threads() == [0]).then_some(()));
    world.isolate(true);
    assert_eq!(until_go_away(&mut before), 0);
    let mut after = Peer::connect(world.address());
    after.send([http2::CLIENT_START, &http2::get(1)].concat());
    until("the other record", || (world.threads() == [0, 1]).then_some(()));
    // A change that moves nobody leaves it alone.
    world.isolate(true);
    after.send(http2::get(3));
    until("a third record", || (world.threads() == [0, 1, 1]).then_some(()));
    world.isolate(false);
    assert_eq!(until_go_away(&mut after), 0);
}

#[test]
fn policy_and_drain_reach_connections_in_a_lane() {
    let Some((mut world, _upstream)) = World::new(&[http_rule("GET", "/allowed")], Upstream::ok) else { return };
    world.isolate(true);
    let mut peer = Peer::connect(world.address());
    let mut ask = || {
        peer.send("GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
        peer.read_message().status()
    };
    assert_eq!(ask(), 200);
    let denied = policy(&world.site, &[http_rule("GET", "/other")]);
    world.set("NetworkPolicy", &json!([denied]));
    assert_eq!(ask(), 403, "an acknowledged policy counts in the lane");
    let allowed = policy(&world.site, &[http_rule("GET", "/allowed")]);
    world.set("NetworkPolicy", &json!([allowed]));
    assert_eq!(ask(), 200);
    until("records", || (world.threads() == [1, 1, 1]).then_some(()));
    world.proxy.terminate();
    assert_eq!(peer.read_to_end(), b"", "idle connections close");
    assert!(world.proxy.wait().success());
}

#[test]
fn who_holds_up_others_goes_to_the_lane_and_comes_back() {
    // An automaton that is built while it reads gets a new state for each letter.
    let Some((mut world, _upstream)) = World::new(&[http_rule("GET", "/x.*-.{36}")], Upstream::ok) else { return };
    let mut random = fastrand::Rng::with_seed(1);
    let mut peer = Peer::connect(world.address());
    let mut slow = || {
        let path: String = (0..3000).map(|_| if random.bool() { 'a' } else { '-' }).collect();
        peer.send(format!("GET /x{path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let _ = peer.read_message();
    };
    until("the lane", || {
        slow();
        world.tenant("endpoint-7")["lane"].is_object().then_some(())
    });
    assert_eq!(world.tenant("endpoint-7")["lane_moves"], json!({"to_lane": {"slow_polls": 1}, "back": {}}));
    // As long as it goes on it stays, and is served there.
    for _ in 0..20 {
        slow();
    }
    until("a record of the lane", || (world.threads().last() == Some(&1)).then_some(()));
    until("the way back", || world.tenant("endpoint-7")["lane"].is_null().then_some(()));
    assert_eq!(world.tenant("endpoint-7")["lane_moves"]["back"], json!({"clean": 1}));
    // Settings stand above what is seen.
    world.isolate(false);
    for _ in 0..20 {
        slow();
    }
    assert!(world.tenant("team")["lane"].is_null());
}
