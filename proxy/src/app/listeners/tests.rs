mod access_logs;
mod limits;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::sync::{mpsc, watch};
use tollgate_policy::{NetworkPolicy, Snapshot};
use tollgate_proto::cilium;

use super::*;
use crate::app::workers::{self, Phase, Role, Seed};
use crate::config::Upstream;
use crate::control::WorldStore;
use crate::control::listeners::{Report, Reported};
use crate::flow;
use crate::identity::{IdentityTable, Sources};
use crate::readiness::Readiness;
use crate::worker::ConnectionSlots;

/// Far longer than anything takes.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longer than a test runs.
const LONG: Duration = Duration::from_secs(600);

/// Two workers that admit every connection to 127.0.0.1, and their listeners.
struct World {
    listeners: Listeners,
    _phase: watch::Sender<Phase>,
    readiness: Readiness,
    _records: flow::FlowConsumer,
}

fn world(drain_timeout: Duration) -> World {
    world_with(drain_timeout, cilium::PortNetworkPolicy::default())
}

/// The same with what else is admitted.
fn world_with(drain_timeout: Duration, entry: cilium::PortNetworkPolicy) -> World {
    const WORKERS: usize = 2;
    let (metrics, counters) = Metrics::new(WORKERS);
    let (senders, records) = flow::channel(counters, 64);
    let store = Arc::new(WorldStore::new(Sources::of_table(IdentityTable::default())));
    let policy = cilium::NetworkPolicy {
        endpoint_ips: vec!["127.0.0.1".into()],
        endpoint_id: 1,
        ingress_per_port_policies: vec![entry],
        ..cilium::NetworkPolicy::default()
    };
    let mut builder = Snapshot::empty().update();
    builder.replace_all([NetworkPolicy::try_from(&policy).unwrap()]);
    store.publish_policy(builder.build(), None);
    let (phase, readiness) = (watch::Sender::new(Phase::Serve), Readiness::default());
    let (ended, _) = mpsc::channel(1);
    let (commands, received): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| mpsc::channel(4)).unzip();
    for (index, (flows, commands)) in senders.into_iter().zip(received).enumerate() {
        let seed = Seed {
            fairness: true,
            quota: None,
            role: Role::Worker(index, None),
            crossing: None,
            world: Arc::clone(&store),
            flows,
            slots: ConnectionSlots::new(100),
            limits: config::Limits::default(),
            commands,
            phase: phase.subscribe(),
            memory: watch::Sender::new(()).subscribe(),
            starting: readiness.pending("workers"),
            ended: ended.clone(),
        };
        workers::start(seed).unwrap();
    }
    let listeners = Listeners::new(commands, 0, Arc::new(metrics), records.access_logs(), drain_timeout);
    World { listeners, _phase: phase, readiness, _records: records }
}

/// Greets each connection with `greeting`, and keeps it open until the client ends it.
fn upstream(greeting: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                stream.write_all(greeting).unwrap();
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            });
        }
    });
    address
}

/// A listener on a port of 127.0.0.1 that nobody else is given, in this process or another: a socket that does not listen holds
/// it for as long as the process runs, and lets in only who names the port and wants to share it (`SO_REUSEADDR`), as listeners do.
fn listener(name: &str, upstream: SocketAddr) -> config::Listener {
    static HELD: Mutex<Vec<Socket>> = Mutex::new(Vec::new());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let free = socket.local_addr().unwrap().as_socket().unwrap();
    HELD.lock().unwrap().push(socket);
    config::Listener {
        name: name.to_owned(),
        address: free,
        upstream: Upstream::Fixed(upstream),
        ..config::Listener::new(Direction::Ingress, false)
    }
}

/// Sockets of an address that each of two workers accepts on by itself.
const OWN_QUEUES: usize = 2 * 16;

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn read(stream: &mut TcpStream) -> u8 {
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    byte[0]
}

/// A connection through the proxy still carries bytes.
fn echoes(stream: &mut TcpStream) -> bool {
    stream.write_all(b"e").is_ok() && read(stream) == b'e'
}

/// Inodes of the sockets that listen on `address`. The kernel may show one twice: it writes the table in pieces, and looks for
/// its place again when others have opened sockets in between.
fn inodes(address: SocketAddr) -> Vec<String> {
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = fields.filter(|fields| fields[1].ends_with(&port) && fields[3] == "0A");
    let mut inodes: Vec<_> = listening.map(|fields| fields[9].to_owned()).collect();
    inodes.sort();
    inodes.dedup();
    inodes
}

