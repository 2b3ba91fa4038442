//! Who waits for the first policy of an endpoint: places for that are shared, and given back when the client goes.

use std::env;
use std::net::{IpAddr, SocketAddr};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tollgate::reason::Reason;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, of_another_endpoint, tcp_port, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site, TCP_PORT};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use crate::tenants::{client_address, connect};

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
/// Places of a worker, of which one endpoint may have half, and one source half of that.
const PLACES: usize = 1024;

fn waits_long() -> Options {
    Options { listener: "reason_header: true, policy_wait: 1h".into(), ..Options::default() }
}

fn until_held(proxy: &Proxy, connections: usize) {
    let held = || proxy.metric("tollgate_held_connections");
    until(&format!("{connections} connections held"), || (held() == connections as f64).then_some(()));
}

fn refused(proxy: &Proxy) -> usize {
    proxy.metric(&format!("tollgate_refusals_total{{reason=\"{}\"}}", Reason::NoPolicy.code())) as usize
}

/// Connections from `source` that nobody looks at.
fn flood(source: IpAddr, to: SocketAddr, connections: usize) -> Vec<Socket> {
    let one = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        // One that is refused at once may be told so here.
        socket.connect(&to.into()).ok().map(|()| socket)
    };
    (0..connections).filter_map(one).collect()
}

/// Raises the limit of open files, for this process and those that it starts, and says whether so many are allowed then. If not, this
/// is an error in CI.
fn may_open(files: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let enough = most >= files && setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).is_ok();
    if !enough {
        assert!(env::var("CI").as_deref() != Ok("true"), "{files} open files are needed, and {most} allowed");
        println!("SKIPPED: {files} open files are needed, and {most} allowed");
    }
    enough
}

#[test]
fn a_flood_to_an_endpoint_without_a_policy_takes_nobody_elses_waiting() {
    if !may_open(4 * PLACES as u64) {
        return;
    }
    let (site, other) = (Site::new(), Site::new());
    let upstream = Upstream::ok(&site);
    let address = other.at(HTTP_PORT);
    let listener = waits_long().listener;
    let third = format!(
        "- {{ name: other, address: \"{address}\", direction: ingress, transparent: false, upstream: \"{}\", {listener} }}",
        upstream.address()
    );
    let options = Options { top: third, ..waits_long() };
    let proxy = Proxy::with(&site, upstream.address(), &options, &[of_another_endpoint()]);
    let (flooder, calm) = (client_address(&site, 1), client_address(&site, 2));

    let sockets = flood(flooder, proxy.http(), PLACES + 100);
    until("all of them held or refused", || {
        (refused(&proxy) + proxy.metric("tollgate_held_connections") as usize == PLACES + 100).then_some(())
    });
    until_held(&proxy, PLACES / 4);
    let record = proxy.expect_reason(Reason::NoPolicy);
    let detail = "not held: 256 connections from its source to its endpoint wait already, as many as may";
    assert_eq!(record["detail"], detail, "{record}");

    // Whoever comes next waits: another source at this endpoint, and at another endpoint even the flooder.
    let mut neighbour = connect(calm, proxy.http());
    let mut newcomers = [connect(calm, address), connect(flooder, address)];
    until_held(&proxy, PLACES / 4 + 3);
    let policy_of_other = ingress(&other, json!([http_port(HTTP_PORT, &[http_rule("GET", "/allowed")])]));
    proxy.push(std::slice::from_ref(&policy_of_other));
    for newcomer in &mut newcomers {
        newcomer.send(GET);
        assert_eq!(newcomer.read_message().status(), 200);
    }
    until_held(&proxy, PLACES / 4 + 1);
    let policy_of_site = NetworkPolicy { endpoint_id: 8, ..usual(&site) };
    proxy.push(&[policy_of_other, policy_of_site]);
    neighbour.send(GET);
    assert_eq!(neighbour.read_message().status(), 200);
    until_held(&proxy, 0);
    drop(sockets);
}

#[test]
fn a_client_that_goes_gives_its_place_back() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        let said = peer.read_to_end();
        peer.send(said);
    });
    let proxy = Proxy::with(&site, upstream.address(), &waits_long(), &[of_another_endpoint()]);
    let connect_and_say = |words: &str| {
        let mut client = Peer::connect(proxy.tcp());
        client.send(words);
        client
    };
    let mut patient = connect_and_say("first words");
    let mut clients: Vec<Peer> = ["", "", "words"].into_iter().map(connect_and_say).collect();
    let mut ended = connect_and_say("last words");
    ended.finish_sending();
    until_held(&proxy, 5);

    clients.pop().unwrap().reset();
    until_held(&proxy, 4);
    clients.pop().unwrap().reset();
    until_held(&proxy, 3);
    drop(clients);
    until_held(&proxy, 2);
    let record = proxy.expect_reason(Reason::NoPolicy);
    assert_eq!((&record["verdict"], refused(&proxy)), (&json!("DROPPED"), 3));
    assert_eq!(record["detail"], "the client went away while it was held", "{record}");

    // One that has sent all that it has may wait for the answer, unless it resets.
    let mut resets = connect_and_say("more last words");
    resets.finish_sending();
    until_held(&proxy, 3);
    resets.reset();
    until_held(&proxy, 2);
    proxy.push(&[ingress(&site, json!([tcp_port(TCP_PORT)]))]);
    patient.send(", and more");
    patient.finish_sending();
    assert_eq!(patient.read_to_end(), b"first words, and more");
    assert_eq!(ended.read_to_end(), b"last words");
    assert_eq!(upstream.connections(), 2);
}
