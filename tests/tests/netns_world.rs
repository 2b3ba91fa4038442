//! The namespace world and the redirect rules: pods reach each other, and steered connections arrive at a transparent
//! listener with both of their addresses.

#![expect(clippy::unwrap_used, reason = "tests may panic, in their shared functions too")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use tollgate::demo::{
    namespaces::private_command,
    world::{World, WorldError},
};
use tollgate_net::{Accepted, ListenOptions, Mark, UpstreamOptions, connect, listen};
use tollgate_tests::netns::inside;

/// The port that is steered.
const PORT: u16 = 5000;
/// The port of Tollgate's listener on the node.
const LISTENER_PORT: u16 = 15001;

fn addresses(world: &World, pod: &str) -> [IpAddr; 2] {
    let pod = world.pod(pod).unwrap();
    [pod.address_v4().into(), pod.address_v6().into()]
}

/// A server in `helloworld`.
fn serve(world: &World, address: SocketAddr) -> TcpListener {
    let listener = world.run_in("helloworld", || TcpListener::bind(address).unwrap()).unwrap();
    accept_within_bound(&listener);
    listener
}

/// Makes `accept` wait, but not for ever.
fn accept_within_bound(listener: &TcpListener) {
    listener.set_nonblocking(false).unwrap();
    let bound = Some(Duration::from_secs(10));
    SockRef::from(listener).set_read_timeout(bound).unwrap();
}

fn dial(world: &World, pod: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    world.run_in(pod, || TcpStream::connect_timeout(&to, Duration::from_secs(2))).unwrap()
}

#[test]
fn pods_reach_each_other_from_their_own_addresses() {
    if !inside("pods_reach_each_other_from_their_own_addresses") {
        return;
    }
    let world = World::new().unwrap();
    for client in ["sleep", "other"] {
        for (client_ip, server_ip) in addresses(&world, client).into_iter().zip(addresses(&world, "helloworld")) {
            let to = SocketAddr::new(server_ip, PORT);
            let server = serve(&world, to);
            let stream = dial(&world, client, to).unwrap();
            let (_, peer) = server.accept().unwrap();
            assert_eq!(peer, stream.local_addr().unwrap());
            assert_eq!(peer.ip(), client_ip);
        }
    }
    let output = world.command_in("sleep", "ip").args(["-o", "address", "show", "dev", "eth0"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&world.pod("sleep").unwrap().address_v4().to_string()), "{text}");
    assert!(matches!(world.pod("nobody"), Err(WorldError::NoSuchPod { .. })));
}

#[test]
fn a_world_can_be_built_again() {
    if !inside("a_world_can_be_built_again") {
        return;
    }
    let first = World::new().unwrap();
    first.redirect_up(&[PORT], LISTENER_PORT).unwrap();
    drop(first);
    let second = World::new().unwrap();
    let text = second.redirect(&["status"]).unwrap_err().to_string();
    assert!(text.contains("exit status: 1"), "nothing is installed: {text}");
}