#[tokio::test]
async fn a_listener_is_in_service_when_the_change_returns() {
    let world = world(LONG);
    let upstream = upstream(b"a");
    let own = listener("own", upstream);
    let one = config::Listener { reuse_port: false, ..listener("one", upstream) };
    assert_eq!(world.listeners.serve(&[own.clone(), one.clone()]).await, []);
    assert_eq!((inodes(own.address).len(), inodes(one.address).len()), (OWN_QUEUES, 1));
    for address in [own.address, one.address] {
        for _ in 0..8 {
            assert_eq!(read(&mut connect(address)), b'a');
        }
    }
    let shown = world.listeners.bound();
    assert_eq!(shown.iter().map(|listener| &*listener.name).collect::<Vec<_>>(), ["own", "one"]);
}

#[tokio::test]
async fn the_same_again_is_not_touched_and_other_settings_keep_the_sockets() {
    let world = world(LONG);
    let (a, b) = (upstream(b"a"), upstream(b"b"));
    let before = listener("l", a);
    assert_eq!(world.listeners.serve(std::slice::from_ref(&before)).await, []);
    let sockets = inodes(before.address);
    let mut open = connect(before.address);
    assert_eq!(read(&mut open), b'a');

    assert_eq!(world.listeners.serve(std::slice::from_ref(&before)).await, []);
    assert!(inodes(before.address) == sockets && echoes(&mut open));

    let after = config::Listener { upstream: Upstream::Fixed(b), ..before.clone() };
    assert_eq!(world.listeners.serve(&[after]).await, []);
    assert_eq!(read(&mut connect(before.address)), b'b', "new connections get the new settings");
    assert!(inodes(before.address) == sockets && echoes(&mut open));
}

#[tokio::test]
async fn addresses_come_and_go_one_by_one() {
    let world = world(LONG);
    let upstream = upstream(b"a");
    let (first, second) = (listener("l", upstream), listener("l", upstream));
    let both = config::Listener { additional_addresses: vec![second.address], ..first.clone() };
    assert_eq!(world.listeners.serve(std::slice::from_ref(&first)).await, []);
    let sockets = inodes(first.address);
    assert_eq!(world.listeners.serve(&[both]).await, []);
    assert_eq!(inodes(first.address), sockets);
    assert_eq!(read(&mut connect(second.address)), b'a');
    let mut open = connect(first.address);
    assert_eq!(read(&mut open), b'a');
    assert_eq!(world.listeners.serve(std::slice::from_ref(&second)).await, []);
    assert!(TcpStream::connect(first.address).is_err());
    assert_eq!(read(&mut connect(second.address)), b'a');
    assert!(echoes(&mut open), "a connection outlives the address that it came by");
}

