//! Accept queues by source address, asked of the kernel. In a network namespace of its own, for the IPv6 addresses.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic, in their shared functions too")]

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use socket2::{Domain, Socket, Type};
use tollgate_net::{ListenOptions, Shards, listen, shard_by_source};

const INSIDE: &str = "TOLLGATE_NET_TEST_INSIDE";

/// Connections from each source.
const EACH: usize = 40;

fn connect_from(source: IpAddr, destination: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(destination), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    socket.connect(&destination.into()).unwrap();
    socket.into()
}

fn group(address: &str, shape: Shards) -> (SocketAddr, Vec<TcpListener>) {
    let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    let first = listen(address.parse().unwrap(), &options).unwrap();
    let address = first.local_addr().unwrap();
    shard_by_source(&first, address, shape).unwrap();
    let mut sockets = vec![first];
    sockets.extend((1..shape.sockets()).map(|_| listen(address, &options).unwrap()));
    (address, sockets)
}

/// The sockets that each source's connections came to.
fn queues(sockets: &[TcpListener]) -> HashMap<IpAddr, Vec<usize>> {
    let mut queues: HashMap<IpAddr, Vec<usize>> = HashMap::new();
    for (index, socket) in sockets.iter().enumerate() {
        loop {
            match socket.accept() {
                Ok((_, peer)) => queues.entry(peer.ip()).or_default().push(index),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("accept: {error}"),
            }
        }
    }
    queues
}

fn sources(ipv6: bool) -> Vec<IpAddr> {
    let text = |n| if ipv6 { format!("2001:db8::{n:x}") } else { format!("127.0.0.{n}") };
    (1..=16).map(|n| text(n).parse().unwrap()).collect()
}

/// True in the namespace, where the test goes on; outside, runs the test `name` there.
fn inside_namespace(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let setup = "ip link set lo up\nfor n in 1 2 3 4 5 6 7 8 9 a b c d e f 10; do ip -6 address add 2001:db8::$n/128 dev lo nodad; done";
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["sh", "-ec", &format!("{setup}\nexec \"$0\" \"$@\"")]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let output = command.output().expect("util-linux must be installed");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{name} in its namespace: {text}");
    false
}

#[test]
fn connections_of_a_source_wait_in_one_shard() {
    if !inside_namespace("connections_of_a_source_wait_in_one_shard") {
        return;
    }
    for (listening, ipv6) in [("127.0.0.1:0", false), ("[2001:db8::1]:0", true)] {
        for workers in [1, 3] {
            let shape = Shards { shards: 8, workers };
            let (address, sockets) = group(listening, shape);
            let open: Vec<_> = sources(ipv6)
                .into_iter()
                .flat_map(|source| (0..EACH).map(move |_| connect_from(source, address)))
                .collect();

            let queues = queues(&sockets);

            assert_eq!(open.len(), queues.values().map(Vec::len).sum::<usize>(), "every connection is accepted");
            let mut shards = HashSet::new();
            let mut used = HashSet::new();
            for (source, sockets) in &queues {
                let its: HashSet<_> = sockets.iter().map(|socket| socket / usize::from(workers)).collect();
                assert_eq!(its.len(), 1, "{source} came to the shards {its:?} ({workers} workers)");
                shards.extend(its);
                used.extend(sockets.iter().copied());
            }
            assert_eq!(shards.len(), 8, "neighbouring sources are spread over all shards");
            assert_eq!(used.len(), shape.sockets(), "each worker has connections of each shard");
        }
    }
}

#[test]
fn a_full_queue_is_its_sources_alone() {
    if !inside_namespace("a_full_queue_is_its_sources_alone") {
        return;
    }
    let options = ListenOptions { reuse_port: true, backlog: 4, ..ListenOptions::default() };
    let first = listen("127.0.0.1:0".parse().unwrap(), &options).unwrap();
    let address = first.local_addr().unwrap();
    let shape = Shards { shards: 8, workers: 1 };
    shard_by_source(&first, address, shape).unwrap();
    let mut sockets = vec![first];
    sockets.extend((1..shape.sockets()).map(|_| listen(address, &options).unwrap()));
    // Nobody accepts; more connections than one queue holds, and without waiting for them.
    let flood: Vec<_> = (0..64)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            socket.bind(&"127.0.0.2:0".parse::<SocketAddr>().unwrap().into()).unwrap();
            let _ = socket.connect(&address.into());
            socket
        })
        .collect();

    let neighbour = connect_from("127.0.0.3".parse().unwrap(), address);

    let queues = queues(&sockets);
    let flooded = queues["127.0.0.2".parse::<IpAddr>().as_ref().unwrap()].len();
    assert!(flooded < flood.len(), "the flood overflows its queue: {flooded} connections fit");
    assert_eq!(queues[&neighbour.local_addr().unwrap().ip()].len(), 1);
}
