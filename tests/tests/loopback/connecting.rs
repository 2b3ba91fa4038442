//! Requests whose upstream is being connected, for their first try or another: whoever has gone or is denied by then does not wait.

use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};
use tollgate::reason::Reason;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::next_request;
use tollgate_tests::wait::{DEADLINE, until};

use super::tenants::tenant;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";

/// An upstream that answers the first few connections with 503, and whose queue is full from then on: connecting to it ends only with
/// the time for it, which no test here waits for.
struct Full {
    listener: TcpListener,
    filled: Receiver<Vec<Socket>>,
}

impl Full {
    fn after(site: &Site, answers: usize) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&site.at(0).into()).unwrap();
        socket.listen(1).unwrap();
        let listener = TcpListener::from(socket);
        let (sender, filled) = channel();
        let accepting = listener.try_clone().unwrap();
        thread::spawn(move || answer_then_fill(&accepting, answers, &sender));
        Self { listener, filled }
    }

    /// Waits until nobody can connect any more.
    fn wait(&self) -> Vec<Socket> {
        self.filled.recv_timeout(DEADLINE).unwrap()
    }
}

fn answer_then_fill(listener: &TcpListener, answers: usize, filled: &Sender<Vec<Socket>>) {
    let mut peers: Vec<Peer> = (0..answers)
        .map(|_| {
            let mut peer = Peer::new(listener.accept().unwrap().0);
            next_request(&mut peer);
            peer
        })
        .collect();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let is_full = socket.connect_timeout(&address.into(), Duration::from_millis(300)).is_err();
        waiting.push(socket);
        if is_full {
            break;
        }
    }
    filled.send(waiting).unwrap();
    for peer in &mut peers {
        peer.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
        peer.read_to_any_end();
    }
}

/// A client whose request waits for an upstream, after so many tries.
fn waiting_client(site: &Site, upstream: &Full, tries: usize) -> (Proxy, Peer, Vec<Socket>) {
    let listener = "reason_header: true, connect_timeout: 10m, http: { retries: 3 }".to_owned();
    let options = Options { listener, ..Options::default() };
    let proxy = Proxy::with(site, upstream.listener.local_addr().unwrap(), &options, &[usual(site)]);
    let mut client;
    let filled;
    if tries == 0 {
        filled = upstream.wait();
        client = Peer::connect(proxy.http());
        client.send(GET);
        until("the request", || (tenant(&proxy, "endpoint-7")["requests_in_flight"] == 1).then_some(()));
    } else {
        client = Peer::connect(proxy.http());
        client.send(GET);
        filled = upstream.wait();
        until("the next try", || (proxy.metric("tollgate_upstream_retries_total") == tries as f64).then_some(()));
    }
    (proxy, client, filled)
}

#[test]
fn a_client_that_goes_is_not_connected_for() {
    for tries in [1, 0] {
        let site = Site::new();
        let upstream = Full::after(&site, tries);
        let (proxy, client, _filled) = waiting_client(&site, &upstream, tries);
        client.reset();
        let record = proxy.expect_flows(1).remove(0);
        assert_eq!(record["reason"], Reason::DownstreamReset.code(), "{tries}: {record}");
    }
}

#[test]
fn what_is_denied_meanwhile_is_told_at_once() {
    for tries in [1, 0] {
        let site = Site::new();
        let upstream = Full::after(&site, tries);
        let (proxy, mut client, _filled) = waiting_client(&site, &upstream, tries);
        proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("GET", "/other")])]))]);
        let answer = client.read_message();
        let told = (answer.status(), answer.field("x-tollgate-reason"));
        // Before it was judged for the first time, it is an ordinary denial.
        let first = (403, Some(Reason::RequestNotAllowed.code()));
        assert!(told == (403, Some(Reason::Revoked.code())) || tries == 0 && told == first, "{tries}: {told:?}");
    }
}