#[tokio::test]
async fn a_removed_listener_accepts_nothing_and_resets_what_does_not_end() {
    let world = world(Duration::from_millis(300));
    let listener = listener("l", upstream(b"a"));
    assert_eq!(world.listeners.serve(std::slice::from_ref(&listener)).await, []);
    let mut open = connect(listener.address);
    assert_eq!(read(&mut open), b'a');
    assert_eq!(world.listeners.serve(&[]).await, []);
    assert!(TcpStream::connect(listener.address).is_err());
    assert!(world.listeners.bound().is_empty());
    let end = open.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_address_in_use_fails_that_listener_alone_and_keeps_its_last_good_form() {
    let world = world(LONG);
    let upstream = upstream(b"a");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (good, other) = (listener("good", upstream), listener("other", upstream));
    assert_eq!(world.listeners.serve(std::slice::from_ref(&good)).await, []);
    let moved = config::Listener { address: taken.local_addr().unwrap(), ..good.clone() };
    let unserved = world.listeners.serve(&[moved.clone(), other.clone()]).await;
    let [Unserved { name, reason, .. }] = &unserved[..] else { panic!("{unserved:?}") };
    assert_eq!(name, "good");
    assert!(reason.contains("Address already in use"), "{reason}");
    assert!(reason.contains(&moved.address.to_string()), "{reason}");
    for address in [good.address, other.address] {
        assert_eq!(read(&mut connect(address)), b'a');
    }
}

#[tokio::test]
async fn what_a_socket_is_opened_with_can_change() {
    let world = world(LONG);
    let one = config::Listener { reuse_port: false, ..listener("l", upstream(b"a")) };
    let each = config::Listener { reuse_port: true, ..one.clone() };
    for (listener, sockets) in [(&one, 1), (&each, OWN_QUEUES), (&one, 1)] {
        assert_eq!(world.listeners.serve(std::slice::from_ref(listener)).await, []);
        assert_eq!(inodes(one.address).len(), sockets);
        assert_eq!(read(&mut connect(one.address)), b'a');
    }
}

#[tokio::test]
async fn the_configuration_keeps_its_names_and_listeners() {
    let world = world(LONG);
    let upstream = upstream(b"a");
    let configured = listener("l", upstream);
    world.listeners.open_configured(&configured).unwrap();
    let unserved = world.listeners.serve(&[listener("l", upstream)]).await;
    assert!(unserved[0].reason.contains("the configuration has a listener of that name"), "{unserved:?}");
    assert_eq!(world.listeners.serve(&[]).await, []);
    assert_eq!(read(&mut connect(configured.address)), b'a');
}

#[tokio::test]
async fn an_address_of_another_listener_is_refused_however_it_is_written() {
    let world = world(LONG);
    let (a, b) = (upstream(b"a"), upstream(b"b"));
    let (configured, one) = (listener("configured", a), listener("one", a));
    world.listeners.open_configured(&configured).unwrap();
    assert_eq!(world.listeners.serve(std::slice::from_ref(&one)).await, []);
    for (held, owner) in [(configured.address, "configured"), (one.address, "one")] {
        let everywhere = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), held.port());
        for address in [held, everywhere] {
            let egress = config::Listener {
                name: "two".into(),
                address,
                upstream: Upstream::Fixed(b),
                ..config::Listener::new(Direction::Egress, false)
            };
            let also = config::Listener { additional_addresses: vec![address], ..listener("two", b) };
            let other = listener("other", a);
            for two in [egress, also] {
                let unserved = world.listeners.serve(&[one.clone(), two, other.clone()]).await;
                let [Unserved { name, reason, .. }] = &unserved[..] else { panic!("{address}: {unserved:?}") };
                assert_eq!(name, "two");
                for part in ["Address already in use", &address.to_string(), &format!("listener {owner}")] {
                    assert!(reason.contains(part), "no {part}: {reason}");
                }
                assert_eq!((inodes(held).len(), read(&mut connect(other.address))), (OWN_QUEUES, b'a'));
            }
        }
        for _ in 0..16 {
            assert_eq!(read(&mut connect(held)), b'a', "every connection gets the listener that was there first");
        }
    }
}

#[tokio::test]
async fn of_two_new_listeners_with_one_address_one_is_served() {
    let world = world(LONG);
    let one = listener("one", upstream(b"a"));
    let two = config::Listener { name: "two".into(), upstream: Upstream::Fixed(upstream(b"b")), ..one.clone() };
    let unserved = world.listeners.serve(&[one.clone(), two.clone()]).await;
    assert!(unserved.len() == 1 && unserved[0].name == "two", "{unserved:?}");
    assert!(unserved[0].reason.contains("listener one"), "{unserved:?}");
    for _ in 0..16 {
        assert_eq!(read(&mut connect(one.address)), b'a');
    }
    assert_eq!(world.listeners.serve(std::slice::from_ref(&two)).await, [], "it is free when the first is gone");
    assert_eq!(read(&mut connect(one.address)), b'b');
}

#[tokio::test]
async fn addresses_change_hands_within_one_update() {
    for reuse_port in [true, false] {
        let world = world(LONG);
        let (a, b) = (upstream(b"a"), upstream(b"b"));
        let one = config::Listener { reuse_port, ..listener("one", a) };
        let two = config::Listener { reuse_port, ..listener("two", b) };
        assert_eq!(world.listeners.serve(&[one.clone(), two.clone()]).await, []);
        let mut open = connect(one.address);
        assert_eq!(read(&mut open), b'a');
        let swapped = [
            config::Listener { address: two.address, ..one.clone() },
            config::Listener { address: one.address, direction: Direction::Egress, ..two.clone() },
        ];
        assert_eq!(world.listeners.serve(&swapped).await, []);
        for _ in 0..8 {
            assert_eq!((read(&mut connect(two.address)), inodes(one.address).len()), (b'a', inodes(two.address).len()));
        }
        assert!(echoes(&mut open));
        let everywhere = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), two.address.port());
        let wider = config::Listener { address: everywhere, ..one.clone() };
        assert_eq!(world.listeners.serve(&[wider]).await, [], "to all addresses of the same port");
        assert_eq!(read(&mut connect(two.address)), b'a');
    }
}