#[test]
fn redirect_can_be_repeated_and_undone() {
    if !inside("redirect_can_be_repeated_and_undone") {
        return;
    }
    let world = World::new().unwrap();
    for _ in 0..2 {
        world.redirect_up(&[PORT, 80], LISTENER_PORT).unwrap();
        let status = world.redirect(&["status"]).unwrap();
        assert!(status.contains("elements = { 80, 5000 }") && !status.contains("MISSING"), "{status}");
    }
    let rules = |family| {
        let output = world.command("ip").args([family, "rule", "show", "pref", "9"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for family in ["-4", "-6"] {
        assert_eq!(rules(family).lines().count(), 1, "{}", rules(family));
        assert!(rules(family).contains("fwmark 0x200/0xf00 lookup 2004"), "{}", rules(family));
    }
    for _ in 0..2 {
        world.redirect_down().unwrap();
        assert_eq!(rules("-4") + &rules("-6"), "");
    }
    let refused = [
        (["up", "--port", "70000"], "a port is 1 to 65535"),
        (["up", "--port", "80x"], "not a port"),
        (["up", "--colour", "red"], "unknown option --colour"),
    ];
    for (arguments, expected) in refused {
        let text = world.redirect(&arguments).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

/// Connections to the agent's rules stay: `down` removes only what `up` installed.
#[test]
fn redirect_leaves_the_rules_of_others_alone() {
    if !inside("redirect_leaves_the_rules_of_others_alone") {
        return;
    }
    let world = World::new().unwrap();
    let ip = |arguments: &str| {
        let output = world.command("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    ip("rule add pref 9 fwmark 0x200/0xf00 lookup 2004");
    ip("route add local default dev lo table 2004");

    world.redirect_up(&[PORT], LISTENER_PORT).unwrap();
    world.redirect_down().unwrap();

    assert_eq!(ip("rule show pref 9").lines().count(), 1);
    assert!(ip("route show table 2004").contains("default dev lo"));
    assert_eq!(ip("-6 rule show pref 9"), "");
}

/// The whole way: client → TPROXY → listener → upstream socket with the client's own address → server, and back.
#[test]
fn steered_connections_keep_both_addresses() {
    if !inside("steered_connections_keep_both_addresses") {
        return;
    }
    let world = World::new().unwrap();
    world.redirect_up(&[PORT], LISTENER_PORT).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (loopback, server_ip) in ["127.0.0.1", "::1"].into_iter().zip(addresses(&world, "helloworld")) {
        let options =
            ListenOptions { transparent: true, mark: Some(Mark::listener(false)), ..ListenOptions::default() };
        let listening = SocketAddr::new(loopback.parse().unwrap(), LISTENER_PORT);
        let listener = listen(listening, &options).unwrap();
        accept_within_bound(&listener);
        let to = SocketAddr::new(server_ip, PORT);
        let server = serve(&world, to);

        // Twice: the second connection comes from the port of the first, which is still in TIME_WAIT on the node.
        let mut client = dial(&world, "sleep", to).unwrap();
        for _ in 0..2 {
            let from = client.local_addr().unwrap();
            runtime.block_on(relay_hello(&listener, &server, &mut client, from, to));
            drop(client);
            client = world.run_in("sleep", || dial_from(from, to)).unwrap();
        }

        let other_port = SocketAddr::new(server_ip, PORT + 1);
        let direct = serve(&world, other_port);
        dial(&world, "sleep", other_port).unwrap();
        direct.accept().unwrap();
    }
}

/// Takes one steered connection, connects on to the server from the client's address, and moves `hello` both ways.
async fn relay_hello(
    listener: &TcpListener,
    server: &TcpListener,
    client: &mut TcpStream,
    from: SocketAddr,
    to: SocketAddr,
) {
    let (stream, peer) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let accepted = Accepted::new(tokio::net::TcpStream::from_std(stream).unwrap(), peer).unwrap();
    assert_eq!((accepted.downstream, accepted.original_dst), (from, to));

    let source = Some(accepted.downstream);
    let options = UpstreamOptions {
        transparent: true,
        mark: Some(Mark::upstream(false, 12001)),
        source,
        ..UpstreamOptions::default()
    };
    let upstream = connect(accepted.original_dst, &options).await.unwrap();
    let (mut at_server, seen) = server.accept().unwrap();
    assert_eq!(seen.ip(), from.ip(), "the server sees the client's address");

    let mut downstream = accepted.stream.into_std().unwrap();
    let mut upstream = upstream.stream.into_std().unwrap();
    for stream in [&downstream, &upstream, &at_server, client] {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    client.write_all(b"hello").unwrap();
    move_hello(&mut downstream, &mut upstream);
    let mut at_server_out = at_server.try_clone().unwrap();
    move_hello(&mut at_server, &mut at_server_out);
    move_hello(&mut upstream, &mut downstream);
    let mut text = [0; 5];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    // The node closes first, so that TIME_WAIT is the node's.
    drop(downstream);
    assert_eq!(client.read(&mut text).unwrap(), 0);
}

fn move_hello(from: &mut TcpStream, to: &mut TcpStream) {
    let mut text = [0; 5];
    from.read_exact(&mut text).unwrap();
    to.write_all(&text).unwrap();
}

/// Connects from a port that was used a moment ago.
fn dial_from(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).unwrap();
    socket.into()
}

/// The kernel drops steered packets without a word when marks take part in its strict reverse-path check.
#[test]
fn redirect_refuses_settings_that_drop_steered_packets() {
    if !inside("redirect_refuses_settings_that_drop_steered_packets") {
        return;
    }
    let world = World::new().unwrap();
    let set = |name: &str| {
        let mut command = world.command("sysctl");
        assert!(command.args(["-qw", name]).status().unwrap().success(), "{name}");
    };
    set("net.ipv4.conf.all.rp_filter=1");
    world.redirect_up(&[PORT], LISTENER_PORT).unwrap();
    set("net.ipv4.conf.all.src_valid_mark=1");
    let text = world.redirect_up(&[PORT], LISTENER_PORT).unwrap_err().to_string();
    assert!(text.contains("src_valid_mark=1 with rp_filter=1"), "{text}");
    set("net.ipv4.conf.all.rp_filter=2");
    world.redirect_up(&[PORT], LISTENER_PORT).unwrap();
}

/// Nothing listens where the rules steer to: a connection must not reach the server around the proxy.
#[test]
fn without_a_listener_nothing_gets_through() {
    if !inside("without_a_listener_nothing_gets_through") {
        return;
    }
    let world = World::new().unwrap();
    world.redirect_up(&[PORT], LISTENER_PORT).unwrap();
    for server_ip in addresses(&world, "helloworld") {
        let to = SocketAddr::new(server_ip, PORT);
        let server = serve(&world, to);
        server.set_nonblocking(true).unwrap();
        assert_eq!(dial(&world, "sleep", to).unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// Started by the test below, as a process of its own: enters private namespaces and stays there.
#[test]
#[ignore = "never ends on its own; it is a part of another test"]
fn stays_inside() {
    let status = private_command("sleep").unwrap().arg("1000").status();
    unreachable!("sleep was not killed: {status:?}");
}

#[test]
fn everything_inside_dies_with_the_outer_process() {
    let mut outer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stays_inside", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Processes inside hold the pipe too: it ends when the last of them has ended.
    let mut pipe = outer.stdout.take().unwrap();
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(std::io::copy(&mut pipe, &mut std::io::sink())));
    let sleeps = || inside_of(outer.id()).iter().any(|name| name == "sleep");
    let found = (0..1000).any(|_| sleeps() || ended.recv_timeout(Duration::from_millis(10)).is_ok());
    assert!(found && sleeps(), "the inner process did not start");

    outer.kill().unwrap();
    outer.wait().unwrap();

    ended.recv_timeout(Duration::from_secs(30)).expect("a process inside outlived the outer one").unwrap();
}

/// The names of all descendants of the process `pid`.
fn inside_of(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> =
        children.flat_map(|text| text.split(' ').flat_map(str::parse).collect::<Vec<_>>()).collect();
    let mut names = Vec::new();
    for child in children {
        names.extend(std::fs::read_to_string(format!("/proc/{child}/comm")).map(|name| name.trim().to_owned()));
        names.extend(inside_of(child));
    }
    names
}
