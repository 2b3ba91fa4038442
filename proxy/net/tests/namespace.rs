//! What needs privileges: marks and addresses that are not this host's. Each test runs itself again in a network
//! namespace of its own (in a user namespace too when not root), so that nothing outside is touched.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic, in their shared functions too")]

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use socket2::SockRef;
use tollgate_net::{
    Accepted, Capabilities, ListenOptions, Mark, UpstreamOptions, check_transparent, connect, is_own_address, listen,
};

/// Set in the child that runs inside the namespace.
const INSIDE: &str = "TOLLGATE_NET_TEST_INSIDE";

/// Whether the caller is inside already. If not, runs the test `name` inside, after `setup` (a shell script), and
/// fails when that fails.
fn inside_namespace(name: &str, setup: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    run_again(command.args(["sh", "-ec", &format!("{setup}\nexec \"$0\" \"$@\"")]), name);
    false
}

fn run_again(command: &mut Command, name: &str) {
    let output = command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("util-linux must be installed");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{name} in its namespace: {text}");
}

/// Loopback, and a route for the packets that carry an egress mark: they reach the "client" addresses through lo although
/// these are not addresses of the host. So a connection that completes proves that every packet was marked.
const ROUTES_BY_MARK: &str = "
    ip link set lo up
    ip rule add pref 9 fwmark 0xb00/0xf00 lookup 100
    ip -6 rule add pref 9 fwmark 0xb00/0xf00 lookup 100
    ip route add local 203.0.113.0/24 dev lo table 100
    ip -6 route add local 2001:db8::/64 dev lo table 100";

#[test]
fn upstream_connects_from_the_client_address_with_the_mark() {
    if !inside_namespace("upstream_connects_from_the_client_address_with_the_mark", ROUTES_BY_MARK) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (listening, client) in [("127.0.0.1:0", "203.0.113.7:4711"), ("[::1]:0", "[2001:db8::7]:4711")] {
            let listening: SocketAddr = listening.parse().unwrap();
            let client: SocketAddr = client.parse().unwrap();
            let options = ListenOptions { mark: Some(Mark::listener(false)), ..ListenOptions::default() };
            let listener = tokio::net::TcpListener::from_std(listen(listening, &options).unwrap()).unwrap();
            let destination = listener.local_addr().unwrap();
            let mark = Mark::upstream(false, 12001);
            let mut options = UpstreamOptions {
                transparent: true,
                mark: Some(mark),
                source: Some(client),
                ..UpstreamOptions::default()
            };

            let upstream = connect(destination, &options).await.unwrap();

            assert!(!upstream.source_port_changed);
            assert_eq!(SockRef::from(&upstream.stream).mark().unwrap(), 0x2EE1_0B00);
            let (stream, peer) = listener.accept().await.unwrap();
            let accepted = Accepted::new(stream, peer).unwrap();
            assert_eq!(accepted.downstream, client);
            assert_eq!(SockRef::from(&accepted.stream).mark().unwrap(), 0x0B00, "inherited from the listener");

            options.transparent = false;
            let text = connect(destination, &options).await.unwrap_err().to_string();
            assert!(text.contains("this host has no such address"), "{text}");
        }
    });
}

/// Only a connection from the client's own port ends with a reset, and only where that is asked for.
#[test]
fn the_clients_port_can_be_left_with_a_reset() {
    if !inside_namespace("the_clients_port_can_be_left_with_a_reset", ROUTES_BY_MARK) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = ListenOptions { mark: Some(Mark::listener(false)), ..ListenOptions::default() };
        let listening = listen("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let listener = tokio::net::TcpListener::from_std(listening).unwrap();
        let destination = listener.local_addr().unwrap();
        for (reset_on_close, port, expected) in [(true, 4711, true), (false, 4712, false), (true, 0, false)] {
            let source = Some(SocketAddr::new("203.0.113.7".parse().unwrap(), port));
            let mark = Some(Mark::upstream(false, 12001));
            let options = UpstreamOptions { transparent: true, mark, source, reset_on_close, unsent: None };
            let upstream = connect(destination, &options).await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            drop(upstream);
            let end = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
            assert_eq!(end.is_err(), expected, "{reset_on_close} {port}: {end:?}");
        }
    });
}

#[test]
fn own_addresses_are_told_from_those_of_others() {
    let setup = "ip link set lo up
        ip address add 203.0.113.1/32 dev lo
        ip address add 2001:db8::1/128 dev lo nodad
        ip link add one type veth peer name two
        ip link set one up
        ip link set two up
        ip address add 192.0.2.1/24 dev one
        ip address add 2001:db8:1::1/64 dev one nodad
        sysctl -qw net.ipv4.ip_nonlocal_bind=1";
    if !inside_namespace("own_addresses_are_told_from_those_of_others", setup) {
        return;
    }
    for own in ["127.0.0.1", "::1", "203.0.113.1", "::ffff:203.0.113.1", "2001:db8::1", "192.0.2.1", "2001:db8:1::1"] {
        assert!(is_own_address(own.parse().unwrap()), "{own}");
    }
    for other in ["192.0.2.2", "2001:db8:1::2", "198.51.100.1", "2001:db8:2::1"] {
        assert!(!is_own_address(other.parse().unwrap()), "{other}");
    }
}

#[test]
fn transparent_listeners_take_addresses_of_others() {
    if !inside_namespace("transparent_listeners_take_addresses_of_others", "ip link set lo up") {
        return;
    }
    let capabilities = Capabilities::probe();
    assert!(capabilities.transparent_v4.usable() && capabilities.transparent_v6.usable(), "{capabilities:?}");
    assert!(capabilities.mark.usable(), "{capabilities:?}");
    for address in ["198.51.100.1", "2001:db8::1"] {
        let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), 80);
        check_transparent("ingress", address).unwrap();
        let plain = ListenOptions::default();
        assert!(listen(address, &plain).unwrap_err().to_string().contains("this host has no such address"));

        let options = ListenOptions { transparent: true, mark: Some(Mark::listener(true)), ..plain };
        let listener = listen(address, &options).unwrap();

        assert_eq!(SockRef::from(&listener).mark().unwrap(), 0x0A00);
        assert_eq!(listener.local_addr().unwrap(), address);
    }
}

#[test]
fn missing_capabilities_are_refused_by_name() {
    let name = "missing_capabilities_are_refused_by_name";
    if std::env::var_os(INSIDE).is_none() {
        // Without capabilities even where the test runs as root.
        let mut command = Command::new("setpriv");
        if rustix::process::geteuid().is_root() {
            command.args(["--bounding-set=-all", "--inh-caps=-all"]);
        } else {
            command.arg("--no-new-privs");
        }
        run_again(&mut command, name);
        return;
    }
    let address = "127.0.0.1:0".parse().unwrap();
    let text = check_transparent("ingress", address).unwrap_err().to_string();
    for part in ["listener ingress", "IP_TRANSPARENT", "CAP_NET_ADMIN", "transparent: false"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let transparent = ListenOptions { transparent: true, ..ListenOptions::default() };
    let text = listen(address, &transparent).unwrap_err().to_string();
    assert!(text.contains("IP_TRANSPARENT") && text.contains("CAP_NET_ADMIN"), "{text}");
    let marked = ListenOptions { mark: Some(Mark::listener(true)), ..ListenOptions::default() };
    let text = listen(address, &marked).unwrap_err().to_string();
    assert!(text.contains("SO_MARK") && text.contains("CAP_NET_ADMIN"), "{text}");
}