#[tokio::test]
async fn an_address_given_up_for_another_listener_is_taken_back_with_the_next_update() {
    let world = world(LONG);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = listener("one", upstream(b"a"));
    assert_eq!(world.listeners.serve(std::slice::from_ref(&one)).await, []);
    let moved = config::Listener { address: taken.local_addr().unwrap(), ..one.clone() };
    let two = config::Listener { name: "two".into(), upstream: Upstream::Fixed(upstream(b"b")), ..one.clone() };
    let unserved = world.listeners.serve(&[moved, two]).await;
    assert!(unserved.len() == 1 && unserved[0].name == "one", "{unserved:?}");
    assert_eq!(read(&mut connect(one.address)), b'b');
    assert_eq!(world.listeners.serve(std::slice::from_ref(&one)).await, []);
    assert_eq!(read(&mut connect(one.address)), b'a');
}

/// Other socket options (here by direction, or by who shares the port), and an address that is taken.
#[tokio::test]
async fn a_listener_that_cannot_have_other_sockets_is_served_as_it_was() {
    let world = world(LONG);
    let upstream = upstream(b"a");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let before = listener("l", upstream);
    assert_eq!(world.listeners.serve(std::slice::from_ref(&before)).await, []);
    let sockets = inodes(before.address);
    let other = config::Listener {
        additional_addresses: vec![taken.local_addr().unwrap()],
        direction: Direction::Egress,
        ..before.clone()
    };
    for (reuse_port, untouched) in [(true, true), (false, false)] {
        let [unserved] = &world.listeners.serve(&[config::Listener { reuse_port, ..other.clone() }]).await[..] else {
            panic!("the address is taken");
        };
        assert!(unserved.reason.contains("Address already in use"), "{unserved:?}");
        assert_eq!(read(&mut connect(before.address)), b'a', "reuse_port: {reuse_port}");
        assert_eq!(world.listeners.named("l").unwrap().config, before);
        assert_eq!(inodes(before.address) == sockets, untouched);
    }
    drop(taken);
    assert_eq!(world.listeners.serve(std::slice::from_ref(&other)).await, []);
    assert_eq!(world.listeners.named("l").unwrap().config, other);
    let all: Vec<_> = inodes(before.address);
    assert!(all.iter().all(|socket| !sockets.contains(socket)), "the old sockets are closed");
}

#[tokio::test]
async fn a_listener_that_is_lost_is_tried_again_until_something_else_is_asked_for() {
    let world = world(LONG);
    let listeners = Arc::new(world.listeners);
    let config = listener("l", upstream(b"a"));
    let taken = TcpListener::bind(config.address).unwrap();
    let readiness = Readiness::default();
    let report = Report::new(readiness.clone());
    let trying = tokio::spawn(Arc::clone(&listeners).retry_lost(report.clone()));
    let unserved = Unserved { name: "l".into(), reason: "refused; nor as before".into(), as_before: false };
    report.replace(Reported { unserved: [("l".into(), unserved)].into(), ..Reported::default() });
    assert!(!readiness.is_ready());
    let lost = || Lost { config: config.clone(), refused: "refused".into() };
    listeners.lose(lost());
    // Asked for something else, it is forgotten.
    assert_eq!(listeners.serve(&[]).await, []);
    assert!(listeners.lost().is_empty());
    listeners.lose(lost());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(listeners.named("l").is_none() && !trying.is_finished());
    drop(taken);
    let served = async {
        while !report.read().unserved["l"].as_before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, served).await.expect("it is served again, and that is said");
    assert_eq!((readiness.is_ready(), &*report.read().unserved["l"].reason), (true, "refused"));
    assert_eq!(read(&mut connect(config.address)), b'a');
    assert!(listeners.lost().is_empty());
}

/// The one defect of a worker that can be had from outside: a socket that its runtime does not take.
#[tokio::test]
async fn a_worker_that_panics_leaves_the_others_and_a_process_that_is_not_ready() {
    let world = world(LONG);
    let ready = || world.readiness.waiting_for();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = listener("broken", socket.local_addr().unwrap());
    let (done, _) = mpsc::channel(1);
    let open = vec![vec![(config.address, vec![socket])], Vec::new()];
    let commands = world.listeners.commands(&config, &world.listeners.access_log(&config), open, &[], &done);
    world.listeners.send(commands).await;
    let unready = async {
        while !ready().iter().any(|what| what.contains("worker-0 (it has ended")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // Where panics are printed with their stacks, one after the other, this may take a while.
    tokio::time::timeout(4 * DEADLINE, unready).await.expect("it is said");
    let other = listener("other", upstream(b"a"));
    assert_eq!(world.listeners.serve(std::slice::from_ref(&other)).await, []);
    assert_eq!(read(&mut connect(other.address)), b'a', "the other worker serves");
    assert_eq!(ready().len(), 1);
}
