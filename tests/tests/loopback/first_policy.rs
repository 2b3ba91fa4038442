//! Who waits for the first policy of an endpoint: places for that are shared, and given back when the client goes.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use std::{env, fs, thread};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tollgate::reason::Reason;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::json::network_policy_to_json;
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
pub(super) fn may_open(files: u64) -> bool {
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
    let options = options_for(&other, &upstream);
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

/// Two sites behind one proxy: the second one has a listener of its own.
fn options_for(other: &Site, upstream: &Upstream) -> Options {
    let listener = waits_long().listener;
    let (address, upstream) = (other.at(HTTP_PORT), upstream.address());
    let top = format!(
        "- {{ name: other, address: \"{address}\", direction: ingress, transparent: false, upstream: \"{upstream}\", {listener} }}",
    );
    Options { top, ..waits_long() }
}

/// The usual policy of the one site, large ones of nobody, and for the other site the largest, which take a while to compile.
fn one_small_and_many_large(small: &Site, largest: &Site) -> Vec<NetworkPolicy> {
    let port = |endpoint: usize, rules: usize| {
        let mut rules: Vec<_> =
            (0..rules).map(|i| http_rule("GET", &format!("/{endpoint}/thing-{i}/[a-z]+"))).collect();
        rules.push(http_rule("GET", "/allowed"));
        json!([http_port(HTTP_PORT, &rules)])
    };
    let of_nobody = |endpoint: usize| NetworkPolicy {
        endpoint_id: endpoint as u64,
        endpoint_ips: vec![format!("192.0.2.{endpoint}")],
        ..ingress(small, port(endpoint, 1200))
    };
    let mut policies: Vec<NetworkPolicy> = (10..14).map(of_nobody).collect();
    policies.push(usual(small));
    policies.push(NetworkPolicy { endpoint_id: 8, ..ingress(largest, port(8, 1500)) });
    policies
}

/// What is small is in force while the rest is not, which is waited for, and the proxy is not ready.
fn expect_the_small_one_first(proxy: &Proxy, mut small: Peer, mut largest: Peer) {
    small.send(GET);
    assert_eq!(small.read_message().status(), 200);
    let (status, waits_for) = proxy.get("/ready");
    assert_eq!((status, proxy.metric("tollgate_held_connections")), (503, 1.0), "{waits_for}");
    assert!(waits_for.contains("first policy"), "{waits_for}");
    small.send("GET /denied HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(small.read_message().field("x-tollgate-reason"), Some(Reason::RequestNotAllowed.code()));
    until("readiness", || (proxy.get("/ready").0 == 200).then_some(()));
    largest.send(GET);
    assert_eq!(largest.read_message().status(), 200);
    until_held(proxy, 0);
}

#[test]
fn of_the_first_response_what_is_small_is_in_force_first() {
    let (site, other) = (Site::new(), Site::new());
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::without_policy(&site, upstream.address(), &options_for(&other, &upstream));
    let (small, largest) = (Peer::connect(proxy.http()), Peer::connect(other.at(HTTP_PORT)));
    until_held(&proxy, 2);
    let policies = one_small_and_many_large(&site, &other);
    thread::scope(|scope| {
        scope.spawn(|| proxy.push(&policies)); // returns when all is in force
        expect_the_small_one_first(&proxy, small, largest);
    });
}

#[test]
fn of_a_directory_what_is_small_is_in_force_first() {
    let (site, other) = (Site::new(), Site::new());
    let upstream = Upstream::ok(&site);
    let directory = site.path("policies");
    fs::create_dir(&directory).unwrap();
    for policy in one_small_and_many_large(&site, &other) {
        let text = network_policy_to_json(&policy).unwrap().to_string();
        fs::write(directory.join(format!("{}.json", policy.endpoint_id)), text).unwrap();
    }
    let proxy = Proxy::watching(&site, upstream.address(), &options_for(&other, &upstream), &directory);
    let (small, largest) = (Peer::connect(proxy.http()), Peer::connect(other.at(HTTP_PORT)));
    expect_the_small_one_first(&proxy, small, largest);
}

/// What a file held before the start is not known any more: others that claim the same must not decide alone.
#[test]
fn a_file_that_does_not_load_at_a_start_allows_nothing() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let directory = site.path("policies");
    fs::create_dir(&directory).unwrap();
    let text = network_policy_to_json(&usual(&site)).unwrap().to_string();
    fs::write(directory.join("7.json"), &text).unwrap();
    let other = text.replacen("\"7\"", "\"9\"", 1);
    assert_ne!(other, text);
    fs::write(directory.join("other.json"), format!("[{other},")).unwrap();
    let options = Options { listener: "reason_header: true".into(), ..Options::default() };
    let mut proxy = Proxy::watching(&site, upstream.address(), &options, &directory);
    let address = proxy.http();
    Peer::expect_reset_at(address, GET);
    assert!(proxy.process().output().contains("its endpoints deny"), "{}", proxy.process().output());
    fs::write(directory.join("other.json"), &other).unwrap();
    until("it loads", || is_served(address).then_some(()));
    // What was read once goes on, as it always did.
    fs::write(directory.join("other.json"), "[").unwrap();
    until("the error", || proxy.process().output().contains("other.json:1:").then_some(()));
    assert!(is_served(address));
}

fn is_served(address: SocketAddr) -> bool {
    // It may be reset at any of these steps.
    let Ok(mut peer) = Peer::try_connect(address) else { return false };
    let _ = peer.try_send("GET /allowed HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    peer.read_to_any_end().0.starts_with(b"HTTP/1.1 200")
}

/// The first half of a file can be a valid one, and of who writes it since before the start there was no event.
#[test]
fn a_file_that_somebody_began_to_write_before_the_start_allows_nothing() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let directory = site.path("policies");
    fs::create_dir(&directory).unwrap();
    let text = network_policy_to_json(&usual(&site)).unwrap().to_string();
    let mut writer = fs::File::create(directory.join("7.yaml")).unwrap();
    writeln!(writer, "- {text}").unwrap();
    thread::sleep(Duration::from_millis(200)); // as long as makes a file look finished
    let options = Options { listener: "reason_header: true".into(), ..Options::default() };
    let mut proxy = Proxy::watching(&site, upstream.address(), &options, &directory);
    let address = proxy.http();
    Peer::expect_reset_at(address, GET);
    assert!(proxy.process().output().contains("its endpoints deny"), "{}", proxy.process().output());
    drop(writer);
    until("it is read", || is_served(address).then_some(()));
}
