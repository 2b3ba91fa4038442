//! Sockets on loopback; no privileges needed.

#![expect(clippy::unwrap_used, reason = "tests may panic, in their shared functions too")]

use std::{
    io::{self, ErrorKind, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
};

use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tollgate_net::{
    AcceptError, Accepted, ListenOptions, NetError, UpstreamOptions, connect, listen, listen_unix, original_dst, reset,
};

fn any_port(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 0)
}

fn tokio_listener(listener: TcpListener) -> tokio::net::TcpListener {
    tokio::net::TcpListener::from_std(listener).unwrap()
}

#[tokio::test]
async fn accepts_with_the_addresses_and_options_of_a_downstream_connection() {
    for address in ["127.0.0.1", "::1"] {
        let listener = tokio_listener(listen(any_port(address), &ListenOptions::default()).unwrap());
        let listening = listener.local_addr().unwrap();
        let client = TcpStream::connect(listening).unwrap();
        let (stream, peer) = listener.accept().await.unwrap();

        let accepted = Accepted::new(stream, peer).unwrap();

        assert_eq!(accepted.original_dst, listening);
        assert_eq!(accepted.downstream, client.local_addr().unwrap());
        let socket = SockRef::from(&accepted.stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 300);
        assert_eq!(socket.tcp_keepalive_interval().unwrap().as_secs(), 300);
    }
}

#[test]
fn original_destinations_mapped_into_ipv6_come_back_as_ipv4() {
    // std's listener on [::] takes IPv4 too, and then shows mapped addresses.
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert!(accepted.local_addr().unwrap().is_ipv6());

    assert_eq!(original_dst(&accepted).unwrap(), SocketAddr::from(([127, 0, 0, 1], port)));
}

#[test]
fn families_are_separate_and_workers_can_share_a_port() {
    let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    let both = || {
        let v6 = listen(any_port("::"), &options).unwrap();
        let v4 = listen(SocketAddr::from(([0, 0, 0, 0], v6.local_addr().unwrap().port())), &options);
        v4.map(|v4| (v6, v4))
    };
    // What the kernel gives for one family others may have in the other.
    let (v6, v4) = (0..100).find_map(|_| both().ok()).unwrap_or_else(|| both().unwrap());
    assert!(SockRef::from(&v6).only_v6().unwrap());
    assert!(SockRef::from(&v6).nonblocking().unwrap());

    let second_worker = listen(v4.local_addr().unwrap(), &options).unwrap();

    assert_eq!(second_worker.local_addr().unwrap(), v4.local_addr().unwrap());
}

