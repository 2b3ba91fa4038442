//! `http: { max_requests_per_connection }`: a connection ends in order with the last request that it may carry.

use serde_json::json;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;

fn at_most(requests: u32) -> Options {
    Options { listener: format!("http: {{ max_requests_per_connection: {requests} }}"), ..Options::default() }
}

#[test]
fn http_1_says_so_with_the_last_answer() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::with(&site, upstream.address(), &at_most(2), &[usual(&site)]);
    // The second answer is the upstream's, or our own.
    for last in ["allowed", "denied"] {
        let mut client = Peer::connect(proxy.http());
        client.send("GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.read_message().field("connection"), None);
        // The third is there before the second is answered, and gets no answer.
        client.send(format!("GET /{last} HTTP/1.1\r\nHost: a\r\n\r\nGET /third HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answer = client.read_message();
        assert_eq!((answer.status() == 200, answer.field("connection")), (last == "allowed", Some("close")));
        client.read_to_end();
    }
    assert_eq!(upstream.received().concat().windows(4).filter(|window| window == b"GET ").count(), 3);
}

/// With a client that knows what GOAWAY says: grpcio makes six calls, one after the other.
#[test]
fn http_2_clients_go_on_with_another_connection() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "grpc_peer.py", &["serve", &site.ip().to_string()]);
    let policy = ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("POST", r"/test\.Echo/.*")])]));
    let connections = |most| {
        let proxy = Proxy::with(&site, address.parse().unwrap(), &at_most(most), std::slice::from_ref(&policy));
        let seen = script::run(python, &site, "grpc_peer.py", &["call", &proxy.http().to_string()]);
        assert_eq!(seen["unary"], json!(["OK", "hello"]));
        assert_eq!(seen["stream"], json!(["OK", "1 [1, 2, 100000] 2"]));
        assert_eq!((&seen["denied"][0], &seen["after"]), (&json!("PERMISSION_DENIED"), &json!(["OK", "again"])));
        proxy.metric("tollgate_connections_total{listener=\"http\",direction=\"ingress\"}")
    };
    assert_eq!(connections(0), 1.0);
    let some = connections(1);
    // A call may have left before the client knows.
    assert!((3.0..=6.0).contains(&some), "{some}");
}