#[test]
fn an_address_in_use_is_told_with_the_address_and_the_remedy() {
    let first = listen(any_port("127.0.0.1"), &ListenOptions::default()).unwrap();
    let address = first.local_addr().unwrap();

    let text = listen(address, &ListenOptions::default()).unwrap_err().to_string();

    for part in ["Address already in use", &address.to_string(), "ss -ltnp"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[tokio::test]
async fn keeps_the_source_port_and_gives_it_up_only_when_it_is_taken() {
    for address in ["127.0.0.1", "::1"] {
        let listener = listen(any_port(address), &ListenOptions::default()).unwrap();
        let destination = listener.local_addr().unwrap();
        let free = TcpListener::bind(any_port(address)).unwrap().local_addr().unwrap();
        let options = UpstreamOptions { source: Some(free), ..UpstreamOptions::default() };

        let first = connect(destination, &options).await.unwrap();
        assert_eq!(first.stream.local_addr().unwrap(), free);
        assert!(!first.source_port_changed);
        assert!(first.stream.nodelay().unwrap());

        // The same four addresses: the kernel refuses at connect.
        let second = connect(destination, &options).await.unwrap();
        assert!(second.source_port_changed);
        assert_eq!(second.stream.local_addr().unwrap().ip(), free.ip());
        assert_ne!(second.stream.local_addr().unwrap().port(), free.port());

        // The port of a listener: the kernel refuses at bind.
        let taken = UpstreamOptions { source: Some(destination), ..UpstreamOptions::default() };
        let third = connect(destination, &taken).await.unwrap();
        assert!(third.source_port_changed);
    }
}

#[tokio::test]
async fn one_source_port_serves_several_upstreams() {
    let upstreams = [(); 2].map(|()| listen(any_port("127.0.0.1"), &ListenOptions::default()).unwrap());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = UpstreamOptions { source: Some(free), ..UpstreamOptions::default() };
    let mut connections = Vec::new();
    for upstream in &upstreams {
        connections.push(connect(upstream.local_addr().unwrap(), &options).await.unwrap());
    }
    assert!(connections.iter().all(|upstream| !upstream.source_port_changed));
}

#[tokio::test]
async fn a_failed_connect_names_both_ends() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = UpstreamOptions { source: Some(any_port("127.0.0.1")), ..UpstreamOptions::default() };
    let error = connect(closed, &options).await.unwrap_err();
    assert_eq!(error.io_error().unwrap().kind(), ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains(&format!("connect to {closed} from 127.0.0.1:0")), "{error}");

    let options = UpstreamOptions { source: Some(any_port("::1")), ..UpstreamOptions::default() };
    let error = connect(closed, &options).await.unwrap_err();
    assert!(matches!(error, NetError::FamilyMismatch { .. }), "{error}");
}

#[tokio::test]
async fn reset_reaches_the_peer_as_a_reset() {
    let listener = tokio_listener(listen(any_port("127.0.0.1"), &ListenOptions::default()).unwrap());
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();

    reset(accepted);

    assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn accept_errors_are_sorted_by_what_the_loop_must_do() {
    let table = [
        (libc::ECONNABORTED, AcceptError::PerConnection),
        (libc::EHOSTUNREACH, AcceptError::PerConnection),
        (libc::EPERM, AcceptError::PerConnection),
        (libc::EAGAIN, AcceptError::PerConnection),
        (libc::EMFILE, AcceptError::Exhausted),
        (libc::ENFILE, AcceptError::Exhausted),
        (libc::ENOBUFS, AcceptError::Exhausted),
        (libc::ENOMEM, AcceptError::Exhausted),
        (libc::EBADF, AcceptError::Fatal),
        (libc::EINVAL, AcceptError::Fatal),
        // Not known: must neither spin nor end the listener.
        (libc::EUCLEAN, AcceptError::Exhausted),
    ];
    for (errno, expected) in table {
        assert_eq!(AcceptError::classify(&io::Error::from_raw_os_error(errno)), expected, "errno {errno}");
    }
}

#[test]
fn unix_sockets_replace_only_what_nobody_answers_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/admin.sock");

    let first = listen_unix(&path, 0o660).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    UnixStream::connect(&path).unwrap();
    let text = listen_unix(&path, 0o660).unwrap_err().to_string();
    assert!(text.contains("Address already in use") && text.contains(path.to_str().unwrap()), "{text}");
    UnixStream::connect(&path).unwrap();

    drop(first); // leaves the file behind, as a killed process does
    let second = listen_unix(&path, 0o600).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = UnixStream::connect(&path).unwrap();
    drop(second.accept().unwrap());
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn unix_sockets_leave_other_files_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("precious");
    std::fs::write(&file, "content").unwrap();
    let text = listen_unix(&file, 0o600).unwrap_err().to_string();
    assert!(text.contains(file.to_str().unwrap()) && text.contains("no socket"), "{text}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "content");

    let text = listen_unix(&file.join("admin.sock"), 0o600).unwrap_err().to_string();
    assert!(text.contains("create the directory"), "{text}");
    let long = directory.path().join("x".repeat(120));
    assert!(listen_unix(&long, 0o600).unwrap_err().to_string().contains("107 bytes"));
    assert!(!Path::new(&long).exists());
}
